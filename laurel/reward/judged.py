"""A judge as a reward: `judge:FILE.yaml`.

A judge of single responses (score, rubric) gives its score. A judge of pairs gives each answer

    reward = mean over the other answers of its prompt of P(this one is better)

which is 1/2 on average, or with `against: COLUMN` P(better than the answer in that column). A
question without an answer, or with one that cannot be read, is Failed: never a zero, never a tie.
Lee et al. 2023, arXiv:2309.00267 (direct scores); Guo et al. 2024, arXiv:2402.04792 (pairs online).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from laurel.core.errors import LaurelError, UsageError
from laurel.core.result import Abstain, Failed, Result, Score
from laurel.judge.judge import Item, Judge, Pair, spoken
from laurel.judge.options import JudgeConfig, judges_pairs, read_judge
from laurel.judge.verdict import Judgement

ALONE = "a judge of pairs has nothing to compare it with: take num_generations of 2 or more"


class JudgeReward:
    """The reward. The judge is started at the first call, and kept."""

    def __init__(self, config: JudgeConfig, name: str) -> None:
        self.config, self.__name__ = config, name
        self.judge: Judge | None = None
        self.guard = threading.Lock()

    @property
    def win_chances(self) -> bool:
        """Is the reward P(better than another answer to the prompt)?"""
        return judges_pairs(self.config) and self.config.against is None

    def __call__(
        self, prompts: list[Any], completions: list[Any], **columns: list[Any]
    ) -> list[Result]:
        """A result for each completion."""
        needed = [self.config.reference, self.config.against]
        for column in needed:
            if column is not None and column not in columns:
                fix = f"The dataset's columns: {', '.join(columns) or 'none'}."
                where = f"reward judge:{self.__name__}"
                raise UsageError(f"the column `{column}` is missing.", where=where, fix=fix)
        references = columns.get(self.config.reference or "", [""] * len(prompts))
        rows = list(zip(prompts, completions, references, strict=True))
        try:
            return self.judged(rows, columns)
        except LaurelError as error:
            # of the server, not of a sample: asked one by one they would all wait for it again
            return [Failed(str(error))] * len(rows)

    def judged(self, rows: Sequence[Row], columns: Mapping[str, Sequence[Any]]) -> list[Result]:
        """A result for each row. LaurelError where the server stays down, or refuses all."""
        with self.guard:
            if self.judge is None:
                self.judge = Judge(self.config)
        if not judges_pairs(self.config):
            items = [
                Item(str(i), prompt, said, spoken(reference or ""))
                for i, (prompt, said, reference) in enumerate(rows)
            ]
            return [one.result() for one in self.judge.score(items)]
        if self.config.against is not None:
            return self.against(self.judge, rows, columns[self.config.against])
        return self.among_themselves(self.judge, rows)

    def against(self, judge: Judge, rows: Sequence[Row], others: Sequence[Any]) -> list[Result]:
        """P(better than the row's other answer); Abstain where the row has none."""
        pairs = {
            i: Pair(str(i), prompt, said, other, spoken(reference or ""))
            for i, ((prompt, said, reference), other) in enumerate(zip(rows, others, strict=True))
            if other
        }
        judged = dict(zip(pairs, judge.compare(list(pairs.values())), strict=True))
        return [
            chance_result([likely_first(judged[i])], judged[i].reason)
            if i in judged
            else Abstain("there is no answer to compare it with")
            for i in range(len(rows))
        ]

    def among_themselves(self, judge: Judge, rows: Sequence[Row]) -> list[Result]:
        """The mean P(better) against other answers of the same prompt.

        An answer some of whose comparisons failed has failed: the rest would compare it with
        others than its neighbours are compared with.
        """
        places = [pair for group in by_prompt(rows) for pair in drawn(group, self.config.max_pairs)]
        pairs = [
            Pair(f"{a}-{b}", rows[a][0], rows[a][1], rows[b][1], spoken(rows[a][2] or ""))
            for a, b in places
        ]
        chances: list[list[float | None]] = [[] for _ in rows]
        reasons = [ALONE] * len(rows)
        for (a, b), judged in zip(places, judge.compare(pairs), strict=True):
            likely = likely_first(judged)
            chances[a].append(likely)
            chances[b].append(None if likely is None else 1 - likely)
            if likely is None:
                reasons[a] = reasons[b] = judged.reason
        return [
            chance_result(found, reason) for found, reason in zip(chances, reasons, strict=True)
        ]


Row = tuple[Any, Any, Any]
"""Prompt, completion, reference."""


def by_prompt(rows: Sequence[Row]) -> list[list[int]]:
    """The places of the answers to each prompt."""
    groups: dict[str, list[int]] = {}
    for i, (prompt, _, reference) in enumerate(rows):
        groups.setdefault(json.dumps([prompt, reference], default=str), []).append(i)
    return list(groups.values())


def drawn(group: Sequence[int], most: int) -> list[tuple[int, int]]:
    """The pairs of a group: all, or each answer with `most` of those that follow it in a ring."""
    size = len(group)
    if not most or most >= size - 1:
        return list(combinations(group, 2))
    # an even share: i meets those 1, 2, ... places on, and is met by those before it
    steps = range(1, (most + 1) // 2 + 1)
    ring = {frozenset((group[i], group[(i + step) % size])) for step in steps for i in range(size)}
    return sorted((min(pair), max(pair)) for pair in ring)


def likely_first(judged: Judgement) -> float | None:
    """P(the first is better); None where the judgement failed."""
    return judged.soft_label if judged.valid else None


def chance_result(chances: Sequence[float | None], reason: str) -> Result:
    """The mean of some chances, or the failure of any."""
    if not chances or any(chance is None for chance in chances):
        return Failed(reason)
    return Score(sum(chance for chance in chances if chance is not None) / len(chances))


def parse(name: str) -> JudgeReward:
    """The reward of `judge:FILE.yaml`, its file checked."""
    path = name.removeprefix("judge:")
    if not path:
        raise UsageError("no file is named.", where=f"reward `{name}`", fix="judge:judge.yaml")
    config = read_judge(path)
    judges_pairs(config)
    return JudgeReward(config, Path(path).stem)
