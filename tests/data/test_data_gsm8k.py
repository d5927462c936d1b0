"""GSM8K: which number is the answer, and what earns nothing."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laurel.core.result import Failed, Score
from laurel.data.gsm8k import as_number, final_number, numbers_in, verify_gsm8k
from laurel.data.non_answers import is_undecided, without_question
from laurel.data.source import load_rows

ROW = {"question": "Tom has 1234 eggs in 5 boxes.", "answer": "He counts.\n#### 1,234"}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("16-3=13", [16, 3, 13]),
        ("16 - 3", [16, 3]),
        ("= -5", [-5]),
        ("-$5 and $-6", [-5, -6]),
        ("$1,234.00.", [1234]),
        ("3,18", [3, 18]),
        ("so...5", [5]),
        (".5 or 1/2", [Fraction(1, 2), Fraction(1, 2)]),
        ("(7)", [7]),
        ("\u22127", [-7]),
        ("12,345,678", [12345678]),
        ("1/0", [None]),
        ("none", []),
    ],
)
def test_numbers_in_text(text, numbers):
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    "answer",
    [
        "1234",
        "#### 1234",
        "#### $1,234.00",
        "so it is 1,234.",
        "5 boxes\n#### 1234 eggs",
        "\\boxed{1234}",
        "### A\n#### End\n1234",
        "2468/2",
    ],
)
def test_T57_right_answers_in_their_spellings(answer):
    """TRAPS T57: $1,234.00 == 1234; 0.5 == 1/2."""
    assert verify_gsm8k(answer, ROW) == Score(1.0, "equals 1234")
    assert verify_gsm8k("#### 0.5", {"answer": "#### 1/2"}) == Score(1.0, "equals 1/2")
    assert verify_gsm8k("#### 1/2", {"answer": "0.5"}) == Score(1.0, "equals 1/2")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "None",
        "\\emptyset",
        "1 2 3 4 1234",
        "5, 1234",
        "\\boxed{5} \\boxed{1234}",
        "#### 5\n#### 1234",
        "#### 1234\nNext question.\n#### 6",
        "#### 5 1234",
        "1234 #### None",
        "####",
        "Tom has 1234",
        "#### -1234",
        "#### 1234.5",
        "1234 of 5",
        "x" * 200_000 + "1234",
    ],
)
def test_T57_degenerate_answers_earn_nothing(answer):
    """TRAPS T57: nothing, placeholders, all numbers listed, two different marked answers, the gold
    echoed from the prompt.
    """
    result = verify_gsm8k(answer, ROW)
    assert isinstance(result, Score) and result.value == 0.0 and result.reason


@pytest.mark.parametrize(
    "answer",
    [
        "5 or 7 or 1234",
        "The answer is one of 0, 1, 2, 3, 5, 7, 1234",
        "It is 5 and 1234.",
        "either $5, or $1,234",
        "(5) (1234)",
        "617 * 1234",
        "so 1240 - 1234",
        "so 1240 -1234",
        "it is 2 \u00d7 1234",
        "Tom has 1234 eggs in 5 boxes. Tom has 1234 eggs in 5 boxes.",
        "Tom has 1234 eggs\n in 5 boxes.\n\nTom has 1234  eggs in 5 boxes.",
    ],
)
def test_T57_hedges_sums_not_done_and_echoes_earn_nothing(answer):
    """TRAPS T57: whoever names several numbers, leaves the sum to the reader or repeats the
    question has not answered.
    """
    row = {"question": "Tom has 1234 eggs in 5 boxes.", "answer": "#### 1234"}
    assert verify_gsm8k(answer, row).value == 0.0
    assert verify_gsm8k(answer, {**row, "answer": "#### 5"}).value == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "1239 - 5 = 1234",
        "Tom has 1234 eggs in 5 boxes. That makes 1234.",
        "1234, that is 1,234",
        "He began with 5, so now he has 1234.",
        "1234 and 1234",
        "5 boxes - no more - hold 1234 eggs",
        "= 1234 (1234 in all)",
    ],
)
def test_T57_workings_before_the_number_do_no_harm(answer):
    """TRAPS T57, the other way: a sum that is done, the question before the answer, a number said
    twice are right.
    """
    assert (
        verify_gsm8k(
            answer, {"question": "Tom has 1234 eggs in 5 boxes.", "answer": "#### 1234"}
        ).value
        == 1.0
    )


def test_copies_of_the_question_are_not_read():
    """Twelve characters or more, however spaced; shorter questions stand in many honest answers."""
    question = "Tom has 7 eggs. How many?"
    assert without_question(f"a {question} b {question}", question).split() == ["a", "b"]
    assert without_question("a Tom has  7\neggs. How many? b", question).split() == ["a", "b"]
    assert without_question("12 + 34 = 46", "12 + 34 =") == "12 + 34 = 46"
    assert without_question("", question) == "" and without_question("Tom has 7", "") == "Tom has 7"


@pytest.mark.parametrize(
    ("between", "different", "same"),
    [
        (" or ", True, False),
        (", ", True, False),
        (" * ", True, True),
        (" \u2212 ", True, True),
        (" = ", False, False),
        (" eggs, ", False, False),
    ],
)
def test_what_stands_between_two_numbers_decides(between, different, same):
    assert (is_undecided(between, equal=False), is_undecided(between, equal=True)) == (
        different,
        same,
    )
    assert not is_undecided(between + " " * 300, equal=False)


def test_a_row_without_a_gold_number_fails():
    for row in (
        {},
        {"answer": None},
        {"answer": "#### many"},
        {"answer": "#### 1 2"},
        {"answer": "1/0"},
    ):
        assert isinstance(verify_gsm8k("5", row), Failed)


@given(st.integers(-(10**12), 10**12))
def test_numbers_are_read_with_and_without_commas(number):
    assert (
        as_number(str(number)) == as_number(f"{number:,}") == as_number(f"{number:,}.00") == number
    )
    assert final_number(f"The result is {number:,}.")[0] == number


@given(st.text(max_size=80))
def test_no_answer_makes_it_raise(answer):
    assert isinstance(verify_gsm8k(answer, ROW), Score)


@pytest.mark.parametrize(("part", "count"), [("train", 7473), ("test", 1319)])
def test_every_gold_solution_is_right_and_no_other_row_s_is(shared, part, count):
    rows = [row.columns for row in load_rows(str(shared(f"data/gsm8k/{part}.jsonl")))]
    assert (
        sum(
            verify_gsm8k(row["answer"], row)
            == Score(1.0, f"equals {as_number(row['answer'].split('#### ')[1])}")
            for row in rows
        )
        == count
    )
    for row, other in pairwise(rows):
        same = as_number(row["answer"].split("####")[1]) == as_number(
            other["answer"].split("####")[1]
        )
        assert (verify_gsm8k(other["answer"], row).value == 1.0) is same
