"""Rows to files: JSONL, JSON, CSV (each also gzipped) and Parquet, whole or not at all, and read
back as they were.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError
from laurel.data.csv_cell import encode_cell
from laurel.data.read import JSON_MARK, checked_suffix
from laurel.data.source import Row


def write_rows(rows: Sequence[Row], path: str | Path) -> int:
    """Write the columns of `rows`, in the format that the suffix of `path` names.

    Returns the number of rows written.

    Reading the file again gives equal columns in equal order (`where` changes, being a place). The
    file appears whole or not at all. A value that the format cannot hold, a missing folder or an
    unknown suffix is a UsageError.
    """
    path = Path(path)
    suffix, zipped = checked_suffix(path)
    if suffix in (".tsv", ".arrow"):
        raise UsageError(
            f"`{suffix}` files are read, not written.",
            where=str(path),
            fix="Write .jsonl, .json, .csv or .parquet.",
        )
    if not rows:
        raise UsageError("there are no rows to write.", where=str(path))
    if not path.parent.is_dir():
        raise UsageError("no such folder.", where=str(path.parent), fix="Make it first.")
    writers = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    content = writers[suffix](rows)
    if zipped:
        content = gzip.compress(content, mtime=0)  # no clock inside: equal rows give equal bytes
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        raise UsageError(f"cannot write the file: {error.strerror}.", where=str(path)) from None
    finally:
        draft.unlink(missing_ok=True)
    return len(rows)


def _dump(value: Any, where: str, **options: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"cannot be written as JSON: {error}.", where=where) from None


def _utf8(text: str, where: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"cannot be written as UTF-8: {error.reason}.", where=where) from None


def _jsonl(rows: Sequence[Row]) -> bytes:
    return b"".join(_utf8(_dump(row.columns, row.where) + "\n", row.where) for row in rows)


def _json(rows: Sequence[Row]) -> bytes:
    return (
        b"[\n"
        + b",\n".join(_utf8(_dump(row.columns, row.where), row.where) for row in rows)
        + b"\n]\n"
    )


def _csv(rows: Sequence[Row]) -> bytes:
    columns = columns_of(rows)
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(columns)
    for row in rows:
        for column, value in row.columns.items():
            _dump(value, f"{row.where}: {column}")
        writer.writerow(
            [
                encode_cell(row.columns[name], name, where=row.where) if name in row.columns else ""
                for name in columns
            ]
        )
    return _utf8(out.getvalue(), rows[0].where)


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    arrays, fields = [], []
    for column in columns_of(rows):
        values = [row.columns.get(column) for row in rows]
        there = [column in row.columns for row in rows]
        native = _is_native_parquet(values, there)
        if not native:  # mixed or nested values: JSON text, marked as such in the file's schema
            dumped = (
                _dump(value, f"{row.where}: {column}")
                for value, row in zip(values, rows, strict=True)
            )
            values = [
                text if present else None for text, present in zip(dumped, there, strict=True)
            ]
        try:
            array = pyarrow.array(values, type=None if native else pyarrow.string())
        except UnicodeEncodeError as error:
            raise UsageError(
                f"column `{column}` cannot be written as UTF-8: {error.reason}.",
                where=rows[0].where,
            ) from None
        arrays.append(array)
        fields.append(
            pyarrow.field(column, array.type, metadata=None if native else {JSON_MARK: b"1"})
        )
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(fields)), sink
    )
    return sink.getvalue().to_pybytes()


def _is_native_parquet(values: list[Any], there: list[bool]) -> bool:
    """True if Parquet's own types hold the column without loss: one scalar type, or lists of plain
    messages.
    """
    kinds = {type(value) for value, present in zip(values, there, strict=True) if present}
    if kinds == {int}:
        return all(-(2**63) <= value < 2**63 for value in values if value is not None)
    return kinds in ({str}, {bool}, {float}) or (
        kinds == {list} and all(_plain(value) for value in values if value is not None)
    )


def _plain(value: list[Any]) -> bool:
    shape = ["content", "role"]
    return all(
        isinstance(item, dict)
        and sorted(item) == shape
        and all(isinstance(part, str) for part in item.values())
        for item in value
    )


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The names of all columns, in the order in which they first occur."""
    return list(dict.fromkeys(column for row in rows for column in row.columns))
