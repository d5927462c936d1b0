"""What a run amounts to, in plain words: did it get better, by how much, and what looks wrong."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from laurel.core.errors import UsageError
from laurel.core.metric_catalogue import MetricMeaning
from laurel.core.metrics import explain
from laurel.measure.curves import commonest_text, fall_from_peak
from laurel.measure.intervals import Interval, share_difference, unpaired_difference
from laurel.report.collect import Series, Story, asked

HEADLINES: tuple[tuple[str, str, Literal["up", "down"]], ...] = (
    ("eval/accuracy", "Held-out accuracy", "up"),
    ("eval/reward", "Held-out reward", "up"),
    ("reward", "Reward", "up"),
    ("eval/nll", "Held-out loss per token", "down"),
    ("nll", "Loss per supervised token", "down"),
    ("eval/rewards/accuracies", "Share of held-out pairs ranked rightly", "up"),
    ("rewards/accuracies", "Share of pairs ranked rightly", "up"),
)
ENOUGH = 3  # values on each side that an interval of the change needs at least
COLLAPSED = 0.1  # of the entropy at the start
REPEATED, SHORT = (
    0.5,
    16,
)  # share of repeated samples that is too much, in completions of at least so many tokens
ALIKE = 0.1  # share of answers to different prompts that one text may be


@dataclass(frozen=True, slots=True)
class Change:
    """How a metric went: start, end, their difference, and which way is better.

    The difference has an interval where there are values enough.
    """

    name: str
    title: str
    better: Literal["up", "down"]
    before: float
    after: float
    window: int
    difference: Interval | None

    @property
    def kind(self) -> Literal["good", "bad", "flat", "unsure"]:
        """good or bad where the interval leaves no doubt, flat where it holds 0, unsure where there
        is none.
        """
        if self.difference is None:
            return "unsure"
        if self.difference.low <= 0 <= self.difference.high:
            return "flat"
        return "good" if (self.difference.low > 0) == (self.better == "up") else "bad"

    @property
    def sentence(self) -> str:
        """One sentence a newcomer understands."""
        before, after = (
            f"{100 * value:.1f} %" if self.percent else show(value)
            for value in (self.before, self.after)
        )
        if self.after == self.before:
            return f"{self.title} stayed at {after}."
        if self.kind == "flat":
            return f"{self.title} did not clearly change: {before} at first, {after} at last."
        return (
            f"{self.title} {'rose' if self.after > self.before else 'fell'} from {before} to"
            f" {after}."
        )

    @property
    def percent(self) -> bool:
        """An accuracy is a share of prompts: people read it in per cent."""
        return self.name == "eval/accuracy" or (
            bool(set_of(self.name)) and self.name.endswith("/accuracy")
        )

    @property
    def evidence(self) -> str:
        """What the sentence rests on."""
        if self.difference is None:
            few = (
                "The first and the last evaluation; without the number of prompts there is no"
                " interval."
            )
            return (
                few if self.name.startswith("eval/") else "Too few logged values for an interval."
            )
        gap = self.difference
        if self.percent:
            points = (
                f"{100 * gap.value:+.1f} points, 95 % interval {100 * gap.low:+.1f} to"
                f" {100 * gap.high:+.1f}"
            )
            return f"{points}, from {gap.n} prompts at the first and at the last evaluation."
        return (
            f"{gap.value:+.3g}, 95 % interval {gap.low:+.3g} to {gap.high:+.3g}, from the first and"
            f" the last {self.window} logged values."
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a reader should know: how bad, what, and what to look at first."""

    level: Literal["bad", "warn", "note"]
    title: str
    text: str
    check: str = ""


def show(value: float | None) -> str:
    """A number as a person writes it: three significant digits, without an exponent if possible."""
    if value is None:
        return "not finite"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}".replace(",", " ")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def finite(series: Series) -> list[float]:
    """The finite values of a series, in the order of steps."""
    return [value for _, value in sorted(series.items()) if value is not None]


