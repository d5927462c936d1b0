"""Truths of no single row: the oracle against itself, KL estimators, credit, best-of-n, pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from laurel.measure.best_of_n import best_of_n_bound
from laurel.objective.kl import exact_kl, k1, k2, k3
from laurel.verify.finding import Finding, compare_different, compare_equal
from laurel.verify.language import (
    Language,
    best_of_n,
    bradley_terry_loss,
    bradley_terry_scores,
    entropy,
    kl,
    log_partition,
    optimum,
)
from laurel.verify.world import World, make_world
from laurel.weight.group import centred, leave_one_out, standardised
from laurel.weight.token import return_to_go, whiten

BETA = 0.5


def identities() -> Iterator[Finding]:
    """Everything here is computed in float64, whatever the precision of the training path."""
    world = make_world(3, 3, seed=20)
    yield from check_oracle(world)
    yield from check_tilted_optimum(world)
    yield from check_kl_estimators(world)
    yield from check_credit(world)
    yield from check_equal_rewards()
    yield from check_best_of_n(world)
    yield from check_preference_optimum(world)


def differentiate(value: Tensor, at: Tensor) -> Tensor:
    """The gradient of a scalar by autograd."""
    return torch.autograd.grad(value, at)[0]


def check_oracle(world: World) -> Iterator[Finding]:
    """The exact quantities agree with each other, with autograd and with finite differences."""
    language, logits = world.language, world.pi.clone().requires_grad_()
    p_XN = language.logp(world.pi).exp()
    yield compare_equal(
        "oracle", "probabilities sum to 1", p_XN.sum(1), torch.ones(2, dtype=torch.float64)
    )
    grad = differentiate((language.logp(logits).exp() * world.reward).sum(), logits)
    yield compare_equal(
        "oracle", "A1: E[R grad log pi] = grad E[R]", language.ascent(world.pi, world.reward), grad
    )
    yield from finite_differences(world, logits, language, grad)
    Q, V = language.action_values(world.pi, world.reward)
    yield compare_equal("oracle", "V(empty prefix) = E[R]", V[:, 0], (p_XN * world.reward).sum(1))
    inside = language.visits(world.pi)[..., None] * world.pi.softmax(2) * (Q - V[..., None])
    yield compare_equal("oracle", "A6: E[(Q - V) grad log pi(token)] = grad E[R]", inside, grad)
    yield compare_equal(
        "oracle",
        "a table and its probabilities determine each other",
        language.logp(language.logits_of(p_XN)).exp(),
        p_XN,
    )
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64).log()
    yield compare_equal(
        "oracle", "entropy of four equal completions", entropy(uniform)[0], 1.3862943611198906
    )


def finite_differences(
    world: World, logits: Tensor, language: Language, grad: Tensor
) -> Iterator[Finding]:
    """The slope along one random direction."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    h = 1e-5
    ahead, behind = (
        (language.logp(world.pi + s * h * direction).exp() * world.reward).sum() for s in (1, -1)
    )
    yield compare_equal(
        "oracle",
        "A1: the same by finite differences",
        (grad * direction).sum(),
        (ahead - behind) / (2 * h),
        limit=1e-8,
    )


def check_tilted_optimum(world: World) -> Iterator[Finding]:
    """The KL-regularised optimum: G1 to G3, G8, H5, H6."""
    language = world.language
    logref = language.logp(world.pi_ref)
    star = optimum(logref, world.reward, BETA)
    logZ = log_partition(logref, world.reward, BETA)

    def value(logp_XN: Tensor) -> Tensor:
        return (logp_XN.exp() * world.reward).sum(1) - BETA * kl(logp_XN, logref)

    yield compare_equal("oracle", "G1: its value is beta log Z", value(star), BETA * logZ)
    logp = language.logp(world.pi)
    yield compare_equal(
        "oracle",
        "G2: any policy falls short by beta KL(pi || pi*)",
        value(logp),
        BETA * logZ - BETA * kl(logp, star),
    )
    at_star = language.logits_of(star.exp()).requires_grad_()
    yield compare_equal(
        "oracle",
        "G3: its gradient is 0",
        differentiate(value(language.logp(at_star)).sum(), at_star),
        torch.zeros_like(at_star),
    )
    Q, V = language.soft_values(world.pi_ref, world.reward, BETA)
    yield compare_equal("oracle", "G8: V(empty prefix) = beta log Z", V[:, 0], BETA * logZ)
    by_token = language.logp(world.pi_ref.log_softmax(2) + (Q - V[..., None]) / BETA)
    yield compare_equal(
        "oracle", "G8: token by token ref exp((Q - V)/beta) is pi*", by_token.exp(), star.exp()
    )
    yield from check_rejection_sampling(world, logref, logZ, star)


