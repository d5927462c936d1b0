"""Makers of the generated tasks: each turns a seeded random source into one row.

Parameters are keyword arguments with defaults.
"""

from __future__ import annotations

from random import Random
from typing import Any

from laurel.core.errors import UsageError
from laurel.data import arithmetic

LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = """
    apple banana bottle bridge butter candle castle cherry coffee copper cotton dinner dollar
    eleven engine forest garden ginger hammer harbour island jungle kettle ladder laurel lemon
    letter little mirror morning mountain needle orange paddle parrot pepper pillow planet
    pocket rabbit ribbon river saddle school shadow silver sister strawberry summer sunflower
    table teacher thunder tomato tunnel valley village violin window winter yellow
"""
WORDS = tuple(_WORDS.split())


def addition(rng: Random, *, digits: int = 2, sloppy: int = 0) -> dict[str, Any]:
    """Two numbers from 0 to 10^digits - 1, each value alike: "17+5=" -> "22".

    sloppy: in so many per cent of the sums that carry out of the units, the demonstration
    (`completion`, not `answer`) forgets that carry: "47+86=" -> "123". Whoever imitates it adds
    badly; whoever asks the verifier can find out.
    """
    _within("digits", digits, 1, 18)
    _within("sloppy", sloppy, 0, 100)
    left = rng.randrange(10**digits)
    right = rng.randrange(10**digits)
    row = _row(f"{left}+{right}=", str(left + right), {"numbers": [left, right]})
    carries = left % 10 + right % 10 >= 10
    if carries and rng.randrange(100) < sloppy:
        row["completion"] = str(left + right - 10)
    return row


def calculator(rng: Random, *, digits: int = 2) -> dict[str, Any]:
    """The product of two numbers, for a model with a calculator: "34*27=" -> "918".

    The numbers are from 0 to 10^digits - 1. One demonstration in two asks the calculator and copies
    its result: "[34*27]918\\n918", that is the call, the reply as `laurel.rollout.calculator`
    writes it, and the answer. The others answer at once, as no small model can.
    """
    _within("digits", digits, 1, 9)
    left = rng.randrange(10**digits)
    right = rng.randrange(10**digits)
    row = _row(f"{left}*{right}=", str(left * right), {"numbers": [left, right]})
    if rng.random() < 0.5:
        row["completion"] = f"[{left}*{right}]{left * right}\n{left * right}"
    return row


def chain_sum(rng: Random, *, terms: int = 3, digits: int = 2) -> dict[str, Any]:
    """Two to `terms` numbers, added and subtracted: "6 - 5 + 1 =" -> "2".

    The numbers have one to `digits` digits.
    """
    _within("terms", terms, 2, 20)
    _within("digits", digits, 1, 8)
    size = rng.randint(1, digits)
    count = rng.randint(2, terms)
    first, *others = [rng.randrange(10**size) for _ in range(count)]
    expression = str(first)
    signs = [rng.choice("+-") for _ in others]
    for sign, number in zip(signs, others, strict=True):
        expression += f" {sign} {number}"
    answer = str(arithmetic.evaluate(expression))
    return _row(f"{expression} =", answer, {"expression": expression})


def countdown(
    rng: Random, *, numbers: int = 3, largest: int = 20, target: int = 99
) -> dict[str, Any]:
    """Make a target of 1 to `target` from `numbers` numbers of 1 to `largest`, all used once.

    A solution is known to exist.
    Numbers and operators are drawn until the value is a whole number in range; sums need no retry,
    so it ends soon.
    """
    _within("numbers", numbers, 2, 6)
    _within("largest", largest, 2, 1_000)
    _within("target", target, largest, 100_000)
    for attempt in range(200):
        easy = attempt >= 100
        highest = 2 if easy else largest
        given = [rng.randint(1, highest) for _ in range(numbers)]
        parts = [str(number) for number in given]
        expression = _expression(rng, parts, "+" if easy else "+-*/")
        try:
            result = arithmetic.evaluate(expression)
        except arithmetic.NotArithmetic:
            continue
        if result.denominator == 1 and 1 <= result <= target:
            break
    else:
        raise UsageError(
            f"no target of at most {target} from {numbers} numbers.",
            where="countdown",
            fix="Raise `target`.",
        )
    shown = rng.sample(given, len(given))
    prompt = (
        f"Make {result} from all of the numbers {', '.join(map(str, shown))}, each used once, with"
        " + - * / and brackets: "
    )
    return _row(prompt, expression, {"numbers": shown, "target": int(result)})


def letter_counting(rng: Random, *, words: int = 1) -> dict[str, Any]:
    """How often a letter occurs in one to `words` words.

    One time in ten it is any letter of the alphabet, else one that is there.
    """
    _within("words", words, 1, 50)
    count = rng.randint(1, words)
    text = " ".join(rng.choice(WORDS) for _ in range(count))
    any_letter = rng.random() < 0.1
    letter = rng.choice(LETTERS if any_letter else text.replace(" ", ""))
    prompt = f'How many times does the letter "{letter}" appear in "{text}"? '
    return _row(prompt, str(text.count(letter)), {"letter": letter, "text": text})


def number_sorting(rng: Random, *, numbers: int = 5, largest: int = 99) -> dict[str, Any]:
    """Numbers to be sorted up or down: "... ascending order: 7, 3" -> "3, 7".

    They are two to `numbers` whole numbers from 0 to `largest`.
    """
    _within("numbers", numbers, 2, 50)
    _within("largest", largest, 1, 10**9)
    count = rng.randint(2, numbers)
    given = [rng.randint(0, largest) for _ in range(count)]
    direction = rng.choice(("ascending", "descending"))
    ordered = sorted(given, reverse=direction == "descending")
    prompt = f"Sort these numbers in {direction} order: {', '.join(map(str, given))}\n"
    answer = ", ".join(map(str, ordered))
    return _row(prompt, answer, {"numbers": given, "direction": direction})


def _expression(rng: Random, parts: list[str], signs: str) -> str:
    """A random binary tree over the parts, in brackets where they are needed, none around it."""
    if len(parts) == 1:
        return parts[0]
    cut = rng.randrange(1, len(parts))
    left = _expression(rng, parts[:cut], signs)
    right = _expression(rng, parts[cut:], signs)
    wrapped = (side if side.isdigit() else f"({side})" for side in (left, right))
    return rng.choice(signs).join(wrapped)


def _row(prompt: str, answer: str, metadata: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "answer": answer, "metadata": metadata}


def _within(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(
            f"`{name}` is a whole number from {low} to {high}, not {value!r}.",
            where="task parameter",
        )
