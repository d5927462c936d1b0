"""Maps of values with arrows and walls, and curves with intervals: as SVG for a page, or together
as one picture file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrow, Rectangle
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from laurel.core.errors import UsageError
from laurel.core.files import atomic_file
from laurel.report.cells import ARROWS, cell_text, exit_reward, is_wall, shown_value, value_texts
from laurel.report.dots import dots_height, draw_dots
from laurel.report.exhibit import Chart, Dots, Exhibit, Grid
from laurel.report.plots import INK, LINES, STRONG, STYLE, VARIABLES, as_svg

Panel = tuple[str, float, int, Callable[[Axes], None]]
"""Title, inches high, panels wide, what draws it."""
Inks = Mapping[str, str]
"""Code of plots.py -> colour: itself where a page will choose, the light page's colour in a picture
file.
"""

WIDTH, CURVES_HIGH = 4.4, 2.7  # inches of a panel; a map of many columns is two panels wide
MANY = 8
CELL, MAP_HIGH = 1.0, 5.5  # at most, inches
PAGE: Inks = {code: code for code in VARIABLES}
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
POSITIVE, NEGATIVE = LINES[0], LINES[1]
READABLE = 4.0  # points; a smaller text is left out


def light_inks() -> Inks:
    """The colours of the light page, from its style sheet."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8").split("@media")[0]
    known = dict(re.findall(r"(--\w+): (#\w+)", style))
    return {code: known[variable] for code, variable in VARIABLES.items()}


def grid_svg(grid: Grid) -> str:
    """A map as an `<svg>` that takes its colours from the page."""
    return _panel_svg(
        (grid.title, map_height(grid), panel_columns(grid), partial(draw_map, grid=grid, inks=PAGE))
    )


def chart_svg(chart: Chart) -> str:
    """Curves as an `<svg>` that takes its colours from the page."""
    return _panel_svg(
        (chart.title, chart_height(chart), 1, partial(draw_curves, chart=chart, inks=PAGE))
    )


def dots_svg(dots: Dots) -> str:
    """Values with intervals as an `<svg>` that takes its colours from the page."""
    return _panel_svg((dots.title, dots_height(dots), 1, partial(draw_dots, dots=dots, inks=PAGE)))


def write_figure(exhibit: Exhibit, path: str | Path) -> None:
    """Every map, chart and row of dots of an exhibit in one picture.

    The suffix of the path (.png, .svg, .pdf) chooses the format.
    """
    inks = light_inks()
    panels = _panels(exhibit, inks)
    if not panels:
        raise UsageError(
            "this experiment has nothing to draw.",
            where="--plot",
            fix="Its tables are in --page FILE.",
        )
    columns = _columns(panels)
    rows = _in_rows(panels, columns)
    heights = [max(panel[1] for panel in row) + 0.35 for row in rows]
    with rc_context({**_style(inks), "svg.hashsalt": exhibit.title}):
        figure = Figure(
            figsize=(columns * WIDTH, sum(heights) + 0.4), layout="constrained", facecolor="white"
        )
        if engine := figure.get_layout_engine():
            engine.set(w_pad=0.1, h_pad=0.1)  # type: ignore[call-arg]
        figure.suptitle(
            exhibit.title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=inks[STRONG]
        )
        places = figure.add_gridspec(len(rows), columns, height_ratios=heights)
        for i, row in enumerate(rows):
            column = 0
            for panel in row:
                axes = figure.add_subplot(places[i, column : column + panel[2]])
                column += panel[2]
                _draw_titled(axes, panel, inks)
        with atomic_file(path) as file:
            figure.savefig(file, format=Path(path).suffix[1:].lower(), dpi=160)


def _panels(exhibit: Exhibit, inks: Inks) -> list[Panel]:
    """The maps of an exhibit, then its charts, then its dots."""
    maps: list[Panel] = [
        (grid.title, map_height(grid), panel_columns(grid), partial(draw_map, grid=grid, inks=inks))
        for grid in exhibit.grids
    ]
    charts: list[Panel] = [
        (chart.title, chart_height(chart), 1, partial(draw_curves, chart=chart, inks=inks))
        for chart in exhibit.charts
    ]
    dots: list[Panel] = [
        (one.title, dots_height(one), 1, partial(draw_dots, dots=one, inks=inks))
        for one in exhibit.dots
    ]
    return maps + charts + dots


def _columns(panels: Sequence[Panel]) -> int:
    """How many panels stand beside each other: about as many as below each other, at most three."""
    total = sum(panel[2] for panel in panels)
    widest = max(panel[2] for panel in panels)
    return next(count for count in range(widest, 4) if total <= count * count or count == 3)


