"""From verdicts to judgements, labels and rewards: a failure is no tie, and no number."""

import math
from itertools import product

import pytest

from laurel.core.result import Abstain, Failed, Score
from laurel.data.confidence import RANGES
from laurel.judge.judge import Pair, higher, rubric_verdict
from laurel.judge.labels import preference_row, preference_rows
from laurel.judge.options import Criterion
from laurel.judge.verdict import STRAIGHT, SWAPPED, Verdict, of_pair, of_response
from laurel.reward.judged import chance_result, drawn

PAIR = Pair("1", "Say it.", "one", "two")
STATUSES = ("a", "b", "tie", "invalid", "error")


def both(straight, swapped, judge="j", **more):
    """The verdicts of one judge in both orders."""
    return [
        Verdict(judge, straight, STRAIGHT, **more),
        Verdict(judge, swapped, SWAPPED, **more),
    ]


@pytest.mark.parametrize(
    ("straight", "swapped", "status", "soft"),
    [
        ("a", "a", "a", 1.0),
        ("b", "b", "b", 0.0),
        ("tie", "tie", "tie", 0.5),
        ("a", "b", "inconsistent", 0.5),
        ("a", "tie", "inconsistent", 0.75),
        ("a", "invalid", "invalid", None),
        ("error", "invalid", "error", None),
        ("error", "tie", "error", None),
    ],
)
def test_both_orders_make_one_judgement(straight, swapped, status, soft):
    judged = of_pair("1", both(straight, swapped))
    assert (judged.status, judged.soft_label) == (status, soft)


def test_no_failure_becomes_a_tie_a_number_or_a_row():
    """Every combination of verdicts of two judges in both orders."""
    for one, two, three, four in product(STATUSES, repeat=4):
        judged = of_pair("1", both(one, two) + both(three, four, "k"))
        failed = [{"invalid", "error"} & set(pair) for pair in ((one, two), (three, four))]
        rows = preference_row(PAIR, judged, ties=True)
        if all(failed):
            assert judged.status in ("invalid", "error")
            assert (
                judged.soft_label is None
                and rows is None
                and judged.result() == Failed(judged.reason)
            )
        else:
            # what a judge said in one order alone counts for nothing
            whole = [
                pair
                for pair, bad in zip(((one, two), (three, four)), failed, strict=True)
                if not bad
            ]
            chances = [{"a": 1, "tie": 0.5, "b": 0}[word] for pair in whole for word in pair]
            assert judged.soft_label == pytest.approx(sum(chances) / len(chances))


def test_soft_labels_are_averaged_over_orders_and_judges():
    """P(a) .9 and .7, and .5 and .3 of another: (.9 + .7 + .5 + .3) / 4 = .6."""
    verdicts = [
        Verdict("j", "a", STRAIGHT, chance=0.9),
        Verdict("j", "a", SWAPPED, chance=0.7),
        Verdict("k", "tie", STRAIGHT, chance=0.5),
        Verdict("k", "b", SWAPPED, chance=0.3),
    ]
    judged = of_pair("1", verdicts)
    assert judged.soft_label == pytest.approx(0.6)
    assert judged.status == "inconsistent"
    row = preference_row(PAIR, judged)
    assert (row["chosen"], row["rejected"], row["soft_label"]) == ("one", "two", 0.6)


def test_a_panel_decides_by_majority():
    words = [both("a", "a", "j"), both("a", "a", "k"), both("b", "b", "l")]
    judged = of_pair("1", [one for pair in words for one in pair])
    assert judged.status == "a"
    assert judged.soft_label == pytest.approx(2 / 3)


def test_levels_give_margins_as_people_do():
    """better 1, slightly .33; the other way round below 0."""
    verdicts = [
        Verdict("j", "a", STRAIGHT, chance=1.0, level=1),
        Verdict("j", "a", SWAPPED, chance=1.0, level=2),
    ]
    judged = of_pair("1", verdicts)
    assert judged.margin == pytest.approx((1 + 0.33) / 2)
    row = preference_row(PAIR, judged)
    assert row["margin"] == pytest.approx(0.665)
    for name, (_, fits) in RANGES.items():
        assert name not in row or fits(row[name])
    assert of_pair("1", both("b", "b", level=4)).margin == -1.0


def test_rows_keep_conversations_and_count_what_was_left_out():
    pair = Pair("2", [{"role": "user", "content": "Hi"}], "one", "two")
    judged = [of_pair("2", both("b", "b")), of_pair("1", both("a", "b"))]
    rows, count = preference_rows([pair, PAIR], judged)
    assert [row["id"] for row in rows] == ["2"]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "two"}]
    assert count == {"b": 1, "inconsistent": 1, "inconsistent, left out": 1}
    assert len(preference_rows([pair, PAIR], judged, ties=True)[0]) == 2


def criteria(*weights):
    return [Criterion(name=f"c{i}", question="?", weight=w) for i, w in enumerate(weights)]


def scored(value, status="scored"):
    return Verdict("j", status, score=value)


def test_a_rubric_by_hand():
    """Weights 2, 1, -1; yes, no, yes: (2 - 1) / 3. Without the second, which abstains: 1 / 2."""
    kinds = criteria(2, 1, -1)
    whole = rubric_verdict(kinds, [scored(1.0), scored(0.0), scored(1.0)])
    assert whole.score == pytest.approx(1 / 3)
    assert whole.criteria == {"c0": 1.0, "c1": 0.0, "c2": 1.0}
    less = rubric_verdict(kinds, [scored(1.0), scored(None, "abstain"), scored(1.0)])
    assert less.score == pytest.approx(1 / 2)
    assert less.criteria["c1"] is None


@pytest.mark.parametrize("failure", ["invalid", "error"])
def test_a_criterion_that_failed_fails_the_rubric(failure):
    verdicts = [scored(1.0), Verdict("j", failure, reason="cut off")]
    whole = rubric_verdict(criteria(1, 1), verdicts)
    judged = of_response("1", [whole])
    assert whole.status == failure and whole.score is None
    assert isinstance(judged.result(), Failed) and "c1: cut off" in judged.reason


def test_a_rubric_of_which_nothing_applies_abstains():
    verdicts = [scored(None, "abstain"), scored(1.0)]
    judged = of_response("1", [rubric_verdict(criteria(1, -1), verdicts)])
    assert isinstance(judged.result(), Abstain)


def test_scores_compare_and_failures_do_not():
    assert higher(scored(3.0), scored(2.0)).status == "a"
    assert higher(scored(2.0), scored(2.0)).status == "tie"
    assert higher(scored(2.0), Verdict("j", "error", reason="no")).status == "error"
    assert higher(scored(None, "abstain"), scored(2.0)).status == "invalid"


def test_a_comparison_that_failed_is_a_failed_reward():
    assert chance_result([1.0, 0.5], "") == Score(0.75)
    assert chance_result([1.0, None], "why") == Failed("why")
    assert chance_result([], "alone") == Failed("alone")


@pytest.mark.parametrize(("size", "most"), [(2, 0), (5, 0), (6, 2), (8, 4), (7, 99), (3, 1)])
def test_pairs_of_a_group_are_shared_evenly(size, most):
    """Every answer meets others equally often; of all pairs each comes once."""
    pairs = drawn(list(range(size)), most)
    meets = [sum(i in pair for pair in pairs) for i in range(size)]
    assert len(set(pairs)) == len(pairs) and len(set(meets)) == 1
    if not most or most >= size - 1:
        assert len(pairs) == math.comb(size, 2)
    else:
        assert meets[0] in (most, most + 1)
