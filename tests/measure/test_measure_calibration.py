"""Calibration: values by hand, tables that add up, and verdicts that follow the intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laurel.measure.calibration import (
    expected_calibration_error,
    length_direction,
    pair_forecasts,
    pair_hits,
    reliability_table,
    report_pairs,
    share_interval,
)
from laurel.measure.intervals import wilson


def test_calibration_error_by_hand():
    assert expected_calibration_error([0.9] * 4, [1, 1, 1, 0]) == pytest.approx(0.15)
    said, came = [0.9] * 4 + [0.15] * 2, [1, 1, 1, 0, 0, 1]
    assert expected_calibration_error(said, came) == pytest.approx((4 * 0.15 + 2 * 0.35) / 6)


def test_table_by_hand():
    table = reliability_table([0.0, 0.1, 0.100001, 0.95, 1.0], [0, 0, 1, 1, 0.5])
    assert [(round(row.low, 9), round(row.high, 9), row.count) for row in table] == [
        (0, 0.1, 2),
        (0.1, 0.2, 1),
        (0.9, 1.0, 2),
    ]
    assert table[2].confidence == pytest.approx(0.975) and table[2].frequency == wilson(1.5, 2)
    assert "said 0.975" in str(table[2])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=40),
    st.integers(1, 12),
)
def test_bins_hold_everything_once_and_the_error_is_bounded(pairs, bins):
    said, came = zip(*pairs, strict=True)
    table = reliability_table(said, came, bins=bins)
    assert sum(row.count for row in table) == len(pairs)
    assert sum(row.count * row.confidence for row in table) == pytest.approx(sum(said), abs=1e-9)
    error = expected_calibration_error(said, came, bins=bins)
    assert abs(np.mean(said) - np.mean(came)) - 1e-9 <= error <= 1  # never below what one bin shows


def test_a_calibrated_forecaster_is_found_calibrated_and_an_overconfident_one_not():
    rng = np.random.default_rng(0)
    margin = rng.normal(size=20_000) * 2
    margin = np.where(
        rng.random(20_000) < 1 / (1 + np.exp(-margin)), margin, -margin
    )  # chosen by Bradley-Terry on these very scores
    assert expected_calibration_error(*pair_forecasts(margin), low=0.5) < 0.015
    assert expected_calibration_error(*pair_forecasts(3 * margin), low=0.5) > 0.1


def test_pairs_as_forecasts_do_not_depend_on_their_order():
    said, right = pair_forecasts([2.0, -1.0, 0.0])
    assert said == pytest.approx([0.8807971, 0.7310586, 0.5]) and right.tolist() == [1, 0, 0.5]
    assert pair_forecasts([800.0])[0].tolist() == [1.0]
    said_swapped, right_swapped = pair_forecasts([-2.0, 1.0, 0.0])
    assert said_swapped == pytest.approx(said) and (right_swapped == 1 - right).all()


def test_ties_are_worth_half():
    assert pair_hits([3.0, 0.0, -2.0]).tolist() == [1, 0.5, 0]


@pytest.mark.parametrize(
    ("chosen", "rejected", "direction"),
    [([3, 5, 2], [1, 4, 9], 1), ([1, 1], [2, 2], -1), ([2], [2], 1)],
)
def test_length_direction(chosen, rejected, direction):
    assert length_direction(chosen, rejected) == direction


def test_a_scorer_that_only_reads_length_gains_nothing():
    rng = np.random.default_rng(1)
    long, short = rng.integers(1, 99, 400), rng.integers(1, 99, 400)
    report = report_pairs(long * 0.1, short * 0.1, long, short)
    assert report.gain.value == report.gain.low == report.gain.high == 0
    assert report.accuracy == report.length_baseline and report.length_correlation == pytest.approx(
        1
    )
    assert "not told apart from the length-only baseline" in str(report)


def test_report_tells_a_good_scorer_from_length_and_chance():
    rng = np.random.default_rng(2)
    gap = rng.normal(1.5, 1.0, 400)
    lengths = rng.integers(1, 99, (2, 400))
    report = report_pairs(gap, np.zeros(400), lengths[0], lengths[1], direction=-1)
    assert report.accuracy == wilson(float((gap > 0).sum()), 400)
    assert report.length_baseline.value == pytest.approx(
        float(pair_hits(lengths[1] - lengths[0]).mean())
    )
    assert report.gain.value == pytest.approx(report.accuracy.value - report.length_baseline.value)
    assert report.gain.low > 0 and ": above chance" in str(report) and "shorter wins" in str(report)
    assert report.length_correlation == pytest.approx(
        float(np.corrcoef(gap, lengths[0] - lengths[1])[0, 1])
    )


def test_pairs_of_one_prompt_are_not_independent():
    """Four copies of each of 50 pairs: Wilson over 200 would be half as wide; the interval over
    prompts is not.
    """
    right = ([1.0] * 30 + [0.0] * 20) * 4
    prompts = list(range(50)) * 4
    wide, naive = share_interval(right, prompts), share_interval(right)
    assert wide.n == 50 and naive.n == 200
    assert wide.high - wide.low > 1.7 * (naive.high - naive.low)


@pytest.mark.parametrize(
    "call",
    [
        lambda: reliability_table([1.2], [1]),
        lambda: reliability_table([0.4], [1], low=0.5),
        lambda: reliability_table([0.4], [2]),
        lambda: reliability_table([], []),
        lambda: pair_forecasts([float("nan")]),
        lambda: report_pairs([1.0], [0.0], [1, 2], [1, 2]),
        lambda: report_pairs([], [], [], []),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(ValueError):
        call()
