"""Preference objectives: values by hand, gradients written out, limits, invariances, and the optima
that their papers state.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from laurel.objective.preference import (
    chosen_nll,
    dpo,
    dpop,
    ipo,
    kto,
    log1mexp,
    orpo,
    preference_metrics,
    robust_dpo,
    rrhf,
    simpo,
)
from laurel.objective.unit import comparison_mean, reduce_loss
from laurel.verify.language import Language, optimum

F64 = torch.float64
PAIRWISE = {
    "dpo": (dpo, {}),
    "cdpo": (dpo, {"label_smoothing": 0.1}),
    "robust_dpo": (robust_dpo, {}),
    "ipo": (ipo, {}),
    "simpo": (simpo, {}),
    "orpo": (orpo, {}),
    "dpop": (dpop, {}),
    "chosen_nll": (chosen_nll, {"rpo_alpha": 0.7}),
}
EVERY = {**PAIRWISE, "kto": (kto, {"desirable_weight": 1.3}), "rrhf": (rrhf, {"nll_weight": 0.7})}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def soft(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def with_point(batch, point):
    """The batch with KTO's reference point."""
    point_N = torch.full_like(batch.comparison.grade_N, point)
    return batch.replace(comparison=replace(batch.comparison, reference_kl_N=point_N))


@pytest.fixture
def sums(make_batch):
    """(lp of the rows, ref of the rows, grades, groups, point) -> (logp_NT with one token per row,
    batch).
    """

    def build(lp, ref=None, grades=(1, -1), groups=None, point=0.0, dtype=F64):
        logp_N1 = torch.tensor(lp, dtype=dtype)[:, None].requires_grad_()
        ref_N1 = None if ref is None else torch.tensor(ref, dtype=dtype)[:, None]
        batch = make_batch(torch.tensor(grades, dtype=dtype)[:, None], ref=ref_N1)
        group_N = torch.arange(len(lp)) // 2 if groups is None else torch.tensor(groups)
        return logp_N1, with_point(batch.replace(group_N=group_N), point)

    return build


@pytest.fixture
def random_batch(make_batch):
    """Four comparisons of two rows, lengths 1 to 5 of which some tokens are masked, every column
    drawn at random.
    """

    def build(seed=0, P=4, point=0.0):
        g = torch.Generator().manual_seed(seed)
        N, T = 2 * P, 5
        logp_NT = -torch.rand(N, T, generator=g, dtype=F64) * 2 - 0.05
        ref_NT = -torch.rand(N, T, generator=g, dtype=F64) * 2 - 0.05
        lengths_N = torch.randint(1, T + 1, (N,), generator=g)
        mask_NT = (torch.rand(N, T, generator=g) < 0.8) | (torch.arange(T) == 0)
        weight_NT = (
            torch.tensor([1.0, -1.0], dtype=F64).repeat(P)[:, None].expand(N, T).contiguous()
        )
        batch = make_batch(weight_NT, ref=ref_NT, mask=mask_NT, lengths=lengths_N)
        group_N = torch.arange(P).repeat_interleave(2)
        return logp_NT, with_point(batch.replace(group_N=group_N), point)

    return build


# --------------------------------------------------------------------------------------------------
# values by hand


def test_T21_dpo_and_ipo_by_hand(sums):
    """T21: policy (-10, -12), reference (-11, -11.5): h = 1 - (-.5) = 1.5. softplus(-.15) =
    .6209570; (1.5 - 5)^2 = 12.25.
    """
    logp, batch = sums((-10, -12), (-11, -11.5))
    assert dpo(logp, batch, beta=0.1).tolist() == pytest.approx([0.6209570], abs=5e-8)
    assert ipo(logp, batch, beta=0.1).tolist() == pytest.approx([12.25], abs=1e-12)
    found = {
        name: float(total / count)
        for name, (total, count) in preference_metrics(logp, batch, beta=0.1).items()
    }
    assert found == pytest.approx(
        {
            "rewards/chosen": 0.1,
            "rewards/rejected": -0.05,
            "logps/chosen": -10,
            "logps/rejected": -12,
            "rewards/margins": 0.15,
            "rewards/accuracies": 1,
        }
    )


def test_a_row_graded_0_is_on_neither_side_of_the_metrics(make_batch):
    """Grades 1, 0, -1, sums -1, -2, -4, reference 0: the one in the middle enters no mean, no
    margin, no count.
    """
    logp = torch.tensor([[-1.0], [-2.0], [-4.0]], dtype=F64)
    batch = make_batch(
        torch.tensor([[1.0], [0.0], [-1.0]], dtype=F64), ref=torch.zeros(3, 1, dtype=F64)
    )
    found = {
        name: (float(total), int(count))
        for name, (total, count) in preference_metrics(logp, batch, beta=0.5).items()
    }
    assert found == {
        "rewards/chosen": (-0.5, 1),
        "rewards/rejected": (-2.0, 1),
        "logps/chosen": (-1.0, 1),
        "logps/rejected": (-4.0, 1),
        "rewards/margins": (1.5, 1),
        "rewards/accuracies": (1.0, 1),
    }


