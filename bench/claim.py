"""What the claims' scripts share: intervals over seeds, a table for the terminal and the page, a figure beside the documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
Curve = tuple[Sequence[float], Sequence[float]]  # x and y


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of the 95 % interval over seeds (Student's t). One value has no interval: infinity."""
    if len(values) < 2:
        return mean(values), float("inf")
    return mean(values), float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def told(values: Sequence[float], digits: int = 2) -> str:
    """`mean +- half` of the interval."""
    value, half = interval(values)
    return f"{value:.{digits}f} +- {half:.{digits}f}"


def clearly(values: Sequence[float]) -> int:
    """1 or -1 where the interval of the values (paired differences, one per seed) lies on one side of 0; else 0."""
    value, half = interval(values)
    return 1 if value - half > 0 else -1 if value + half < 0 else 0


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns padded so that a terminal can be read too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in [header, *rows]]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def figure(name: str, curves: Mapping[str, Curve], *, x: str, y: str, title: str) -> Path:
    """Draw labelled curves to docs/figures/NAME.svg, small and the same bytes every time."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "laurel", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    canvas, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for label, (across, up) in curves.items():
        axes.plot(across, up, marker="." if len(across) < 40 else "", label=label)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=8)
    FIGURES.mkdir(exist_ok=True)
    path = FIGURES / f"{name}.svg"
    canvas.savefig(path, metadata={"Date": None})
    plt.close(canvas)
    return path
