"""The second opinion on preference objectives: what multiplies the gradient of each answer's
log-probability, in plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    """One answer of a comparison: its grade (+1 chosen, -1 rejected, or its reward), the sums of
    log pi and log ref, its length.
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
    """beta ((1 - eps) sigma(-beta h) - eps sigma(beta h)), up for the chosen and down for the
    rejected.
    """
    h = o.beta * margin(answers)
    push = o.beta * ((1 - o.label_smoothing) * sigma(-h) - o.label_smoothing * sigma(h))
    return [a.grade * push for a in answers]


def robust_dpo(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """beta ((1 - eps) sigma(-beta h) + eps sigma(beta h)) / (1 - 2 eps)."""
    h, e = o.beta * margin(answers), o.label_smoothing
    return [a.grade * o.beta * ((1 - e) * sigma(-h) + e * sigma(h)) / (1 - 2 * e) for a in answers]


def ipo(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """-2 (h - 1 / (2 beta))."""
    return [-2 * a.grade * (margin(answers) - 0.5 / o.beta) for a in answers]


def simpo(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """beta sigma(gamma - beta (m_w - m_l)) / |y|."""
    gap = o.beta * sum(a.grade * a.mean for a in answers) - o.simpo_gamma
    return [a.grade * o.beta * sigma(-gap) / a.length for a in answers]


def orpo(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """1/|w| on the chosen, and beta sigma(-log OR) / ((1 - e^m) |y|), as d log odds / d m = 1 / (1
    - e^m).
    """
    odds = sum(a.grade * (a.mean - math.log(1 - math.exp(a.mean))) for a in answers)
    return [
        (a.grade > 0) / a.length
        + a.grade * o.beta * sigma(-odds) / (1 - math.exp(a.mean)) / a.length
        for a in answers
    ]


def dpop(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """As dpo, with 1 + lambda on a chosen answer below its reference."""
    fallen = max(0.0, sum(a.ref - a.lp for a in answers if a.grade > 0))
    push = o.beta * sigma(-o.beta * (margin(answers) - o.dpop_lambda * fallen))
    return [a.grade * push * (1 + o.dpop_lambda * (fallen > 0) * (a.grade > 0)) for a in answers]


def kto(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """beta sigma(a) sigma(-a), a = beta (g - z): up for good answers, down for bad ones, nothing
    for the ungraded.
    """
    out = []
    for a in answers:
        away = o.beta * (a.lp - a.ref - z)
        weight = o.desirable_weight if a.grade > 0 else o.undesirable_weight
        out.append(
            (a.grade > 0) * weight * o.beta * sigma(away) * sigma(-away)
            - (a.grade < 0) * weight * o.beta * sigma(away) * sigma(-away)
        )
    return out


def rrhf(answers: Sequence[Answer], o: Any, z: float) -> list[float]:
    """-1/|y| for every better answer that is less likely, +1/|y| for every worse one that is more
    likely; 1/|y| on the first best.
    """
    best = max(range(len(answers)), key=lambda i: answers[i].grade)
    out = []
    for i, a in enumerate(answers):
        push = sum(b.grade < a.grade and b.mean > a.mean for b in answers) - sum(
            b.grade > a.grade and b.mean < a.mean for b in answers
        )
        out.append((push + o.nll_weight * (i == best)) / a.length)
    return out


def best_and_worst(rewards: Sequence[float | None]) -> list[float]:
    """+1 for the first best, -1 for the last worst, 0 elsewhere; all 0 where nothing differs."""
    present = [r for r in rewards if r is not None]
    if not present or max(present) == min(present):
        return [0.0] * len(rewards)
    best, worst = rewards.index(max(present)), len(rewards) - 1 - rewards[::-1].index(min(present))
    return [float(i == best) - float(i == worst) for i in range(len(rewards))]


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
GRADED: dict[str, Callable[[Sequence[float | None]], list[float]]] = {"online_dpo": best_and_worst}
"""Rows whose grades are not the rewards themselves."""


def pushes(
    name: str, groups: Sequence[Sequence[tuple[Answer, bool]]], o: Any
) -> tuple[list[list[float]], int]:
    """Per answer the coefficient of grad lp, and the number of comparisons. The flag says whether
    anybody judged the answer.
    """
    told = [[a.grade if judged else None for a, judged in group] for group in groups]
    grades = [
        GRADED[name](t) if name in GRADED else [0.0 if v is None else v for v in t] for t in told
    ]
    silent = [
        a.lp - a.ref
        for group, grade in zip(groups, grades, strict=True)
        for (a, judged), g in zip(group, grade, strict=True)
        if g == 0 and judged
    ]
    z, out, count = max(0.0, sum(silent) / max(1, len(silent))), [], 0
    for group, grade in zip(groups, grades, strict=True):
        active = any(g != 0 and judged for (_, judged), g in zip(group, grade, strict=True))
        count += active
        judged = [
            Answer(g, a.lp, a.ref, a.length)
            for (a, known), g in zip(group, grade, strict=True)
            if known
        ]
        found = iter(PUSH[name](judged, o, z) if active else [0.0] * len(judged))
        nll = o.rpo_alpha or 0.0
        out.append(
            [
                (next(found) + nll * (g > 0) * active / a.length) if known else 0.0
                for (a, known), g in zip(group, grade, strict=True)
            ]
        )
    return out, count
