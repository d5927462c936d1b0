"""`write_page`: an experiment as one self-contained HTML page: claims, pictures, tables and the
command that made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import laurel
from laurel.core.files import write_atomic
from laurel.report.cells import cell_text, is_wall, value_texts
from laurel.report.exhibit import Dots, Exhibit, Grid, Table


def write_page(exhibit: Exhibit, path: str | Path, *, command: str, more: str = "") -> None:
    """Write the page. `command` is what makes it again, `more` is said behind it."""
    write_atomic(path, render(exhibit, command, more).encode("utf-8", "replace"))


def render(exhibit: Exhibit, command: str, more: str = "") -> str:
    """The page as text. Light and dark, no script, nothing fetched; all words are escaped."""
    from laurel.report.maps import (
        chart_svg,
        dots_svg,
        grid_svg,
        panel_columns,
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
            (grid.title, grid_as_text(grid), panel_columns(grid) > 1, Markup(grid_svg(grid)))
            for grid in exhibit.grids
        ]
        + [
            (chart.title, f"{chart.y} over {chart.x}", False, Markup(chart_svg(chart)))
            for chart in exhibit.charts
        ]
        + [
            (dots.title, dots_as_text(dots), False, Markup(dots_svg(dots))) for dots in exhibit.dots
        ],
        tables=[(table, numeric_columns(table)) for table in exhibit.tables],
        cell=cell_text,
        command=command,
        more=more,
        version=laurel.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def numeric_columns(table: Table) -> tuple[bool, ...]:
    """Of each column, whether it holds numbers, and so is set flush right."""
    columns = zip(*table.rows, strict=True) if table.rows else ((),) * len(table.columns)
    return tuple(
        any(map(is_number, column)) and not any(isinstance(value, str) for value in column)
        for column in columns
    )


def is_number(value: Any) -> bool:
    """True of integers and floats, numpy's too; not of yes and no."""
    return isinstance(value, Real) and not isinstance(value, bool)


def grid_as_text(grid: Grid) -> str:
    """A map in one line, for who cannot see it."""
    rows: Sequence[str] = [
        ", ".join(
            "wall" if is_wall(value, mark) else f"{mark} {text}".strip()
            for value, mark, text in zip(*columns, strict=True)
        )
        for columns in zip(grid.values, grid.marks, value_texts(grid), strict=True)
    ]
    return "; ".join(rows)


def dots_as_text(dots: Dots) -> str:
    """Values with intervals in one line, for who cannot see them."""
    rows = [
        f"{label} {value:.3g} ({low:.3g} to {high:.3g})"
        for label, (value, low, high) in dots.rows.items()
    ]
    return f"{dots.x}: {'; '.join(rows)}"