def test_T21_at_the_start(sums):
    """T21: policy = reference: ln 2, rewards and margin 0, accuracy a half, not 1."""
    logp, batch = sums((-10, -12), (-10, -12))
    for objective in (dpo, robust_dpo, dpop):
        assert objective(logp, batch).tolist() == pytest.approx([math.log(2)], abs=1e-12)
    assert dpo(logp, batch, label_smoothing=0.3).tolist() == pytest.approx([0.6931472], abs=5e-8)
    assert ipo(logp, batch, beta=0.1).tolist() == pytest.approx([25.0])
    assert kto(logp, batch).tolist() == pytest.approx([1.0])  # two graded rows, a half each
    found = {
        name: float(total / count)
        for name, (total, count) in preference_metrics(logp, batch, beta=0.1).items()
    }
    assert (
        found["rewards/accuracies"] == 0.5
        and found["rewards/margins"] == found["rewards/chosen"] == found["rewards/rejected"] == 0
    )


def test_smoothed_labels_by_hand(sums):
    """beta h = .15, eps = .1: .9 softplus(-.15) + .1 softplus(.15) = .6359570; (.9 softplus(-.15) -
    .1 softplus(.15)) / .8 = .6022070.
    """
    logp, batch = sums((-10, -12), (-11, -11.5))
    assert dpo(logp, batch, label_smoothing=0.1).tolist() == pytest.approx([0.6359570], abs=5e-8)
    assert robust_dpo(logp, batch, label_smoothing=0.1).tolist() == pytest.approx(
        [0.6022070], abs=5e-8
    )


def test_simpo_by_hand(make_batch):
    """Sums -2 over two tokens and -8 over four: means -1 and -2. softplus(-(2.5 - 1)) = .2014133.
    No reference enters.
    """
    logp_NT = torch.tensor([[-0.5, -1.5, -9, -9], [-1, -3, -2, -2]], dtype=F64)
    weight_NT = torch.tensor([[1.0] * 4, [-1.0] * 4], dtype=F64)
    batch = make_batch(weight_NT, lengths=[2, 4], ref=torch.full((2, 4), -7.0, dtype=F64))
    assert simpo(logp_NT, batch, beta=2.5, simpo_gamma=1.0).tolist() == pytest.approx(
        [0.2014133], abs=5e-8
    )
    # the same means in ORPO: log odds -.5413249 and -1.8545865, so 1 + .1 softplus(-1.3132617) =
    # 1.0238183; and half the likelihood: .5
    assert orpo(logp_NT, batch, beta=0.1).tolist() == pytest.approx([1.0238183], abs=5e-8)
    assert chosen_nll(logp_NT, batch, rpo_alpha=0.5).tolist() == pytest.approx([0.5])


def test_orpo_is_a_ratio_of_odds(sums):
    """p = .8 and .5, one token each: odds 4 and 1, -log sigmoid(log 4) = log(5/4); and -log .8.
    With lambda .5: .3347153.
    """
    logp, batch = sums((math.log(0.8), math.log(0.5)))
    assert orpo(logp, batch, beta=0.5).tolist() == pytest.approx(
        [math.log(1.25) + 0.5 * math.log(1.25)], abs=1e-12
    )
    assert orpo(logp, batch, beta=0.5).tolist() == pytest.approx([0.3347153], abs=5e-8)


def test_dpop_by_hand(sums):
    """Chosen 1 below its reference, h = 1.5: softplus(-.1 (1.5 - 50)) = softplus(4.85) =
    4.8577979.
    """
    logp, batch = sums((-12, -14), (-11, -11.5))
    assert dpop(logp, batch, beta=0.1, dpop_lambda=50.0).tolist() == pytest.approx(
        [4.8577979], abs=5e-8
    )


def test_kto_by_hand(sums):
    """g - z = 1 - .5: good 1 - sigmoid(.05) = .4875026. Bad with g = -.5: 1 - sigmoid(.1 (.5 + .5))
    = .4750208, weighted 1.33: .6317777.
    The ungraded rows, whatever they are, add nothing."""
    logp, batch = sums((-10, -99, -12, -1), (-11, -7, -11.5, -7), grades=(1, 0, -1, 0), point=0.5)
    assert kto(logp, batch, beta=0.1, undesirable_weight=1.33).tolist() == pytest.approx(
        [0.4875026, 0.6317777], abs=5e-8
    )
    (gradient_N1,) = torch.autograd.grad(kto(logp, batch).sum(), logp)
    assert gradient_N1[1] == 0 and gradient_N1[3] == 0 and gradient_N1[0] < 0 < gradient_N1[2]


