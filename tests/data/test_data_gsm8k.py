"""GSM8K: which number is the answer, and what earns nothing."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laurel.core.result import Failed, Score
from laurel.data.gsm8k import as_number, final_number, numbers_in, verify_gsm8k
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
    """TRAPS T57: nothing, placeholders, all numbers listed, two different marked answers, the gold echoed from the prompt."""
    result = verify_gsm8k(answer, ROW)
    assert isinstance(result, Score) and result.value == 0.0 and result.reason


def test_a_row_without_a_gold_number_fails():
    for row in ({}, {"answer": None}, {"answer": "#### many"}, {"answer": "#### 1 2"}, {"answer": "1/0"}):
        assert isinstance(verify_gsm8k("5", row), Failed)


@given(st.integers(-(10**12), 10**12))
def test_numbers_are_read_with_and_without_commas(number):
    assert as_number(str(number)) == as_number(f"{number:,}") == as_number(f"{number:,}.00") == number
    assert final_number(f"The result is {number:,}.")[0] == number


@given(st.text(max_size=80))
def test_no_answer_makes_it_raise(answer):
    assert isinstance(verify_gsm8k(answer, ROW), Score)


@pytest.mark.parametrize(("part", "count"), [("train", 7473), ("test", 1319)])
def test_every_gold_solution_is_right_and_no_other_row_s_is(shared, part, count):
    rows = [row.columns for row in load_rows(str(shared(f"data/gsm8k/{part}.jsonl")))]
    assert (
        sum(verify_gsm8k(row["answer"], row) == Score(1.0, f"equals {as_number(row['answer'].split('#### ')[1])}") for row in rows) == count
    )
    for row, other in pairwise(rows):
        same = as_number(row["answer"].split("####")[1]) == as_number(other["answer"].split("####")[1])
        assert (verify_gsm8k(other["answer"], row).value == 1.0) is same
