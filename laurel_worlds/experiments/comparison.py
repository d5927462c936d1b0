"""What the experiments share: seeds, intervals, comparisons that hold together, tables, figures.

Every script takes `--first-seed N --seeds K`: the seeds N to N + K - 1. What was designed or tuned
on some seeds is reported on others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TypeVar

from scipy.stats import t

CHECKOUT = Path(__file__).resolve().parents[2]
FIGURES = (CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path()) / "docs" / "figures"
"""Where figures are drawn: in the checkout, or below the current folder if laurel is installed."""
Curve = tuple[Sequence[float], Sequence[float]]  # x and y
Found = TypeVar("Found")


def make_parser(about: str | None, seeds: int = 8) -> argparse.ArgumentParser:
    """The options of every script; `seeds_of` reads them."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=shape, allow_abbrev=False)
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="N", help="the first seed (default 0)"
    )
    parser.add_argument(
        "--seeds", type=int, default=seeds, metavar="K", help=f"how many (default {seeds})"
    )
    return parser


def seeds_of(args: argparse.Namespace) -> range:
    """The seeds that were asked for; a warning where they are too few for an interval."""
    if args.seeds < 1 or args.first_seed < 0:
        raise SystemExit("--seeds is 1 or more, --first-seed 0 or more.")
    if args.seeds < 8:
        print(f"{args.seeds} of at least 8 seeds: a trial, not a result.", file=sys.stderr)
    return range(args.first_seed, args.first_seed + args.seeds)


def run_seeds(seeds: Sequence[int], of_seed: Callable[[int, Path], Found]) -> list[Found]:
    """`of_seed(seed, folder)` for each, in an empty folder of its own.

    How far it is goes to stderr.
    """
    found = []
    for seed in seeds:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found.append(of_seed(seed, Path(folder)))
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def interval(values: Sequence[float], of: int = 1) -> tuple[float, float]:
    """Mean and half the width of the interval over seeds (Student's t). One value has no interval:
    infinity.

    of: how many comparisons are made. Each interval is then at 1 - .05 / of, so that with 95 % all
    of them hold at once (Bonferroni).
    """
    if len(values) < 2:
        return mean(values), float("inf")
    return (
        mean(values),
        float(t.ppf(1 - 0.025 / of, len(values) - 1)) * stdev(values) / len(values) ** 0.5,
    )


def interval_text(values: Sequence[float], digits: int = 2, of: int = 1) -> str:
    """`mean +- half` of the interval."""
    value, half = interval(values, of)
    return f"{value:.{digits}f} +- {half:.{digits}f}"


def sign_if_clear(values: Sequence[float], of: int = 1) -> int:
    """1 or -1 where the interval of the values lies on one side of 0; else 0.

    The values are paired differences, one per seed.
    """
    value, half = interval(values, of)
    return 1 if value - half > 0 else -1 if value + half < 0 else 0


def comparison_words(
    gaps: Mapping[str, Sequence[float]], words: Mapping[int, str], digits: int = 2
) -> dict[str, str]:
    """All comparisons of an experiment by name: `word (mean +- half)`.

    The intervals are corrected for their number.
    """
    of = len(gaps)
    return {
        name: f"{words[sign_if_clear(gap, of)]} ({interval_text(gap, digits, of)})"
        for name, gap in gaps.items()
    }


def correction_note(count: int) -> str:
    """What is printed above verdicts."""
    return (
        f"Verdicts: paired by seed; the intervals of all {count} comparisons hold together at 95 %"
        " (Bonferroni).\n"
    )


def print_verdicts(gaps: Mapping[str, Sequence[float]], unclear: str = "not told apart") -> None:
    """The verdict of each comparison, a line each, under what they have in common."""
    print(correction_note(len(gaps)))
    for what, verdict in comparison_words(gaps, {1: "better", -1: "worse", 0: unclear}, 3).items():
        print(f"{what}: {verdict}.")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns padded so that a terminal can be read too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, *rows]
    ]
    return "\n".join(
        [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
    )


def draw_figure(name: str, curves: Mapping[str, Curve], *, x: str, y: str, title: str) -> Path:
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
    FIGURES.mkdir(parents=True, exist_ok=True)
    path = FIGURES / f"{name}.svg"
    canvas.savefig(path, metadata={"Date": None})
    plt.close(canvas)
    return path
