"""Choices by hand: votes, weights, best, the bar; what failed takes no part."""

import math

import pytest

from laurel.core.result import Abstain, Failed, Score
from laurel.search.answers import kind_of, votes_of
from laurel.search.choices import accept, best, vote, vote_weights
from laurel.search.distil import preference_rows, sft_rows
from laurel.search.pool import Answer, Question


def question(*texts, scores=(), logps=(), gold="3"):
    """A question with these answers, of two tokens each."""
    results = [
        one if isinstance(one, Failed | Abstain) else Score(one)
        for one in scores or [0.0] * len(texts)
    ]
    return Question(
        "q",
        {"prompt": "1+2=", "answer": gold},
        tuple(
            Answer(text, 2, logps[i] if logps else None, scores={"s": results[i]})
            for i, text in enumerate(texts)
        ),
    )


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"answer": "1,200"}, "number"),
        ({"answer": "(B)"}, "choice"),
        ({"answer": "\\sqrt{2}"}, "math"),
        ({"answer": "Paris"}, "text"),
        ({}, "text"),
    ],
)
def test_the_kind_of_an_answer_is_its_golds(row, kind):
    assert kind_of(row) == kind


def test_votes_are_of_answers_not_of_texts():
    assert votes_of(["It is 1,200.", "1200.0", "3 or 4"], {"answer": "5"}) == ["1200", "1200", None]
    assert votes_of(["(B)", "The answer is B.", "A or C"], {"answer": "C"}) == ["B", "B", None]
    assert votes_of(["  Paris", "paris", ""], {"answer": "Rome"}) == ["paris", "paris", None]


def test_equivalent_expressions_are_one_vote():
    pytest.importorskip("math_verify")
    texts = [r"\boxed{\sqrt{8}}", r"\boxed{2\sqrt{2}}", r"\boxed{\sqrt{2}}", r"$x^2$"]
    votes = votes_of(texts, {}, "math")
    assert votes[0] == votes[1] == r"\sqrt{8}" and len(set(votes)) == 3


def test_the_plurality_wins_and_the_first_of_a_tie():
    chosen = vote(question("3", "4", "the sum is 3", "5"))
    assert (chosen.place, chosen.vote, chosen.shares["3"], chosen.tokens) == (0, "3", 0.5, 8)
    assert vote(question("4", "3", "3", "4")).place == 0


def test_weights_turn_a_vote():
    """Two votes of .2 against one of .9."""
    asked = question("3", "3", "4", scores=(0.2, 0.2, 0.9))
    assert vote(asked).place == 0
    assert vote(asked, weigh="score", scorer="s").place == 2
    likely = question("3", "4", logps=(2 * math.log(0.1), 2 * math.log(0.6)))
    assert vote_weights(likely.answers, "likelihood") == pytest.approx([0.1, 0.6])
    assert vote(likely, weigh="likelihood").place == 1


def test_logits_become_chances():
    asked = question("3", "4", scores=(0.0, -2.0))
    assert vote_weights(asked.answers, "score", "s") == pytest.approx([0.5, 1 / (1 + math.e**2)])


def test_a_failed_score_neither_wins_nor_loses():
    asked = question("3", "4", "5", scores=(Failed("x"), -1.0, Abstain()))
    chosen = best(asked, "s")
    assert (chosen.place, chosen.value, chosen.left_out) == (1, -1.0, 2)
    assert vote(asked, weigh="score", scorer="s").vote == "4"


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ((Failed("no disk"),) * 2, "failed on every answer: no disk"),
        ((Abstain(),) * 2, "abstained"),
    ],
)
def test_a_question_on_which_all_fail_says_so(scores, reason):
    chosen = best(question("3", "4", scores=scores), "s")
    assert chosen.place is None and reason in chosen.reason
    assert vote(question("3", "4", scores=scores), weigh="score", scorer="s").place is None


def test_nothing_readable_is_no_choice():
    chosen = vote(question("what?", "3 or 4"))
    assert (
        chosen.place is None and chosen.reason == "no answer can be read" and chosen.left_out == 2
    )


def test_the_first_that_reaches_the_bar():
    asked = question("3", "4", "5", scores=(Failed("x"), 0.4, 0.9))
    found = accept(asked, "s", 0.8, 3)
    assert (found.place, found.drawn, found.tokens) == (2, 3, 6)
    assert accept(asked, "s", 0.3, 3).drawn == 2
    assert accept(asked, "s", 0.8, 2).reason == "none of 2 reaches 0.8"


def test_choices_become_rows_with_where_they_came_from():
    asked = question("3", "4", "3", scores=(0.1, 0.9, 0.3))
    by_vote, by_score = vote(asked), best(asked, "s")
    assert sft_rows([asked], [by_vote])[0]["completion"] == "3"
    assert sft_rows([asked], [by_vote], least_share=0.9) == []
    (pair,) = preference_rows([asked], [by_score], scorer="s")
    assert (pair["chosen"], pair["rejected"]) == ("4", "3")
    assert pair["choice"] == {
        "question": "q",
        "place": 1,
        "value": 0.9,
        "vote": None,
        "share": 1.0,
        "drawn": 3,
        "rejected_place": 0,
    }
    (voted,) = preference_rows([asked], [by_vote])
    assert (voted["chosen"], voted["rejected"]) == ("3", "4")
