"""Hindsight, exactly: every completion relabelled and trained on by the loop's own functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.metrics import Sums
from laurel.train.relabel import relabel_in_hindsight
from laurel.verify.finding import Finding, compare_equal
from laurel.verify.world import World, as_groups, build_session, gradient, make_world

NAME, GOALS = "hindsight", 3


def reached_goals(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[str | None]:
    """The goal of a completion is its first token; a token that is nobody's goal reaches none."""
    return [str(ids[0]) if ids[0] < GOALS else None for ids in completion_ids]


class Digits:
    """In the tokenizer's place: the prompt "2" is the one id that asks for goal 2."""

    bos_token_id = eos_token_id = None

    def __init__(self, V: int) -> None:
        self.V = V

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": [self.V + int(digit) for digit in text]}


def make_goals(seed: int) -> tuple[World, Tensor]:
    """A world whose prompts ask for goals, and 0 or 1: does a completion reach a goal? [X, N].

    Token 3 reaches none of the three.
    """
    world = make_world(4, 2, X=GOALS, seed=seed)
    goals = reached_goals(world.language.completions)
    hits = [[float(goal == str(x)) for goal in goals] for x in range(GOALS)]
    return world, torch.tensor(hits, dtype=torch.float64)


def ascent_from(world: World, trained: Tensor) -> Tensor:
    """E of the loop's gradient over relabelled samples, times its rows: [X, S, V].

    The samples are of the world's policy, the gradient is at the table `trained`. Every completion
    of every prompt comes once, weighed by its chance after it was relabelled.
    """
    p_XN = world.language.logp(world.pi).exp()
    every = tuple(range(world.language.N))
    drawn = [(x, every) for x in range(len(p_XN))]
    setup = build_session(
        world,
        NAME,
        trained,
        world.ref,
        loss_aggregation="seq_mean_token_sum",
        relabel=f"{__name__}.reached_goals",
        num_generations=len(every),
    )
    setup.policy.tokenizer = Digits(world.language.V)
    groups = as_groups(
        world,
        drawn,
        rewards=p_XN.tolist(),
        table=world.logits,
        describe=lambda x, members: {"prompt": str(x)},
    )
    seen = relabel_in_hindsight(setup, [], groups, Sums())
    weighed = [
        replace(
            group,
            rewards=tuple(
                None if r is None else r * float(p) for r, p in zip(group.rewards, p_N, strict=True)
            ),
        )
        for group, p_N in zip(seen, p_XN, strict=True)
    ]
    rows = sum(goal is not None for goal in reached_goals(world.language.completions)) * len(p_XN)
    return gradient(setup, weighed) * rows / len(p_XN)


def check_relabelled() -> Iterator[Finding]:
    """One round climbs the likelihood of every completion under the goal that it reached.

    The goal that the prompt asked for does not matter.
    """
    world, reach_XN = make_goals(24)
    mean_N = world.language.logp(world.pi).exp().mean(0)
    found = ascent_from(world, world.logits)
    pull_XN = mean_N * reach_XN
    exact = (
        torch.einsum("xn,xnsv->xsv", pull_XN, world.language.token_scores(world.pi).sum(2))
        / world.temperature
    )
    yield compare_equal(NAME, "E[gradient] = E over samples of grad log pi(y | G(y))", found, exact)
    setup = build_session(
        world, NAME, world.logits, world.ref, relabel=f"{__name__}.reached_goals", num_generations=1
    )
    setup.policy.tokenizer, sums = Digits(world.language.V), Sums()
    none = world.language.completions.index((3,))
    drawn = [(x, (none,)) for x in range(GOALS)]
    groups = as_groups(
        world,
        drawn,
        rewards=[(1.0,)] * GOALS,
        table=world.logits,
        describe=lambda x, members: {"prompt": str(x)},
    )
    yield compare_equal(
        NAME,
        "samples that reach nothing: no step",
        gradient(setup, relabel_in_hindsight(setup, [], groups, sums)),
        world.logits * 0,
    )
    yield compare_equal(
        NAME, "and their share relabelled is 0", sums.means()["hindsight/relabelled"], 0.0
    )


def check_posterior() -> Iterator[Finding]:
    """H7: fitted to one round, pi(y | g) = pi(y) 1[G(y) = g] / Z.

    pi(y) is the mean of the sampling policy over all goals that were asked for.
    """
    world, reach_XN = make_goals(25)
    for says, asked in (
        ("one policy for all prompts", world.logits[:1].expand_as(world.logits)),
        ("the mean over prompts", world.logits),
    ):
        start = replace(world, logits=asked.clone())
        joint_XN = start.language.logp(start.pi).exp().mean(0) * reach_XN
        bayes_XN = joint_XN / joint_XN.sum(1, keepdim=True)
        at_bayes = start.language.logits_of(bayes_XN) * start.temperature
        yield compare_equal(
            NAME,
            f"fitted to one round: pi(y) 1[G(y) = g] / Z, {says}",
            ascent_from(start, at_bayes),
            world.logits * 0,
        )
        half = (0.5 * bayes_XN + 0.5 * start.language.logp(start.pi).exp()).log()
        near = start.language.logits_of(half.exp()) * start.temperature
        found = ascent_from(start, near)
        climbs = float(
            (
                found
                * (
                    start.language.token_scores(near / start.temperature).sum(2)
                    * joint_XN[..., None, None]
                ).sum(1)
            ).sum()
        )
        yield Finding(
            NAME,
            f"before it is fitted, the step climbs, {says}",
            "> 0",
            f"{climbs:.4f}",
            float(climbs <= 0),
            0.5,
        )
