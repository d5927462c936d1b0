"""Adversarial imitation, exactly: an expert and a policy in full, and the loop's own steps."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.metrics import Sums
from laurel.core.sample import Group
from laurel.train import adversary, loop
from laurel.train.session import Session, State
from laurel.verify import recomputed
from laurel.verify.finding import Finding, compare_equal
from laurel.verify.fixed_points import follow_natural_ascent, probabilities
from laurel.verify.language import kl
from laurel.verify.scores import last_cell
from laurel.verify.world import (
    Drawn,
    World,
    as_groups,
    as_sample,
    ascent_of,
    build_session,
    every_group,
    gradient,
    make_world,
    verdict_table,
)

NAME = "gail"


@dataclass(frozen=True)
class Imitated:
    """A world and the expert that is imitated: log pi_E(y | x), [X, N].

    The world's `ref` only gives the logits of a fresh discriminator.
    """

    world: World
    expert: Tensor

    @property
    def gap(self) -> Tensor:
        """The best discriminator's logit, log pi_E - log pi."""
        return self.expert - self.world.language.logp(self.world.pi)


def make_imitated(V: int, H: int, X: int = 1, *, seed: int) -> Imitated:
    """A random policy and a random expert."""
    world, other = make_world(V, H, X, seed=seed), make_world(V, H, X, seed=seed + 1)
    return Imitated(world, world.language.logp(other.pi))


def with_demonstrations(
    world: World, groups: list[Group], shown: Sequence[Drawn], *, filler: int = 0
) -> list[Group]:
    """Every group with its demonstration, by the function that the loop appends it with."""
    logp = world.language.token_logp(world.pi)
    out: list[Group] = []
    for at, (group, (x, (n,))) in enumerate(zip(groups, shown, strict=True)):
        sample = as_sample(world, x, n, len(group.samples), at, logp, filler=filler)
        key = replace(sample.key, version=adversary.NOT_SAMPLED)
        out.append(adversary.append_demonstration(group, replace(sample, key=key)))
    return out


def set_discriminator_logits(setup: Session, world: World, logit_XN: Tensor) -> None:
    """Give the discriminator of a setup the logits [X, N], whatever its precision."""
    table: Any = setup.auxiliary
    table.table.data.copy_(at_last_tokens(world, logit_XN))


def at_last_tokens(world: World, value_XN: Tensor) -> Tensor:
    """A table with a number of each completion where it ends: [X, N] -> [X, S, V].

    No two completions end in one place.
    """
    table = torch.zeros(len(value_XN), world.language.S, world.language.V, dtype=value_XN.dtype)
    for n in range(world.language.N):
        table[(slice(None), *last_cell(world, n))] = value_XN[:, n]
    return table


def mean_step(
    it: Imitated, logit_XN: Tensor, *, G: int = 2, learn: bool = True, **options: Any
) -> tuple[Tensor, Tensor]:
    """The mean of one step: ascent of the policy's table and of the discriminator's, [X, S, V].

    The mean over groups of G samples and over their demonstration. One call of the loop: each case
    is a prompt of its own with its own copy of both tables. learn=False: no demonstrations, so the
    policy's half alone.
    """
    world = it.world
    cases = _cases(it, G, learn)
    which = torch.tensor([x for x, *_ in cases])
    setup = build_session(
        world, NAME, world.logits[which], world.ref[which], num_generations=G, **options
    )
    set_discriminator_logits(setup, world, logit_XN[which])
    drawn = [(at, members) for at, (_, members, _, _) in enumerate(cases)]
    copies = replace(world, logits=world.logits[which])
    groups = _scored(setup, copies, drawn)
    if learn:
        shown = [(at, (m,)) for at, (_, _, m, _) in enumerate(cases)]
        groups = with_demonstrations(copies, groups, shown)
    gradient(setup, groups)
    # The loop's step is the plain mean over cases: times their number, each counts by its chance.
    share = len(cases) * torch.tensor([chance for *_, chance in cases])[:, None, None]
    policy, judge = (_by_prompt(each * share, which, world) for each in ascent_of(setup))
    return policy, judge


def _scored(setup: Session, world: World, drawn: Sequence[Drawn], filler: int = 0) -> list[Group]:
    """Samples of the world's policy with the discriminator's rewards."""
    zeros = [[0.0] * len(members) for _, members in drawn]
    blank = as_groups(world, drawn, rewards=zeros, table=world.logits, filler=filler)
    return adversary.discriminator_scores(setup, blank)


