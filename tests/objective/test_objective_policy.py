"""Policy objectives: values by hand, gradients against the score function, masks that hold."""

from inspect import Parameter, signature

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.objective.policy import clip, detached_ratio, likelihood, sequence_ratio
from laurel.objective.unit import reduce_loss, seq_mean_token_mean, seq_mean_token_sum, token_mean
from laurel.weight.group import centred, standardised

OBJECTIVES = [likelihood, clip, sequence_ratio, detached_ratio]
BAD = [float("nan"), float("inf"), float("-inf")]


def at_ratios(make_batch, *pairs):
    """(ratio, A) pairs -> log pi with gradient, and the batch: one row, one token per pair."""
    ratio_1T, weight_1T = (
        torch.tensor([column], dtype=torch.float64) for column in zip(*pairs, strict=True)
    )
    logp_1T = torch.full_like(ratio_1T, -1.0).requires_grad_()
    return logp_1T, make_batch(weight_1T, old=logp_1T - ratio_1T.log())


def gradient(values, at):
    return torch.autograd.grad(values.sum(), at)[0]


def test_T44c_clip_by_hand(make_batch):
    """T44c: (ratio, A) -> value at epsilon .2; the dual clip at 3 turns 10 into 3."""
    logp, batch = at_ratios(make_batch, (1.5, 1), (1.5, -1), (0.5, 1), (0.5, -1), (10, -1))
    torch.testing.assert_close(
        clip(logp, batch), torch.tensor([[-1.2, 1.5, -0.5, 0.8, 10.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        clip(logp, batch, delta=3.0),
        torch.tensor([[-1.2, 1.5, -0.5, 0.8, 3.0]], dtype=torch.float64),
    )
    high = clip(logp, batch, epsilon_high=0.28)
    torch.testing.assert_close(
        high, torch.tensor([[-1.28, 1.5, -0.5, 0.8, 10.0]], dtype=torch.float64)
    )


def test_cells_of_zero_gradient(make_batch):
    """PPO: (1.3, +) and (.7, -) have no gradient; (1.3, -), (.7, +) and everything inside have
    ratio * A. So does the dual clip.
    """
    pairs = [(1.3, 1), (0.7, -1), (1.3, -1), (0.7, 1), (1.1, 1), (0.9, -1), (4.0, -1), (1.25, 1)]
    logp, batch = at_ratios(make_batch, *pairs)
    expected = torch.tensor([[0, 0, 1.3, -0.7, -1.1, 0.9, 4.0, 0]], dtype=torch.float64)
    torch.testing.assert_close(gradient(clip(logp, batch), logp), expected)
    expected[0, 6] = 0
    torch.testing.assert_close(gradient(clip(logp, batch, delta=3.0), logp), expected)
    expected[0, 7] = -1.25
    torch.testing.assert_close(
        gradient(clip(logp, batch, epsilon_high=0.28, delta=3.0), logp), expected
    )


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 9))
def test_D8_every_ratio_objective_starts_as_reinforce(make_batch, N, T, seed):
    """At pi = pi_old the gradient of clip, CISPO and (per row, over |y|) GSPO is that of A log pi,
    exactly.
    """
    dice = torch.Generator().manual_seed(seed)
    weight_N1 = torch.randn(N, 1, generator=dice, dtype=torch.float64)
    logp = -torch.rand(N, T, generator=dice, dtype=torch.float64).requires_grad_()
    mask = torch.rand(N, T, generator=dice) < 0.7
    batch = make_batch(weight_N1.expand(N, T).contiguous(), old=logp, mask=mask)
    for unit in (token_mean, seq_mean_token_mean, seq_mean_token_sum):
        plain, total = unit(batch), max(int(unit(batch).count), 1)
        score = gradient(reduce_loss(likelihood(logp, batch), plain, total), logp)
        for objective in [clip, detached_ratio] + [sequence_ratio] * (unit is seq_mean_token_mean):
            torch.testing.assert_close(
                gradient(reduce_loss(objective(logp, batch), plain, total), logp),
                score,
                atol=1e-15,
                rtol=1e-12,
            )


def test_T33_value_zero_gradient_not(make_batch):
    """T33: on-policy GRPO with rewards [1, 0, 0, 1]: the value of the loss is 0 and says nothing;
    the gradient is not.
    """
    weight_PG = standardised(torch.tensor([[1.0, 0, 0, 1]], dtype=torch.float64))
    logp = torch.full((4, 3), -2.0, requires_grad=True)
    batch = make_batch(weight_PG.reshape(-1, 1).expand(4, 3).float().contiguous(), old=logp)
    loss = reduce_loss(clip(logp, batch), seq_mean_token_mean(batch), 4)
    assert abs(float(loss.detach())) < 1e-6
    assert gradient(loss, logp).norm() > 0.1


def test_T34_no_signal_no_gradient(make_batch):
    """T34: all rewards equal: the gradient is exactly 0, and finite."""
    weight_PG = centred(torch.full((1, 4), 0.1, dtype=torch.float64))
    logp = torch.full((4, 3), -2.0, requires_grad=True)
    batch = make_batch(weight_PG.reshape(-1, 1).expand(4, 3).float().contiguous(), old=logp + 0.3)
    for objective in OBJECTIVES:
        assert (gradient(objective(logp, batch), logp) == 0).all()


def test_likelihood_by_hand(make_batch):
    logp = torch.tensor([[0.5, 1.0]]).log()
    torch.testing.assert_close(
        likelihood(logp, make_batch(torch.tensor([[2.0, 3.0]]))), torch.tensor([[1.3862944, 0.0]])
    )


def test_T17_sequence_ratio_by_hand(make_batch):
    """T17: log-ratios [.1, .2, -.3, .4]: the geometric mean 1.1051709, not the product
    1.4918247.
    """
    moved = torch.tensor([[0.1, 0.2, -0.3, 0.4]], dtype=torch.float64)
    batch = make_batch(torch.full_like(moved, -1.0), old=torch.zeros_like(moved))
    torch.testing.assert_close(
        sequence_ratio(moved, batch), torch.full_like(moved, 1.1051709180756477)
    )
    assert reduce_loss(
        sequence_ratio(moved, batch), seq_mean_token_mean(batch), 1
    ) == pytest.approx(1.1051709180756477)
    up = batch.replace(weight_NT=torch.ones_like(moved))
    torch.testing.assert_close(sequence_ratio(moved, up), torch.full_like(moved, -1.0004))


def test_sequence_ratio_gradient_is_the_papers(make_batch):
    """grad = -(1/N) sum_i s_i A_i / |y_i| sum_t grad log pi, where the row is not clipped; 0 where
    it is. Masked tokens are not of |y|.
    """
    dice = torch.Generator().manual_seed(3)
    logp = -torch.rand(4, 5, generator=dice, dtype=torch.float64).requires_grad_()
    mask = torch.tensor(
        [[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool
    )
    old = logp.detach() - torch.tensor([[1e-4], [-2e-4], [1e-2], [0.0]])
    weight_NT = (
        torch.tensor([[2.0], [-1.0], [1.0], [1.0]], dtype=torch.float64).expand(4, 5).contiguous()
    )
    batch = make_batch(weight_NT, old=old, mask=mask)
    loss = reduce_loss(sequence_ratio(logp, batch), seq_mean_token_mean(batch), 3)
    s = torch.tensor([1e-4, -2e-4, 1e-2, 0.0], dtype=torch.float64).exp()
    kept = torch.tensor([2.0, -1.0, 0.0, 0.0])  # the third row is above 1 + 4e-4 with A > 0
    expected = -(s * kept / mask.sum(1).clamp(min=1))[:, None] * mask / 3
    torch.testing.assert_close(gradient(loss, logp), expected)


@given(st.integers(1, 8), st.integers(0, 9))
def test_one_token_per_row_makes_sequence_ratio_clip(make_batch, N, seed):
    dice = torch.Generator().manual_seed(seed)
    logp, old, weight = (torch.randn(N, 1, generator=dice, dtype=torch.float64) for _ in range(3))
    batch = make_batch(weight, old=old)
    torch.testing.assert_close(
        sequence_ratio(logp, batch, epsilon=0.2, epsilon_high=0.3),
        clip(logp, batch, epsilon=0.2, epsilon_high=0.3),
    )


def test_detached_ratio_by_hand(make_batch):
    """-min(ratio, 5) A log pi, and a gradient for every token: PPO would have dropped the first
    two.
    """
    logp, batch = at_ratios(make_batch, (2, 1), (9, 1), (0.5, -1), (1, 1))
    torch.testing.assert_close(
        detached_ratio(logp, batch), torch.tensor([[2.0, 5.0, -0.5, 1.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        gradient(detached_ratio(logp, batch), logp),
        torch.tensor([[-2.0, -5.0, 0.5, -1.0]], dtype=torch.float64),
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("bad", BAD)
def test_masked_positions_never_leak(make_batch, objective, bad):
    """inf or NaN in any column at a masked position changes neither the loss nor the gradient,
    whose own entry there is 0.
    """
    dice = torch.Generator().manual_seed(1)
    logp, old, weight = (torch.randn(2, 4, generator=dice) for _ in range(3))
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])

    def run(dirty):
        column = {
            name: x.masked_fill(~mask, bad) if name in dirty else x
            for name, x in (("logp", logp), ("old", old), ("weight", weight))
        }
        leaf = column["logp"].clone().requires_grad_()
        batch = make_batch(column["weight"], old=column["old"], mask=mask)
        loss = reduce_loss(objective(leaf, batch), token_mean(batch), 4)
        return loss.detach(), gradient(loss, leaf)

    clean = make_batch(weight, old=old, mask=mask)
    assert (objective(logp, clean)[~mask] == 0).all()
    loss, grad = run(())
    assert (grad[~mask] == 0).all() and (grad[mask] != 0).any()
    for dirty in (("logp",), ("old",), ("weight",), ("logp", "old"), ("logp", "old", "weight")):
        dirty_loss, dirty_grad = run(dirty)
        assert dirty_loss.equal(loss) and dirty_grad.equal(grad), dirty


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_float32_agrees_with_float64(make_batch, objective):
    dice = torch.Generator().manual_seed(2)
    logp, old, weight = (torch.randn(3, 7, generator=dice, dtype=torch.float64) for _ in range(3))
    old = logp + 0.1 * old
    exact = objective(logp, make_batch(weight, old=old))
    single = objective(logp.float(), make_batch(weight.float(), old=old.float()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_shapes_and_types_are_asserted(make_batch, objective):
    """A transposed or broadcastable tensor, half precision or an integer mask is an error, never a
    silently different number.
    """
    batch = make_batch(torch.ones(2, 3))
    for wrong in (
        torch.zeros(3, 2),
        torch.zeros(2, 1),
        torch.zeros(3),
        torch.zeros(2, 3, dtype=torch.bfloat16),
    ):
        with pytest.raises(AssertionError):
            objective(wrong, batch)
    with pytest.raises(AssertionError):
        objective(torch.zeros(2, 3), batch.replace(loss_mask_NT=torch.ones(2, 3)))


def test_bounds_that_switch_training_off_are_refused(make_batch):
    batch = make_batch(torch.ones(1, 2))
    with pytest.raises(UsageError, match="delta"):
        clip(torch.zeros(1, 2), batch, delta=1.0)
    with pytest.raises(UsageError, match="epsilon_high"):
        detached_ratio(torch.zeros(1, 2), batch, epsilon_high=0.28)


def test_T36_every_option_is_a_field_and_has_an_effect(make_batch):
    """T36: options carry the configuration's names, and changing one changes the value or the
    gradient.
    """
    ratio_N1, weight_N1 = torch.tensor(
        [[1.5, 1], [0.5, -1], [9, -1], [9, 1]], dtype=torch.float64
    ).split(1, dim=1)
    logp, batch = torch.full_like(ratio_N1, -1.0), make_batch(weight_N1, old=-1.0 - ratio_N1.log())
    other = {"epsilon": 0.1, "epsilon_high": 0.3, "delta": 2.0}
    for objective in OBJECTIVES:
        for p in signature(objective).parameters.values():
            if p.kind is Parameter.KEYWORD_ONLY:
                assert p.name in TrainConfig.model_fields and p.default is not Parameter.empty
                setting = 2.0 if objective is detached_ratio else other[p.name]
                assert not objective(logp, batch, **{p.name: setting}).equal(
                    objective(logp, batch)
                ), (objective.__name__, p.name)
