"""Programs judged by their unit tests, in the sandbox: `humaneval` and `code`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from laurel.core.result import Failed, Result, Score
from laurel.core.sandbox import run_python
from laurel.data.strip_thinking import visible_answer

LONGEST = 100_000
SECONDS = 5.0
MEMORY_MB = 512
FENCE = re.compile(
    r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE
)


def humaneval(answer: str, row: Mapping[str, Any]) -> Result:
    """1 if the function passes the row's tests: columns prompt, entry_point, test (HumanEval, Chen
    et al. 2021, arXiv:2107.03374).

    The answer continues the prompt, or is the whole function, bare or in a ```python fence.
    Everything the program does wrong (an exception, a time limit of 5 s, 512 MiB, an early exit) is
    a 0 with its reason. The tests run in a process that the program cannot reach and see plain data
    only. Helpers that the prompt defines before the function are the prompt's own in the tests.
    """
    missing = [
        name for name in ("prompt", "entry_point", "test") if not isinstance(row.get(name), str)
    ]
    if missing:
        return Failed(f"the row has no text `{missing[0]}`")
    prompt, entry_point = row["prompt"], row["entry_point"]
    program = whole_program(prompt, visible_answer(answer), entry_point)
    helpers = prompt[
        : max(
            (match.start() for match in definition_pattern(entry_point).finditer(prompt)), default=0
        )
    ]
    return judge(program, f"{helpers}\n{row['test']}\n\ncheck({entry_point})\n")


def code(answer: str, row: Mapping[str, Any]) -> Result:
    """1 if the row's tests run to their end on the program: `tests` (a text or a list), or
    `test_list` (asserts, as in MBPP).

    `test_setup_code` (and MBPP's `test_imports`) goes before the tests, and before the program
    where it can do without it. MBPP's `challenge_test_list` is not run, as in its paper. Rows with
    `entry_point` and `test` are judged as `humaneval`. Limits as there.
    """
    if "entry_point" in row and "test" in row:
        return humaneval(answer, row)
    tests = code_text(row.get("tests")) or code_text(row.get("test_list"))
    if not tests:
        return Failed("the row has no `tests` and no `test_list`")
    setup = "\n".join(
        filter(None, (code_text(row.get("test_imports")), code_text(row.get("test_setup_code"))))
    )
    return judge(extract_program(visible_answer(answer), ""), f"{tests}\n", setup)


def code_text(value: Any) -> str:
    """A column of code as one text: a text, or a list of texts."""
    parts = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    return "\n".join(part for part in parts if isinstance(part, str) and part.strip()).replace(
        "\r\n", "\n"
    )


def definition_pattern(entry_point: str) -> re.Pattern[str]:
    """Where a function is defined at the left margin."""
    return re.compile(rf"^(?:async\s+)?def {re.escape(entry_point)}\b", re.MULTILINE)


def whole_program(prompt: str, answer: str, entry_point: str) -> str:
    """Prompt and answer as one program.

    An answer that defines the function itself keeps what the prompt has before it.
    """
    source = extract_program(answer, entry_point)
    if not definition_pattern(entry_point).search(source):
        return prompt + source
    starts = [match.start() for match in definition_pattern(entry_point).finditer(prompt)]
    return prompt[: starts[-1]] + "\n" + source if starts else source


def extract_program(answer: str, entry_point: str) -> str:
    """The program in an answer: the last fenced block that defines `entry_point`, else the last
    block, else the answer as it is.
    """
    blocks = FENCE.findall(answer[:LONGEST]) if "```" in answer else []
    defining = [
        block
        for block in blocks
        if entry_point and re.search(rf"^def {re.escape(entry_point)}\b", block, re.MULTILINE)
    ]
    return (defining or blocks or [answer])[-1]


def judge(program: str, tests: str, setup: str = "") -> Result:
    """1 if the tests run to their last line on the program, inside the sandbox."""
    if len(program) > 2 * LONGEST:
        return Score(0.0, f"longer than {LONGEST} characters")
    outcome = run_python(program, seconds=SECONDS, memory_mb=MEMORY_MB, tests=tests, setup=setup)
    if outcome.reason == "sandbox":
        return Failed(f"the sandbox did not start: {outcome.stderr[-300:]}")
    if outcome.ok:
        return Score(1.0, "passes the tests")
    last = outcome.stderr.strip().splitlines()[-1:] or [""]
    return Score(0.0, f"{outcome.reason}: {last[0]:.120}")
