"""Every row proves itself: score each row's own gold answer with the verifier that will judge the
policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from laurel.core.errors import UsageError
from laurel.core.protocols import Verifier
from laurel.core.result import Result, Score
from laurel.data.formats import gold_answer
from laurel.data.source import Row
from laurel.data.split import Duplicates, duplicates

Watch = Callable[[Iterable[Row]], Iterable[Row]]


@dataclass(frozen=True, slots=True)
class WrongGold:
    """A row whose gold answer is not right: where it is, the answer, and what the verifier said."""

    where: str
    answer: str
    result: Result | None

    @property
    def reason(self) -> str:
        """In one line what is wrong."""
        if self.result is None:
            return "the row holds no gold answer"
        return f"{type(self.result).__name__.lower()}: {self.result.reason}"


@dataclass(frozen=True, slots=True)
class GoldCheck:
    """What `check_rows` found. right + len(wrong) + len(failed) == rows."""

    rows: int
    right: int
    wrong: tuple[WrongGold, ...]
    failed: tuple[WrongGold, ...]
    duplicates: Duplicates

    @property
    def passed(self) -> bool:
        """True if every gold answer is right."""
        return self.right == self.rows


def check_rows(
    rows: Sequence[Row], verifier_for: Callable[[Row], Verifier], *, watch: Watch = iter
) -> GoldCheck:
    """Score the gold answer of each (normalised) row with `verifier_for(row)`.

    Right is a score of at least 1. Failed counts failures, abstentions and rows without a gold
    answer; if no row has one, that is a UsageError. `watch` wraps the iteration (a progress bar).
    """
    if not any(gold_answer(row.columns) is not None for row in rows):
        columns = ", ".join(f"`{name}`" for name in rows[0].columns)
        fix = (
            "A gold answer is a `completion`, an `answer` or a last assistant message; the columns"
            f" are {columns}."
        )
        raise UsageError("no row holds a gold answer.", where=rows[0].where, fix=fix)
    right, wrong, failed = 0, [], []
    for row in watch(rows):
        answer = gold_answer(row.columns)
        result = None if answer is None else verifier_for(row)(answer, row.columns)
        if isinstance(result, Score) and result.value >= 1.0:
            right += 1
        else:
            (wrong if isinstance(result, Score) else failed).append(
                WrongGold(row.where, answer or "", result)
            )
    return GoldCheck(len(rows), right, tuple(wrong), tuple(failed), duplicates(rows))