def test_kto_at_its_reference_point(sums):
    """g = z: half the weight of the row's kind."""
    logp, batch = sums((-10, 0, -12, 0), (-11, 0, -13, 0), grades=(1, 0, -1, 0), point=1.0)
    assert kto(logp, batch, desirable_weight=3.0, undesirable_weight=5.0).tolist() == [1.5, 2.5]


def test_rrhf_by_hand(make_batch):
    """Rewards (1, 0), p = (-2, -1.5): the wrong one is ahead by .5, and -p of the best is 2. The
    sums are -4 and -1.5: lengths count.
    """
    batch = make_batch(torch.tensor([[1.0, 1], [0, 0]], dtype=F64), lengths=[2, 1])
    logp_NT = torch.tensor([[-3.0, -1], [-1.5, -9]], dtype=F64)
    assert rrhf(logp_NT, batch, nll_weight=1.0).tolist() == [2.5]
    assert rrhf(logp_NT, batch, nll_weight=0.0).tolist() == [0.5]
    assert rrhf(
        torch.tensor([[-1.0, -1], [-1.5, -9]], dtype=F64), batch, nll_weight=0.0
    ).tolist() == [0.0]  # the right order costs nothing


def test_rrhf_counts_every_pair(sums):
    """Rewards (3, 2, 1), p = (-3, -2, -1), all reversed: (p2 - p1) + (p3 - p1) + (p3 - p2) = 1 + 2
    + 1 = 4, and 3 for the best.
    """
    logp, batch = sums((-3, -2, -1), grades=(3, 2, 1), groups=(0, 0, 0))
    assert rrhf(logp, batch).tolist() == [7.0]
    (gradient_N1,) = torch.autograd.grad(rrhf(logp, batch, nll_weight=0.0).sum(), logp)
    assert gradient_N1.flatten().tolist() == [
        -2.0,
        0.0,
        2.0,
    ]  # the middle one wins one pair and loses one


def test_rrhf_ties_and_unjudged_rows(make_batch):
    """Equal rewards are no pair, and the first of equal bests is imitated. A row without a
    judgement (no trained token) is nowhere,
    though its weight of 0 is above the others' -1."""
    weight_N1 = torch.tensor([[-1.0], [-1], [0], [-2]], dtype=F64)
    logp_N1 = torch.tensor([[-2.0], [-1], [-0.1], [-1.5]], dtype=F64)
    batch = make_batch(weight_N1, mask=[[True], [True], [False], [True]])
    assert rrhf(logp_N1, batch).tolist() == [
        0.5 + 2.0
    ]  # only row 3 against row 0 is in the wrong order; row 0 is the first best
    assert rrhf(
        logp_N1.flip(0), make_batch(weight_N1.flip(0), mask=[[True], [False], [True], [True]])
    ).tolist() == [0.5 + 1.0]


def test_T23_log_of_one_minus_exp():
    """T23: -6.9082551, -13.8155106, -18.4206808 in float32, where the naive formula gives -6.90824,
    -13.80232, -inf.
    """
    x = torch.tensor([-1e-3, -1e-6, -1e-8], requires_grad=True)
    assert log1mexp(x).tolist() == pytest.approx([-6.9082551, -13.8155106, -18.4206808], rel=2e-7)
    assert torch.log(1 - x.detach().exp())[2] == -math.inf
    wide = torch.linspace(-30, -1e-6, 1001, dtype=F64)
    assert torch.allclose(log1mexp(wide), torch.log(-torch.expm1(wide)), rtol=1e-12, atol=1e-15)
    assert log1mexp(torch.tensor(-40.0, dtype=F64)).item() == pytest.approx(
        -math.exp(-40), rel=1e-12
    )  # log(-expm1) would say 0
    (slope,) = torch.autograd.grad(log1mexp(x).sum(), x)
    assert slope.tolist() == pytest.approx(
        [-1 / math.expm1(1e-3), -1 / math.expm1(1e-6), -1 / math.expm1(1e-8)], rel=1e-4
    )


def test_T23_orpo_near_certainty(sums):
    """A chosen answer of probability 1 - 1e-8, and one that float32 rounds to 1: value and gradient
    stay finite, in float32.
    """
    for certain in (-1e-8, 0.0):
        logp, batch = sums((certain, -1.0), dtype=torch.float32)
        value = orpo(logp, batch)
        (gradient_N1,) = torch.autograd.grad(value.sum(), logp)
        assert value.isfinite().all() and gradient_N1.isfinite().all() and gradient_N1[0] < 0, (
            certain,
            value,
            gradient_N1,
        )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", PAIRWISE)
