"""An exhibit as text for a terminal: maps, tables, curves and claims, within its width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from laurel.report.exhibit import Chart, Exhibit, Grid, Table

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK = 16  # characters of a curve


def print_exhibit(exhibit: Exhibit, console: Console) -> None:
    """Title, maps, tables, curves, claims and notes, within the console's width."""
    from rich.table import Table as Lines
    from rich.text import Text

    parts: list[RenderableType] = [Text(exhibit.title, "bold"), Text(exhibit.about)]
    for grid in exhibit.grids:
        parts += ["", Text(grid.title, "bold"), grid_table(grid, console.width)]
    for table in exhibit.tables:
        parts += ["", Text(table.title, "bold"), text_table(table, console.width)]
    for chart in exhibit.charts:
        title = Text(f"{chart.title}: {chart.y} over {chart.x}", "bold")
        parts += ["", title, spark_table(chart, console.width)]
    claims = Lines.grid(padding=(0, 1, 0, 0))
    for claim in exhibit.claims:
        mark = Text("✓", "green") if claim.holds else Text("✗", "bold red")
        claims.add_row(mark, Text(claim.text))
        claims.add_row("", Text(claim.evidence, "dim"))
    parts += ["", claims] if exhibit.claims else []
    parts += ["", *(Text(note) for note in exhibit.notes)] if exhibit.notes else []
    for part in parts:
        console.print(part)


def mark_before(mark: str, text: str, widest: int) -> str:
    """A cell of a map: the mark, then its value. widest: characters of the widest mark."""
    return f"{mark:<{widest}} {text}" if widest else text


def mark_above(mark: str, text: str, widest: int) -> str:
    """A cell of a map: the mark on a line above its value."""
    return f"{mark}\n{text}" if widest else text


def mark_alone(mark: str, text: str, widest: int) -> str:
    """A cell of a map: the mark; without one, the first character of the value."""
    return mark or text[:1]


LAYOUTS = (
    (mark_before, 3, 1),
    (mark_above, 3, 1),
    (mark_above, 3, 0),
    (mark_above, 2, 0),
    (mark_above, 1, 0),
    (mark_alone, 1, 0),
)
"""(how a cell is joined, digits of its value, spaces around it), the widest first."""


def grid_table(grid: Grid, width: int = 80) -> RenderableType:
    """A map as text: marks with their values, in the widest layout that fits the width."""
    from rich import box
    from rich.table import Table as Lines
    from rich.text import Text

    cells: list[list[str | None]] = []
    texts: list[str] = []
    size = padding = 0
    for join, digits, padding in LAYOUTS:
        cells = grid_cells(grid, join, digits)
        texts = [cell for row in cells for cell in row if cell is not None]
        size = max(len(line) for text in texts for line in text.split("\n"))
        # a column is its cell, the padding on both sides and one line
        if len(grid.values[0]) * (size + 2 * padding + 1) + 1 <= width:
            break
    table = Lines(box=box.SQUARE, show_header=False, show_lines=True, padding=(0, padding))
    for _ in grid.values[0]:
        table.add_column(justify="center", min_width=size, no_wrap=True)
    height = max(text.count("\n") + 1 for text in texts)
    wall = "\n".join(["▒" * size] * height)
    for row in cells:
        table.add_row(*(Text(wall) if cell is None else cell for cell in row))
    return table


def grid_cells(
    grid: Grid, join: Callable[[str, str, int], str], digits: int
) -> list[list[str | None]]:
    """The texts of a map's cells, None for a wall."""
    from laurel.report.cells import is_wall, value_texts

    texts = value_texts(grid, digits)
    longest = max(len(text) for row in texts for text in row)
    widest = max(len(mark) for marks in grid.marks for mark in marks)
    rows = zip(grid.values, grid.marks, texts, strict=True)
    return [
        [
            None if is_wall(value, mark) else join(mark, text.rjust(longest), widest)
            for value, mark, text in zip(*row, strict=True)
        ]
        for row in rows
    ]


def text_table(table: Table, width: int = 80) -> RenderableType:
    """A table as text, numbers flush right and never broken.

    One too wide gives up space between columns, then a digit, then unfolded words.
    """
    from rich import box
    from rich.table import Table as Lines
    from rich.text import Text

    from laurel.report.exhibit_page import numeric_columns

    right = numeric_columns(table)
    gap, rows, widths = best_layout(table, right, width)
    lines = Lines(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, gap - 1, 0, 0))
    for head, flush, wide in zip(table.columns, right, widths, strict=True):
        justify = "right" if flush else "left"
        lines.add_column(Text(head), justify=justify, width=wide, overflow="fold")
    for row in rows:
        lines.add_row(*map(Text, row))
    return lines


