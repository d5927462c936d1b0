"""`write_page`: an experiment as one self-contained HTML page: claims, pictures, tables and the
command that made it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import laurel
from laurel.core.files import write_atomic
from laurel.report.exhibit import Exhibit, Grid, Table

ARROWS = {
    "↑": (0.0, 1.0),
    "↓": (0.0, -1.0),
    "←": (-1.0, 0.0),
    "→": (1.0, 0.0),
    "↗": (0.7, 0.7),
    "↘": (0.7, -0.7),
    "↖": (-0.7, 0.7),
    "↙": (-0.7, -0.7),
}
"""A mark made of these is drawn as arrows, each in its direction (x, y); any other mark is written.
"""


def write_page(exhibit: Exhibit, path: str | Path, *, command: str, more: str = "") -> None:
    """Write the page. `command` is what makes it again, `more` is said behind it."""
    write_atomic(path, render(exhibit, command, more).encode("utf-8", "replace"))


def render(exhibit: Exhibit, command: str, more: str = "") -> str:
    """The page as text. Light and dark, no script, nothing fetched; all words are escaped."""
    from laurel.report.maps import (
        chart_svg,
        grid_svg,
        span,
    )  # these bring matplotlib, which text and numbers do without
    from laurel.report.page import clean

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["clean"] = clean
    return pages.get_template("exhibit.html").render(
        exhibit=exhibit,
        failed=sum(not claim.holds for claim in exhibit.claims),
        pictures=[
            (grid.title, spoken(grid), span(grid) > 1, Markup(grid_svg(grid)))
            for grid in exhibit.grids
        ]
        + [
            (chart.title, f"{chart.y} over {chart.x}", False, Markup(chart_svg(chart)))
            for chart in exhibit.charts
        ],
        tables=[(table, numeric(table)) for table in exhibit.tables],
        cell=cell,
        command=command,
        more=more,
        version=laurel.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def cell(value: Any, significant: int = 4) -> str:
    """A value of a table in words: whole numbers whole, others with so many significant digits; -
    for None; yes and no.

    0.123456 is 0.1235, 3.0 is 3, 1e-12 is 1e-12, 123456.7 is 123457.
    """
    if isinstance(value, str):
        return value
    value = value.item() if hasattr(value, "item") else value  # numpy's
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "-∞"}.get(value, "not a number")
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    return f"{value:.0f}" if 10**significant <= abs(value) < 1e9 else f"{value:.{significant}g}"


def numeric(table: Table) -> tuple[bool, ...]:
    """Of each column, whether it holds numbers, and so is set flush right."""
    columns = zip(*table.rows, strict=True) if table.rows else ((),) * len(table.columns)
    return tuple(
        any(map(is_number, column)) and not any(isinstance(value, str) for value in column)
        for column in columns
    )


def is_number(value: Any) -> bool:
    """True of integers and floats, numpy's too; not of yes and no."""
    return isinstance(value, Real) and not isinstance(value, bool)


def figures(grid: Grid, digits: int = 3) -> list[list[str]]:
    """The values of a map as text, all with the same decimals; whole numbers have none. "" for
    walls and for exits whose mark says it.

    The largest decides: it has so many digits after its first whole one. [[0.8116, -1.0, None]] is
    ["0.812", "-1.000", ""], with digits = 2 ["0.81", "-1.00", ""]; 12.25 is "12.25", with digits =
    2 "12.2", with digits = 1 "12".
    """
    told = [
        [told_value(*pair) for pair in zip(*row, strict=True)]
        for row in zip(grid.values, grid.marks, strict=True)
    ]
    known = [value for row in told for value in row if value is not None and math.isfinite(value)]
    largest = max(map(abs, known), default=0.0)
    if all(abs(value - round(value)) < 1e-9 for value in known):
        decimals = 0
    else:
        order = math.floor(math.log10(largest))
        decimals = min(8, max(0, digits - order - (order < 0)))

    def text(value: float | None) -> str:
        if value is None:
            return ""
        return (
            f"{round(value, decimals) + 0.0:.{decimals}f}" if math.isfinite(value) else cell(value)
        )

    return [[text(value) for value in row] for row in told]


def told_value(value: float | None, mark: str) -> float | None:
    """The value of a cell that is worth telling: not that of an exit, marked "+1" or so, if it is 0
    or what the mark says.
    """
    announced = exit_mark(mark)
    return None if announced is not None and value in (0.0, announced) else value


def is_wall(value: float | None, mark: str) -> bool:
    """A cell without a value is a wall, unless something is written in it: then it is an exit."""
    return value is None and not mark


def exit_mark(mark: str) -> float | None:
    """The number that a mark such as "+1" or "-1" announces (a cell that ends the episode), None of
    any other mark.
    """
    try:
        return float(mark) if mark[:1] in ("+", "-") else None
    except ValueError:
        return None


def spoken(grid: Grid) -> str:
    """A map in one line, for who cannot see it."""
    rows: Sequence[str] = [
        ", ".join(
            "wall" if is_wall(value, mark) else f"{mark} {text}".strip()
            for value, mark, text in zip(*columns, strict=True)
        )
        for columns in zip(grid.values, grid.marks, figures(grid), strict=True)
    ]
    return "; ".join(rows)