def test_finite_at_very_unlikely_answers(name, dtype, sums):
    """T21: sums of -5000 against a reference far from them, on either side."""
    objective, options = PAIRWISE[name]
    for lp, ref in (
        ((-5000, -10), (-10, -5000)),
        ((-10, -5000), (-5000, -10)),
        ((-5000, -5000), (-5000, -5000)),
    ):
        logp, batch = sums(lp, ref, dtype=dtype)
        value = objective(logp, batch, **options)
        (gradient_N1,) = torch.autograd.grad(value.sum(), logp)
        assert value.isfinite().all() and gradient_N1.isfinite().all() and value.dtype == dtype
        assert all(
            bool((total / count).isfinite())
            for total, count in preference_metrics(logp, batch, beta=0.1).values()
        )


# -------------------------------------------------------------------------- gradients: autograd =
# that of -sum sg[w] log pi


def of_rows(logp_NT, batch):
    """lp, ref and length of each row, by a loop."""
    rows = []
    for n in range(len(logp_NT)):
        on = batch.loss_mask_NT[n].tolist()
        lp = sum(x for x, here in zip(logp_NT[n].tolist(), on, strict=True) if here)
        rows.append(
            (
                lp,
                sum(x for x, here in zip(batch.logp_ref_NT[n].tolist(), on, strict=True) if here),
                sum(on),
            )
        )
    return rows


def dpo_weights(w, ll, beta=0.1, eps=0.0):
    h = (w[0] - w[1]) - (ll[0] - ll[1])
    push = beta * ((1 - eps) * sigmoid(-beta * h) - eps * sigmoid(beta * h))
    return push, -push


def robust_weights(w, ll, beta=0.1, eps=0.1):
    h = (w[0] - w[1]) - (ll[0] - ll[1])
    push = beta * ((1 - eps) * sigmoid(-beta * h) + eps * sigmoid(beta * h)) / (1 - 2 * eps)
    return push, -push


def ipo_weights(w, ll, beta=0.1):
    push = 2 * (1 / (2 * beta) - (w[0] - w[1]) + (ll[0] - ll[1]))
    return push, -push


def simpo_weights(w, ll, beta=2.5, gamma=1.0):
    push = beta * sigmoid(gamma - beta * (w[0] / w[2] - ll[0] / ll[2]))
    return push / w[2], -push / ll[2]


def orpo_weights(w, ll, beta=0.1):
    """d log odds / d m = 1 / (1 - e^m)."""
    p = [math.exp(row[0] / row[2]) for row in (w, ll)]
    push = beta * sigmoid(-(math.log(p[0] / (1 - p[0])) - math.log(p[1] / (1 - p[1]))))
    return 1 / w[2] + push / (1 - p[0]) / w[2], -push / (1 - p[1]) / ll[2]


def dpop_weights(w, ll, beta=0.1, lam=50.0):
    """Chosen below its reference: (1 + lambda) beta sigmoid(...), else DPO's."""
    fallen = max(0.0, w[1] - w[0])
    push = beta * sigmoid(-beta * ((w[0] - w[1]) - (ll[0] - ll[1]) - lam * fallen))
    return push * (1 + lam * (fallen > 0)), -push


def kto_weights(w, ll, beta=0.1, good=1.3, z=0.1):
    """beta times the weight times s (1 - s), s = sigmoid(beta (g - z)); the sign is the label's."""
    s, r = sigmoid(beta * (w[0] - w[1] - z)), sigmoid(beta * (ll[0] - ll[1] - z))
    return good * beta * s * (1 - s), -beta * r * (1 - r)


def rrhf_weights(w, ll, nll=0.7):
    wrong = float(ll[0] / ll[2] > w[0] / w[2])
    return (wrong + nll) / w[2], -wrong / ll[2]


