"""The second opinion on reward models: how each token's score is pulled, in plain Python.

A pull is the negative slope of the loss at a score: the direction in which a step moves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from itertools import permutations
from operator import mul
from typing import Any

from laurel.verify.recomputed_pairs import sigma

Scores = Sequence[Sequence[float]]
"""The score of every token of every answer."""
Grades = Sequence[float]
"""What the data say of each answer: its sign or rank, and by its size how much the row weighs."""
Columns = Mapping[str, Any]
"""The row of data with its further columns."""
Pulls = tuple[list[list[float]], int]
"""Per answer and token the pull; and how many units the row counts."""


def pull_last_tokens(scores: Scores, pulls: Sequence[float]) -> Pulls:
    """A pull at the last token of each answer; the row is one unit."""
    out: list[list[float]] = []
    for row, pull in zip(scores, pulls, strict=True):
        before = [0.0] * (len(row) - 1)
        out.append([*before, pull])
    return out, 1


def last_scores(scores: Scores) -> list[float]:
    """The score of each answer: that of its last token."""
    return [row[-1] for row in scores]


def bradley_terry(
    scores: Scores,
    grades: Grades,
    o: Any,
    row: Columns,
) -> Pulls:
    """Bradley-Terry with a margin, smoothed labels and centred scores.

    w ((1 - e) sigma(-h) - e sigma(h)) up for the chosen answer and down for the rejected one, and
    -2 w c (r_w + r_l) for both.
    """
    r = last_scores(scores)
    w = o.reward_coef * abs(grades[0])
    sign = [math.copysign(1.0, grade) for grade in grades]
    asked = row.get("margin", 0.0) if o.use_margin else 0.0
    h = sum(map(mul, sign, r)) - asked
    e = o.label_smoothing
    right = (1 - e) * sigma(-h)
    flipped = e * sigma(h)
    push = w * (right - flipped)
    centre = 2 * w * o.center_rewards_coefficient * sum(r)
    pulls = [s * push - centre for s in sign]
    return pull_last_tokens(scores, pulls)


def k_wise(
    scores: Scores,
    grades: Grades,
    o: Any,
    row: Columns,
) -> Pulls:
    """The mean over ordered pairs of sigma(-(r_i - r_j)), up for i and down for j.

    With pairs_per_prompt it is the mean over that many pairs, those whose lots are lowest.
    """
    r = last_scores(scores)
    w = o.reward_coef * min(map(abs, grades))
    ordered = permutations(range(len(r)), 2)
    pairs = [(i, j) for i, j in ordered if grades[i] > grades[j]]
    if o.pairs_per_prompt:
        pairs.sort(key=lambda pair: hashed_draw(row["prompt"], *pair))
        del pairs[o.pairs_per_prompt :]
    pulls = [0.0] * len(grades)
    for i, j in pairs:
        gap = r[j] - r[i]
        push = w * sigma(gap) / len(pairs)
        pulls[i] += push
        pulls[j] -= push
    return pull_last_tokens(scores, pulls)


def hashed_draw(prompt: str, i: int, j: int) -> str:
    """The lot of a pair of answers, whatever their order."""
    name = f"{prompt}|0|{min(i, j)}|{max(i, j)}"
    return sha256(name.encode()).hexdigest()


def plackett_luce(
    scores: Scores,
    grades: Grades,
    o: Any,
    row: Columns,
) -> Pulls:
    """For every choice of a best among those left: 1 - softmax for it, -softmax for the others."""
    r = last_scores(scores)
    w = o.reward_coef * min(map(abs, grades))
    pulls = [0.0] * len(grades)
    answers = range(len(r))
    for i in answers:
        left = [j for j in answers if grades[j] < grades[i] or j == i]
        total = sum(math.exp(r[j]) for j in left)
        for j in left:
            softmax = math.exp(r[j]) / total
            pulls[j] += w * ((j == i) - softmax)
    return pull_last_tokens(scores, pulls)


def imitation_pulls(grades: Grades, lengths: Sequence[int], o: Any) -> list[float]:
    """What the log-probability of each answer is pulled by, per token.

    beta w / length, shared by the best answers; 0 where no answer is better than another.
    """
    if not o.imitation_coef:
        return [0.0] * len(grades)
    best = max(grades)
    count = grades.count(best) if best > min(grades) else 0
    whole = o.imitation_coef * min(map(abs, grades))
    out: list[float] = []
    for grade, length in zip(grades, lengths, strict=True):
        imitated = count > 0 and grade == best
        share = whole / length / count if imitated else 0.0
        out.append(share)
    return out


def outcome(
    scores: Scores,
    grades: Grades,
    o: Any,
    row: Columns,
) -> Pulls:
    """An outcome y of 0 or 1: w (y - sigma(s)) at every token."""
    (line,) = scores
    (w,) = grades
    y = float(row["label"])
    pulls = [w * (y - sigma(s)) for s in line]
    return [pulls], len(line)


def process(
    scores: Scores,
    grades: Grades,
    o: Any,
    row: Columns,
) -> Pulls:
    """Classes -1, 0, 1 with logits -s, 0, s: w (y - E[class]) at every step."""
    (line,) = scores
    (w,) = grades
    means = [mean_class(s) for s in line]
    pulls = [w * (y - mean) for y, mean in zip(row["labels"], means, strict=True)]
    return [pulls], len(line)


def mean_class(s: float) -> float:
    """E[class] of the classes -1, 0, 1 with logits -s, 0, s."""
    up = math.exp(s)
    down = math.exp(-s)
    return (up - down) / (up + 1 + down)


SCORED: dict[str, Callable[[Scores, Grades, Any, Columns], Pulls]] = {
    "reward": bradley_terry,
    "reward_kwise": k_wise,
    "reward_pl": plackett_luce,
    "orm": outcome,
    "prm": process,
}
