"""(a) Expected gradients: every group of a small language is listed, and the mean is theory's.

grad J is the gradient of E[R]. Where a row is biased, it is by exactly the factor or the weights
that are named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import comb
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from laurel.core.sample import Group
from laurel.verify.finding import Finding, compare_different, compare_equal
from laurel.verify.language import best_of_n
from laurel.verify.world import (
    World,
    as_groups,
    ascent_of,
    build_session,
    every_group,
    expected_gradient,
    gradient,
    make_world,
    value_table,
)
from laurel.weight.group import EPS

PER_ROW: dict[str, Any] = {"loss_aggregation": "seq_mean_token_sum"}
FREE: dict[str, Any] = {"epsilon": 1.0, "epsilon_high": 1e9}
"""Bounds that no ratio is outside of."""


def expected_gradients() -> Iterator[Finding]:
    """Every expectation, row by row."""
    world = make_world(3, 2, seed=2)
    binary = make_world(3, 2, seed=3, binary=True)
    bandit = make_world(4, 1, seed=4)
    drift = torch.randn(
        world.logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    yield from check_unbiased(world)
    yield from check_kl_regularised(world, 0.3 * drift)
    yield from check_group_weights(binary)
    yield from check_selections(world, binary)
    yield from check_off_policy(world, bandit, drift)


def ascent(world: World, weight_XN: Tensor) -> Tensor:
    """E over prompts of E[w grad log pi] with respect to the table."""
    return world.language.ascent(world.pi, weight_XN) / world.temperature / len(world.logits)


def check_unbiased(world: World) -> Iterator[Finding]:
    """Rows whose expected gradient is grad J, or a known multiple of it."""
    grad = ascent(world, world.reward)
    H = world.language.H
    yield compare_equal(
        "reinforce", "E[gradient] = grad J", expected_gradient(world, "reinforce", 1), grad
    )
    for b in (0.0, 0.4, -5.0):
        found = expected_gradient(world, "reinforce_baseline", 1, running_mean=b)
        yield compare_equal(
            "reinforce_baseline", f"E[gradient] = grad J, baseline {b:g}", found, grad
        )
    yield compare_equal(
        "reinforce_baseline",
        "baseline=batch of n = 2: grad J/2",
        expected_batch_gradient(world, "reinforce_baseline", 2, baseline="batch"),
        grad / 2,
    )
    for G in (2, 3):
        yield compare_equal(
            "rloo", f"E[gradient] = grad J, G = {G}", expected_gradient(world, "rloo", G), grad
        )
        yield compare_equal(
            "dr_grpo",
            f"(G-1)/(G H) grad J, G = {G}",
            expected_gradient(world, "dr_grpo", G),
            grad * (G - 1) / G / H,
        )
        centred = expected_gradient(world, "cispo", G, scale_rewards="none", **PER_ROW)
        yield compare_equal(
            "cispo", f"unscaled, summed: (G-1)/G grad J, G = {G}", centred, grad * (G - 1) / G
        )


def check_kl_regularised(world: World, drift: Tensor) -> Iterator[Finding]:
    """KL in the reward, and in the loss, where the states are held fixed.

    In the reward it gives the gradient of the sequence's KL, in the loss that of each state's.
    """
    beta = 0.3
    H = world.language.H
    d_XN = world.language.logp(world.pi) - world.language.logp(world.pi_ref)
    full = ascent(world, world.reward - beta * d_XN)
    for name, G in (("reinforce", 1), ("reinforce_baseline", 1), ("rloo", 2)):
        yield compare_equal(
            name,
            "k1 in the reward: grad(J - beta KL)",
            expected_gradient(world, name, G, beta=beta),
            full,
        )
    token_d = world.language.token_logp(world.pi) - world.language.token_logp(world.pi_ref)
    p_XN = world.language.logp(world.pi).exp()
    scores = world.language.token_scores(world.pi)
    frozen = torch.einsum("xn,xnt,xntsv->xsv", p_XN, token_d, scores)
    frozen = frozen / world.temperature / len(world.logits)
    yield compare_different(
        "all rows", "per-state KL gradient is not the sequence's", frozen, ascent(world, d_XN)
    )
    grad = ascent(world, world.reward) / 2 / H
    for estimator in ("k2", "k3", "exact"):
        found = expected_gradient(world, "dr_grpo", 2, beta=beta, kl_estimator=estimator)
        yield compare_equal(
            "dr_grpo",
            f"{estimator} in the loss: grad J/2H - beta E_s grad KL_s/H",
            found,
            grad - beta * frozen / H,
        )
    yield from kl_one_step_off(world, drift, token_d, scores, beta, H)


def kl_one_step_off(
    world: World, drift: Tensor, token_d: Tensor, scores: Tensor, beta: float, H: int
) -> Iterator[Finding]:
    """KL in the loss one step off the policy: states of the old policy, KL of the current one."""
    before = world.logits + drift
    old_XN = world.language.logp(before / world.temperature).exp()
    kl_only = replace(world, reward=world.reward * 0)
    visits = world.language.visits(before / world.temperature)
    exact = torch.einsum("xs,xsv->xsv", visits, state_kl_gradient(world)) / len(old_XN)
    old_logp = world.language.token_logp(before / world.temperature)
    ratio = (world.language.token_logp(world.pi) - old_logp).exp()
    per_token = torch.einsum("xn,xnt,xntsv->xsv", old_XN, ratio * token_d, scores)
    per_token = per_token / world.temperature / len(world.logits)
    yield compare_equal(
        "all rows", "E_old[ratio d grad log pi] = E_old,s grad KL_s", per_token, exact
    )
    for estimator in ("k2", "k3", "exact"):
        found = expected_gradient(
            kl_only, "dr_grpo", 2, old=before, beta=beta, kl_estimator=estimator
        )
        yield compare_equal(
            "dr_grpo",
            f"{estimator} one step off: states of old, KL of now",
            found,
            -beta * exact / H,
        )


def state_kl_gradient(world: World) -> Tensor:
    """grad of KL(pi(. | s) || ref(. | s)) with respect to the table, by state: [X, S, V]."""
    p = world.pi.softmax(2)
    d = world.pi.log_softmax(2) - world.pi_ref.log_softmax(2)
    return p * (d - (p * d).sum(2, keepdim=True)) / world.temperature


def check_group_weights(world: World) -> Iterator[Finding]:
    """Dividing by the group's spread weights prompts by c_G(p), by |y| completions by 1/|y|."""
    p_X = chance_of_right(world)
    for G in (2, 3):
        c_X = torch.tensor([group_weight(float(p), G) for p in p_X], dtype=torch.float64)
        grad_p = ascent(world, world.reward)
        for name in ("grpo", "cispo"):
            found = expected_gradient(world, name, G, scale_rewards="group", **PER_ROW)
            yield compare_equal(
                name,
                f"right or wrong, summed: c_G(p) grad p, G = {G}",
                found,
                grad_p * c_X[:, None, None],
            )
        found = expected_gradient(
            world, "dapo", G, only_informative=True, mask_truncated_completions=False, **PER_ROW
        )
        some_X = 1 - p_X**G - (1 - p_X) ** G
        yield compare_equal(
            "dapo",
            f"informative groups only: c_G(p)/(1-p^G-(1-p)^G) grad p, G = {G}",
            found,
            grad_p * (c_X / some_X)[:, None, None],
        )
        yield from check_default_options(world, p_X, G, grad_p)
    yield from one_whitened_prompt()
    yield from check_critic(world)


