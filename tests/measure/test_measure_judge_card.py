"""The report card of a judge: by hand, on judges whose habits are known, and length control on a
simulation whose truth is known.
"""

import numpy as np
import pytest
from scipy.special import expit

from laurel.measure.judge_behaviour import flips, identical_even, self_preference
from laurel.measure.judge_card import card
from laurel.measure.judge_records import (
    JudgeAnswer,
    Judged,
    JudgedItem,
    PersonVote,
    as_labels,
    final_status,
    final_statuses,
    majority,
)
from laurel.measure.length_control import length_controlled


def judged(statuses, *, votes=(), items=None, name="J", **more):
    """A judge's answers as {item: (status with a first, status with b first)}."""
    answers = [
        JudgeAnswer(item, status, order)
        for item, both in statuses.items()
        for status, order in zip(both, ((0, 1), (1, 0)), strict=True)
    ]
    known = items or {item: JudgedItem(item) for item in statuses}
    return Judged("x", known, {name: answers}, [PersonVote(*vote) for vote in votes], **more)


def test_last_words():
    assert final_status(["a", "a", "error"]) == "a"
    assert final_status(["a", "b"]) == "inconsistent" == final_status(["a", "tie"])
    assert final_status(["error", "invalid"]) == "invalid" and final_status(["error"]) == "error"
    words = final_statuses(
        [JudgeAnswer("x", "a"), JudgeAnswer("x", "b"), JudgeAnswer("y", "error")]
    )
    assert as_labels(words) == {"x": "tie"} and as_labels(words, inconsistent=None) == {}
    assert majority(["a", "a", "b"]) == "a" and majority(["a", "b"]) is None


def test_what_is_no_status_or_vote_is_refused():
    with pytest.raises(ValueError, match="status"):
        JudgeAnswer("x", "A")
    with pytest.raises(ValueError, match="vote"):
        PersonVote("x", "w", "inconsistent")
    with pytest.raises(ValueError, match="unknown items"):
        Judged("x", {}, {"J": [JudgeAnswer("x", "a")]})


def test_a_card_by_hand():
    """Four items with gold a: both orders right; first slot both times; unreadable once; no answer.

    Right: aa, a of ab, a of the third: 4 of 5 valid, and of 8 asked. Consistent: 1 of 2 pairs.
    First slot: 1 + 2 + 1 wins of 2 + 2 + 1 decided.
    """
    statuses = {
        "1": ("a", "a"),
        "2": ("a", "b"),
        "3": ("a", "invalid"),
        "4": ("error", "error"),
    }
    items = {name: JudgedItem(name, gold="a", lengths=(2, 1)) for name in statuses}
    found = card(judged(statuses, items=items)).judges[0]
    assert found.answers == {"a": 4, "b": 1, "invalid": 1, "error": 2}
    assert found.items == {"a": 2, "inconsistent": 1, "error": 1}
    assert (found.parse.value, found.parse.n) == (pytest.approx(5 / 8), 8)
    assert (found.consistency.value, found.consistency.n) == (0.5, 2)
    assert (found.first_slot.value, found.first_slot.n) == (pytest.approx(4 / 5), 5)
    assert (found.accuracy.value, found.accuracy_asked.value) == (pytest.approx(0.8), 0.5)
    assert (found.swap_flips.value, found.swap_flips.n) == (0.5, 2)
    assert (found.longer.value, found.longer.n) == (1, 2)  # the tie of item 2 says nothing
    for name in ("repeat_flips", "identical", "people", "kappa", "rho", "self_preference"):
        figure = getattr(found, name)
        assert figure.value is None and figure.reason, name
    assert found.cost is None and found.tokens_in is None


def test_failures_are_no_votes():
    """A judge that fails on every item but one agrees with people on that one, and on nothing."""
    statuses = {str(k): ("error", "invalid") for k in range(9)} | {"9": ("b", "b")}
    votes = [(str(k), w, "tie" if k < 9 else "b") for k in range(10) for w in "xy"]
    found = card(judged(statuses, votes=votes))
    assert (found.judges[0].people.value, found.judges[0].people.n) == (1, 2)
    assert (found.people.agreement.value, found.people.agreement.n) == (1, 10)
    assert found.judges[0].win_rates == {}