def check_rejection_sampling(
    world: World, logref: Tensor, logZ: Tensor, star: Tensor
) -> Iterator[Finding]:
    """Rejection sampling from the reference: how much it accepts, and what."""
    top = world.reward.max(1, keepdim=True).values
    accept = ((world.reward - top) / BETA).exp()
    kept = logref.exp() * accept
    yield compare_equal(
        "oracle",
        "H5: rejection sampling accepts Z exp(-max R/beta)",
        kept.sum(1),
        (logZ - top[:, 0] / BETA).exp(),
    )
    yield compare_equal(
        "oracle",
        "H6: what it accepts is distributed as pi*",
        kept / kept.sum(1, keepdim=True),
        star.exp(),
    )


def check_kl_estimators(world: World) -> Iterator[Finding]:
    """k1, k2 and k3 of the library, on whole completions.

    Values (E1), gradients as a loss (F1), as a reward (F2); the exact KL (E2).
    """
    language = world.language
    logref = language.logp(world.pi_ref)
    logits = world.pi.clone().requires_grad_()
    slopes = Slopes(
        differentiate(kl(language.logp(logits), logref).sum(), logits),
        differentiate(kl(logref, language.logp(logits)).sum(), logits),
    )
    yield from check_estimator_means(world, logref)
    yield from check_kl_as_loss(world, logits, logref, slopes)
    yield from check_kl_as_reward(world, logref, slopes)
    states = exact_kl(world.pi.log_softmax(2), world.pi_ref.log_softmax(2))
    yield compare_equal(
        "kl",
        "E2: sum over visited states of the exact KL = KL",
        (language.visits(world.pi) * states).sum(1),
        kl(language.logp(world.pi), logref),
    )
    yield from check_estimator_variances(world, language, logref)
    d = language.logp(world.pi) - logref
    yield compare_equal(
        "kl",
        "k1 in the reward is d itself: E[d grad log pi] = grad KL",
        language.ascent(world.pi, d),
        slopes.reverse,
    )


@dataclass(frozen=True)
class Slopes:
    """The gradients of KL(pi || ref) and of KL(ref || pi), [X, S, V] each."""

    reverse: Tensor
    forward: Tensor


def check_estimator_means(world: World, logref: Tensor) -> Iterator[Finding]:
    """E1: the expectation of k1 and k3 is the KL, that of k2 is not."""
    logp = world.language.logp(world.pi)
    p = logp.exp()
    true = kl(logp, logref)
    for name, estimator in (("k1", k1), ("k3", k3)):
        yield compare_equal("kl", f"E1: E[{name}] = KL", (p * estimator(logp, logref)).sum(1), true)
    yield compare_different("kl", "E1: E[k2] is not KL", (p * k2(logp, logref)).sum(1), true)


def check_kl_as_loss(
    world: World, logits: Tensor, logref: Tensor, slopes: Slopes
) -> Iterator[Finding]:
    """F1: the gradients of k1, k2 and k3 of the sequence as a loss, and of k3 with the ratio."""
    language = world.language
    p = language.logp(world.pi).exp()
    expected = {
        "k1": (k1, slopes.reverse * 0, "0"),
        "k2": (k2, slopes.reverse, "grad KL(pi||ref)"),
        "k3": (k3, slopes.forward, "grad KL(ref||pi)"),
    }
    for name, (estimator, truth, says) in expected.items():
        found = differentiate((p * estimator(language.logp(logits), logref)).sum(), logits)
        yield compare_equal(
            "kl", f"F1: {name} of the sequence as a loss, no ratio: {says}", found, truth
        )
    again = language.logp(logits)
    ratio = (again - again.detach()).exp()
    with_ratio = differentiate((p * ratio * k3(again, logref)).sum(), logits)
    yield compare_equal(
        "kl", "F1: k3 times the ratio: grad KL(pi||ref)", with_ratio, slopes.reverse
    )


def check_kl_as_reward(world: World, logref: Tensor, slopes: Slopes) -> Iterator[Finding]:
    """F2: the gradients of k1 and k3 as a reward."""
    logp = world.language.logp(world.pi)
    for name, estimator, truth, says in (
        ("k1", k1, slopes.reverse, "grad KL"),
        ("k3", k3, slopes.reverse - slopes.forward, "grad KL(pi||ref) - grad KL(ref||pi)"),
    ):
        yield compare_equal(
            "kl",
            f"F2: {name} as a reward: {says}",
            world.language.ascent(world.pi, estimator(logp, logref)),
            truth,
        )