def check_default_options(world: World, p_X: Tensor, G: int, grad_p: Tensor) -> Iterator[Finding]:
    """With the means over tokens and the group spreads that rows ship with."""
    inside_XN = torch.stack(
        [mean_advantage(float(p), G, reward) for p, reward in zip(p_X, world.reward, strict=True)]
    )
    per_length = ascent(world, inside_XN / world.language.length_N.double())
    for name in ("grpo", "gspo"):
        found = expected_gradient(world, name, G)
        yield compare_equal(
            name, f"as shipped: each completion times E[A|y]/|y|, G = {G}", found, per_length
        )
        yield compare_different(
            name,
            f"as shipped, not along grad J: cosine {cosine(found, grad_p):.4f}, G = {G}",
            found,
            projection_onto(found, grad_p),
        )


def one_whitened_prompt() -> Iterator[Finding]:
    """Rows that whiten over the batch, on one prompt of one token: c_n(p) grad p."""
    c_X = torch.tensor([group_weight(float(p), 3, 1e-8) for p in chance_of_right(BANDIT)])
    # whitening adds 1e-8 to what in PPO-max is another deviation
    near = 1e-8 if torch.get_default_dtype() == torch.float64 else None
    for name, own, limit in (
        ("reinforce_pp", {}, None),
        ("ppo", RAW, None),
        ("ppo_max", RAW, near),
    ):
        found = expected_batch_gradient(BANDIT, name, 3, **own)
        truth = ascent(BANDIT, BANDIT.reward) * c_X[:, None, None]
        yield compare_equal(
            name, "one prompt, n = 3, one token: c_n(p) grad p", found, truth, limit=limit
        )


