"""Programs judged by their unit tests, in the sandbox: `humaneval` and `code`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from laurel.core.result import Failed, Result, Score
from laurel.core.sandbox import run_python

LONGEST = 100_000
SECONDS = 5.0
MEMORY_MB = 512
FENCE = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)

# Tests see only plain data: an object whose == always agrees is an error, not a pass. NAME is drawn anew for each program.
PLAIN = """
def NAME(function, _type=type, _map=dict, _many=(list, tuple, set, frozenset)):
    _plain = (int, float, complex, str, bytes, bool, _type(None), range)

    def check(value, depth=0):
        kind = _type(value)
        if kind in _many:
            for item in value:
                check(item, depth + 1)
        elif kind is _map:
            for pair in value.items():
                check(pair[0], depth + 1), check(pair[1], depth + 1)
        elif kind not in _plain:
            raise TypeError("the answer returns %r, not plain data" % (kind,))
        return value
    return lambda *args, **kwargs: check(function(*args, **kwargs))
"""


def humaneval(answer: str, row: Mapping[str, Any]) -> Result:
    """1 if the function passes the row's tests: columns prompt, entry_point, test (HumanEval, Chen et al. 2021, arXiv:2107.03374).

    The answer continues the prompt, or is the whole function, bare or in a ```python fence. Everything the program does wrong
    (an exception, a time limit of 5 s, 512 MiB, an early exit) is a 0 with its reason. The function may return plain data only.
    """
    missing = [name for name in ("prompt", "entry_point", "test") if not isinstance(row.get(name), str)]
    if missing:
        return Failed(f"the row has no text `{missing[0]}`")
    program = whole_program(row["prompt"], answer, row["entry_point"])
    name = f"plain_{secrets.token_hex(8)}"
    return judge(f"{PLAIN.replace('NAME', name)}\n{program}\n\n{row['test']}\n\ncheck({name}({row['entry_point']}))\n")


def code(answer: str, row: Mapping[str, Any]) -> Result:
    """1 if the program followed by the row's tests runs to its end: `tests` (a text), or `test_list` (asserts, as in MBPP).

    `test_setup_code` goes first. Rows with `entry_point` and `test` are judged as `humaneval`. Limits as there.
    """
    if "entry_point" in row and "test" in row:
        return humaneval(answer, row)
    tests = row.get("tests") if isinstance(row.get("tests"), str) else "\n".join(row.get("test_list") or [])
    if not tests or not tests.strip():
        return Failed("the row has no `tests` and no `test_list`")
    return judge("\n\n".join([str(row.get("test_setup_code") or ""), extract(answer, ""), tests, ""]))


def whole_program(prompt: str, answer: str, entry_point: str) -> str:
    """Prompt and answer as one program. An answer that defines the function itself keeps what the prompt has before it."""
    source = extract(answer, entry_point)
    definition = re.compile(rf"^def {re.escape(entry_point)}\b", re.MULTILINE)
    if not definition.search(source):
        return prompt + source
    starts = [match.start() for match in definition.finditer(prompt)]
    return prompt[: starts[-1]] + "\n" + source if starts else source


def extract(answer: str, entry_point: str) -> str:
    """The program in an answer: the last fenced block that defines `entry_point`, else the last block, else the answer as it is."""
    blocks = FENCE.findall(answer[:LONGEST]) if "```" in answer else []
    defining = [block for block in blocks if entry_point and re.search(rf"^def {re.escape(entry_point)}\b", block, re.MULTILINE)]
    return (defining or blocks or [answer])[-1]


def judge(program: str) -> Result:
    """1 if the program runs to its last line inside the sandbox."""
    if len(program) > 2 * LONGEST:
        return Score(0.0, f"longer than {LONGEST} characters")
    outcome = run_python(program, seconds=SECONDS, memory_mb=MEMORY_MB)
    if outcome.reason == "sandbox":
        return Failed(f"the sandbox did not start: {outcome.stderr[-300:]}")
    if outcome.ok:
        return Score(1.0, "passes the tests")
    last = outcome.stderr.strip().splitlines()[-1:] or [""]
    return Score(0.0, f"{outcome.reason}: {last[0]:.120}")
