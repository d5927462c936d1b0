"""Values with their intervals as dots below each other, on one axis."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from laurel.report.cells import cell_text
from laurel.report.exhibit import Dots
from laurel.report.plots import ALARM, FAINT, LINES, STRONG

ROW, AXIS = 0.24, 0.55  # inches of a row, and of the axis below them
LONGEST = 26


def dots_height(dots: Dots) -> float:
    """Inches that they take."""
    return AXIS + ROW * max(2, len(dots.rows))


def draw_dots(axes: Axes, dots: Dots, inks: Mapping[str, str]) -> None:
    """A dot with its interval for each row, the first at the top; `line` is dashed.

    Values that are shares are seen from 0 to 1.
    """
    labels = list(dots.rows)
    places = list(range(len(labels) - 1, -1, -1))
    colour = inks[LINES[0]]
    for place, (value, low, high) in zip(places, dots.rows.values(), strict=True):
        axes.plot([low, high], [place, place], color=colour, linewidth=1.8)
        axes.plot([value], [place], marker="o", markersize=4.5, color=colour)
    if dots.line is not None:
        dashes = (0, (4, 3))
        axes.axvline(dots.line, color=inks[ALARM], linewidth=0.9, linestyle=dashes)
    axes.set_yticks(places)
    axes.set_yticklabels(
        [shortened(label) for label in labels],
        color=inks[STRONG],
    )
    axes.set_ylim(-0.6, len(labels) - 0.4)
    _across(axes, dots, inks)


def _across(axes: Axes, dots: Dots, inks: Mapping[str, str]) -> None:
    """The axis below: from 0 to 1 for shares, with plain numbers and lines to read along."""
    bounds = [bound for row in dots.rows.values() for bound in row]
    if bounds and min(bounds) >= 0 and max(bounds) <= 1:
        axes.set_xlim(-0.02, 1.02)
    axes.grid(visible=False, axis="y")
    axes.grid(
        visible=True,
        axis="x",
        color=inks[FAINT],
        linewidth=0.6,
    )
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(tick_text))
    axes.set_xlabel(dots.x)


def tick_text(value: float, _: object) -> str:
    """A number at a tick."""
    return cell_text(float(f"{value:.3g}"))


def shortened(label: str) -> str:
    """A label that leaves room for the picture."""
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
