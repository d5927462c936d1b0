"""Files to records: JSONL, JSON, CSV, TSV (each also gzipped), Parquet, Arrow.

Every fault names the file, the place and the reason.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError, nearest
from laurel.data.csv_table import Record, read_table
from laurel.data.row_errors import combined_error

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
BINARY = (".parquet", ".arrow")
POINTER = b"version https://git-lfs"
ELSEWHERE = {
    ".xlsx": "Save it as CSV (UTF-8) in the program that made it.",
    ".xls": "Save it as CSV (UTF-8) in the program that made it.",
    ".zip": "Unpack it, and name the file in it.",
    ".zst": "Unpack it with zstd -d.",
    ".bz2": "Unpack it with bunzip2.",
    ".xz": "Unpack it with unxz.",
    ".txt": 'Each text as a line {"text": ...} of a .jsonl file.',
}
JSON_MARK = b"laurel:json"


def suffix_of(path: Path) -> tuple[str, bool]:
    """("", ".jsonl", ".csv", ...) of a file name in lower case, and whether the file is gzipped."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kept = suffixes[:-1] if zipped else suffixes
    return (kept[-1] if kept else ""), zipped


def checked_suffix(path: Path) -> tuple[str, bool]:
    """`suffix_of`, for a format that we read; any other is a UsageError that lists them."""
    suffix, zipped = suffix_of(path)
    if suffix not in SUFFIXES:
        known = "Files end in .jsonl, .json, .csv, .tsv (each also with .gz), .parquet or .arrow."
        fix = f"{ELSEWHERE[suffix]} {known}" if suffix in ELSEWHERE else known
        raise UsageError(f"unknown kind of file `{suffix or path.name}`.", where=str(path), fix=fix)
    if suffix in BINARY and zipped:
        kind = suffix.removeprefix(".").capitalize()
        raise UsageError(
            f"a {kind} file is compressed inside, not by gzip.",
            where=str(path),
            fix=f"Name it {suffix}.",
        )
    return suffix, zipped


def read_records(
    path: Path, *, name: str = "", faults: list[UsageError] | None = None
) -> list[Record]:
    """Every record of a file as (where, columns).

    No record is ever left out: bad ones, and a file without any, are a UsageError.

    name: how places call the file, else by its name. faults: takes the bad records instead, so that
    they can be told with others.
    """
    if path.is_dir():
        raise UsageError("this is a folder, not a file.", where=str(path), fix="Name a file in it.")
    if not path.exists():
        raise missing_file(path)
    suffix, zipped = checked_suffix(path)
    name, found = name or path.name, list[UsageError]()
    if suffix in BINARY:
        records = list(_binary(path, suffix, name))
    else:
        content = _content(path, zipped)
        if suffix in (".jsonl", ".ndjson"):
            records = list(_jsonl(content, name, found))
        elif suffix == ".json":
            records = list(_json(content, name, found))
        else:
            records = list(
                read_table(_decode(content, name), name, "\t" if suffix == ".tsv" else "", found)
            )
    if found and faults is None:
        raise combined_error(found, len(records) + len(found), name)
    if not records and not found:
        raise UsageError("the file holds no rows.", where=str(path))
    if faults is not None:
        faults.extend(found)
    return records


def missing_file(path: Path) -> UsageError:
    """The error for a file that is not there, with the near names of its folder."""
    folder = path.parent
    if not folder.is_dir():
        return UsageError("no such folder.", where=str(folder), fix=f"It should hold {path.name}.")
    names = [child.name for child in folder.iterdir() if child.is_file()]
    return UsageError(
        "no such file.",
        where=str(path),
        fix=nearest(path.name, names) if names else f"{folder} holds no files.",
    )


