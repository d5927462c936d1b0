"""The wheel: it holds the whole package and nothing else, and works from an empty folder."""

import os
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from house_source import ROOT, package_files

import laurel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The built wheel. No network: the backend must be installed."""
    if find_spec("hatchling") is None or find_spec("pip") is None:
        pytest.skip("needs pip and hatchling to build the wheel")
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-qq",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(out),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_whole_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {name for name in names if ".dist-info/" not in name}
    assert code == {str(path.relative_to(ROOT)) for path in package_files()}
    info = f"laurel_rl-{laurel.__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    assert (
        "laurel = laurel.cli.main:main"
        in zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    )


def test_the_wheel_works_by_itself(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    words = ["train", "grpo", "--lerning_rate", "1"]
    code = (
        "import laurel, sys; from laurel.cli.main import main; print(laurel.__file__);"
        f" sys.exit(main({words}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )
    assert done.stdout.startswith(str(tmp_path / "site")), done.stdout + done.stderr
    assert done.returncode == 2 and "learning_rate" in done.stderr


def test_constraints_pin_every_dependency_exactly():
    """`make` installs exact versions: each dependency of pyproject.toml, extras too, has one line
    in constraints.txt.
    """
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines), (
        "exact versions without a build, one a line"
    )
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    assert "torch==2.13.0" in lines and len(pinned) == len(lines)
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in asked} - {
        "laurel-rl"
    }
    assert not names - pinned
