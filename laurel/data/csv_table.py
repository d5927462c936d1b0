"""Tables as text: CSV with commas or semicolons, and TSV, as people and their programs write
them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from laurel.core.errors import UsageError
from laurel.data.csv_cell import decode_cell

SEPARATORS = ",;\t|"
INDEX = "Unnamed: 0"
"""How pandas calls the first column of a table that has no name: its index."""
Record = tuple[str, dict[str, Any]]


def read_table(text: str, name: str, separator: str, faults: list[UsageError]) -> Iterator[Record]:
    """The rows of a table with a header.

    Lines whose cells are all empty are no rows, as in Excel's files; a row with a wrong number of
    cells joins `faults`. separator: empty where the header must tell.
    """
    csv.field_size_limit(2**31 - 1)
    reader = _reader(text, separator)
    try:
        header = header_of(next(reader, []), name)
        for number, cells in enumerate((cells for cells in reader if any(cells)), start=1):
            where = f"{name}:record {number}"
            if _wrong_count(cells, header):
                what = (
                    f"line {reader.line_num} has {len(cells)} cells, the header has {len(header)}"
                    " columns."
                )
                fix = "A text that holds the separator or a line end stands in quotes."
                faults.append(UsageError(what, where=where, fix=fix))
                continue
            _refuse_nameless(cells, header, name, where)
            pairs = zip(header, cells, strict=False)
            row = {column: decode_cell(cell, column) for column, cell in pairs if column and cell}
            yield where, row
    except csv.Error as error:
        raise UsageError(f"not valid CSV: {error}.", where=f"{name}:{reader.line_num}") from None


def _reader(text: str, separator: str) -> Any:
    """A csv reader at the header. Excel's own first line, "sep=;", names the separator."""
    lines = io.StringIO(text, newline="")
    first = lines.readline()
    hint = first.strip()
    if hint.lower().startswith("sep=") and len(hint) == 5:
        separator, first = hint[4], lines.readline()
        lines = io.StringIO(text[text.index("\n") + 1 :], newline="")
    else:
        lines.seek(0)
    return csv.reader(lines, delimiter=separator or separator_of(first), strict=True)


def _wrong_count(cells: Sequence[str], header: Sequence[str]) -> bool:
    """Fewer cells than named columns, or text beyond the last column."""
    named = [column for column in header if column]
    return len(cells) < len(named) or any(cells[len(header) :])


def _refuse_nameless(cells: Sequence[str], header: Sequence[str], name: str, where: str) -> None:
    """A UsageError for a cell with text in a column without a name."""
    pairs = zip(header, cells, strict=False)
    stray = [cell for column, cell in pairs if not column and cell]
    if stray:
        what = (
            f"column names must be present; {where} has {stray[0]!r:.40} in a column without one."
        )
        raise UsageError(what, where=f"{name}:1", fix="Name the column in the first line.")


def header_of(cells: Sequence[str], name: str) -> list[str]:
    """The names of the columns, without the spaces around them.

    A first one without a name is a table's index; later ones stay empty.
    """
    header = [cell.strip() for cell in cells]
    if len(header) > 1 and not header[0]:
        header[0] = INDEX
    repeated = sorted({column for column in header if column and header.count(column) > 1})
    if repeated:
        raise UsageError(f"column names must be distinct; see {repeated}.", where=f"{name}:1")
    return header


def separator_of(line: str) -> str:
    """What parts the cells of a header: the separator that it holds most often outside quotes.

    A comma where it holds none.
    """
    outside = "".join(part for number, part in enumerate(line.split('"')) if number % 2 == 0)
    return max(SEPARATORS, key=outside.count)
