"""Which answers are the same answer: what a vote counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from laurel.core.result import Score
from laurel.data.final_answer import boxed_contents, unboxed_answer
from laurel.reward.extract import final_quantity, gold_quantity, own_words, text_column
from laurel.reward.math import math
from laurel.reward.text import answer_letters

Kind = Literal["auto", "number", "math", "choice", "text"]
KINDS: tuple[Kind, ...] = ("auto", "number", "math", "choice", "text")


def kind_of(row: Mapping[str, Any], kind: Kind = "auto") -> Kind:
    """How answers to a row are compared; `auto`: by its gold answer, else as text.

    A gold that is one number asks for numbers, a single letter from A to J for a choice, anything
    with LaTeX in it for mathematics.
    """
    if kind != "auto":
        return kind
    gold = text_column(row)
    if gold is None:
        return "text"
    if gold_quantity(gold) is not None:
        return "number"
    if len(gold.strip("() .")) == 1 and len(answer_letters(gold)) == 1:
        return "choice"
    return "math" if "\\" in gold or "$" in gold else "text"


def votes_of(texts: Sequence[str], row: Mapping[str, Any], kind: Kind = "auto") -> list[str | None]:
    """The vote in each text: equal where two give the same answer, None where one gives none.

    number: the final number, so that "It is 1,200." and "1200.0" are one vote. math: equivalent
    expressions are one vote, that of the first; math-verify compares them. choice: the letter.
    text: the words, without thoughts, case and spacing.
    """
    how = kind_of(row, kind)
    own = [own_words(text, row) for text in texts]
    if how == "math":
        return equivalent_votes(own)
    return [SINGLE[how](text) for text in own]


def number_vote(text: str) -> str | None:
    """The final number as a fraction; None without a single one."""
    quantity, _ = final_quantity(text)
    return None if quantity is None else str(quantity.value)


def choice_vote(text: str) -> str | None:
    """The letter; None without a single one."""
    letters = answer_letters(text)
    return letters.pop() if len(letters) == 1 else None


def text_vote(text: str) -> str | None:
    """The words without case and spacing; None without any."""
    return " ".join(text.casefold().split()) or None


SINGLE: dict[str, Callable[[str], str | None]] = {
    "number": number_vote,
    "choice": choice_vote,
    "text": text_vote,
}


def equivalent_votes(texts: Sequence[str]) -> list[str | None]:
    """Each text's expression, or the first one before it that is equivalent."""
    known: dict[str, str] = {}
    leaders = list[str]()
    found = list[str | None]()
    for text in texts:
        place = expression(text)
        if place is not None and place not in known:
            same = next((one for one in leaders if is_equivalent(place, one)), None)
            if same is None:
                leaders.append(place)
            known[place] = same or place
        found.append(None if place is None else known[place])
    return found


def expression(text: str) -> str | None:
    """Where a text's answer stands: in its last box, else where it settles."""
    boxes = boxed_contents(text)
    place = boxes[-1] if boxes else unboxed_answer(text)
    return place.strip() or None


def is_equivalent(one: str, other: str) -> bool:
    """Are two expressions mathematically the same? What cannot be compared is not."""
    result = math(f"\\boxed{{{one}}}", {"answer": f"\\boxed{{{other}}}"})
    return isinstance(result, Score) and result.value == 1.0
