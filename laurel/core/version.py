"""The version of laurel: read by the build, by `laurel --version` and by every run."""

__version__ = "0.1.0"
