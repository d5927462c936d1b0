"""What a judge's verdicts are worth: slot bias, agreement, exact tests, win rates, pay per hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, sqrt
from statistics import NormalDist

import numpy as np
from scipy.stats import binom, binomtest, norm
from scipy.stats import t as student

from laurel.measure.intervals import Interval, clustered_share, score_interval, wilson

MOST_TURNS = 3e7
"""Products that the exact test of `clustered_slot_bias` may take: some tenths of a second."""


@dataclass(frozen=True, slots=True)
class SlotBias:
    """The share of first-slot wins among decided verdicts with its interval.

    p is exact and two-sided, against one half.
    """

    share: Interval
    p: float


@dataclass(frozen=True, slots=True)
class PositionBias:
    """A judge asked in both orders.

    Counts: pairs with two valid verdicts, and `invalid` pairs left out; ties are valid.

    consistency: the same verdict in both orders. first: first-slot wins among all decided verdicts
    of valid pairs. inconsistent: among pairs whose verdicts name different winners, how often the
    first slot won both times; exact p. None where there are none.
    """

    pairs: int
    invalid: int
    consistency: Interval | None
    first: SlotBias | None
    inconsistent: SlotBias | None


def slot_bias(first: int, second: int, *, level: float = 0.95) -> SlotBias | None:
    """How often the first slot won, against 1/2: exact binomial. None where nothing was decided.
    Ties are left out by the caller.
    """
    if first < 0 or second < 0:
        raise ValueError(f"counts of wins are 0 or more, got {first} and {second}")
    if first + second == 0:
        return None
    return SlotBias(
        wilson(first, first + second, level=level), float(binomtest(first, first + second).pvalue)
    )


def clustered_slot_bias(
    first: Sequence[bool], items: Sequence[Hashable], *, level: float = 0.95
) -> SlotBias | None:
    """The slot bias of verdicts of which several are about one item: did the first slot win?

    Items are independent, their votes need not be.

    p: how often turning round all verdicts of items, each with chance 1/2, gives as large a gap of
    wins; all 2^items turns are counted, exactly. With one verdict an item it is the binomial test.
    None without a verdict.
    """
    if not len(first):
        return None
    share = clustered_share([float(won) for won in first], items, level=level)
    gaps: Counter[Hashable] = Counter()
    for won, item in zip(first, items, strict=True):
        gaps[item] += 1 if won else -1
    return SlotBias(share, _turned(list(gaps.values())))


def _turned(gaps: Sequence[int]) -> float:
    """P(|sum of +-gap| >= |sum of gaps|) with even signs.

    By the normal approximation where counting all would take long.
    """
    sizes = sorted(Counter(abs(gap) for gap in gaps if gap).items())
    lengths = np.cumsum([2 * size * count for size, count in sizes])
    if (
        sum(before * count for before, (_, count) in zip(lengths, sizes[1:], strict=False))
        > MOST_TURNS
    ):
        return float(2 * norm.sf(abs(sum(gaps)) / sqrt(sum(gap * gap for gap in gaps))))
    chance = np.ones(1)  # of each sum, from -reach to reach
    for size, count in sizes:
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chance = np.convolve(chance, steps)
    reach = len(chance) // 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(sum(gaps))
    return float(min(1.0, max(chance[far].sum(), 0.0)))


def position_bias(
    straight: Sequence[str | None],
    swapped: Sequence[str | None],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> PositionBias:
    """Verdicts "a", "tie" or "b" on the responses themselves, None for an invalid one.

    `straight` with a shown first, `swapped` with b first.

    C = #(same verdict in both orders) / #(both valid). An invalid verdict is no tie: its pair is
    left out and counted. clusters: the prompt of each pair, where several pairs have one: the
    intervals are then by prompt. Wang et al. 2023, arXiv:2305.17926; Zheng et al. 2023,
    arXiv:2306.05685.
    """
    pairs = list(zip(straight, swapped, strict=True))
    _check_verdicts(pairs)
    named = range(len(pairs)) if clusters is None else clusters
    kept = [(pair, name) for pair, name in zip(pairs, named, strict=True) if None not in pair]
    valid = [pair for pair, _ in kept]
    count = Counter(valid)
    won = [
        (verdict == winner, name)
        for pair, name in kept
        for verdict, winner in zip(pair, "ab", strict=True)
        if verdict != "tie"
    ]
    same = [float(one == two) for one, two in valid]
    names = None if clusters is None else [name for _, name in kept]
    consistency = _share_of(same, names, level) if valid else None
    return PositionBias(
        len(valid),
        len(pairs) - len(valid),
        consistency,
        clustered_slot_bias([first for first, _ in won], [name for _, name in won], level=level),
        slot_bias(count["a", "b"], count["b", "a"], level=level),
    )


def _check_verdicts(pairs: Sequence[tuple[str | None, str | None]]) -> None:
    strange = {verdict for pair in pairs for verdict in pair} - {"a", "tie", "b", None}
    if strange:
        raise ValueError(f'verdicts are "a", "tie", "b" or None, got {sorted(map(str, strange))}')


def _share_of(hits: Sequence[float], clusters: Sequence[Hashable] | None, level: float) -> Interval:
    """A share of independent hits, or of hits in clusters."""
    if clusters is None:
        return wilson(sum(hits), len(hits), level=level)
    return clustered_share(hits, clusters, level=level)


@dataclass(frozen=True, slots=True)
class JudgeMetrics:
    """AlpacaEval's four numbers of an evaluator, over n items.

    Each is a share, or None with the `reason` where it is undefined.
    """

    agreement: float | None
    bias: float | None
    variance: float | None
    n: int
    reason: str = ""


def leave_one_out(ratings: Sequence[Sequence[Hashable]]) -> float | None:
    """How often a rater agrees with the majority of the others on the item.

    Averaged over items and raters; None without two on any item.

    A majority of several is drawn among them with equal chance, exactly. AlpacaEval's human
    agreement: Dubois et al. 2023, arXiv:2305.14387.
    """
    shares = [
        np.mean([_hit(own, [*item[:k], *item[k + 1 :]]) for k, own in enumerate(item)])
        for item in map(list, ratings)
        if len(item) > 1
    ]
    return float(np.mean(shares)) if shares else None


def judge_metrics(
    judge: Sequence[Sequence[Hashable]], humans: Sequence[Sequence[Hashable]]
) -> JudgeMetrics:
    """Row i: the judge's repeated verdicts and the people's votes on item i.

    agreement: a verdict with the majority of all people but one, over verdicts and who is left out,
    as people are scored themselves by
    `leave_one_out`. bias: the judge's majority against the people's, the share of disagreement.
    variance: 1 - `leave_one_out` of the judge's own verdicts. Majorities of several count their
    share. Dubois et al. 2023, arXiv:2305.14387.
    """
    rows = [
        (list(one), list(two))
        for one, two in zip(judge, humans, strict=True)
        if len(one) and len(two) > 1
    ]
    if not rows:
        return JudgeMetrics(None, None, None, 0, "no item has a verdict and two human votes")
    agreement = [
        np.mean([_hit(v, [*two[:k], *two[k + 1 :]]) for v in one for k in range(len(two))])
        for one, two in rows
    ]
    bias = [1 - np.mean([_hit(mode, two) for mode in _modes(one)]) for one, two in rows]
    same = leave_one_out([one for one, _ in rows])
    reason = "" if same is not None else "one verdict per item: no variance"
    return JudgeMetrics(
        float(np.mean(agreement)),
        float(np.mean(bias)),
        None if same is None else 1 - same,
        len(rows),
        reason,
    )


def preference(
    verdicts: Sequence[str],
    first: Sequence[float],
    second: Sequence[float],
    items: Sequence[Hashable] | None = None,
) -> Interval | None:
    """How often the response with more of something won.

    Lengths give P(prefer longer), 1 and 0 give P(prefer list), slots P(prefer first).

    verdicts "a" or "b" (ties left out), with that something of a and of b. Rows where both have the
    same say nothing. None if all do.
    items: of each verdict; several on one item are not independent. Without it each row is an item.
    """
    named = range(len(verdicts)) if items is None else items
    rows = [
        (v, a, b, item)
        for v, a, b, item in zip(verdicts, first, second, named, strict=True)
        if v in ("a", "b") and a != b
    ]
    hits = [float((v == "a") == (a > b)) for v, a, b, _ in rows]
    if items is None:
        return wilson(sum(hits), len(hits)) if hits else None
    return clustered_share(hits, [item for *_, item in rows]) if hits else None


def sign_test(wins: int, n: int) -> float:
    """Exact two-sided p of `wins` of n decided pairs against one half.

    15 of 20: .04139. Arbuthnot 1710.
    """
    if not 0 <= wins <= n or n < 1:
        raise ValueError(f"{wins} wins of {n} decided pairs")
    return float(binomtest(wins, n).pvalue)


def mcnemar_exact(only_first: int, only_second: int) -> float | None:
    """Two judges on the same items: exact p that their differences are split evenly.

    A difference is an item on which one is right and the other wrong. 10 against 2: .03857.

    None where the two never differ. McNemar 1947.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts are 0 or more, got {only_first} and {only_second}")
    return sign_test(only_first, only_first + only_second) if only_first + only_second else None


