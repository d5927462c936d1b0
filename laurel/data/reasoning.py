"""The tasks of the package reasoning-gym as rows: `reasoning_gym:chain_sum`, with parameters
`reasoning_gym:chain_sum:max_terms=3`.

Its 100 generators of puzzles, sums and games, each with a scorer of its own (Stojanovski et al.
2025, arXiv:2505.24760).
"""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from laurel.core.errors import UsageError, nearest

PREFIX = "reasoning_gym:"


def is_gym(name: Any) -> bool:
    """True for `reasoning_gym:TASK`, with or without parameters."""
    return isinstance(name, str) and name.startswith(PREFIX)


def gym_rows(name: str, seed: int, size: int) -> list[dict[str, Any]]:
    """`size` rows with prompt, question, answer, task and metadata.

    `completion` where the task knows an answer.

    Row i depends on the task, its parameters and seed + i: neighbouring seeds share rows, so take
    seeds far apart.
    """
    rows = []
    for entry in load_gym_task(name, seed=seed, size=size):
        answer = entry.get("answer")
        known = {"completion": answer} if isinstance(answer, str) else {}
        held = {
            "question": entry["question"],
            "answer": answer,
            "task": name,
            "metadata": entry.get("metadata") or {},
        }
        rows.append({"prompt": entry["question"], **known, **held})
    return rows


def load_gym_task(name: str, **more: Any) -> Any:
    """reasoning-gym's data set of a name, whose scorer judges answers.

    No such task or parameter is a UsageError.
    """
    if find_spec("reasoning_gym") is None:
        what = "the tasks of reasoning-gym need their package."
        raise UsageError(what, where=name, fix='Install it: pip install "laurel-rl[reasoning]".')
    # an optional package: find_spec has found it
    import reasoning_gym  # pyright: ignore[reportMissingImports]
    from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]

    task, _, text = name.removeprefix(PREFIX).partition(":")
    if task not in DATASETS:
        raise UsageError(
            f"reasoning-gym has no task `{task}`.", where=name, fix=nearest(task, DATASETS)
        )
    known = [
        field.name for field in fields(DATASETS[task][1]) if field.name not in ("seed", "size")
    ]
    given = dict(parse_parameter(pair, name) for pair in filter(None, text.split(",")))
    for option in given:
        if option not in known:
            raise UsageError(
                f"task `{task}` has no parameter `{option}`.",
                where=name,
                fix=nearest(option, known),
            )
    try:
        return reasoning_gym.create_dataset(task, **given, **more)
    except (AssertionError, TypeError, ValueError) as error:
        fix = f"Its parameters: {', '.join(known)}."
        raise UsageError(
            f"reasoning-gym refuses these parameters: {error}.", where=name, fix=fix
        ) from None


def parse_parameter(pair: str, name: str) -> tuple[str, Any]:
    """`parameter=value`; the value as JSON, or as text where it is none."""
    key, equals, value = pair.partition("=")
    if not equals or not key.strip():
        raise UsageError(
            f"`{pair}` is not parameter=value.",
            where=name,
            fix=f"As in `{PREFIX}chain_sum:max_terms=3`.",
        )
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value.strip()