def check_critic(world: World) -> Iterator[Finding]:
    """PPO's critic with lambda = 1 is pulled to the value of the policy, and rests there.

    Each completion, weighted by its length, pulls V(s) to R; the mean is 0 at V of the policy.
    """
    p_XN = world.language.logp(world.pi).exp()
    _, V = world.language.action_values(world.pi, world.reward)
    # The critic of these tables is read off the reference: this reference's critic says V.
    exact = world.ref + (V - value_table(world.ref))[..., None] / world.language.V
    total = torch.zeros(world.ref.shape[:2])
    at_value = torch.zeros(world.ref.shape[:2])
    for x, n in product(range(len(p_XN)), range(world.language.N)):
        often = float(p_XN[x, n]) * int(world.language.length_N[n])
        total += often * critic_pull(world, world.ref, x, n)
        at_value += often * critic_pull(world, exact, x, n)
    pull = world.language.visits(world.pi) * (V - value_table(world.ref))
    yield compare_equal(
        "ppo", "the critic is pulled to V of the policy: visits (V - V_now)", total, pull
    )
    yield compare_equal("ppo", "at V of the policy it rests", at_value, pull * 0)
    yield from cut_after_one(world)


CUT: dict[str, Any] = {
    "cliprange_value": 0.0,
    "beta": 0.0,
    "num_iterations": 1,
    "num_generations": 1,
    "missing_eos_penalty": 0.0,
    "bootstrap_truncated": True,
}
"""Options of PPO where answers are cut off and bootstrapped."""


def cut_after_one(world: World) -> Iterator[Finding]:
    """PPO's critic on answers that are cut off after one token and bootstrapped.

    Where it gives V of the state behind the token, it is pulled to V of whole answers, whatever a
    cut row's reward is.
    """
    _, V = world.language.action_values(world.pi, world.reward)
    known = V - value_table(world.ref)
    known[:, 0] = 0.0  # of the empty prefix it says something else
    ref = world.ref + known[..., None] / world.language.V
    first = world.pi.softmax(2)[:, 0]
    total = torch.zeros_like(V)
    for x, token in product(range(len(first)), range(world.language.V)):
        setup = build_session(world, "ppo", world.logits, ref, **CUT)
        gradient(setup, [one_token_group(world, x, token)])
        total += float(first[x, token]) * ascent_of(setup)[1]
    pull = torch.zeros_like(V)
    pull[:, 0] = (V - value_table(ref))[:, 0]
    yield compare_equal(
        "ppo", "cut off after one token, bootstrapped: the critic is pulled to V", total, pull
    )


