"""Curves from a pool are what fresh draws come to, exactly where they can be; laws of selection."""

from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from laurel.core.result import Score
from laurel.measure.best_of_n import (
    best_of_n_bound,
    best_of_n_law,
    kl,
    rejection_law,
    value_of_one_more,
)
from laurel.search.curves import Judged, curves, ks_of, stopped_vote
from laurel.search.pool import Answer, Question


def pool(votes, right, scores, name="q"):
    answers = tuple(
        Answer(str(vote), 3, -1.0, scores={"s": Score(score)})
        for vote, score in zip(votes, scores, strict=True)
    )
    return Judged(Question(name, {}, answers), votes, right)


def at(points, way, k):
    return next(one for one in points if (one.way, one.k) == (way, k))


def test_ks():
    assert (ks_of(16), ks_of(6), ks_of(1)) == ([1, 2, 4, 8, 16], [1, 2, 4, 6], [1])


def test_every_way_by_listing_all_subsets():
    """Four answers, of which votes a, a, b, c; b is right and has the highest score."""
    votes, right, scores = ["a", "a", "b", "c"], [False, False, True, False], [0.1, 0.2, 0.9, 0.3]
    one = pool(votes, right, scores)
    points = curves([one, one], ["s"], ks=[1, 2, 3, 4])
    for k in (1, 2, 3, 4):
        subsets = list(combinations(range(4), k))
        best = np.mean([right[max(some, key=lambda i: scores[i])] for some in subsets])
        oracle = np.mean([any(right[i] for i in some) for some in subsets])
        assert at(points, "best by s", k).accuracy.value == pytest.approx(best)
        assert at(points, "oracle", k).accuracy.value == pytest.approx(oracle)
        assert at(points, "best by s", k).kl == pytest.approx(best_of_n_bound(k))
        assert at(points, "majority", k).tokens == 3 * k
    assert at(points, "majority", 4).accuracy.value == 0
    assert at(points, "vote weighed by s", 4).accuracy.value == 1  # .9 against .3


def test_an_answer_without_a_score_is_chosen_by_none():
    one = pool(["a", "b"], [True, True], [0.5, 0.5])
    answers = (one.question.answers[0], Answer("b", 3))
    blind = Judged(Question("q", {}, answers), one.votes, one.right)
    points = curves([blind, blind], ["s"], ks=[1, 2])
    assert at(points, "best by s", 1).accuracy.value == pytest.approx(0.5)
    assert at(points, "best by s", 2).accuracy.value == 1


def test_an_adaptive_vote_ends_as_the_whole_vote_does():
    """All sequences of eight votes over three answers: the same leader, in no more draws."""
    fewer = 0
    for votes in product("abc", repeat=8):
        leader, count = stopped_vote(votes, 1e-9)  # never announced: only settled votes end early
        counts = {vote: votes.count(vote) for vote in dict.fromkeys(votes)}
        assert leader == max(counts, key=counts.__getitem__)
        fewer += count < 8
    assert fewer > 0.4 * 3**8


def test_best_of_n_has_its_law_and_stays_below_its_kl():
    """P_n by listing all draws of three; KL below log n - (n - 1) / n."""
    p, scores = np.array([0.1, 0.4, 0.2, 0.3]), [1.0, 0.0, 2.0, 1.0]
    for n in (1, 2, 3, 5):
        law = best_of_n_law(p, scores, n)
        by_hand = np.zeros(4)
        for drawn in product(range(4), repeat=n):
            top = max(scores[i] for i in drawn)
            winners = [i for i in drawn if scores[i] == top]
            for i in winners:
                by_hand[i] += np.prod(p[list(drawn)]) / len(winners)
        assert law == pytest.approx(by_hand, abs=1e-12)
        assert kl(law, p) <= best_of_n_bound(n) + 1e-12
        assert law.sum() == pytest.approx(1.0, abs=1e-12)


def test_rejection_sampling_accepts_its_target():
    p, scores = np.array([0.5, 0.3, 0.2]), [0.0, 1.0, 2.0]
    law, chance = rejection_law(p, scores, beta=0.5, bar=2.0)
    target = p * np.exp(np.array(scores) / 0.5)
    assert law == pytest.approx(target / target.sum(), abs=1e-12)
    assert chance == pytest.approx(target.sum() / np.exp(4), abs=1e-12)


def test_one_more_is_worth_what_it_brings():
    """(3, 1): 2/3. On exponential scores its mean is 1 / (n + 1), what the next draw brings."""
    assert value_of_one_more([3, 1]) == pytest.approx(2 / 3)
    assert value_of_one_more([1.0]) == float("inf")
    dice = np.random.default_rng(0)
    found = [value_of_one_more(dice.exponential(size=9).tolist()) for _ in range(20_000)]
    assert np.mean(found) == pytest.approx(1 / 10, abs=4 * np.std(found) / 20_000**0.5)


def test_pass_at_k_is_the_oracle():
    one = pool(["a"] * 6, [True, False, False, False, False, True], [0.0] * 6)
    points = curves([one, one], [], ks=[2])
    assert at(points, "oracle", 2).accuracy.value == pytest.approx(1 - comb(4, 2) / comb(6, 2))
