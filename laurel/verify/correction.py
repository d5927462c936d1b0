"""(a) Another sampler: what importance weights correct, with every group listed.

mu is what samples, another table than the policy's. Theory's side is written with the language's
visits and action values, and has no ratio of a sample in it; the loop's side is the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.metrics import Sums
from laurel.core.sample import Group
from laurel.rollout.pack import pack
from laurel.rollout.sampler import Sampler
from laurel.train import loop
from laurel.train.algorithms import ALGORITHMS
from laurel.train.reference import drawn_logps
from laurel.train.row import Algorithm
from laurel.train.session import Session, State
from laurel.verify import recomputed
from laurel.verify.finding import Finding, compare_different, compare_equal
from laurel.verify.single_steps import Draws
from laurel.verify.world import (
    World,
    as_groups,
    build_session,
    every_group,
    gradient,
    make_world,
    mean_by_prompt,
)

UNCAPPED, CAP = 1e9, 1.15
"""A cap that no ratio reaches, and one that about every third one does."""
PER_ROW: dict[str, Any] = {"loss_aggregation": "seq_mean_token_sum"}
MODES = ("token_truncate", "sequence_mask")


class Engine(Sampler):
    """A generator that says of itself that its log-probabilities are not the trainer's."""

    @property
    def exact(self) -> bool:
        return False


def corrected_gradients() -> Iterator[Finding]:
    """Expectations of corrected rows, what the weights are, and every row's steps."""
    yield from corrected_claims()
    yield from corrected_steps()


def corrected_claims() -> Iterator[Finding]:
    """Expectations, and weights of rows that are known."""
    world, bandit = make_world(3, 2, seed=60), make_world(4, 1, seed=61)
    yield from check_one_token(bandit, sampler_of(bandit))
    yield from check_token_weights(world, sampler_of(world))
    yield from check_masked_rows(world, sampler_of(world))
    yield from check_equal_policies(world)


def sampler_of(world: World, size: float = 0.5) -> Tensor:
    """Logits of another policy than the world's: what samples."""
    generator = torch.Generator().manual_seed(62)
    drift = torch.randn(world.logits.shape, generator=generator, dtype=torch.float64)
    return world.logits + size * drift


def engine_session(world: World, name: str, table: Tensor, ref: Tensor, **options: Any) -> Session:
    """`build_session` with an engine that may be any distance from the trainer."""
    setup = build_session(world, name, table, ref, sampler_gap_limit=1e3, **options)
    setup.generator = Engine(setup.policy)
    return setup


def expected_corrected(
    world: World, name: str, G: int, mu: Tensor, how: str, cap: float, **options: Any
) -> Tensor:
    """E over all groups that mu draws of the gradient of one step at the policy: [X, S, V].

    As `world.expected_gradient`, each group a prompt of its own with its own copy of the table.
    """
    cases = list(every_group(world, G, world.language.logp(mu / world.temperature).exp()))
    which = torch.tensor([x for (x, _), _ in cases])
    setup = engine_session(
        world,
        name,
        world.logits[which],
        world.ref[which],
        num_generations=G,
        importance_sampling_correction=how,
        importance_sampling_cap=cap,
        **options,
    )
    assert setup.config.loss_aggregation != "token_mean"
    rewards = [[float(world.reward[x, n]) for n in members] for (x, members), _ in cases]
    drawn = [(at, members) for at, ((_, members), _) in enumerate(cases)]
    groups = as_groups(world, drawn, rewards=rewards, table=mu[which])
    each_CSV = gradient(setup, groups) * len(cases)
    return mean_by_prompt(world, which, each_CSV, torch.tensor([c for _, c in cases]))


def policy_gradient(world: World, weight_XN: Tensor) -> Tensor:
    """E over prompts of E_pi[w grad log pi], with respect to the table: [X, S, V]."""
    return world.language.ascent(world.pi, weight_XN) / world.temperature / len(world.logits)


def surrogate_gradient(world: World, mu: Tensor, reward_XN: Tensor, cap: float) -> Tensor:
    """sum_s d_mu(s) sum_a min(pi, C mu)(a | s) Q_mu(s, a) grad log pi(a | s): [X, S, V].

    Of C above every ratio it is the gradient at pi of TRPO's surrogate around mu (Kakade and
    Langford 2002; Schulman et al. 2015, arXiv:1502.05477).
    """
    language, before = world.language, mu / world.temperature
    Q_XSV, _ = language.action_values(before, reward_XN)
    pi_XSV = world.pi.softmax(2)
    pull_XSV = torch.minimum(pi_XSV, cap * before.softmax(2)) * Q_XSV
    slope_XSV = pull_XSV - pi_XSV * pull_XSV.sum(2, keepdim=True)
    visits_XS1 = language.visits(before)[..., None]
    return visits_XS1 * slope_XSV / world.temperature / len(world.logits)


