"""Intervals against published values, coverage and invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laurel.measure.intervals import (
    bootstrap_mean,
    cluster_bootstrap_mean,
    paired_difference,
    share_difference,
    unpaired_difference,
    wilson,
)


def test_wilson_hand_value():
    """8 of 10, by hand: p=.8, z=1.95996, z^2/n=.384146; (.8+.192073 -+
    1.95996*sqrt(.016+.0096036))/1.384146.
    """
    interval = wilson(8, 10)
    assert (round(interval.low, 4), round(interval.high, 4), interval.value, interval.n) == (
        0.4902,
        0.9433,
        0.8,
        10,
    )


@given(st.integers(1, 400), st.data())
def test_wilson_stays_inside_and_mirrors(n, data):
    c = data.draw(st.integers(0, n))
    right, wrong = wilson(c, n), wilson(n - c, n)
    assert 0 <= right.low <= right.value <= right.high <= 1
    assert right.low < right.high
    assert right.low == pytest.approx(1 - wrong.high, abs=1e-12)


def test_wilson_refuses_nonsense():
    for c, n in [(1, 0), (3, 2), (-1, 5)]:
        with pytest.raises(ValueError):
            wilson(c, n)
    with pytest.raises(ValueError):
        wilson(1, 2, level=1.0)


def test_bootstrap_of_a_share_is_about_the_textbook_interval():
    """60 of 100: the bootstrap interval is about (.50, .69)."""
    interval = bootstrap_mean([1.0] * 60 + [0.0] * 40)
    assert interval.value == pytest.approx(0.6)
    assert interval.low == pytest.approx(0.50, abs=0.015) and interval.high == pytest.approx(
        0.69, abs=0.015
    )


def test_bootstrap_is_seeded_and_moves_with_the_data():
    values = np.random.default_rng(1).normal(size=50)
    one, two = bootstrap_mean(values, seed=3), bootstrap_mean(values, seed=3)
    assert one == two and bootstrap_mean(values, seed=4) != one
    moved = bootstrap_mean(2 * values + 1, seed=3)
    assert moved.low == pytest.approx(2 * one.low + 1) and moved.high == pytest.approx(
        2 * one.high + 1
    )


def test_clusters_widen_the_interval_as_much_as_they_must():
    """20 prompts whose 8 samples all agree carry 20 units of information, not 160: the interval is
    that of 20 values.
    """
    per_prompt = np.random.default_rng(0).normal(size=20)
    values, clusters = np.repeat(per_prompt, 8), np.repeat(np.arange(20), 8)
    clustered = cluster_bootstrap_mean(values, clusters)
    assert clustered.n == 20
    assert clustered.low == pytest.approx(bootstrap_mean(per_prompt).low)
    assert clustered.high - clustered.low > 2 * (
        bootstrap_mean(values).high - bootstrap_mean(values).low
    )


def test_cluster_mean_is_the_plain_mean_of_rows():
    """Ragged clusters: sum over count, never a mean of means: (1+1+1+5)/4 = 2, not (1+5)/2 = 3."""
    assert cluster_bootstrap_mean([1, 1, 1, 5], ["a", "a", "a", "b"]).value == 2
    assert cluster_bootstrap_mean([1, 5, 1, 1], ["a", "b", "a", "a"]) == cluster_bootstrap_mean(
        [1, 1, 1, 5], ["a", "a", "a", "b"]
    )


def test_coverage_is_near_the_level():
    rng = np.random.default_rng(0)
    inside = [
        (lambda i: i.low <= 0 <= i.high)(bootstrap_mean(rng.normal(size=40), draws=400, seed=trial))
        for trial in range(300)
    ]
    assert 0.89 <= np.mean(inside) <= 0.99


def test_differences():
    before, after = [0.0, 10.0, 20.0, 30.0], [1.0, 11.0, 21.0, 31.0]
    paired = paired_difference(before, after)
    assert (paired.value, paired.low, paired.high) == (1, 1, 1)
    unpaired = unpaired_difference(before, after)
    assert unpaired.value == 1 and unpaired.low < -5 and unpaired.high > 5
    same = paired_difference(before, after, ["a", "a", "b", "b"])
    assert same.n == 2 and same.value == 1
    with pytest.raises(ValueError):
        paired_difference([1], [1, 2])


def test_empty_and_not_finite_are_refused():
    for values in ([], [1.0, float("nan")], [float("inf")]):
        with pytest.raises(ValueError):
            bootstrap_mean(values)


def test_share_difference_published_value():
    """Newcombe 1998, table II: 56/70 - 48/80 = .2 with (.0524, .3339); swapping the two
    mirrors it.
    """
    there = share_difference(48, 80, 56, 70)
    assert (round(there.value, 4), round(there.low, 4), round(there.high, 4)) == (
        0.2,
        0.0524,
        0.3339,
    )
    back = share_difference(56, 70, 48, 80)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