def window(count: int) -> int:
    """How many values make up "at first" and "at last": a tenth of the run, from 1 to 25."""
    return max(1, min(25, max(ENOUGH, count // 10), count // 2))


def change(story: Story, name: str, title: str, better: Literal["up", "down"]) -> Change | None:
    """First against last of one metric; None where there are not two values."""
    values = finite(story.series.get(name, {}))
    if len(values) < 2:
        return None
    few = name.startswith("eval/")
    width = 1 if few else window(len(values))
    before, after = values[:width], values[-width:]
    difference = unpaired_difference(before, after) if width >= ENOUGH else None
    if name.startswith("eval/") and name.endswith("/accuracy"):
        counts = finite(story.series.get(f"{name.removesuffix('accuracy')}samples", {}))
        n = int(counts[-1]) if counts else 0
        difference = share_difference(values[0] * n, n, values[-1] * n, n) if n else None
    return Change(name, title, better, _mean(before), _mean(after), width, difference)


def set_of(name: str) -> str:
    """The evaluation set of eval/NAME/accuracy, reward or nll; "" of any other metric.

    It is named where a run has several.
    """
    found = re.fullmatch(r"eval/([^/]+)/(accuracy|reward|nll)", name)
    return found[1] if found else ""


def of_sets(
    story: Story, name: str, title: str, better: Literal["up", "down"]
) -> list[tuple[str, str, Literal["up", "down"]]]:
    """The headline of a held-out metric for each of several evaluation sets."""
    there = [
        known
        for known in story.series
        if set_of(known) and name == f"eval/{known.rpartition('/')[2]}"
    ]
    return [(known, f"{title} of {set_of(known)}", better) for known in there]


def changes(story: Story) -> list[Change]:
    """The headline metrics this run has, most telling first.

    Of preferences not nll: it holds the rejected answers, too.
    """
    compares = "logps/chosen" in story.series
    rows = [one for row in HEADLINES for one in (row, *of_sets(story, *row))]
    found = (change(story, *row) for row in rows if not (compares and row[0].endswith("nll")))
    return [item for item in found if item is not None]


def findings(story: Story) -> list[Finding]:
    """Everything that looks wrong, worst first."""
    found = [
        *_not_finite(story),
        *_out_of_range(story),
        *_zero_signal(story),
        *_entropy(story),
        *_duplicates(story),
        *_one_answer(story),
        *_over_optimised(story),
        *_length(story),
        *_displacement(story),
        *_state(story),
    ]
    found += _was_outside(story, {finding.title.split()[0] for finding in found})
    return sorted(found, key=lambda finding: ("bad", "warn", "note").index(finding.level))


def meaning_of(name: str) -> MetricMeaning | None:
    """The catalogue's entry; None for a metric of the user's own."""
    try:
        return explain(name)
    except UsageError:
        return None


def out_of_range(value: float, meaning: MetricMeaning | None) -> bool:
    """Is the value beyond what the catalogue calls healthy?"""
    if meaning is None:
        return False
    return (meaning.low is not None and value < meaning.low) or (
        meaning.high is not None and value > meaning.high
    )


def _not_finite(story: Story) -> list[Finding]:
    found = []
    for name, series in story.series.items():
        broken = sorted(step for step, value in series.items() if value is None)
        if broken:
            text = f"{name} was NaN or infinite at {_steps(broken)}."
            found.append(
                Finding(
                    "bad",
                    f"{name} is not finite.",
                    text,
                    "learning_rate, max_grad_norm, dtype; the samples of that step",
                )
            )
    return found


def _out_of_range(story: Story) -> list[Finding]:
    """Metrics whose last values lie outside the catalogue's range.

    Failures count wherever they happened.
    """
    found = []
    for name, series in story.series.items():
        meaning, values = meaning_of(name), finite(series)
        if meaning is None or not values or name in ("informative_fraction", "zero_signal"):
            continue
        ever = meaning.high == 0
        value = max(values) if ever else _mean(values[-window(len(values)) :])
        if out_of_range(value, meaning):
            when = (
                f"reached {show(value)} at {_steps([s for s, v in series.items() if v == value])}"
                if ever
                else f"is {show(value)} at last"
            )
            level = "bad" if name == "failed_fraction" and value > 0.05 else "warn"
            found.append(
                Finding(
                    level,
                    f"{name} {when}.",
                    f"{_sentence(meaning.what)} Healthy: {meaning.healthy}.",
                    meaning.check,
                )
            )
    return found


def _zero_signal(story: Story) -> list[Finding]:
    """Steps from which nothing could be learned."""
    dead = {
        step for step, value in story.series.get("informative_fraction", {}).items() if value == 0
    }
    dead |= {step for step, value in story.series.get("zero_signal", {}).items() if value}
    if not dead:
        return []
    share = len(dead) / max(
        1, len(story.series.get("informative_fraction") or story.series["zero_signal"])
    )
    text = (
        f"{share:.0%} of the steps had no group with differing rewards, so nothing was learned from"
        f" them: {_steps(sorted(dead))}."
    )
    check = (
        "prompts too easy or too hard for this model; more samples per prompt (num_generations);"
        " dynamic_sampling=true"
    )
    return [Finding("warn" if share > 0.2 else "note", "Steps without a signal.", text, check)]


def _entropy(story: Story) -> list[Finding]:
    values = finite(story.series.get("entropy", {}))
    if len(values) < 2 * ENOUGH:
        return []
    width = window(len(values))
    start, end = _mean(values[:width]), _mean(values[-width:])
    if start <= 0 or end > COLLAPSED * start:
        return []
    text = (
        f"It fell from {show(start)} to {show(end)} nats per token: the model now gives nearly the"
        " same answer every time."
    )
    if any(change.kind == "good" for change in changes(story)):
        return [
            Finding(
                "note",
                "Entropy has collapsed.",
                f"{text} That is expected where the task is solved.",
                explain("entropy").check,
            )
        ]
    return [Finding("warn", "Entropy has collapsed.", text, explain("entropy").check)]


def _duplicates(story: Story) -> list[Finding]:
    """Equal samples are no surprise where answers are a few tokens long.

    In longer ones they are.
    """
    values, lengths = (
        finite(story.series.get("duplicates", {})),
        finite(story.series.get("completions/mean_length", {})),
    )
    if not values:
        return []
    width = window(len(values))
    share, length = _mean(values[-width:]), _mean(lengths[-width:]) if lengths else None
    if share <= REPEATED or (length is not None and length < SHORT):
        return []
    text = f"{share:.0%} of the last samples repeat another of their group word for word."
    return [Finding("warn", "Samples repeat each other.", text, explain("duplicates").check)]


def _one_answer(story: Story) -> list[Finding]:
    """One text given to prompts that differ.

    A group may be varied, and the policy give the same text to everybody.
    """
    now, share, prompts = commonest(story.ending)
    if share <= ALIKE or prompts < ENOUGH:
        return []
    text = (
        f"{share:.0%} of the last answers, to {prompts} different prompts, are one text:"
        f" {now[:80]!r}."
    )
    then = next(
        (part for commonest_text, part, _ in [commonest(story.first)] if commonest_text == now), 0.0
    )
    if then >= share:
        text += " It was so at first, too."
    return [
        Finding(
            "warn",
            "Different prompts get the same answer.",
            text,
            "the reward: is one answer good enough for every prompt? beta",
        )
    ]


def commonest(lines: Sequence[Mapping[str, Any]]) -> tuple[str, float, int]:
    """The most frequent of answers of SHORT tokens or more.

    With its share of all, and how many prompts got it.
    """
    texts = [
        (str(line["completion"]), asked(line))
        for line in lines
        if line.get("completion") and (line.get("length") or 0) >= SHORT
    ]
    if not texts:
        return "", 0.0, 0
    text, times = commonest_text(completion for completion, _ in texts)
    prompts = {prompt for completion, prompt in texts if completion == text}
    return text, times / len(lines), len(prompts)


def _over_optimised(story: Story) -> list[Finding]:
    """A reward of weight 0 is a judge that training never saw.

    Its end is compared with its own peak, its whole way in blocks.
    """
    found = []
    for name in unseen_judges(story):
        blocks = [block for block in in_blocks(finite(story.series[name])) if len(block) > 1]
        fell = fall_from_peak(
            blocks, _mean, lambda end, peak: unpaired_difference(peak, end).high < 0
        )
        if fell is not None:
            peak, end = map(show, map(_mean, fell))
            text = (
                f"{name}, which weighs nothing in training, fell from {peak} at its peak to {end}"
                " at the end."
            )
            found.append(
                Finding(
                    "warn",
                    "Over-optimised.",
                    text,
                    "an earlier checkpoint (save_steps), fewer steps, a larger beta",
                )
            )
    return found


def unseen_judges(story: Story) -> list[str]:
    """The metrics of rewards that have weight 0."""
    rewards, weights = story.options.get("rewards") or [], story.options.get("reward_weights") or []
    names = [str(name) for name, weight in zip(rewards, weights, strict=False) if weight == 0]
    ends = {name.rpartition(":")[2] for name in names} | {name.rpartition(".")[2] for name in names}
    return [
        metric
        for metric in story.series
        if metric.startswith("rewards/")
        and metric.endswith("/mean")
        and metric.split("/")[1] in ends
    ]


def in_blocks(values: Sequence[float], count: int = 12) -> list[Sequence[float]]:
    """So many stretches of equal length, the last of them whole."""
    size = max(1, len(values) // count)
    return [values[end - size : end] for end in range(len(values), size - 1, -size)][::-1]


def _was_outside(story: Story, reported: Collection[str]) -> list[Finding]:
    """Metrics that are in their range at last and were not all along.

    Those that are in `told` already are left out.
    """
    found = []
    for name, series in sorted(story.series.items()):
        meaning = meaning_of(name)
        left = sorted(
            step
            for step, value in series.items()
            if value is not None and out_of_range(value, meaning)
        )
        if left and name not in reported and name not in ("informative_fraction", "zero_signal"):
            found.append(f"{name} ({_steps(left)})")
    if not found:
        return []
    text = f"In range at last, and not all along: {'; '.join(found)}."
    return [Finding("note", "Out of range for a while.", text)]


def _length(story: Story) -> list[Finding]:
    values = finite(story.series.get("completions/mean_length", {}))
    if len(values) < 2 * ENOUGH:
        return []
    width = window(len(values))
    start, end = _mean(values[:width]), _mean(values[-width:])
    if start <= 0 or 1 / 3 < end / start < 3:
        return []
    text = f"Mean length went from {show(start)} to {show(end)} tokens."
    return [
        Finding(
            "warn",
            "Completions changed their length.",
            text,
            "does the reward, on purpose or not, pay for length? read the samples",
        )
    ]


def _displacement(story: Story) -> list[Finding]:
    """Chosen answers become less likely though the margin is as good as ever, or better.

    Only the margin is maximised.
    """
    chosen, right = (
        change(story, "logps/chosen", "", "up"),
        change(story, "rewards/accuracies", "", "up"),
    )
    if (
        chosen is None
        or right is None
        or chosen.kind != "bad"
        or right.kind not in ("flat", "good")
    ):
        return []
    text = (
        f"The log-probability of chosen answers fell from {show(chosen.before)} to"
        f" {show(chosen.after)}, while the share of pairs ranked rightly went from"
        f" {show(right.before)} to {show(right.after)}: only the margin is maximised. Some other"
        " answers gain."
    )
    level: Literal["warn", "note"] = "warn" if right.kind == "flat" else "note"
    return [
        Finding(level, "Chosen answers become less likely.", text, explain("logps/chosen").check)
    ]


def _state(story: Story) -> list[Finding]:
    """Unfinished runs and resumed ones."""
    found = []
    if story.planned and 0 < story.steps < story.planned:
        text = (
            f"{story.steps} of {story.planned} steps are logged: the run goes on, or was stopped"
            " and continues with --resume true."
        )
        found.append(Finding("note", "Unfinished.", text))
    if story.facts.get("resumed"):
        found.append(
            Finding(
                "note",
                "Resumed.",
                f"The run was continued {len(story.facts['resumed'])} time(s) from a checkpoint.",
            )
        )
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _steps(steps: Sequence[int]) -> str:
    """step 3 · steps 3, 4, 9 · steps 3, 4, 9, ...

    (41 in all)
    """
    listed = ", ".join(str(step) for step in steps[:5])
    return f"step{'s' * (len(steps) > 1)} {listed}" + (
        f", ... ({len(steps)} in all)" if len(steps) > 5 else ""
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
