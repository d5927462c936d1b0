"""Verifiers that read the answer as text, a number or a letter: `exact`, `numeric`, `choice`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from laurel.core.result import Failed, Result, Score
from laurel.data.final_answer import BEHIND, boxed_contents
from laurel.data.numbers import TOLERANCE, same_quantity
from laurel.data.strip_thinking import visible_answer
from laurel.reward.extract import (
    final_quantity,
    format_number,
    gold_quantity,
    own_words,
    text_column,
)

LONGEST = 100_000
LETTERS = "ABCDEFGHIJ"


def exact(answer: str, row: Mapping[str, Any]) -> Result:
    """1 if the answer is the row's `answer` word for word.

    White space aside, and thoughts and tags that the row has not either.
    """
    gold = text_column(row)
    if gold is None:
        return Failed("the row has no `answer`")
    text = answer if visible_answer(gold) != gold else visible_answer(answer)
    return (
        Score(1.0, "equal")
        if text.split() == gold.split()
        else Score(0.0, f"{text!r:.60} is not {gold!r:.60}")
    )


def numeric(answer: str, row: Mapping[str, Any]) -> Result:
    r"""1 if the answer's final number equals that of the row's `answer`, to 1e-6 relative unless
    one is whole.

    The final number: inside \boxed{} where there is one (several must agree), else after the last
    ####, else after the last "answer is" (or before "is the answer"), else the last of the text.
    `$1,234.00` is 1234, `1/2` and `\frac12` are 0.5, `1\frac45` is 1.8, `25 cm^2` is 25, `50%` is
    50 or 0.5. No number: an empty text, a list ("3 or 4"), a sum not done ("9**9"), a part of an
    expression (the 3 of 2√3), more than 100 digits or an exponent beyond 300. Thoughts and copies
    of the prompt are not read.
    """
    gold_text = text_column(row)
    gold = None if gold_text is None else gold_quantity(gold_text)
    if gold is None:
        return Failed(f"the row's `answer` holds no single number: {gold_text!r:.60}")
    if len(answer) > LONGEST:
        return Score(0.0, f"longer than {LONGEST} characters")
    found, trouble = final_quantity(own_words(answer, row))
    if found is None:
        return Score(0.0, trouble)
    right = same_quantity(found, gold, TOLERANCE)
    return (
        Score(1.0, f"equals {format_number(gold.value)}")
        if right
        else Score(0.0, f"{format_number(found.value)}, not {format_number(gold.value)}")
    )


def choice(answer: str, row: Mapping[str, Any]) -> Result:
    r"""1 if the answer settles on the letter (A to J) of the row's `answer`.

    Two different letters are wrong.

    Looked for in this order: in \boxed{}; after "answer is" or "answer:"; a first or last line such
    as "(B)", "B." or "B) Paris"; the only single capital letter of the text (the words "A" and "I"
    aside).
    """
    gold = answer_letters(text_column(row) or "")
    if len(gold) != 1:
        return Failed("the row's `answer` is not one letter from A to J")
    if len(answer) > LONGEST:
        return Score(0.0, f"longer than {LONGEST} characters")
    found = answer_letters(own_words(answer, row))
    if len(found) != 1:
        return Score(
            0.0, "no letter" if not found else f"several letters: {' '.join(sorted(found))}"
        )
    return Score(1.0, "equal") if found == gold else Score(0.0, f"{min(found)}, not {min(gold)}")


def answer_letters(text: str) -> set[str]:
    """The letters that a text settles on: none, one, or several where it does not."""
    boxes = boxed_contents(text)
    if boxes:
        return set().union(*(_single_letter(box) or {box} for box in boxes))
    letters_found = [
        _leading_letters(text[match.end() : match.end() + 200]) for match in BEHIND.finditer(text)
    ]
    if any(letters_found):
        return set().union(*letters_found)
    lines = [line for line in text.splitlines() if line.strip()]
    ends = _leading_letters(lines[0]) | _leading_letters(lines[-1]) if lines else set()
    return ends or set(re.findall(rf"(?<![\w'])([{LETTERS}])(?![\w'])(?!(?<=[AI]) [a-z])", text))


def _single_letter(text: str) -> set[str]:
    r"""The letter of a text that is one letter, dressed as it may be: B, (B), \text{B}, **b**."""
    bare = re.sub(r"\\(?:text|mathrm|mathbf|textbf)|[\s(){}\[\].:*$]", "", text).upper()
    return {bare} if len(bare) == 1 and bare in LETTERS else set()


def _leading_letters(line: str) -> set[str]:
    """The letters that a line begins with as an option: "B", "(B)", "B.", "B) Paris", "B or C". "A
    dog" and "I think" begin with none.
    """
    line = re.sub(r"\\(?:text|mathrm|mathbf|textbf)|[*_`${}\"\\]", "", line[:200]).strip()
    match = re.match(
        rf"(?:option\s+|choice\s+)?(?:\(([{LETTERS}{LETTERS.lower()}])\)|\[([{LETTERS}])\]|([{LETTERS}])(?=\s*$|[).:,;]|\s+(?:or|and|/|-)))",
        line,
        re.IGNORECASE,
    )
    if match is None:
        return set()
    found = {next(letter for letter in match.groups() if letter).upper()}
    more = re.match(
        rf"[\s).:,;/-]*(?:or|and|[,/])?\s*\(?([{LETTERS}])\)?(?=\s*$|[\s).:,;/])",
        line[match.end() :],
    )
    return found | ({more.group(1)} if more else set())