def one_token_group(world: World, x: int, token: int) -> Group:
    """A completion of prompt x cut off after this first token, unless the token ends it.

    A completion that ended has its reward, a cut one a reward of 7.
    """
    n = next(n for n, y in enumerate(world.language.completions) if y[0] == token)
    ended = token == world.language.eos
    reward = float(world.reward[x, n]) if ended else 7.0
    (group,) = as_groups(world, [(x, (n,))], rewards=[[reward]], table=world.logits)
    (whole,) = group.samples
    cut = replace(
        whole,
        completion_ids=whole.completion_ids[:1],
        logps=whole.logps[:1],
        loss_mask=(True,),
        finish="eos" if ended else "length",
    )
    return replace(group, samples=(cut,))


def critic_pull(world: World, ref: Tensor, x: int, n: int) -> Tensor:
    """[X, S] the slope of completion n of prompt x at the values of the critic read off ref."""
    setup = build_session(
        world,
        "ppo",
        world.logits,
        ref,
        num_generations=1,
        lam=1.0,
        cliprange_value=0.0,
        beta=0.0,
        missing_eos_penalty=0.0,
        num_iterations=1,
    )
    rewards = [[float(world.reward[x, n])]]
    gradient(setup, as_groups(world, [(x, (n,))], rewards=rewards, table=world.logits))
    return ascent_of(setup)[1]


RAW: dict[str, Any] = {"beta": 0.0, "missing_eos_penalty": 0.0}
BANDIT = make_world(4, 1, seed=6, binary=True)


def chance_of_right(world: World) -> Tensor:
    """P(right) of each prompt."""
    return (world.language.logp(world.pi).exp() * world.reward).sum(1)


def group_weight(p: float, G: int, eps: float = EPS) -> float:
    """The factor that dividing by the group's spread puts on a prompt.

    c_G(p) = E_k[ k (G-k) / (G^2 (s_k + eps)) ] / (p (1-p)),  k ~ Bin(G, p)

    s_k is the spread of k ones among G (ddof 1).
    """
    total = 0.0
    for k in range(1, G):
        spread = (k * (G - k) / G / (G - 1)) ** 0.5
        chance = comb(G, k) * p**k * (1 - p) ** (G - k)
        total += chance * k * (G - k) / G**2 / (spread + eps)
    return total / (p * (1 - p))


def mean_advantage(p: float, G: int, reward_N: Tensor) -> Tensor:
    """[N] E[A | y] of a 0/1 reward when each of the other G - 1 samples is right with chance p."""
    value = {own: _mean_advantage(own, p, G) for own in (0.0, 1.0)}
    return torch.tensor([value[float(r)] for r in reward_N], dtype=torch.float64)


def _mean_advantage(own: float, p: float, G: int) -> float:
    """The mean over the number k of others that are right, given its own reward."""
    total = 0.0
    for k in range(G):
        right = [own] + [1.0] * k + [0.0] * (G - 1 - k)
        mean = fmean(right)
        spread = (sum((r - mean) ** 2 for r in right) / (G - 1)) ** 0.5
        advantage = (own - mean) / (spread + EPS) if spread else 0.0
        total += comb(G - 1, k) * p**k * (1 - p) ** (G - 1 - k) * advantage
    return total


def check_selections(world: World, binary: World) -> Iterator[Finding]:
    """RAFT climbs the log-likelihood of its selection; SFT that of its data."""
    p_XN = world.language.logp(world.pi).exp()
    for G in (2, 3):
        chosen = best_of_n(p_XN, world.reward, G) / p_XN
        yield compare_equal(
            "raft",
            f"keep=best: E over best-of-{G} of grad log pi, /{G}",
            expected_gradient(world, "raft", G, **PER_ROW),
            ascent(world, chosen) / G,
        )
    yield from right_or_wrong(binary)
    yield from supervised_data(world)


