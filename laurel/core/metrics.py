"""Metrics: sums and counts until they are written, and the table of their meanings.

The meanings stand in `laurel.core.metric_catalogue`.

`python -m laurel.core.metrics docs/report.md` rewrites the table between the markers of that page.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from laurel.core.errors import UsageError, nearest
from laurel.core.metric_catalogue import CATALOGUE, MetricMeaning


class Sums:
    """The accumulated metrics of a step: (sum, count) pairs, totals and peaks.

    A pair is divided once, at the end, so that no mean of means is taken. KL 1.0 over 1 token
    merged with 0 over 9 tokens is .1, not .5.
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}
        self.totals: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def add(self, name: str, sum: float, count: float) -> None:
        """Add a sum over `count` units (tokens, samples, steps): numbers without a graph."""
        total, units = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (total + float(sum), units + float(count))

    def total(self, name: str, value: float) -> None:
        """Add to a number of the whole step that is never divided, as tokens or seconds/sample."""
        self.totals[name] = self.totals.get(name, 0.0) + float(value)

    def peak(self, name: str, value: float) -> None:
        """Keep the largest value, as of ratio/max or completions/max_length; NaN stays."""
        value, best = float(value), self.peaks.get(name, float("-inf"))
        self.peaks[name] = value if value > best or value != value else best

    def merge(self, other: Sums) -> None:
        """Add what another accumulator, of a micro-batch or a rank, has counted."""
        for name, (total, count) in other.sums.items():
            self.add(name, total, count)
        for name, value in other.totals.items():
            self.total(name, value)
        for name, value in other.peaks.items():
            self.peak(name, value)

    def renamed(self, name: Callable[[str], str]) -> Sums:
        """A copy with each name replaced by name(old name)."""
        other = Sums()
        other.sums = {name(key): value for key, value in self.sums.items()}
        other.totals = {name(key): value for key, value in self.totals.items()}
        other.peaks = {name(key): value for key, value in self.peaks.items()}
        return other

    def means(self) -> dict[str, float]:
        """sum / count of every metric, and totals and peaks; none where the count is 0."""
        means = {name: total / count for name, (total, count) in self.sums.items() if count != 0}
        return means | self.totals | self.peaks


def merge_metrics(parts: Sequence[Sums]) -> Sums:
    """The metrics of all ranks as one accumulator.

    Times (`seconds/...`) are averaged, since the ranks run at the same time.
    """
    whole = Sums()
    for part in parts:
        whole.merge(part)
    whole.totals = {
        name: value / len(parts) if name.startswith("seconds/") else value
        for name, value in whole.totals.items()
    }
    return whole


def explain(name: str) -> MetricMeaning:
    """The meaning of a metric; UsageError with the nearest name for an unknown one.

    `rewards/<any>/mean` and others with a wildcard are found by pattern, `eval/<set>/...` as
    `eval/...`.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    for pattern, meaning in CATALOGUE.items():
        if "*" in pattern and fnmatchcase(name, pattern):
            return meaning
    if re.fullmatch(r"eval/[^/]+/.+", name):  # of one of several evaluation sets
        return explain(f"eval/{name.split('/', 2)[2]}")
    raise UsageError(
        f"no metric is called `{name}`.", where="metrics", fix=nearest(name, CATALOGUE)
    )


def metric_table(catalogue: Mapping[str, MetricMeaning] = CATALOGUE) -> str:
    """The catalogue as a Markdown table."""
    head = "| metric | meaning | unit | healthy | look first at |\n|---|---|---|---|---|\n"
    rows = (
        f"| `{name.replace('*', '<name>')}` | {m.what} | {m.unit} | {m.healthy} | {m.check} |"
        for name, m in catalogue.items()
    )
    return head + "\n".join(rows) + "\n"


BEGIN, END = (
    "<!-- metrics: begin, written by `python -m laurel.core.metrics` -->\n",
    "<!-- metrics: end -->\n",
)


def with_metric_table(page: str) -> str:
    """A documentation page with the table between its markers brought up to date."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UsageError(
            "the page lacks the two marker lines of the metric table.",
            fix=f"Add {BEGIN.strip()} and {END.strip()}.",
        )
    return before + BEGIN + metric_table() + END + after


def main(paths: list[str]) -> None:
    """Print the table, or write it into the pages named."""
    if not paths:
        print(metric_table(), end="")
    for path in paths:
        with open(path, encoding="utf-8") as file:
            page = with_metric_table(file.read())
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)


if __name__ == "__main__":
    main(sys.argv[1:])


def resident_bytes(process: Path = Path("/proc")) -> int:
    """Bytes of memory of this process now, or its peak where only that is known."""
    try:
        return int((process / "self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
