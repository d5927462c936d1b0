"""The verifier of GSM8K: worked solutions that end in "#### 18" (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from laurel.core.result import Failed, Result, Score
from laurel.data.answers import question_of
from laurel.data.hedges import undecided, without_question

LONGEST = 100_000
_AMOUNT = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+"
_MINUS = "[-\u2212]"
_PREFIX = rf"(?P<prefix>(?:(?<![\w)\]]){_MINUS})?(?:\$ ?{_MINUS}?)?)"
_NUMBER = re.compile(rf"(?<![0-9])(?<![0-9]\.){_PREFIX}(?P<top>{_AMOUNT})(?:/(?P<bottom>[0-9]+))?(?![0-9])")
_MARKED = re.compile(r"####[ \t]*([-\u2212$.]*[0-9][^\n#]*)")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def verify_gsm8k(answer: str, row: Mapping[str, Any]) -> Result:
    """Is the final number of `answer` the number after the last "####" of the row's `answer`?

    The final number is the one after "####" (or in \\boxed{}), else the last number of the text. Commas between thousands, a dollar
    sign, a sign, decimals and a fraction are understood, and compared exactly: $1,234.00 is 1234, and 1/2 is 0.5.
    No credit for: nothing; several marked numbers that differ, or none in a mark; a list of numbers ("43 or 44 or 42"); a sum not done
    ("6 * 7"); the question again, or a passage of it.
    """
    gold = gold_number(row)
    if gold is None:
        return Failed("the row's `answer` does not end in `#### number`")
    guess, trouble = final_number(answer, question_of(row))
    if guess is None:
        return Score(0.0, trouble)
    return Score(1.0, f"equals {gold}") if guess == gold else Score(0.0, f"{guess}, not {gold}")


def gold_number(row: Mapping[str, Any]) -> Fraction | None:
    """The number after the last "####" of the column `answer`, or the whole of it where it has no such mark."""
    text = row.get("answer")
    return as_number(text.rpartition("####")[2]) if isinstance(text, str) else None


def final_number(answer: str, question: str = "") -> tuple[Fraction | None, str]:
    """The one number that an answer ends on, or None and the reason why there is none."""
    if not isinstance(answer, str) or len(answer) > LONGEST:
        return None, f"not a text of at most {LONGEST} characters"
    answer = without_question(answer, question)
    marked = _MARKED.findall(answer) + _BOXED.findall(answer)
    if not marked and "####" in answer:
        marked = [answer.rpartition("####")[2]]
    if marked:
        values = {value for text in marked for value in (numbers_in(text) or [None])}
        only = values.pop()
        return (None, "what is marked as the answer is not one number") if values or only is None else (only, "")
    found = list(_NUMBER.finditer(answer))
    last = _value(found[-1]) if found else None
    if last is None:
        return None, "no number in the answer" if not found else "the last number cannot be read"
    if len(found) > 1:
        if undecided(answer[found[-2].end() : found[-1].start("top")], equal=_value(found[-2]) == last):
            return None, "the last numbers are a list, or a sum not done"
        if not re.search(r"[A-Za-z=+*/]", answer):
            return None, "a bare list of numbers"
    text = " ".join(answer.split())
    if re.search(r"[A-Za-z]{2}", text) and text in " ".join(question.split()):
        return None, "a passage of the question"
    return last, ""


def numbers_in(text: str) -> list[Fraction | None]:
    """Every number written in the text, in order; None for one that has no value (1/0) or more than 400 digits.

    A minus sign after a digit, letter or bracket is subtraction: "16-3" holds 16 and 3.
    """
    return [_value(found) for found in _NUMBER.finditer(text)]


def as_number(text: str) -> Fraction | None:
    """The text as one number, exactly: "$1,234.00" is 1234, "1/2" is 0.5; None if it is anything else."""
    found = _NUMBER.fullmatch(text.strip().removesuffix("."))
    return _value(found) if found else None


def _value(found: re.Match[str]) -> Fraction | None:
    top, bottom = found["top"].replace(",", ""), found["bottom"] or "1"
    if len(top) > 400 or len(bottom) > 400 or not int(bottom):
        return None
    size = Fraction(top) / int(bottom)
    return -size if found["prefix"].strip("$ ") else size
