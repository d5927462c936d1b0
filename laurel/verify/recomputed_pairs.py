"""The second opinion on preference objectives, in plain Python.

Each function gives what multiplies the gradient of each answer's log-probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass
class Answer:
    """One answer of a comparison.

    grade: +1 chosen, -1 rejected, or the reward; lp and ref: the sums of log pi and log ref over
    its tokens.
    """

    grade: float
    lp: float
    ref: float
    length: int

    @property
    def mean(self) -> float:
        return self.lp / self.length


Answers = Sequence[Answer]
Slopes = list[float]
"""What multiplies grad lp, for each answer."""


def sigma(x: float) -> float:
    """The logistic function."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    e = math.exp(x)
    return e / (1 + e)


def margin(answers: Answers) -> float:
    """h = (lp_w - ref_w) - (lp_l - ref_l)."""
    return sum(a.grade * (a.lp - a.ref) for a in answers)


def dpo(answers: Answers, o: Any, z: float) -> Slopes:
    """DPO, up for the chosen answer and down for the rejected one.

    push = beta ((1 - eps) sigma(-beta h) - eps sigma(beta h))
    """
    h = o.beta * margin(answers)
    eps = o.label_smoothing
    right = (1 - eps) * sigma(-h)
    flipped = eps * sigma(h)
    push = o.beta * (right - flipped)
    return [a.grade * push for a in answers]


def robust_dpo(answers: Answers, o: Any, z: float) -> Slopes:
    """Robust DPO, up for the chosen answer and down for the rejected one.

    push = beta ((1 - eps) sigma(-beta h) + eps sigma(beta h)) / (1 - 2 eps)
    """
    h = o.beta * margin(answers)
    eps = o.label_smoothing
    right = (1 - eps) * sigma(-h)
    flipped = eps * sigma(h)
    push = o.beta * (right + flipped) / (1 - 2 * eps)
    return [a.grade * push for a in answers]


def ipo(answers: Answers, o: Any, z: float) -> Slopes:
    """IPO: push = -2 (h - 1 / (2 beta))."""
    gap = margin(answers) - 0.5 / o.beta
    return [-2 * a.grade * gap for a in answers]


def simpo(answers: Answers, o: Any, z: float) -> Slopes:
    """SimPO: push = beta sigma(gamma - beta (m_w - m_l)) / |y|."""
    m = sum(a.grade * a.mean for a in answers)
    gap = o.beta * m - o.simpo_gamma
    push = o.beta * sigma(-gap)
    return [a.grade * push / a.length for a in answers]


def orpo(answers: Answers, o: Any, z: float) -> Slopes:
    """ORPO: the likelihood of the chosen answer and the odds ratio.

    push = 1/|w| for the chosen, and for both beta sigma(-log OR) / ((1 - e^m) |y|), since
    d log odds / d m = 1 / (1 - e^m).
    """
    ratio = sum(a.grade * log_odds(a.mean) for a in answers)
    push = o.beta * sigma(-ratio)
    out: Slopes = []
    for a in answers:
        nll = (a.grade > 0) / a.length
        odds = a.grade * push / (1 - math.exp(a.mean)) / a.length
        out.append(nll + odds)
    return out


def log_odds(m: float) -> float:
    """log (p / (1 - p)) of p = e^m."""
    return m - math.log(1 - math.exp(m))


def dpop(answers: Answers, o: Any, z: float) -> Slopes:
    """DPOP: as dpo, with 1 + lambda on a chosen answer below its reference."""
    loss = sum(a.ref - a.lp for a in answers if a.grade > 0)
    fallen = max(0.0, loss)
    h = margin(answers) - o.dpop_lambda * fallen
    push = o.beta * sigma(-o.beta * h)
    out: Slopes = []
    for a in answers:
        lifted = a.grade > 0 and fallen > 0
        factor = 1 + o.dpop_lambda * lifted
        out.append(a.grade * push * factor)
    return out


def kto(answers: Answers, o: Any, z: float) -> Slopes:
    """KTO: up for good answers, down for bad ones, nothing for the ungraded.

    push = beta sigma(a) sigma(-a) times the weight of its kind, a = beta (lp - ref - z)
    """
    out: Slopes = []
    for a in answers:
        away = o.beta * (a.lp - a.ref - z)
        good = a.grade > 0
        bad = a.grade < 0
        weight = o.desirable_weight if good else o.undesirable_weight
        push = weight * o.beta * sigma(away) * sigma(-away)
        out.append((good - bad) * push)
    return out


