"""Whether a value read from JSON is an object or a list, in a form that a type checker follows."""

from collections.abc import Mapping
from typing import Any, TypeGuard


def is_object(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Is this a JSON object?"""
    return isinstance(value, Mapping)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Is this a JSON list?"""
    return isinstance(value, list)
