"""Accuracy against the number of answers: every way of choosing from one pool, with intervals.

A pool of N answers to each question says what k <= N would have come to, without drawing again: the
mean over subsets of k is unbiased for k fresh answers. Majority, best-of-n and the oracle are exact
over all subsets; weighted votes and the adaptive rule over orders of the pool drawn by a seed.
Intervals are over questions, which are what a benchmark samples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from laurel.core.errors import UsageError
from laurel.measure.best_of_n import best_of_n, best_of_n_bound
from laurel.measure.intervals import Interval, bootstrap_mean, paired_difference
from laurel.measure.majority import majority_at_k
from laurel.measure.pass_at_k import pass_at_k
from laurel.measure.stopping import LeaderTest
from laurel.search.choices import totals_of, vote_weights
from laurel.search.pool import Question

FEW = 256
"""Subsets that are all looked at."""
ORDERS = 64
"""Orders of a question's answers that weighted votes and the adaptive rule are averaged over."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A question as curves need it: of each answer its vote, and whether it is right."""

    question: Question
    votes: Sequence[Hashable | None]
    right: Sequence[bool]

    @property
    def size(self) -> int:
        """The number of answers."""
        return len(self.votes)

    @property
    def mean_tokens(self) -> float:
        """Of an answer."""
        return self.question.tokens / self.size


@dataclass(frozen=True, slots=True)
class Point:
    """One way of choosing at one k: accuracy over questions, and what it cost.

    gain: against the greedy answer where there is one, else against one that was drawn; paired by
    question. kl: nats that it goes from the policy at most.
    """

    way: str
    k: int
    accuracy: Interval
    gain: Interval
    answers: float
    tokens: float
    kl: float | None = None


def ks_of(size: int) -> list[int]:
    """1, 2, 4, ... and the size itself."""
    ks = [2**i for i in range(size.bit_length()) if 2**i <= size]
    return ks if ks[-1] == size else [*ks, size]


def curves(
    judged: Sequence[Judged],
    scorers: Sequence[str],
    *,
    ks: Sequence[int] | None = None,
    alpha: float = 0.05,
    weigh_likelihood: bool = False,
    greedy: Sequence[Judged] | None = None,
    seed: int = 0,
) -> list[Point]:
    """All ways at all k. scorers: by which best-of-n and weighted votes are chosen.

    greedy: the same questions with their greedy answer alone, which gains are then against.
    """
    size = smallest(judged)
    ks = list(ks or ks_of(size))
    if not all(1 <= k <= size for k in ks):
        raise UsageError(f"k from 1 to {size}, got {ks}.", where="k", fix="Draw more answers.")
    first = judged if greedy is None else greedy
    single = values_of(first, lambda one: sum(one.right) / one.size)
    ways = ways_of(scorers, weigh_likelihood, seed)
    found = [] if greedy is None else [point("greedy", 1, single, single, greedy)]
    for way, value in ways.items():
        for k in ks:
            values = values_of(judged, lambda one, k=k, value=value: value(one, k))
            found.append(point(way, k, values, single, judged))
    return [*found, *(adaptive_point(judged, k, alpha, single, seed) for k in ks if k > 1)]


def ways_of(
    scorers: Sequence[str], weigh_likelihood: bool, seed: int
) -> dict[str, Callable[[Judged, int], float]]:
    """way -> the accuracy of a question at k."""
    ways: dict[str, Callable[[Judged, int], float]] = {
        "majority": lambda one, k: majority_at_k(one.votes, one.right, k),
        "oracle": lambda one, k: pass_at_k(one.size, sum(one.right), k),
    }
    for name in scorers:
        ways[f"best by {name}"] = by_score(name)
        ways[f"vote weighed by {name}"] = weighted_vote("score", name, seed)
    if weigh_likelihood:
        ways["vote weighed by likelihood"] = weighted_vote("likelihood", "", seed)
    return ways


def smallest(judged: Sequence[Judged]) -> int:
    """How many answers every question has."""
    if not judged:
        raise UsageError("there are no questions.", where="pool")
    size = min(one.size for one in judged)
    if not size:
        raise UsageError("a question has no answers.", where="pool")
    return size


