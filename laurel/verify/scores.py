"""Reward models, exactly: every comparison, outcome and labelled step shown as often as its law
says; the optimum is the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor

from laurel.reward.process import product as every_step
from laurel.reward.process import step_soundness
from laurel.verify.finding import Finding, same
from laurel.verify.pairs import Shown, graded, mean_step, preferred
from laurel.verify.world import World, as_groups, build, gradient, make_world


@dataclass(frozen=True)
class Told:
    """One row of data: prompt, its answers with their rewards, further columns, and how often it is
    shown.
    """

    x: int
    members: tuple[int, ...]
    rewards: tuple[float, ...]
    columns: Mapping[str, Any]
    chance: float


def scored_as(world: World, score_XN: Tensor) -> World:
    """The world whose table gives completion n the score `score_XN` at its last token, and 0 before
    it.
    """
    table = torch.zeros_like(world.logits)
    for n in range(world.language.N):
        table[(slice(None), *last_cell(world, n))] = score_XN[:, n]
    return replace(world, logits=table)


def last_cell(world: World, n: int) -> tuple[int, int]:
    """Prefix and token of a completion's last token: no other completion ends there."""
    t = int(world.language.length_N[n]) - 1
    return int(world.language.state_NT[n, t]), int(world.language.token_NT[n, t])


def mean_pull(world: World, name: str, shown: Sequence[Told], **options: Any) -> Tensor:
    """E of the loop's gradient over rows of data, times the units of each row: [X, S, V], by one
    call of the loop.
    """
    which, chance = (
        torch.tensor([row.x for row in shown]),
        torch.tensor([row.chance for row in shown]),
    )
    each = every_pull(world, name, shown, **options)
    return torch.zeros_like(world.logits, dtype=each.dtype).index_add(
        0, which, each * chance[:, None, None]
    )


def every_pull(world: World, name: str, shown: Sequence[Told], **options: Any) -> Tensor:
    """The loop's gradient of each row of data, times its units, as if it were alone: [rows,
    S, V].
    """
    which = torch.tensor([row.x for row in shown])
    setup = build(world, name, world.logits[which], world.ref[which], **options)
    drawn = [(at, row.members) for at, row in enumerate(shown)]
    rewards = [row.rewards for row in shown]
    groups = as_groups(
        world,
        drawn,
        rewards=rewards,
        table=world.logits[which],
        supervised=True,
        describe=lambda at, _: shown[at].columns,
    )
    by_token = setup.config.loss_aggregation == "token_mean"
    units = (
        sum(int(world.language.length_N[n]) for row in shown for n in row.members)
        if by_token
        else len(shown)
    )
    return gradient(setup, groups) * units


def rankings(world: World) -> list[Told]:
    """Every ranking of three different answers, as often as Plackett and Luce say."""
    X, N, shown = len(world.reward), world.language.N, []
    for x in range(X):
        for members in permutations(range(N), 3):
            r, chance = [float(world.reward[x, n]) for n in members], 1.0
            for k in range(3):
                chance *= math.exp(r[k]) / sum(map(math.exp, r[k:]))
            shown.append(
                Told(x, members, (-1.0, -2.0, -3.0), {}, chance / X / (N * (N - 1) * (N - 2) / 6))
            )
    return shown


def outcomes(world: World, good_XN: Tensor) -> list[Told]:
    """Completions of the policy that end well with probability `good_XN`."""
    p = world.language.logp(world.pi).exp()
    return [
        Told(
            x,
            (n,),
            (1.0,),
            {"label": label},
            float(p[x, n] * (good_XN[x, n] if label else 1 - good_XN[x, n])) / len(p),
        )
        for x in range(len(p))
        for n in range(world.language.N)
        for label in (True, False)
    ]


def steps_of(world: World, truth_XSV: Tensor) -> list[Told]:
    """Completions whose every token is a step, labelled c in -1, 0, 1 with probability proportional
    to exp(c truth).
    """
    p, shown = world.language.logp(world.pi).exp(), []
    for x in range(len(p)):
        for n in range(world.language.N):
            length = int(world.language.length_N[n])
            theta = [
                float(truth_XSV[x, world.language.state_NT[n, t], world.language.token_NT[n, t]])
                for t in range(length)
            ]
            for labels in product((-1, 0, 1), repeat=length):
                chance = math.prod(
                    math.exp(c * v) / (math.exp(-v) + 1 + math.exp(v))
                    for c, v in zip(labels, theta, strict=True)
                )
                shown.append(
                    Told(x, (n,), (1.0,), {"labels": labels}, float(p[x, n]) * chance / len(p))
                )
    return shown


