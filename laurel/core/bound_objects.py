"""Objects that a Python program gives where a configuration has names: the configuration, and
whatever reads it, goes on with the name.

A function or class is known as `module.qualname`, rows and models as `python:...`. The names mean
something inside `bind_objects`, in the thread that entered it. A run that was begun with them and
is continued from elsewhere ends with an error (`refuse_unbound`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from laurel.core.errors import UsageError

PREFIX = "python:"
_held: ContextVar[Mapping[str, Any]] = ContextVar("given", default={})  # noqa: B039 - never written, only replaced


@contextmanager
def bind_objects(objects: Mapping[str, Any]) -> Generator[None]:
    """Inside the block these names stand for these objects."""
    token = _held.set({**_held.get(), **objects})
    try:
        yield
    finally:
        _held.reset(token)


def bound_object(name: str | None) -> Any:
    """The object that goes by this name; None where there is none."""
    return None if name is None else _held.get().get(name)


def refuse_unbound(name: str, where: str) -> None:
    """UsageError for a name that only a Python program can fill: of rows, of a model, of a function
    that no file can be asked for.
    """
    if name.startswith((PREFIX, "__main__.")) or re.fullmatch(r"[\w.]*<\w+>.*", name):
        fix = "Give it again, under the same name: laurel.train(...) in Python."
        raise UsageError(
            f"`{name}` was an object of the Python program that began the run.",
            where=where,
            fix=fix,
        )


def qualified_name(thing: Any) -> str:
    """`module.qualname` of a function or class; of a partial its function's, of any other object
    its class's.
    """
    while isinstance(thing, functools.partial):
        thing = thing.func
    if not isinstance(getattr(thing, "__qualname__", None), str):
        thing = type(thing)
    return f"{thing.__module__}.{thing.__qualname__}"
