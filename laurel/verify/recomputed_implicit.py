"""The second opinion on implicit Q-learning: the loss of a step and what pulls at every number, in
plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laurel.verify.heads import Tables
from laurel.verify.world import World


@dataclass
class Step:
    """The loss, and the direction of descent for the policy's table, both Q and V."""

    loss: float
    policy: Tensor
    q: Tensor
    value: Tensor


def lean(scores: Sequence[float], token: int) -> tuple[float, list[float]]:
    """log softmax at the token, and its slope in every score: 1 at the token, minus the
    probabilities.
    """
    top = max(scores)
    total = sum(math.exp(s - top) for s in scores)
    p = [math.exp(s - top) / total for s in scores]
    return math.log(p[token]), [(v == token) - p[v] for v in range(len(scores))]


def step(
    world: World,
    tables: Tables,
    drawn: Sequence[tuple[int, Sequence[int]]],
    rewards: Sequence[Sequence[float]],
    o: Any,
) -> Step:
    """One step on these rows, every token one unit: loss and pulls divided by the number of
    tokens.
    """
    language, K, V = world.language, len(tables.q), world.language.V
    out = Step(
        0.0,
        torch.zeros_like(world.logits),
        torch.zeros_like(tables.q),
        torch.zeros_like(tables.value),
    )
    q, slow, value = tables.q.tolist(), tables.target.tolist(), tables.value.tolist()
    tokens = 0
    for (x, members), told in zip(drawn, rewards, strict=True):
        for n, reward in zip(members, told, strict=True):
            length = int(language.length_N[n])
            tokens += length
            for t in range(length):
                s, a = int(language.state_NT[n, t]), int(language.token_NT[n, t])
                aim = (
                    reward
                    if t == length - 1
                    else o.gamma * value[x][int(language.state_NT[n, t + 1])]
                )
                for k in range(K):
                    gap = q[k][x][s][a] - aim
                    said, slope = lean(q[k][x][s], a)
                    out.loss += gap * gap - o.cql_coef * said
                    out.q[k, x, s, a] -= 2 * gap
                    for v in range(V):
                        out.q[k, x, s, v] += o.cql_coef * slope[v]
                u = min(slow[k][x][s][a] for k in range(K)) - value[x][s]
                side = o.expectile if u > 0 else 1 - o.expectile
                out.loss += side * u * u
                out.value[x, s] += 2 * side * u
                weight = o.awac_coef * math.exp(o.awac_beta * u)
                said, slope = lean([float(z) for z in world.logits[x, s]], a)
                out.loss -= weight * said
                for v in range(V):
                    out.policy[x, s, v] += weight * slope[v]
    return Step(out.loss / tokens, out.policy / tokens, out.q / tokens, out.value / tokens)


LOGGED = {"ilql": step}
"""Rows that learn Q and V from logged rewards, and what a step of theirs does."""