def pulled() -> Iterator[Finding]:
    """Expected gradients of scorers that say nothing yet."""
    world = graded(make_world(3, 2, seed=40))
    zero = scored_as(world, torch.zeros_like(world.reward))
    X, N = world.reward.shape
    wins = torch.zeros_like(world.reward)
    for x, (y, z), _, p in preferred(world):
        wins[x, y], wins[x, z] = wins[x, y] + p / 2, wins[x, z] - p / 2
    yield same(
        "reward",
        "at scores of 0: (wins - losses) / 2",
        mean_step(zero, "reward", preferred(world)),
        scored_as(world, wins).logits,
    )
    law = rankings(world)
    for name, places in (
        ("reward_kwise", (1 / 3, 0.0, -1 / 3)),
        ("reward_pl", (2 / 3, 1 / 6, -5 / 6)),
    ):
        pulls = torch.zeros_like(world.reward)
        for row in law:
            for n, pull in zip(row.members, places, strict=True):
                pulls[row.x, n] += row.chance * pull
        says = ", ".join(f"{pull:.3g}" for pull in places)
        yield same(
            name,
            f"at scores of 0: {says} by place",
            mean_pull(zero, name, law),
            scored_as(world, pulls).logits,
        )
    yield from some_of_the_pairs(world)
    yield from imitated_alone(world)
    yield from no_step_is_wrong(world)
    good = world.reward.sigmoid()
    p, table = world.language.logp(world.pi).exp(), torch.zeros_like(world.logits)
    steps = torch.zeros_like(world.logits)
    truth = world.ref
    for x in range(X):
        for n in range(N):
            for t in range(int(world.language.length_N[n])):
                cell = (x, int(world.language.state_NT[n, t]), int(world.language.token_NT[n, t]))
                v = float(truth[cell])
                table[cell] += float(p[x, n] * (good[x, n] - 0.5)) / X
                steps[cell] += (
                    float(p[x, n])
                    * (math.exp(v) - math.exp(-v))
                    / (math.exp(v) + 1 + math.exp(-v))
                    / X
                )
    yield same(
        "orm",
        "at scores of 0: P(good) - 1/2 at every token",
        mean_pull(zero, "orm", outcomes(world, good)),
        table,
    )
    yield same(
        "prm",
        "at scores of 0: the mean label of every step",
        mean_pull(zero, "prm", steps_of(world, truth)),
        steps,
    )


def truths() -> Iterator[Finding]:
    """At the truth no scorer moves."""
    world = graded(make_world(3, 2, seed=41))
    nothing, constant = world.logits * 0, torch.tensor([[3.0], [-1.0]])
    true = scored_as(world, world.reward + constant)
    yield same(
        "reward",
        "R1: at the true reward + a constant per prompt the gradient is 0",
        mean_step(true, "reward", preferred(world)),
        nothing,
    )
    some: list[Shown] = [row for row in preferred(world) if row[1][0] + row[1][1] < 6]
    yield same("reward", "R1: whatever pairs are shown", mean_step(true, "reward", some), nothing)
    for name in ("reward_kwise", "reward_pl"):
        yield same(
            name,
            "rankings by Plackett-Luce: at the true reward the gradient is 0",
            mean_pull(true, name, rankings(world)),
            nothing,
        )
    yield from margin(world)
    yield from imitated_end(world)
    good = world.reward.sigmoid()
    Q, _ = world.language.action_values(world.pi, good)
    at_value = replace(world, logits=torch.logit(Q))
    found = mean_pull(replace(world, logits=at_value.logits), "orm", outcomes(world, good))
    yield same(
        "orm",
        "O1: at logit Q(prefix, token), the value function, the gradient is 0",
        found,
        nothing,
    )
    yield same(
        "prm",
        "at the labels' own distribution the gradient is 0",
        mean_pull(replace(world, logits=world.ref), "prm", steps_of(world, world.ref)),
        nothing,
    )


