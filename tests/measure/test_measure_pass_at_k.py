"""pass@k and majority@k against brute-force enumeration of every subset."""

from collections import Counter
from itertools import combinations, permutations, product
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laurel.core.errors import UsageError
from laurel.measure.majority import (
    majority,
    majority_at_k,
    mean_majority_at_k,
    plurality,
    win_chances,
)
from laurel.measure.pass_at_k import mean_pass_at_k, pass_at_k


def test_pass_at_k_hand_value():
    """n=5, c=2, k=2: 1 - C(3,2)/C(5,2) = 1 - 3/10."""
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(4, 0, 4) == 0 and pass_at_k(4, 1, 4) == 1


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    right = [i < c for i in range(n)]
    subsets = [any(subset) for subset in combinations(right, k)]
    assert pass_at_k(n, c, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


@given(st.integers(1, 400), st.data())
def test_pass_at_k_limits_and_order(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    value = pass_at_k(n, c, k)
    assert value == pytest.approx(1 - comb(n - c, k) / comb(n, k), abs=1e-9)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert value <= pass_at_k(n, c, min(n, k + 1)) + 1e-12


def test_pass_at_k_keeps_digits_and_does_not_overflow():
    assert pass_at_k(10**6, 1, 1) == pytest.approx(1e-6, rel=1e-12)
    assert pass_at_k(20_000, 10_000, 5_000) == pytest.approx(1.0)


def test_pass_at_k_from_too_few_samples_is_the_users_mistake():
    with pytest.raises(UsageError, match="pass@8 cannot be estimated from 4"):
        pass_at_k(4, 1, 8)
    with pytest.raises(ValueError):
        pass_at_k(4, 5, 1)


def test_mean_pass_at_k():
    interval = mean_pass_at_k([(4, 0), (4, 4), (4, 2)], 1)
    assert (
        interval.value == pytest.approx(0.5)
        and interval.n == 3
        and interval.low <= 0.5 <= interval.high
    )


def test_majority_and_its_ties():
    assert majority(["7", "8", "7"]) == "7"
    assert majority(["b", "a", "a", "b"]) == "b"  # a tie goes to the answer that came first
    assert majority([None, None, "x"]) == "x"  # blank ballots never win
    assert majority([None]) is None and majority([]) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=6), st.data())
def test_win_chances_equal_enumeration_of_every_ordered_subset(answers, data):
    """The rule of `majority`, applied to every ordered choice of k of the n samples."""
    k = data.draw(st.integers(1, len(answers)))
    wins = Counter(majority(chosen) for chosen in permutations(answers, k))
    total = sum(wins.values())
    chances = win_chances(answers, k)
    assert set(chances) == set(answers) - {None}
    for answer, chance in chances.items():
        assert chance == pytest.approx(wins[answer] / total, abs=1e-9)


def test_majority_at_k_limits():
    answers, correct = ["1", "1", "2", "3", None], [True, True, False, False, False]
    assert majority_at_k(answers, correct, 1) == pytest.approx(2 / 5)
    assert majority_at_k(answers, correct, 5) == pytest.approx(1.0)
    assert majority_at_k([None, None], [False, False], 2) == 0
    with pytest.raises(UsageError, match="majority@9"):
        majority_at_k(answers, correct, 9)


def test_majority_at_k_does_not_depend_on_the_names_or_the_order():
    answers, correct = list("aabbbc"), [True, True, False, False, False, False]
    value = majority_at_k(answers, correct, 3)
    assert majority_at_k(answers[::-1], correct[::-1], 3) == pytest.approx(value)
    assert majority_at_k(["x" + a for a in answers], correct, 3) == pytest.approx(value)


def test_plurality_known_values():
    """ALGORITHMS 2.21: voting helps exactly when the mode is right: .6 -> .90 and .45 -> .26 at 41
    votes; .4 of three -> .61.
    """
    assert round(plurality([0.6, 0.4], 41)[0], 2) == 0.90
    assert round(plurality([0.45, 0.55], 41)[0], 2) == 0.26
    assert round(plurality([0.4, 0.35, 0.25], 41)[0], 2) == 0.61
    assert plurality([0.3, 0.7], 1) == pytest.approx([0.3, 0.7])


def test_plurality_equals_enumeration():
    p = {"a": 0.5, "b": 0.2, "c": 0.2, None: 0.1}
    expected: Counter = Counter()
    for drawn in product(p, repeat=4):
        chance = 1.0
        for answer in drawn:
            chance *= p[answer]
        expected[majority(drawn)] += chance
    assert plurality([0.5, 0.2, 0.2], 4) == pytest.approx(
        [expected["a"], expected["b"], expected["c"]]
    )


def test_many_samples_are_fast_and_sum_to_one():
    chances = win_chances([str(i % 37) for i in range(256)], 128)
    assert sum(chances.values()) == pytest.approx(1.0)
    assert mean_majority_at_k(
        [(["a"] * 8, [True] * 8), (["b"] * 8, [False] * 8)], 4
    ).value == pytest.approx(0.5)