def _cases(it: Imitated, G: int, learn: bool) -> list[tuple[int, tuple[int, ...], int, float]]:
    """(prompt, the group's completions, the demonstration, the chance of all that)."""
    groups = every_group(it.world, G, probabilities(it.world))
    if not learn:
        return [(x, members, 0, chance) for (x, members), chance in groups]
    expert = it.expert.exp()
    return [
        (x, members, m, chance * float(expert[x, m]))
        for (x, members), chance in groups
        for m in range(it.world.language.N)
    ]


def _by_prompt(each: Tensor, which: Tensor, world: World) -> Tensor:
    """[X, S, V] the sum over the cases of each prompt."""
    return torch.zeros_like(world.logits, dtype=each.dtype).index_add(0, which, each)


def divergence(it: Imitated, name: str) -> Tensor:
    """The gradient of what each reward descends at the best discriminator: [X, S, V].

    By autograd, with respect to the table of logits.
    """
    table = it.world.logits.double().clone().requires_grad_(True)
    lp = it.world.language.logp(table / it.world.temperature)
    le = it.expert.double()
    middle = torch.logaddexp(lp, le) - math.log(2)
    descended = {
        "airl": kl(lp, le),
        "gail": kl(lp, middle) + kl(le, middle),
        "log_d": 2 * kl(middle, le),
    }
    return torch.autograd.grad(descended[name].mean(), table)[0]


NAMED = {"airl": "KL(pi || pi_E)", "gail": "2 JS(pi, pi_E)", "log_d": "2 KL((pi + pi_E)/2 || pi_E)"}


def discriminator_rewards() -> Iterator[Finding]:
    """Whole steps against a second opinion, and what both halves of a step are on average."""
    it = make_imitated(3, 2, seed=50)
    for imitation_reward in NAMED:
        policy, _ = mean_step(it, it.gap, learn=False, imitation_reward=imitation_reward)
        says = f"I1-I3: {imitation_reward} at D*: E[gradient] = -grad {NAMED[imitation_reward]}"
        yield compare_equal(NAME, says, policy, -divergence(it, imitation_reward))
    policy, judge = mean_step(it, it.gap)
    unchanged = "I1: demonstrations leave the policy's gradient as it is"
    yield compare_equal(NAME, unchanged, policy, -divergence(it, "airl"))
    rests = "the discriminator rests at D* = pi_E / (pi_E + pi)"
    yield compare_equal(NAME, rests, judge, it.world.logits * 0)
    yield from discriminator_elsewhere(it)
    yield from whole_steps()


def discriminator_elsewhere(it: Imitated) -> Iterator[Finding]:
    """The discriminator's gradient away from its optimum, and its optimum with smoothed labels."""
    p = it.world.language.logp(it.world.pi).exp()
    expert = it.expert.exp()
    logit = 0.7 * it.world.reward
    pull = (expert * (-logit).sigmoid() - p * logit.sigmoid()) / 2 / len(p)
    yield compare_equal(
        NAME,
        "elsewhere it is pulled by (pi_E (1 - D) - pi D) / 2",
        mean_step(it, logit)[1],
        at_last_tokens(it.world, pull),
    )
    e = 0.1
    mixed = (1 - e) * expert + e * p
    other = (1 - e) * p + e * expert
    _, judge = mean_step(it, torch.log(mixed) - torch.log(other), label_smoothing=e)
    rests = "smoothed, it rests at ((1-e) pi_E + e pi) / (pi_E + pi)"
    yield compare_equal(NAME, rests, judge, it.world.logits * 0)


def whole_steps(*, batches: int = 2) -> Iterator[Finding]:
    """Two steps in a row with a real optimiser, against plain Python: both tables.

    Each step judges, appends the demonstrations, weighs and updates.
    """
    world = make_world(3, 2, X=3, seed=52)
    for options in (
        {},
        {"imitation_reward": "gail", "label_smoothing": 0.1},
        {"imitation_reward": "log_d", "token_budget": 9},
    ):
        rng = random.Random(str(options))
        pairs = [_two_steps(world, rng, options, number) for number in range(batches)]
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        yield compare_equal(
            NAME,
            f"two whole steps, {shown or 'defaults'}: what they move",
            torch.stack([ours for ours, _ in pairs]),
            torch.stack([theirs for _, theirs in pairs]),
        )


def _two_steps(
    world: World, rng: random.Random, options: dict[str, Any], filler: int
) -> tuple[Tensor, Tensor]:
    """How far the loop and plain Python move the policy's table and the discriminator's."""
    setup = build_session(world, NAME, world.logits, world.ref, num_generations=3, **options)
    setup.optimizer = torch.optim.SGD(setup.trainable().values(), lr=1.0)
    now = world
    verdict = verdict_table(world.ref)
    for step in (1, 2):
        drawn = draw_completions(rng, world, 3)
        shown = draw_completions(rng, world, 1)
        _loop_step(setup, step, now, drawn, shown, filler)
        policy, judge = recomputed_step(now, verdict, drawn, shown, setup.config)
        now = replace(now, logits=now.logits + policy)
        verdict = verdict + judge
    start = torch.stack([world.logits, verdict_table(world.ref)])
    ours = torch.stack([p.detach() for p in setup.trainable().values()]) - start
    return ours, torch.stack([now.logits, verdict]) - start