def test_repeats_beside_swaps():
    """Three times in one order a, a, b: 2 of 3 pairs differ. Swapped b: differs from 2 of 3."""
    answers = [JudgeAnswer("x", s, (0, 1), k) for k, s in enumerate("aab")]
    answers.append(JudgeAnswer("x", "b", (1, 0)))
    one = Judged("x", {"x": JudgedItem("x")}, {"J": answers})
    assert flips(one, answers, swapped=False).value == pytest.approx(2 / 3)
    assert flips(one, answers, swapped=True).value == pytest.approx(2 / 3)
    made = card(one).judges[0]
    assert made.items == {"inconsistent": 1} and made.consistency.n == 1
    same = [*answers[:1], JudgeAnswer("x", "b", (0, 1), 1), JudgeAnswer("x", "a", (1, 0))]
    made = card(Judged("x", one.items, {"J": same})).judges[0]
    assert made.items == {"a": 1} and made.consistency.value == 1  # what was asked again is apart


def test_identical_responses_must_tie():
    items = {"x": JudgedItem("x", identical=True), "y": JudgedItem("y")}
    answers = [
        JudgeAnswer("x", "tie"),
        JudgeAnswer("x", "a", chance=0.52),
        JudgeAnswer("x", "a", chance=0.8),
        JudgeAnswer("x", "b"),
        JudgeAnswer("x", "error"),
        JudgeAnswer("y", "a"),
    ]
    found = identical_even(Judged("x", items, {"J": answers}), answers)
    assert (found.value, found.n) == (0.5, 4)


def test_self_preference_is_what_people_do_not_share():
    """The judge prefers its own maker in 3 of 4, people in 1 of 4: half a win more; a pair of two
    of its own, and one of none, say nothing.
    """
    ours, theirs = ("us", "them"), ("them", "us")
    families = {"1": ours, "2": ours, "3": theirs, "4": theirs, "5": ("us", "us"), "6": ("", "")}
    items = {k: JudgedItem(k, families=v) for k, v in families.items()}
    votes = [("1", "w", "a"), ("2", "w", "b"), ("3", "w", "a"), ("4", "w", "a"), ("5", "w", "b")]
    words = {"1": "a", "2": "a", "3": "b", "4": "a", "5": "a", "6": "b"}
    one = judged({k: (v, v) for k, v in words.items()}, votes=votes, items=items)
    assert self_preference(one, "J", words).value is None
    known = judged(
        {k: (v, v) for k, v in words.items()}, votes=votes, items=items, families={"J": "us"}
    )
    found = self_preference(known, "J", words)
    assert (found.value, found.n) == (pytest.approx(0.5), 4)


def test_inconsistent_is_told_apart_and_counted_as_a_tie():
    answers = [JudgeAnswer(str(k), "inconsistent" if k < 3 else "a") for k in range(10)]
    items = {str(k): JudgedItem(str(k)) for k in range(10)}
    votes = [PersonVote(str(k), "w", "tie" if k < 3 else "a") for k in range(10)]
    found = card(Judged("x", items, {"J": answers}, votes)).judges[0]
    assert found.items == {"inconsistent": 3, "a": 7}
    assert (found.consistency.value, found.people.value) == (pytest.approx(0.7), 1)
    assert found.first_slot.value is None


def test_judges_beside_each_other():
    """Right alone: the first on 3 items, the second on 1; exact McNemar p = .625."""
    gold = {str(k): JudgedItem(str(k), gold="a") for k in range(6)}
    one = [JudgeAnswer(str(k), "a" if k < 4 else "b") for k in range(6)]
    two = [JudgeAnswer(str(k), "a" if k in (0, 5) else "b") for k in range(6)]
    (pair,) = card(Judged("x", gold, {"one": one, "two": two})).pairs
    assert (pair.only_first, pair.only_second, pair.p) == (3, 1, pytest.approx(0.625))
    assert pair.agreement.value == pytest.approx(2 / 6)


