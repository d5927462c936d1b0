"""Mathematical equivalence through the math-verify package, in killable workers: `math`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from laurel.core.errors import LaurelError
from laurel.core.result import Failed, Result, Score
from laurel.core.workers import Workers
from laurel.data.final_answer import boxed_contents, unboxed_answer
from laurel.data.non_answers import is_undecided
from laurel.data.numbers import (
    TOLERANCE,
    Quantity,
    ends_in_equation,
    read_last_number,
    same_quantity,
)
from laurel.data.plain_text import to_plain_text
from laurel.reward.equal import equivalent
from laurel.reward.extract import format_number, own_words, text_column
from laurel.reward.latex import as_latex, bare_word, without_words
from laurel.reward.text import answer_letters

LONGEST = 100_000
LONGEST_EXPRESSION = 1_000
MOST_BOXES = 4
MOST_WORDS = 6
SECONDS = 2.0
NEGATED = re.compile(r"\s*(?:\w+ly\s+)?(?:not|never|neither)\b", re.IGNORECASE)
# A line of mathematics and no words, in which something is to be worked out: 10^2, \sqrt{98},
# 4^{1/3}.
BARE = re.compile(
    r"(?=[^\n]*[\^*/+×·√!\\])(?:\\[A-Za-z]+|[^A-Za-z,;\n]|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+"
)
WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}(?![A-Za-z])")
INEQUALITY = re.compile(r"[<>≤≥≠±]|\\(?:leq?|geq?|neq?|lt|gt|pm|in)(?![A-Za-z])")
SEGMENT = re.compile(
    r"\$\$([^$]{1,1000})\$\$|(?<!\\)\$((?:\\\$|[^$]){1,1000})\$|\\\(((?:(?!\\\)).){1,1000})\\\)|\\\[((?:(?!\\\]).){1,1000})\\\]",
    re.DOTALL,
)

POOL = Workers(
    equivalent,
    size=2,
    seconds=SECONDS,
    warm=(r"\boxed{\frac{1}{2}}", (r"\boxed{0.5}", r"\boxed{x^2+\sqrt{2}}")),
)


def math(answer: str, row: Mapping[str, Any]) -> Result:
    r"""1 if the answer is mathematically the row's `answer`.

    What is compared: the content of \boxed{} (different ones are wrong, unless all are equal to the
    gold, or the gold is the list of them); else what stands after the last ####, after "the answer
    is" or before "is the answer"; else the last formula ($...$, \(...\), \[...\]) or, without one,
    the last line. Thoughts are not read, and of answer tags the content. One number is read and
    compared as `numeric` does it, a word as a word, all else by math-verify. Nothing longer than
    1000 characters is parsed. More than 2 s is Failed, and the worker is replaced. A verbatim copy
    of the prompt inside the answer is not read, so a gold that only stands in the prompt earns
    nothing.
    """
    if find_spec("math_verify") is None:
        raise LaurelError(
            "the verifier `math` needs the package math-verify.",
            fix='Install it: pip install "laurel-rl[math]".',
        )
    gold = text_column(row)
    if gold is None:
        return Failed("the row has no `answer`")
    if len(answer) > LONGEST:
        return Score(0.0, f"longer than {LONGEST} characters")
    text = own_words(answer, row)
    gold = (boxed_contents(gold) or [unboxed_answer(gold).strip()])[-1]
    boxes = list(dict.fromkeys(boxed_contents(text)))
    if len(boxes) > MOST_BOXES:
        return Score(0.0, f"{len(boxes)} different boxed answers")
    if not boxes:
        place = unboxed_answer(text)
        return compare_place(gold, place, formula=False)
    results = [compare_place(gold, box, formula=True) for box in boxes]
    wrong = next(
        (result for result in results if not isinstance(result, Score) or result.value == 0), None
    )
    if wrong is None or len(boxes) == 1 or isinstance(wrong, Failed):
        return wrong or results[0]
    return compare_expressions(gold, ", ".join(boxes)) if is_list(gold) else wrong


def compare_place(gold: str, place: str, *, formula: bool) -> Result:
    """One place where an answer stands against the gold.

    formula: the place is mathematics alone, no sentence.
    """
    place = place[-10 * LONGEST_EXPRESSION :] if not formula else place
    if not formula and SEGMENT.search(place):
        if is_hedged(place):
            return Score(0.0, f"several answers, not {gold:.60}")
        place, formula = last_formula(place), True
    formula = formula or bool(BARE.fullmatch(place.strip()))
    answer = place if formula else last_formula(place)
    if word := bare_word(gold):
        if bare_word(answer) == word or (len(word) == 1 and answer_letters(place) == {word}):
            return Score(1.0, "the same word")
        return Score(0.0, f"{answer!r:.60} is not {gold!r:.60}")
    truth = read_last_number(gold, formula=True).quantity if is_number(gold) else None
    reading = read_last_number(place, formula=formula)
    if truth is not None and reading.quantity is not None:
        return compare_numbers(reading.quantity, truth, gold)
    several = reading.trouble == "several" and not formula
    if NEGATED.match(place) or (truth is not None and (truth.base or several)):
        return Score(0.0, f"no single number, not {gold:.60}")
    if truth is not None and (reason := _no_number(answer, gold)):
        return Score(0.0, reason)
    return compare_expressions(gold, answer)


def _no_number(answer: str, gold: str) -> str:
    """Why an answer can be no number at all, where the gold is one; "" where it may be one."""
    if not re.search(r"[\d\\]|[^\x00-\x7f]", answer):
        return f"no number, not {gold:.60}"
    left = to_plain_text(answer).rpartition("=")[0].rstrip()
    if INEQUALITY.search(answer) or ("=" in answer and ends_in_equation(left)):
        return f"{answer!r:.60} is no number, and the answer is {gold:.60}"
    return ""


def is_hedged(place: str) -> bool:
    """Does a number stand beside the last formula of a sentence, with nothing but "or" or a comma
    between?
    """
    found = list(SEGMENT.finditer(place))[-1]
    before, after = place[: found.start()], place[found.end() :]
    return bool(
        re.match(r"\s*(?:,|;|/|or\b|and\b)+\s*(?:or|and)?\s*-?\d", after)
        or re.search(r"\d\s*(?:,|;|or|and)\s*$", before)
    )


def compare_numbers(found: Quantity, truth: Quantity, gold: str) -> Result:
    """Two numbers."""
    if same_quantity(found, truth, TOLERANCE):
        return Score(1.0, "equal")
    return Score(0.0, f"{format_number(found.value)}, not {gold:.60}")


def is_number(gold: str) -> bool:
    """Is the gold one number and nothing else but its unit: no list, no word beside it that may
    matter, no equation with letters?
    """
    return not re.search(r"[A-Za-z]\w*\s*\(|[()\[\]]|\\begin|=.*[A-Za-z].*=", gold)


def is_list(gold: str) -> bool:
    """Several values, in no order: 1, 2 or \\{1, 2\\} or "1 and 2".

    No pair, no interval, no number with commas.
    """
    return read_last_number(gold, formula=True).trouble == "several" and not re.search(
        r"^\s*(?:\\left)?[(\[]", gold
    )


def compare_expressions(gold: str, candidate: str) -> Result:
    """By math-verify, in a worker."""
    if not candidate.strip() or len(candidate) > LONGEST_EXPRESSION:
        too_long = f"an expression of more than {LONGEST_EXPRESSION} characters"
        return Score(0.0, too_long if candidate.strip() else "nothing to compare")
    if as_latex(candidate) == as_latex(gold):
        return Score(1.0, "the same")
    if len(WORDS.findall(candidate)) > MOST_WORDS:
        return Score(0.0, f"a sentence, not {gold:.60}")
    why = POOL.call((_dressed(gold), (_dressed(candidate),)))
    if isinstance(why, Failed):
        return Failed(f"math-verify on {candidate!r:.60}: {why.reason}")
    if why == "gold":
        return Failed(f"the row's `answer` is no mathematics: {gold!r:.60}")
    return Score(0.0, why) if why else Score(1.0, "equivalent")


def last_formula(text: str) -> str:
    """The last formula of the text, with those that it is listed with, or its last line that is not
    empty, less the words around it.
    """
    text = text[-10 * LONGEST_EXPRESSION :]
    formulas = list(SEGMENT.finditer(text))
    if not formulas:
        lines = [line for line in text.splitlines() if line.strip()]
        return without_words(lines[-1]) if lines else ""
    parts = [_content(formulas[-1])]
    for left, right in zip(formulas[-2::-1], formulas[:0:-1], strict=False):
        if not is_undecided(text[left.end() : right.start()], equal=False):
            break
        parts.insert(0, _content(left))
    return ", ".join(parts)


def _content(found: re.Match[str]) -> str:
    return next(part for part in found.groups() if part).strip()


def _dressed(expression: str) -> str:
    return rf"\boxed{{{as_latex(expression)}}}"