def check_estimator_variances(
    world: World, language: Language, logref: Tensor
) -> Iterator[Finding]:
    """Near the reference k3 varies less than k1."""
    near = language.logp(world.pi_ref + 0.3 * (world.pi - world.pi_ref))
    q, small = near.exp(), kl(near, logref)
    variance = [
        float((q * (x - small[:, None]).square()).sum(1).mean())
        for x in (k1(near, logref), k3(near, logref))
    ]
    yield Finding(
        "kl",
        "near the reference k3 varies less than k1",
        f"< {variance[0]:.4g}",
        f"{variance[1]:.4g}",
        variance[1] / variance[0],
        1.0,
    )


def check_credit(world: World) -> Iterator[Finding]:
    """Advantages per token with the library's return_to_go and whiten: B1 to B4, A5, T18."""
    yield from any_lambda(world)
    yield from second_moments(world)
    yield from check_whitening()


def reward_at_end(world: World) -> Tensor:
    """[X, N, T] the reward of a completion at its last token, 0 before."""
    last = torch.arange(world.language.H) == world.language.length_N[:, None] - 1
    return torch.where(last, world.reward[..., None], 0.0)


def gae(world: World, V_XS: Tensor, lam: float) -> Tensor:
    """[X, N, T] generalised advantages: discounted sums of r_t + V(s_t+1) - V(s_t)."""
    mask = world.language.mask_NT
    here = torch.where(mask, V_XS[:, world.language.state_NT], 0.0)
    after = torch.nn.functional.pad(here[..., 1:], (0, 1))
    errors = reward_at_end(world) + after - here
    return torch.stack([return_to_go(td, mask, gamma=lam) for td in errors])


def mean_gradient(world: World, A_XNT: Tensor) -> Tensor:
    """[X, S, V] E[sum_t A_t grad log pi(y_t)]."""
    p = world.language.logp(world.pi).exp()
    return torch.einsum("xn,xnt,xntsv->xsv", p, A_XNT, world.language.token_scores(world.pi))