def values_of(judged: Sequence[Judged], value: Callable[[Judged], float]) -> list[float]:
    """A number for each question."""
    return [value(one) for one in judged]


def point(
    way: str, k: int, values: Sequence[float], single: Sequence[float], judged: Sequence[Judged]
) -> Point:
    """A point whose k answers are all drawn."""
    tokens = k * float(np.mean([one.mean_tokens for one in judged]))
    spent = best_of_n_bound(k) if way.startswith("best by") else None
    gain = paired_difference(single, values)
    return Point(way, k, bootstrap_mean(values), gain, float(k), tokens, spent)


def by_score(name: str) -> Callable[[Judged, int], float]:
    """Best of k by a scorer, exact over all subsets.

    An answer without a score is chosen by none, and a subset of such answers gives no right one.
    """

    def value(one: Judged, k: int) -> float:
        scores = [answer.score(name) for answer in one.question.answers]
        proxy = [-np.inf if score is None else score for score in scores]
        worth = [
            float(right and score is not None)
            for right, score in zip(one.right, scores, strict=True)
        ]
        return best_of_n(proxy, worth, k)

    return value


def orders(one: Judged, seed: int) -> np.ndarray:
    """Orders of a question's answers, the same for every way and k: [ORDERS, N]."""
    number = int.from_bytes(one.question.id.encode()[-6:], "big")
    dice = np.random.default_rng([seed, number])
    return np.stack([dice.permutation(one.size) for _ in range(ORDERS)])


def subsets(one: Judged, k: int, seed: int) -> list[tuple[int, ...]]:
    """All subsets of k answers where they are few, else the first k of each order."""
    if comb(one.size, k) <= FEW:
        return list(combinations(range(one.size), k))
    return [tuple(order[:k].tolist()) for order in orders(one, seed)]


def weighted_vote(weigh: str, name: str, seed: int) -> Callable[[Judged, int], float]:
    """The weighted vote of k answers, over subsets of them."""

    def value(one: Judged, k: int) -> float:
        weights = vote_weights(one.question.answers, weigh, name)  # type: ignore[arg-type]
        right = 0.0
        drawn = subsets(one, k, seed)
        for some in drawn:
            totals = totals_of(
                [one.votes[i] for i in some],  # type: ignore[misc]
                [weights[i] for i in some],
            )
            if totals:
                chosen = max(totals, key=lambda vote: totals[vote])
                right += share_right(one, chosen)
        return right / len(drawn)

    return value


def share_right(one: Judged, chosen: Hashable) -> float:
    """How many of the answers with this vote are right: all or none, where votes are answers."""
    same = [right for vote, right in zip(one.votes, one.right, strict=True) if vote == chosen]
    return sum(same) / len(same)


def adaptive_point(
    judged: Sequence[Judged], most: int, alpha: float, single: Sequence[float], seed: int
) -> Point:
    """Votes that end as soon as the leader is sure, or the vote of `most` is settled."""
    values, answers, tokens = list[float](), list[float](), list[float]()
    for one in judged:
        right = drawn = spent = 0.0
        for order in orders(one, seed):
            chosen, count = stopped_vote([one.votes[i] for i in order[:most]], alpha)
            drawn += count
            spent += sum(one.question.answers[i].tokens for i in order[:count])
            right += 0.0 if chosen is None else share_right(one, chosen)
        values.append(right / ORDERS)
        answers.append(drawn / ORDERS)
        tokens.append(spent / ORDERS)
    gain = paired_difference(single, values)
    mean_answers, mean_tokens = float(np.mean(answers)), float(np.mean(tokens))
    return Point("adaptive", most, bootstrap_mean(values), gain, mean_answers, mean_tokens)


def stopped_vote(votes: Sequence[Hashable | None], alpha: float) -> tuple[Hashable | None, int]:
    """The leader when the rule stops, and how many votes it took.

    It stops where the leader is announced at alpha, or cannot lose within the votes that are left:
    then the vote of all is known exactly.
    """
    test = LeaderTest(alpha)
    for count, one in enumerate(votes, start=1):
        test.add(one)
        if test.decided or test.settled(len(votes) - count):
            return test.leader, count
    return test.leader, len(votes)