def centred_under(world: World, mu: Tensor) -> Tensor:
    """R - J(mu): the reward less its mean over what the sampler draws, [X, N]."""
    mu_XN = world.language.logp(mu / world.temperature).exp()
    return world.reward - (mu_XN * world.reward).sum(1, keepdim=True)


def check_one_token(world: World, mu: Tensor) -> Iterator[Finding]:
    """Rows of one token: unbiased for grad J at the policy where nothing is cut."""
    grad = policy_gradient(world, world.reward)
    unscaled: dict[str, Any] = {"scale_rewards": "none"}
    for name, G, factor, options in (
        ("reinforce", 1, 1.0, {}),
        ("rloo", 2, 1.0, {}),
        ("dr_grpo", 2, 0.5, {}),
        ("gspo", 2, 0.5, unscaled),
        ("cispo", 2, 0.5, unscaled | PER_ROW),
    ):
        for how in MODES:
            found = expected_corrected(world, name, G, mu, how, UNCAPPED, **options)
            yield compare_equal(
                name, f"one token, another sampler, {how}: grad J", found, grad * factor
            )
    plain = expected_corrected(world, "rloo", 2, mu, "none", UNCAPPED)
    yield compare_different("rloo", "one token, another sampler, none: not grad J", plain, grad)


def check_token_weights(world: World, mu: Tensor) -> Iterator[Finding]:
    """Two tokens: a weight per token has the surrogate's gradient, and with a cap exactly its part.

    A baseline is free without a cap. With one it is not: what is left of the mean of grad log pi
    is multiplied by it, so of rloo the reward is centred as its own baseline centres it.
    """
    H = world.language.H
    for cap in (UNCAPPED, CAP):
        shown = "C above all ratios" if cap == UNCAPPED else f"C = {cap:g}"
        raw = surrogate_gradient(world, mu, world.reward, cap)
        centred = surrogate_gradient(world, mu, centred_under(world, mu), cap)
        for name, G, truth in (
            ("reinforce", 1, raw),
            ("rloo", 2, centred),
            ("dr_grpo", 2, centred / 2 / H),
        ):
            found = expected_corrected(world, name, G, mu, "token_truncate", cap)
            yield compare_equal(
                name, f"token_truncate, {shown}: grad of the surrogate around mu", found, truth
            )
    grad = policy_gradient(world, world.reward)
    found = expected_corrected(world, "reinforce", 1, mu, "token_truncate", UNCAPPED)
    yield compare_different(
        "reinforce", "token_truncate of two tokens is not grad J: first order", found, grad
    )
    yield compare_different(
        "reinforce",
        f"token_truncate, C = {CAP:g}: the cap is felt",
        expected_corrected(world, "reinforce", 1, mu, "token_truncate", CAP),
        found,
    )


def check_masked_rows(world: World, mu: Tensor) -> Iterator[Finding]:
    """Two tokens: a row's whole ratio is unbiased, and a mask takes away the part of its rows."""
    language = world.language
    log_ratio_XN = language.logp(world.pi) - language.logp(mu / world.temperature)
    kept_XN = (log_ratio_XN.exp() <= CAP).double()
    assert 0.2 < float(kept_XN.mean()) < 0.8
    for cap, inside_XN in ((UNCAPPED, torch.ones_like(kept_XN)), (CAP, kept_XN)):
        shown = "C above all ratios: grad J" if cap == UNCAPPED else f"C = {cap:g}: of rows inside"
        for name, G, reward_XN in (
            ("reinforce", 1, world.reward),
            ("rloo", 2, centred_under(world, mu)),
        ):
            yield compare_equal(
                name,
                f"sequence_mask, {shown}",
                expected_corrected(world, name, G, mu, "sequence_mask", cap),
                policy_gradient(world, reward_XN * inside_XN),
            )
    yield from check_kept_weights(world, mu, log_ratio_XN, kept_XN)