def best_layout(
    table: Table, right: Sequence[bool], width: int
) -> tuple[int, list[list[str]], list[int]]:
    """(space between columns, texts, widths) of the layout with the least excess, then folding."""
    from laurel.report.cells import cell_text

    layouts: list[tuple[int, bool, int, list[list[str]], list[int]]] = []
    for significant, gap in ((4, 3), (4, 2), (3, 2), (3, 1)):
        rows = [[cell_text(value, significant) for value in row] for row in table.rows]
        columns = [[row[j] for row in rows] for j in range(len(right))]
        total = width - gap * (len(right) - 1)
        widths = column_widths(table.columns, columns, right, total)
        folded = any(
            len(text) > wide for row in rows for text, wide in zip(row, widths, strict=True)
        )
        layouts.append((max(0, sum(widths) - total), folded, gap, rows, widths))
    return min(layouts, key=lambda layout: layout[:2])[2:]  # of equals the first


def column_widths(
    heads: Sequence[str], columns: Sequence[Sequence[str]], whole: Sequence[bool], total: int
) -> list[int]:
    """Characters of each column within a total.

    `whole` columns are as wide as their cells; words of others stay unbroken; heads give way first.
    """

    def longest(texts: Sequence[str]) -> int:
        return max(map(len, texts), default=0)

    least = [
        max(
            longest(head.split()),
            longest(column) if kept else min(40, longest(" ".join(column).split())),
        )
        for head, column, kept in zip(heads, columns, whole, strict=True)
    ]
    widths = [max(small, longest(column)) for small, column in zip(least, columns, strict=True)]
    while sum(widths) > total and widths != least:
        # one character from the widest column that can give one
        widths[max(range(len(widths)), key=lambda j: (widths[j] > least[j], widths[j]))] -= 1
    for j, head in enumerate(heads):
        widths[j] += max(0, min(len(head) - widths[j], total - sum(widths)))
    return widths


Curve = Sequence[tuple[float, float, float, float]]
"""(x, y, low, high) of each point."""


def spark_table(chart: Chart, width: int = 80) -> RenderableType:
    """Curves as text: first and last values with intervals, and the course on one common scale."""
    from laurel.report.cells import cell_text
    from laurel.report.exhibit import Table

    curves = {label: sorted(points) for label, points in chart.curves.items() if points}
    ranges = {(points[0][0], points[-1][0]) for points in curves.values()}
    ends = ["first", "last"]
    if len(ranges) == 1:
        ends = [f"{chart.x} {cell_text(x)}" for x in next(iter(ranges))]
    courses = sparks(curves, log=chart.log_y)
    rows = [
        (
            label,
            end_text(points[0], with_x=len(ranges) != 1),
            end_text(points[-1], with_x=len(ranges) != 1),
            courses[label],
        )
        for label, points in curves.items()
    ]
    return text_table(Table(chart.title, ("", *ends, "course"), tuple(rows)), width)


def end_text(point: tuple[float, float, float, float], *, with_x: bool) -> str:
    """`4 [3, 5]`, and where it lies where curves end at different x."""
    from laurel.report.cells import cell_text

    x, *figures = point
    y, low, high = (cell_text(figure, 3) for figure in figures)
    interval = f" [{low}, {high}]" if low != high else ""
    return y + interval + (f" at {cell_text(x)}" if with_x else "")


def sparks(curves: Mapping[str, Curve], *, log: bool) -> dict[str, str]:
    """Each curve as at most SPARK characters, between the lowest and the highest of all.

    log: on a logarithmic scale; what has no place on it is a space.
    """

    def height(y: float) -> float | None:
        if not math.isfinite(y) or (log and y <= 0):
            return None
        return math.log(y) if log else y

    heights = {label: [height(y) for _, y, *_ in points] for label, points in curves.items()}
    known = [value for values in heights.values() for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)

    def block(value: float | None) -> str:
        return " " if value is None else BLOCKS[round(7 * (value - low) / (high - low or 1.0))]

    found: dict[str, str] = {}
    for label, values in heights.items():
        count = min(SPARK, len(values))
        # evenly spaced points, the first and the last among them
        chosen = [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]
        found[label] = "".join(map(block, chosen))
    return found