def any_lambda(world: World) -> Iterator[Finding]:
    """With the exact V every lambda gives grad E[R]; with a wrong one only lambda = 1 does."""
    language = world.language
    grad = language.ascent(world.pi, world.reward)
    _, V = language.action_values(world.pi, world.reward)
    for lam in (0.0, 0.5, 1.0):
        found = mean_gradient(world, gae(world, V, lam))
        yield compare_equal("gae", f"B1: exact V, lambda = {lam:g}: grad E[R]", found, grad)
    to_go = torch.stack([return_to_go(r, language.mask_NT) for r in reward_at_end(world)])
    above_value = torch.where(language.mask_NT, to_go - V[:, language.state_NT], 0.0)
    yield compare_equal("gae", "B2: lambda = 1 is R - V(state)", gae(world, V, 1.0), above_value)
    noise = torch.randn(V.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wrong = V + 0.7 * noise
    found = mean_gradient(world, gae(world, wrong, 1.0))
    yield compare_equal("gae", "B4: a wrong V does not matter at lambda = 1", found, grad)
    biased = [mean_gradient(world, gae(world, wrong, lam)) for lam in (0.0, 0.95)]
    bias = [float((found - grad).norm() / grad.norm()) for found in biased]
    yield compare_different(
        "gae",
        f"B4: at lambda = 0 it does: bias {bias[0]:.0%}, at .95 {bias[1]:.1%}",
        biased[0],
        grad,
    )


def second_moments(world: World) -> Iterator[Finding]:
    """E |A grad log pi|^2 falls from no baseline to V to Q - V."""
    language = world.language
    p, scores = language.logp(world.pi).exp(), language.token_scores(world.pi)
    Q, V = language.action_values(world.pi, world.reward)
    to_go = torch.stack([return_to_go(r, language.mask_NT) for r in reward_at_end(world)])
    # the advantage of the token that each completion has in each state
    exact = (Q - V[..., None])[:, language.state_NT, language.token_NT]
    second: list[float] = []
    for A in (to_go, gae(world, V, 1.0), torch.where(language.mask_NT, exact, 0.0)):
        gradient_XNSV = torch.einsum("xnt,xntsv->xnsv", A, scores)
        second.append(float(torch.einsum("xn,xnsv->", p, gradient_XNSV.square())))
    order = f"{second[0]:.4g} > {second[1]:.4g} > {second[2]:.4g}"
    yield Finding(
        "gae",
        "A5, A7: second moment: no baseline > V > Q - V",
        "falling",
        order,
        max(second[1] / second[0], second[2] / second[1]),
        1.0,
    )


def check_whitening() -> Iterator[Finding]:
    """Mean 0 and spread 1 over the tokens of the mask."""
    x = torch.tensor([[1.0, 2, 3, 100]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    yield compare_equal(
        "whiten",
        "T18: [1, 2, 3, (100)] -> [-1, 0, 1, 0]",
        whiten(x, mask, eps=0.0)[0],
        torch.tensor([-1.0, 0, 1, 0], dtype=torch.float64),
    )


def check_equal_rewards() -> Iterator[Finding]:
    """Rewards that are all equal teach nothing, to the last bit.

    In floating point thirty times .9 has a mean that is not .9, and a spread that is not 0.
    """
    reward_PG = torch.full((2, 30), 0.9, dtype=torch.float64)
    reward_PG[1] = 0.1 + 0.2
    for name, weigh in (("dr_grpo", centred), ("rloo", leave_one_out), ("grpo", standardised)):
        worst = float(weigh(reward_PG).abs().max())
        yield Finding(
            name, "thirty equal rewards: weights exactly 0", "0", f"{worst:g}", worst, 5e-324
        )


def check_best_of_n(world: World) -> Iterator[Finding]:
    """Best-of-n: H1, H2, H4."""
    p = world.language.logp(world.pi).exp()
    for n in (2, 4, 16):
        chosen = best_of_n(p, world.reward, n)
        found = float(kl(chosen.log(), p.log()).max())
        yield Finding(
            "best of n",
            f"H1: KL(best of {n} || pi) <= log n - (n-1)/n",
            f"<= {best_of_n_bound(n):.5f}",
            f"{found:.5f}",
            found / best_of_n_bound(n),
            1.0,
        )
        better = world.reward[:, :, None] > world.reward[:, None, :]
        wins = (chosen[:, :, None] * p[:, None, :] * better).sum((1, 2))
        rate = float(wins.max())
        yield Finding(
            "best of n",
            f"H1: win rate <= n/(n+1), n = {n}",
            f"<= {n / (n + 1):.5f}",
            f"{rate:.5f}",
            rate * (n + 1) / n,
            1.0,
        )
    yield compare_equal(
        "best of n",
        "its probabilities sum to 1",
        best_of_n(p, world.reward, 5).sum(1),
        torch.ones(2, dtype=torch.float64),
    )
    yield from listed_draws()


def listed_draws() -> Iterator[Finding]:
    """Best of three by listing every draw of a small language, with ties."""
    n = 3
    small = Language(3, 2)
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, small.S, 3, generator=generator, dtype=torch.float64)
    q = small.logp(logits).exp()
    score = torch.tensor([[1.0, 0, 1, 2, 0, 1, 2]], dtype=torch.float64)
    listed = torch.zeros_like(q)
    for members in torch.cartesian_prod(*[torch.arange(small.N)] * n):
        winner = members[score[0, members].argmax()]
        listed[0, winner] += q[0, members].prod()
    yield compare_equal(
        "best of n", "H2: listing all 343 draws, with ties", best_of_n(q, score, n), listed
    )


def check_preference_optimum(world: World) -> Iterator[Finding]:
    """R1: the Bradley-Terry optimum is the reward up to a constant per prompt.

    It is so whatever pairs are shown, and the loss there is the entropy.
    """
    p = world.language.logp(world.pi).exp()
    pairs = p[:, :, None] * p[:, None, :] / 2
    score = torch.zeros_like(world.reward, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [score],
        max_iter=400,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = bradley_terry_loss(score, world.reward, pairs)
        loss.backward()
        return loss

    optimiser.step(closure)
    fitted = score.detach() - (p * score.detach()).sum(1, keepdim=True)
    yield compare_equal(
        "reward model",
        "R1: fitted to all pairs: the reward + const",
        fitted,
        bradley_terry_scores(world.reward, p),
        limit=1e-4,
    )
    at_truth = world.reward.clone().requires_grad_()
    slope = differentiate(bradley_terry_loss(at_truth, world.reward, pairs), at_truth)
    yield compare_equal(
        "reward model", "R1: at the reward itself the gradient is 0", slope, torch.zeros_like(slope)
    )
    moved = bradley_terry_loss(world.reward + torch.tensor([[3.0], [-8.0]]), world.reward, pairs)
    yield compare_equal(
        "reward model",
        "R1: a constant per prompt changes no loss",
        moved,
        bradley_terry_loss(world.reward, world.reward, pairs),
    )
