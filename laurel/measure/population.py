"""Whose opinions the data holds: distance between answer distributions, composition against a
population, and what must stay hidden.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from scipy.stats import chi2

Shares = Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class Published:
    """One published group of labelers: how many there were, how many answered the questions on
    themselves, and shares of them.
    """

    name: str
    labelers: int | None
    answered: int | None
    shares: tuple[tuple[str, float], ...] = ()


PUBLISHED = (
    Published("HH-RLHF", None, 28, (("white", 0.68), ("male", 0.54))),
    Published("InstructGPT", 40, 19, (("Asian", 0.58),)),
    Published("Sparrow", 533, None),
    Published("red team", 115, None),
    Published("TL;DR", 21, None),
    Published("PRISM", 1500, None),
)
"""From PRISM's table of existing demographics (Kirk et al. 2024, arXiv:2404.16019). None and absent
shares: not stated there to us.
"""


@dataclass(frozen=True, slots=True)
class Representativeness:
    """How near answers lie to those of people: 1 - distance, averaged over `questions`.

    overall: to all people; per_group: to each group; worst and mean of people's own groups to all
    people are the baselines, `worst_group` names the former. What no question defines is None, and
    `reason` says why.
    """

    overall: float | None
    per_group: dict[str, float]
    worst: float | None
    worst_group: str | None
    mean: float | None
    questions: int
    reason: str = ""


def wasserstein(p: Shares, q: Shares, positions: Shares | None = None) -> float:
    """Earth mover's distance between two distributions over the same ordered options: sum |CDF_p -
    CDF_q| * gap between options.

    positions: the options' places, rising, 1 apart if not given. Counts are normalised. (.1, .2,
    .3, .4) against its mirror: 1, so 1 - WD / 3 = .6667. Refuses negative or empty distributions.
    Vallender 1974.
    """
    a, b = _distribution(p), _distribution(q)
    x = np.arange(len(a), dtype=float) if positions is None else np.asarray(positions, dtype=float)
    if len(a) != len(b) or len(x) != len(a) or len(x) < 2 or (np.diff(x) <= 0).any():
        raise ValueError(
            f"distributions over the same rising options, two or more: {len(a)} and {len(b)} shares"
            f" at {x.tolist()}"
        )
    return float((np.abs(np.cumsum(a - b))[:-1] * np.diff(x)).sum())


def similarity(p: Shares, q: Shares, positions: Shares | None = None) -> float:
    """1 - WD / (last - first position): 1 where equal, 0 for all mass at opposite ends.

    Santurkar et al. 2023, arXiv:2303.17548.
    """
    x = np.arange(len(p), dtype=float) if positions is None else np.asarray(positions, dtype=float)
    return 1 - wasserstein(p, q, positions) / float(x[-1] - x[0])


def representativeness(
    answers: Mapping[Any, Shares],
    people: Mapping[Any, Shares],
    groups: Mapping[str, Mapping[Any, Shares]] | None = None,
    *,
    positions: Mapping[Any, Sequence[float | None]] | None = None,
) -> Representativeness:
    """A = 1/|Q| sum_q [1 - WD(D1(q), D2(q)) / (N_q - 1)] over the questions in both, OpinionQA's
    measure.

    answers, people: question -> shares (or counts, weighed by survey weights) of its options in
    order; groups: the same per group of people. positions[q]: the options' ordinals, None for a
    refusal, which is dropped and the rest renormalised; the divisor is the ordinals' range.
    Questions without mass left are left out. Santurkar et al. 2023, arXiv:2303.17548.
    """
    places = positions or {}
    overall, questions = _mean_similarity(answers, people, places)
    if overall is None:
        return Representativeness(None, {}, None, None, None, 0, "no question was answered by both")
    own: dict[str, float] = {}
    baseline: dict[str, float] = {}
    for name, given in (groups or {}).items():
        near, _ = _mean_similarity(answers, given, places)
        to_all, _ = _mean_similarity(given, people, places)
        if near is not None and to_all is not None:
            own[name], baseline[name] = near, to_all
    if not baseline:
        return Representativeness(
            overall, {}, None, None, None, questions, "no group to compare with"
        )
    worst = min(baseline, key=lambda name: (baseline[name], name))
    return Representativeness(
        overall, own, baseline[worst], worst, float(np.mean(list(baseline.values()))), questions
    )


def total_variation(p: Shares, q: Shares) -> float:
    """.5 sum |p - q|: the share of people who would have to be others.

    (.5, .3, .2) against (.4, .4, .2): .1.
    """
    a, b = _distribution(p), _distribution(q)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} shares are not of the same categories")
    return float(np.abs(a - b).sum() / 2)


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """Pearson's statistic, its degrees of freedom and p; `reason` warns where expected counts below
    5 make p rough.
    """

    statistic: float
    freedom: int
    p: float
    reason: str = ""


def chi_square(counts: Shares, population: Shares) -> ChiSquare:
    """Whether counts of people fit the population's shares: sum (O - E)^2 / E with K - 1 degrees of
    freedom. Pearson 1900.

    Refuses people in a category that the population does not have.
    """
    seen, share = np.asarray(counts, dtype=float), _distribution(population)
    if len(seen) != len(share) or len(seen) < 2 or (seen < 0).any() or not seen.sum():
        raise ValueError(
            f"{len(seen)} counts, at least one person, against {len(share)} shares of two or more"
            " categories"
        )
    if (seen[share == 0] > 0).any():
        raise ValueError(
            "people in a category that has no share of the population; merge it with another"
        )
    expected = seen.sum() * share[share > 0]
    statistic = float(((seen[share > 0] - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    if freedom < 1:
        raise ValueError("the population has only one category")
    return ChiSquare(
        statistic,
        freedom,
        float(chi2.sf(statistic, freedom)),
        "" if expected.min() >= 5 else "expected counts below 5: p is rough",
    )


@dataclass(frozen=True, slots=True)
class Raking:
    """Weights of mean 1, one a person, or None with the `reason`.

    The largest gap to a margin that is left; Kish's effective size.
    """

    weights: np.ndarray | None
    gap: float | None
    effective: float | None
    reason: str = ""


def raking(
    people: Sequence[Mapping[str, Hashable]],
    margins: Mapping[str, Mapping[Hashable, float]],
    *,
    steps: int = 1000,
    tolerance: float = 1e-9,
) -> Raking:
    """Weights that give every margin its population share (iterative proportional fitting).

    Each margin in turn is scaled until none moves. people: trait -> category for each person;
    margins: trait -> category -> share. Deming and Stephan 1940. Refuses a person without one of
    the categories; None where a category of the population has no person, or the margins contradict
    each other.
    """
    if not people or not margins:
        raise ValueError("raking needs people and at least one margin")
    targets: dict[str, np.ndarray] = {}
    codes: dict[str, np.ndarray] = {}
    for trait, wanted in margins.items():
        codes[trait] = _category_codes(people, trait, list(wanted))
        targets[trait] = _distribution(list(wanted.values()))
        present = np.isin(np.arange(len(wanted)), codes[trait])
        missing = (targets[trait] > 0) & ~present
        if missing.any():
            empty = [category for category, gone in zip(wanted, missing, strict=True) if gone]
            reason = f"nobody has {trait} in {empty}: no weight can stand for them"
            return Raking(None, None, None, reason)
    weight, gap = _fit_margins(targets, codes, len(people), steps, tolerance)
    if gap >= tolerance:
        reason = (
            f"the margins cannot all be met by these people: still {gap:.2g} apart after {steps}"
            " rounds"
        )
        return Raking(None, gap, None, reason)
    weight = weight * len(people) / weight.sum()
    return Raking(weight, gap, effective_sample_size(weight))


def _category_codes(
    people: Sequence[Mapping[str, Hashable]], trait: str, categories: list[Hashable]
) -> np.ndarray:
    """[people] the number of each person's category of one trait."""
    index = {category: k for k, category in enumerate(categories)}
    for row, person in enumerate(people):
        if person.get(trait) not in index:
            raise ValueError(
                f"person {row} has {trait} = {person.get(trait)!r}, which is not among"
                f" {categories}; give them a margin"
            )
    return np.array([index[person[trait]] for person in people])


