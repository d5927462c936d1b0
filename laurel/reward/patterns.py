"""Regular expressions as rewards: `regex` (the row's own pattern) and Format, a gate.

Matched in killable workers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from laurel.core.errors import UsageError
from laurel.core.result import Failed, Result, Score
from laurel.core.workers import Workers
from laurel.reward.extract import text_column

LONGEST = 100_000
SECONDS = 2.0
_BLANK = r"[\s\u200b\u2060\ufeff]"
_TEXT = rf"(?!{_BLANK}*</)(?:(?!</?(?:think|answer)>).)+"  # filled: not by white space alone
THINK_ANSWER = rf"<think>{_TEXT}</think>\s*<answer>{_TEXT}</answer>"


def is_full_match(payload: tuple[str, str]) -> bool:
    """(pattern, text) -> does the whole text match? `.` matches line ends too."""
    pattern, text = payload
    return re.fullmatch(pattern, text, re.DOTALL) is not None


POOL = Workers(is_full_match, size=2, seconds=SECONDS)


def regex(answer: str, row: Mapping[str, Any]) -> Result:
    """1 if the whole stripped answer matches the row's `pattern` (write `.*` yourself to search),
    else 0.

    A pattern that takes more than 2 s on this answer is Failed; so is a row without a valid
    `pattern`.
    """
    pattern = text_column(row, "pattern")
    if pattern is None:
        return Failed("the row has no `pattern`")
    return judge_by_pattern(pattern, answer)


def judge_by_pattern(pattern: str, answer: str) -> Result:
    """1 or 0 for one pattern and one answer, within the time limit."""
    if len(answer) > LONGEST:
        return Score(0.0, f"longer than {LONGEST} characters")
    found = POOL.call((pattern, answer.strip()))
    if isinstance(found, Failed):
        return Failed(f"pattern {pattern!r:.60}: {found.reason}")
    return Score(1.0, "matches") if found else Score(0.0, f"does not match {pattern!r:.60}")


@dataclass(frozen=True, slots=True)
class Format:
    """A gate: 1 where the whole answer has the format, 0 where not.

    In a mixture it multiplies the other rewards, never adds.

    The default pattern asks for one `<think>...</think>` and then one `<answer>...</answer>`, both
    filled (white space fills nothing), and nothing else.
    """

    pattern: str = THINK_ANSWER
    gate: ClassVar[bool] = True
    __name__: ClassVar[str] = "format"

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UsageError(
                f"`{self.pattern}` is not a regular expression: {error}.", where="format"
            ) from None

    def __call__(self, answer: str, row: Mapping[str, Any]) -> Result:
        """Judge one answer; the row is not looked at."""
        return judge_by_pattern(self.pattern, answer)
