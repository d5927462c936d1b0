"""What a verifier reads: the row's gold, and the answer's own words, in which its final answer is
looked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from laurel.data import final_answer
from laurel.data.non_answers import without_question
from laurel.data.numbers import Quantity, read_last_number, same_quantity
from laurel.data.strip_thinking import visible_answer


def text_column(row: Mapping[str, Any], name: str = "answer") -> str | None:
    """A column of the row as text, or None where it is absent or empty.

    Without an `answer`, the row's `completion` stands in for it.
    """
    value = row.get(name)
    if value is None and name == "answer" and isinstance(row.get("completion"), str):
        value = row["completion"]
    text = "" if value is None else str(value).strip()
    return text or None


def prompt_text(row: Mapping[str, Any]) -> str:
    """The prompt as text: `prompt` (a string, or messages: the last one), else `question`."""
    prompt = row.get("prompt", row.get("question", ""))
    if isinstance(prompt, (list, tuple)) and prompt:
        prompt = prompt[-1].get("content", "") if isinstance(prompt[-1], Mapping) else ""
    return prompt if isinstance(prompt, str) else ""


def own_words(answer: str, row: Mapping[str, Any]) -> str:
    """The answer without its thoughts and tags, and without copies of its prompt."""
    return without_question(visible_answer(answer), prompt_text(row))


def boxed(text: str) -> list[str]:
    r"""The contents of every outermost \boxed{...}, in order."""
    return final_answer.boxed_contents(text)


def unboxed_answer(text: str) -> str:
    """The part of an unboxed text that holds its answer."""
    return final_answer.unboxed_answer(text)


def final_number(text: str) -> Fraction | None:
    """The last number of the text, unless it is one of a list, an operand or a part of something
    larger.

    "so 49 - 10 = 39." is 39; "$1,234.00" is 1234; "1/2" is Fraction(1, 2); "50%" is 50; "3 or 4",
    "1 2 3 4", "9**9" and "2√3" are None.
    """
    quantity = read_last_number(text).quantity
    return None if quantity is None else quantity.value


def gold_quantity(text: str) -> Quantity | None:
    """The number that a row's gold is: in its last box, else where it settles."""
    return read_last_number(
        (final_answer.boxed_contents(text) or [final_answer.unboxed_answer(text)])[-1], formula=True
    ).quantity


def final_quantity(text: str) -> tuple[Quantity | None, str]:
    """The number that an answer settles on, or None and the reason: none, or boxes that differ."""
    boxes = final_answer.boxed_contents(text)
    found = [
        read_last_number(part, formula=bool(boxes)).quantity
        for part in boxes or [final_answer.unboxed_answer(text)]
    ]
    if found[0] is None:
        return None, "no single final number"
    if any(other is None or not same_quantity(other, found[0]) for other in found):
        return None, "different boxed answers"
    return found[0], ""


def format_number(number: Fraction) -> str:
    """A number for a reason: 39, 0.5, 1.2e+300."""
    return f"{float(number):.10g}" if abs(number) < 10**300 else "a number beyond 1e300"
