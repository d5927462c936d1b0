"""The version of all packages of the repository, in one place."""

__version__ = "0.1.0"
