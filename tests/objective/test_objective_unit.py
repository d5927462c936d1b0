"""Units and the one reducer: numbers of each aggregation, and gradients that no split can
change.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laurel.core.config import Aggregation
from laurel.core.errors import UsageError
from laurel.objective.kl import kl_loss
from laurel.objective.policy import clip, detached_ratio, likelihood, sequence_ratio
from laurel.objective.unit import AGGREGATIONS, reduce_loss, token_mean, token_sum_over_const

OBJECTIVES = {
    "likelihood": likelihood,
    "clip": clip,
    "sequence_ratio": sequence_ratio,
    "detached_ratio": detached_ratio,
    "kl": kl_loss,
}

PER_TOKEN = sorted(set(AGGREGATIONS) - {"comparison_mean"})


def unit_of(name, batch, limit=8):
    return (
        AGGREGATIONS[name](batch, max_completion_length=limit)
        if name == "token_sum_over_const"
        else AGGREGATIONS[name](batch)
    )


def reduced(name, values, batch, limit=8):
    unit = unit_of(name, batch, limit)
    return reduce_loss(values, unit, unit.count).item()


def test_T17_aggregation(make_batch):
    """T17: token values [1, 1] and [2, 2, 2, 2], limit 8."""
    batch = make_batch(torch.zeros(2, 4), lengths=[2, 4])
    values = torch.tensor([[1.0, 1, 50, 50], [2, 2, 2, 2]])
    for name, loss in {
        "seq_mean_token_mean": 1.5,
        "token_mean": 10 / 6,
        "token_sum_over_const": 0.625,
        "seq_mean_token_sum": 5.0,
    }.items():
        assert reduced(name, values, batch) == pytest.approx(loss, abs=1e-6), name


def test_every_aggregation_of_the_configuration_is_here():
    assert set(AGGREGATIONS) == set(Aggregation.__args__)


def test_T01_accumulation_by_hand(make_batch):
    """T01: micro-batches [1, 1] and [3] * 6 make 2.5; a mean of means would say 2, a sum of means
    4.
    """
    whole = make_batch(torch.zeros(2, 6), lengths=[2, 6])
    values = torch.tensor([[1.0] * 6, [3.0] * 6])
    total = token_mean(whole).count
    parts = [
        reduce_loss(values[i : i + 1, :n], token_mean(whole.rows([i])), total)
        for i, n in ((0, 2), (1, 6))
    ]
    assert float(sum(parts)) == pytest.approx(2.5) and reduced(
        "token_mean", values, whole
    ) == pytest.approx(2.5)


def test_T03_masked_rows_are_not_counted(make_batch):
    """T03: lengths 2 and 4, values 1, the second row truncated and masked: 1.0, not .3333; its
    length is untouched.
    """
    batch = make_batch(torch.zeros(2, 4), lengths=[2, 4], mask=[[True] * 4, [False] * 4])
    values = torch.ones(2, 4)
    assert (
        reduced("token_mean", values, batch) == 1
        and reduced("seq_mean_token_mean", values, batch) == 1
    )
    assert (
        reduced("seq_mean_token_sum", values, batch) == 2
        and reduced("token_sum_over_const", values, batch) == 0.25
    )
    assert float(batch.length_N.float().mean()) == 3


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(OBJECTIVES)),
    st.sampled_from(PER_TOKEN),
    st.lists(st.integers(0, 7), min_size=1, max_size=7).filter(any),
    st.integers(1, 30),
    st.integers(0, 99),
)
def test_T44_any_split_has_the_gradient_of_the_whole(
    make_batch, objective, aggregation, lengths, budget, seed
):
    """T01, T44: for every objective, unit, shape and token budget, micro-batches add up to the
    one-shot loss and gradient.
    """
    dice = torch.Generator().manual_seed(seed)
    N, T = len(lengths), max(lengths)
    logp, old, ref, weight = (
        torch.randn(N, T, generator=dice, dtype=torch.float64) for _ in range(4)
    )
    mask = torch.rand(N, T, generator=dice) < 0.8
    mask[lengths.index(T), 0] = True
    batch = make_batch(weight, old=logp + 0.2 * old, ref=ref, mask=mask, lengths=lengths)
    total = unit_of(aggregation, batch).count
    logp.requires_grad_()
    whole = reduce_loss(OBJECTIVES[objective](logp, batch), unit_of(aggregation, batch), total)
    expected = torch.autograd.grad(whole, logp)[0]
    loss, grad, counted = 0.0, torch.zeros_like(logp), 0
    for micro in batch.split(budget):
        rows = [key.sample for key in micro.keys]
        part_logp = logp.detach()[rows, : micro.loss_mask_NT.shape[1]].requires_grad_()
        unit = unit_of(aggregation, micro)
        part = reduce_loss(OBJECTIVES[objective](part_logp, micro), unit, total)
        grad[rows, : part_logp.shape[1]] += torch.autograd.grad(part, part_logp)[0]
        loss, counted = loss + part.item(), counted + int(unit.count)
    assert counted == int(total) and loss == pytest.approx(whole.item(), abs=1e-6)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=0)


def test_rows_of_equal_length_make_all_means_agree(make_batch):
    """GRPO's and DAPO's aggregation differ by length only; a sum over a constant is then
    proportional.
    """
    values = torch.arange(12.0).view(3, 4)
    batch = make_batch(torch.zeros(3, 4))
    assert reduced("token_mean", values, batch) == pytest.approx(
        reduced("seq_mean_token_mean", values, batch)
    )
    assert reduced("token_sum_over_const", values, batch) * 8 / 4 == pytest.approx(
        reduced("token_mean", values, batch)
    )
    assert reduced("token_sum_over_const", values, batch, limit=1) == pytest.approx(
        reduced("seq_mean_token_sum", values, batch)
    )


def test_a_token_weighs_what_its_unit_says(make_batch):
    """Gradient per token of rows with 1 and 4 tokens: 1/5 each in a token mean, 1/2 and 1/8 in a
    sequence mean.
    """
    batch = make_batch(torch.zeros(2, 4), lengths=[1, 4])
    for name, short, long in [
        ("token_mean", 0.2, 0.2),
        ("seq_mean_token_mean", 0.5, 0.125),
        ("seq_mean_token_sum", 0.5, 0.5),
    ]:
        values = torch.zeros(2, 4, requires_grad=True)
        unit = unit_of(name, batch)
        reduce_loss(values, unit, unit.count).backward()
        torch.testing.assert_close(values.grad, torch.tensor([[short, 0, 0, 0], [long] * 4]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_reducer_leaves_out_what_weighs_nothing(make_batch, bad):
    batch = make_batch(torch.zeros(2, 3), lengths=[1, 3])
    for name in PER_TOKEN:
        values = torch.tensor([[1.0, bad, bad], [1.0, 1.0, 1.0]], requires_grad=True)
        loss = reduce_loss(values, unit_of(name, batch), unit_of(name, batch).count)
        loss.backward()
        assert loss.isfinite() and values.grad.isfinite().all() and (values.grad[0, 1:] == 0).all()


def test_T32_an_empty_step_is_not_a_loss_of_zero(make_batch):
    """T32: nothing supervised gives NaN for the caller to refuse; and a constant needs a
    constant.
    """
    batch = make_batch(torch.zeros(1, 2), mask=[[False, False]])
    for name in PER_TOKEN:
        assert unit_of(name, batch).count == 0
        assert reduce_loss(
            torch.ones(1, 2), unit_of(name, batch), unit_of(name, batch).count
        ).isnan()
    with pytest.raises(UsageError, match="max_completion_length"):
        token_sum_over_const(batch, max_completion_length=None)
