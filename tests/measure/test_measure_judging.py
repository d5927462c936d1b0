"""Judges: the pull of the first slot on real verdicts, AlpacaEval's metrics by hand, exact tests,
PPI's coverage, pay.
"""

import csv
import json
from collections import Counter

import numpy as np
import pytest

from laurel.measure.intervals import wilson
from laurel.measure.judging import (
    hourly,
    judge_metrics,
    leave_one_out,
    mcnemar_exact,
    position_bias,
    ppi,
    preference,
    sign_test,
    slot_bias,
    votes_needed,
)

FLIP = {"a": "b", "b": "a", "tie": "tie", None: None}


def test_position_bias_by_hand():
    """Same: aa, bb, tie tie. Differing: ab twice (first slot both times), ba once (second), a with
    tie. One invalid pair.
    """
    straight = ["a", "b", "tie", "a", "a", "b", "a", None]
    swapped = ["a", "b", "tie", "b", "b", "a", "tie", "a"]
    found = position_bias(straight, swapped)
    assert (found.pairs, found.invalid, found.consistency.value) == (7, 1, pytest.approx(3 / 7))
    assert (found.first.share.value, found.first.share.n) == (pytest.approx(7 / 11), 11)
    assert (found.inconsistent.share.value, found.inconsistent.share.n, found.inconsistent.p) == (
        pytest.approx(2 / 3),
        3,
        pytest.approx(1),
    )


def test_swapping_the_names_of_the_responses_changes_nothing():
    straight, swapped = ["a", "b", "tie", "a", "a", "b"], ["a", "a", "tie", "b", "b", "tie"]
    renamed = position_bias([FLIP[x] for x in swapped], [FLIP[x] for x in straight])
    assert renamed == position_bias(straight, swapped)
    mirrored = position_bias(swapped, straight)
    assert mirrored.first.share.value == pytest.approx(
        1 - position_bias(straight, swapped).first.share.value
    )


def test_nothing_decided_is_none():
    found = position_bias([None, "tie"], ["a", "tie"])
    assert found.first is None and found.inconsistent is None and found.consistency.value == 1
    assert position_bias([None], ["a"]).consistency is None and slot_bias(0, 0) is None


def llmbar(path):
    rows = json.loads(path.read_text())
    kinds = {"1": "a", "2": "b"}
    both = [
        [kinds.get(row["results"][0][f"swap = {swap}"]["winner"]) for row in rows]
        for swap in (False, True)
    ]
    gold = ["ab"[row["label"] - 1] for row in rows]
    accuracy = sum(
        verdict == right for verdicts in both for verdict, right in zip(verdicts, gold, strict=True)
    ) / (2 * len(gold))
    return position_bias(*both), accuracy


@pytest.mark.parametrize(
    ("judge", "consistency", "accuracy", "first"),
    [
        ("GPT-4", 0.930, 0.925, 0.525),
        ("ChatGPT", 0.620, 0.730, 0.670),
        ("PaLM2", 0.818, 0.800, 0.571),
        ("LLaMA2", 0.670, 0.755, 0.595),
        ("Falcon", 0.140, 0.570, 0.930),
    ],
)
def test_llmbar_natural(shared, judge, consistency, accuracy, first):
    found, right = llmbar(shared(f"data/llmbar/Natural/swap_{judge}.json"))
    assert found.pairs + found.invalid == 100 and found.invalid == (judge == "PaLM2")
    assert (found.consistency.value, right, found.first.share.value) == pytest.approx(
        (consistency, accuracy, first), abs=5e-4
    )


def test_llmbar_adversarial_is_worse_than_chance(shared):
    found, right = llmbar(shared("data/llmbar/Adversarial_Neighbor/swap_ChatGPT.json"))
    assert right == pytest.approx(0.231, abs=5e-4) and found.inconsistent.p < 1e-12


@pytest.mark.parametrize(
    ("name", "share", "p"),
    [("gpt3-crowd", 0.6951, 6e-68), ("gpt4-crowd", 0.4549, 4e-5), ("crowd", 0.5332, 1e-6)],
)
def test_llmfao_left_shares(shared, name, share, p):
    count = Counter(
        row["winner"]
        for row in csv.DictReader(shared(f"data/llmfao/{name}-comparisons.csv").open())
    )
    found = slot_bias(count["left"], count["right"])
    assert found.share.value == pytest.approx(share, abs=5.1e-5) and found.p == pytest.approx(
        p, rel=0.15
    )


