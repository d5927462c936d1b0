"""What one more person would say: the chance that a further annotator prefers a response, from
decisive votes in which people may differ.

The fit of a latent truth takes a split vote for somebody's mistake, and a person who is often in
the minority for a liar. Here item i has a share p_i of people who prefer its first response, and
annotator k is one of those people, or guesses:

    P(k prefers the first of i) = (1 - g_k) p_i + g_k / 2,      p_i ~ Beta(a, a),   g_k ~ a
    distribution on [0, 1] that is learnt, too

so nobody is worse than a coin. With g = 0 it is the smoothed share (wins + a) / (n + 2 a); with a
near 0 there is a truth that people find or guess, the one-coin model of Dawid and Skene 1979 with
skills of at least 1/2. Variational Bayes: the p_i and the g_k have independent posteriors on grids,
`a` is weighed by its evidence, and the prior of g is the mean of its posteriors (empirical Bayes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import beta

from laurel.measure.calibration import Bin, reliability_table

Rows = Sequence[tuple[int, int, int]] | np.ndarray

SHARES = 31
"""Points of the grid of p, closest near 0 and 1: equal steps of arcsin sqrt p, in which a share is
equally sure everywhere.
"""
GUESSES = np.linspace(0, 1, 17)
SPREADS = np.exp(np.linspace(np.log(1 / 32), np.log(8), 33))
PRIOR = 2.0
"""Pseudo-annotators, spread evenly over `GUESSES`, in the prior of g."""
STILL, STEPS = 2e-4, 500
"""The climb ends when no annotator's mean g moves by more than `STILL`, or after `STEPS`."""


@dataclass(frozen=True, slots=True)
class PreferenceShares:
    """`items` [I] and `annotators` [W] name the rows of the rest.

    first [I]: P(a further annotator, who decides and is like those who voted here, prefers the
    first response). Never against a strict majority of the votes: where the model would be, 1/2.
    wins, losses [I]: the votes for the first response and for the second. guess [W]: the mean of
    g_k; 1 - guess is the reliability. crowd: the mean of `guess` over the votes. spread: the
    geometric mean of a.
    """

    items: np.ndarray
    annotators: np.ndarray
    first: np.ndarray
    wins: np.ndarray
    losses: np.ndarray
    guess: np.ndarray
    crowd: float
    spread: float
    steps: int


