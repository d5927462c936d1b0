"""Files that users name: paths in a configuration file, and Python files (`file.py:function`) as modules."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError

PATH_OPTIONS = ("model", "dataset", "eval_dataset", "chat_template", "env", "rewards", "relabel", "gold", "judge", "export", "ptx_dataset")
"""Options that may name a file; in a YAML file they may be written relative to that file."""


def load_file(path: str | Path, where: str) -> Any:
    """The module in a file, run once however often it is asked for. No such file, or one that does not load: UsageError at `where`."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError(f"no file {path}.", where=where, fix="The path is relative to the current folder.")
    alias = f"laurel_file_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module  # dataclasses and pickle look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[alias]
        raise UsageError(f"{path} does not load: {type(error).__name__}: {error}.", where=where) from error
    return module


def beside(config_file: str | Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a YAML file. A relative path with nothing there, but something beside the file, becomes the path beside the file."""
    folder = Path(config_file).resolve().parent

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(item) for item in value]
        if not isinstance(value, str) or not re.search(r"[./]", value):
            return value
        if "," in value and not (folder / value).exists():
            return ",".join(found(part.strip()) for part in value.split(","))
        path, colon, name = value.partition(":") if ".py:" in value else (value, "", "")
        if "*" in path and not Path(path).is_absolute() and not any(Path().glob(path)) and any(folder.glob(path)):
            return f"{folder / path}"
        if Path(path).is_absolute() or Path(path).exists() or not (folder / path).exists():
            return value
        return f"{folder / path}{colon}{name}"

    return {name: found(value) if name in PATH_OPTIONS else value for name, value in values.items()}