def _draw_titled(axes: Axes, panel: Panel, inks: Inks) -> None:
    """One panel under its title, which leaves room for the lines of the legend."""
    title, _, wide, draw = panel
    draw(axes)
    labels = axes.get_legend_handles_labels()[1]
    lines = math.ceil(len(labels) / legend_columns(labels)) if len(labels) > 1 else 0
    axes.set_title(
        fill(title, 58 * wide),
        loc="left",
        fontsize=9,
        color=inks[STRONG],
        pad=6 + 12.5 * lines,
    )


def _in_rows(panels: list[Panel], columns: int) -> list[list[Panel]]:
    """The panels in their order, as many in a row as fit."""
    rows: list[list[Panel]] = [[]]
    for panel in panels:
        if sum(before[2] for before in rows[-1]) + panel[2] > columns:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _panel_svg(panel: Panel) -> str:
    title, height, wide, draw = panel
    with rc_context({**_style(PAGE), "svg.hashsalt": title}):
        figure = Figure(figsize=(wide * WIDTH, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        return as_svg(figure)


def _style(inks: Inks) -> dict[Any, Any]:
    """The report's style in these colours; words are never read as formulas."""
    return {
        **{name: inks.get(value, value) for name, value in STYLE.items()},
        "text.parse_math": False,
    }


def panel_columns(grid: Grid) -> int:
    """How many panels wide a map is."""
    return 2 if len(grid.values[0]) > MANY else 1


def map_height(grid: Grid) -> float:
    """Inches that a map takes, its labels included."""
    return _cell_size(grid) * len(grid.values) + 0.3


def chart_height(chart: Chart) -> float:
    """Inches that a chart takes, its legend included."""
    return CURVES_HIGH + 0.17 * -(-len(chart.curves) // legend_columns(chart.curves))


def _cell_size(grid: Grid) -> float:
    return min(
        CELL, (panel_columns(grid) * WIDTH - 0.3) / len(grid.values[0]), MAP_HIGH / len(grid.values)
    )


def draw_map(axes: Axes, grid: Grid, inks: Inks) -> None:
    """Cells tinted by value, each with its arrows and its number; walls are filled.

    Columns and rows count from the bottom left.
    """
    high, wide = len(grid.values), len(grid.values[0])
    points = 72 * _cell_size(grid)
    texts = value_texts(grid)
    size = _font_size(texts, points)
    colour_of = cell_colours(grid)
    for i, (values, marks) in enumerate(zip(grid.values, grid.marks, strict=True)):
        for j, (value, mark) in enumerate(zip(values, marks, strict=True)):
            x, y = j, high - 1 - i  # the first row of a grid is drawn at the top
            wall = is_wall(value, mark)
            code, strength = (INK, 0.6) if wall else colour_of(value, mark)
            axes.add_patch(
                Rectangle((x, y), 1, 1, facecolor=inks[code], alpha=strength, linewidth=0)
            )
            if not wall:
                text = "" if size < READABLE else texts[i][j]
                _fill(axes, x, y, mark, text, (points, size), inks)
            axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=inks[INK], linewidth=0.7))
    _number_axes(axes, wide, high, max(READABLE, min(8, 0.5 * points)))


def _font_size(texts: list[list[str]], points: float) -> float:
    """The size of the numbers: the longest fills nine tenths of a cell of so many points."""
    longest = max(1, *(len(text) for row in texts for text in row))
    # A digit is about 0.62 of the font size wide.
    return min(10.5, 0.19 * points, 0.9 * points / (0.62 * longest))


def _number_axes(axes: Axes, wide: int, high: int, size: float) -> None:
    """Columns and rows by number, and nothing else of a chart's axes."""
    axes.set(xlim=(-0.02, wide + 0.02), ylim=(-0.02, high + 0.02), aspect="equal")
    axes.set_anchor("NW")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks([j + 0.5 for j in range(wide)], [str(j + 1) for j in range(wide)])
    axes.set_yticks([i + 0.5 for i in range(high)], [str(i + 1) for i in range(high)])
    axes.tick_params(length=0, labelsize=size)


def cell_colours(grid: Grid) -> Callable[[float | None, str], tuple[str, float]]:
    """(colour, strength) of a cell.

    With both signs the scale is centred on 0; with one, it runs from the weakest to the strongest.
    """
    cells = [
        shown_value(*pair)
        for row in zip(grid.values, grid.marks, strict=True)
        for pair in zip(*row, strict=True)
    ]
    known = [value for value in cells if value is not None and math.isfinite(value)]
    weakest = (
        0.0
        if min(known, default=0.0) < 0 < max(known, default=0.0)
        else min(map(abs, known), default=0.0)
    )
    strongest = max(map(abs, known), default=0.0)

    def tint(value: float | None, mark: str) -> tuple[str, float]:
        announced = exit_reward(mark)
        if announced:
            return (POSITIVE if announced > 0 else NEGATIVE), 0.6
        if value is None or announced is not None:
            return INK, 0.15
        share = (
            (abs(value) - weakest) / (strongest - weakest)
            if strongest > weakest and math.isfinite(value)
            else 0.3
        )
        return (POSITIVE if value >= 0 else NEGATIVE), 0.04 + 0.42 * share

    return tint


def _fill(
    axes: Axes, x: float, y: float, mark: str, text: str, sizes: tuple[float, float], inks: Inks
) -> None:
    """What stands in a cell: arrows above the number, or a written mark above it."""
    points, size = sizes
    middle = 0.62 if text else 0.5
    if mark and set(mark) <= set(ARROWS):
        for arrow in mark:
            dx, dy = ARROWS[arrow]
            start, length = (-0.16, 0.32) if len(mark) == 1 else (0.05, 0.23)
            axes.add_patch(
                FancyArrow(
                    x + 0.5 + start * dx,
                    y + middle + start * dy,
                    length * dx,
                    length * dy,
                    length_includes_head=True,
                    width=0.035,
                    head_width=0.15,
                    head_length=0.13,
                    color=inks[STRONG],
                    linewidth=0,
                )
            )
    elif mark:
        fits = min(15, 0.3 * points, 0.9 * points / (0.62 * len(mark)))
        axes.text(
            x + 0.5, y + middle, mark, ha="center", va="center", fontsize=fits, color=inks[STRONG]
        )
    if text:
        low = 0.15 if mark else 0.5
        axes.text(
            x + 0.5, y + low, text, ha="center", va="center", fontsize=size, color=inks[STRONG]
        )


def draw_curves(axes: Axes, chart: Chart, inks: Inks) -> None:
    """Each curve with its band; values that are not finite, or not positive on a logarithmic axis,
    are gaps.
    """
    for i, (label, points) in enumerate(chart.curves.items()):
        ordered = sorted(points)
        xs = [x for x, *_ in ordered]
        y, low, high = ([_drawable(point[k], chart.log_y) for point in ordered] for k in (1, 2, 3))
        colour = inks[LINES[i % len(LINES)]]
        few = len(xs) <= 24
        line = {
            "linestyle": DASHES[i // len(LINES) % len(DASHES)],
            "marker": "o" if few else "",
            "markersize": 3.2,
        }
        axes.plot(xs, y, color=colour, linewidth=1.6, label=label, **line)
        if low != high:
            axes.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
    _scales(axes, chart)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    if len(chart.curves) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=legend_columns(chart.curves),
            handlelength=1.6,
            columnspacing=1.2,
            borderpad=0.1,
        )


def _drawable(value: float, log: bool) -> float:
    return value if math.isfinite(value) and (value > 0 or not log) else math.nan


def legend_columns(labels: Collection[str]) -> int:
    """As many labels in a row as fit above the chart."""
    longest = max(map(len, labels), default=1)
    return max(1, min(len(labels), int((WIDTH - 0.6) / (0.062 * longest + 0.4))))


def _scales(axes: Axes, chart: Chart) -> None:
    """Ticks with plain numbers; on a logarithmic axis of few points, the points themselves."""
    curves = chart.curves.values()
    xs = sorted({x for points in curves for x, *_ in points})
    ys = [y for points in curves for _, y, *_ in points if _drawable(y, chart.log_y) == y]
    if chart.log_x and xs and min(xs) > 0:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis, xs, at_values=len(xs) <= 8)
    else:
        whole = all(x == int(x) for x in xs)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
    if chart.log_y and ys and min(ys) > 0:
        axes.set_yscale("log")
        _log_ticks(axes.yaxis, ys, at_values=False)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: cell_text(float(f"{value:.3g}"))))
    if ys and min(ys) < 0 < max(ys):
        axes.axhline(0, color=axes.xaxis.label.get_color(), linewidth=0.5, zorder=1)


def _log_ticks(axis: Axis, values: Sequence[float], *, at_values: bool) -> None:
    """Major ticks of a logarithmic axis: at the values, or denser the fewer decades there are."""
    decades = math.log10(max(values) / min(values))
    steps = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    axis.set_major_locator(
        FixedLocator(values) if at_values else LogLocator(subs=steps, numticks=12)
    )
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
