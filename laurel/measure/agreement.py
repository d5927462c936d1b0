"""How far raters agree, beyond what chance alone would give, with intervals over items.

Every coefficient here is a function of sums over items, so the bootstrap over items draws those
sums at once. Where rows belong together (the pairs of responses of one prompt) `clusters` names
what each belongs to, and whole clusters are drawn. A coefficient that the data leave undefined (all
ratings equal, nothing to compare) is None with the reason: never 1, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isfinite
from typing import Any

import numpy as np

from laurel.measure.intervals import clustered_share

Clusters = Sequence[Hashable] | None
"""What each item belongs to, in the order of the items; None: every item stands for itself."""
Statistic = Callable[[np.ndarray], np.ndarray]
"""Sums of rows [draws, columns] -> the coefficient of each draw [draws]."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A coefficient with the bounds of its interval and the number of items (pairs, for
    `pair_agreement`) behind it.

    `value` is None where it is undefined, `low` and `high` where the bootstrap is; `reason` says
    why.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""
    level: float = 0.95

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined: {self.reason} (n={self.n})"
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (no interval: {self.reason}; n={self.n})"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, n={self.n})"


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    *,
    categories: Sequence[Hashable] | None = None,
    weights: str | None = None,
    clusters: Clusters = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Two raters, one label per item each: 1 - observed / expected disagreement.

        kappa = 1 - sum w_ij O_ij / sum w_ij E_ij,    E = outer product of the margins / n,
        w = 1[i != j],  or |i - j| / (q - 1) for "linear",  or its square for "quadratic"

    [[20, 5], [10, 15]]: po .7, pe .5, kappa .4. Weights need an order: that of `categories`, else
    sorted. For a rating in four levels take "linear". Cohen 1960; Cohen 1968 (weights). Undefined
    where both always gave one and the same label.
    """
    if weights not in (None, "linear", "quadratic"):
        raise ValueError(f'weights are None, "linear" or "quadratic", got {weights!r}')
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"two raters of the same items, at least one: {len(first)} and {len(second)} labels"
        )
    index = _index([*first, *second], categories)
    q = len(index)
    cost = _disagreement_cost(q, weights)
    # One row per item with a 1 in cell (i, j) of the flattened table: rows sum to the table.
    cells = np.zeros((len(first), q * q))
    cell = [index[a] * q + index[b] for a, b in zip(first, second, strict=True)]
    cells[np.arange(len(first)), cell] = 1

    def kappa(sums: np.ndarray) -> np.ndarray:
        table = sums.reshape(-1, q, q)
        expected = np.einsum("di,ij,dj->d", table.sum(2), cost, table.sum(1)) / table.sum((1, 2))
        return 1 - _ratio((table * cost).sum((1, 2)), expected)

    reason = "both raters gave one and the same label throughout"
    return _estimate(cells, kappa, reason, level, draws, seed, clusters)


def _disagreement_cost(q: int, weights: str | None) -> np.ndarray:
    """[q, q] the weight w_ij of a disagreement between two of q ordered categories."""
    gap = np.abs(np.subtract.outer(np.arange(q), np.arange(q))) / max(q - 1, 1)
    if weights is None:
        return (gap > 0) * 1.0
    return gap if weights == "linear" else gap**2


def fleiss_kappa(
    counts: Sequence[Sequence[int]] | np.ndarray,
    *,
    clusters: Clusters = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Many raters, the same number for each item: counts [items, categories] -> (Pbar - Pe) / (1 -
    Pe).

        P_i = (sum_j n_ij^2 - n) / (n (n - 1)),    Pe = sum_j p_j^2

    Fleiss 1971. Refuses unequal numbers of raters: `krippendorff_alpha` takes those. Undefined
    where one category took all.
    """
    table = np.asarray(counts, dtype=float)
    if table.ndim != 2 or not len(table) or (table < 0).any():
        raise ValueError(
            f"counts are a table [items, categories] of numbers of raters, got shape {table.shape}"
        )
    raters = table.sum(1)
    if raters.min() != raters.max() or raters[0] < 2:
        raise ValueError(
            "every item needs the same number of raters, two or more; for unequal numbers use"
            " `krippendorff_alpha`"
        )
    n = raters[0]
    each = ((table**2).sum(1) - n) / (n * (n - 1))

    def kappa(sums: np.ndarray) -> np.ndarray:
        items = sums[:, 1:].sum(1) / n
        chance = ((sums[:, 1:] / (items * n)[:, None]) ** 2).sum(1)
        return 1 - _ratio(1 - sums[:, 0] / items, 1 - chance)

    return _estimate(
        np.column_stack([each, table]),
        kappa,
        "every rating is the same category",
        level,
        draws,
        seed,
        clusters,
    )