def parse_json(text: str, where: str) -> Any:
    """Strict JSON: NaN, infinity and a key that occurs twice in one object are errors too."""
    try:
        return json.loads(text, parse_constant=_not_json, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        place = (
            f"column {error.colno}"
            if "\n" not in text.strip()
            else f"line {error.lineno}, column {error.colno}"
        )
        raise UsageError(f"not valid JSON: {error.msg} at {place}.", where=where) from None
    except RecursionError:
        raise UsageError("JSON nested too deeply.", where=where) from None
    except ValueError as error:
        raise UsageError(f"not valid JSON: {error}.", where=where) from None


def _content(path: Path, zipped: bool) -> bytes:
    try:
        content = path.read_bytes()
        if content.startswith(POINTER):
            raise lfs_pointer_error(path)
        return gzip.decompress(content) if zipped else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(
            f"not a whole gzip file: {error}.", where=str(path), fix="Fetch or write it again."
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read the file: {error.strerror}.", where=str(path)) from None


def lfs_pointer_error(path: Path) -> UsageError:
    """The error for what a clone without Git LFS leaves in a file's place."""
    fix = f"Fetch it: git -C {path.parent} lfs pull"
    return UsageError(
        "this is a pointer of Git LFS, not the file itself.", where=str(path), fix=fix
    )


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text: byte {error.object[error.start]:#04x} at {error.start}."
        raise UsageError(what, where=where, fix="Save the file as UTF-8.") from None


def _jsonl(content: bytes, name: str, faults: list[UsageError]) -> Iterator[Record]:
    for number, line in enumerate(
        content.split(b"\n"), start=1
    ):  # only \n ends a line: U+2028 may stand inside a string
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield where, _mapping(parse_json(_decode(line, where), where), where)
        except UsageError as error:
            faults.append(error)


def _json(content: bytes, name: str, faults: list[UsageError]) -> Iterator[Record]:
    text = _decode(content, name)
    lines = text.strip().splitlines()
    if (
        text.lstrip()[:1] == "{" and len(lines) > 1 and _is_object(lines[0])
    ):  # one object per line, as the hub's .json files have
        yield from _jsonl(content, name, faults)
        return
    value = parse_json(text, name) if text.strip() else []
    if not isinstance(value, list):
        lists = (
            [key for key, inner in value.items() if isinstance(inner, list)]
            if isinstance(value, dict)
            else []
        )
        hint = f"Save its list `{lists[0]}` alone." if lists else ""
        raise UsageError(
            f"expected a list of objects, found {kind_of(value)}.", where=name, fix=hint
        )
    for number, item in enumerate(value, start=1):
        where = f"{name}:record {number}"
        try:
            yield where, _mapping(item, where)
        except UsageError as error:
            faults.append(error)


def _binary(path: Path, suffix: str, name: str) -> Iterator[Record]:
    """The rows of a Parquet file, or of an Arrow file as `datasets` writes them.

    A null is a column that the row does not have.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with open(path, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise lfs_pointer_error(path)
        table = pyarrow.parquet.read_table(path) if suffix == ".parquet" else _arrow(path)
    except (pyarrow.ArrowException, OSError) as error:
        kind = suffix.removeprefix(".").capitalize()
        raise UsageError(
            f"not a readable {kind} file: {' '.join(str(error).split())[:200]}", where=str(path)
        ) from None
    marked = {item.name for item in table.schema if (item.metadata or {}).get(JSON_MARK)}
    for number, columns in enumerate(table.to_pylist(), start=1):
        present = {column: value for column, value in columns.items() if value is not None}
        where = f"{name}:record {number}"
        yield (
            where,
            {
                column: parse_json(value, where) if column in marked else value
                for column, value in present.items()
            },
        )


def _arrow(path: Path) -> Any:
    """The table of an Arrow file: the stream that `datasets` writes, or the file format."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            return pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return pyarrow.ipc.open_file(source).read_all()


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(
            f"expected an object of column: value, found {kind_of(value)}.", where=where
        )
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
        raise ValueError(
            f"key `{next(name for name in names if names.count(name) > 1)}` occurs twice in one"
            " object"
        )
    return record


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
