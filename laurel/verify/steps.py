"""(a) Single steps: the loop's gradient of random batches, on the policy and one step off it, against the second opinion."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from laurel.train.algorithms import ALGORITHMS, defaults
from laurel.verify import plain
from laurel.verify.finding import Finding, same
from laurel.verify.world import World, as_groups, build, gradient, make_world

CASES: dict[str, list[dict[str, Any]]] = {
    "sft": [{}, {"loss_aggregation": "seq_mean_token_mean"}],
    "reinforce": [{}, {"beta": 0.3}, {"loss_aggregation": "token_mean"}],
    "reinforce_baseline": [{}, {"baseline": "batch", "beta": 0.3}],
    "rloo": [{}, {"beta": 0.3}, {"entropy_coef": 0.2}],
    "grpo": [{}, {"beta": 0.3}, {"beta": 0.3, "kl_estimator": "k2"}, {"beta": 0.3, "kl_estimator": "exact"}, {"delta": 1.5}],
    "dr_grpo": [{}, {"overlong_buffer": 1}, {"max_completion_length": 5}],
    "dapo": [{}, {"epsilon_high": 0.5, "overlong_buffer": 1}],
    "gspo": [{}, {"epsilon": 0.05, "epsilon_high": 0.1}],
    "cispo": [{}, {"epsilon_high": 1.1, "scale_rewards": "group"}],
    "reinforce_pp": [{}, {"beta": 0.3}, {"num_generations": 2, "mask_truncated_completions": True}],
    "raft": [{}, {"keep": "above", "bar": 0.2}, {"keep": "over_mean"}],
}
"""Options that each row is tried with, besides its defaults."""


def steps(*, batches: int = 4, seed: int = 0) -> Iterator[Finding]:
    """For every row and its options: `batches` random batches of 3 prompts, with an unjudged sample and prompts of unequal length."""
    world = make_world(V=4, H=3, X=3, seed=seed)
    drift = torch.randn(world.logits.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    before = replace(world, logits=world.logits + 0.35 * drift)
    for name, cases in CASES.items():
        for options in cases:
            shown = ", ".join(f"{key}={value}" for key, value in options.items())
            yield one(world, name, options, f"one step, {shown or 'defaults'}", batches, seed, None)
            if ALGORITHMS[name].source == "policy":
                yield one(world, name, options, f"one step off, {shown or 'defaults'}", batches, seed, before)


def one(world: World, name: str, options: dict[str, Any], quantity: str, batches: int, seed: int, before: World | None) -> Finding:
    """The gradients of all batches laid end to end, from the loop and from the second opinion."""
    rng, ours, theirs = random.Random(f"{name}{seed}"), [], []
    every_length = [1 / int((world.language.length_N == length).sum()) for length in world.language.length_N]
    sampled_from = world.logits if before is None else before.logits
    given = ALGORITHMS[name].source == "data"
    G = options.get("num_generations", 1 if given or defaults(name)["num_generations"] == 1 else 4)
    for number in range(batches):
        drawn = [(x, tuple(rng.choices(range(world.language.N), every_length, k=G))) for x in range(3)]
        rewards: list[list[float | None]] = [[1.0 if given else float(world.reward[x, n]) for n in members] for x, members in drawn]
        if number % 2 and G > 1:
            rewards[1][0] = None
        own = {} if given else {"num_generations": G}
        setup = build(world, name, sampled_from, world.ref, then=None if before is None else world.logits, **own | options)
        groups = as_groups(world, drawn, rewards=rewards, table=sampled_from, supervised=given, filler=number)
        ours.append(gradient(setup, groups, running_mean=0.4))
        theirs.append(plain.gradient(world, name, drawn, rewards, setup.config, old=sampled_from, running_mean=0.4))
    return same(name, quantity, torch.stack(ours), torch.stack(theirs))
