"""Which pictures a report shows, and what is written beside each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from laurel.core.metric_catalogue import MetricMeaning
from laurel.report.collect import Series, Story
from laurel.report.plots import line_chart, time_chart
from laurel.report.verdict import finite, meaning_of, out_of_range, set_of, show, window

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Reward", ("reward",)),
    ("Held-out accuracy", ("eval/accuracy", "eval/*/accuracy")),
    ("Held-out reward", ("eval/reward", "eval/*/reward")),
    ("Preferences ordered right", ("rewards/accuracies", "eval/rewards/accuracies")),
    ("Margin of implied rewards", ("rewards/margins", "eval/rewards/margins")),
    ("Implied rewards", ("rewards/chosen", "rewards/rejected")),
    ("Log-probability of answers", ("logps/chosen", "logps/rejected")),
    ("Judged right", ("accuracy",)),
    ("Gap between scores", ("margin", "eval/margin")),
    ("What the critic says", ("value/mean", "value/target")),
    ("The critic's squared error", ("value/error_square",)),
    ("Q and V of the log", ("implicit/q", "implicit/value", "implicit/reward")),
    ("Advantage of logged tokens", ("implicit/advantage",)),
    ("Errors of Q and V", ("implicit/q_loss", "implicit/value_loss")),
    ("Cross-entropy of Q and of the policy", ("implicit/cql_loss", "implicit/awac_loss")),
    ("Loss per supervised token", ("nll",)),
    ("Held-out loss per token", ("eval/nll", "eval/*/nll")),
    ("Each reward", ("rewards/*/mean",)),
    ("KL from the reference", ("kl",)),
    ("KL of a whole completion", ("kl/sequence",)),
    ("Entropy", ("entropy",)),
    ("Length of completions", ("completions/mean_length", "completions/max_length")),
    ("Completions cut off", ("completions/clipped_ratio",)),
    ("Informative groups", ("informative_fraction",)),
    ("Uninformative groups", ("frac_reward_zero_std",)),
    ("Spread of rewards in a group", ("reward_std",)),
    ("Repeated samples", ("duplicates",)),
    ("Clipped tokens", ("clip_ratio/region", "clip_ratio/low", "clip_ratio/high")),
    ("Ratio to the sampling policy", ("ratio/mean", "ratio/max")),
    ("KL from the sampling policy", ("approx_kl",)),
    ("Sampler against trainer", ("sampler_gap/mean", "sampler_gap/p99", "sampler_gap/max")),
    (
        "Weights since an engine sampled",
        tuple(f"sampling/importance_sampling_ratio/{which}" for which in ("mean", "min", "max")),
    ),
    (
        "Beyond the cap on these weights",
        tuple(f"sampling/importance_sampling_ratio/{which}" for which in ("truncated", "masked")),
    ),
    ("Failed rewards", ("failed_fraction",)),
    ("Gradient norm", ("grad_norm",)),
    ("Learning rate", ("learning_rate",)),
    ("Speed", ("tokens_per_second",)),
    ("Where the time goes", ("seconds/sample", "seconds/score", "seconds/update")),
    ("Padding", ("padding_share",)),
    ("Memory", ("rss_mb",)),
)
REDUNDANT = {
    "frac_reward_zero_std": "informative_fraction"
}  # shown only where the other is missing


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture with its words.

    `now` is the mean of the last values; `alarm` says that it is out of range.

    constant: its values never differed by anything to see (`level`), and it is in range: a word is
    enough.
    """

    title: str
    name: str
    svg: str
    start: str
    now: str
    unit: str
    meaning: MetricMeaning | None
    alarm: bool
    constant: bool = False


def panels(story: Story) -> list[Panel]:
    """Every panel the run has the metrics for.

    Metrics that stayed 0 all along are left out, unless 0 is news.
    """
    made = []
    for title, names in PANELS:
        series = pick(story, names)
        if series and not any(REDUNDANT.get(name) in story.series for name in series):
            made.append(panel(title, series))
    return made


def pick(story: Story, names: Iterable[str]) -> dict[str, Series]:
    """The metrics of these names (`*` stands for anything) that have at least one finite value.

    One reward alone is `reward`.
    """
    chosen: dict[str, Series] = {}
    for name in names:
        start, star, end = name.partition("*")
        found = (
            [
                known
                for known in story.series
                if star and known.startswith(start) and known.endswith(end)
            ]
            if star
            else [name]
        )
        if name == "rewards/*/mean" and len(found) < 2:
            continue
        chosen.update(
            {known: story.series[known] for known in found if finite(story.series.get(known, {}))}
        )
    return chosen


def panel(title: str, series: dict[str, Series]) -> Panel:
    """The picture of these metrics, with the words of the first."""
    name = next(iter(series))
    meaning = meaning_of(name)
    if name.startswith("seconds/") and len(series) > 1:
        parts = {label.removeprefix("seconds/"): values for label, values in series.items()}
        return _time_panel(title, parts)
    positive = all(value > 0 for values in series.values() for value in finite(values))
    svg = line_chart(
        {_label(label): values for label, values in series.items()},
        name="|".join(series),
        meaning=meaning,
        log=name.startswith("sampler_gap/") and positive,
    )
    values = finite(series[name])
    start, now = _start_and_now(name, values)
    alarm = out_of_range(now, meaning)
    constant = not alarm and len(values) > 1 and all(level(finite(one)) for one in series.values())
    return Panel(
        title=title,
        name=name,
        svg=svg,
        start="" if start is None else show(start),
        now=show(now),
        unit=_unit(meaning),
        meaning=meaning,
        alarm=alarm,
        constant=constant,
    )


def _start_and_now(name: str, values: Sequence[float]) -> tuple[float | None, float]:
    """The means of the first and of the last values; no start where there is one value."""
    width = 1 if name.startswith("eval/") else window(len(values))
    start = sum(values[:width]) / width
    now = sum(values[-width:]) / width
    return (start if len(values) > 1 else None), now


def _unit(meaning: MetricMeaning | None) -> str:
    """The unit of a metric, where it has one that is worth writing."""
    return meaning.unit if meaning and meaning.unit not in ("-", "share", "ratio") else ""


def level(values: Sequence[float]) -> bool:
    """Is there nothing to see in a picture of these numbers: all alike to four digits, or nothing
    but rounding?
    """
    size = max(map(abs, values))
    return max(values) - min(values) <= 1e-4 * size or size < 1e-9


def _time_panel(title: str, parts: dict[str, Series]) -> Panel:
    """Seconds per step, stacked, and each part's share of the whole run."""
    totals = {label: sum(finite(series)) for label, series in parts.items()}
    whole = sum(totals.values()) or 1.0
    shares = ", ".join(f"{label} {total / whole:.0%}" for label, total in totals.items())
    meaning = MetricMeaning(
        "seconds of a step, by what they were spent on",
        "seconds",
        "sampling is the largest part",
        "a slow reward function?",
    )
    return Panel(title, "seconds", time_chart(parts), "", shares, "", meaning, False)


def _label(name: str) -> str:
    """rewards/math/mean -> math, clip_ratio/low -> low, eval/nll -> held-out, eval/hard/nll ->
    hard.
    """
    if name.startswith("rewards/"):
        return name.removeprefix("rewards/").rpartition("/")[0]
    if name.startswith("eval/"):
        return set_of(name) or "held-out"
    return name.rpartition("/")[2].removesuffix("_length")
