"""Mathematical equivalence through the math-verify package, in killable workers: `math`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

from laurel.core.errors import LaurelError
from laurel.core.result import Failed, Result, Score
from laurel.core.workers import Workers
from laurel.reward.extract import NUMBER, boxed, close, column, final_number, own_words, plain, settled, shown

LONGEST = 100_000
LONGEST_EXPRESSION = 1_000
MOST_BOXES = 4
SECONDS = 2.0
SEGMENT = re.compile(r"\$([^$]+)\$|\\\(((?:(?!\\\)).)+)\\\)|\\\[((?:(?!\\\]).)+)\\\]", re.DOTALL)


def equivalent(payload: tuple[str, tuple[str, ...]]) -> str:
    """(gold, candidates) -> "" if every candidate equals the gold mathematically, else why not. Runs in a worker: it may never end."""
    from math_verify import parse, verify

    gold, candidates = payload
    truth = parse(gold, parsing_timeout=0)
    if not truth:
        return "gold"
    for candidate in candidates:
        said = parse(candidate, parsing_timeout=0)
        if not said or not verify(truth, said, timeout_seconds=0):
            return f"{candidate:.60} is not {gold:.60}"
    return ""


POOL = Workers(equivalent, size=2, seconds=SECONDS, warm=(r"\boxed{\frac{1}{2}}", (r"\boxed{0.5}", r"\boxed{x^2+\sqrt{2}}")))


def math(answer: str, row: Mapping[str, Any]) -> Result:
    r"""1 if the answer is mathematically the row's `answer`.

    What is compared: the content of \boxed{} (different ones are wrong, unless all are equal to the gold); else, where the gold is
    a plain number and no LaTeX follows, the final number as in `numeric`; else the last formula ($...$, \(...\), \[...\]) or, without
    one, the last line. Nothing longer than 1000 characters is parsed. More than 2 s is Failed, and the worker is replaced.
    A verbatim copy of the prompt inside the answer is not read, so a gold that only stands in the prompt earns nothing.
    """
    if find_spec("math_verify") is None:
        raise LaurelError("the verifier `math` needs the package math-verify.", fix='Install it: pip install "laurel-rl[math]".')
    gold = column(row)
    if gold is None:
        return Failed("the row has no `answer`")
    if len(answer) > LONGEST:
        return Score(0.0, f"longer than {LONGEST} characters")
    text = own_words(answer, row)
    gold = (boxed(gold) or [settled(gold).strip()])[-1]
    boxes = list(dict.fromkeys(boxed(text)))
    if len(boxes) > MOST_BOXES:
        return Score(0.0, f"{len(boxes)} different boxed answers")
    number = plain_number(gold)
    if not boxes and number is not None and "\\" not in settled(text):
        said = final_number(settled(text))
        right = said is not None and close(said, number)
        return Score(1.0, "equal") if right else Score(0.0, f"{'no single number' if said is None else shown(said)}, not {gold}")
    return compare(gold, boxes or last_formula(settled(text)))


def compare(gold: str, candidates: list[str]) -> Result:
    """Every candidate against the gold, in a worker."""
    if not candidates or any(not candidate.strip() or len(candidate) > LONGEST_EXPRESSION for candidate in candidates):
        return Score(0.0, "nothing to compare" if not any(candidates) else f"an expression of more than {LONGEST_EXPRESSION} characters")
    why = POOL.call((_dressed(gold), tuple(_dressed(candidate) for candidate in candidates)))
    if isinstance(why, Failed):
        return Failed(f"math-verify on {candidates[0]!r:.60}: {why.reason}")
    if why == "gold":
        return Failed(f"the row's `answer` is no mathematics: {gold!r:.60}")
    return Score(0.0, why) if why else Score(1.0, "equivalent")


def plain_number(text: str) -> Fraction | None:
    """The text as one number if it is nothing else: 12, -3.5, 1/2, $1,234; None for anything richer."""
    match = NUMBER.fullmatch(plain(text).strip())
    return final_number(text) if match else None


def last_formula(text: str) -> list[str]:
    """The last formula of the text, or its last line that is not empty."""
    text = text[-10 * LONGEST_EXPRESSION :]
    formulas = [next(part for part in match.groups() if part) for match in SEGMENT.finditer(text)]
    lines = [line for line in text.splitlines() if line.strip()]
    return formulas[-1:] or lines[-1:]


def _dressed(expression: str) -> str:
    return rf"\boxed{{{expression}}}"
