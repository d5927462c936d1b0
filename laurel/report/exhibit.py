"""What an experiment shows: tables, grids, curves, dots and claims with their evidence.

The command line prints it, a page draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of cells under column heads. Numbers stay numbers; who prints decides their digits."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | bool | None, ...], ...]


@dataclass(frozen=True)
class Grid:
    """A map of cells, top row first: the value of each cell (None: a wall) and what stands in it
    (arrows such as "↑→", or "+1").
    """

    title: str
    values: tuple[tuple[float | None, ...], ...]
    marks: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chart:
    """Curves over a common quantity: label -> points (x, y, low, high).

    low = high = y where there is no interval.
    """

    title: str
    x: str
    y: str
    curves: dict[str, Sequence[tuple[float, float, float, float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Dots:
    """Values with intervals below each other: label -> (value, low, high).

    A picture alone: its figures stand in a table too. line: the value that they are read against.
    """

    title: str
    x: str
    rows: dict[str, tuple[float, float, float]]
    line: float | None = None


@dataclass(frozen=True)
class Claim:
    """A sentence that the experiment can contradict, whether it held, and the figures that
    say so.
    """

    text: str
    holds: bool
    evidence: str


@dataclass(frozen=True)
class Exhibit:
    """One experiment, with everything that is printed, drawn or written about it.

    `data` is what --json prints.
    """

    title: str
    about: str
    data: dict[str, Any]
    grids: tuple[Grid, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = field(default=())
    dots: tuple[Dots, ...] = ()
