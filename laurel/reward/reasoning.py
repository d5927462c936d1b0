"""The scorers of reasoning-gym as verifiers, in killable workers: some of them parse and evaluate
what the model wrote.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from laurel.core.result import Failed, Result, Score
from laurel.core.workers import Workers
from laurel.data.reasoning import load_gym_task

SECONDS = 10.0


def score_by_gym(payload: tuple[str, str, dict[str, Any]]) -> float:
    """(task, answer, entry) -> what the task's own scorer says.

    Runs in a worker: it may never end.
    """
    name, answer, entry = payload
    return float(_scorer(name).score_answer(answer, entry))


@lru_cache(maxsize=64)
def _scorer(name: str) -> Any:
    return load_gym_task(name, seed=0, size=1)


POOL = Workers(score_by_gym, size=2, seconds=SECONDS)


@dataclass(frozen=True, slots=True)
class GymScorer:
    """The scorer of one task, `reasoning_gym:TASK`: 1 for a right answer.

    Many tasks give a little for an answer in the right form.

    The row holds what the task made: `question` (or a prompt that is text), `answer` and
    `metadata`.
    """

    name: str

    def __call__(self, answer: str, row: Mapping[str, Any]) -> Result:
        question = row.get("question", row.get("prompt"))
        entry = {
            "question": question,
            "answer": row.get("answer"),
            "metadata": row.get("metadata") or {},
        }
        value = POOL.call((self.name, answer, entry))
        if isinstance(value, Failed):
            return value
        if not math.isfinite(value):
            return Failed(f"the scorer said {value}")
        return Score(value, "the task's own scorer")


def gym_verifier(name: str) -> GymScorer:
    """The verifier of `reasoning_gym:TASK`; no such task or parameter is a UsageError."""
    load_gym_task(name, seed=0, size=1)
    return GymScorer(name)
