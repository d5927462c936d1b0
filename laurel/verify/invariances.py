"""(c) What must not matter: micro-batches, padding, the order of things, a constant added to every
reward.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.metrics import Sums
from laurel.core.sample import Group
from laurel.train import loop
from laurel.train.algorithms import ALGORITHMS
from laurel.train.options import defaults
from laurel.train.session import Session, State
from laurel.verify.evolution import unmoved
from laurel.verify.finding import Finding, same
from laurel.verify.shapes import shapes
from laurel.verify.single_steps import described, grades_of
from laurel.verify.world import (
    World,
    as_groups,
    ascent_of,
    build,
    expected_gradient,
    gradient,
    make_world,
)

COMPARES = (
    "rloo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "reinforce_pp",
    "raft",
    "online_dpo",
    "rrhf",
    "gail",
)
"""Rows whose every step is the same when a constant is added to the rewards; the others only on
average, or not at all.
"""


def invariances(*, seed: int = 0, only: str | None = None) -> Iterator[Finding]:
    """Every row (or one), one random batch of unequal lengths, on the policy and one step off
    it.
    """
    world = make_world(V=4, H=3, X=4, seed=seed + 10)
    drift = torch.randn(
        world.logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    before = world.logits + 0.3 * drift
    for name, row in ALGORITHMS.items():
        if only not in (None, name):
            continue
        yield from of_row(name, world, before) if not row.source.population else unmoved()
    if only is None:
        yield from shapes()
    small = make_world(3, 2, seed=seed + 11)
    shifted = replace(small, reward=small.reward + 5)
    for name in [name for name in ("reinforce", "reinforce_baseline") if only in (None, name)]:
        found = expected_gradient(shifted, name, 1)
        yield same(
            name,
            "constant added to rewards: the same on average",
            found,
            expected_gradient(small, name, 1),
        )


def of_row(name: str, world: World, before: Tensor) -> Iterator[Finding]:
    """The batch as it is, against the same batch in another shape or order."""
    sampled = ALGORITHMS[name].source.sampled
    table, then = (before, world.logits) if sampled else (world.logits, None)
    options: dict[str, Any] = (
        {"num_generations": 4, "entropy_coef": 0.1, "beta": 0.2} if sampled else {}
    )
    options = {option: value for option, value in options.items() if option in defaults(name)}
    rng, grades, describe = (
        random.Random(name),
        grades_of(name) or ((1.0,),) * 4,
        described(world, ALGORITHMS[name].source),
    )
    drawn = [(x, tuple(rng.sample(range(world.language.N), k=len(grades)))) for x in range(4)]
    rewards = [
        [
            float(world.reward[x, n]) if sampled else g[x % len(g)]
            for n, g in zip(members, grades, strict=True)
        ]
        for x, members in drawn
    ]

    def groups(
        order: Sequence[int] = range(4), turn: int = 0, added: float = 0.0, **how: Any
    ) -> list[Group]:
        chosen = [(x, members[turn:] + members[:turn]) for x, members in (drawn[i] for i in order)]
        told = [[r + added for r in rewards[i][turn:] + rewards[i][:turn]] for i in order]
        return as_groups(
            world,
            chosen,
            rewards=told,
            table=table,
            supervised=not sampled,
            describe=describe,
            **how,
        )

    def run(of: list[Group], **more: Any) -> Tensor:
        return gradient(build(world, name, table, world.ref, then=then, **options | more), of)

    whole = run(groups())
    yield same(
        name, "micro-batches of 9 tokens instead of one", run(groups(), token_budget=9), whole
    )
    yield same(name, "tokens before the prompt", run(groups(filler=3)), whole)
    yield same(
        name,
        "a long row that nobody judged: more padding",
        run(joined(groups(), groups(order=(0,), filler=9))),
        whole,
    )
    dirty = joined(groups(), groups(order=(0,), filler=9))
    yield same(
        name,
        "rubbish in the padding",
        among_rubbish(build(world, name, table, world.ref, then=then, **options), dirty),
        whole,
    )
    yield same(name, "prompts in another order", run(groups(order=(2, 0, 3, 1))), whole)
    if len(grades) > 1:
        yield same(name, "samples of a group in another order", run(groups(turn=1)), whole)
    if name in COMPARES:
        yield same(name, "constant added to rewards: the same step", run(groups(added=5.0)), whole)


def among_rubbish(setup: Session, groups: list[Group]) -> Tensor:
    """The gradient of a batch where every slot that holds no trained token holds rubbish: ids,
    log-probabilities, weights.
    """
    state = State(step=1)
    batch = loop.weigh(setup, state, groups, Sums())
    nothing_NT = ~batch.loss_mask_NT
    batch = batch.replace(
        ids_NL=torch.where(batch.attention_NL, batch.ids_NL, 1),
        logp_old_NT=batch.logp_old_NT.masked_fill(nothing_NT, float("nan")),
        logp_ref_NT=batch.logp_ref_NT.masked_fill(nothing_NT, 1e9),
        weight_NT=batch.weight_NT.masked_fill(nothing_NT, -1e9),
    )
    loop.update(setup, state, batch, Sums())
    return ascent_of(setup)[0]


def joined(groups: list[Group], extra: list[Group]) -> list[Group]:
    """The groups and one more that nobody could judge: it adds padding to the others and nothing
    else.
    """
    (other,) = extra
    samples = tuple(replace(s, key=replace(s.key, prompt="other")) for s in other.samples)
    return [
        *groups,
        replace(other, prompt="other", samples=samples, rewards=(None,) * len(samples)),
    ]
