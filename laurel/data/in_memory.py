"""Rows that a Python program has in hand: a `datasets.Dataset`, a table of pandas, a list or any
other iterable of mappings.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, cast

from laurel.core.errors import UsageError, nearest
from laurel.data.read import kind_of

Records = list[tuple[str, dict[str, Any]]]
SHAPE = (
    "Give a datasets.Dataset, or an iterable of mappings such as {'prompt': ..., 'answer': ...}."
)


def records_of(thing: Any, option: str, split: str = "train") -> Records:
    """(where, columns) of each row, read once and whole, copied: `option:record 3`.

    A null is a column that the row does not have.

    split: of a DatasetDict. What gives no rows is a UsageError that names the option.
    """
    if isinstance(thing, Mapping):
        thing = one_split(cast(Mapping[str, Any], thing), option, split)
    if hasattr(thing, "to_dict") and hasattr(
        thing, "iloc"
    ):  # a table of pandas: iterating over it would give its columns' names
        thing = thing.to_dict("records")
    if isinstance(thing, str | bytes) or not (
        isinstance(thing, Iterable) or hasattr(thing, "__getitem__")
    ):
        raise UsageError(
            f"rows are asked for, and this is {kind_of(thing)}.", where=option, fix=SHAPE
        )
    rows: Records = []
    for number, row in enumerate(cast(Iterable[Any], thing), start=1):
        where = f"{option}:record {number}"
        if not isinstance(row, Mapping):
            raise UsageError(
                f"expected a mapping of column: value, found {kind_of(row)}.",
                where=where,
                fix=SHAPE,
            )
        rows.append(
            (
                where,
                {
                    str(name): as_file_value(value)
                    for name, value in cast(Mapping[Any, Any], row).items()
                    if not is_missing(value)
                },
            )
        )
        if not rows[-1][1]:
            raise UsageError("the row has no columns.", where=where)
    if not rows:
        raise UsageError(
            "there are no rows (an iterator that was read before has none left).", where=option
        )
    return rows


def one_split(thing: Mapping[str, Any], option: str, split: str) -> Any:
    """The split of a DatasetDict; a plain mapping is no list of rows."""
    if not all(hasattr(part, "column_names") for part in thing.values()):
        fix = "One row stands in a list; columns become rows by datasets.Dataset.from_dict."
        raise UsageError("a mapping is no list of rows.", where=option, fix=fix)
    if split not in thing:
        raise UsageError(f"it has no split `{split}`.", where=option, fix=nearest(split, thing))
    return thing[split]


def is_missing(value: Any) -> bool:
    """None, and the NaN by which pandas says that a cell is empty."""
    return value is None or (isinstance(value, float) and value != value)


def as_file_value(value: Any) -> Any:
    """A value as a file would hold it: tuples and arrays as lists, numbers of numpy and torch as
    Python's; copied, mappings too.
    """
    if isinstance(value, Mapping):
        return {
            str(name): as_file_value(item) for name, item in cast(Mapping[Any, Any], value).items()
        }
    if isinstance(value, list | tuple):
        return [as_file_value(item) for item in cast(Iterable[Any], value)]
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return value.tolist()
    return value


def are_names(thing: Any) -> bool:
    """Is this a list of names of files, not of rows?"""
    return (
        isinstance(thing, list | tuple)
        and bool(thing)
        and all(isinstance(one, str) for one in itertools.islice(thing, 10))
    )