def krippendorff_alpha(
    units: Sequence[Sequence[Hashable]],
    level: str = "nominal",
    *,
    clusters: Clusters = None,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Any number of raters per item: alpha = 1 - observed / expected disagreement.

        Do = sum_u sum_(i != j in u) delta^2(c_i, c_j) / (m_u - 1)
        De = sum_(c, k) n_c n_k delta^2(c, k) / (n - 1)
        delta^2 = 1[c != k] nominal, (c - k)^2 interval, ((c - k) / (c + k))^2 ratio,
                  (rank c - rank k)^2 ordinal (mid-ranks)

    Missing ratings are absent, or None; items with fewer than two are left out. [[1, 2], [2, 3],
    [3, 4]]: nominal -.1538, interval .5455. Krippendorff 2011, "Computing Krippendorff's
    alpha-reliability". Levels but nominal need numbers. Undefined where all values are equal.
    """
    if level not in ("nominal", "ordinal", "interval", "ratio"):
        raise ValueError(f'the level is "nominal", "ordinal", "interval" or "ratio", got {level!r}')
    rated = [[value for value in unit if value is not None] for unit in units]
    kept = [unit for unit in rated if len(unit) > 1]
    if not kept:
        return Agreement(None, None, None, 0, "no item has two ratings", confidence)
    if clusters is not None:
        clusters = [name for unit, name in zip(rated, clusters, strict=True) if len(unit) > 1]
    counts, values = _counts(kept, numbers=level != "nominal")
    make = _ordinal_alpha if level == "ordinal" else _alpha
    rows, alpha = make(counts, values, level)
    return _estimate(rows, alpha, "all values are equal", confidence, draws, seed, clusters)


def _alpha(
    counts: np.ndarray, values: Sequence[Hashable], level: str
) -> tuple[np.ndarray, Statistic]:
    """Rows (observed disagreement, counts per value) and alpha as a function of their sum."""
    share = counts / (counts.sum(1, keepdims=True) - 1)
    cost = _distance(values, level)
    observed = np.einsum("uc,ck,uk->u", share, cost, counts)

    def alpha(sums: np.ndarray) -> np.ndarray:
        n = sums[:, 1:]
        return 1 - _ratio(sums[:, 0], np.einsum("dc,ck,dk->d", n, cost, n) / (n.sum(1) - 1))

    return np.column_stack([observed, counts]), alpha


def _ordinal_alpha(
    counts: np.ndarray, values: Sequence[Hashable], _: str
) -> tuple[np.ndarray, Statistic]:
    """As `_alpha` for mid-ranks, which depend on the items drawn.

    So the rows hold the counts per pair of values instead of the observed disagreement.
    """
    share = counts / (counts.sum(1, keepdims=True) - 1)
    pairs = share[:, :, None] * counts[:, None, :]
    diagonal = np.arange(len(values))
    pairs[:, diagonal, diagonal] -= share  # a rating is not paired with itself
    rows = np.column_stack([counts, pairs.reshape(len(counts), -1)])
    return rows, lambda sums: _ordinal(sums, len(values))


def _ordinal(sums: np.ndarray, q: int) -> np.ndarray:
    n, pairs = sums[:, :q], sums[:, q:].reshape(-1, q, q)
    rank = n.cumsum(1) - n / 2
    cost = (rank[:, :, None] - rank[:, None, :]) ** 2
    return 1 - _ratio(
        (pairs * cost).sum((1, 2)), np.einsum("dc,dck,dk->d", n, cost, n) / (n.sum(1) - 1)
    )


def gwet_ac1(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    *,
    categories: Sequence[Hashable] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Two raters: (po - pe) / (1 - pe) with pe = sum_k pi_k (1 - pi_k) / (q - 1), pi_k the mean
    share of label k.

    Stays sensible where one label prevails: [[80, 10], [10, 0]] has po .8, kappa -.1111, AC1 .7561.
    Show both where one label has more than four fifths. Gwet 2008, BJMSP 61:29. Undefined with
    fewer than two categories.
    """
    if len(first) != len(second):
        raise ValueError(f"two raters of the same items: {len(first)} and {len(second)} labels")
    return gwet_ac1_units(
        list(zip(first, second, strict=True)),
        categories=categories,
        level=level,
        draws=draws,
        seed=seed,
    )


def gwet_ac1_units(
    units: Sequence[Sequence[Hashable]],
    *,
    categories: Sequence[Hashable] | None = None,
    clusters: Clusters = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Agreement:
    """AC1 for any number of raters per item.

        po = mean_i sum_k r_ik (r_ik - 1) / (r_i (r_i - 1)) over items with two ratings or more,
        pi_k = mean_i r_ik / r_i over all that have any

    Krippendorff's example C: .77544. Gwet 2008; 2014, Handbook of Inter-Rater Reliability, for
    gaps.
    """
    kept = [unit for unit in units if len(unit)]
    rated_twice = sum(len(unit) > 1 for unit in kept)
    if not rated_twice:
        return Agreement(None, None, None, 0, "no item has two ratings", level)
    if clusters is not None:
        clusters = [name for unit, name in zip(units, clusters, strict=True) if len(unit)]
    counts, names = _counts(kept, categories=categories)
    if len(names) < 2:
        reason = "only one category; name the others in `categories`"
        return Agreement(None, None, None, rated_twice, reason, level)
    rows, ac1 = _ac1(counts)
    found = _estimate(rows, ac1, "chance agreement is 1", level, draws, seed, clusters)
    return replace(found, n=rated_twice)


def _ac1(counts: np.ndarray) -> tuple[np.ndarray, Statistic]:
    """Rows (share of equal pairs, rated twice, shares per label) and AC1 of their sum."""
    raters = counts.sum(1)
    equal = (counts * (counts - 1)).sum(1) / np.maximum(raters * (raters - 1), 1)

    def ac1(sums: np.ndarray) -> np.ndarray:
        share = sums[:, 2:] / sums[:, 2:].sum(1, keepdims=True)
        chance = (share * (1 - share)).sum(1) / (counts.shape[1] - 1)
        return 1 - _ratio(1 - _ratio(sums[:, 0], sums[:, 1]), 1 - chance)

    return np.column_stack([equal, raters > 1, counts / raters[:, None]]), ac1


Ballots = Mapping[Any, Sequence[Hashable]]


def pair_agreement(
    votes: Ballots,
    judge: Ballots | None = None,
    *,
    ties: bool = True,
    tie: Hashable = "tie",
    cluster: Callable[[Any], Hashable] | None = None,
    level: float = 0.95,
) -> Agreement:
    """The share of equal pairs among all pairs of votes on the same item: n is the number of pairs,
    the interval is by items.

    votes: item -> one label per rater. Without `judge` every pair of raters of an item counts once
    (human with human); with it every vote is paired with every vote of the judge on that item.
    ties=False leaves out the pairs in which either says `tie`. An item is a pair of responses in
    one fixed orientation: see `in_alphabetical_order`. cluster: an item -> what it
    belongs to, where items of the interval are larger than those of the votes. As MT-Bench reports
    it: Zheng et al. 2023, arXiv:2306.05685.
    """
    equal: list[float] = []
    items: list[Hashable] = []
    for item, own in votes.items():
        pairs = (
            combinations(own, 2)
            if judge is None
            else ((one, two) for one in own for two in judge.get(item, ()))
        )
        for one, two in pairs:
            if ties or tie not in (one, two):
                equal.append(float(one == two))
                items.append(item if cluster is None else cluster(item))
    if not equal:
        return Agreement(None, None, None, 0, "no item has a pair of votes to compare", level)
    found = clustered_share(equal, items, level=level)
    return Agreement(found.value, found.low, found.high, len(equal), "", level)


def in_alphabetical_order(first: str, second: str, label: str) -> tuple[str, str, str]:
    """A vote with its two names in alphabetical order, so that (x, y) and (y, x) are one item.

    label: "a" (for `first`), "tie" or "b" (for `second`). A tie of any kind, as "tie
    (inconsistent)", is a tie.
    """
    if label not in ("a", "b") and not label.startswith("tie"):
        raise ValueError(f'a label is "a", "b" or "tie", got {label!r}')
    label = "tie" if label.startswith("tie") else label
    if first <= second:
        return first, second, label
    return second, first, {"a": "b", "b": "a", "tie": "tie"}[label]


def _index(
    labels: Sequence[Hashable], categories: Sequence[Hashable] | None
) -> dict[Hashable, int]:
    names = sorted(set(labels)) if categories is None else list(categories)  # type: ignore[type-var]
    index = {name: k for k, name in enumerate(names)}
    strange = set(labels) - index.keys()
    if strange:
        raise ValueError(
            f"labels that are not among the categories {names}: {sorted(map(str, strange))}"
        )
    return index


def _counts(
    units: Sequence[Sequence[Hashable]],
    *,
    numbers: bool = False,
    categories: Sequence[Hashable] | None = None,
) -> tuple[np.ndarray, list[Hashable]]:
    """[items, values] how often each value was given, and the values in order."""
    given = {value for unit in units for value in unit}
    if numbers and not all(
        isinstance(value, int | float | np.number) and isfinite(value) for value in given
    ):
        raise ValueError(
            "ordinal, interval and ratio levels need finite numbers; code the categories first"
        )
    values = sorted(given, key=None if numbers else str) if categories is None else list(categories)  # type: ignore[arg-type]
    index = _index(list(given), values)
    counts = np.zeros((len(units), len(values)))
    for row, unit in zip(counts, units, strict=True):
        for value in unit:
            row[index[value]] += 1
    return counts, values


def _distance(values: Sequence[Hashable], level: str) -> np.ndarray:
    if level == "nominal":
        return 1 - np.eye(len(values))
    x = np.asarray(values, dtype=float)
    gap, total = np.subtract.outer(x, x), np.add.outer(x, x)
    if level == "interval":
        return gap**2
    if (x < 0).any():
        raise ValueError("the ratio level needs values of 0 or more")
    return np.divide(gap, total, out=np.zeros_like(gap), where=total > 0) ** 2


def _ratio(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """NaN where nothing can be expected to differ."""
    return np.divide(observed, expected, out=np.full(len(observed), np.nan), where=expected > 1e-12)


def _estimate(
    rows: np.ndarray,
    statistic: Statistic,
    undefined: str,
    level: float,
    draws: int,
    seed: int,
    clusters: Clusters = None,
) -> Agreement:
    """A statistic of the rows' sum, with the percentile bootstrap over rows or clusters of rows.

    One row per item. Efron 1979.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, got {level}")
    value = float(statistic(rows.sum(0, keepdims=True))[0])
    if not isfinite(value):
        return Agreement(None, None, None, len(rows), undefined, level)
    drawn = rows if clusters is None else _cluster_sums(rows, clusters)
    found = _bootstrap(drawn, statistic, draws, seed)
    found = found[np.isfinite(found)]
    if len(drawn) < 2 or len(found) < 0.9 * draws:
        reason = "too few items, or too many of the resamples are undefined"
        return Agreement(value, None, None, len(rows), reason, level)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Agreement(value, float(low), float(high), len(rows), "", level)


def _cluster_sums(rows: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """One row per cluster: the sum of its rows, in the order in which clusters first come."""
    index = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(index), rows.shape[1]))
    np.add.at(sums, [index[name] for name in clusters], rows)
    return sums


def _bootstrap(rows: np.ndarray, statistic: Statistic, draws: int, seed: int) -> np.ndarray:
    """[draws] the statistic of resampled rows.

    Equal rows are drawn together (a multinomial over distinct rows), a few million numbers at a
    time.
    """
    distinct, often = np.unique(rows, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, 4_000_000 // max(distinct.shape))
    found: list[np.ndarray] = []
    for start in range(0, draws, step):
        size = min(step, draws - start)
        times = rng.multinomial(len(rows), often / len(rows), size).astype(float)
        found.append(statistic(times @ distinct))
    return np.concatenate(found)
