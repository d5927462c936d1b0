"""Weights and objectives together, by exact enumeration of every group: what each row of the table
ascends on average.
"""

from functools import partial
from itertools import product
from math import comb

import pytest
import torch

from laurel.objective.kl import exact_kl
from laurel.objective.policy import clip, detached_ratio, likelihood, sequence_ratio
from laurel.objective.unit import (
    reduce_loss,
    seq_mean_token_mean,
    seq_mean_token_sum,
    token_sum_over_const,
)
from laurel.weight.group import centred, leave_one_out, minus_baseline, raw, selected, standardised
from laurel.weight.token import place_reward, return_to_go

F64 = torch.float64


class Toy:
    """A policy with two tokens, stop (1) and go on (0), and four completions: 1, 01, 001, 000. One
    logit pair per step.
    """

    completions = ((1,), (0, 1), (0, 0, 1), (0, 0, 0))
    reward_C = torch.tensor([0.2, 1.0, 0.0, 0.7], dtype=F64)
    length_C = torch.tensor([1, 2, 3, 3])

    def __init__(self):
        self.theta = torch.tensor(
            [[0.3, -0.2], [0.5, 0.1], [-0.4, 0.2]], dtype=F64, requires_grad=True
        )
        ids_CT = torch.tensor([[*y, 0, 0][:3] for y in self.completions])
        logp_CT = self.theta.log_softmax(1)[torch.arange(3), ids_CT]
        self.mask_CT = torch.arange(3) < self.length_C[:, None]
        self.logp_CT = torch.where(self.mask_CT, logp_CT, 0.0)
        self.p_C = self.logp_CT.sum(1).exp()

    def grad(self, value):
        return torch.autograd.grad(value, self.theta, retain_graph=True)[0]

    def expected(self, make_batch, weigh, objective, unit, G, **options):
        """The expected gradient of one group's loss, over all 4^G groups."""
        groups = torch.tensor(list(product(range(4), repeat=G)))
        rows = groups.flatten()
        weight_PG = weigh(self.reward_C[groups])
        batch = make_batch(
            weight_PG.reshape(-1, 1).expand(len(rows), 3).contiguous(),
            old=self.logp_CT[rows],
            mask=self.mask_CT[rows],
            lengths=self.length_C[rows],
        )
        chance_N = self.p_C[groups].prod(1).repeat_interleave(G).detach()
        values = objective(self.logp_CT[rows], batch) * chance_N[:, None]
        return self.grad(
            reduce_loss(values, unit(batch, **options), G * options.get("max_completion_length", 1))
        )


@pytest.fixture
def toy():
    return Toy()


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0))


