"""An exhibit as text for a terminal: maps, tables, curves and claims, within its width."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    if exhibit.claims:
        parts += ["", claims]
    if exhibit.notes:
        parts += ["", *map(Text, exhibit.notes)]
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
        lines = [line for text in texts for line in text.split("\n")]
        size = max(map(len, lines))
        # a column is its cell, the padding on both sides and one line
        column = size + 2 * padding + 1
        if len(grid.values[0]) * column + 1 <= width:
            break
    table = Lines(
        box=box.SQUARE,
        show_header=False,
        show_lines=True,
        padding=(0, padding),
    )
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
    best = best_layout(table, right, width)
    lines = Lines(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, best.gap - 1, 0, 0),
    )
    for head, flush, wide in zip(table.columns, right, best.widths, strict=True):
        justify = "right" if flush else "left"
        lines.add_column(Text(head), justify=justify, width=wide, overflow="fold")
    for row in best.rows:
        lines.add_row(*map(Text, row))
    return lines


@dataclass(frozen=True)
class TextLayout:
    """A table's texts, the width of each column and the space between columns.

    excess: characters by which it is too wide; folded: is a text wider than its column?
    """

    gap: int
    rows: list[list[str]]
    widths: list[int]
    excess: int
    folded: bool


def best_layout(table: Table, right: Sequence[bool], width: int) -> TextLayout:
    """The layout with the least excess, then without folding; of equals the most spacious."""
    layouts = [
        text_layout(table, right, width, significant, gap)
        for significant, gap in ((4, 3), (4, 2), (3, 2), (3, 1))
    ]
    return min(layouts, key=lambda layout: (layout.excess, layout.folded))


def text_layout(
    table: Table, right: Sequence[bool], width: int, significant: int, gap: int
) -> TextLayout:
    """The table with so many significant digits and so much space between columns."""
    from laurel.report.cells import cell_text

    rows = [[cell_text(value, significant) for value in row] for row in table.rows]
    columns = [[row[j] for row in rows] for j in range(len(right))]
    total = width - gap * (len(right) - 1)
    widths = column_widths(table.columns, columns, right, total)
    folded = any(longest(column) > wide for column, wide in zip(columns, widths, strict=True))
    return TextLayout(gap, rows, widths, max(0, sum(widths) - total), folded)


def longest(texts: Iterable[str]) -> int:
    """Characters of the longest text; 0 of none."""
    return max(map(len, texts), default=0)


def column_widths(
    heads: Sequence[str],
    columns: Sequence[Sequence[str]],
    whole: Sequence[bool],
    total: int,
) -> list[int]:
    """Characters of each column within a total.

    `whole` columns are as wide as their cells; words of others stay unbroken; heads give way first.
    """
    least: list[int] = []
    widths: list[int] = []
    for head, column, kept in zip(heads, columns, whole, strict=True):
        cells = longest(column)
        words = longest(" ".join(column).split())
        unbroken = cells if kept else min(40, words)
        least.append(max(longest(head.split()), unbroken))
        widths.append(max(least[-1], cells))
    while sum(widths) > total and widths != least:
        # one character from the widest column that can give one
        room = [(widths[j] > least[j], widths[j]) for j in range(len(widths))]
        widths[room.index(max(room))] -= 1
    for j, head in enumerate(heads):
        wanted = len(head) - widths[j]
        left = total - sum(widths)
        widths[j] += max(0, min(wanted, left))
    return widths


Point = tuple[float, float, float, float]
"""(x, y, low, high)."""
Curve = Sequence[Point]


def spark_table(chart: Chart, width: int = 80) -> RenderableType:
    """Curves as text: first and last values with intervals, and the course on one common scale."""
    from laurel.report.cells import cell_text
    from laurel.report.exhibit import Table

    curves = {label: sorted(points) for label, points in chart.curves.items() if points}
    ranges = {(points[0][0], points[-1][0]) for points in curves.values()}
    ends = ["first", "last"]
    with_x = len(ranges) != 1
    if not with_x:
        ends = [f"{chart.x} {cell_text(x)}" for x in next(iter(ranges))]
    courses = sparks(curves, log=chart.log_y)
    rows: list[tuple[str, ...]] = []
    for label, points in curves.items():
        first = end_text(points[0], with_x=with_x)
        last = end_text(points[-1], with_x=with_x)
        rows.append((label, first, last, courses[label]))
    heads = ("", *ends, "course")
    return text_table(Table(chart.title, heads, tuple(rows)), width)


def end_text(point: Point, *, with_x: bool) -> str:
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

    heights: dict[str, list[float | None]] = {}
    for label, points in curves.items():
        heights[label] = [height(y, log=log) for _, y, *_ in points]
    every = [value for values in heights.values() for value in values]
    known = [value for value in every if value is not None]
    low = min(known, default=0.0)
    high = max(known, default=0.0)
    span = high - low or 1.0

    def block(value: float | None) -> str:
        if value is None:
            return " "
        return BLOCKS[round(7 * (value - low) / span)]

    found: dict[str, str] = {}
    for label, values in heights.items():
        count = min(SPARK, len(values))
        # evenly spaced points, the first and the last among them
        last = len(values) - 1
        places = [round(i * last / max(1, count - 1)) for i in range(count)]
        found[label] = "".join(block(values[place]) for place in places)
    return found


def height(y: float, *, log: bool) -> float | None:
    """Where a value stands on the scale; None where it has no place on it."""
    if not math.isfinite(y) or (log and y <= 0):
        return None
    return math.log(y) if log else y