def margin(world: World) -> Iterator[Finding]:
    """R2: asked for a margin m, the optimal gap of a pair won with probability p is inflated to a
    closed form.
    """
    p, shown = 0.7, []
    for m in (0.0, 1 / 3, 1.0, 3.0):
        a, e = 2 * p - 1, math.exp(-m)
        gap = math.log((a + math.sqrt(a * a + 4 * p * (1 - p) * e * e)) / (2 * (1 - p) * e))
        score = torch.zeros_like(world.reward)
        score[:, 0] = gap
        shown = [
            Told(0, pair, (1.0, -1.0), {"margin": m}, chance)
            for pair, chance in (((0, 1), p), ((1, 0), 1 - p))
        ]
        found = mean_pull(scored_as(world, score), "reward", shown)
        yield same("reward", f"R2: margin {m:.3g}: the gap is {gap:.4f}", found, world.logits * 0)


def some_of_the_pairs(world: World) -> Iterator[Finding]:
    """A subset of a ranking's pairs: every subset is drawn, and over all of them the gradient is
    that of all pairs.
    """
    row = Told(0, (0, 1, 2), (-1.0, -2.0, -3.0), {}, 1.0)
    whole = every_pull(world, "reward_kwise", [row])[0]
    for m in (1, 2):
        copies = every_pull(
            world, "reward_kwise", [row] * 24, pairs_per_prompt=m
        )  # 24 prompts that differ in nothing but their name
        kinds = {tuple(pull.flatten().mul(1e4).round().tolist()): pull for pull in copies}
        yield same(
            "reward_kwise",
            f"pairs_per_prompt={m}: each of the 3 subsets is drawn",
            float(len(kinds)),
            3.0,
        )
        mean = torch.stack(list(kinds.values())).mean(0)
        yield same(
            "reward_kwise",
            f"pairs_per_prompt={m}: their mean is the gradient of all pairs",
            mean,
            whole,
        )


def favourites(world: World) -> Tensor:
    """How often each answer is the chosen one of a pair: [X, N], each prompt's sum 1."""
    chosen = torch.zeros_like(world.reward)
    for x, (y, _), _, p in preferred(world):
        chosen[x, y] += p * len(chosen)
    return chosen


def imitated_alone(world: World) -> Iterator[Finding]:
    """Without the comparison, imitation is weighted likelihood of the chosen answers, per token;
    and it adds to the comparison.
    """
    chosen = favourites(world) / world.language.length_N / len(world.reward)
    table, beta = (
        (chosen[..., None, None, None] * world.language.token_scores(world.logits)).sum((1, 2)),
        0.7,
    )
    alone = mean_step(world, "reward", preferred(world), imitation_coef=beta, reward_coef=0.0)
    yield same("reward", "imitation alone: beta E[grad lp_chosen / length]", alone, beta * table)
    both = mean_step(world, "reward", preferred(world), imitation_coef=beta, reward_coef=0.5)
    halves = 0.5 * mean_step(world, "reward", preferred(world)) + beta * table
    yield same("reward", "lambda comparison + beta imitation", both, halves)


def imitated_end(world: World) -> Iterator[Finding]:
    """Imitation alone ends where the body says each answer as often as it is chosen, over its
    length.
    """
    goal = favourites(world) / world.language.length_N
    at_goal = replace(world, logits=world.language.logits_of(goal / goal.sum(1, keepdim=True)))
    found = mean_step(at_goal, "reward", preferred(world), imitation_coef=1.0, reward_coef=0.0)
    yield same(
        "reward",
        "imitation alone: at P(chosen) / length, normalised, the gradient is 0",
        found,
        world.logits * 0,
    )


def no_step_is_wrong(world: World) -> Iterator[Finding]:
    """At the labels' own distribution the reward `prm:...:product` is the chance that no step of an
    answer is wrong.
    """
    found, truth = torch.zeros_like(world.reward), torch.zeros_like(world.reward)
    for row in steps_of(world, world.ref):
        p = float(world.language.logp(world.pi).exp()[row.x, row.members[0]]) / len(world.reward)
        truth[row.x, row.members[0]] += (-1 not in row.columns["labels"]) * row.chance / p
    for x in range(len(found)):
        for n in range(world.language.N):
            at = range(int(world.language.length_N[n]))
            theta = torch.stack(
                [
                    world.ref[x, world.language.state_NT[n, t], world.language.token_NT[n, t]]
                    for t in at
                ]
            )
            found[x, n] = every_step(step_soundness(torch.stack([-theta, 0 * theta, theta], 1)))
    yield same("prm", "as a reward: the product is P(no step is wrong)", found, truth)
