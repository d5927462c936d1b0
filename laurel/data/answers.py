"""Exact verifiers of the plain tasks: is this answer right for this row?

The truth is worked out from the question itself, never taken from the row's gold answer, so a wrong
gold answer is found too. An answer counts only as a whole: white space around it and one full stop
at its end are ignored, and so are thoughts and answer tags (see `laurel.data.strip_thinking`);
nothing else. "46", "46." and "<think>...</think><answer>46</answer>" answer "12+34="; "12+34=46",
"46 or 47", "046", "+46" and "46.0" do not. A wrong answer is Score(0) with the reason; a row that
holds no such question is Failed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from laurel.core.result import Failed, Result, Score
from laurel.data import arithmetic
from laurel.data.strip_thinking import visible_answer

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,99})")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,99})(?:\.[0-9]{1,99})?")
_ANIMALS = {
    0: "flatworm jellyfish leech sea_slug snake",
    2: "bird chicken duck human",
    4: "cat cow deer dog elephant giraffe horse lion sheep tiger",
    5: "starfish",
    6: "ant bee beetle butterfly cockroach cricket firefly grasshopper insect praying_mantis wasp",
    8: "scorpion spider",
    10: "crab lobster shrimp",
    14: "woodlouse",
}
LEGS = {name.replace("_", " "): legs for legs, names in _ANIMALS.items() for name in names.split()}


def question_of(row: Mapping[str, Any]) -> str:
    """What was asked: the column `question`, else `prompt`.

    Of a conversation it is the last message.
    """
    question = row.get("question", row.get("prompt", ""))
    if isinstance(question, list) and question and isinstance(question[-1], Mapping):
        question = question[-1].get("content", "")
    return question if isinstance(question, str) else ""


def bare_answer(answer: str) -> str:
    """The answer without thoughts, tags, white space around it and one final full stop."""
    return (
        visible_answer(answer).strip().removesuffix(".").rstrip() if isinstance(answer, str) else ""
    )


def whole_number(answer: str) -> int | None:
    """The answer as a whole number in its usual spelling, or None.

    The usual spelling has no plus sign, leading zeros, commas or decimals.
    """
    text = bare_answer(answer)
    return int(text) if _WHOLE.fullmatch(text) else None


def verify_sum(answer: str, row: Mapping[str, Any]) -> Result:
    """`addition` and `chain_sum`: the value of the expression before the final "="."""
    found = re.search(r"([0-9+\-*/() ]+)=\s*$", question_of(row))
    try:
        truth = arithmetic.evaluate(found.group(1)) if found else None
    except arithmetic.NotArithmetic:
        truth = None
    return _number(answer, truth, "the question does not end in an arithmetic expression and `=`")


def verify_last_line(answer: str, row: Mapping[str, Any]) -> Result:
    """`calculator`: as `verify_sum`, of what follows the last line end, so that "[34*27]918\\n918"
    answers "34*27=" like "918" does.
    """
    return verify_sum(
        visible_answer(answer).rstrip().rpartition("\n")[2] if isinstance(answer, str) else "", row
    )


def verify_countdown(answer: str, row: Mapping[str, Any]) -> Result:
    """`countdown`: any expression with the target's value that uses each given number at most once.

    Every number must be used where the question says "all". Exact fractions; an equals sign, or any
    other text, is refused.
    """
    question = question_of(row)
    goal = _countdown_goal(question, row.get("metadata"))
    if goal is None:
        return Failed(
            "the row has neither metadata with `numbers` and `target` nor a question that states"
            " them"
        )
    given, target = goal
    try:
        tree = arithmetic.parse_expression(bare_answer(answer))
        used = arithmetic.numbers_in_tree(tree)
        spare = _remove_items(given, used)
        if spare is None:
            return Score(0.0, f"uses {used}, given were {sorted(given)}")
        if spare and re.search(r"\ball\b", question):
            return Score(0.0, f"leaves out {spare}")
        result = arithmetic.evaluate_tree(tree)
    except arithmetic.NotArithmetic as error:
        return Score(0.0, f"not an answer: {error}")
    return (
        Score(1.0, f"equals {target}")
        if result == target
        else Score(0.0, f"equals {result}, not {target}")
    )


def verify_letter_counting(answer: str, row: Mapping[str, Any]) -> Result:
    """`letter_counting`: how often a letter occurs in the quoted text.

    Capitals count like small letters.
    """
    found = re.search(
        r'the letter "(\w)" (?:appear|occur) in (?:the text: )?"(.*)"', question_of(row), re.DOTALL
    )
    truth = Fraction(found.group(2).lower().count(found.group(1).lower())) if found else None
    return _number(
        answer, truth, "the question does not name a letter and a text in quotation marks"
    )


def verify_leg_counting(answer: str, row: Mapping[str, Any]) -> Result:
    """`leg_counting`: the legs of all the animals that the question lists.

    "4 birds, 1 wasp, 11 butterflys?"
    """
    animals = re.findall(r"([0-9]+) ([a-z ]+?)(?=[,?])", question_of(row))
    total = 0
    for count, name in animals:
        single = name if int(count) == 1 else name.removesuffix("s")
        if single not in LEGS:
            return Failed(f"unknown animal {name!r}")
        total += int(count) * LEGS[single]
    return _number(answer, Fraction(total) if animals else None, "the question lists no animals")


def verify_simple_equations(answer: str, row: Mapping[str, Any]) -> Result:
    """`simple_equations`: the answer in the place of the unknown makes both sides equal, exactly.

    An equation in which the unknown cancels out ("Solve for f: 0 = 0") is satisfied by every whole
    number, and the reason says so.
    """
    head, _, equation = question_of(row).strip().rpartition(": ")
    unknown = re.search(r"(?:for|of) ([a-z])\b", head)
    sides = equation.split("=")
    if (
        not unknown
        or len(sides) != 2
        or not set(re.findall(r"[a-z]+", equation)) <= {unknown.group(1)}
    ):
        return Failed("the question does not end in an equation in the unknown that it names")
    try:
        trees = [
            arithmetic.parse_expression(side.strip().replace(unknown.group(1), "(1)"))
            for side in sides
        ]
        if unknown.group(1) not in equation and arithmetic.evaluate_tree(
            trees[0]
        ) != arithmetic.evaluate_tree(trees[1]):
            return Failed("the equation has no solution")
    except arithmetic.NotArithmetic as error:
        return Failed(f"the equation cannot be read: {error}")
    guess = whole_number(answer)
    if guess is None:
        return Score(0.0, f"not a whole number: {answer!r:.60}")
    try:
        left, right = (
            arithmetic.evaluate(side.strip().replace(unknown.group(1), f"({guess})"))
            for side in sides
        )
    except arithmetic.NotArithmetic as error:
        return Score(0.0, f"not an answer: {error}")
    if left != right:
        return Score(0.0, f"{guess} makes the sides {left} and {right}")
    return Score(
        1.0,
        (
            "both sides agree"
            if unknown.group(1) in equation
            else "any number solves an equation without the unknown"
        ),
    )


def verify_number_sorting(answer: str, row: Mapping[str, Any]) -> Result:
    """`number_sorting`: all the numbers of the question in its order, compared exactly.

    The order is ascending or descending.

    The answer is a list of strings, ['1', '2.5'], where the question shows such a list, and
    otherwise numbers between commas.
    """
    question = question_of(row)
    found = re.search(r"in (ascending|descending) order:\s*([-0-9., ]+)", question)
    given = _decimals(found.group(2).strip().rstrip(".,").split(",")) if found else None
    if found is None or given is None:
        return Failed("the question does not name an order and a list of numbers")
    if len(answer) > 20 * len(question):
        return Score(0.0, "far too long")
    items = (
        _string_list(bare_answer(answer)) if "['" in question else bare_answer(answer).split(",")
    )
    ordered = _decimals(items) if items is not None else None
    if ordered is None:
        return Score(0.0, f"not a list of numbers in the form asked for: {answer!r:.60}")
    if ordered == sorted(given, reverse=found.group(1) == "descending"):
        return Score(1.0, "sorted")
    return Score(
        0.0,
        (
            "the same numbers in a wrong order"
            if sorted(ordered) == sorted(given)
            else "not the numbers that were given"
        ),
    )


def _number(answer: str, truth: Fraction | None, trouble: str) -> Result:
    if truth is None:
        return Failed(trouble)
    guess = whole_number(answer)
    if guess is None:
        return Score(0.0, f"not a whole number: {answer!r:.60}")
    return Score(1.0, f"equals {truth}") if guess == truth else Score(0.0, f"{guess}, not {truth}")


def _countdown_goal(question: str, metadata: Any) -> tuple[list[int], int] | None:
    if (
        isinstance(metadata, Mapping)
        and isinstance(metadata.get("target"), int)
        and isinstance(metadata.get("numbers"), list)
    ):
        return metadata["numbers"], metadata["target"]
    listed = re.search(r"numbers:? ([0-9]+(?:, ?[0-9]+)+)", question)
    target = re.search(r"(?:Calculate|make|equals) ([0-9]+)", question)
    return (
        ([int(part) for part in listed.group(1).split(",")], int(target.group(1)))
        if listed and target
        else None
    )


def _remove_items(given: list[int], used: list[int]) -> list[int] | None:
    """What is left of `given` when each of `used` is taken out once; None if one is not there."""
    left = list(given)
    for number in used:
        if number not in left:
            return None
        left.remove(number)
    return left


def _decimals(items: list[str]) -> list[Decimal] | None:
    texts = [item.strip() for item in items]
    try:
        return (
            [Decimal(text) for text in texts]
            if all(_DECIMAL.fullmatch(text) for text in texts)
            else None
        )
    except InvalidOperation:
        return None


def _string_list(text: str) -> list[str] | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return (
        value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None
    )