def rrhf(answers: Answers, o: Any, z: float) -> Slopes:
    """RRHF: every pair whose likelihoods are in the wrong order, and the best answer's likelihood.

    An answer gets +1/|y| for every worse one that is more likely, -1/|y| for every better one that
    is less likely, and nll_weight/|y| where it is the first best.
    """
    grades = [a.grade for a in answers]
    best = grades.index(max(grades))
    out: Slopes = []
    for i, a in enumerate(answers):
        up = sum(wrong_order(a, b) for b in answers)
        down = sum(wrong_order(b, a) for b in answers)
        likelihood = o.nll_weight * (i == best)
        out.append((up - down + likelihood) / a.length)
    return out


def wrong_order(better: Answer, worse: Answer) -> bool:
    """Is the answer with the better grade less likely per token?"""
    return worse.grade < better.grade and worse.mean > better.mean


Grades = list[float]
Rewards = Sequence[float | None]
"""Rewards of a group; None where nobody could judge the answer."""


def best_and_worst(rewards: Rewards) -> Grades:
    """+1 for the first best, -1 for the last worst, 0 elsewhere; all 0 where nothing differs."""
    present = [r for r in rewards if r is not None]
    if not present or max(present) == min(present):
        return [0.0] * len(rewards)
    grades = [0.0] * len(rewards)
    backwards = rewards[::-1].index(min(present))
    grades[rewards.index(max(present))] = 1.0
    grades[-1 - backwards] = -1.0
    return grades


def rewards_themselves(rewards: Rewards) -> Grades:
    """The rewards; 0 where nobody could judge the answer."""
    return [0.0 if r is None else r for r in rewards]


PUSH: dict[str, Callable[[Answers, Any, float], Slopes]] = {
    "dpo": dpo,
    "cdpo": dpo,
    "robust_dpo": robust_dpo,
    "ipo": ipo,
    "simpo": simpo,
    "orpo": orpo,
    "dpop": dpop,
    "kto": kto,
    "online_dpo": dpo,
    "rrhf": rrhf,
}
GRADED: dict[str, Callable[[Rewards], Grades]] = {"online_dpo": best_and_worst}
"""Rows whose grades are not the rewards themselves."""

Compared = Sequence[tuple[Answer, bool]]
"""The answers of a group; the flag says whether anybody judged the answer."""


def pushes(name: str, groups: Sequence[Compared], o: Any) -> tuple[list[Slopes], int]:
    """Per answer the coefficient of grad lp, and the number of comparisons."""
    graded = [with_row_grades(name, group) for group in groups]
    z = reference_point(graded)
    out: list[Slopes] = []
    count = 0
    for group in graded:
        slopes = [0.0] * len(group)
        if any(a.grade != 0 and judged for a, judged in group):
            slopes = group_pushes(name, group, o, z)
            count += 1
        out.append(slopes)
    return out, count


def with_row_grades(name: str, group: Compared) -> Compared:
    """The same answers, their grades as the row sees them."""
    rewards = [a.grade if judged else None for a, judged in group]
    grades = GRADED.get(name, rewards_themselves)(rewards)
    out: list[tuple[Answer, bool]] = []
    for grade, (a, judged) in zip(grades, group, strict=True):
        out.append((replace(a, grade=grade), judged))
    return out


def reference_point(groups: Sequence[Compared]) -> float:
    """KTO's z: the mean log-ratio of the answers that were judged and have no grade, at least 0."""
    judged = [a for group in groups for a, known in group if known]
    ungraded = [a.lp - a.ref for a in judged if a.grade == 0]
    if not ungraded:
        return 0.0
    return max(0.0, sum(ungraded) / len(ungraded))


def group_pushes(name: str, group: Compared, o: Any, z: float) -> Slopes:
    """The coefficients of one group that compares something; 0 for an answer nobody judged."""
    judged = [a for a, known in group if known]
    slopes = iter(PUSH[name](judged, o, z))
    likelihood = o.rpo_alpha or 0.0
    out: Slopes = []
    for a, known in group:
        chosen = likelihood * (a.grade > 0) / a.length
        out.append(next(slopes) + chosen if known else 0.0)
    return out