def votes_needed(
    share: float, *, against: float = 0.5, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Independent votes to tell a true share from another by a two-sided test.

    ((z_a sqrt(q0) + z_b sqrt(q1)) / (p1 - p0))^2

    q = p (1 - p). 55 % against 50 % at 80 % power: 783. Votes on one prompt are not independent:
    this is a lower bound. Fleiss 1981.
    """
    if not (
        0 < share < 1 and 0 < against < 1 and share != against and 0 < alpha < 1 and 0 < power < 1
    ):
        raise ValueError(
            f"two different shares, a power and an alpha between 0 and 1: {share}, {against},"
            f" {power}, {alpha}"
        )
    z = NormalDist().inv_cdf
    reach = z(1 - alpha / 2) * sqrt(against * (1 - against)) + z(power) * sqrt(share * (1 - share))
    return ceil((reach / (share - against)) ** 2)


@dataclass(frozen=True, slots=True)
class PPI:
    """A mean from few human labels and many judge verdicts, with its interval.

    lambda is the one used; the interval of the human labels alone is there to compare.
    """

    estimate: Interval
    weight: float
    human: Interval


CORNER = 0.5
"""Weight of each of the four pseudo-labels of `ppi`, chosen by the simulation
`laurel_worlds.experiments.prediction_powered`.
"""


def ppi(
    labels: Sequence[float],
    judged: Sequence[float],
    judged_rest: Sequence[float],
    *,
    weight: float | None = None,
    level: float = 0.95,
) -> PPI:
    """Prediction-powered mean: lambda mean(f, rest) + mean(y - lambda f, labelled).

        Var = lambda^2 Var(f, rest) / N + Var(y - lambda f) / n,
        lambda* = Cov(y, f) / ((1 + n / N) Var(f))

    `judged` are the judge's values on the labelled items, `judged_rest` on the others, drawn from
    the same population. Valid however bad the judge is: one who knows nothing gets lambda near 0.
    weight: lambda, clipped to [0, 1] if estimated, 1 is plain PPI. A given lambda has the normal
    interval of the paper. With an estimated one that interval is too short for few labels (a judge
    who errs once in 50: .64 of intervals of level .95 hold the truth), so: labels in [0, 1] get
    Wilson's interval at the number of labels the estimate is worth, n Var(y) / Var; lambda and both
    variances are of the labels and four pseudo-labels of weight 1/2, (0 or 1) x (the judge's least
    or greatest value); others Student's t.
    y 1011, f 1001, rest .6, lambda 1: .85. Angelopoulos et al. 2023, arXiv:2301.09633 and
    2311.01453 (PPI++).
    """
    y, f, rest = (np.asarray(column, dtype=float) for column in (labels, judged, judged_rest))
    _check_columns(y, f, rest)
    if weight is not None and not isfinite(weight):
        raise ValueError(f"lambda is a finite number, got {weight}")
    shares = weight is None and bool(((y >= 0) & (y <= 1)).all())
    pseudo = _with_pseudo_labels(y, f, rest, CORNER if shares else 0.0)
    used = _ppi_weight(pseudo, rest, len(y)) if weight is None else weight
    residual = y - used * f
    value = used * float(rest.mean()) + float(residual.mean())
    of_rest = used**2 * _error_squared(rest)
    if shares:
        estimate, human = _share_intervals(value, used, of_rest, len(y), pseudo, level)
        return PPI(estimate, used, human)
    reach = _reach(len(y), level, normal=weight is not None)
    estimate = _symmetric(value, residual, of_rest, reach, level)
    return PPI(estimate, used, _symmetric(float(y.mean()), y, 0.0, reach, level))


def _reach(n: int, level: float, *, normal: bool) -> float:
    """Standard errors in half an interval: the normal quantile, or Student's t of n - 1."""
    if normal:
        return NormalDist().inv_cdf((1 + level) / 2)
    return float(student.ppf((1 + level) / 2, n - 1))


Weighted = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Labels, the judge's values, and how much each pair of them counts."""


def _with_pseudo_labels(y: np.ndarray, f: np.ndarray, rest: np.ndarray, corner: float) -> Weighted:
    """The labels and four pseudo-labels of this weight each, at the corners of what can be."""
    both = np.concatenate([f, rest])
    least, most = float(both.min()), float(both.max())
    return (
        np.append(y, [0.0, 0.0, 1.0, 1.0]),
        np.append(f, [least, most, least, most]),
        np.append(np.ones(len(y)), np.full(4, corner)),
    )


def _variance(values: np.ndarray, count: np.ndarray) -> float:
    """The variance of values that count so much each, around their mean."""
    mean = float(count @ values) / float(count.sum())
    return float(count @ (values - mean) ** 2) / float(count.sum())


def _share_intervals(
    value: float, weight: float, of_rest: float, n: int, pseudo: Weighted, level: float
) -> tuple[Interval, Interval]:
    """Wilson's intervals of the estimate, and of the labels alone.

    A label of 0 or 1 is worth one; one between (the mean of several votes) as much more as labels
    vary less. The estimate is worth as many more as its variance is smaller, with Student's t. An
    estimate outside of [0, 1], which a weight can make, keeps its value; its bounds are shares.
    """
    y, f, count = pseudo
    total = float(count.sum())
    mean, alone = float(count @ y) / total, _variance(y, count)
    worth = n * mean * (1 - mean) / alone
    gain = alone / total / (of_rest + _variance(y - weight * f, count) / total)
    t = _reach(n, level, normal=False)
    found = score_interval(min(max(value, 0.0), 1.0), worth * gain, t, n, level)
    estimate = Interval(value, min(value, found.low), max(value, found.high), n, level)
    z = _reach(n, level, normal=True)
    return estimate, score_interval(float(y[:n].mean()), worth, z, n, level)


def _error_squared(values: np.ndarray) -> float:
    """The squared standard error of a mean; 0 of a single value, which shows no spread."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def _symmetric(
    value: float, values: np.ndarray, more: float, reach: float, level: float
) -> Interval:
    """value -+ reach standard errors of the mean of values, with `more` variance besides."""
    half = reach * sqrt(more + _error_squared(values))
    return Interval(value, value - half, value + half, len(values), level)


def _check_columns(y: np.ndarray, f: np.ndarray, rest: np.ndarray) -> None:
    finite = all(np.isfinite(column).all() for column in (y, f, rest))
    if y.shape != f.shape or len(y) < 2 or not len(rest) or not finite:
        raise ValueError(
            f"two or more finite labels with the judge's values on the same, and others: {len(y)},"
            f" {len(f)}, {len(rest)}"
        )


def _ppi_weight(pseudo: Weighted, rest: np.ndarray, n: int) -> float:
    """lambda*, clipped to [0, 1]; 0 where the judge always gives the same value."""
    y, f, count = pseudo
    spread = float(np.concatenate([f[:n], rest]).var())
    if spread <= 0:
        return 0.0
    total = float(count.sum())
    mean_y, mean_f = float(count @ y) / total, float(count @ f) / total
    covariance = float(count @ ((y - mean_y) * (f - mean_f))) / (total - 1)
    return min(max(covariance / ((1 + n / len(rest)) * spread), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Hourly:
    """Pay per hour of active time, of `n` tasks: of the median one, and at the slowest tenth."""

    median: float
    slowest: float
    n: int


def hourly(reward: float | Sequence[float], seconds: Sequence[float]) -> Hourly:
    """reward * 3600 / active seconds, of each task: the median, and the 10th percentile.

    The slowest tenth does not reach the latter.

    $300 for 1000 at 36.8 s: $29.35. Refuses times of 0 and below: unknown times are left out by the
    caller, never counted as fast.
    """
    times = np.asarray(seconds, dtype=float)
    pay = (
        np.broadcast_to(np.asarray(reward, dtype=float), times.shape)
        if np.ndim(reward) == 0
        else np.asarray(reward, dtype=float)
    )
    if (
        times.ndim != 1
        or not len(times)
        or pay.shape != times.shape
        or not (np.isfinite(times).all() and np.isfinite(pay).all())
    ):
        raise ValueError(
            f"one reward, or one per time, and at least one time: shapes {pay.shape} and"
            f" {times.shape}"
        )
    if (times <= 0).any() or (pay < 0).any():
        raise ValueError(
            "times are above 0 and rewards not negative; leave tasks of unknown time out"
        )
    rate = pay * 3600 / times
    return Hourly(float(np.median(rate)), float(np.quantile(rate, 0.1)), len(rate))


def _modes(labels: Sequence[Hashable]) -> list[Hashable]:
    counts = Counter(labels)
    most = max(counts.values())
    return [label for label, count in counts.items() if count == most]


def _hit(own: Hashable, others: Sequence[Hashable]) -> float:
    """The chance that `own` is the majority of the others, drawn evenly among several."""
    modes = _modes(others)
    return (own in modes) / len(modes)
