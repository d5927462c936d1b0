"""The verifier of GSM8K: worked solutions that end in "#### 18" (Cobbe et al. 2021,
arXiv:2110.14168).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from laurel.core.result import Failed, Result, Score
from laurel.data.answers import question_of
from laurel.data.final_answer import boxed_contents, stated_answer, without_contrast
from laurel.data.non_answers import without_question
from laurel.data.numbers import ATOM, Quantity, exact_quantity, read_last_number, same_quantity
from laurel.data.plain_text import to_plain_text
from laurel.data.strip_thinking import visible_answer

LONGEST = 100_000
_MARKED = re.compile(r"####[ \t]*([-\u2212$.]*[0-9][^\n#]*)")
TROUBLES = {
    "several": "the last numbers are a list, or a sum not done",
    "expression": "the last number is a part of an expression",
    "absurd": "the last number cannot be read",
    "nothing": "no number in the answer",
}


def verify_gsm8k(answer: str, row: Mapping[str, Any]) -> Result:
    """Is the final number of `answer` the number after the last "####" of the row's `answer`?

    The final number is the one after "####" (or in \\boxed{}), else behind "the answer is", else
    the last number of the text; thoughts are not read, and of answer tags the content. Numbers are
    compared exactly, in any of their spellings: $1,234.00 is 1234, 1/2 is 0.5.
    No credit for: nothing; several marked numbers that differ, or none in a mark; a list of numbers
    ("43 or 44 or 42"); a sum not done ("6 * 7"); a part of an expression (the 3 of 2\u221a3); the
    question again, or a passage of it.
    """
    gold = _gold(row)
    if gold is None:
        return Failed("the row's `answer` does not end in `#### number`")
    guess, trouble = final_quantity(answer, question_of(row))
    if guess is None:
        return Score(0.0, trouble)
    return (
        Score(1.0, f"equals {gold.value}")
        if same_quantity(guess, gold)
        else Score(0.0, f"{guess.value}, not {gold.value}")
    )


def gold_number(row: Mapping[str, Any]) -> Fraction | None:
    """The number after the last "####" of the column `answer`, or the whole of it where it has no
    such mark.
    """
    text = row.get("answer")
    return as_number(text.rpartition("####")[2]) if isinstance(text, str) else None


def final_number(answer: str, question: str = "") -> tuple[Fraction | None, str]:
    """The one number that an answer ends on, or None and the reason why there is none."""
    found, trouble = final_quantity(answer, question)
    return None if found is None else found.value, trouble


def final_quantity(answer: str, question: str = "") -> tuple[Quantity | None, str]:
    """The one number that an answer ends on, as it was written, or None and the reason why there is
    none.
    """
    if not isinstance(answer, str) or len(answer) > LONGEST:
        return None, f"not a text of at most {LONGEST} characters"
    answer = without_question(visible_answer(answer), question)
    marked = [(text, False) for text in _MARKED.findall(answer)] + [
        (text, True) for text in boxed_contents(answer)
    ]
    if not marked and "####" in answer:
        marked = [(answer.rpartition("####")[2], False)]
    if marked:
        found = [read_last_number(text, formula=formula).quantity for text, formula in marked]
        if found[0] is None or any(
            other is None or not same_quantity(other, found[0]) for other in found
        ):
            return None, "what is marked as the answer is not one number"
        return found[0], ""
    stated = stated_answer(answer)
    reading = read_last_number(without_contrast(stated or answer))
    if reading.quantity is None:
        return None, TROUBLES[reading.trouble]
    if (
        not stated
        and not re.search(r"[A-Za-z=+*/]", answer)
        and len(numbers_in(answer[-1000:])) > 1
    ):
        return None, "a bare list of numbers"
    text = " ".join(answer.split())
    if re.search(r"[A-Za-z]{2}", text) and text in " ".join(question.split()):
        return None, "a passage of the question"
    return reading.quantity, ""


def numbers_in(text: str) -> list[Fraction | None]:
    """Every number written in the text, in order; None for one that has no value (1/0) or more than
    100 digits.

    A minus sign after a digit, letter or bracket is subtraction: "16-3" holds 16 and 3.
    """
    found = (
        exact_quantity(atom)
        for atom in ATOM.finditer(to_plain_text(text))
        if atom["whole"] is not None or atom["part"] is not None
    )
    return [None if quantity is None else quantity.value for quantity in found]


def as_number(text: str) -> Fraction | None:
    """The text as one number, exactly: "$1,234.00" is 1234, "1/2" is 0.5; None if it is anything
    else.
    """
    found = _whole(text)
    return None if found is None else found.value


def _gold(row: Mapping[str, Any]) -> Quantity | None:
    text = row.get("answer")
    return _whole(text.rpartition("####")[2]) if isinstance(text, str) else None


def _whole(text: str) -> Quantity | None:
    found = ATOM.fullmatch(to_plain_text(text).strip().removesuffix(".").strip("$ "))
    return (
        exact_quantity(found)
        if found and (found["whole"] is not None or found["part"] is not None)
        else None
    )
