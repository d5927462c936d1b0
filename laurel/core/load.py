"""Files that users name: paths in a configuration, and Python files (`file.py:function`)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

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
    "scorers",
    "choose",
)
"""Options that may name a file; in a YAML file they may be written relative to that file."""
JUDGE = "judge:"
"""What stands before the file of a judge that is a reward."""


def load_file(path: str | Path, where: str) -> Any:
    """The module in a file, run once however often it is asked for.

    It can import the modules of its folder, now and when its functions run. No such file, or one
    that does not load: UsageError at `where`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError(
            f"no file {path}.", where=where, fix="The path is relative to the current folder."
        )
    package = folder_package(path.parent)
    name = f"{package}.{path.stem}"
    if not path.stem.isidentifier():
        # my-rewards.py, rewards.v2.py: no import statement could name it
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
        message = str(error).replace(f"{package}.", "")
        raise UsageError(
            f"{path} does not load: {type(error).__name__}: {message}.", where=where
        ) from error
    return module


def load_module(name: str, where: str, fix: str = "") -> Any:
    """The module of a dotted name: of the current folder first, as `python -m` has it."""
    package = folder_package(Path.cwd())
    inside = is_local_module(name.partition(".")[0], package)
    try:
        return importlib.import_module(f"{package}.{name}" if inside else name)
    except (Exception, SystemExit) as error:
        advice = fix if isinstance(error, ModuleNotFoundError) else ""
        message = str(error).replace(f"{package}.", "")
        raise UsageError(
            f"module `{name}` does not load: {type(error).__name__}: {message}.",
            where=where,
            fix=advice,
        ) from error


def resolve_paths(config_file: str | Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a YAML file, with paths relative to it made absolute.

    A relative path changes where nothing is at it in the current folder, and something is at it in
    the folder of the file.
    """
    folder = Path(config_file).resolve().parent
    found = dict(values)
    for name in PATH_OPTIONS:
        if name not in values:
            continue
        value = values[name]
        if name == "eval_dataset" and isinstance(value, str):
            sets = parse_named_sets(value)
            value = sets if isinstance(sets, dict) else value
        found[name] = _resolved(value, folder)
    return found


def _resolved(value: Any, folder: Path) -> Any:
    """A path, or every path in a list, a mapping or a text with commas."""
    if isinstance(value, list):
        return [_resolved(item, folder) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        return {name: _resolved(item, folder) for name, item in named.items()}
    if not isinstance(value, str) or not re.search(r"[./]", value):
        return value
    if "," in value and not (folder / value).exists():
        return ",".join(_resolved(part.strip(), folder) for part in value.split(","))
    if value.startswith(JUDGE):
        return f"{JUDGE}{_resolved(value.removeprefix(JUDGE), folder)}"
    path, colon, name = value.partition(":") if ".py:" in value else (value, "", "")
    if Path(path).is_absolute():
        return value
    if "*" in path and not any(Path().glob(path)) and any(folder.glob(path)):
        return f"{folder / path}"
    if Path(path).exists() or not (folder / path).exists():
        return value
    return f"{folder / path}{colon}{name}"
