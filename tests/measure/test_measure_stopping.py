"""Stopping rules: a bet that does not grow on average, and errors by exact enumeration."""

from itertools import product
from math import exp

import numpy as np
import pytest
from scipy.integrate import quad

from laurel.measure.stopping import PRIOR, LeaderTest, evidence, is_decided, is_hopeless, log_bet
from laurel.measure.stopping_law import (
    adaptive_consistency,
    anytime,
    in_a_row,
    peeking_test,
    stopping_laws,
)

TWO = [(i / 50, 1 - i / 50) for i in range(51)]
THREE = [(i / 12, j / 12, (12 - i - j) / 12) for i in range(13) for j in range(13 - i)]


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (0, 3), (5, 2), (30, 31)])
def test_a_bet_is_its_integral(a, b):
    def inside(theta):
        return theta ** (PRIOR - 1) * (2 * theta) ** a * (2 * (1 - theta)) ** b

    whole = quad(lambda theta: theta ** (PRIOR - 1), 0.5, 1)[0]
    assert exp(log_bet(a, b)) == pytest.approx(quad(inside, 0.5, 1)[0] / whole, rel=1e-8)


def test_a_bet_on_an_even_chance_keeps_its_mean_and_on_less_it_loses():
    """E over the next of the two draws: theta M(a + 1, b) + (1 - theta) M(a, b + 1)."""
    for a, b in product(range(12), repeat=2):
        now, up, down = exp(log_bet(a, b)), exp(log_bet(a + 1, b)), exp(log_bet(a, b + 1))
        assert (up + down) / 2 == pytest.approx(now, rel=1e-9)
        assert 0.4 * up + 0.6 * down <= now


def test_evidence_does_not_grow_on_average_whoever_comes_next():
    """With a rival that is most likely, over every next draw: the others seen, one never seen, the
    rival itself.
    """
    p = {"x": 0.25, "y": 0.2, "new": 0.2, "rival": 0.35}
    for x, y, rival in product((1, 2, 5, 9), (1, 3), (0, 1, 4)):
        now = evidence([x, y], rival)
        after = (
            p["x"] * evidence([x + 1, y], rival)
            + p["y"] * evidence([x, y + 1], rival)
            + p["new"] * evidence([x, y, 1], rival)
            + p["rival"] * evidence([x, y], rival + 1)
        )
        assert after <= now * (1 + 1e-12)
    assert evidence([], 0) == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_the_error_is_at_most_alpha_on_every_distribution(alpha):
    """All distributions of two and of three answers on a grid, up to 64 draws, exactly."""
    for grid in (TWO, THREE):
        laws = stopping_laws(grid, 64, anytime(alpha))
        assert laws.error.max() <= alpha
        assert np.all(laws.draws <= 64) and np.all((laws.decided >= 0) & (laws.decided <= 1 + 1e-9))


@pytest.mark.parametrize(
    "rule",
    [peeking_test(0.05), adaptive_consistency(0.05), in_a_row(3)],
    ids=lambda rule: rule.__qualname__,
)
def test_rules_that_peek_break_their_alpha(rule):
    assert stopping_laws(TWO, 64, rule).error.max() > 0.1


def test_a_law_by_hand():
    """Two alike end it: p = (.7, .3) gives .49 + .09 after two draws, all within three."""
    laws = stopping_laws([(0.7, 0.3)], 3, lambda counts: max(counts) >= 2)
    assert laws.draws[0] == pytest.approx(2 * 0.58 + 3 * 0.42)
    assert laws.right[0] == pytest.approx(0.7**2 * (3 - 2 * 0.7))
    assert laws.error[0] == pytest.approx(1 - laws.right[0])


def test_a_test_stops_when_it_may():
    test = LeaderTest(0.05)
    for _ in range(8):
        assert not test.decided
        test.add("a")
    assert test.decided and test.leader == "a" and test.drawn == 8
    blank = LeaderTest(0.05)
    for _ in range(20):
        blank.add(None)
    assert not blank.decided and blank.leader is None and not blank.settled(0)


def test_settled_and_hopeless_by_hand():
    test = LeaderTest(0.05)
    for answer in "aaaab":
        test.add(answer)
    assert not test.settled(3) and test.settled(2)
    assert test.hopeless(3) and not test.hopeless(12)
    assert not is_hopeless([], 3, 0.05) and not is_decided([], 0.05)


def test_an_unseen_rival_is_a_rival():
    """Four draws of one answer do not show that nothing else is likelier."""
    assert evidence([4], 0) < 20 <= evidence([8], 0)