def test_mtbench_inconsistent_verdicts(shared):
    winners = [
        json.loads(line)["winner"]
        for line in shared("data/mtbench/gpt4_pair.jsonl").read_text().splitlines()
    ]
    assert (winners.count("tie (inconsistent)"), len(winners)) == (380, 2400)


def test_leave_one_out_by_hand():
    """aab: a v {a, b} 1/2, again 1/2, b v {a, a} 0: 1/3. aa: 1. A single vote says nothing. Mean of
    items 2/3.
    """
    assert leave_one_out(["aab", "aa", "b"]) == pytest.approx(2 / 3)
    assert leave_one_out(["bba", "bb", "a"]) == pytest.approx(2 / 3)
    assert leave_one_out(["a", "b"]) is None


def test_judge_metrics_by_hand():
    """Item 1: judge aab v people aaa: agreement 2/3, majorities equal. Item 2: judge bbb v people
    aab: agreement with {a, b} twice 1/2,
    with {a, a} 0: 1/3, majorities differ. Variance 1 - (1/3 + 1)/2."""
    found = judge_metrics(["aab", "bbb"], ["aaa", "aab"])
    assert (found.agreement, found.bias, found.variance, found.n) == (
        pytest.approx(0.5),
        pytest.approx(0.5),
        pytest.approx(1 / 3),
        2,
    )


def test_people_judged_by_themselves_have_no_bias():
    """The humans row of AlpacaEval: bias 0, and variance 1 - agreement."""
    people = np.random.default_rng(0).choice(["a", "b"], (200, 4), p=[0.7, 0.3]).tolist()
    odd = [row for row in people if row.count("a") != 2]
    found = judge_metrics(odd, odd)
    assert found.bias == pytest.approx(0) and found.variance == pytest.approx(
        1 - leave_one_out(odd)
    )


def test_judge_metrics_undefined():
    single = judge_metrics(["a"], ["ab"])
    assert single.variance is None and single.reason and single.bias == pytest.approx(0.5)
    assert judge_metrics(["a"], ["a"]).agreement is None


def test_preference_for_longer():
    """Of five, one tie and one of equal length say nothing; the longer won 2 of 3."""
    found = preference(["a", "b", "tie", "a", "b"], [9, 3, 4, 5, 8], [2, 7, 8, 5, 3])
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)
    assert preference(["b", "a", "tie", "b", "a"], [2, 7, 8, 5, 3], [9, 3, 4, 5, 8]) == found
    assert preference(["a"], [1], [1]) is None


def test_exact_tests():
    assert sign_test(15, 20) == pytest.approx(0.04139, abs=5e-6) and sign_test(5, 20) == sign_test(
        15, 20
    )
    assert mcnemar_exact(10, 2) == pytest.approx(0.03857, abs=5e-6) and mcnemar_exact(
        2, 10
    ) == mcnemar_exact(10, 2)
    assert sign_test(10, 20) == 1 and mcnemar_exact(0, 0) is None


def test_votes_needed():
    assert votes_needed(0.55) == 783 == votes_needed(0.45)
    assert votes_needed(0.6) < 250 < 783 < votes_needed(0.55, power=0.9)


def test_that_many_votes_have_that_power():
    rng = np.random.default_rng(0)
    wins = rng.binomial(783, 0.55, 4000)
    z = (wins / 783 - 0.5) / np.sqrt(0.25 / 783)
    assert np.mean(np.abs(z) > 1.959964) == pytest.approx(0.8, abs=0.03)


def test_ppi_by_hand():
    """mean f of the rest .6, mean of y - f .25; var f = .24 * 5/4 / 5, var (y - f) = 1/4 / 4."""
    found = ppi([1, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 0, 0], weight=1)
    assert found.estimate.value == pytest.approx(0.85) and found.human.value == 0.75
    assert found.estimate.high - 0.85 == pytest.approx(1.959964 * np.sqrt(0.3 / 5 + 0.25 / 4))
    assert ppi([1, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 0, 0], weight=0).estimate == found.human


def test_ppi_scale_of_the_judge_does_not_matter():
    """lambda adapts to the judge's scale: f and (f + 3) / .8 say the same, while lambda stays
    inside [0, 1].
    """
    rng = np.random.default_rng(1)
    f = rng.random(2000)
    y = (rng.random(200) < f[:200] * 0.6 + 0.1) * 1.0
    one, two = ppi(y, f[:200], f[200:]), ppi(y, (f[:200] + 3) / 0.8, (f[200:] + 3) / 0.8)
    assert (
        0 < one.weight < 1
        and two.weight == pytest.approx(0.8 * one.weight)
        and two.estimate.value == pytest.approx(one.estimate.value)
    )