def preference_shares(votes: Rows, *, gold: Rows = ()) -> PreferenceShares:
    """From rows (item, annotator, 0 for the first response or 1 for the second), ties left out by
    the caller; at least one.

    gold: rows (item, annotator, 1 for right or 0 for wrong) about items with a known answer, on
    which only a guess is wrong: they say who guesses. Turning a pair (0 for 1) turns its `first`
    and changes nothing else. Two votes of one annotator on an item are refused.
    """
    rows, known = (
        _rows(votes, "votes"),
        _rows(gold, "gold") if len(gold) else np.zeros((0, 3), dtype=int),
    )
    if not len(rows):
        raise ValueError("there is no vote")
    items, item = np.unique(rows[:, 0], return_inverse=True)
    annotators, annotator = np.unique(rows[:, 1], return_inverse=True)
    if len(np.unique(item * len(annotators) + annotator)) < len(rows):
        raise ValueError(
            "an annotator voted twice on one item; keep the last revision of each vote"
        )
    here = np.isin(known[:, 1], annotators)
    marks = np.zeros((len(annotators), 2))
    np.add.at(marks, (np.searchsorted(annotators, known[here, 1]), known[here, 2]), 1.0)
    share, guess, spread, steps = _climb(item, annotator, rows[:, 2], len(items), marks)
    given = np.bincount(annotator)
    crowd = float(given @ guess / given.sum())
    first = (1 - crowd) * share + crowd / 2
    wins, losses = (
        np.bincount(item, rows[:, 2] == label, len(items)).astype(int) for label in (0, 1)
    )
    first = np.where((first - 0.5) * (wins - losses) < 0, 0.5, first)
    return PreferenceShares(items, annotators, first, wins, losses, guess, crowd, spread, steps)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How well labels foretell a vote they have not seen: the mean -log of the chance they gave it,
    in nats.

    product: by `preference_shares` of all other votes. share: (wins + 1) / (n + 2) of the item's
    other votes. coin: log 2. n: items, each with one vote held out at a time. draws: (seed,
    product, share) of each choice of the votes held out, of which product and share are the means.
    table: of the first seed, how sure the labels were of the response they preferred, and how often
    the vote was for it.
    """

    product: float
    share: float
    coin: float
    n: int
    draws: tuple[tuple[int, float, float], ...]
    table: tuple[Bin, ...]


def held_out(
    votes: Rows, *, gold: Rows = (), least: int = 3, seeds: Sequence[int] = (0, 1, 2)
) -> HeldOut | None:
    """Of every item with `least` votes one vote, drawn by a seed, is foretold from the rest; None
    where no item has as many.

    Rows as in `preference_shares`. The draw takes the items in the order of their first votes, and
    an item's votes in the order given.
    """
    rows = _rows(votes, "votes")
    given: dict[int, list[int]] = {}
    for place, item in enumerate(rows[:, 0].tolist()):
        given.setdefault(item, []).append(place)
    enough = [places for places in given.values() if len(places) >= max(2, least)]
    if not enough:
        return None
    draws, table = [], ()
    for seed in seeds:
        dice = np.random.default_rng(seed)
        out = np.array([places[int(dice.integers(len(places)))] for places in enough])
        kept = np.ones(len(rows), dtype=bool)
        kept[out] = False
        found = preference_shares(rows[kept], gold=gold)
        place = np.searchsorted(found.items, rows[out, 0])
        for_first = rows[out, 2] == 0
        smoothed = (found.wins[place] + 1) / (found.wins[place] + found.losses[place] + 2)
        product, share = (
            float(-np.log(np.where(for_first, p, 1 - p)).mean())
            for p in (found.first[place], smoothed)
        )
        if not draws:
            said = found.first[place]
            right = np.where(said == 0.5, 0.5, (said > 0.5) == for_first)
            table = tuple(reliability_table(np.maximum(said, 1 - said), right, bins=5, low=0.5))
        draws.append((int(seed), product, share))
    means = np.array(draws)[:, 1:].mean(0)
    return HeldOut(float(means[0]), float(means[1]), log(2), len(enough), tuple(draws), table)


def _rows(votes: Rows, what: str) -> np.ndarray:
    rows = np.asarray(votes)
    if not len(rows):
        return np.zeros((0, 3), dtype=int)
    if (
        rows.ndim != 2
        or rows.shape[1] != 3
        or not np.issubdtype(rows.dtype, np.integer)
        or not np.isin(rows[:, 2], (0, 1)).all()
    ):
        raise ValueError(
            f"{what} are rows of integers (item, annotator, 0 or 1); got {rows.dtype} of shape"
            f" {rows.shape}"
        )
    return rows


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """The points of p [G], and for each spread a the chance of each under Beta(a, a) [A, G],
    symmetric to the last bit.
    """
    edges = np.sin(np.linspace(0, np.pi / 2, SHARES + 1)) ** 2
    points = np.sin((np.arange(SHARES) + 0.5) / SHARES * np.pi / 2) ** 2
    mass = np.stack([np.diff(beta.cdf(edges, a, a)) for a in SPREADS])
    mass = mass + mass[:, ::-1]
    return (points + (1 - points[::-1])) / 2, mass / mass.sum(1, keepdims=True)


def _climb(
    item: np.ndarray, annotator: np.ndarray, label: np.ndarray, size: int, marks: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """The mean of p [I], of g [W], the geometric mean of a, and steps taken. marks [W, 2]: wrong
    and right answers to gold.
    """
    points, mass = _grid()
    people, chosen = len(marks), 2 * annotator + label
    given = csr_array((np.ones(len(item)), (item, chosen)), shape=(size, 2 * people))  # [I, W * 2]
    by_vote = given.T.tocsr()
    said = np.log(
        np.stack([(1 - GUESSES)[:, None] * p + GUESSES[:, None] / 2 for p in (points, 1 - points)])
    )  # [2, H, G]
    gold = marks @ np.log(
        np.stack([np.maximum(GUESSES / 2, 1e-9), 1 - GUESSES / 2])
    )  # a wrong answer rules out that nothing is a guess
    start = np.linspace(2.2, 0.2, len(GUESSES))  # rather honest than not
    guess = np.tile(start / start.sum(), (people, 1))
    prior = np.full(len(GUESSES), 1 / len(GUESSES))
    taken, moved = 0, 1.0
    while moved > STILL and taken < STEPS:
        taken += 1
        told = np.einsum("kh,lhg->klg", guess, said).reshape(2 * people, -1)
        score = given @ told
        score = np.exp(score - score.max(1, keepdims=True))
        evidence = score @ mass.T  # [I, A], but for a factor of the item
        total = np.log(evidence).sum(0)
        believed = np.exp(total - total.max())
        believed /= believed.sum()
        share = score * ((believed / evidence) @ mass)
        seen = (by_vote @ share).reshape(people, 2, -1)
        weight = np.einsum("klg,lhg->kh", seen, said) + gold + np.log(prior)
        weight = np.exp(weight - weight.max(1, keepdims=True))
        before, guess = guess, weight / weight.sum(1, keepdims=True)
        prior = (guess.sum(0) + PRIOR / len(GUESSES)) / (people + PRIOR)
        moved = float(np.abs((guess - before) @ GUESSES).max())
    return share @ points, guess @ GUESSES, float(np.exp(believed @ np.log(SPREADS))), taken
