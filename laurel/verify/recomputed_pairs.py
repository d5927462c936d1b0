"""The second opinion on preference objectives, in plain Python.

Each function gives what multiplies the gradient of each answer's log-probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def sigma(x: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def margin(answers: Sequence[Answer]) -> float:
    """h = (lp_w - ref_w) - (lp_l - ref_l)."""
    return sum(a.grade * (a.lp - a.ref) for a in answers)


def dpo(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """DPO, up for the chosen answer and down for the rejected one.

    push = beta ((1 - eps) sigma(-beta h) - eps sigma(beta h))
    """
    h = o.beta * margin(answers)
    eps = o.label_smoothing
    push = o.beta * ((1 - eps) * sigma(-h) - eps * sigma(h))
    return [a.grade * push for a in answers]


def robust_dpo(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """Robust DPO, up for the chosen answer and down for the rejected one.

    push = beta ((1 - eps) sigma(-beta h) + eps sigma(beta h)) / (1 - 2 eps)
    """
    h = o.beta * margin(answers)
    eps = o.label_smoothing
    slope = (1 - eps) * sigma(-h) + eps * sigma(h)
    return [a.grade * o.beta * slope / (1 - 2 * eps) for a in answers]


def ipo(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """IPO: push = -2 (h - 1 / (2 beta))."""
    gap = margin(answers) - 0.5 / o.beta
    return [-2 * a.grade * gap for a in answers]


def simpo(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """SimPO: push = beta sigma(gamma - beta (m_w - m_l)) / |y|."""
    m = sum(a.grade * a.mean for a in answers)
    gap = o.beta * m - o.simpo_gamma
    return [a.grade * o.beta * sigma(-gap) / a.length for a in answers]


def orpo(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """ORPO: the likelihood of the chosen answer and the odds ratio.

    push = 1/|w| for the chosen, and for both beta sigma(-log OR) / ((1 - e^m) |y|), since
    d log odds / d m = 1 / (1 - e^m).
    """
    odds = sum(a.grade * (a.mean - math.log(1 - math.exp(a.mean))) for a in answers)
    out: list[float] = []
    for a in answers:
        nll = (a.grade > 0) / a.length
        ratio = a.grade * o.beta * sigma(-odds) / (1 - math.exp(a.mean)) / a.length
        out.append(nll + ratio)
    return out


def dpop(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """DPOP: as dpo, with 1 + lambda on a chosen answer below its reference."""
    fallen = max(0.0, sum(a.ref - a.lp for a in answers if a.grade > 0))
    h = margin(answers) - o.dpop_lambda * fallen
    push = o.beta * sigma(-o.beta * h)
    lifted = 1 + o.dpop_lambda * (fallen > 0)
    return [a.grade * push * (lifted if a.grade > 0 else 1) for a in answers]


def kto(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """KTO: up for good answers, down for bad ones, nothing for the ungraded.

    push = beta sigma(a) sigma(-a) times the weight of its kind, a = beta (lp - ref - z)
    """
    out: list[float] = []
    for a in answers:
        away = o.beta * (a.lp - a.ref - z)
        weight = o.desirable_weight if a.grade > 0 else o.undesirable_weight
        push = weight * o.beta * sigma(away) * sigma(-away)
        out.append((a.grade > 0) * push - (a.grade < 0) * push)
    return out


def rrhf(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """RRHF: every pair whose likelihoods are in the wrong order, and the best answer's likelihood.

    An answer gets +1/|y| for every worse one that is more likely, -1/|y| for every better one that
    is less likely, and nll_weight/|y| where it is the first best.
    """
    best = max(range(len(answers)), key=lambda i: answers[i].grade)
    out: list[float] = []
    for i, a in enumerate(answers):
        up = sum(b.grade < a.grade and b.mean > a.mean for b in answers)
        down = sum(b.grade > a.grade and b.mean < a.mean for b in answers)
        likelihood = o.nll_weight * (i == best)
        out.append((up - down + likelihood) / a.length)
    return out


Grades = list[float]
Rewards = Sequence[float | None]
"""Rewards of a group; None where nobody could judge the answer."""


def best_and_worst(rewards: Rewards) -> Grades:
    """+1 for the first best, -1 for the last worst, 0 elsewhere; all 0 where nothing differs."""
    present = [r for r in rewards if r is not None]
    if not present or max(present) == min(present):
        return [0.0] * len(rewards)
    best = rewards.index(max(present))
    worst = len(rewards) - 1 - rewards[::-1].index(min(present))
    return [float(i == best) - float(i == worst) for i in range(len(rewards))]


def rewards_themselves(rewards: Rewards) -> Grades:
    """The rewards; 0 where nobody could judge the answer."""
    return [0.0 if r is None else r for r in rewards]


PUSH: dict[str, Callable[[Sequence[Answer], Any, float], list[float]]] = {
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


def pushes(name: str, groups: Sequence[Compared], o: Any) -> tuple[list[list[float]], int]:
    """Per answer the coefficient of grad lp, and the number of comparisons."""
    graded = [regraded(name, group) for group in groups]
    z = reference_point(graded)
    out: list[list[float]] = []
    count = 0
    for group in graded:
        active = any(a.grade != 0 and judged for a, judged in group)
        count += active
        out.append(group_pushes(name, group, o, z) if active else [0.0] * len(group))
    return out, count


def regraded(name: str, group: Compared) -> Compared:
    """The same answers, their grades as the row sees them."""
    rewards = [a.grade if judged else None for a, judged in group]
    grades = GRADED.get(name, rewards_themselves)(rewards)
    answers = zip(grades, group, strict=True)
    return [(Answer(g, a.lp, a.ref, a.length), judged) for g, (a, judged) in answers]


def reference_point(groups: Sequence[Compared]) -> float:
    """KTO's z: the mean log-ratio of the answers that were judged and have no grade, at least 0."""
    answers = [pair for group in groups for pair in group]
    ungraded = [a.lp - a.ref for a, judged in answers if a.grade == 0 and judged]
    return max(0.0, sum(ungraded) / max(1, len(ungraded)))


def group_pushes(name: str, group: Compared, o: Any, z: float) -> list[float]:
    """The coefficients of one group that compares something; 0 for an answer nobody judged."""
    judged = iter(PUSH[name]([a for a, known in group if known], o, z))
    likelihood = o.rpo_alpha or 0.0
    out: list[float] = []
    for a, known in group:
        chosen = likelihood * (a.grade > 0) / a.length
        out.append(next(judged) + chosen if known else 0.0)
    return out
