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
    """The share of people who prefer each item's first response, from votes.

    Rows (item, annotator, 0 for the first response or 1 for the second), ties left out by the
    caller; at least one. gold: rows (item, annotator, 1 for right or 0 for wrong) about items with
    a known answer, on which only a guess is wrong: they say who guesses. Turning a pair (0 for 1)
    turns its `first` and changes nothing else. Two votes of one annotator on an item are refused.
    """
    rows = _rows(votes, "votes")
    if not len(rows):
        raise ValueError("there is no vote")
    items, item = np.unique(rows[:, 0], return_inverse=True)
    annotators, annotator = np.unique(rows[:, 1], return_inverse=True)
    if len(np.unique(item * len(annotators) + annotator)) < len(rows):
        raise ValueError(
            "an annotator voted twice on one item; keep the last revision of each vote"
        )
    marks = _gold_marks(gold, annotators)
    share, guess, spread, steps = _fit(item, annotator, rows[:, 2], len(items), marks)
    votes_of = np.bincount(annotator)
    crowd = float(votes_of @ guess / votes_of.sum())
    wins = np.bincount(item, rows[:, 2] == 0, len(items)).astype(int)
    losses = np.bincount(item, rows[:, 2] == 1, len(items)).astype(int)
    return PreferenceShares(
        items=items,
        annotators=annotators,
        first=_with_majority((1 - crowd) * share + crowd / 2, wins - losses),
        wins=wins,
        losses=losses,
        guess=guess,
        crowd=crowd,
        spread=spread,
        steps=steps,
    )


def _gold_marks(gold: Rows, annotators: np.ndarray) -> np.ndarray:
    """[W, (wrong, right)] the answers to gold of the annotators who voted."""
    marks = np.zeros((len(annotators), 2))
    if len(gold):
        known = _rows(gold, "gold")
        known = known[np.isin(known[:, 1], annotators)]
        np.add.at(marks, (np.searchsorted(annotators, known[:, 1]), known[:, 2]), 1.0)
    return marks


