"""Signs that a policy is collapsing: the metrics of past steps -> alarms in words.

The last steps are held against the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, sqrt
from statistics import median, variance

History = Sequence[Mapping[str, float]]
"""One mapping of metric to value per step, oldest first; a step may lack any of them."""


@dataclass(frozen=True, slots=True)
class Change:
    """The median of a metric over the first and over the last steps, and the standard error of
    their difference.
    """

    start: float
    now: float
    error: float

    @property
    def rose(self) -> bool:
        """By more than four standard errors: a metric is looked at after every step, so chance has
        many tries.
        """
        return self.now - self.start > max(4 * self.error, 1e-9)

    @property
    def fell(self) -> bool:
        """The same, downwards."""
        return self.start - self.now > max(4 * self.error, 1e-9)


def alarms(
    history: History,
    *,
    window: int = 10,
    max_completion_length: int = 0,
    max_kl: float = 20.0,
    held_out: str = "",
) -> list[str]:
    """What is wrong with a run by its metrics so far, one sentence each; [] for a healthy one and
    before 2 * window steps.

        entropy      below a tenth of the start's while the reward rises, unless the held-out score
        rises too
        perplexity   of the samples below 1.05, from 1.2 or more (exp(entropy) where it is not
        recorded), unless as above
        length       cut off: half the completions or more, from a fifth or less; or the mean beyond
        .8 of the limit and half as
                     long again as at the start; or below a fifth of the start's
        kl/sequence  above max_kl nats
        duplicates   above one half, and .3 above the start
        held_out     the score that no training sees falls while the reward rises: over-optimisation

    held_out names a metric that training does not optimise: a win rate, a gold reward,
    eval/accuracy of a task that can be checked; not eval/reward where the reward is a model. A task
    with one right answer drives entropy to 0 in good health, and only such a score can tell; so
    where it rises, the first two are silent. "": nothing of the kind. Medians, so that one wild
    step is no alarm. The quantities are those of Zheng et al. 2023, arXiv:2307.04964; the bounds
    are ours.
    """
    if len(history) < 2 * window:
        return []
    changes = {
        name: change(column(history, name), window) for name in (*NAMES, held_out)
    }  # a metric called "" has no values
    changes["perplexity"] = change(
        column(history, "perplexity") or [exp(x) for x in column(history, "entropy")], window
    )
    reward, judge = changes["reward"], changes[held_out]
    cheap = reward is not None and reward.rose and not (judge is not None and judge.rose)
    found = [
        narrowed(changes, cheap),
        drifted(changes, max_completion_length),
        departed(changes, max_kl),
        repeated(changes),
        exploited(changes, held_out),
    ]
    return [line for lines in found for line in lines]


NAMES = (
    "reward",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "kl/sequence",
    "duplicates",
)
Changes = Mapping[str, Change | None]


def column(history: History, name: str) -> list[float]:
    """The finite values of one metric, in the order of the steps that have it."""
    return [float(row[name]) for row in history if name in row and isfinite(row[name])]


def change(values: Sequence[float], window: int) -> Change | None:
    """First against last `window` values (half of them each where there are fewer, as of
    evaluations); None below two values.

    A median of n independent normal values has the standard error 1.2533 sd / sqrt(n). Fewer than
    three values on a side say nothing
    of their spread: the error is then infinite, and nothing rose or fell.
    """
    few = min(window, len(values) // 2)
    if few == 0:
        return None
    first, last = values[:few], values[-few:]
    error = 1.2533 * sqrt((variance(first) + variance(last)) / few) if few >= 3 else inf
    return Change(median(first), median(last), error)


def narrowed(changes: Changes, cheap: bool) -> list[str]:
    """Entropy and perplexity that vanish.

    cheap: the reward rises and no held-out score says that it is earned.
    """
    lines: list[str] = []
    entropy, perplexity = changes["entropy"], changes["perplexity"]
    if cheap and entropy is not None and entropy.now < 0.1 * entropy.start:
        lines.append(
            f"entropy: {entropy.start:.3g} -> {entropy.now:.3g} nats while the reward rises: few"
            " answers are left."
        )
    if cheap and perplexity is not None and perplexity.now < 1.05 and perplexity.start >= 1.2:
        lines.append(
            f"perplexity: {perplexity.start:.3g} -> {perplexity.now:.3g}: the policy is certain of"
            " every token it writes."
        )
    return lines


def drifted(changes: Changes, limit: int) -> list[str]:
    """Completions that run into the limit, or shrink to nothing."""
    length, clipped = changes["completions/mean_length"], changes["completions/clipped_ratio"]
    if clipped is not None and clipped.now >= 0.5 and clipped.start <= 0.2:
        return [
            f"completions/clipped_ratio: {clipped.start:.0%} -> {clipped.now:.0%} are cut off:"
            " length is being rewarded."
        ]
    if (
        length is not None
        and limit > 0
        and length.now > 0.8 * limit
        and length.now > 1.5 * length.start
    ):
        return [
            f"completions/mean_length: {length.start:.0f} -> {length.now:.0f} tokens of {limit}:"
            " drifting to the limit."
        ]
    if length is not None and length.now < 0.2 * length.start:
        return [
            f"completions/mean_length: {length.start:.0f} -> {length.now:.0f} tokens: the answers"
            " are vanishing."
        ]
    return []


def departed(changes: Changes, max_kl: float) -> list[str]:
    """Too far from the reference."""
    kl = changes["kl/sequence"]
    if kl is not None and kl.now > max_kl:
        return [
            f"kl/sequence: {kl.now:.3g} nats, above {max_kl:g}: raise beta, or lower the learning"
            " rate."
        ]
    return []


def repeated(changes: Changes) -> list[str]:
    """The same completion over and over."""
    same = changes["duplicates"]
    if same is not None and same.now > 0.5 and same.now > same.start + 0.3:
        return [
            f"duplicates: {same.start:.0%} -> {same.now:.0%} of the samples repeat another one."
        ]
    return []


def exploited(changes: Changes, held_out: str) -> list[str]:
    """The reward that is optimised goes up, the score that is not goes down."""
    reward, judge = changes["reward"], changes[held_out]
    if reward is None or judge is None or not (reward.rose and judge.fell):
        return []
    return [
        f"{held_out}: {judge.start:.3g} -> {judge.now:.3g} while the reward goes {reward.start:.3g}"
        f" -> {reward.now:.3g}: over-optimised."
    ]
