"""Files to records: JSONL, JSON, CSV (each also gzipped) and Parquet. Every fault names the file, the place and the reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError, nearest
from laurel.data.cell import decode_cell

Record = tuple[str, dict[str, Any]]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
JSON_MARK = b"laurel:json"


def suffix_of(path: Path) -> tuple[str, bool]:
    """("", ".jsonl", ".csv", ...) of a file name in lower case, and whether the file is gzipped."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kept = suffixes[:-1] if zipped else suffixes
    return (kept[-1] if kept else ""), zipped


def checked_suffix(path: Path) -> tuple[str, bool]:
    """`suffix_of`, for a format that we read and write; any other is a UsageError that lists them."""
    suffix, zipped = suffix_of(path)
    if suffix not in SUFFIXES:
        known = "Files end in .jsonl, .json, .csv (each also with .gz) or .parquet."
        raise UsageError(f"unknown kind of file `{suffix or path.name}`.", where=str(path), fix=known)
    if suffix == ".parquet" and zipped:
        raise UsageError("a Parquet file is compressed inside, not by gzip.", where=str(path), fix="Name it .parquet.")
    return suffix, zipped


def read_records(path: Path) -> list[Record]:
    """Every record of a file as (where, columns). No record is ever left out: a bad one, and a file without any, is a UsageError."""
    if path.is_dir():
        inside = sorted(child.name for child in path.iterdir() if suffix_of(child)[0] in SUFFIXES)[:8]
        hint = f"Name one of its files: {', '.join(inside)}." if inside else "It holds no data file."
        raise UsageError("this is a folder, not a file.", where=str(path), fix=hint)
    if not path.exists():
        raise missing_file(path)
    suffix, zipped = checked_suffix(path)
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv}
    records = list(_parquet(path) if suffix == ".parquet" else readers[suffix](_content(path, zipped), path.name))
    if not records:
        raise UsageError("the file holds no rows.", where=str(path))
    return records


def missing_file(path: Path) -> UsageError:
    """The error for a file that is not there, with the near names of its folder."""
    folder = path.parent
    if not folder.is_dir():
        return UsageError("no such folder.", where=str(folder), fix=f"It should hold {path.name}.")
    names = [child.name for child in folder.iterdir() if child.is_file()]
    return UsageError("no such file.", where=str(path), fix=nearest(path.name, names) if names else f"{folder} holds no files.")


def parse_json(text: str, where: str) -> Any:
    """Strict JSON: NaN, infinity and a key that occurs twice in one object are errors too."""
    try:
        return json.loads(text, parse_constant=_not_json, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if "\n" not in text.strip() else f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"not valid JSON: {error.msg} at {place}.", where=where) from None
    except RecursionError:
        raise UsageError("JSON nested too deeply.", where=where) from None
    except ValueError as error:
        raise UsageError(f"not valid JSON: {error}.", where=where) from None


def _content(path: Path, zipped: bool) -> bytes:
    try:
        if not zipped:
            return path.read_bytes()
        with gzip.open(path, "rb") as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"not a whole gzip file: {error}.", where=str(path), fix="Fetch or write it again.") from None
    except OSError as error:
        raise UsageError(f"cannot read the file: {error.strerror}.", where=str(path)) from None


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text: byte {error.object[error.start]:#04x} at {error.start}.", where=where) from None


def _jsonl(content: bytes, name: str) -> Iterator[Record]:
    for number, line in enumerate(content.split(b"\n"), start=1):  # only \n ends a line: U+2028 may stand inside a string
        if not line.strip():
            continue
        where = f"{name}:{number}"
        yield where, _mapping(parse_json(_decode(line, where), where), where)


def _json(content: bytes, name: str) -> Iterator[Record]:
    text = _decode(content, name)
    first = text.lstrip()[:1]
    if first == "{" and len(text.strip().splitlines()) > 1 and _is_object(text.strip().splitlines()[0]):
        raise UsageError("one object per line is JSON Lines, not JSON.", where=name, fix="Rename the file to .jsonl.")
    value = parse_json(text, name) if text.strip() else []
    if not isinstance(value, list):
        lists = [key for key, inner in value.items() if isinstance(inner, list)] if isinstance(value, dict) else []
        hint = f"Save its list `{lists[0]}` alone." if lists else ""
        raise UsageError(f"expected a list of objects, found {kind_of(value)}.", where=name, fix=hint)
    for number, item in enumerate(value, start=1):
        where = f"{name}:record {number}"
        yield where, _mapping(item, where)


def _csv(content: bytes, name: str) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(_decode(content, name), newline=""), strict=True)
    try:
        header = next(reader, [])
        repeated = sorted({column for column in header if header.count(column) > 1 or not column})
        if repeated:
            raise UsageError(f"column names must be present and distinct; see {repeated}.", where=f"{name}:1")
        for number, cells in enumerate((cells for cells in reader if cells), start=1):
            where = f"{name}:record {number}"
            if len(cells) != len(header):
                raise UsageError(f"line {reader.line_num} has {len(cells)} cells, the header has {len(header)} columns.", where=where)
            pairs = zip(header, cells, strict=True)
            yield where, {column: decode_cell(cell, column) for column, cell in pairs if cell}
    except csv.Error as error:
        raise UsageError(f"not valid CSV: {error}.", where=f"{name}:{reader.line_num}") from None


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"not a readable Parquet file: {' '.join(str(error).split())[:200]}", where=str(path)) from None
    marked = {item.name for item in table.schema if (item.metadata or {}).get(JSON_MARK)}
    for number, columns in enumerate(table.to_pylist(), start=1):
        present = {column: value for column, value in columns.items() if value is not None}
        where = f"{path.name}:record {number}"
        yield where, {column: parse_json(value, where) if column in marked else value for column, value in present.items()}


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"expected an object of column: value, found {kind_of(value)}.", where=where)
    if not value:
        raise UsageError("the row has no columns.", where=where)
    return value


def kind_of(value: Any) -> str:
    """The plain name of a value's kind, for messages: `text`, `a list of 3`, `the number 5`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r:.40}" if value else "empty text"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else type(value).__name__


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key `{next(name for name in names if names.count(name) > 1)}` occurs twice in one object")
    return record


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
