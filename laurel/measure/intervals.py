"""How sure a number is: Wilson for shares, the bootstrap for means, an exact sign test for paired
wins.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import NormalDist

import numpy as np
from scipy.stats import t as student


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, the bounds of its interval at `level`, and how many independent units (prompts,
    steps) it rests on.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, n={self.n})"


def wilson(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """The Wilson score interval of a share of independent yes/no trials.

        (p + z^2/2n  -+  z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),   p = successes/n,  z = normal
        quantile of (1+level)/2

    8 of 10 gives (.4902, .9433). Unlike p -+ z sd it stays inside [0, 1] and is not empty at 0 of n
    or n of n. Trials that share a prompt are not independent: use `clustered_share` for them.
    Wilson 1927.
    """
    _check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    return score_interval(successes / n, n, NormalDist().inv_cdf((1 + level) / 2), n, level)


def score_interval(share: float, worth: float, z: float, n: int, level: float) -> Interval:
    """Wilson's interval of a share that is worth so many independent trials; n is what is told."""
    spread = z * z / worth
    middle = share + spread / 2
    half = z * sqrt(share * (1 - share) / worth + spread / (4 * worth))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return Interval(
        share, min(share, max(0.0, low)), max(share, min(1.0, high)), n, level
    )  # rounding may not leave [0, share, 1]


def clustered_share(
    hits: Sequence[float], clusters: Sequence[Hashable], *, level: float = 0.95
) -> Interval:
    """The share of yes/no trials that come in clusters (votes on one item): Wilson's interval of
    the trials they are worth.

        worth = p (1 - p) / var,   var = G / (G - 1) * sum_g (hits_g - p n_g)^2 / n^2,   and
        Student's t of G - 1 for z

    With one trial a cluster it is nearly `wilson`. All hits or none: worth as many as there are
    clusters. One cluster: anything from 0
    to 1. n: the trials. As simulated in tests, .93 to .97 of intervals hold the share from 10
    clusters on, however alike a cluster's trials are. Dean and Pagano 2015, J. Survey Statistics
    and Methodology 3:484.
    """
    _check_level(level)
    sums, counts = _per_cluster(hits, clusters)
    n, size = float(counts.sum()), len(sums)
    share = float(sums.sum()) / n
    if size < 2:
        return Interval(share, 0.0, 1.0, int(n), level)
    variance = size / (size - 1) * float(((sums - share * counts) ** 2).sum()) / n**2
    worth = (
        share * (1 - share) / variance
        if variance > 1e-12 * share * (1 - share) and 0 < share < 1
        else float(size)
    )
    return score_interval(
        share, worth, float(student.ppf((1 + level) / 2, size - 1)), int(n), level
    )


def bootstrap_mean(
    values: Sequence[float], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean of independent values with its percentile bootstrap interval. Efron 1979."""
    return cluster_bootstrap_mean(values, range(len(values)), level=level, draws=draws, seed=seed)


def cluster_bootstrap_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of values that come in clusters (samples of one prompt), resampling whole clusters.

    Each replicate draws as many clusters as there are, with replacement, and takes sum / count of
    what it drew: big clusters weigh as in the plain mean. Same seed, same interval; the order of
    the rows within a cluster does not matter.
    """
    _check_level(level)
    sums, counts = _per_cluster(values, clusters)
    means = _replicates(sums, counts, draws, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), len(sums), level)


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """mean(after - before) where row i of both is the same prompt: what is hard for both cancels
    out.
    """
    difference = [b - a for a, b in zip(before, after, strict=True)]
    return cluster_bootstrap_mean(
        difference,
        range(len(difference)) if clusters is None else clusters,
        level=level,
        draws=draws,
        seed=seed,
    )


def unpaired_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """mean(after) - mean(before) of two independent sets of values, each resampled by itself.

    `n` is the smaller set's size.
    """
    _check_level(level)
    rng = np.random.default_rng(seed)
    first, second = (_per_cluster(values, range(len(values))) for values in (before, after))
    gap = _replicates(*second, draws, rng) - _replicates(*first, draws, rng)
    low, high = np.quantile(gap, [(1 - level) / 2, (1 + level) / 2])
    value = second[0].mean() - first[0].mean()
    return Interval(
        float(value), float(low), float(high), min(len(first[0]), len(second[0])), level
    )


def share_difference(
    before: float, n_before: int, after: float, n_after: int, *, level: float = 0.95
) -> Interval:
    """The difference of two shares, as successes and trials each, with Newcombe's interval from the
    two Wilson intervals.

        d - sqrt((p2 - l2)^2 + (u1 - p1)^2)  to  d + sqrt((u2 - p2)^2 + (p1 - l1)^2),   d = p2 - p1

    48 of 80 against 56 of 70: .2 (.0524, .3339). For the same prompts twice it is cautious: pairing
    would narrow it. Newcombe 1998, Statistics in Medicine 17:873 (method 10).
    """
    one, two = wilson(before, n_before, level=level), wilson(after, n_after, level=level)
    value = two.value - one.value
    down = sqrt((two.value - two.low) ** 2 + (one.high - one.value) ** 2)
    up = sqrt((two.high - two.value) ** 2 + (one.value - one.low) ** 2)
    return Interval(value, value - down, value + up, min(n_before, n_after), level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, got {level}")


def _per_cluster(
    values: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of each cluster, clusters in order of first appearance."""
    totals: dict[Hashable, tuple[float, int]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        if not isfinite(value):
            raise ValueError(f"an interval needs finite values, got {value}")
        total, count = totals.get(cluster, (0.0, 0))
        totals[cluster] = (total + value, count + 1)
    if not totals:
        raise ValueError("an interval needs at least one value")
    sums, counts = zip(*totals.values(), strict=True)
    return np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)


def _replicates(
    sums: np.ndarray, counts: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """`draws` bootstrap means, as many drawn indices at a time as lie near the processor."""
    size = len(sums)
    rows = max(1, 100_000 // size)
    single = bool((counts == 1).all())
    means = []
    for start in range(0, draws, rows):
        index = rng.integers(0, size, (min(rows, draws - start), size))
        means.append(sums[index].sum(1) / (size if single else counts[index].sum(1)))
    return np.concatenate(means)