def _with_majority(first: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """The chances, but 1/2 where they speak against a strict majority of the votes."""
    return np.where((first - 0.5) * margin < 0, 0.5, first)


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
    """Of every item with `least` votes, one vote, drawn by a seed, is foretold from the rest.

    None where no item has as many. Rows as in `preference_shares`. The draw takes the items in the
    order of their first votes, and an item's votes in the order given.
    """
    rows = _rows(votes, "votes")
    enough = [places for places in _votes_by_item(rows) if len(places) >= max(2, least)]
    if not enough:
        return None
    draws: list[tuple[int, float, float]] = []
    tables: list[tuple[Bin, ...]] = []
    for seed in seeds:
        dice = np.random.default_rng(seed)
        out = np.array([places[int(dice.integers(len(places)))] for places in enough])
        chance, smoothed = _foretold(rows, out, gold)
        for_first = rows[out, 2] == 0
        tables.append(_confidence_table(chance, for_first))
        product = _log_loss(chance, for_first)
        share = _log_loss(smoothed, for_first)
        draws.append((int(seed), product, share))
    means = np.array(draws)[:, 1:].mean(0)
    return HeldOut(
        product=float(means[0]),
        share=float(means[1]),
        coin=log(2),
        n=len(enough),
        draws=tuple(draws),
        table=tables[0] if tables else (),
    )


def _votes_by_item(rows: np.ndarray) -> list[list[int]]:
    """The positions of each item's votes, items in the order of their first votes."""
    votes_of: dict[int, list[int]] = {}
    for place, item in enumerate(rows[:, 0].tolist()):
        votes_of.setdefault(item, []).append(place)
    return list(votes_of.values())


def _foretold(rows: np.ndarray, out: np.ndarray, gold: Rows) -> tuple[np.ndarray, np.ndarray]:
    """For the votes `out`: the model's chance of the first response and the smoothed share.

    Both from all other votes.
    """
    kept = np.ones(len(rows), dtype=bool)
    kept[out] = False
    found = preference_shares(rows[kept], gold=gold)
    place = np.searchsorted(found.items, rows[out, 0])
    wins = found.wins[place]
    losses = found.losses[place]
    return found.first[place], (wins + 1) / (wins + losses + 2)


def _log_loss(chance: np.ndarray, for_first: np.ndarray) -> float:
    """The mean -log of the chance that the votes had, in nats."""
    return float(-np.log(np.where(for_first, chance, 1 - chance)).mean())


def _confidence_table(chance: np.ndarray, for_first: np.ndarray) -> tuple[Bin, ...]:
    """How sure the chances are of the response they prefer, and how often the vote was for it."""
    right = np.where(chance == 0.5, 0.5, (chance > 0.5) == for_first)
    return tuple(reliability_table(np.maximum(chance, 1 - chance), right, bins=5, low=0.5))


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
    """The points of p [G], and for each spread a the chance of each under Beta(a, a) [A, G]."""
    edges = np.sin(np.linspace(0, np.pi / 2, SHARES + 1)) ** 2
    points = np.sin((np.arange(SHARES) + 0.5) / SHARES * np.pi / 2) ** 2
    mass = np.stack([np.diff(beta.cdf(edges, a, a)) for a in SPREADS])
    # Averaged with their mirror images, so that turning a pair changes no bit.
    mass = mass + mass[:, ::-1]
    return (points + (1 - points[::-1])) / 2, mass / mass.sum(1, keepdims=True)


def _fit(
    item: np.ndarray, annotator: np.ndarray, label: np.ndarray, size: int, marks: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """The mean of p [I], of g [W], the geometric mean of a, and steps taken.

    marks [W, 2]: wrong and right answers to gold. Variational Bayes: p and g in turn.
    """
    people = len(marks)
    points, mass = _grid()
    votes = _vote_matrix(item, 2 * annotator + label, (size, 2 * people))
    by_annotator = votes.T.tocsr()
    log_chance = _log_vote_chance(points)
    gold = _log_gold_chance(marks)
    guess = _first_guess(people)
    prior = np.full(len(GUESSES), 1 / len(GUESSES))
    share = np.zeros((size, SHARES))
    spread = np.zeros(len(SPREADS))
    taken = 0
    moved = 1.0
    while moved > STILL and taken < STEPS:
        taken += 1
        # k annotators, l labels, h points of g, g points of p
        expected = np.einsum("kh,lhg->klg", guess, log_chance)
        by_item = votes @ expected.reshape(2 * people, -1)
        share, spread = _update_shares(by_item, mass)
        votes_for = (by_annotator @ share).reshape(people, 2, -1)
        weight = np.einsum("klg,lhg->kh", votes_for, log_chance)
        before = guess
        guess = _softmax(weight + gold + np.log(prior))
        prior = _updated_prior(guess)
        moved = float(np.abs((guess - before) @ GUESSES).max())
    return share @ points, guess @ GUESSES, _geometric_mean(spread), taken


def _geometric_mean(spread: np.ndarray) -> float:
    """Of a, under the chances [A] of its values."""
    return float(np.exp(spread @ np.log(SPREADS)))


def _updated_prior(guess: np.ndarray) -> np.ndarray:
    """[H] the mean of the posteriors of g and of `PRIOR` pseudo-annotators."""
    return (guess.sum(0) + PRIOR / len(GUESSES)) / (len(guess) + PRIOR)


def _first_guess(people: int) -> np.ndarray:
    """[W, H] where the posteriors of g start: rather honest than not."""
    start = np.linspace(2.2, 0.2, len(GUESSES))
    return np.tile(start / start.sum(), (people, 1))


def _vote_matrix(item: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """[I, W * 2] a 1 for each vote, so that sums over votes are products with this matrix."""
    return csr_array((np.ones(len(item)), (item, column)), shape=shape)


def _log_vote_chance(points: np.ndarray) -> np.ndarray:
    """[2, H, G] log P(a vote for the first, for the second | guess g, share p)."""
    honest = (1 - GUESSES)[:, None]
    guessed = GUESSES[:, None] / 2
    return np.log(np.stack([honest * p + guessed for p in (points, 1 - points)]))


def _log_gold_chance(marks: np.ndarray) -> np.ndarray:
    """[W, H] log P(the wrong and right answers to gold | guess g)."""
    # Not 0 for a wrong answer at g = 0: it rules out that nothing is a guess, in finite numbers.
    wrong = np.maximum(GUESSES / 2, 1e-9)
    right = 1 - GUESSES / 2
    return marks @ np.log(np.stack([wrong, right]))


def _update_shares(log_score: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The posterior of p [I, G] and of the spread a [A], from the votes' expected log-chance."""
    score = np.exp(log_score - log_score.max(1, keepdims=True))
    evidence = score @ mass.T  # [I, A], but for a factor of the item
    total = np.log(evidence).sum(0)
    spread = np.exp(total - total.max())
    spread /= spread.sum()
    return score * ((spread / evidence) @ mass), spread


def _softmax(weight: np.ndarray) -> np.ndarray:
    weight = np.exp(weight - weight.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)
