"""(b) Where each row ends: its expected update is followed to the end, to the policy of theory.

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

from laurel.verify.expected_gradients import (
    PER_ROW,
    chance_of_right,
    expected_batch_gradient,
    group_weight,
)
from laurel.verify.finding import Finding, compare_equal
from laurel.verify.language import best_of_n, optimum
from laurel.verify.world import (
    World,
    as_groups,
    build_session,
    expected_gradient,
    gradient,
    make_world,
)

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
    yield from check_kl_in_loss(world)
    yield from check_difficulty_weights(bandit)
    yield from check_binary_reward(bandit)
    yield from check_imitation(world)


def follow_natural_ascent(world: World, update: Update, rate: float, steps: int) -> World:
    """Natural ascent, until nothing moves or the steps are used up.

    logits(s) += rate * (E[gradient of s] / (visits(s) p(. | s)))
    """
    for _ in range(steps):
        passed = world.language.visits(world.pi)[..., None] * world.pi.softmax(2)
        scale = passed / world.temperature / len(world.logits)
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
    """KL in the reward: pi* = ref exp(R / beta) / Z.

    There every sample's R - beta k1 is beta log Z, so no group teaches anything.
    """
    goal = optimum(world.language.logp(world.pi_ref), world.reward, BETA)
    for name, G, limit in (
        ("reinforce", 1, None),
        ("reinforce_baseline", 1, None),
        ("rloo", 2, 1e-9),
    ):
        # rloo: a group whose rewards differ by less than 1e-9 counts as one that teaches nothing
        end = follow_natural_ascent(
            world, lambda w, name=name, G=G: expected_gradient(w, name, G, beta=BETA), STEP, 80
        )
        yield compare_equal(
            name, "ascent ends at ref exp(R/beta)/Z", probabilities(end), goal.exp(), limit=limit
        )
    at_goal = replace(world, logits=world.language.logits_of(goal.exp()) * world.temperature)
    reward = {"beta": BETA, "kl_placement": "reward", "kl_estimator": "k1"}
    yield from rests_at_optimum(world, at_goal, reward)
    yield from one_token_optimum()
    start = replace(at_goal, logits=at_goal.logits + 0.2 * (world.logits - at_goal.logits))
    for name in ("grpo", "gspo"):
        end = follow_natural_ascent(
            start, lambda w, name=name: expected_gradient(w, name, 2, **reward), 0.02, 1
        )
        yield compare_kl_to_goal(
            name, "KL in the reward, near pi*: a step brings it closer", start, end, goal.exp()
        )


def rests_at_optimum(world: World, at_goal: World, reward: dict[str, Any]) -> Iterator[Finding]:
    """Every row with KL in the reward rests at pi*."""
    for name in ("rloo", "grpo", "dr_grpo", "gspo"):
        yield compare_equal(
            name,
            "KL in the reward: at pi* nothing moves",
            expected_gradient(at_goal, name, 2, **reward),
            world.logits * 0,
        )
    for name, own in (("dapo", UNMASKED), ("cispo", {})):
        found = expected_gradient(at_goal, name, 2, **reward, **PER_ROW, **own)
        yield compare_equal(name, "KL in the reward: at pi* nothing moves", found, world.logits * 0)


def one_token_optimum() -> Iterator[Finding]:
    """Rows that whiten over the batch, at pi* of a world of one token."""
    one_token = make_world(4, 1, seed=12)
    goal_1 = optimum(one_token.language.logp(one_token.pi_ref), one_token.reward, BETA)
    settled = replace(
        one_token, logits=one_token.language.logits_of(goal_1.exp()) * one_token.temperature
    )
    for name, own in (("reinforce_pp", {}), ("ppo", UNPENALISED), ("ppo_max", PLAIN_SCORES)):
        found = expected_batch_gradient(settled, name, 2, beta=BETA, **own)
        yield compare_equal(
            name, "KL in the reward, one token: at pi* nothing moves", found, settled.logits * 0
        )


def compare_kl_to_goal(
    method: str, quantity: str, start: World, end: World, goal: Tensor
) -> Finding:
    """KL(pi || goal), summed over prompts, has to fall: the error is its ratio, after to before."""

    def distance(world: World) -> float:
        p_XN = probabilities(world)
        return float((p_XN * (p_XN.log() - goal.log())).sum())

    before = distance(start)
    after = distance(end)
    return Finding(method, quantity, f"< {before:.6g}", f"{after:.6g}", after / before, 1.0)


def check_kl_in_loss(world: World) -> Iterator[Finding]:
    """KL in the loss is a penalty of each state by itself.

    pi(a | s) = ref exp(kappa Q(s, a) / beta) with Q of the policy itself, kappa = (G-1)/G

    Solved backwards from the last tokens. It is not pi*, whose Q also pays for the KL of the states
    that follow.
    """
    kappa = 0.5
    logref = world.pi_ref.log_softmax(2)

    def value(q_XV: Tensor, s: int) -> Tensor:
        return ((logref[:, s] + kappa * q_XV / BETA).softmax(1) * q_XV).sum(1)

    Q, _ = world.language.backward(world.reward, value)
    goal = replace(world, logits=(logref + kappa * Q / BETA) * world.temperature)
    for estimator in ("k3", "exact"):

        def update(w: World, k: str = estimator) -> Tensor:
            return expected_gradient(w, "dr_grpo", 2, beta=BETA, kl_estimator=k) * w.language.H

        end = follow_natural_ascent(world, update, STEP, 120)
        quantity = (
            f"{estimator} in the loss: ascent ends at ref exp((G-1)/G Q/beta), state by state"
        )
        yield compare_equal("dr_grpo", quantity, probabilities(end), probabilities(goal))


def check_difficulty_weights(world: World) -> Iterator[Finding]:
    """Right or wrong, one token: logit p = logit p_ref + c_G(p) / beta.

    Plain regularised RL has 1 / beta in the place of c_G(p) / beta.
    """
    p_ref = float((world.language.logp(world.pi_ref).exp() * world.reward).sum())
    group: dict[str, Any] = {"scale_rewards": "group"}
    for name, G, own in (
        ("grpo", 2, group),
        ("grpo", 3, group),
        ("gspo", 2, group),
        ("cispo", 2, group | PER_ROW),
    ):
        p = end_of_group_scaling(p_ref, G)
        update = lambda w, n=name, G=G, o=own: expected_gradient(w, n, G, beta=BETA, **o)  # noqa: E731
        end = follow_natural_ascent(world, update, 1.5, 200)
        yield compare_equal(
            name,
            f"right or wrong: logit p = logit p_ref + c_{G}(p)/beta",
            chance_of_right(end)[0],
            p,
        )


def end_of_group_scaling(p_ref: float, G: int) -> float:
    """The p with logit p = logit p_ref + c_G(p) / beta, by bisection.

    c_G is bounded, so the difference of the two sides changes sign once.
    """
    low, high = 0.0, 1.0
    p = 0.5
    for _ in range(200):
        p = (low + high) / 2
        excess = _logit(p) - _logit(p_ref) - group_weight(p, G) / BETA
        low, high = (low, p) if excess > 0 else (p, high)
    return p


def _logit(p: float) -> float:
    return float(torch.logit(torch.tensor(p, dtype=torch.float64)))


def check_binary_reward(world: World) -> Iterator[Finding]:
    """Without KL a 0/1 reward ends with everything right, in the proportions of the start."""
    right = world.reward[0] > 0
    start = probabilities(world)[0, right]
    kept: dict[str, Any] = PER_ROW | UNMASKED | {"only_informative": True}
    plain: dict[str, Any] = {}
    for name, own, slow in (
        ("grpo", plain, False),
        ("dr_grpo", plain, False),
        ("dapo", kept, True),
        ("cispo", PER_ROW, False),
        ("raft", PER_ROW, False),
    ):
        update = lambda w, n=name, o=own: expected_gradient(w, n, 2, **o)  # noqa: E731
        p = probabilities(nearly_right(world, update, slow=slow))[0, right]
        total = float(p.sum())
        rises = "no KL: P(right) rises towards 1"
        yield Finding(name, rises, "> .95", f"{total:.4f}", 1 - total, 0.05)
        unchanged = "no KL: proportions among right answers unchanged"
        yield compare_equal(name, unchanged, p / p.sum(), start / start.sum())


def nearly_right(world: World, update: Update, *, slow: bool) -> World:
    """The update followed until 95 % is right; slow: with steps as long as what is still wrong."""
    for _ in range(60):
        wrong = 1 - float(chance_of_right(world)[0])
        if wrong > 0.05:
            world = follow_natural_ascent(world, update, wrong if slow else 1.0, 1)
    return world


def check_imitation(world: World) -> Iterator[Finding]:
    """RAFT's samples are best fitted by best-of-G itself, SFT is best at its data.

    Three rounds of G = 3 make best-of-27.
    """
    p_XN = probabilities(world)
    best = best_of_n(p_XN, world.reward, 2)
    at_best = replace(world, logits=world.language.logits_of(best) * world.temperature)
    found = expected_gradient(at_best, "raft", 2, old=world.logits, **PER_ROW)
    yield compare_equal(
        "raft", "fitted to its samples: best-of-2, gradient 0", found, world.logits * 0
    )
    rounds = p_XN
    for _ in range(3):
        rounds = best_of_n(rounds, world.reward, 3)
    yield compare_equal(
        "raft", "three rounds of best-of-3 = best-of-27", rounds, best_of_n(p_XN, world.reward, 27)
    )
    yield from supervised_optimum(world)


def supervised_optimum(world: World) -> Iterator[Finding]:
    """SFT is best at the distribution of its data."""
    N = world.language.N
    # every completion once, and two of them once more
    data: list[tuple[int, tuple[int, ...]]] = [(0, (n,)) for n in (*range(N), 0, 3)]
    share = torch.zeros(1, world.language.N, dtype=torch.float64)
    for _, (n,) in data:
        share[0, n] += 1 / len(data)
    alone = World(
        world.language, world.language.logits_of(share), world.ref[:1], world.reward[:1], 1.0
    )
    setup = build_session(alone, "sft", alone.logits, alone.ref)
    groups = as_groups(
        alone, data, rewards=[(1.0,)] * len(data), table=alone.logits, supervised=True
    )
    yield compare_equal(
        "sft",
        "at the data's own distribution the gradient is 0",
        gradient(setup, groups),
        alone.logits * 0,
    )
