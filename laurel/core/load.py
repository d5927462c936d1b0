"""Files that users name: paths in a configuration file, and Python files (`file.py:function`) as
modules.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.local_imports import Loader, folder_package, is_local_module
from laurel.core.named_datasets import parse_named_sets

PATH_OPTIONS = (
    "model",
    "dataset",
    "eval_dataset",
    "chat_template",
    "env",
    "rewards",
    "relabel",
    "gold",
    "judge",
    "export",
    "ptx_dataset",
)
"""Options that may name a file; in a YAML file they may be written relative to that file."""


def load_file(path: str | Path, where: str) -> Any:
    """The module in a file, run once however often it is asked for; it can import the modules
    beside it, now and when it runs.

    No such file, or one that does not load: UsageError at `where`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError(
            f"no file {path}.", where=where, fix="The path is relative to the current folder."
        )
    package = folder_package(path.parent)
    name = f"{package}.{path.stem}"
    if (
        not path.stem.isidentifier()
    ):  # my-rewards.py, rewards.v2.py: no import statement could name it
        name = f"{package}.file_{hashlib.sha256(path.name.encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        importlib.import_module(package)
        spec = importlib.util.spec_from_file_location(name, path, loader=Loader(name, str(path)))
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look a class's module up by name
        Loader(name, str(path)).exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        said = str(error).replace(f"{package}.", "")
        raise UsageError(
            f"{path} does not load: {type(error).__name__}: {said}.", where=where
        ) from error
    return module


def load_module(name: str, where: str, fix: str = "") -> Any:
    """The module of a dotted name: one of the current folder first, as `python -m` has it, else an
    installed one.
    """
    package = folder_package(Path.cwd())
    inside = is_local_module(name.partition(".")[0], package)
    try:
        return importlib.import_module(f"{package}.{name}" if inside else name)
    except (Exception, SystemExit) as error:
        advice = fix if isinstance(error, ModuleNotFoundError) else ""
        said = str(error).replace(f"{package}.", "")
        raise UsageError(
            f"module `{name}` does not load: {type(error).__name__}: {said}.",
            where=where,
            fix=advice,
        ) from error


def resolve_paths(config_file: str | Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a YAML file. A relative path with nothing there, but something beside the file,
    becomes the path beside the file.
    """
    folder = Path(config_file).resolve().parent

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(item) for item in value]
        if isinstance(value, dict):
            return {key: found(item) for key, item in value.items()}
        if not isinstance(value, str) or not re.search(r"[./]", value):
            return value
        if "," in value and not (folder / value).exists():
            return ",".join(found(part.strip()) for part in value.split(","))
        path, colon, name = value.partition(":") if ".py:" in value else (value, "", "")
        if (
            "*" in path
            and not Path(path).is_absolute()
            and not any(Path().glob(path))
            and any(folder.glob(path))
        ):
            return f"{folder / path}"
        if Path(path).is_absolute() or Path(path).exists() or not (folder / path).exists():
            return value
        return f"{folder / path}{colon}{name}"

    def sets(value: Any) -> Any:
        named = parse_named_sets(value) if isinstance(value, str) else value
        return found(named if isinstance(named, dict) else value)

    values = {
        name: sets(value) if name == "eval_dataset" else value for name, value in values.items()
    }
    return {name: found(value) if name in PATH_OPTIONS else value for name, value in values.items()}
