"""Soft labels, weights and margins around the objectives of pairs: by hand, gradients, what changes
no bit, and the optimum.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from laurel.core.sample import Comparisons
from laurel.objective.label import flip_chance, margin_asked, reliability, swap_pairs
from laurel.objective.preference import chosen_nll, dpo, dpop, ipo, kto, orpo, robust_dpo, simpo
from laurel.objective.reward import bradley_terry, imitation, k_wise, plackett_luce
from laurel.objective.unit import comparison_mean, reduce_loss

F64 = torch.float64
OF_POLICY = [dpo, robust_dpo, ipo, simpo, orpo, dpop, chosen_nll]
OF_SCORES = [bradley_terry, k_wise, plackett_luce]
OPTIONS = {chosen_nll: {"rpo_alpha": 0.7}, imitation: {"imitation_coef": 0.7}}


@pytest.fixture
def pairs(make_batch):
    """(first of each pair, second, weights, margins, soft labels) -> (values [N, 1] with a
    gradient, batch): the first is the chosen.
    """

    def build(chosen, rejected, w=1.0, margin=0.0, soft=1.0, dtype=F64):
        P = len(chosen)
        w, margin, soft = (torch.as_tensor(x, dtype=dtype).expand(P) for x in (w, margin, soft))

        def alternate(a, b):
            return torch.stack([torch.as_tensor(a, dtype=dtype).expand(P), b], 1).reshape(-1, 1)

        x_N1 = alternate(chosen, torch.tensor(rejected, dtype=dtype)).requires_grad_()
        ones = torch.ones(P, dtype=dtype)
        comparison = Comparisons.of(
            alternate(ones, -ones)[:, 0],
            weight_N=alternate(w, w)[:, 0],
            margin_N=alternate(margin, margin)[:, 0],
            flip_N=alternate(1 - soft, 1 - soft)[:, 0],
        )
        batch = make_batch(alternate(w, -w)).replace(comparison=comparison)
        return x_N1, batch.replace(group_N=torch.arange(P).repeat_interleave(2))

    return build


def test_bradley_terry_by_hand(pairs):
    """h = 1, s = .8: .8 softplus(-1) + .2 softplus(1) = .5132617; w = .5: half of it; m = 1:
    softplus(0) = ln 2 whatever s.
    """
    x, batch = pairs([1.0] * 3, [0.0] * 3, w=[1.0, 0.5, 1.0], margin=[0.0, 0.0, 1.0], soft=0.8)
    assert bradley_terry(x, batch).tolist() == pytest.approx(
        [0.5132617, 0.2566308, math.log(2)], abs=5e-8
    )


def test_dpo_by_hand(pairs):
    """lp - ref = 1.5 and 0, beta .1: z = .15. s = .9: .9 softplus(-.15) + .1 softplus(.15) =
    .6359570, as with eps = .1; m = .15: ln 2.
    """
    x, batch = pairs([1.5] * 3, [0.0] * 3, w=[1, 2, 1], margin=[0, 0, 0.15], soft=[0.9, 0.9, 1])
    assert dpo(x, batch, beta=0.1).tolist() == pytest.approx(
        [0.6359570, 1.2719141, math.log(2)], abs=5e-8
    )
    assert dpo(x, batch, beta=0.1, use_margin=False)[2].item() == pytest.approx(0.6209570, abs=5e-8)
    hard_x, hard = pairs([1.5], [0.0])
    assert dpo(x, batch, beta=0.1)[0].item() == pytest.approx(
        dpo(hard_x, hard, beta=0.1, label_smoothing=0.1).item(), abs=1e-15
    )


@pytest.mark.parametrize("objective", [dpo, bradley_terry])
def test_it_is_the_cross_entropy_against_the_soft_label(pairs, objective):
    """Margins included: value BCE(z - m, s), gradient w (sigmoid(z - m) - s) in z. Checked against
    torch's own.
    """
    g = torch.Generator().manual_seed(0)
    a, b, m = torch.randn(3, 20, dtype=F64, generator=g)
    s, w = torch.rand(2, 20, dtype=F64, generator=g)
    beta = 0.3 if objective is dpo else 1.0
    x, batch = pairs(a, b.tolist(), w=w + 0.1, margin=m.abs(), soft=s)
    found = objective(x, batch, **({"beta": beta} if objective is dpo else {}))
    z = beta * (a - b) - m.abs()
    expected = (w + 0.1) * binary_cross_entropy_with_logits(z, s, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    push = (w + 0.1) * beta * (z.sigmoid() - s)
    torch.testing.assert_close(
        gradient, torch.stack([push, -push], 1).reshape(-1, 1), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("objective", [*OF_POLICY, *OF_SCORES, imitation])
def test_certain_labels_of_weight_one_change_no_bit(pairs, objective):
    """The decorated function on weight 1, soft label 1 and the bare one give equal bits, in value
    and gradient, in float32.
    """
    g = torch.Generator().manual_seed(1)
    x, batch = pairs(
        -torch.rand(16, generator=g) * 3 - 0.1,
        (-torch.rand(16, generator=g) * 3 - 0.1).tolist(),
        dtype=torch.float32,
    )
    bare, options = objective, OPTIONS.get(objective, {})
    while hasattr(bare, "__wrapped__"):
        bare = bare.__wrapped__
    assert bare is not objective
    values = [f(x, batch, **options) for f in (objective, bare)]
    assert torch.equal(*values)
    assert torch.equal(*(torch.autograd.grad(v.sum(), x)[0] for v in values))


@pytest.mark.parametrize("objective", [*OF_POLICY, *OF_SCORES])
def test_a_soft_label_is_the_mean_over_both_labels_and_a_weight_a_factor(pairs, objective):
    """s f(a better) + (1 - s) f(b better), the second made by exchanging the answers in the data; w
    times it; s = 0 is the exchange.
    """
    options, (a, b, s, w) = (
        OPTIONS.get(objective, {}),
        ([-1.0, -0.4], [-2.0, -1.5], [0.7, 0.0], [0.3, 1.7]),
    )
    soft = objective(*pairs(a, b, w=w, soft=s), **options)
    there, back = (objective(*pairs(*sides), **options).detach() for sides in ((a, b), (b, a)))
    expected = [w[i] * float(s[i] * there[i] + (1 - s[i]) * back[i]) for i in range(2)]
    assert soft.tolist() == pytest.approx(expected, abs=1e-12)


def test_an_even_soft_label_leaves_equal_answers_alone(pairs):
    """s = 1/2 pulls the gap to 0: at 0 there is no gradient, and equal scores stay equal."""
    for objective in (dpo, bradley_terry):
        x, batch = pairs([0.5], [0.5], soft=0.5)
        assert torch.autograd.grad(objective(x, batch).sum(), x)[0].abs().max() == 0


def test_the_optimum_is_the_labels_own_odds(pairs):
    """Following the gradient, the gap ends at logit(s) + m, whatever the weight."""
    s, m = torch.tensor([0.8, 0.6, 0.9], dtype=F64), torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    x, batch = pairs([0.0] * 3, [0.0] * 3, w=[1.0, 0.5, 2.0], margin=m, soft=s)
    for _ in range(400):
        (gradient,) = torch.autograd.grad(bradley_terry(x, batch).sum(), x)
        x = (x - 0.5 * gradient).detach().requires_grad_()
    gap = (x[::2] - x[1::2])[:, 0]
    torch.testing.assert_close(gap.detach(), torch.logit(s) + m, rtol=1e-12, atol=1e-12)


def test_equal_weights_scale_and_the_mean_is_over_comparisons(pairs):
    x, batch = pairs([1.0, 0.0], [0.0, 0.5], w=0.25)
    even_x, even = pairs([1.0, 0.0], [0.0, 0.5])
    for objective in (dpo, bradley_terry):
        unit = comparison_mean(batch)
        loss = reduce_loss(objective(x, batch), unit, unit.count)
        assert loss.item() == pytest.approx(
            reduce_loss(objective(even_x, even), comparison_mean(even), 2).item() / 4, abs=1e-15
        )


def test_kto_counts_an_answer_by_its_weight(make_batch):
    logp = torch.tensor([[0.5], [0.0]], dtype=F64)
    values = [
        kto(
            logp,
            make_batch(torch.tensor([[w], [0.0]], dtype=F64)).replace(
                group_N=torch.zeros(2).long()
            ),
        ).item()
        for w in (1.0, 0.3)
    ]
    assert values[1] == pytest.approx(0.3 * values[0], abs=1e-15)


def test_rankings_are_no_pairs(make_batch):
    """Grades -1, -2, -3 have no chosen and no rejected: no doubt, no margin, whatever the columns
    hold.
    """
    batch = make_batch(torch.tensor([[-1.0], [-2.0], [-3.0]]))
    one_N = torch.ones(3)
    batch = batch.replace(comparison=replace(batch.comparison, margin_N=one_N, flip_N=one_N))
    batch = batch.replace(group_N=torch.zeros(3).long())
    assert (
        flip_chance(batch).tolist() == [0.0]
        and margin_asked(batch).tolist() == [0.0]
        and reliability(batch).tolist() == [1.0]
    )


def test_turning_twice_is_nothing(pairs):
    _, batch = pairs([1.0, 2.0], [0.0, 0.0], w=[1.0, 0.5], margin=[0.3, 0.0])
    again = swap_pairs(swap_pairs(batch))
    for name in ("grade_N", "margin_N"):
        assert torch.equal(getattr(again.comparison, name), getattr(batch.comparison, name))
    assert margin_asked(swap_pairs(batch)).tolist() == pytest.approx([-0.3, 0.0])
