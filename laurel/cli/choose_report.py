"""Curves of choosing as a table, a figure and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from rich.console import Console

from laurel.core.files import write_atomic
from laurel.measure.intervals import Interval
from laurel.report.exhibit import Chart, Exhibit, Table
from laurel.report.exhibit_page import write_page
from laurel.report.exhibit_text import print_exhibit
from laurel.search.curves import Point
from laurel.search.options import ChooseConfig

PAGE, DATA, OPTIONS = "curves.html", "curves.json", "options.yaml"


def curves_exhibit(points: Sequence[Point], source: str, questions: int) -> Exhibit:
    """Every way of choosing: accuracy against tokens, gains, and the KL that it spends."""
    rows = tuple(
        (
            one.way,
            one.k,
            one.accuracy.value,
            bounds(one.accuracy),
            one.gain.value,
            bounds(one.gain),
            round(one.answers, 2),
            round(one.tokens),
            one.kl,
        )
        for one in points
    )
    heads = ("way", "k", "accuracy", "95 %", "gain", "95 %", "answers", "tokens", "KL at most")
    about = (
        f"{questions} questions of {source}. From one pool of answers, without drawing again: the"
        " mean over subsets of k. Intervals are over questions; a gain is against"
        f" {baseline(points)}, paired by question. The KL of best-of-n is the bound log n -"
        " (n - 1) / n, in nats."
    )
    return Exhibit(
        "Choosing: accuracy against tokens",
        about,
        {"points": [asdict(one) for one in points]},
        tables=(Table("every way at every k", heads, rows),),
        charts=tuple(charts(points)),
        notes=tuple(gains(points)),
    )


def baseline(points: Sequence[Point]) -> str:
    """What gains are against."""
    cold = any(one.way == "greedy" for one in points)
    return "the greedy answer" if cold else "one answer"


def charts(points: Sequence[Point]) -> list[Chart]:
    """Accuracy against tokens, and of what moves away from the policy against KL."""
    by_tokens = {way: curve(points, way, "tokens") for way in ways(points)}
    found = [
        Chart("accuracy against tokens a question", "tokens", "accuracy", by_tokens, log_x=True)
    ]
    by_kl = {way: curve(points, way, "kl") for way in ways(points)}
    by_kl = {way: line for way, line in by_kl.items() if line}
    if by_kl:
        found.append(Chart("accuracy against KL", "nats at most", "accuracy", by_kl))
    return found


def ways(points: Sequence[Point]) -> list[str]:
    """The ways, in their order."""
    return list(dict.fromkeys(one.way for one in points))


def curve(
    points: Sequence[Point], way: str, over: str
) -> Sequence[tuple[float, float, float, float]]:
    """A way's points with their intervals."""
    return [
        (float(x), one.accuracy.value, one.accuracy.low, one.accuracy.high)
        for one in points
        if one.way == way and (x := getattr(one, over)) is not None
    ]


def gains(points: Sequence[Point]) -> list[str]:
    """What the last point of each way gains: a finding, not a claim of the page's."""
    found = list[str]()
    for way in ways(points):
        last = [one for one in points if one.way == way][-1]
        if last.k > 1:
            gain = f"{last.gain.value:+.3f} {bounds(last.gain)}"
            words = f"{way} of {last.k} against {baseline(points)}: {gain}"
            found.append(f"{words} with {last.answers:.1f} answers.")
    return found


def bounds(interval: Interval) -> str:
    """[low, high]"""
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def write_curves(shown: Exhibit, points: Sequence[Point], config: ChooseConfig) -> None:
    """curves.html, curves.json and the options that make them again; the table on the terminal."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / DATA, json.dumps([asdict(one) for one in points], indent=1) + "\n")
    options = {**config.model_dump(exclude_defaults=True), "output_dir": config.output_dir}
    write_atomic(folder / OPTIONS, yaml.safe_dump(options, sort_keys=False, allow_unicode=True))
    write_page(shown, folder / PAGE, command=f"laurel choose curves --config {folder / OPTIONS}")
    print_exhibit(shown, Console(highlight=False))
    print(f"the figure: {folder / PAGE}")