def _loop_step(
    setup: Session,
    step: int,
    now: World,
    drawn: Sequence[Drawn],
    shown: Sequence[Drawn],
    filler: int,
) -> None:
    """One step of the loop on these samples and demonstrations: both networks move."""
    groups = with_demonstrations(now, _scored(setup, now, drawn, filler), shown, filler=filler)
    state = State(step=step)
    loop.update(setup, state, loop.weigh(setup, state, groups, Sums()), Sums())


def draw_completions(rng: random.Random, world: World, k: int) -> list[Drawn]:
    """k completions of every prompt."""
    return [(x, tuple(rng.choices(range(world.language.N), k=k))) for x in range(len(world.logits))]


def recomputed_step(
    world: World, verdict: Tensor, drawn: Sequence[Drawn], shown: Sequence[Drawn], o: Any
) -> tuple[Tensor, Tensor]:
    """The same in plain Python: what moves the policy's logits, and the discriminator's table."""

    def logit(x: int, n: int) -> float:
        return float(verdict[x][last_cell(world, n)])

    rewards = [
        [_imitation_reward(logit(x, n), o.imitation_reward) for n in members]
        for x, members in drawn
    ]
    policy = recomputed.gradient(world, NAME, drawn, rewards, o, old=world.logits)
    judge = torch.zeros_like(verdict)
    half = 0.5
    for (x, members), (_, (m,)) in zip(drawn, shown, strict=True):
        # One demonstration against all samples of the group: each side has half of the say.
        cases = [(m, 1 - o.label_smoothing, half)]
        cases += [(n, o.label_smoothing, half / len(members)) for n in members]
        for n, label, share in cases:
            error = label - 1 / (1 + math.exp(-logit(x, n)))
            judge[(x, *last_cell(world, n))] += share * error / len(drawn)
    return policy, judge


def _imitation_reward(logit: float, name: str) -> float:
    """What a sample earns whose discriminator's logit this is."""
    d = 1 / (1 + math.exp(-logit))
    return {"airl": math.log(d / (1 - d)), "gail": -math.log(1 - d), "log_d": math.log(d)}[name]


def check_expert_matched() -> Iterator[Finding]:
    """Where it ends: at the expert, where nothing moves.

    With the best discriminator, or one that learns at the same time.
    """
    it = make_imitated(3, 2, seed=54)
    logits = it.world.language.logits_of(it.expert.exp()) * it.world.temperature
    at_expert = replace(it, world=replace(it.world, logits=logits))
    for imitation_reward in NAMED:
        policy, judge = mean_step(at_expert, it.expert * 0, imitation_reward=imitation_reward)
        both = torch.stack([policy, judge])
        yield compare_equal(
            NAME, f"{imitation_reward} at pi = pi_E and D = 1/2: nothing moves", both, both * 0
        )

    def update(world: World) -> Tensor:
        there = replace(it, world=world)
        return mean_step(there, there.gap, learn=False)[0]

    end = follow_natural_ascent(it.world, update, 1.0, 12)
    # 1e-8: a group's spread below 1e-9 is no signal
    yield compare_equal(
        NAME, "I5: airl with D* ends at pi_E", probabilities(end), it.expert.exp(), limit=1e-8
    )
    yield from check_learning_in_turn()


def check_learning_in_turn() -> Iterator[Finding]:
    """Policy and discriminator that learn in turn."""
    it = make_imitated(3, 1, seed=56)
    world = it.world
    logit = it.expert * 0
    for _ in range(120):
        policy, judge = mean_step(replace(it, world=world), logit)
        shared = (probabilities(world) + it.expert.exp()) / 2
        pull = torch.stack([judge[:, 0, y[0]] for y in world.language.completions], 1)
        logit = logit + 2.0 * pull / shared
        world = follow_natural_ascent(world, lambda _, found=policy: found, 0.25, 1)
    yield compare_equal(
        NAME,
        "I5: policy and discriminator learning side by side end at pi_E",
        probabilities(world),
        it.expert.exp(),
        limit=1e-6,
    )
    half = torch.full_like(logit, 0.5)
    yield compare_equal(NAME, "I5: and D at 1/2", logit.sigmoid(), half, limit=1e-6)
