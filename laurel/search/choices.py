"""One answer out of several: the best by a score, or the one that most agree on.

A choice says what it rests on, and what stood against it. An answer without a score or a vote takes
no part; where all are without, there is no choice, and the reason is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from laurel.core.errors import UsageError
from laurel.core.result import Abstain, Failed
from laurel.search.answers import Kind, votes_of
from laurel.search.pool import Answer, Question

Weigh = Literal["none", "likelihood", "score"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer that was chosen of a question: its place, or None and the reason.

    value: its score, or the weight of its votes. shares: of each vote. left_out: answers that took
    no part. drawn, tokens: of all answers. decided: by a rule that may be looked at after each
    answer, whether it was sure; None where no such rule was used.
    """

    question: str
    place: int | None
    value: float | None = None
    vote: str | None = None
    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    left_out: int = 0
    drawn: int = 0
    tokens: int = 0
    decided: bool | None = None
    reason: str = ""


def best(question: Question, scorer: str) -> Choice:
    """The answer with the highest score; of several the first."""
    scores = [answer.score(scorer) for answer in question.answers]
    there = {place: score for place, score in enumerate(scores) if score is not None}
    left_out = len(scores) - len(there)
    drawn, tokens = len(scores), question.tokens
    if not there:
        why = why_unscored(question.answers, scorer)
        return Choice(question.id, None, left_out=left_out, drawn=drawn, tokens=tokens, reason=why)
    place = max(there, key=lambda one: there[one])
    return Choice(question.id, place, there[place], left_out=left_out, drawn=drawn, tokens=tokens)


def vote(
    question: Question,
    kind: Kind = "auto",
    weigh: Weigh = "none",
    scorer: str = "",
    *,
    votes: Sequence[str | None] | None = None,
) -> Choice:
    """The answer that most agree on; its first text stands for it. Of several the first.

    weigh: each vote counts 1, its likelihood per token, or what a scorer gives it
    (`vote_weights`). votes: where they are known already. Wang et al. 2022, arXiv:2203.11171; Li
    et al. 2023, arXiv:2206.02336 (weighted by a verifier).
    """
    votes = (
        votes_of([one.text for one in question.answers], question.row, kind)
        if votes is None
        else votes
    )
    weights = vote_weights(question.answers, weigh, scorer)
    totals = totals_of(votes, weights)
    drawn, tokens = len(votes), question.tokens
    left_out = sum(
        one is None or weight is None for one, weight in zip(votes, weights, strict=True)
    )
    if not totals:
        why = "no answer can be read"
        if any(one is not None for one in votes):
            why = why_unscored(question.answers, scorer)
        return Choice(question.id, None, left_out=left_out, drawn=drawn, tokens=tokens, reason=why)
    chosen = max(totals, key=lambda one: totals[one])
    total = sum(totals.values())
    shares = {one: value / total if total else 0.0 for one, value in totals.items()}
    return Choice(
        question.id,
        list(votes).index(chosen),
        totals[chosen],
        chosen,
        shares,
        left_out,
        drawn,
        tokens,
    )


def totals_of(votes: Sequence[str | None], weights: Sequence[float | None]) -> dict[str, float]:
    """vote -> the sum of its weights, in the order in which they first came."""
    totals: dict[str, float] = {}
    for one, weight in zip(votes, weights, strict=True):
        if one is not None and weight is not None:
            totals[one] = totals.get(one, 0.0) + weight
    return totals


def vote_weights(answers: Sequence[Answer], weigh: Weigh, scorer: str = "") -> list[float | None]:
    """What each answer's vote counts; None where that is unknown.

    score: as it is where all lie in [0, 1], such as a process reward model's or a verifier's; else
    1 / (1 + exp(-score)), the chance that a reward model's logit stands for.
    """
    if weigh == "none":
        return [1.0] * len(answers)
    if weigh == "likelihood":
        return [answer.likelihood for answer in answers]
    scores = [answer.score(scorer) for answer in answers]
    known = [score for score in scores if score is not None]
    if all(0 <= score <= 1 for score in known):
        return list(scores)
    return [None if score is None else logistic(score) for score in scores]


def logistic(score: float) -> float:
    """1 / (1 + exp(-score)), without overflow."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def why_unscored(answers: Sequence[Answer], scorer: str) -> str:
    """Why no answer has a score, from the first one's result."""
    results = [answer.scores.get(scorer) for answer in answers]
    for result in results:
        if isinstance(result, Failed):
            return f"`{scorer}` failed on every answer: {result.reason}"
    if any(isinstance(result, Abstain) for result in results):
        return f"`{scorer}` abstained on every answer"
    return f"`{scorer}` scored no answer"


Chooser = Callable[[Question], Choice]
"""A way of choosing."""


def accept(question: Question, scorer: str, bar: float, budget: int) -> Choice:
    """Rejection sampling: the first answer whose score reaches the bar, within the budget.

    None that does: no choice. What follows the accepted one counts as not drawn.
    """
    if budget < 1:
        raise UsageError("a budget is 1 answer or more.", where="budget")
    left_out = tokens = 0
    some = question.answers[:budget]
    for place, answer in enumerate(some):
        score = answer.score(scorer)
        tokens += answer.tokens
        left_out += score is None
        if score is not None and score >= bar:
            return Choice(
                question.id, place, score, left_out=left_out, drawn=place + 1, tokens=tokens
            )
    why = f"none of {len(some)} reaches {bar:g}"
    return Choice(question.id, None, left_out=left_out, drawn=len(some), tokens=tokens, reason=why)
