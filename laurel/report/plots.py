"""Line charts as inline SVG that take their colours from the page, so that they follow its light or
dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from laurel.core.metric_catalogue import MetricMeaning
from laurel.report.collect import Series
from laurel.report.verdict import finite, show

# Colours that no one would choose stand for the page's variables until the SVG is written.
INK, FAINT, ALARM, STRONG = "#010203", "#010204", "#010205", "#01020a"
LINES = ("#010206", "#010207", "#010208", "#010209")
VARIABLES = {
    INK: "--muted",
    FAINT: "--grid",
    ALARM: "--bad",
    STRONG: "--ink",
    **{code: f"--line{i}" for i, code in enumerate(LINES, 1)},
}
POINTS = 400  # at most, per line: more cannot be seen
SMOOTH_FROM = 30  # points from which the raw line steps back behind a moving average
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
    "ytick.major.size": 0,
}


def line_chart(
    lines: Mapping[str, Series],
    *,
    name: str = "",
    meaning: MetricMeaning | None = None,
    log: bool = False,
) -> str:
    """An SVG of one or several metrics over steps.

    Labels say which is which; a dashed line is the catalogue's limit, if near.
    """
    with rc_context({**STYLE, "svg.hashsalt": name or "|".join(lines)}):
        figure, axes = _canvas()
        for i, (label, series) in enumerate(lines.items()):
            _draw(axes, series, LINES[i % len(LINES)], label)
        if log:
            axes.set_yscale("log")
        else:
            _limits(axes, list(lines.values()), meaning)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(
                FuncFormatter(
                    lambda value, _: show(value) if abs(value) >= 1000 else f"{value:.3g}"
                )
            )
        _finish(axes, legend=len(lines) > 1)
        return as_svg(figure)


def time_chart(parts: Mapping[str, Series]) -> str:
    """An SVG of what a step's time is made of, stacked."""
    steps = sorted(set.intersection(*(set(series) for series in parts.values())))
    with rc_context({**STYLE, "svg.hashsalt": "|".join(parts)}):
        figure, axes = _canvas()
        values = [[series[step] or 0.0 for step in steps] for series in parts.values()]
        axes.stackplot(steps, values, labels=list(parts), colors=LINES[: len(values)], linewidth=0)
        axes.set_ylim(bottom=0)
        _finish(axes, legend=True)
        return as_svg(figure)


def _canvas() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 2.0), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _draw(axes: Axes, series: Series, colour: str, label: str) -> None:
    """Few points: a line with dots. Many: the raw values faintly, their moving average on top.
    Values not finite are gaps.
    """
    points = thin_out(sorted(series.items()))
    steps = [step for step, _ in points]
    values = [float("nan") if value is None else value for _, value in points]
    if len(points) < SMOOTH_FROM:
        axes.plot(
            steps,
            values,
            color=colour,
            linewidth=1.6,
            label=label,
            marker="o",
            markersize=3 if len(points) > 8 else 4,
        )
        return
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(steps, smoothed(values), color=colour, linewidth=1.8, label=label)


def thin_out(points: list[tuple[int, float | None]]) -> list[tuple[int, float | None]]:
    """At most POINTS points: each the mean of a run of neighbours, at the last one's step."""
    size = -(-len(points) // POINTS)
    if size <= 1:
        return points
    thinned = []
    for start in range(0, len(points), size):
        block = points[start : start + size]
        known = [value for _, value in block if value is not None]
        thinned.append((block[-1][0], sum(known) / len(known) if known else None))
    return thinned


def smoothed(values: list[float]) -> list[float]:
    """A centred moving average over about a tenth of the values; NaN is left out of it."""
    half = max(1, len(values) // 20)
    averaged = []
    for i in range(len(values)):
        near = [value for value in values[max(0, i - half) : i + half + 1] if value == value]
        averaged.append(sum(near) / len(near) if near else float("nan"))
    return averaged


def _limits(axes: Axes, lines: Sequence[Series], meaning: MetricMeaning | None) -> None:
    """Shares are seen whole or from 0.

    A limit of the catalogue is drawn where it is within sight.
    """
    low, high = axes.get_ylim()
    known = [value for series in lines for value in finite(series)]
    if min(known) == max(known) > 0:
        low, high = 0.0, 1.4 * max(known)
    elif min(known) >= 0 and low < 0.5 * high:
        low = 0.0
    if meaning is not None and meaning.unit == "share":
        low, high = 0.0, 1.02 if max(known) > 0.5 else max(1.2 * max(known), 0.02)
    for limit in (meaning.low, meaning.high) if meaning is not None and len(lines) == 1 else ():
        if (
            limit is not None
            and limit > 0
            and low - 0.5 * (high - low) <= limit <= high + 0.5 * (high - low)
        ):
            axes.axhline(limit, color=ALARM, linewidth=0.9, linestyle=(0, (4, 3)))
            low, high = (
                min(low, limit - 0.03 * (high - low)),
                max(high, limit + 0.03 * (high - low)),
            )
    axes.set_ylim(low, high)


def _finish(axes: Axes, *, legend: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    low, high = axes.get_xlim()
    if high - low < 1:  # a single step
        axes.set_xlim(round(low) - 1, round(low) + 1)
    axes.set_xlabel("step", loc="right", labelpad=1)
    if legend:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=4,
            handlelength=1.1,
            columnspacing=1.2,
            borderpad=0.1,
        )


def as_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element: no prolog, no fixed size, no ids that repeat, colours and
    font of the page.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>.*?</metadata>\s*|<defs>\s*<style.*?</style>\s*</defs>\s*",
        "",
        svg,
        flags=re.DOTALL,
    )
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' id="[A-Za-z]+[A-Za-z0-9]*(?:\.[a-z]+)?_\d+"', "", svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    for code, variable in VARIABLES.items():
        svg = svg.replace(code, f"var({variable})")
    return svg.strip()
