"""Rounds of an adaptive choice: as few as can be, and no answer more than one at a time takes."""

import random

import pytest

from laurel.core.errors import UsageError
from laurel.core.sample import Completion
from laurel.measure.stopping import LeaderTest
from laurel.reward.mixture import load_rewards
from laurel.search.served import FIRST, PlanChooser, ServedPlan, soonest


def completion(logp=-1.0):
    return Completion((5,), (logp,), "eos")


def one_at_a_time(votes, most, alpha):
    """The answers that are drawn if the rule is asked after each."""
    test = LeaderTest(alpha)
    for drawn, one in enumerate(votes[:most], start=1):
        test.add(one or None)
        if test.decided or test.settled(most - drawn):
            return drawn
    return most


@pytest.mark.parametrize("most", [2, 5, 8, 16, 40])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
def test_rounds_draw_what_one_at_a_time_draws(most, alpha):
    """Of many distributions, blank ballots and ties among them."""
    chance = random.Random(most)
    chooser = PlanChooser(ServedPlan(adaptive=True, alpha=alpha))
    saved = 0
    for _ in range(150):
        weights = [chance.random() ** chance.choice((1, 4)) for _ in range(chance.randrange(1, 6))]
        names = ["", "a", "b", "c", "d", "e"][: len(weights)]
        votes = chance.choices(names, weights, k=most)
        selection = chooser.begin("vote", most, "")
        drawn, wanted, rounds = 0, selection.add([], []), 0
        while wanted:
            texts = votes[drawn : drawn + wanted]
            drawn, rounds = drawn + wanted, rounds + 1
            wanted = selection.add(texts, [completion()] * len(texts))
        assert drawn == one_at_a_time(votes, most, alpha)
        saved += drawn - rounds
    assert most == 2 or saved > 0


def test_the_shortest_way_to_an_end_by_hand():
    """3 of 5 settle a vote; with 4 to 3 and 5 left the leader needs 3 more for none to pass it."""
    assert soonest([], 5, 0.05) == 3
    assert soonest([4, 3], 5, 0.05) == 3


def test_an_adaptive_best_stops_by_what_one_more_is_worth():
    """Equal scores: nothing is expected of more; a wide spread: all are drawn, in few rounds."""
    plan = ServedPlan(adaptive=True, worth=0.01)
    for spread, stopped, drawn in ((0.0, "not worth more", FIRST), (9.0, "all drawn", 20)):
        selection = PlanChooser(plan).begin("best_of", 20, "")
        wanted, found, rounds = selection.add([], []), 0, 0
        while wanted:
            some = [completion(-1.0 - spread * 2.0 ** (found + i)) for i in range(wanted)]
            found, rounds = found + wanted, rounds + 1
            wanted = selection.add(["a"] * len(some), some)
        chosen = selection.choose()
        assert (found, chosen.details["stopped"]) == (drawn, stopped)
        assert chosen.place == 0 and rounds <= 10


def test_a_judge_of_pairs_sees_all_answers_at_once(tmp_path):
    """It scores an answer against the others: no rounds, and no adaptive plan."""
    judge = tmp_path / "judge.yaml"
    judge.write_text("url: http://127.0.0.1:9\nmodel: j\n")
    plan = {"scorers": [f"judge:{judge}"]}
    assert PlanChooser(ServedPlan(**plan)).begin("best_of", 9, "").add([], []) == 9
    with pytest.raises(UsageError, match="against the others"):
        PlanChooser(ServedPlan(**plan, adaptive=True))


def test_votes_without_a_weight_are_an_error_and_unreadable_ones_are_not():
    """Weighed by a scorer that fails on all, no vote counts; where none is read, nothing failed."""

    def broken(completions, **columns):
        raise ValueError("down")

    chooser = PlanChooser(ServedPlan(kind="number"))
    chooser.plan = chooser.plan.model_copy(update={"weigh": "score"})
    chooser.scorers = load_rewards([broken], None, [])
    for texts, error in ((["3", "4"], "`broken` failed on every answer"), (["x", ""], "")):
        selection = chooser.begin("vote", 2, "")
        assert selection.add(texts, [completion()] * 2) == 0
        chosen = selection.choose()
        assert chosen.place is None and chosen.error.startswith(error)
        assert bool(chosen.error) == bool(error) and ".py" not in chosen.error
        assert chosen.details["reason"]
