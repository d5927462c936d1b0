"""Reward models, exactly: every comparison, outcome and labelled step; the optimum is the truth.

Each is shown as often as its law says.
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
from laurel.verify.finding import Finding, compare_equal
from laurel.verify.pairs import Shown, all_preference_pairs, at_temperature_one, mean_step
from laurel.verify.world import (
    World,
    as_groups,
    build_session,
    gradient,
    make_world,
    mean_by_prompt,
)


@dataclass(frozen=True)
class DataRow:
    """One row of data: prompt, its answers with their rewards, further columns, its probability."""

    x: int
    members: tuple[int, ...]
    rewards: tuple[float, ...]
    columns: Mapping[str, Any]
    chance: float


def scored_as(world: World, score_XN: Tensor) -> World:
    """The world whose table gives completion n this score at its last token, and 0 before it."""
    table = torch.zeros_like(world.logits)
    for n in range(world.language.N):
        table[(slice(None), *last_cell(world, n))] = score_XN[:, n]
    return replace(world, logits=table)


def last_cell(world: World, n: int) -> tuple[int, int]:
    """Prefix and token of a completion's last token: no other completion ends there."""
    t = int(world.language.length_N[n]) - 1
    return int(world.language.state_NT[n, t]), int(world.language.token_NT[n, t])


def mean_pull(world: World, name: str, shown: Sequence[DataRow], **options: Any) -> Tensor:
    """E of the loop's gradient over rows of data, times the units of each row: [X, S, V].

    One call of the loop: every row becomes a prompt of its own.
    """
    which = torch.tensor([row.x for row in shown])
    chance = torch.tensor([row.chance for row in shown])
    each = every_pull(world, name, shown, **options)
    return mean_by_prompt(world, which, each, chance)


def every_pull(world: World, name: str, shown: Sequence[DataRow], **options: Any) -> Tensor:
    """The loop's gradient of each row of data alone, times its units: [rows, S, V]."""
    which = torch.tensor([row.x for row in shown])
    setup = build_session(world, name, world.logits[which], world.ref[which], **options)
    groups = as_groups(
        world,
        [(at, row.members) for at, row in enumerate(shown)],
        rewards=[row.rewards for row in shown],
        table=world.logits[which],
        supervised=True,
        describe=lambda at, _: shown[at].columns,
    )
    units = len(shown)
    if setup.config.loss_aggregation == "token_mean":
        units = sum(int(world.language.length_N[n]) for row in shown for n in row.members)
    return gradient(setup, groups) * units


def rankings(world: World) -> list[DataRow]:
    """Every ranking of three different answers, as often as Plackett and Luce say."""
    X = len(world.reward)
    N = world.language.N
    triples = N * (N - 1) * (N - 2) / 6
    shown: list[DataRow] = []
    for x in range(X):
        for members in permutations(range(N), 3):
            r = [float(world.reward[x, n]) for n in members]
            chance = 1.0
            for k in range(3):
                chance *= math.exp(r[k]) / sum(map(math.exp, r[k:]))
            chance = chance / X / triples
            shown.append(DataRow(x, members, (-1.0, -2.0, -3.0), {}, chance))
    return shown


def outcomes(world: World, good_XN: Tensor) -> list[DataRow]:
    """Completions of the policy that end well with probability `good_XN`."""
    p_XN = world.language.logp(world.pi).exp()
    shown: list[DataRow] = []
    for x in range(len(p_XN)):
        for n in range(world.language.N):
            for label in (True, False):
                labelled = good_XN[x, n] if label else 1 - good_XN[x, n]
                chance = float(p_XN[x, n] * labelled) / len(p_XN)
                shown.append(DataRow(x, (n,), (1.0,), {"label": label}, chance))
    return shown


def steps_of(world: World, truth_XSV: Tensor) -> list[DataRow]:
    """Completions whose every token is a step with a label c of -1, 0 or 1.

    Labels are independent, with probabilities proportional to exp(c truth).
    """
    p_XN = world.language.logp(world.pi).exp()
    shown: list[DataRow] = []
    for x in range(len(p_XN)):
        for n in range(world.language.N):
            theta = [float(truth_XSV[x, s, v]) for s, v in world.language.choices(n)]
            for labels in product((-1, 0, 1), repeat=len(theta)):
                steps = zip(labels, theta, strict=True)
                chance = math.prod(label_probability(c, v) for c, v in steps)
                chance = float(p_XN[x, n]) * chance / len(p_XN)
                shown.append(DataRow(x, (n,), (1.0,), {"labels": labels}, chance))
    return shown


