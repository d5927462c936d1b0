"""(a) Single steps: the loop's gradient of random batches against the second opinion.

The batches are on the policy and one step off it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

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
from laurel.verify.finding import Finding, compare_equal
from laurel.verify.world import (
    Describe,
    Drawn,
    World,
    as_groups,
    ascent_of,
    build_session,
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
        {"bootstrap_truncated": True, "missing_eos_penalty": 0.0, "gamma": 0.9, "beta": 0.3},
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


def describe_row(world: World, source: Source) -> Describe | None:
    """A row's further columns: a margin, an outcome, labels of its steps.

    They are made from the prompt and the first answer.
    """

    def step_labels(x: int, members: Sequence[int]) -> dict[str, Any]:
        length = int(world.language.length_N[members[0]])
        return {"labels": [(x + members[0] + t) % 3 - 1 for t in range(length)]}

    makers: dict[Source, Describe] = {
        RANKINGS: lambda x, members: {"margin": 0.3 * x},
        OUTCOMES: lambda x, members: {"label": (x + members[0]) % 2 == 0},
        STEPS: step_labels,
    }
    return makers.get(source)


def single_steps(*, batches: int = 4, seed: int = 0, only: str | None = None) -> Iterator[Finding]:
    """Every row (or one) with its options, on `batches` random batches of 3 prompts.

    The batches have an unjudged sample and prompts of unequal length.
    """
    world = make_world(V=4, H=3, X=3, seed=seed)
    drift = torch.randn(
        world.logits.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )
    before = replace(world, logits=world.logits + 0.35 * drift)
    for name, cases in CASES.items():
        for options in cases if only in (None, name) else ():
            yield from of_row(world, before, name, options, batches, seed)


def of_row(
    world: World, before: World, name: str, options: dict[str, Any], batches: int, seed: int
) -> Iterator[Finding]:
    """One row with these options: its steps that there are."""
    row = ALGORITHMS[name]
    shown = ", ".join(f"{key}={value}" for key, value in options.items()) or "defaults"
    if row.source.population:
        yield one_step(world, options, f"one step, {shown}", batches)
        return
    yield compare_gradients(world, name, options, f"one step, {shown}", batches, seed, None)
    if row.source.sampled:
        yield compare_gradients(
            world, name, options, f"one step off, {shown}", batches, seed, before
        )
    if row.credit == "critic":
        yield compare_critic(
            world, name, options, f"the critic one step off, {shown}", batches, before
        )


class Draws:
    """Random batches of 3 prompts, every length of completion equally often."""

    def __init__(self, world: World, seed: str) -> None:
        self.world = world
        self.rng = random.Random(seed)
        length_N = world.language.length_N
        self.weights = [1 / int((length_N == length).sum()) for length in length_N]

    def groups(self, G: int) -> list[Drawn]:
        """G completions of each prompt."""
        completions = range(self.world.language.N)
        return [(x, tuple(self.rng.choices(completions, self.weights, k=G))) for x in range(3)]

    def grades(self, drawn: Sequence[Drawn], grades: Grades) -> list[list[float | None]]:
        """Random rewards among those that a row of data may have."""
        return [[self.rng.choice(grade) for grade in grades] for _ in drawn]

    def rewards(self, drawn: Sequence[Drawn]) -> list[list[float | None]]:
        """The world's rewards of these completions."""
        return [[float(self.world.reward[x, n]) for n in members] for x, members in drawn]


def group_size(name: str, options: Mapping[str, Any]) -> int:
    """Completions of a prompt: as many as a row of data has, as the options say, or 4."""
    if grades := grades_of(name):
        return len(grades)
    default = 1 if defaults(name)["num_generations"] == 1 else 4
    return int(options.get("num_generations", default))


def compare_gradients(
    world: World,
    name: str,
    options: dict[str, Any],
    quantity: str,
    batches: int,
    seed: int,
    before: World | None,
) -> Finding:
    """The gradients of all batches laid end to end, from the loop and from the second opinion."""
    draws = Draws(world, f"{name}{seed}")
    G = group_size(name, options)
    pairs: list[tuple[Tensor, Tensor]] = []
    for number in range(batches):
        drawn = draws.groups(G)
        rewards = draws.rewards(drawn)
        if grades := grades_of(name):
            rewards = draws.grades(drawn, grades)
        elif number % 2 and G > 1:
            rewards[1][0] = None
        pairs.append(both_gradients(world, name, options, drawn, rewards, before, number))
    ours, theirs = zip(*pairs, strict=True)
    return compare_equal(name, quantity, torch.stack(ours), torch.stack(theirs))


def both_gradients(
    world: World,
    name: str,
    options: dict[str, Any],
    drawn: Sequence[Drawn],
    rewards: Sequence[Sequence[float | None]],
    before: World | None,
    filler: int,
) -> tuple[Tensor, Tensor]:
    """The gradient of one batch from the loop and from the second opinion, [X, S, V] each.

    before: the world whose policy sampled, where it is another; filler: tokens before the prompt.
    """
    source = ALGORITHMS[name].source
    describe = describe_row(world, source)
    sampled_from = world.logits if before is None else before.logits
    of_data = bool(grades_of(name))
    sampling: dict[str, Any] = {} if of_data else {"num_generations": len(drawn[0][1])}
    then = None if before is None else world.logits
    setup = build_session(world, name, sampled_from, world.ref, then=then, **sampling | options)
    groups = as_groups(
        world,
        drawn,
        rewards=rewards,
        table=sampled_from,
        supervised=of_data,
        filler=filler,
        describe=describe,
    )
    ours = gradient(setup, groups, running_mean=0.4)
    theirs = recomputed.gradient(
        world,
        name,
        drawn,
        rewards,
        setup.config,
        old=sampled_from,
        running_mean=0.4,
        describe=describe,
    )
    return ours, theirs


def compare_critic(
    world: World, name: str, options: dict[str, Any], quantity: str, batches: int, before: World
) -> Finding:
    """The critic's gradient after it has moved, by less and by more than its clip.

    It moves towards the returns and away from them.
    """
    draws = Draws(world, f"{name}{quantity}")
    values = value_table(world.ref)
    generator = torch.Generator().manual_seed(3)
    now = values + 0.6 * torch.randn(values.shape, generator=generator, dtype=values.dtype)
    own = dict(options)
    own.setdefault("num_generations", 4)
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for number in range(batches):
        drawn = draws.groups(own["num_generations"])
        rewards = draws.rewards(drawn)
        setup = build_session(
            world, name, before.logits, world.ref, then=world.logits, critic_then=now, **own
        )
        gradient(
            setup, as_groups(world, drawn, rewards=rewards, table=before.logits, filler=number)
        )
        ours.append(ascent_of(setup)[1])
        theirs.append(
            recomputed.critic(world, drawn, rewards, setup.config, old=before.logits, now=now)
        )
    return compare_equal(name, quantity, torch.stack(ours), torch.stack(theirs))