def test_ppi_covers_and_is_narrower_than_people_alone():
    """A judge right in 90 % of cases but for one side: plain use of it is wrong, PPI's interval
    holds the truth.
    """
    rng = np.random.default_rng(2)
    inside, width, alone, useless = 0, [], [], []
    for _ in range(400):
        y = (rng.random(2100) < 0.55) * 1.0
        f = np.where(rng.random(2100) < 0.1, 1.0, y)
        found = ppi(y[:100], f[:100], f[100:])
        inside += found.estimate.low <= 0.55 <= found.estimate.high
        width.append(found.estimate.high - found.estimate.low)
        alone.append(found.human.high - found.human.low)
        useless.append(ppi(y[:100], rng.random(100), rng.random(2000)).weight)
    assert 0.91 <= inside / 400 <= 0.98
    assert np.mean(width) < 0.6 * np.mean(alone)
    assert np.mean(useless) < 0.2


def test_ppi_of_few_labels_holds_what_it_says():
    """1,000 studies of each judge: biased and informative, and one that knows nothing.

    The table of designs is printed by `laurel_worlds.experiments.prediction_powered`.
    """
    rng = np.random.default_rng(5)
    for labels, truth, informed in ((100, 0.65, True), (50, 0.8, False), (100, 0.1, False)):
        inside, width, alone = 0, 0.0, 0.0
        for _ in range(1000):
            y = (rng.random(labels + 1000) < truth) * 1.0
            f = (rng.random(len(y)) < np.where(y == 1, 0.9, 0.3 if informed else 0.9)) * 1.0
            found = ppi(y[:labels], f[:labels], f[labels:])
            inside += found.estimate.low <= truth <= found.estimate.high
            width += found.estimate.high - found.estimate.low
            alone += found.human.high - found.human.low
        assert 0.93 <= inside / 1000 <= 0.975, (labels, truth)
        assert width < (0.9 if informed else 1.05) * alone, (labels, truth)


def test_ppi_of_a_judge_who_is_nearly_always_right():
    """Two labels in a hundred are wrong: the normal interval would hold the truth in two of three
    studies of 50 labels.
    """
    rng = np.random.default_rng(6)
    inside = 0
    for _ in range(300):
        y = (rng.random(3050) < 0.8) * 1.0
        f = np.where(rng.random(3050) < 0.1, 1.0, y)
        found = ppi(y[:50], f[:50], f[50:])
        inside += found.estimate.low <= 0.8 <= found.estimate.high
        assert 0 <= found.estimate.low <= found.estimate.value <= found.estimate.high <= 1
    assert inside / 300 >= 0.93


def test_ppi_of_labels_that_are_no_shares():
    """Scores have Student's t; a judge who always says the same leaves the labels alone."""
    found = ppi([3.0, 5.0, 4.0], [1.0, 1.0, 1.0], [1.0, 1.0])
    assert found.weight == 0 and found.estimate == found.human
    assert found.human.high - 4 == pytest.approx(4.302653 / np.sqrt(3))
    assert ppi([0, 1, 1, 1], [1] * 4, [1] * 9).human == wilson(3, 4)


def test_pay_per_hour():
    assert hourly(300 / 1000, [36.8]).median == pytest.approx(29.35, abs=5e-3)
    found = hourly(0.5, [100] * 8 + [600] * 2)
    assert found.median == pytest.approx(18) and found.slowest == pytest.approx(3) and found.n == 10
    assert hourly([0.5, 1.0], [100, 200]).median == pytest.approx(18)


@pytest.mark.parametrize(
    "call",
    [
        lambda: position_bias(["left"], ["a"]),
        lambda: position_bias(["a"], []),
        lambda: slot_bias(-1, 2),
        lambda: sign_test(3, 2),
        lambda: mcnemar_exact(-1, 2),
        lambda: votes_needed(0.5),
        lambda: ppi([1], [1], [1]),
        lambda: ppi([1, 0], [1], [1]),
        lambda: ppi([1, 0], [1, 0], []),
        lambda: ppi([1, 0], [1, 0], [1], weight=float("nan")),
        lambda: hourly(1.0, [0]),
        lambda: hourly(1.0, []),
        lambda: hourly([1.0], [5, 6]),
        lambda: judge_metrics(["a"], []),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(ValueError):
        call()
