"""What a further person would say: by hand, turned round, never against a majority, and scored on
votes that were held out.
"""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laurel.measure.preference_shares import held_out, preference_shares
from laurel_feedback.statistics.ballots import file_polls


def world(seed, spread, guess, *, items=400, each=5):
    """Rows of votes of people who differ honestly, p ~ Beta(spread, spread), and guess with the
    chances `guess`.
    """
    dice, rows = np.random.default_rng(seed), []
    share = np.full(items, 0.5) if spread is None else dice.beta(spread, spread, items)
    for i in range(items):
        for k in dice.choice(len(guess), each, replace=False):
            first = (1 - guess[k]) * share[i] + guess[k] / 2
            rows.append((i, int(k), int(dice.random() >= first)))
    return np.array(rows)


def agreeing(seed, odd, *, items=863):
    """Three votes on each item, as PandaLM's after its filter: all alike, but for a share `odd` in
    which one person differs.
    """
    dice, rows = np.random.default_rng(seed), []
    for i in range(items):
        votes = [int(dice.integers(2))] * 3
        if dice.random() < odd:
            votes[int(dice.integers(3))] = 1 - votes[0]
        rows += [(i, k, vote) for k, vote in enumerate(votes)]
    return np.array(rows)


def decisive(poll):
    """The votes of a poll that decide, as rows; the first response is 0."""
    items, people, rows = {}, {}, []
    for c in poll.choices:
        if c.label != "tie":
            rows.append(
                (
                    items.setdefault(c.unit, len(items)),
                    people.setdefault(c.annotator, len(people)),
                    int(c.label == "b"),
                )
            )
    return np.array(rows)


def test_one_vote_says_little_and_an_even_split_nothing():
    one = preference_shares([(7, 3, 1)])
    assert one.items.tolist() == [7] and one.annotators.tolist() == [3]
    assert 0.35 < one.first[0] < 0.48 and (one.wins[0], one.losses[0]) == (0, 1)
    assert preference_shares([(0, 0, 0), (0, 1, 1)]).first[0] == pytest.approx(0.5, abs=1e-9)
    assert 0.85 < preference_shares([(i, k, 0) for i in range(8) for k in range(2)]).first[0] < 1


def test_without_guessing_it_is_near_the_smoothed_share():
    """People who guess never and differ as Beta(2, 2): 4 of 5 votes say (4 + 2) / (5 + 4)."""
    rows = world(0, 2.0, [0.0] * 40, items=1500)
    found = preference_shares(rows)
    four = found.first[(found.wins == 4) & (found.losses == 1)]
    assert four.mean() == pytest.approx(6 / 9, abs=0.04)


def test_who_guesses_is_found_and_who_differs_honestly_is_not_taken_for_it():
    """27 people of one taste and 13 who guess; then 40 who differ as widely as can be, none of whom
    guesses.
    """
    mixed = preference_shares(world(1, 0.1, [0.0] * 27 + [1.0] * 13))
    assert mixed.guess[:27].max() < 0.3 and mixed.guess[27:].min() > 0.6
    honest = preference_shares(world(2, 1.0, [0.0] * 40))
    assert honest.guess.max() < 0.4 and honest.crowd < 0.3


votes = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 1)),
    min_size=1,
    max_size=30,
    unique_by=lambda v: v[:2],
)


@settings(max_examples=40, deadline=None)
@given(votes, st.sets(st.integers(0, 5)))
def test_turning_pairs_turns_their_labels_and_no_label_goes_against_a_majority(rows, turned):
    found = preference_shares(rows)
    other = preference_shares([(i, k, 1 - v if i in turned else v) for i, k, v in rows])
    flip = np.isin(found.items, list(turned))
    assert other.first == pytest.approx(np.where(flip, 1 - found.first, found.first), abs=1e-6)
    assert other.guess == pytest.approx(found.guess, abs=1e-6)
    assert ((found.first - 0.5) * (found.wins - found.losses) >= 0).all()
    assert ((found.first > 0) & (found.first < 1) & np.isfinite(found.first)).all()


def test_a_majority_of_guessers_is_not_overruled_by_one_who_never_guesses():
    """Three who guess throughout against one whom two others confirm: the model would side with the
    one.
    """
    dice = np.random.default_rng(0)
    rows = [(i, k, 0) for i in range(60) for k in range(3)] + [
        (i, k, int(dice.integers(2))) for i in range(60) for k in (3, 4, 5)
    ]
    rows += [(60, 0, 0), (60, 3, 1), (60, 4, 1), (60, 5, 1)]
    found = preference_shares(rows)
    assert found.guess[:3].max() < 0.1 and found.guess[3:].min() > 0.8
    assert found.first[60] == 0.5


def test_gold_says_who_guesses():
    rows = [(i, k, 0) for i in range(4) for k in range(4)]
    plain, marked = (
        preference_shares(rows),
        preference_shares(
            rows, gold=[(n, 0, n % 2) for n in range(20)] + [(n, 9, 0) for n in range(9)]
        ),
    )
    assert plain.guess[0] == pytest.approx(plain.guess[1])
    assert marked.guess[0] > 0.6 > 0.3 > marked.guess[1]
    assert marked.annotators.tolist() == [0, 1, 2, 3]  # who voted on gold alone is nobody here


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.whole), pytest.param(2, marks=pytest.mark.whole)]
)
def test_of_agreeing_votes_one_that_was_held_out_is_foretold(seed):
    for odd, limit in ((0.0, 0.1), (0.08, 0.21)):
        found = held_out(agreeing(seed, odd), seeds=(seed,))
        assert found.n == 863
        assert found.product < limit < 0.28 < found.share


@pytest.mark.whole
def test_llmfaos_held_out_votes_on_the_three_draws(shared):
    """Issue 17: at most .56 on each; (wins + 1) / (n + 2) has .558 .572 .557, the fit with free
    skills .969 .982 .904.
    """
    rows = decisive(file_polls(shared("data/llmfao"))[0])
    found = held_out(rows)
    assert (found.n, found.coin) == (1104, pytest.approx(log(2)))
    assert [round(share, 3) for _, _, share in found.draws] == [0.558, 0.572, 0.557]
    assert all(product <= 0.56 and product < share for _, product, share in found.draws)
    inside = [row.frequency.low <= row.confidence <= row.frequency.high for row in found.table]
    assert sum(row.count for row in found.table) == 1104 and all(inside)


def test_honest_difference_costs_no_more_than_the_share_that_knows_it():
    """(wins + 1) / (n + 2) is the truth where p is uniform and nobody guesses."""
    found = held_out(world(3, 1.0, [0.0] * 40, items=800))
    assert found.product < found.share + 0.006


def test_where_every_answer_is_a_guess_the_label_is_a_coin():
    found = held_out(world(4, None, [0.0] * 30))
    assert found.product == pytest.approx(log(2), abs=0.01) and found.share > 0.71


def test_too_few_votes_to_hold_one_out_and_nonsense():
    assert held_out([(0, 0, 1), (0, 1, 1)]) is None
    for rows in ([(0, 0, 2)], [(0, 0)], [(0.5, 0, 1)], [], [(0, 0, 1), (0, 0, 1)]):
        with pytest.raises(ValueError, match="vote"):
            preference_shares(rows)
    with pytest.raises(ValueError, match="gold"):
        preference_shares([(0, 0, 1)], gold=[(0, 0, 3)])
