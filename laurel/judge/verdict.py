"""What a judge says: one verdict for each question, one judgement for each item.

A verdict is about the responses themselves, never about the places where they were shown. It is
`a`, `b`, `tie`, `invalid` (an answer that cannot be read) or `error` (no answer). The two failures
are no tie and no number, and neither is what is made of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from laurel.core.result import Abstain, Failed, Result, Score

A, B, TIE, INVALID, ERROR = "a", "b", "tie", "invalid", "error"
INCONSISTENT = "inconsistent"
"""Valid verdicts on one item that differ."""
SCORED = "scored"
"""The status of a response that was scored; `abstain` where the judge declined to."""
ABSTAIN = "abstain"
VALID = (A, B, TIE, SCORED, ABSTAIN)
STRAIGHT, SWAPPED = (0, 1), (1, 0)
CHANCE = {A: 1.0, TIE: 0.5, B: 0.0}
MARGIN = {1: 1.0, 2: 0.33, 3: 0.33, 4: 1.0}
"""Of the four levels of the annotators' page: how much better, as people's exports have it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one question.

    order: (0, 1) as stored, (1, 0) swapped. chance: P(a is better), from log-probabilities or
    samples; None where the answer was only read. level: 1 (a better) to 4 (b better). score: of a
    response alone. criteria: of a rubric, each one's verdict, None where it abstained.
    missing_mass: of the first token's probability, what fell on no label; None where it is unknown.
    tokens: read and written.
    """

    judge: str
    status: str
    order: tuple[int, int] = STRAIGHT
    repeat: int = 0
    chance: float | None = None
    level: int | None = None
    score: float | None = None
    criteria: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    missing_mass: float | None = None
    raw: str = ""
    reason: str = ""
    prompt_version: str = ""
    tokens: tuple[int, int] = (0, 0)
    cached: bool = False

    @property
    def likely(self) -> float | None:
        """P(a is better): `chance`, or 1, 1/2, 0 for a plain a, tie, b; None for a failure."""
        return self.chance if self.chance is not None else CHANCE.get(self.status)

    @property
    def margin(self) -> float | None:
        """How much better, with a sign: above 0 for a. None without a level."""
        if self.level is None:
            return None
        return MARGIN[self.level] * (1 if self.level <= 2 else -1)


@dataclass(frozen=True, slots=True)
class Judgement:
    """All verdicts on one item, and what they come to.

    status: as of a verdict, or `inconsistent`. soft_label: P(a is better), the mean over orders and
    judges; None unless each of them gave a valid verdict. score: of a response alone.
    """

    id: str
    status: str
    soft_label: float | None = None
    score: float | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def valid(self) -> bool:
        """Was every question answered in a way that can be read?"""
        return self.status not in (INVALID, ERROR)

    @property
    def reason(self) -> str:
        """Why it failed, in one line."""
        bad = [verdict for verdict in self.verdicts if verdict.status in (INVALID, ERROR)]
        return f"{bad[0].status}: {bad[0].reason}" if bad else ""

    @property
    def margin(self) -> float | None:
        """The mean margin of the levels, above 0 for a; None without levels."""
        margins = [verdict.margin for verdict in self.verdicts]
        known = [margin for margin in margins if margin is not None]
        return sum(known) / len(known) if known and len(known) == len(margins) else None

    def result(self) -> Result:
        """The score as a reward's result: a failure is Failed, an abstention Abstain."""
        if not self.valid:
            return Failed(self.reason)
        if self.score is None:
            return Abstain(next((one.reason for one in self.verdicts if one.reason), ""))
        return Score(self.score)


def of_pair(id: str, verdicts: Sequence[Verdict]) -> Judgement:
    """The judgement of a pair from the verdicts of both orders and all judges of a panel.

    One failure leaves a pair without a label: an order alone has the bias for a place that asking
    in both is there to cancel. Of a panel it costs that judge's voice, unless none is left.
    """
    by_judge: dict[tuple[str, int], list[Verdict]] = {}
    for verdict in verdicts:
        by_judge.setdefault((verdict.judge, verdict.repeat), []).append(verdict)
    words = [combined(given) for given in by_judge.values()]
    heard = [
        given
        for word, given in zip(words, by_judge.values(), strict=True)
        if word not in (INVALID, ERROR)
    ]
    if not heard:
        return Judgement(id, ERROR if ERROR in words else INVALID, verdicts=tuple(verdicts))
    chances = [verdict.likely for given in heard for verdict in given]
    known = [chance for chance in chances if chance is not None]
    status = majority([word for word in words if word not in (INVALID, ERROR)])
    return Judgement(id, status, sum(known) / len(known), verdicts=tuple(verdicts))


def combined(verdicts: Sequence[Verdict]) -> str:
    """One judge's word on a pair: what all its verdicts say, `inconsistent`, or the failure."""
    statuses = [verdict.status for verdict in verdicts]
    for failure in (ERROR, INVALID):
        if failure in statuses:
            return failure
    return statuses[0] if len(set(statuses)) == 1 else INCONSISTENT


def majority(words: Sequence[str]) -> str:
    """What more judges say than anything else; `inconsistent` where two lead."""
    ranked = Counter(words).most_common(2)
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else INCONSISTENT


def of_response(id: str, verdicts: Sequence[Verdict]) -> Judgement:
    """The judgement of a response alone: the mean score of the judges that gave one.

    A failure of every judge is a failure; where all others abstained, it is abstained from.
    """
    heard = [verdict for verdict in verdicts if verdict.status in (SCORED, ABSTAIN)]
    if not heard:
        failed = [verdict.status for verdict in verdicts]
        return Judgement(id, ERROR if ERROR in failed else INVALID, verdicts=tuple(verdicts))
    scores = [verdict.score for verdict in heard if verdict.score is not None]
    if not scores:
        return Judgement(id, ABSTAIN, verdicts=tuple(verdicts))
    return Judgement(id, SCORED, score=sum(scores) / len(scores), verdicts=tuple(verdicts))


def as_row(id: str, verdict: Verdict) -> dict[str, Any]:
    """A row of `verdicts.jsonl`."""
    return {
        "id": id,
        "judge": verdict.judge,
        "prompt_version": verdict.prompt_version,
        "order": list(verdict.order),
        "repeat": verdict.repeat,
        "status": verdict.status,
        "chance": verdict.chance,
        "level": verdict.level,
        "score": verdict.score,
        "criteria": dict(verdict.criteria),
        "missing_mass": verdict.missing_mass,
        "raw": verdict.raw,
        "reason": verdict.reason,
        "tokens": list(verdict.tokens),
    }