def test_length_control_finds_the_truth():
    """One system against a baseline, better by .4 logits and longer by one deviation of the gap.

    The judge likes length with 1.2 logits a tanh unit. Truth at equal lengths: sigmoid(.4) = .5987.
    """
    rng, inside, plain, rates = np.random.default_rng(0), 0, [], []
    for _ in range(150):
        gap = 40 + 40 * rng.standard_normal(400)
        chance = expit(0.4 + 1.2 * np.tanh(gap / gap.std(ddof=1)))
        won = (rng.random(400) < chance) * 1.0
        found = length_controlled(["m"] * 400, ["base"] * 400, won, gap, range(400))
        rate = found.rates["m"]
        inside += rate.low <= expit(0.4) <= rate.high
        rates.append(rate.value)
        plain.append(won.mean())
    assert 0.90 <= inside / 150 <= 0.99
    assert np.mean(rates) == pytest.approx(expit(0.4), abs=0.01)
    assert np.mean(plain) > expit(0.4) + 0.1
    assert found.rates["base"].value == pytest.approx(1 - found.rates["m"].value)


def test_length_control_of_several_systems():
    """Three systems that meet each other; the longest wins most but is not the best."""
    rng = np.random.default_rng(1)
    ability, lean = np.array([0.6, 0.0, -0.6]), np.array([-100.0, 0.0, 100.0])
    i = rng.integers(0, 3, 6000)
    j = (i + rng.integers(1, 3, 6000)) % 3
    gap = lean[i] - lean[j] + 60 * rng.standard_normal(6000)
    scaled = np.tanh(gap / gap.std(ddof=1))
    won = (rng.random(6000) < expit(ability[i] - ability[j] + 1.5 * scaled)) * 1.0
    names = np.array(["best", "middle", "longest"])
    found = length_controlled(names[i], names[j], won, gap, range(6000))
    assert found.slope.low <= 1.5 <= found.slope.high
    met = (i == 0) | (j == 0)
    truth = expit(0.6 - ability[np.where(i[met] == 0, j[met], i[met])]).mean()
    assert found.rates["best"].low <= truth <= found.rates["best"].high
    shares = {n: np.mean(np.r_[won[names[i] == n], 1 - won[names[j] == n]]) for n in names}
    assert shares["longest"] > shares["best"] and found.rates["best"].value > 0.6


@pytest.mark.parametrize(
    ("won", "gap", "reason"),
    [
        ([1, 1, 1, 1], [1, 2, -1, -2], "no finite estimate"),
        ([1, 0, 1, 0], [3, 3, 3, 3], "never differ"),
        ([1, 0, 1, 0], [1, -1, 1, -1], "no finite estimate"),
        ([1, 0], [1, 2], "fewer than three"),
    ],
)
def test_length_control_says_why_not(won, gap, reason):
    n = len(won)
    found = length_controlled(["m"] * n, ["b"] * n, won, gap, range(n))
    assert found.rates["m"].value is None and reason in found.rates["m"].reason


def test_win_rates_from_few_labels():
    """A judge who likes x too much: its own rate misses the truth, the corrected one holds it."""
    rng = np.random.default_rng(3)
    items, answers, votes = {}, [], []
    for k in range(1500):
        name, truth = str(k), rng.random() < 0.5
        items[name] = JudgedItem(name, models=("x", "y"), lengths=(1 + k % 3, 2))
        liked = truth or rng.random() < 0.3
        answers.append(JudgeAnswer(name, "a" if liked else "b"))
        votes.append(PersonVote(name, "w", "a" if truth else "b"))
    found = card(Judged("x", items, {"J": answers}, votes), labels=150)
    rate = found.judges[0].win_rates["x"]
    truth = rate.everybody.value
    assert found.labels == 150 and rate.people.n == 150
    assert rate.plain.low > truth
    assert rate.corrected.low <= truth <= rate.corrected.high
    width = rate.corrected.high - rate.corrected.low
    assert width < 0.9 * (rate.people.high - rate.people.low)
    whole = card(Judged("x", items, {"J": answers}, votes)).judges[0].win_rates["x"]
    assert whole.corrected.value is None and "people rated every item" in whole.corrected.reason
