"""(b) Where each row ends: its expected update is followed to the end, and the policy there is the
one theory names.

The update is the loop's own gradient, averaged over every group; only the step is ours: each
state's logits move along the natural gradient, so that a dozen steps are enough and no state is
forgotten because it is rarely visited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from laurel.verify.expected_gradients import PER_ROW, bernoulli, group_weight, one_batch
from laurel.verify.finding import Finding, same
from laurel.verify.language import best_of_n, optimum
from laurel.verify.world import World, as_groups, build, expected_gradient, gradient, make_world

BETA = 0.5
STEP = 1.9
"""A little less than 1 / BETA, which would be Newton's own step."""
UNMASKED: dict[str, Any] = {"mask_truncated_completions": False}
UNPENALISED: dict[str, Any] = {"missing_eos_penalty": 0.0}
PLAIN_SCORES: dict[str, Any] = {**UNPENALISED, "normalize_rewards": False, "reward_clip": 0.0}
Update = Callable[[World], Tensor]


def fixed_points() -> Iterator[Finding]:
    """The fixed point of every row."""
    world, bandit = make_world(3, 2, seed=8), make_world(4, 1, X=1, seed=9, binary=True)
    yield from regularised_optimum(world)
    yield from state_by_state(world)
    yield from difficulty(bandit)
    yield from all_right(bandit)
    yield from imitation(world)


def follow(world: World, update: Update, rate: float, steps: int) -> World:
    """Natural ascent: logits(s) += rate * (E[gradient of s] / (visits(s) p(. | s))), until nothing
    moves or the steps are used up.
    """
    for _ in range(steps):
        scale = (
            world.language.visits(world.pi)[..., None]
            * world.pi.softmax(2)
            / world.temperature
            / len(world.logits)
        )
        move = update(world) / scale
        move = rate * (move - move.mean(2, keepdim=True)) * world.temperature
        world = replace(world, logits=world.logits + move)
        if float(move.abs().max()) < 1e-13:
            break
    return world


def probabilities(world: World) -> Tensor:
    """pi(y | x) of every completion."""
    return world.language.logp(world.pi).exp()


def regularised_optimum(world: World) -> Iterator[Finding]:
    """KL in the reward: pi* = ref exp(R / beta) / Z. There every sample's R - beta k1 is beta log
    Z, so no group teaches anything.
    """
    goal = optimum(world.language.logp(world.pi_ref), world.reward, BETA)
    for name, G, limit in (
        ("reinforce", 1, None),
        ("reinforce_baseline", 1, None),
        ("rloo", 2, 1e-9),
    ):
        # rloo: a group whose rewards differ by less than 1e-9 counts as one that teaches nothing
        end = follow(
            world, lambda w, name=name, G=G: expected_gradient(w, name, G, beta=BETA), STEP, 80
        )
        yield same(
            name, "ascent ends at ref exp(R/beta)/Z", probabilities(end), goal.exp(), limit=limit
        )
    at_goal = replace(world, logits=world.language.logits_of(goal.exp()) * world.temperature)
    reward = {"beta": BETA, "kl_placement": "reward", "kl_estimator": "k1"}
    yield from rests_at_optimum(world, at_goal, reward)
    yield from one_token_optimum()
    start = replace(at_goal, logits=at_goal.logits + 0.2 * (world.logits - at_goal.logits))
    for name in ("grpo", "gspo"):
        end = follow(start, lambda w, name=name: expected_gradient(w, name, 2, **reward), 0.02, 1)
        yield closer(
            name, "KL in the reward, near pi*: a step brings it closer", start, end, goal.exp()
        )


def rests_at_optimum(world: World, at_goal: World, reward: dict[str, Any]) -> Iterator[Finding]:
    """Every row with KL in the reward rests at pi*."""
    for name in ("rloo", "grpo", "dr_grpo", "gspo"):
        yield same(
            name,
            "KL in the reward: at pi* nothing moves",
            expected_gradient(at_goal, name, 2, **reward),
            world.logits * 0,
        )
    for name, own in (("dapo", UNMASKED), ("cispo", {})):
        found = expected_gradient(at_goal, name, 2, **reward, **PER_ROW, **own)
        yield same(name, "KL in the reward: at pi* nothing moves", found, world.logits * 0)


def one_token_optimum() -> Iterator[Finding]:
    """Rows that whiten over the batch, at pi* of a world of one token."""
    one_token = make_world(4, 1, seed=12)
    goal_1 = optimum(one_token.language.logp(one_token.pi_ref), one_token.reward, BETA)
    settled = replace(
        one_token, logits=one_token.language.logits_of(goal_1.exp()) * one_token.temperature
    )
    for name, own in (("reinforce_pp", {}), ("ppo", UNPENALISED), ("ppo_max", PLAIN_SCORES)):
        found = one_batch(settled, name, 2, beta=BETA, **own)
        yield same(
            name, "KL in the reward, one token: at pi* nothing moves", found, settled.logits * 0
        )


def closer(method: str, quantity: str, start: World, end: World, goal: Tensor) -> Finding:
    """KL(pi || goal), summed over prompts, before and after: the error is their ratio and has to be
    below 1.
    """
    gap = [
        float((probabilities(w) * (probabilities(w).log() - goal.log())).sum())
        for w in (start, end)
    ]
    return Finding(method, quantity, f"< {gap[0]:.6g}", f"{gap[1]:.6g}", gap[1] / gap[0], 1.0)


