"""The values and marks of an exhibit's cells as text: numbers, walls, exits, arrows."""

from __future__ import annotations

import math
from typing import Any

from laurel.report.exhibit import Grid

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


def cell_text(value: Any, significant: int = 4) -> str:
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


def value_texts(grid: Grid, digits: int = 3) -> list[list[str]]:
    """The values of a map as text, all with the same decimals; whole numbers have none.

    "" for walls and for exits whose mark says it.

    The largest decides: it has so many digits after its first whole one. [[0.8116, -1.0, None]] is
    ["0.812", "-1.000", ""], with digits = 2 ["0.81", "-1.00", ""]; 12.25 is "12.25", with digits =
    2 "12.2", with digits = 1 "12".
    """
    texts = [
        [shown_value(*pair) for pair in zip(*row, strict=True)]
        for row in zip(grid.values, grid.marks, strict=True)
    ]
    known = [value for row in texts for value in row if value is not None and math.isfinite(value)]
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
            f"{round(value, decimals) + 0.0:.{decimals}f}"
            if math.isfinite(value)
            else cell_text(value)
        )

    return [[text(value) for value in row] for row in texts]


def shown_value(value: float | None, mark: str) -> float | None:
    """The value of a cell that is worth telling: not that of an exit, marked "+1" or so, if it is 0
    or what the mark says.
    """
    announced = exit_reward(mark)
    return None if announced is not None and value in (0.0, announced) else value


def is_wall(value: float | None, mark: str) -> bool:
    """A cell without a value is a wall, unless something is written in it: then it is an exit."""
    return value is None and not mark


def exit_reward(mark: str) -> float | None:
    """The number that a mark such as "+1" or "-1" announces (a cell that ends the episode), None of
    any other mark.
    """
    try:
        return float(mark) if mark[:1] in ("+", "-") else None
    except ValueError:
        return None