def check_kept_weights(
    world: World, mu: Tensor, log_ratio_XN: Tensor, kept_XN: Tensor
) -> Iterator[Finding]:
    """Every completion of prompt 0 in one batch: the weights of its rows are rho R, or 0."""
    N = world.language.N
    setup = engine_session(
        world,
        "reinforce",
        world.logits,
        world.ref,
        num_generations=N,
        importance_sampling_correction="sequence_mask",
        importance_sampling_cap=CAP,
    )
    rewards = [world.reward[0].tolist()]
    groups = as_groups(world, [(0, tuple(range(N)))], rewards=rewards, table=mu)
    batch = loop.weigh(setup, State(step=1), groups, Sums())
    expected_N = log_ratio_XN[0].exp() * world.reward[0] * kept_XN[0]
    yield compare_equal(
        "reinforce", "sequence_mask: weights are rho R inside", batch.weight_NT[:, 0], expected_N
    )
    rows = float(loop.with_signal(setup, batch).loss_mask_NT.any(1).sum())
    yield compare_equal(
        "reinforce", "sequence_mask: exactly the rows outside are out", rows, kept_XN[0].sum()
    )


def check_equal_policies(world: World) -> Iterator[Finding]:
    """An engine that says what the trainer says: bit for bit the uncorrected gradient."""
    for name in ("rloo", "grpo", "gspo", "cispo", "ppo"):
        found = [own_gradient(world, name, how) for how in (*MODES, "none")]
        for how, corrected in zip(MODES, found[:2], strict=True):
            yield compare_equal(
                name, f"equal policies, {how}: bit-equal", corrected, found[2], limit=1e-300
            )


def own_gradient(world: World, name: str, how: str) -> Tensor:
    """The gradient of a batch whose log-probabilities are the trainer's own, bit for bit."""
    options: dict[str, Any] = {"importance_sampling_correction": how, "num_generations": 3}
    setup = engine_session(world, name, world.logits, world.ref, **options, num_iterations=1)
    members = [(0, (0, 3, 5)), (1, (1, 6, 2))]
    rewards = [[float(world.reward[x, n]) for n in row] for x, row in members]
    groups = as_groups(world, members, rewards=rewards, table=world.logits)
    return gradient(setup, said_by_trainer(setup, groups))


def said_by_trainer(setup: Session, groups: Sequence[Group]) -> list[Group]:
    """The groups with the log-probabilities of the trainer's own pass."""
    policy = setup.policy
    with torch.no_grad():
        logp_NT = drawn_logps(setup, pack(groups), policy, lambda micro: policy.logp(micro).logp)
    rows = iter(logp_NT.tolist())
    return [
        replace(
            group,
            samples=tuple(
                replace(sample, logps=tuple(next(rows)[: len(sample.logps)]))
                for sample in group.samples
            ),
        )
        for group in groups
    ]


def corrected_steps(batches: int = 2, only: str | None = None) -> Iterator[Finding]:
    """Every row of source policy (or one): its corrected gradient against the second opinion.

    On the policy, and one step off it: then pi_old is the trainer's before that step, and the
    weights are those of the first. In one piece and in micro-batches.
    """
    world = make_world(V=4, H=3, X=3, seed=63)
    for name, row in ALGORITHMS.items():
        if row.source.sampled and not row.source.off_policy and only in (None, name):
            for how in MODES[1:] if compares_answers(row) else MODES:
                yield from corrected_step(world, name, how, batches)


def compares_answers(row: Algorithm) -> bool:
    """Is the row's unit a comparison?"""
    return row.defaults.get("loss_aggregation") == "comparison_mean"


def corrected_step(world: World, name: str, how: str, batches: int) -> Iterator[Finding]:
    """One row with one correction."""
    mu, before = sampler_of(world), sampler_of(world, -0.15)
    cases: tuple[tuple[str, Tensor, dict[str, Any]], ...] = (
        ("one step", world.logits, {}),
        ("one step off", before, {}),
        ("in micro-batches", world.logits, {"token_budget": 9}),
    )
    for shown, old, options in cases:
        pairs = [both(world, name, how, mu, old, options, batch) for batch in range(batches)]
        ours, theirs = zip(*pairs, strict=True)
        yield compare_equal(
            name, f"another sampler, {how}, {shown}", torch.stack(ours), torch.stack(theirs)
        )


def both(
    world: World, name: str, how: str, mu: Tensor, old: Tensor, options: dict[str, Any], batch: int
) -> tuple[Tensor, Tensor]:
    """The gradient of one batch of mu's samples from the loop and from the second opinion."""
    draws = Draws(world, f"{name}{batch}")
    drawn = draws.groups(4)
    rewards = draws.rewards(drawn)
    setup = engine_session(
        world,
        name,
        old,
        world.ref,
        then=None if old is world.logits else world.logits,
        num_generations=4,
        importance_sampling_correction=how,
        importance_sampling_cap=CAP,
        **options,
    )
    groups = as_groups(world, drawn, rewards=rewards, table=mu)
    theirs = recomputed.gradient(
        world, name, drawn, rewards, setup.config, old=old, sampler=mu, running_mean=0.4
    )
    return gradient(setup, groups, running_mean=0.4), theirs