def _fit_margins(
    targets: Mapping[str, np.ndarray],
    codes: Mapping[str, np.ndarray],
    size: int,
    steps: int,
    tolerance: float,
) -> tuple[np.ndarray, float]:
    """Weights [size] that sum to 1, and the largest gap to a target in the last round."""
    weight = np.full(size, 1 / size)
    gap = np.inf
    for _ in range(steps):
        gap = 0.0
        for trait, target in targets.items():
            have = np.bincount(codes[trait], weight, len(target))
            gap = max(gap, float(np.abs(have - target).max()))
            factor = np.divide(target, have, out=np.zeros_like(target), where=have > 0)
            weight = weight * factor[codes[trait]]
        if gap < tolerance:
            break
    return weight, gap


def effective_sample_size(weights: Shares) -> float:
    """(sum w)^2 / sum w^2: how many equally weighed people tell as much.

    [1, 1, 1, 5]: 2.2857. Kish 1965.
    """
    w = np.asarray(weights, dtype=float)
    if w.ndim != 1 or not np.isfinite(w).all() or (w < 0).any() or not w.any():
        raise ValueError("weights are finite, not negative, and not all zero")
    return float(w.sum() ** 2 / (w**2).sum())


def suppress(table: Sequence[Sequence[int]] | np.ndarray, k: int = 5) -> list[list[int | None]]:
    """A table of counts of people with its totals as last row and column, cells of 1 to k-1 None,
    and as many more as keep those hidden.

    A hidden cell that the shown ones and the totals determine (linear algebra over all rows and
    columns, so chains of subtractions too) takes another with it, as do hidden cells of a line that
    sum to less than k: the smallest shown cell above 0 of its line, a 0 where nothing else is left.
    Totals are cells like others. Zeros are shown: they hold nobody. A list is a table of one row.
    Publish one table of the same people, not several: hiding cells is no differential privacy.
    Willenborg and de Waal 2001, ch. 4.
    """
    counts = np.asarray(table)
    if (
        counts.ndim != 2
        or not counts.size
        or not np.issubdtype(counts.dtype, np.integer)
        or (counts < 0).any()
        or k < 1
    ):
        raise ValueError(
            "a table [rows, columns] of counts, 0 or more, and k of at least 1; got shape"
            f" {counts.shape}, k {k}"
        )
    full = np.block(
        [
            [counts, counts.sum(1, keepdims=True)],
            [counts.sum(0, keepdims=True), counts.sum(keepdims=True)],
        ]
    )
    hidden = (full > 0) & (full < k)
    while neighbours := [
        cell for bare in _revealed(full, hidden, k) for cell in _shown_neighbours(hidden, bare)
    ]:
        hidden[min(neighbours, key=lambda at: (full[at] == 0, full[at], at))] = True
    return [
        [None if gone else int(count) for count, gone in zip(row, mask, strict=True)]
        for row, mask in zip(full, hidden, strict=True)
    ]


