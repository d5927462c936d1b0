"""A value as the text of one CSV cell and back, without loss: what would be misread is written as
JSON.
"""

from __future__ import annotations

import json
import math
from typing import Any

from laurel.core.errors import UsageError

_NAMES = (
    "text query prompt completion response chosen rejected question answer instruction input output"
    " task id source solution gold"
)
TEXT_COLUMNS = frozenset(_NAMES.split())


def decode_cell(cell: str, column: str) -> Any:
    """The value of a CSV cell.

    A list, an object or a quoted string in JSON is read as such in every column. Numbers, true,
    false (True and FALSE, too, as pandas and Excel write them) and null are read as such only
    outside the columns that hold text (so that the answer "46" stays a string), and only in their
    shortest spelling (so that "007" and "1e5" stay strings). Everything else is the text itself.
    """
    if cell[:1] in ("[", "{", '"'):
        try:
            return json.loads(cell, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return cell
    return cell if column in TEXT_COLUMNS else _scalar(cell)


def encode_cell(value: Any, column: str, *, where: str = "") -> str:
    """The text that `decode_cell` turns back into `value`.

    A value that no cell of this column can hold is a UsageError.
    """
    if isinstance(value, str) and value and _same(decode_cell(value, column), value):
        return value
    cell = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not _same(decode_cell(cell, column), value):
        kind = type(value).__name__
        raise UsageError(
            f"column `{column}` of a CSV file holds text, not {kind} ({value!r:.40}).",
            where=where,
            fix="Write JSONL instead.",
        )
    return cell


def _scalar(cell: str) -> Any:
    words = {
        "true": True,
        "false": False,
        "null": None,
        "True": True,
        "False": False,
        "TRUE": True,
        "FALSE": False,
    }
    if cell in words:
        return words[cell]
    if len(cell) > 40 or not cell or cell[0] not in "-0123456789":
        return cell
    for kind in (int, float):
        try:
            number = kind(cell)
        except ValueError:
            continue
        if math.isfinite(number) and json.dumps(number) == cell:
            return number
    return cell


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and json.dumps(left) == json.dumps(right)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