def state_by_state(world: World) -> Iterator[Finding]:
    """KL in the loss sees each state by itself: pi(a | s) = ref exp(kappa Q(s, a) / beta) with Q of
    the policy itself, kappa = (G-1)/G.

    Solved backwards from the last tokens. It is not pi*, whose Q also pays for the KL of the states
    that follow.
    """
    kappa, logref = 0.5, world.pi_ref.log_softmax(2)

    def value(q_XV: Tensor, s: int) -> Tensor:
        return ((logref[:, s] + kappa * q_XV / BETA).softmax(1) * q_XV).sum(1)

    Q, _ = world.language.backward(world.reward, value)
    goal = replace(world, logits=(logref + kappa * Q / BETA) * world.temperature)
    for estimator in ("k3", "exact"):

        def update(w: World, k: str = estimator) -> Tensor:
            return expected_gradient(w, "dr_grpo", 2, beta=BETA, kl_estimator=k) * w.language.H

        end = follow(world, update, STEP, 120)
        quantity = (
            f"{estimator} in the loss: ascent ends at ref exp((G-1)/G Q/beta), state by state"
        )
        yield same("dr_grpo", quantity, probabilities(end), probabilities(goal))


def difficulty(world: World) -> Iterator[Finding]:
    """Right or wrong, one token: logit p = logit p_ref + c_G(p) / beta, where plain regularised RL
    has 1 / beta.
    """
    p_ref = float((world.language.logp(world.pi_ref).exp() * world.reward).sum())
    logit = torch.logit(torch.tensor(p_ref, dtype=torch.float64))
    group: dict[str, Any] = {"scale_rewards": "group"}
    for name, G, own in (
        ("grpo", 2, group),
        ("grpo", 3, group),
        ("gspo", 2, group),
        ("cispo", 2, group | PER_ROW),
    ):
        low, high = 0.0, 1.0
        for _ in range(200):  # the right-hand side is bounded, so the difference changes sign once
            p = (low + high) / 2
            excess = (
                float(torch.logit(torch.tensor(p, dtype=torch.float64)) - logit)
                - group_weight(p, G) / BETA
            )
            low, high = (low, p) if excess > 0 else (p, high)
        update = lambda w, n=name, G=G, o=own: expected_gradient(w, n, G, beta=BETA, **o)  # noqa: E731
        end = follow(world, update, 1.5, 200)
        yield same(
            name, f"right or wrong: logit p = logit p_ref + c_{G}(p)/beta", bernoulli(end)[0], p
        )


def all_right(world: World) -> Iterator[Finding]:
    """Without KL a 0/1 reward ends with everything right, and among the right answers nothing
    changes their proportions.
    """
    right = world.reward[0] > 0
    start = probabilities(world)[0, right]
    kept = PER_ROW | UNMASKED | {"only_informative": True}
    for name, own, slow in (
        ("grpo", {}, False),
        ("dr_grpo", {}, False),
        ("dapo", kept, True),
        ("cispo", PER_ROW, False),
        ("raft", PER_ROW, False),
    ):
        end, update = world, lambda w, name=name, own=own: expected_gradient(w, name, 2, **own)
        for _ in range(60):
            wrong = 1 - float(bernoulli(end)[0])
            end = follow(end, update, wrong if slow else 1.0, 1) if wrong > 0.05 else end
        p = probabilities(end)[0, right]
        yield Finding(
            name,
            "no KL: P(right) rises towards 1",
            "> .95",
            f"{float(p.sum()):.4f}",
            1 - float(p.sum()),
            0.05,
        )
        yield same(
            name,
            "no KL: proportions among right answers unchanged",
            p / p.sum(),
            start / start.sum(),
        )


def imitation(world: World) -> Iterator[Finding]:
    """RAFT's samples are best fitted by best-of-G itself, three rounds of G = 3 make best-of-27;
    SFT is best at its data.
    """
    p_XN = probabilities(world)
    best = best_of_n(p_XN, world.reward, 2)
    at_best = replace(world, logits=world.language.logits_of(best) * world.temperature)
    found = expected_gradient(at_best, "raft", 2, old=world.logits, **PER_ROW)
    yield same("raft", "fitted to its samples: best-of-2, gradient 0", found, world.logits * 0)
    rounds = p_XN
    for _ in range(3):
        rounds = best_of_n(rounds, world.reward, 3)
    yield same(
        "raft", "three rounds of best-of-3 = best-of-27", rounds, best_of_n(p_XN, world.reward, 27)
    )
    yield from supervised_optimum(world)


def supervised_optimum(world: World) -> Iterator[Finding]:
    """SFT is best at the distribution of its data."""
    data: list[tuple[int, tuple[int, ...]]] = [(0, (n,)) for n in range(world.language.N)] + [
        (0, (0,)),
        (0, (3,)),
    ]
    share = torch.zeros(1, world.language.N, dtype=torch.float64)
    for _, (n,) in data:
        share[0, n] += 1 / len(data)
    alone = World(
        world.language, world.language.logits_of(share), world.ref[:1], world.reward[:1], 1.0
    )
    setup = build(alone, "sft", alone.logits, alone.ref)
    groups = as_groups(
        alone, data, rewards=[(1.0,)] * len(data), table=alone.logits, supervised=True
    )
    yield same(
        "sft",
        "at the data's own distribution the gradient is 0",
        gradient(setup, groups),
        alone.logits * 0,
    )
