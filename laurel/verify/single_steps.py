"""(a) Single steps: the loop's gradient of random batches, on the policy and one step off it,
against the second opinion.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from laurel.rollout.source import (
    DEMONSTRATIONS,
    LABELS,
    LOGGED,
    OUTCOMES,
    PAIRS,
    RANKINGS,
    STEPS,
    Source,
)
from laurel.train.algorithms import ALGORITHMS
from laurel.train.options import defaults
from laurel.verify import recomputed
from laurel.verify.evolution import one_step
from laurel.verify.finding import Finding, same
from laurel.verify.world import (
    Describe,
    World,
    as_groups,
    ascent_of,
    build,
    gradient,
    make_world,
    value_table,
)

CASES: dict[str, list[dict[str, Any]]] = {
    "sft": [{}, {"loss_aggregation": "seq_mean_token_mean"}],
    "reinforce": [{}, {"beta": 0.3}, {"loss_aggregation": "token_mean"}],
    "reinforce_baseline": [{}, {"baseline": "batch", "beta": 0.3}],
    "rloo": [{}, {"beta": 0.3}, {"entropy_coef": 0.2}],
    "grpo": [
        {},
        {"beta": 0.3},
        {"beta": 0.3, "kl_estimator": "k2"},
        {"beta": 0.3, "kl_estimator": "exact"},
        {"delta": 1.5},
    ],
    "dr_grpo": [{}, {"overlong_buffer": 1}, {"max_completion_length": 5}],
    "dapo": [{}, {"epsilon_high": 0.5, "overlong_buffer": 1}],
    "gspo": [{}, {"epsilon": 0.05, "epsilon_high": 0.1}],
    "cispo": [{}, {"epsilon_high": 1.1, "scale_rewards": "group"}],
    "reinforce_pp": [{}, {"beta": 0.3}, {"num_generations": 2, "mask_truncated_completions": True}],
    "hindsight": [
        {},
        {"entropy_coef": 0.2},
        {"mask_truncated_completions": True, "loss_aggregation": "seq_mean_token_sum"},
    ],
    "es": [
        {},
        {"shape_returns": "zscore"},
        {"shape_returns": "raw", "learning_rate": 0.3, "sigma": 0.05},
    ],
    "raft": [{}, {"keep": "above", "bar": 0.2}, {"keep": "over_mean"}],
    "dpo": [{}, {"beta": 0.7, "rpo_alpha": 0.4}],
    "cdpo": [{}, {"beta": 0.7}],
    "robust_dpo": [{}, {"beta": 0.7, "label_smoothing": 0.2}],
    "ipo": [{}, {"beta": 0.4}],
    "simpo": [{}, {"beta": 0.7, "simpo_gamma": 0.3}],
    "orpo": [{}, {"beta": 0.7}],
    "dpop": [{}, {"beta": 0.7, "dpop_lambda": 2.0}],
    "kto": [{}, {"beta": 0.7, "desirable_weight": 1.3}],
    "online_dpo": [{}, {"beta": 0.7, "num_generations": 4, "mask_truncated_completions": True}],
    "rrhf": [{}, {"nll_weight": 0.3}],
    "ppo": [
        {},
        {"lam": 0.5, "gamma": 0.9, "beta": 0.3, "missing_eos_penalty": 0.0},
        {"num_generations": 2, "mask_truncated_completions": True},
    ],
    "ppo_max": [{}, {"reward_clip": 0.3, "beta": 0.3, "num_generations": 2}, {"reward_clip": 0.0}],
    "gail": [{}, {"beta": 0.3}, {"mask_truncated_completions": True}],
    "ilql": [{}, {"awac_beta": 0.8, "expectile": 0.9, "awac_coef": 0.5}],
    "reward": [
        {},
        {"label_smoothing": 0.1, "center_rewards_coefficient": 0.2},
        {"use_margin": False},
        {"imitation_coef": 0.7, "reward_coef": 0.5},
    ],
    "reward_kwise": [
        {},
        {"pairs_per_prompt": 1},
        {"pairs_per_prompt": 2, "imitation_coef": 0.4, "reward_coef": 2.0},
    ],
    "reward_pl": [{}, {"imitation_coef": 0.4, "reward_coef": 2.0}],
    "orm": [{}],
    "prm": [{}],
}
"""Options that each row is tried with, besides its defaults."""


Grades = tuple[tuple[float, ...], ...]
GRADES: dict[Source, Grades] = {
    DEMONSTRATIONS: ((1.0,),),
    PAIRS: ((1.0,), (-1.0,)),
    LABELS: ((1.0, -1.0), (0.0,)),
    RANKINGS: ((0.6,), (-0.6,)),
    OUTCOMES: ((1.0, 0.5),),
    STEPS: ((1.0, 0.5),),
    LOGGED: ((1.0, -0.5, 0.25),),
}
"""source: the rewards that the answers of one row of data may have."""
RANKED: dict[str, Grades] = dict.fromkeys(
    ("reward_kwise", "reward_pl"), ((-0.6,), (-1.2,), (-1.8,))
)
"""The same for rows that take more than pairs."""


def grades_of(name: str) -> Grades:
    """The rewards that the answers of one row of data may have; () for rows that sample."""
    return RANKED.get(name, GRADES.get(ALGORITHMS[name].source, ()))


def described(world: World, source: Source) -> Describe | None:
    """A row's further columns: a margin, an outcome, labels of its steps; made from the prompt and
    the first answer.
    """
    length = world.language.length_N
    makers: dict[Source, Describe] = {
        RANKINGS: lambda x, members: {"margin": 0.3 * x},
        OUTCOMES: lambda x, members: {"label": (x + members[0]) % 2 == 0},
        STEPS: lambda x, members: {
            "labels": [(x + members[0] + t) % 3 - 1 for t in range(int(length[members[0]]))]
        },
    }
    return makers.get(source)


def single_steps(*, batches: int = 4, seed: int = 0, only: str | None = None) -> Iterator[Finding]:
    """For every row (or one) and its options: `batches` random batches of 3 prompts, with an
    unjudged sample and prompts of unequal
    length."""
    world = make_world(V=4, H=3, X=3, seed=seed)
    drift = torch.randn(
        world.logits.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )
    before = replace(world, logits=world.logits + 0.35 * drift)
    for name, cases in CASES.items():
        for options in cases if only in (None, name) else ():
            shown = ", ".join(f"{key}={value}" for key, value in options.items())
            if ALGORITHMS[name].source.population:
                yield one_step(world, options, f"one step, {shown or 'defaults'}", batches)
                continue
            yield one(world, name, options, f"one step, {shown or 'defaults'}", batches, seed, None)
            if ALGORITHMS[name].source.sampled:
                yield one(
                    world,
                    name,
                    options,
                    f"one step off, {shown or 'defaults'}",
                    batches,
                    seed,
                    before,
                )
            if ALGORITHMS[name].credit == "critic":
                yield of_critic(
                    world,
                    name,
                    options,
                    f"the critic one step off, {shown or 'defaults'}",
                    batches,
                    before,
                )


def even_lengths(world: World) -> list[float]:
    """How often to draw each completion, so that every length comes equally often."""
    return [
        1 / int((world.language.length_N == length).sum()) for length in world.language.length_N
    ]


def one(
    world: World,
    name: str,
    options: dict[str, Any],
    quantity: str,
    batches: int,
    seed: int,
    before: World | None,
) -> Finding:
    """The gradients of all batches laid end to end, from the loop and from the second opinion."""
    rng, ours, theirs = random.Random(f"{name}{seed}"), [], []
    every_length = even_lengths(world)
    sampled_from = world.logits if before is None else before.logits
    source, row = ALGORITHMS[name].source, defaults(name)
    grades, describe = grades_of(name), described(world, source)
    given = bool(grades)
    G = (
        len(grades)
        if given
        else options.get("num_generations", 1 if row["num_generations"] == 1 else 4)
    )
    for number in range(batches):
        drawn = [
            (x, tuple(rng.choices(range(world.language.N), every_length, k=G))) for x in range(3)
        ]
        rewards: list[list[float | None]] = [
            [float(world.reward[x, n]) for n in members] for x, members in drawn
        ]
        if given:
            rewards = [[rng.choice(grade) for grade in grades] for _ in drawn]
        elif number % 2 and G > 1:
            rewards[1][0] = None
        own = {} if given else {"num_generations": G}
        setup = build(
            world,
            name,
            sampled_from,
            world.ref,
            then=None if before is None else world.logits,
            **own | options,
        )
        groups = as_groups(
            world,
            drawn,
            rewards=rewards,
            table=sampled_from,
            supervised=given,
            filler=number,
            describe=describe,
        )
        ours.append(gradient(setup, groups, running_mean=0.4))
        theirs.append(
            recomputed.gradient(
                world,
                name,
                drawn,
                rewards,
                setup.config,
                old=sampled_from,
                running_mean=0.4,
                describe=describe,
            )
        )
    return same(name, quantity, torch.stack(ours), torch.stack(theirs))


def of_critic(
    world: World, name: str, options: dict[str, Any], quantity: str, batches: int, before: World
) -> Finding:
    """What pulls at the critic after it has moved, by less and by more than its clip, towards the
    returns and away from them.
    """
    rng, ours, theirs = random.Random(f"{name}{quantity}"), [], []
    every_length = even_lengths(world)
    said = value_table(world.ref)
    now = said + 0.6 * torch.randn(
        said.shape, generator=torch.Generator().manual_seed(3), dtype=said.dtype
    )
    G = options.get("num_generations", 4)
    for number in range(batches):
        drawn = [
            (x, tuple(rng.choices(range(world.language.N), every_length, k=G))) for x in range(3)
        ]
        rewards = [[float(world.reward[x, n]) for n in members] for x, members in drawn]
        own = {"num_generations": G} | options
        setup = build(
            world, name, before.logits, world.ref, then=world.logits, critic_then=now, **own
        )
        gradient(
            setup, as_groups(world, drawn, rewards=rewards, table=before.logits, filler=number)
        )
        ours.append(ascent_of(setup)[1])
        theirs.append(
            recomputed.critic(world, drawn, rewards, setup.config, old=before.logits, now=now)
        )
    return same(name, quantity, torch.stack(ours), torch.stack(theirs))