def right_or_wrong(binary: World) -> Iterator[Finding]:
    """RAFT where rewards are 0 or 1."""
    p_X = chance_of_right(binary)
    share_X = (1 - (1 - p_X) ** 3) / p_X - (1 - p_X) ** 2
    best = share_X[:, None, None] * ascent(binary, binary.reward) / 3
    yield compare_equal(
        "raft",
        "keep=best, right or wrong: ((1-(1-p)^3)/p - (1-p)^2)/3 grad p",
        expected_gradient(binary, "raft", 3, **PER_ROW),
        best,
    )
    found = expected_gradient(binary, "raft", 2, keep="above", bar=1.0, **PER_ROW)
    yield compare_equal("raft", "keep=above: grad p", found, ascent(binary, binary.reward))


def supervised_data(world: World) -> Iterator[Finding]:
    """SFT climbs the log-likelihood of its data."""
    data = [(0, (3,)), (0, (3,)), (0, (0,)), (1, (5,)), (1, (1,))]
    share_XN = torch.zeros_like(world.reward)
    for x, (n,) in data:
        share_XN[x, n] += 1 / len(data)
    table = world.logits / world.temperature
    setup = build_session(world, "sft", table, world.ref, **PER_ROW)
    groups = as_groups(world, data, rewards=[(1.0,)] * len(data), table=table, supervised=True)
    scores = world.language.token_scores(table).sum(2)
    yield compare_equal(
        "sft",
        "grad of -KL(data || pi)",
        gradient(setup, groups),
        torch.einsum("xn,xnsv->xsv", share_XN, scores),
    )


def check_off_policy(world: World, bandit: World, drift: Tensor) -> Iterator[Finding]:
    """One step off: what a ratio per token corrects.

    It is exact where a completion is one token, and right to first order elsewhere.
    """
    generator = torch.Generator().manual_seed(7)
    away = torch.randn(bandit.logits.shape, generator=generator, dtype=torch.float64)
    before = bandit.logits + 0.4 * away
    grad = ascent(bandit, bandit.reward)
    unscaled: dict[str, Any] = {"scale_rewards": "none"}
    uncapped: dict[str, Any] = {"epsilon_high": 1e9}
    for name, options in (
        ("dr_grpo", FREE),
        ("grpo", unscaled | FREE | PER_ROW),
        ("gspo", unscaled | FREE),
        ("cispo", unscaled | uncapped | PER_ROW),
    ):
        found = expected_gradient(bandit, name, 2, old=before, **options)
        yield compare_equal(
            name, "one token, one step off, unclipped: grad J/2 of the policy now", found, grad / 2
        )
    for size in (0.1, 0.4):
        yield from first_order(world, size, world.logits + size * drift)


def first_order(world: World, size: float, old: Tensor) -> Iterator[Finding]:
    """Completions of two tokens, one step off: with and without a ratio the gradient is biased."""
    truth = ascent(world, world.reward)
    found = expected_gradient(world, "dr_grpo", 2, old=old, **FREE) * 2 * world.language.H
    yield compare_different(
        "dr_grpo",
        f"two tokens, drift {size:g}: token ratios are first order, cosine"
        f" {cosine(found, truth):.4f}",
        found,
        truth,
        least=1e-4,
    )
    none = expected_gradient(world, "rloo", 2, old=old)
    yield compare_different(
        "rloo",
        f"two tokens, drift {size:g}: no ratio, cosine {cosine(none, truth):.4f}",
        none,
        truth,
        least=1e-4,
    )


def expected_batch_gradient(world: World, name: str, n: int, **options: Any) -> Tensor:
    """E of the gradient where all n samples of a prompt make one batch.

    One call of the loop per group, for rows whose weights depend on the whole batch.
    """
    total = torch.zeros_like(world.logits)
    for (x, members), chance in every_group(world, n, world.language.logp(world.pi).exp()):
        setup = build_session(world, name, world.logits, world.ref, num_generations=n, **options)
        rewards = [[float(world.reward[x, i]) for i in members]]
        total += chance * gradient(
            setup, as_groups(world, [(x, members)], rewards=rewards, table=world.logits)
        )
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine between two gradients."""
    return float(
        torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), 0)
    )


def projection_onto(a: Tensor, b: Tensor) -> Tensor:
    """The part of a that points along b."""
    return (a * b).sum() / (b * b).sum() * b
