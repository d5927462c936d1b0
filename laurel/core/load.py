"""Python files that users name on the command line (`file.py:function`), as modules."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError


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
