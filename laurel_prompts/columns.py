"""The columns of a log.

Common names are read as ours, texts that are numbers become numbers, and what is not used is named.
"""

from __future__ import annotations

import math
from typing import Any

from laurel.core.errors import UsageError
from laurel.data.read import Record

NUMBERS = ("reward", "cost", "propensity", "confidence")
COLUMNS = ("query", "prompt", *NUMBERS, "query_id", "sample", "response", "model", "split")
ALIASES: dict[str, tuple[str, ...]] = {
    "query": ("question", "input", "problem", "query_text", "question_text", "user_query"),
    "prompt": ("prompt_text", "prompt_template", "template", "prompt_name", "prompt_id"),
    "reward": (
        "correct",
        "is_correct",
        "correctness",
        "score",
        "success",
        "passed",
        "accuracy",
        "acc",
    ),
    "response": (
        "completion",
        "output",
        "model_output",
        "model_answer",
        "response_text",
        "generation",
        "prediction",
    ),
    "cost": ("total_tokens", "tokens", "price"),
    "propensity": ("propensity_score", "logging_probability"),
    "query_id": ("question_id", "qid"),
    "sample": ("sample_id", "draw"),
    "model": ("model_name", "llm"),
}
"""Column -> what others call it, the likelier name first.

Read only where the column itself is not there.
"""


def _quoted(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _find_column(column: str, names: list[str], read: dict[str, str], where: str) -> str:
    """The column of a file that is read as `column`; "" where there is none.

    Of two that could be the query or the reward none is taken. Of the others the likelier one is,
    and the rest is named as unused.
    """
    found = [name for name in names if snake_case(name) == column]
    for other in ALIASES.get(column, ()) if not found else ():
        found += [name for name in names if snake_case(name) == other and name not in read]
    if len(found) > 1 and column in ("query", "reward"):
        raise UsageError(
            f"{len(found)} columns could be the {column}: {_quoted(found)}.",
            where=where,
            fix=f"Call one of them `{column}`.",
        )
    return found[0] if found else ""


def standard_columns(records: list[Record], where: str) -> tuple[list[Record], list[str]]:
    """The rows under our names, and a sentence for each column renamed or not used.

    Case, spaces and hyphens of a name do not matter. A column that is there under its own name is
    never replaced; where two others could be it, that is a UsageError. A name one slip away from
    ours is left for the rows' own check, which refuses it.
    """
    names = list(dict.fromkeys(name for _, row in records for name in row))
    read = {name: name for name in names if name in COLUMNS}
    notes = []
    for column in COLUMNS:
        if column not in read and (found := _find_column(column, names, read, where)):
            read[found] = column
            notes.append(f"column `{found}` is read as {column}")
    missing = [
        column
        for column in ("query", "prompt", "reward")
        if column not in read.values() and column not in map(closest_column, names)
    ]
    if missing:
        fix = f"The file has {_quoted(names)}: which one is it? Call it `{missing[0]}`."
        raise UsageError(f"no column `{missing[0]}`.", where=where, fix=fix)
    unused = [name for name in names if name not in read and not closest_column(name)]
    if unused:
        notes.append(f"columns that are not used: {_quoted(unused)}")
    kept = [name for name in names if name not in unused]
    return [
        (place, {read.get(n, n): convert_cell(row[n], n, read.get(n, n)) for n in kept if n in row})
        for place, row in records
    ], notes


def query_column(records: list[Record], where: str) -> str:
    """Which column of a file of queries holds them: `query`, or what others call it."""
    names = list(dict.fromkeys(name for _, row in records for name in row))
    found = [name for name in names if snake_case(name) == "query"] or [
        name for name in names if snake_case(name) in ALIASES["query"]
    ]
    if len(found) != 1:
        what = (
            f"{len(found)} columns could be the query: {', '.join(f'`{name}`' for name in found)}."
            if found
            else "no column `query`."
        )
        fix = (
            "Call one of them `query`."
            if found
            else f"The file has {', '.join(f'`{name}`' for name in names)}: which one is it?"
        )
        raise UsageError(what, where=where, fix=fix)
    return found[0]


def snake_case(name: str) -> str:
    """`Is Correct` -> `is_correct`."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def closest_column(name: str) -> str:
    """The column of ours that this name misses by one slip of the keyboard, else "".

    `rewrad` -> reward, `prompt_2` -> "".
    """
    name_given = snake_case(name)
    return next(
        (
            column
            for column in COLUMNS
            if name_given != column
            and name_given.replace("_", "").isalpha()
            and _is_one_typo_apart(name_given, column)
        ),
        "",
    )


def _is_one_typo_apart(one: str, other: str) -> bool:
    """One letter more, fewer or other, or two neighbours exchanged."""
    if len(one) == len(other):
        wrong = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        swapped = (
            len(wrong) == 2
            and wrong[1] == wrong[0] + 1
            and one[wrong[0]] == other[wrong[1]]
            and one[wrong[1]] == other[wrong[0]]
        )
        return len(wrong) == 1 or swapped
    short, long = sorted((one, other), key=len)
    return len(long) == len(short) + 1 and any(
        long[:i] + long[i + 1 :] == short for i in range(len(long))
    )


def convert_cell(value: Any, name: str, column: str) -> Any:
    """A cell as its column wants it.

    "True" and "0.50" of a CSV as numbers, the number of a `prompt_id` or a model as a name.
    """
    if column in NUMBERS and isinstance(value, str):
        text = value.strip().casefold()
        if text in ("true", "false"):
            return text == "true"
        try:
            number = float(text)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    named = column == "model" or (
        column == "prompt" and snake_case(name) in ("prompt_id", "prompt_name")
    )
    return str(value) if named and isinstance(value, int | float) else value
