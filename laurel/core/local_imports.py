"""Python files that users name, each of whose folders is a package of its own.

A file `rewards.py` in a folder loads as `laurel_at_<folder>.rewards`. While it loads, and whenever
its functions run, `import helpers` finds the `helpers` of its own folder first, as `python
rewards.py` would, and `from .helpers import f` works too. Nothing is put on `sys.path`: two folders
that both hold a `helpers.py` each keep their own.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "laurel_at_"
FOLDERS: dict[str, Path] = {}
"""The folders that files were named from, by the name of their package."""


def folder_package(folder: Path) -> str:
    """The name of a folder's package, which the finder knows from now on."""
    folder = folder.resolve()
    name = PREFIX + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    FOLDERS[name] = folder
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    importlib.invalidate_caches()  # a file written a moment ago is found
    is_local_module.cache_clear()
    return name


@functools.cache
def is_local_module(name: str, package: str) -> bool:
    """Does the folder hold a module of this name that a plain import would not find?"""
    if not name or name in sys.builtin_module_names or name == "laurel":
        return False
    found = PathFinder.find_spec(name, [str(FOLDERS[package])])
    if found is None:
        return False
    try:
        usual = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module such as __main__ that has no spec
        usual = None
    if (
        found.loader is None
    ):  # a folder of no Python files has a name too: only where nothing else has it
        return usual is None
    return usual is None or not _same_file(usual.origin, found.origin)


def _same_file(left: str | None, right: str | None) -> bool:
    return left is not None and right is not None and Path(left).resolve() == Path(right).resolve()


def make_import_function(package: str) -> Callable[..., Any]:
    """The `__import__` of a folder's modules: the folder's own first, else as usual."""

    def find(
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if level == 0 and is_local_module(name.partition(".")[0], package):
            if fromlist:
                return builtins.__import__(f"{package}.{name}", globals, locals, fromlist, 0)
            importlib.import_module(f"{package}.{name}")
            return sys.modules[f"{package}.{name.partition('.')[0]}"]
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    return find


class Loader(SourceFileLoader):
    """Runs a file whose own import statements go through its folder's importer."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the file."""
        package = module.__name__.partition(".")[0]
        module.__dict__["__builtins__"] = {
            **vars(builtins),
            "__import__": make_import_function(package),
        }
        super().exec_module(module)


class Finder:
    """Finds the packages that stand for folders, and whatever lies in them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of a module below one of our packages; None for every other name."""
        root, dot, _ = name.partition(".")
        if root not in FOLDERS:
            return None
        if not dot:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(FOLDERS[root])]
            return spec
        found = PathFinder.find_spec(name, path)
        if found is not None and isinstance(found.loader, SourceFileLoader) and found.origin:
            found.loader = Loader(name, found.origin)
        return found