WEIGHTS = {
    "dpo": dpo_weights,
    "cdpo": lambda w, ll: dpo_weights(w, ll, eps=0.1),
    "robust_dpo": robust_weights,
    "ipo": ipo_weights,
    "simpo": simpo_weights,
    "orpo": orpo_weights,
    "dpop": dpop_weights,
    "chosen_nll": lambda w, ll: (0.7 / w[2], 0.0),
    "kto": kto_weights,
    "rrhf": rrhf_weights,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_is_weighted_likelihood(name, seed, random_batch):
    """d loss / d log pi(token) = -w of its row at every trained token, 0 elsewhere: w written out
    for every objective, no autograd.
    """
    objective, options = EVERY[name]
    logp_NT, batch = random_batch(seed, point=0.1 if name == "kto" else 0.0)
    logp_NT = logp_NT.requires_grad_()
    (gradient_NT,) = torch.autograd.grad(objective(logp_NT, batch, **options).sum(), logp_NT)
    rows = of_rows(logp_NT, batch)
    pushes = [WEIGHTS[name](rows[n], rows[n + 1]) for n in range(0, len(rows), 2)]
    w_N1 = torch.tensor([push for pair in pushes for push in pair], dtype=F64)[:, None]
    assert torch.allclose(
        gradient_NT, -w_N1 * batch.loss_mask_NT, rtol=1e-8, atol=1e-14
    )  # torch's softplus is straight beyond 20
    assert sum(row[1] > row[0] for row in rows[::2]) not in (0, 4)  # both branches of dpop are met


def test_first_order_displacement(make_batch):
    """P12: with g the gradients of lp, a small step of DPO lowers the chosen answer iff <g_w, g_l>
    > |g_w|^2. Four answers whose logits
    are feature times theta, features (1, 2, 0, 0): at theta = 0, g_w = .25 and g_l = 1.25, and
    .3125 > .0625: the chosen one falls and the bystanders gain. With free logits (<g_w, g_l> = -1/4
    < 3/4) it rises.
    """
    for feature_YD, falls in (
        (torch.tensor([[1.0], [2], [0], [0]], dtype=F64), True),
        (torch.eye(4, dtype=F64), False),
    ):
        theta_D = torch.zeros(feature_YD.shape[1], dtype=F64, requires_grad=True)
        lp_Y = (feature_YD @ theta_D).log_softmax(0)
        g_w, g_l = (torch.autograd.grad(lp_Y[y], theta_D, retain_graph=True)[0] for y in (0, 1))
        batch = make_batch(torch.tensor([[1.0], [-1]], dtype=F64), ref=lp_Y[:2, None])
        (slope_D,) = torch.autograd.grad(dpo(lp_Y[:2, None], batch).sum(), theta_D)
        after_Y = (feature_YD @ (theta_D - 0.01 * slope_D)).log_softmax(0).detach()
        assert bool(g_w @ g_l > g_w @ g_w) == falls == bool(after_Y[0] < lp_Y[0])
        assert float(after_Y[0] - after_Y[1]) > 0  # the margin grows either way
        assert float(after_Y[0] - lp_Y[0].detach()) == pytest.approx(
            0.01 * 0.1 / 2 * float(g_w @ (g_w - g_l)), rel=2e-3
        )
        if falls:
            assert after_Y[2] > lp_Y[2]


# --------------------------------------------------------------------------------------------------
# limits


def test_limits_that_are_dpo(random_batch):
    """No smoothing: cDPO and robust DPO are DPO. dpop with lambda 0, or where no chosen answer
    fell: DPO, gradient included.
    """
    logp_NT, batch = random_batch()
    plain = dpo(logp_NT, batch)
    assert dpo(logp_NT, batch, label_smoothing=0.0).equal(plain) and robust_dpo(
        logp_NT, batch, label_smoothing=0.0
    ).equal(plain)
    assert dpop(logp_NT, batch, dpop_lambda=0.0).equal(plain) and not dpop(logp_NT, batch).equal(
        plain
    )
    for gain in (0.1, 0.0):  # 0: as at the start
        risen_NT = torch.where(
            batch.weight_NT > 0, batch.logp_ref_NT + gain, logp_NT
        ).requires_grad_()
        assert dpop(risen_NT, batch).equal(dpo(risen_NT, batch))
        slopes = [
            torch.autograd.grad(objective(risen_NT, batch).sum(), risen_NT)[0]
            for objective in (dpo, dpop)
        ]
        assert slopes[0].equal(slopes[1])


def test_P5_only_the_margin(sums):
    """P5: both answers 5 less likely: DPO's family does not see it, dpop and the likelihood terms
    do.
    """
    near, batch = sums((-10, -12), (-11, -11.5))
    far, _ = sums((-15, -17))
    for objective in (dpo, robust_dpo, ipo):
        assert objective(far, batch).tolist() == pytest.approx(
            objective(near, batch).tolist(), abs=1e-12
        )
    assert dpop(far, batch) > dpop(near, batch) + 15 and orpo(far, batch) > orpo(near, batch) + 4.9
    assert (
        chosen_nll(far, batch, rpo_alpha=1.0) - chosen_nll(near, batch, rpo_alpha=1.0) == 5
        and chosen_nll(far, batch) == 0
    )


def test_simpo_without_margin_is_a_likelihood_ratio(sums):
    """gamma 0, one token each: -log of p_w^beta / (p_w^beta + p_l^beta). p = .6 and .3, beta 2:
    -log .8.
    """
    logp, batch = sums((math.log(0.6), math.log(0.3)))
    assert simpo(logp, batch, beta=2.0, simpo_gamma=0.0).tolist() == pytest.approx(
        [-math.log(0.8)], abs=1e-12
    )


@pytest.mark.parametrize("p", [0.55, 0.7, 0.95])
def test_P6_where_smoothed_dpo_stops(p, sums):
    """P6: preferred with probability p: cDPO's slope is 0 at sigmoid(beta h) = (1 - eps) p + eps (1
    - p); robust DPO's, on labels
    flipped with probability eps, and DPO's at sigmoid(beta h) = p."""
    eps, beta = 0.1, 0.1

    def slope(objective, chance, sigma, **options):
        h = math.log(sigma / (1 - sigma)) / beta
        logp, batch = sums(
            (h, 0, 0, h), (0, 0, 0, 0), (1, -1, 1, -1)
        )  # the same two answers, labelled either way
        value_P = objective(logp, batch, beta=beta, **options)
        (slope_N1,) = torch.autograd.grad(chance * value_P[0] + (1 - chance) * value_P[1], logp)
        return float(slope_N1[0] + slope_N1[3])

    shrunk = (1 - eps) * p + eps * (1 - p)
    assert slope(dpo, p, p) == pytest.approx(0, abs=1e-14)
    assert slope(dpo, p, shrunk, label_smoothing=eps) == pytest.approx(0, abs=1e-14)
    assert slope(robust_dpo, shrunk, p, label_smoothing=eps) == pytest.approx(0, abs=1e-14)
    assert slope(dpo, p, p, label_smoothing=eps) > 1e-4  # so they are different places


def test_P7_robust_dpo_is_unbiased(random_batch):
    """P7: labels flipped with probability eps: the expectation of robust DPO over the flips is DPO
    on the clean labels, value by value.
    """
    logp_NT, batch = random_batch()
    turned = replace(batch.comparison, grade_N=-batch.comparison.grade_N)
    flipped = batch.replace(comparison=turned)
    for eps in (0.1, 0.3, 0.49):
        expected_P = (1 - eps) * robust_dpo(logp_NT, batch, label_smoothing=eps) + eps * robust_dpo(
            logp_NT, flipped, label_smoothing=eps
        )
        assert torch.allclose(expected_P, dpo(logp_NT, batch), rtol=0, atol=1e-12)
    assert not torch.allclose(
        0.7 * dpo(logp_NT, batch) + 0.3 * dpo(logp_NT, flipped), dpo(logp_NT, batch), atol=1e-3
    )


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_P10_kto_follows_the_majority(p, sums):
    """P10: an answer that is good with probability p, equal weights: the expected push has the sign
    of 2p - 1 at every log-ratio, and
    fades on both sides, so no log-ratio is its optimum."""
    pushes = []
    for ratio in (-60.0, -5.0, 0.0, 5.0, 60.0):
        logp, batch = sums((ratio, 0, ratio, 0), (0, 0, 0, 0), grades=(1, 0, -1, 0))
        good, bad = kto(logp, batch).unbind()
        (slope_N1,) = torch.autograd.grad(p * good + (1 - p) * bad, logp)
        pushes.append(-float(slope_N1[0] + slope_N1[2]))
    assert (
        all(math.copysign(1, push) == math.copysign(1, 2 * p - 1) for push in pushes)
        if p != 0.5
        else max(map(abs, pushes)) < 1e-15
    )
    assert p == 0.5 or max(abs(pushes[0]), abs(pushes[-1])) < 0.02 * abs(pushes[2])


# --------------------------------------------------------------------------------------------------
# invariances


def values_of(objective, options, logp_NT, batch, order):
    """The values of the groups when the batch holds these rows in this order."""
    part = batch.rows(order)
    return objective(logp_NT[order][:, : part.loss_mask_NT.shape[1]], part, **options)


@pytest.mark.parametrize("name", EVERY)
def test_order_padding_and_neighbours_do_not_matter(name, random_batch):
    """Rows in any order, wider padding with rubbish in it, groups present or absent: the same value
    for every group.
    """
    objective, options = EVERY[name]
    logp_NT, batch = random_batch(1)
    value_P = objective(logp_NT, batch, **options)
    for order in ([7, 0, 3, 5, 1, 6, 2, 4], [1, 0, 3, 2, 5, 4, 7, 6]):
        assert torch.allclose(
            values_of(objective, options, logp_NT, batch, order), value_P, rtol=1e-13
        )
    assert torch.allclose(
        values_of(objective, options, logp_NT, batch, [4, 5]), value_P[2:3], rtol=1e-13
    )
    rubbish_NT = torch.where(batch.loss_mask_NT, logp_NT, -123.0)
    elsewhere = batch.replace(logp_ref_NT=torch.where(batch.loss_mask_NT, batch.logp_ref_NT, 77.0))
    assert objective(rubbish_NT, elsewhere, **options).equal(value_P)


@pytest.mark.parametrize("budget", [1, 12, 25])
@pytest.mark.parametrize("name", EVERY)
def test_T01_whole_group_micro_batches_change_nothing(name, budget, random_batch):
    """T01: sums over micro-batches that keep groups whole, divided once by the number of
    comparisons, are the one-shot loss.
    """
    objective, options = EVERY[name]
    logp_NT, batch = random_batch(2)
    rows = {key: n for n, key in enumerate(batch.keys)}
    unit = comparison_mean(batch)
    once = reduce_loss(objective(logp_NT, batch, **options), unit, unit.count)
    assert (
        float(once) == pytest.approx(float(objective(logp_NT, batch, **options).mean()))
        and int(unit.count) == 4
    )
    parts, seen = [], []
    for micro in batch.split(budget, whole_groups=True):
        at = [rows[key] for key in micro.keys]
        values_P = objective(logp_NT[at][:, : micro.loss_mask_NT.shape[1]], micro, **options)
        parts.append(reduce_loss(values_P, comparison_mean(micro), unit.count))
        seen += at
    assert sorted(seen) == list(range(8)) and torch.allclose(
        torch.stack(parts).sum(), once, rtol=1e-12
    )
    assert (len(parts) > 1) == (budget < 40)


# ------------------------------------------------------------------------------------- optima, on a
# language that can be listed

LANGUAGE = Language(V=3, H=2)


def world():
    """A reference and rewards for the seven completions: ([1, S, V] logits of ref, log ref [1, N],
    R [1, N]).
    """
    g = torch.Generator().manual_seed(3)
    ref_XSV = torch.randn(1, LANGUAGE.S, LANGUAGE.V, generator=g, dtype=F64)
    return ref_XSV, LANGUAGE.logp(ref_XSV), torch.randn(1, LANGUAGE.N, generator=g, dtype=F64)


def population(make_batch, ref_XSV, among):
    """A batch holding every ordered pair (winner, loser) of the completions `among`, and which
    completion each row is.
    """
    pairs = list(itertools.permutations(among, 2))
    rows = [y for pair in pairs for y in pair]
    weight_NT = (
        torch.tensor([1.0, -1.0], dtype=F64)
        .repeat(len(pairs))[:, None]
        .expand(-1, LANGUAGE.H)
        .contiguous()
    )
    batch = make_batch(
        weight_NT, ref=LANGUAGE.token_logp(ref_XSV)[0, rows], mask=LANGUAGE.mask_NT[rows]
    )
    return pairs, rows, batch.replace(group_N=torch.arange(len(pairs)).repeat_interleave(2))


def minimise(loss, ref_XSV):
    """The table of logits with the least loss, from the reference; L-BFGS until the gradient is
    gone.
    """
    logits_XSV = ref_XSV.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [logits_XSV],
        max_iter=2000,
        tolerance_grad=1e-13,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure():
        solver.zero_grad()
        value = loss(logits_XSV)
        value.backward()
        return value

    solver.step(closure)
    return logits_XSV.detach()


def preferred(reward_XN):
    """P(y > z) of Bradley and Terry for every two completions: [N, N]."""
    return (reward_XN[0, :, None] - reward_XN[0]).sigmoid()


def of_pairs(matrix_NN, pairs):
    """The entries of the ordered pairs: [P]."""
    y, z = torch.tensor(pairs).T
    return matrix_NN[y, z]


def solve(make_batch, objective, ref_XSV, prefer_NN, *, law_NN=None, among=None, **options):
    """The minimiser of E[objective]: pairs by `law` (default: all alike), y preferred to z with
    probability prefer_NN[y, z].
    """
    pairs, rows, batch = population(
        make_batch, ref_XSV, list(range(LANGUAGE.N)) if among is None else among
    )
    weight_P = of_pairs(prefer_NN if law_NN is None else prefer_NN * law_NN, pairs) / len(pairs)
    return minimise(
        lambda logits: weight_P @ objective(LANGUAGE.token_logp(logits)[0, rows], batch, **options),
        ref_XSV,
    )


def near(found_XSV, expected_XN, tolerance=1e-6):
    return bool(torch.allclose(LANGUAGE.logp(found_XSV), expected_XN, rtol=0, atol=tolerance))


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_P1_P3_dpo_finds_the_tilted_reference(beta, make_batch):
    """P1, P3: over all pairs with Bradley-Terry labels the minimiser is ref exp(R / beta) / Z,
    whichever law draws the pairs.
    """
    ref_XSV, logref_XN, reward_XN = world()
    star_XN = optimum(logref_XN, reward_XN, beta)
    g = torch.Generator().manual_seed(5)
    uneven_NN = torch.rand(LANGUAGE.N, LANGUAGE.N, generator=g, dtype=F64) + 0.2
    uneven_NN = uneven_NN + uneven_NN.T
    for law_NN in (None, uneven_NN):
        found_XSV = solve(make_batch, dpo, ref_XSV, preferred(reward_XN), law_NN=law_NN, beta=beta)
        assert near(found_XSV, star_XN)
    assert float((star_XN - logref_XN).abs().max()) > 0.3


def test_P4_partial_support_leaves_unseen_mass_free(make_batch):
    """P4: pairs over 3 of 7 completions: ratios among them are pi*'s, and mass moved between seen
    and unseen changes no loss.
    """
    ref_XSV, logref_XN, reward_XN = world()
    seen, unseen = [0, 1, 2], [3, 4, 5, 6]
    found_XN = LANGUAGE.logp(
        solve(make_batch, dpo, ref_XSV, preferred(reward_XN), among=seen, beta=1.0)
    )
    star_XN = optimum(logref_XN, reward_XN, 1.0)
    assert torch.allclose(
        (found_XN - star_XN)[0, seen].diff(), torch.zeros(2, dtype=F64), atol=1e-6
    )
    pairs, rows, batch = population(make_batch, ref_XSV, seen)
    losses = []
    for share in (0.9, 0.5, 1e-6):
        p_XN = star_XN.exp()
        p_XN[0, seen] *= share / p_XN[0, seen].sum()
        p_XN[0, unseen] = (1 - share) / len(unseen)
        moved_XSV = LANGUAGE.logits_of(p_XN)
        losses.append(
            float(
                of_pairs(preferred(reward_XN), pairs)
                @ dpo(LANGUAGE.token_logp(moved_XSV)[0, rows], batch, beta=1.0)
            )
        )
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-12)


