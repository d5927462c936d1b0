"""The second opinion on implicit Q-learning: the loss of a step and its slopes, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laurel.verify.heads import Tables
from laurel.verify.world import World


@dataclass
class Step:
    """The loss, and the direction of descent for the policy's table, the Qs and V.

    policy [X, S, V], q [K, X, S, V], value [X, S].
    """

    loss: float
    policy: Tensor
    q: Tensor
    value: Tensor


@dataclass(frozen=True)
class Numbers:
    """The numbers before the step: log-odds of the policy, the Qs, their target networks and V.

    logits [X][S][V], q and target [K][X][S][V], value [X][S].
    """

    logits: list[list[list[float]]]
    q: list[list[list[list[float]]]]
    target: list[list[list[list[float]]]]
    value: list[list[float]]


@dataclass(frozen=True)
class Choice:
    """A token a, chosen in state s of prompt x; backup: the reward or gamma V of the next state."""

    x: int
    s: int
    a: int
    backup: float


def log_softmax_at(scores: Sequence[float], token: int) -> tuple[float, list[float]]:
    """log softmax at the token, and its slope in every score.

    The slope is 1 at the token, minus the probabilities.
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
    """One step on these rows, each token one unit: loss and slopes over the number of tokens."""
    now = Numbers(
        world.logits.tolist(),
        tables.q.tolist(),
        tables.target.tolist(),
        tables.value.tolist(),
    )
    out = Step(
        0.0,
        torch.zeros_like(world.logits),
        torch.zeros_like(tables.q),
        torch.zeros_like(tables.value),
    )
    tokens = 0
    for (x, members), group in zip(drawn, rewards, strict=True):
        for n, reward in zip(members, group, strict=True):
            for choice in choices(world, now, x, n, reward, o):
                tokens += 1
                add_q(out, now, choice, o)
                add_value_and_policy(out, now, choice, o)
    return Step(out.loss / tokens, out.policy / tokens, out.q / tokens, out.value / tokens)


def choices(world: World, now: Numbers, x: int, n: int, reward: float, o: Any) -> Iterator[Choice]:
    """Every token of completion n of prompt x."""
    states = [s for s, _ in world.language.choices(n)]
    for t, (s, a) in enumerate(world.language.choices(n)):
        last = t == len(states) - 1
        backup = reward if last else o.gamma * now.value[x][states[t + 1]]
        yield Choice(x, s, a, backup)


def add_q(out: Step, now: Numbers, at: Choice, o: Any) -> None:
    """Each Q: the squared gap to the backup, and CQL's cross-entropy of softmax(Q)."""
    for k, q in enumerate(now.q):
        row = q[at.x][at.s]
        gap = row[at.a] - at.backup
        logp, slope = log_softmax_at(row, at.a)
        out.loss += gap * gap - o.cql_coef * logp
        out.q[k, at.x, at.s, at.a] -= 2 * gap
        for v in range(len(row)):
            out.q[k, at.x, at.s, v] += o.cql_coef * slope[v]


def add_value_and_policy(out: Step, now: Numbers, at: Choice, o: Any) -> None:
    """V: the expectile loss of u; the policy: likelihood weighted by exp(beta u).

    u = min over k of target Q_k(s, a) - V(s)
    """
    u = min(target[at.x][at.s][at.a] for target in now.target) - now.value[at.x][at.s]
    side = o.expectile if u > 0 else 1 - o.expectile
    out.loss += side * u * u
    out.value[at.x, at.s] += 2 * side * u
    weight = o.awac_coef * math.exp(o.awac_beta * u)
    row = now.logits[at.x][at.s]
    logp, slope = log_softmax_at(row, at.a)
    out.loss -= weight * logp
    for v in range(len(row)):
        out.policy[at.x, at.s, v] += weight * slope[v]


LOGGED = {"ilql": step}
"""Rows that learn Q and V from logged rewards, and what a step of theirs does."""