def label_probability(label: int, theta: float) -> float:
    """P(label) where labels -1, 0, 1 have logits -theta, 0, theta."""
    return math.exp(label * theta) / (math.exp(-theta) + 1 + math.exp(theta))


def check_pulls() -> Iterator[Finding]:
    """Expected gradients of scorers whose scores are all 0."""
    world = at_temperature_one(make_world(3, 2, seed=40))
    zero = scored_as(world, torch.zeros_like(world.reward))
    yield from wins_less_losses(world, zero)
    yield from check_rankings(world, zero)
    yield from some_of_the_pairs(world)
    yield from imitated_alone(world)
    yield from no_step_is_wrong(world)
    yield from mean_labels(world, zero)


def wins_less_losses(world: World, zero: World) -> Iterator[Finding]:
    """Bradley-Terry at scores of 0."""
    wins = torch.zeros_like(world.reward)
    for x, (y, z), _, p in all_preference_pairs(world):
        wins[x, y] += p / 2
        wins[x, z] -= p / 2
    yield compare_equal(
        "reward",
        "at scores of 0: (wins - losses) / 2",
        mean_step(zero, "reward", all_preference_pairs(world)),
        scored_as(world, wins).logits,
    )


def check_rankings(world: World, zero: World) -> Iterator[Finding]:
    """Rankings at scores of 0."""
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
        yield compare_equal(
            name,
            f"at scores of 0: {says} by place",
            mean_pull(zero, name, law),
            scored_as(world, pulls).logits,
        )


def mean_labels(world: World, zero: World) -> Iterator[Finding]:
    """Outcomes and labelled steps at scores of 0."""
    good_XN = world.reward.sigmoid()
    p_XN = world.language.logp(world.pi).exp()
    X, N = p_XN.shape
    ended_well = torch.zeros_like(world.logits)
    step_labels = torch.zeros_like(world.logits)
    for x in range(X):
        for n in range(N):
            for s, v in world.language.choices(n):
                ended_well[x, s, v] += float(p_XN[x, n] * (good_XN[x, n] - 0.5)) / X
                theta = float(world.ref[x, s, v])
                up = math.exp(theta)
                down = math.exp(-theta)
                step_labels[x, s, v] += float(p_XN[x, n]) * (up - down) / (up + 1 + down) / X
    yield compare_equal(
        "orm",
        "at scores of 0: P(good) - 1/2 at every token",
        mean_pull(zero, "orm", outcomes(world, good_XN)),
        ended_well,
    )
    yield compare_equal(
        "prm",
        "at scores of 0: the mean label of every step",
        mean_pull(zero, "prm", steps_of(world, world.ref)),
        step_labels,
    )


def check_rests_at_truth() -> Iterator[Finding]:
    """At the truth no scorer moves."""
    world = at_temperature_one(make_world(3, 2, seed=41))
    nothing = world.logits * 0
    constant = torch.tensor([[3.0], [-1.0]])
    true = scored_as(world, world.reward + constant)
    yield compare_equal(
        "reward",
        "R1: at the true reward + a constant per prompt the gradient is 0",
        mean_step(true, "reward", all_preference_pairs(world)),
        nothing,
    )
    some: list[Shown] = [row for row in all_preference_pairs(world) if row[1][0] + row[1][1] < 6]
    yield compare_equal(
        "reward", "R1: whatever pairs are shown", mean_step(true, "reward", some), nothing
    )
    for name in ("reward_kwise", "reward_pl"):
        yield compare_equal(
            name,
            "rankings by Plackett-Luce: at the true reward the gradient is 0",
            mean_pull(true, name, rankings(world)),
            nothing,
        )
    yield from check_margin(world)
    yield from imitated_end(world)
    good = world.reward.sigmoid()
    Q, _ = world.language.action_values(world.pi, good)
    at_value = replace(world, logits=torch.logit(Q))
    found = mean_pull(at_value, "orm", outcomes(world, good))
    yield compare_equal(
        "orm",
        "O1: at logit Q(prefix, token), the value function, the gradient is 0",
        found,
        nothing,
    )
    yield compare_equal(
        "prm",
        "at the labels' own distribution the gradient is 0",
        mean_pull(replace(world, logits=world.ref), "prm", steps_of(world, world.ref)),
        nothing,
    )