def test_P7_robust_dpo_finds_it_from_flipped_labels(make_batch):
    """P7: 30 labels in 100 flipped: robust DPO's minimiser is still the tilted reference; DPO's and
    cDPO's are not.
    """
    ref_XSV, logref_XN, reward_XN = world()
    star_XN, eps = optimum(logref_XN, reward_XN, 1.0), 0.3
    flipped_NN = (1 - 2 * eps) * preferred(reward_XN) + eps
    assert near(
        solve(make_batch, robust_dpo, ref_XSV, flipped_NN, beta=1.0, label_smoothing=eps), star_XN
    )
    assert not near(solve(make_batch, dpo, ref_XSV, flipped_NN, beta=1.0), star_XN, 0.1)
    assert not near(
        solve(make_batch, dpo, ref_XSV, flipped_NN, beta=1.0, label_smoothing=eps), star_XN, 0.1
    )


def test_P8_ipo_tilts_by_the_chance_to_win(make_batch):
    """P8: pairs of independent draws from mu: the minimiser is ref exp(P(y > mu) / tau) / Z; also
    where every preference is certain,
    so that DPO has no optimum at all."""
    ref_XSV, logref_XN, reward_XN = world()
    g = torch.Generator().manual_seed(7)
    mu_N = torch.rand(LANGUAGE.N, generator=g, dtype=F64).softmax(0)
    for chance_NN in (preferred(reward_XN), preferred(1e6 * reward_XN)):
        for tau in (0.3, 1.0):
            star_XN = optimum(logref_XN, (chance_NN @ mu_N)[None], tau)
            assert near(
                solve(make_batch, ipo, ref_XSV, chance_NN, law_NN=mu_N[:, None] * mu_N, beta=tau),
                star_XN,
            )


def test_P9_certain_preferences_have_no_dpo_optimum(sums):
    """P9: a pair that is always preferred: DPO's loss falls for ever, IPO's is least at h = 1 / (2
    beta) and rises beyond.
    """
    values = [
        [f(*sums((h, 0), (0, 0)), beta=0.5).item() for h in (0, 1, 10, 60)] for f in (dpo, ipo)
    ]
    assert values[0] == sorted(values[0], reverse=True) and values[0][3] < 1e-12
    assert values[1] == [1, 0, 81, 59**2]


def test_P15_rounds_of_dpo_add_up(make_batch):
    """P15: k rounds, each with the last policy as its reference, end at ref exp(k R / beta) / Z: as
    with beta / k.
    """
    start_XSV, logref_XN, reward_XN = world()
    policy_XSV = start_XSV
    for k in (1, 2, 3):
        policy_XSV = solve(make_batch, dpo, policy_XSV, preferred(reward_XN), beta=2.0)
        assert near(policy_XSV, optimum(logref_XN, reward_XN, 2.0 / k), 2e-6)