def test_completions_sum_to_one(toy):
    assert float(toy.p_C.sum().detach()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("G", [2, 3])
def test_C2_rloo_is_the_gradient(make_batch, toy, G):
    """C2: leave-one-out with token sums is unbiased, term by term of the real code."""
    true = -toy.grad((toy.p_C * toy.reward_C).sum())
    torch.testing.assert_close(
        toy.expected(make_batch, leave_one_out, likelihood, seq_mean_token_sum, G),
        true,
        atol=1e-12,
        rtol=1e-9,
    )


@pytest.mark.parametrize("baseline", [0.0, 0.37, -5.0])
def test_A3_any_constant_baseline_is_unbiased(make_batch, toy, baseline):
    """A1, A3: REINFORCE, with whatever number subtracted, gives grad E[R]."""
    true = -toy.grad((toy.p_C * toy.reward_C).sum())
    weigh = partial(minus_baseline, running_mean=baseline)
    torch.testing.assert_close(
        toy.expected(make_batch, weigh, likelihood, seq_mean_token_sum, 1),
        true,
        atol=1e-12,
        rtol=1e-9,
    )


@pytest.mark.parametrize("G", [2, 3])
def test_C1_C3_dr_grpo_is_a_multiple_of_the_gradient(make_batch, toy, G):
    """C1, C3: centring gives (G-1)/G of the gradient, divided by the constant: parallel,
    cosine 1.
    """
    true = -toy.grad((toy.p_C * toy.reward_C).sum())
    got = toy.expected(make_batch, centred, clip, token_sum_over_const, G, max_completion_length=3)
    torch.testing.assert_close(got, (G - 1) / G / 3 * true, atol=1e-12, rtol=1e-9)


def test_C5_grpo_turns_the_gradient(make_batch, toy):
    """C4-C6: dividing by the length and by the group's std changes the direction, not only the
    size. DAPO's or GSPO's do too.
    """
    true = -toy.grad((toy.p_C * toy.reward_C).sum())
    assert cosine(toy.expected(make_batch, centred, clip, seq_mean_token_mean, 3), true) < 0.999
    assert (
        cosine(toy.expected(make_batch, standardised, clip, seq_mean_token_sum, 3), true) < 0.99999
    )
    grpo = toy.expected(make_batch, standardised, clip, seq_mean_token_mean, 3)
    assert 0.5 < cosine(grpo, true) < 0.999
    for objective in (sequence_ratio, detached_ratio):  # on-policy all three are the same
        torch.testing.assert_close(
            toy.expected(make_batch, standardised, objective, seq_mean_token_mean, 3), grpo
        )


@pytest.mark.parametrize("per_token", [False, True])
def test_F4_F6_k1_in_the_reward_is_the_sequence_kl(make_batch, toy, per_token):
    """F4, F6: R - beta sum k1, or the same with return-to-go per token, ascends E[R] - beta KL(pi
    || ref) exactly.
    """
    beta, ref_CT = (
        0.3,
        torch.where(toy.mask_CT, -1.0, 0.0).to(F64) * torch.tensor([0.2, 0.7, 1.1], dtype=F64),
    )
    k1_CT = (toy.logp_CT - ref_CT).detach()
    kl = (toy.p_C * (toy.logp_CT - ref_CT).sum(1)).sum()
    true = -toy.grad((toy.p_C * toy.reward_C).sum() - beta * kl)
    reward_CT = place_reward(toy.reward_C, toy.length_C, 3) - beta * k1_CT
    weight_CT = (
        return_to_go(reward_CT, toy.mask_CT)
        if per_token
        else reward_CT.sum(1, keepdim=True).expand(4, 3)
    )
    batch = make_batch(weight_CT.contiguous(), old=toy.logp_CT, lengths=toy.length_C)
    values = likelihood(toy.logp_CT, batch) * toy.p_C.detach()[:, None]
    torch.testing.assert_close(
        toy.grad(reduce_loss(values, seq_mean_token_sum(batch), 1)), true, atol=1e-12, rtol=1e-9
    )


def bandit(make_batch, weigh, p, G):
    """c in E[update] = c grad p for 0/1 rewards: two actions, the first one right with probability
    p.
    """
    theta = torch.tensor(
        [torch.tensor(p / (1 - p)).log().item(), 0.0], dtype=F64, requires_grad=True
    )
    logp_A = theta.log_softmax(0)
    groups = torch.tensor(list(product((0, 1), repeat=G)))
    rows = groups.flatten()
    batch = make_batch(weigh((groups == 0).double()).reshape(-1, 1), old=logp_A[rows][:, None])
    chance_N = logp_A[groups].sum(1).exp().repeat_interleave(G).detach()
    loss = reduce_loss(
        likelihood(logp_A[rows][:, None], batch) * chance_N[:, None], seq_mean_token_mean(batch), G
    )
    update, slope = (
        -torch.autograd.grad(loss, theta, retain_graph=True)[0],
        torch.autograd.grad(logp_A[0].exp(), theta)[0],
    )
    return float(update[0] / slope[0])


def group_weight(p, G):
    """C8: c_G(p) = E_k[ k (G-k) / (G^2 s_k) ] / (p (1-p)), k ~ Bin(G, p), s_k the std (ddof 1) of k
    ones, plus 1e-4.
    """
    total = 0.0
    for k in range(1, G):
        s = (k * (G - k) / G / (G - 1)) ** 0.5 + 1e-4
        total += comb(G, k) * p**k * (1 - p) ** (G - k) * k * (G - k) / (G * G * s)
    return total / (p * (1 - p))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("G", [2, 3, 4, 8])
def test_C8_C9_C10_binary_rewards(make_batch, p, G):
    """C8-C10: every group rule is ascent on some function of p, with this slope."""
    slopes = {raw: 1.0, centred: (G - 1) / G, leave_one_out: 1.0, standardised: group_weight(p, G)}
    for weigh, slope in slopes.items():
        assert bandit(make_batch, weigh, p, G) == pytest.approx(slope, rel=1e-5), weigh.__name__
    # rejection sampling: one right sample of the group if there is one (1 - (1-p)^G)/p; `best` also
    # imitates one of an all-wrong group
    right = (1 - (1 - p) ** G) / p
    assert G * bandit(make_batch, lambda r: selected(r) * r, p, G) == pytest.approx(right, rel=1e-5)
    assert G * bandit(make_batch, selected, p, G) == pytest.approx(
        right - (1 - p) ** (G - 1), rel=1e-4, abs=1e-6
    )
    # every right sample, nothing subtracted: REINFORCE on 0/1
    assert bandit(make_batch, partial(selected, keep="above"), p, G) == pytest.approx(1.0, rel=1e-5)


def test_C10_grpo_prefers_extreme_prompts():
    """C10 at G = 8: the std gives a prompt with p = .01 or .9 a larger step per unit of grad p than
    one with p = .5.
    """
    at = {p: group_weight(p, 8) for p in (0.01, 0.1, 0.5, 0.9)}
    assert at[0.1] == pytest.approx(at[0.9]) and at[0.01] > at[0.1] > at[0.5]


def test_exact_kl_of_the_toy_is_the_sum_over_states(toy):
    """The chain rule: the sequence KL is the sum of per-state KLs, each weighted by the chance of
    getting there.
    """
    ref = torch.tensor([[0.1, 0.1], [0.0, 0.4], [0.3, 0.0]], dtype=F64).log_softmax(1)
    logp_ST = toy.theta.log_softmax(1)
    reach_S = torch.cat([torch.ones(1, dtype=F64), logp_ST[:2, 0].exp().cumprod(0)])
    ids_CT = torch.tensor([[*y, 0, 0][:3] for y in toy.completions])
    ref_CT = torch.where(toy.mask_CT, ref[torch.arange(3), ids_CT], 0.0)
    sequence = (toy.p_C * (toy.logp_CT - ref_CT).sum(1)).sum()
    torch.testing.assert_close(sequence, (reach_S * exact_kl(logp_ST, ref)).sum())
