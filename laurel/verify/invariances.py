"""(c) What must not matter: micro-batches, padding, order, a constant added to every reward."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.metrics import Sums
from laurel.core.sample import Group
from laurel.train import loop
from laurel.train.algorithms import ALGORITHMS
from laurel.train.options import defaults
from laurel.train.session import Session, State
from laurel.verify.evolution import check_constant_added
from laurel.verify.finding import Finding, compare_equal
from laurel.verify.shapes import shapes
from laurel.verify.single_steps import describe_row, grades_of
from laurel.verify.world import (
    Describe,
    Drawn,
    World,
    as_groups,
    ascent_of,
    build_session,
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
"""Rows whose every step is the same when a constant is added to the rewards.

Others are the same on average only, or not at all.
"""


def invariances(*, seed: int = 0, only: str | None = None) -> Iterator[Finding]:
    """Every row (or one) on a random batch of unequal lengths, sampled one step off the policy."""
    world = make_world(V=4, H=3, X=4, seed=seed + 10)
    drift = torch.randn(
        world.logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    before = world.logits + 0.3 * drift
    for name, row in ALGORITHMS.items():
        if only in (None, name):
            yield from (
                check_constant_added() if row.source.population else of_row(name, world, before)
            )
    if only is None:
        yield from shapes()
    small = make_world(3, 2, seed=seed + 11)
    shifted = replace(small, reward=small.reward + 5)
    for name in [name for name in ("reinforce", "reinforce_baseline") if only in (None, name)]:
        found = expected_gradient(shifted, name, 1)
        yield compare_equal(
            name,
            "constant added to rewards: the same on average",
            found,
            expected_gradient(small, name, 1),
        )


@dataclass(frozen=True)
class Case:
    """A row of the table with one batch: completions of 4 prompts, drawn by `table`, and rewards.

    then: where a first optimiser step leads the policy; describe: a row's further columns.
    """

    name: str
    world: World
    table: Tensor
    then: Tensor | None
    options: dict[str, Any]
    drawn: list[Drawn]
    rewards: list[list[float]]
    describe: Describe | None

    def setup(self, **more: Any) -> Session:
        """The loop's session, with further options."""
        own = self.options | more
        return build_session(
            self.world, self.name, self.table, self.world.ref, then=self.then, **own
        )

    def gradient(self, groups: list[Group], **more: Any) -> Tensor:
        """The loop's gradient of these groups, [X, S, V]."""
        return gradient(self.setup(**more), groups)

    def groups(
        self, order: Sequence[int] = range(4), turn: int = 0, added: float = 0.0, filler: int = 0
    ) -> list[Group]:
        """The batch as groups.

        order: its prompts; turn: by how many places the samples of each group are turned around;
        added: to every reward; filler: tokens before each prompt.
        """
        drawn = [self.drawn[i] for i in order]
        rewards = [self.rewards[i] for i in order]
        return as_groups(
            self.world,
            [(x, members[turn:] + members[:turn]) for x, members in drawn],
            rewards=[[r + added for r in own[turn:] + own[:turn]] for own in rewards],
            table=self.table,
            supervised=not ALGORITHMS[self.name].source.sampled,
            describe=self.describe,
            filler=filler,
        )

    def padded(self) -> list[Group]:
        """The batch and one more long row that nobody could judge."""
        return with_unjudged_group(self.groups(), self.groups(order=(0,), filler=9))


def case_of(name: str, world: World, before: Tensor) -> Case:
    """A random batch of this row; rows that sample drew it from the logits `before`."""
    source = ALGORITHMS[name].source
    asked: dict[str, Any] = {}
    if source.sampled:
        asked = {"num_generations": 4, "entropy_coef": 0.1, "beta": 0.2}
    known = defaults(name)
    grades = grades_of(name) or ((1.0,),) * 4
    rng = random.Random(name)
    completions = range(world.language.N)
    drawn = [(x, tuple(rng.sample(completions, k=len(grades)))) for x in range(4)]
    rewards = [[grade[x % len(grade)] for grade in grades] for x, _ in drawn]
    if source.sampled:
        rewards = [[float(world.reward[x, n]) for n in members] for x, members in drawn]
    return Case(
        name,
        world,
        before if source.sampled else world.logits,
        world.logits if source.sampled else None,
        {option: value for option, value in asked.items() if option in known},
        drawn,
        rewards,
        describe_row(world, source),
    )


def of_row(name: str, world: World, before: Tensor) -> Iterator[Finding]:
    """The batch as it is, against the same batch in another shape or order."""
    case = case_of(name, world, before)
    whole = case.gradient(case.groups())
    in_parts = case.gradient(case.groups(), token_budget=9)
    yield compare_equal(name, "micro-batches of 9 tokens instead of one", in_parts, whole)
    yield compare_equal(
        name, "tokens before the prompt", case.gradient(case.groups(filler=3)), whole
    )
    padded = case.gradient(case.padded())
    yield compare_equal(name, "a long row that nobody judged: more padding", padded, whole)
    dirty = gradient_among_rubbish(case.setup(), case.padded())
    yield compare_equal(name, "rubbish in the padding", dirty, whole)
    reordered = case.gradient(case.groups(order=(2, 0, 3, 1)))
    yield compare_equal(name, "prompts in another order", reordered, whole)
    if len(case.drawn[0][1]) > 1:
        turned = case.gradient(case.groups(turn=1))
        yield compare_equal(name, "samples of a group in another order", turned, whole)
    if name in COMPARES:
        shifted = case.gradient(case.groups(added=5.0))
        yield compare_equal(name, "constant added to rewards: the same step", shifted, whole)


def gradient_among_rubbish(setup: Session, groups: list[Group]) -> Tensor:
    """The gradient of a batch with rubbish wherever there is no trained token.

    The rubbish is in ids, log-probabilities and weights.
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


def with_unjudged_group(groups: list[Group], extra: list[Group]) -> list[Group]:
    """The groups and one more that nobody could judge: it adds padding and nothing else."""
    (other,) = extra
    samples = tuple(replace(s, key=replace(s.key, prompt="other")) for s in other.samples)
    return [
        *groups,
        replace(other, prompt="other", samples=samples, rewards=(None,) * len(samples)),
    ]