def check_margin(world: World) -> Iterator[Finding]:
    """R2: a margin m inflates the optimal gap of a pair won with probability p."""
    p = 0.7
    for m in (0.0, 1 / 3, 1.0, 3.0):
        gap = inflated_gap(p, m)
        score = torch.zeros_like(world.reward)
        score[:, 0] = gap
        shown = [
            DataRow(0, pair, (1.0, -1.0), {"margin": m}, chance)
            for pair, chance in (((0, 1), p), ((1, 0), 1 - p))
        ]
        found = mean_pull(scored_as(world, score), "reward", shown)
        yield compare_equal(
            "reward", f"R2: margin {m:.3g}: the gap is {gap:.4f}", found, world.logits * 0
        )


def inflated_gap(p: float, m: float) -> float:
    """The gap h at which p sigma(m - h) = (1 - p) sigma(m + h): log(p / (1 - p)) where m = 0."""
    a = 2 * p - 1
    e = math.exp(-m)
    root = math.sqrt(a * a + 4 * p * (1 - p) * e * e)
    return math.log((a + root) / (2 * (1 - p) * e))


def some_of_the_pairs(world: World) -> Iterator[Finding]:
    """Some of a ranking's pairs: every subset is drawn; their mean gradient is all pairs'."""
    row = DataRow(0, (0, 1, 2), (-1.0, -2.0, -3.0), {}, 1.0)
    whole = every_pull(world, "reward_kwise", [row])[0]
    for m in (1, 2):
        # 24 prompts that differ in nothing but their name
        copies = every_pull(world, "reward_kwise", [row] * 24, pairs_per_prompt=m)
        kinds = {tuple(pull.flatten().mul(1e4).round().tolist()): pull for pull in copies}
        yield compare_equal(
            "reward_kwise",
            f"pairs_per_prompt={m}: each of the 3 subsets is drawn",
            float(len(kinds)),
            3.0,
        )
        mean = torch.stack(list(kinds.values())).mean(0)
        yield compare_equal(
            "reward_kwise",
            f"pairs_per_prompt={m}: their mean is the gradient of all pairs",
            mean,
            whole,
        )


def chosen_frequency(world: World) -> Tensor:
    """How often each answer is the chosen one of a pair: [X, N], each prompt's sum 1."""
    chosen = torch.zeros_like(world.reward)
    for x, (y, _), _, p in all_preference_pairs(world):
        chosen[x, y] += p * len(chosen)
    return chosen


def imitated_alone(world: World) -> Iterator[Finding]:
    """Imitation is the likelihood of the chosen answers, per token; it adds to the comparison."""
    beta = 0.7
    chosen = chosen_frequency(world) / world.language.length_N / len(world.reward)
    scores = world.language.token_scores(world.logits)
    table = (chosen[..., None, None, None] * scores).sum((1, 2))
    alone = mean_step(
        world, "reward", all_preference_pairs(world), imitation_coef=beta, reward_coef=0.0
    )
    yield compare_equal(
        "reward", "imitation alone: beta E[grad lp_chosen / length]", alone, beta * table
    )
    both = mean_step(
        world, "reward", all_preference_pairs(world), imitation_coef=beta, reward_coef=0.5
    )
    halves = 0.5 * mean_step(world, "reward", all_preference_pairs(world)) + beta * table
    yield compare_equal("reward", "lambda comparison + beta imitation", both, halves)


def imitated_end(world: World) -> Iterator[Finding]:
    """Imitation alone ends where pi(y) is proportional to P(y is chosen) / length."""
    goal = chosen_frequency(world) / world.language.length_N
    at_goal = replace(world, logits=world.language.logits_of(goal / goal.sum(1, keepdim=True)))
    found = mean_step(
        at_goal, "reward", all_preference_pairs(world), imitation_coef=1.0, reward_coef=0.0
    )
    yield compare_equal(
        "reward",
        "imitation alone: at P(chosen) / length, normalised, the gradient is 0",
        found,
        world.logits * 0,
    )


def no_step_is_wrong(world: World) -> Iterator[Finding]:
    """The reward `prm:...:product` at the labels' own distribution: P(no step is wrong)."""
    found = torch.zeros_like(world.reward)
    truth = torch.zeros_like(world.reward)
    p_XN = world.language.logp(world.pi).exp()
    for row in steps_of(world, world.ref):
        (n,) = row.members
        p = float(p_XN[row.x, n]) / len(p_XN)
        truth[row.x, n] += (-1 not in row.columns["labels"]) * row.chance / p
    for x in range(len(found)):
        for n in range(world.language.N):
            theta = torch.stack([world.ref[x, s, v] for s, v in world.language.choices(n)])
            logits_T3 = torch.stack([-theta, 0 * theta, theta], 1)
            found[x, n] = every_step(step_soundness(logits_T3))
    yield compare_equal("prm", "as a reward: the product is P(no step is wrong)", found, truth)
