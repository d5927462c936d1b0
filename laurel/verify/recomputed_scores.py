"""The second opinion on reward models: how each token's score is pulled, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from laurel.verify.recomputed_pairs import sigma

Pulls = tuple[list[list[float]], int]
"""Per answer and token the negative slope of the value; and how many units the row counts."""


def on_last(scores: Sequence[Sequence[float]], pulls: Sequence[float]) -> list[list[float]]:
    """A pull at the last token of each answer."""
    return [[0.0] * (len(row) - 1) + [pull] for row, pull in zip(scores, pulls, strict=True)]


def bradley_terry(
    scores: Sequence[Sequence[float]], told: Sequence[float], o: Any, row: Mapping[str, Any]
) -> Pulls:
    """w ((1 - e) sigma(-h) - e sigma(h)) up for the chosen, down for the rejected, and -2 w c (r_w
    + r_l) for both.
    """
    r, w = [row[-1] for row in scores], o.reward_coef * abs(told[0])
    sign = [math.copysign(1.0, grade) for grade in told]
    h = sum(a * b for a, b in zip(sign, r, strict=True)) - (
        row.get("margin", 0.0) if o.use_margin else 0.0
    )
    push = w * ((1 - o.label_smoothing) * sigma(-h) - o.label_smoothing * sigma(h))
    return on_last(
        scores, [s * push - 2 * w * o.center_rewards_coefficient * sum(r) for s in sign]
    ), 1


def k_wise(
    scores: Sequence[Sequence[float]], told: Sequence[float], o: Any, row: Mapping[str, Any]
) -> Pulls:
    """The mean over ordered pairs of sigma(-(r_i - r_j)), up for i and down for j; or over the few
    whose lots are lowest.
    """
    r, w, pulls = (
        [row[-1] for row in scores],
        o.reward_coef * min(map(abs, told)),
        [0.0] * len(told),
    )
    pairs = [(i, j) for i in range(len(r)) for j in range(len(r)) if told[i] > told[j]]
    if o.pairs_per_prompt:
        lots = {
            (i, j): sha256(f"{row['prompt']}|0|{min(i, j)}|{max(i, j)}".encode()).hexdigest()
            for i, j in pairs
        }
        pairs = sorted(pairs, key=lots.__getitem__)[: o.pairs_per_prompt]
    for i, j in pairs:
        push = w * sigma(r[j] - r[i]) / len(pairs)
        pulls[i], pulls[j] = pulls[i] + push, pulls[j] - push
    return on_last(scores, pulls), 1


def plackett_luce(
    scores: Sequence[Sequence[float]], told: Sequence[float], o: Any, row: Mapping[str, Any]
) -> Pulls:
    """For every choice of a best among those left: 1 - softmax for it, -softmax for the others."""
    r, w, pulls = (
        [row[-1] for row in scores],
        o.reward_coef * min(map(abs, told)),
        [0.0] * len(told),
    )
    for i in range(len(r)):
        left = [j for j in range(len(r)) if told[j] < told[i] or j == i]
        total = sum(math.exp(r[j]) for j in left)
        for j in left:
            pulls[j] += w * ((j == i) - math.exp(r[j]) / total)
    return on_last(scores, pulls), 1


def imitated(told: Sequence[float], lengths: Sequence[int], o: Any) -> list[float]:
    """What the log-probability of each answer is pulled by, per token: beta w / length, shared by
    those that only beat others.
    """
    if not o.imitation_coef:
        return [0.0] * len(told)
    best = [grade == max(told) > min(told) for grade in told]
    return [
        o.imitation_coef * min(map(abs, told)) * b / length / max(sum(best), 1)
        for b, length in zip(best, lengths, strict=True)
    ]


def outcome(
    scores: Sequence[Sequence[float]], told: Sequence[float], o: Any, row: Mapping[str, Any]
) -> Pulls:
    """w (y - sigma(s)) at every token."""
    (line,), (w,) = scores, told
    return [[w * (float(row["label"]) - sigma(s)) for s in line]], len(line)


def process(
    scores: Sequence[Sequence[float]], told: Sequence[float], o: Any, row: Mapping[str, Any]
) -> Pulls:
    """Classes -1, 0, 1 with logits -s, 0, s: w (y - E[class]) at every step."""
    (line,), (w,) = scores, told
    mean = [(math.exp(s) - math.exp(-s)) / (math.exp(s) + 1 + math.exp(-s)) for s in line]
    return [[w * (y - m) for y, m in zip(row["labels"], mean, strict=True)]], len(line)


SCORED: dict[
    str, Callable[[Sequence[Sequence[float]], Sequence[float], Any, Mapping[str, Any]], Pulls]
] = {
    "reward": bradley_terry,
    "reward_kwise": k_wise,
    "reward_pl": plackett_luce,
    "orm": outcome,
    "prm": process,
}