def _revealed(full: np.ndarray, hidden: np.ndarray, k: int) -> list[tuple[int, int]]:
    """Hidden cells that a reader could compute, or bound below k, from the totals shown."""
    cells = [(int(i), int(j)) for i, j in np.argwhere(hidden)]
    if not cells:
        return []
    return [
        *_computable(cells, full.shape),
        *((line, at) for line, at in _small_lines(full, hidden, k)),
        *((at, line) for line, at in _small_lines(full.T, hidden.T, k)),
    ]


def _computable(cells: list[tuple[int, int]], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Hidden cells that the equations "a line sums to its total" determine."""
    rows, columns = shape
    lines = np.zeros((rows + columns, len(cells)))
    for place, (i, j) in enumerate(cells):
        # The last row and column hold totals, which stand on the other side of the equation.
        lines[i, place] = -1 if j == columns - 1 else 1
        lines[rows + j, place] = -1 if i == rows - 1 else 1
    _, size, basis = np.linalg.svd(lines)
    # A cell is determined where no solution of the homogeneous equations moves it.
    free = basis[int((size > 1e-9).sum()) :]
    fixed = [not len(free) or np.abs(free[:, place]).max() < 1e-9 for place in range(len(cells))]
    return [cell for cell, known in zip(cells, fixed, strict=True) if known]


def _small_lines(values: np.ndarray, hidden: np.ndarray, k: int) -> list[tuple[int, int]]:
    """(line, its first hidden cell) where a line's hidden cells sum to less than k, total shown."""
    found: list[tuple[int, int]] = []
    for line in range(len(values)):
        inner = np.flatnonzero(hidden[line, :-1])
        if len(inner) and not hidden[line, -1] and values[line, inner].sum() < k:
            found.append((line, int(inner[0])))
    return found


def _shown_neighbours(hidden: np.ndarray, cell: tuple[int, int]) -> list[tuple[int, int]]:
    i, j = cell
    return [(i, c) for c in range(hidden.shape[1]) if not hidden[i, c]] + [
        (r, j) for r in range(hidden.shape[0]) if not hidden[r, j]
    ]


def _distribution(shares: Shares) -> np.ndarray:
    values = np.asarray(shares, dtype=float)
    if (
        values.ndim != 1
        or not len(values)
        or not np.isfinite(values).all()
        or (values < 0).any()
        or not values.sum() > 0
    ):
        raise ValueError(
            f"a distribution has finite shares of 0 or more, not all 0; got {values.tolist()}"
        )
    return values / values.sum()


def _mean_similarity(
    one: Mapping[Hashable, Shares],
    two: Mapping[Hashable, Shares],
    places: Mapping[Hashable, Sequence[float | None]],
) -> tuple[float | None, int]:
    found = []
    for question in one.keys() & two.keys():
        a, b = np.asarray(one[question], dtype=float), np.asarray(two[question], dtype=float)
        given = places.get(question)
        where = (
            np.arange(len(a), dtype=float)
            if given is None
            else np.array([np.nan if x is None else x for x in given], dtype=float)
        )
        if not len(a) == len(b) == len(where):
            raise ValueError(
                f"question {question!r}: {len(a)} and {len(b)} shares, {len(where)} positions"
            )
        kept = np.array([isfinite(x) for x in where])
        if a[kept].sum() > 0 and b[kept].sum() > 0:
            found.append(similarity(a[kept], b[kept], where[kept]))
    return (float(np.mean(found)), len(found)) if found else (None, 0)
