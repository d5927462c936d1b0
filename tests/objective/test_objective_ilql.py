"""Implicit Q-learning: values by hand, what takes gradient and what does not, where the row ends,
and what expectiles are.
"""

import math
from typing import NamedTuple

import pytest
import torch

from laurel.objective.ilql import (
    backup,
    expectile_square,
    implicit_metrics,
    implicit_q,
    next_value,
)

NAN = float("nan")


class Implicit(NamedTuple):
    """What implicit Q-learning is a function of, in order."""

    logp_NT: torch.Tensor
    q_KNT: torch.Tensor
    logq_KNT: torch.Tensor
    target_NT: torch.Tensor
    value_NT: torch.Tensor


def wide(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def said(N=3, T=4, seed=0):
    """Random words of two heads, on which gradients can be asked for."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(N, T), (2, N, T), (2, N, T), (N, T), (N, T)]
    return Implicit(
        *(
            torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
            for shape in shapes
        )
    )


def test_one_token_by_hand(make_batch):
    """Q = V = 0, R = 1, vocabulary of 4, log pi = -1: 2 + 0 + .1 * 2 ln 4 + 1."""
    zero, zeros = wide([0]), torch.zeros(2, 1, 1, dtype=torch.float64)
    loss = implicit_q(
        *Implicit(wide([-1]), zeros, zeros - math.log(4), zero, zero), make_batch(wide([1]))
    )
    torch.testing.assert_close(loss, wide([2 + 0.2 * math.log(4) + 1]))


def test_backups_by_hand(make_batch):
    """V = (.4, .6), R = 1, gamma .9: (.54, 1); tokens between two trained ones are no steps;
    nothing comes behind the last.
    """
    torch.testing.assert_close(
        backup(wide([0.4, 0.6]), make_batch(wide([1, 1])), 0.9), wide([0.54, 1.0])
    )
    batch = make_batch(wide([5, 5, 5, 5]), mask=[[True, False, True, False]])
    last, after = next_value(wide([1, 2, 3, 4]), batch)
    assert last.tolist() == [[False, False, True, False]] and after.tolist() == [[3, 0, 0, 0]]
    torch.testing.assert_close(backup(wide([1, 2, 3, 4]), batch, 0.5), wide([1.5, 0, 5, 0]))
    short = make_batch(wide([1, 1, 1], [2, 2, 2]), lengths=[2, 3])
    torch.testing.assert_close(
        backup(wide([1, 2, 9], [3, 4, 5]), short, 1.0), wide([2, 1, 0], [4, 5, 2])
    )


def test_the_expectile_minimises_the_asymmetric_square():
    """Right with probability p: the slope is 0 at tau p / (tau p + (1 - tau)(1 - p)); .5 is the
    mean, 1 the maximum.
    """
    assert expectile_square(wide([2, -2]), 0.7).tolist() == [
        [pytest.approx(2.8, rel=1e-12), pytest.approx(1.2, rel=1e-12)]
    ]
    for tau in (0.5, 0.7, 0.999):
        for p in (0.1, 0.6):
            v = wide([tau * p / (tau * p + (1 - tau) * (1 - p))]).requires_grad_()
            loss = p * expectile_square(1 - v, tau) + (1 - p) * expectile_square(0 - v, tau)
            assert torch.autograd.grad(loss.sum(), v)[0].abs().max() < 1e-12


def test_gradients_are_those_of_the_formula(make_batch):
    """d/dQ = 2 (Q - aim); d/dV = -2 |tau - 1[u < 0]| u and nothing through the aim; none in the
    slow copies; the policy's is -weight.
    """
    found, batch = said(), make_batch(torch.ones(3, 4, dtype=torch.float64), lengths=[4, 2, 3])
    implicit_q(
        *found, batch, gamma=0.9, expectile=0.8, cql_coef=0.3, awac_coef=0.5, awac_beta=0.7
    ).sum().backward()
    mask, aim = batch.loss_mask_NT, backup(found.value_NT, batch, 0.9).detach()
    u = (found.target_NT - found.value_NT).detach()
    torch.testing.assert_close(
        found.q_KNT.grad, torch.where(mask, 2 * (found.q_KNT.detach() - aim), 0.0)
    )
    torch.testing.assert_close(found.logq_KNT.grad, -0.3 * mask.double().expand(2, 3, 4))
    torch.testing.assert_close(
        found.value_NT.grad, torch.where(mask, -2 * torch.where(u < 0, 0.2 * u, 0.8 * u), 0.0)
    )
    torch.testing.assert_close(found.logp_NT.grad, torch.where(mask, -0.5 * (0.7 * u).exp(), 0.0))
    assert found.target_NT.grad is None


def test_a_constant_added_to_reward_and_values_changes_nothing_but_their_height(make_batch):
    """Without discount: R, V, Q and the copies higher by 5 give the same loss at every token."""
    found, reward = said(), torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64).expand(3, 4)
    higher = Implicit(
        found.logp_NT, found.q_KNT + 5, found.logq_KNT, found.target_NT + 5, found.value_NT + 5
    )
    losses = [
        implicit_q(*x, make_batch(reward + c, lengths=[4, 1, 3]), gamma=1.0)
        for x, c in ((found, 0), (higher, 5))
    ]
    torch.testing.assert_close(*losses)


def test_rubbish_where_nothing_is_trained_stays_there(make_batch):
    """NaN at padding reaches neither the loss nor a gradient."""
    found, batch = said(2, 3), make_batch(torch.ones(2, 3, dtype=torch.float64), lengths=[3, 1])
    dirty = Implicit(
        *(torch.where(batch.loss_mask_NT, x.detach(), NAN).requires_grad_() for x in found)
    )
    clean = implicit_q(*found, batch, awac_beta=0.5)
    loss = implicit_q(*dirty, batch, awac_beta=0.5)
    torch.testing.assert_close(loss, clean)
    loss.sum().backward()
    assert (
        all(x.grad.isfinite().all() for x in dirty if x.grad is not None)
        and dirty.q_KNT.grad.abs().sum() > 0
    )


def test_a_weight_exponent_of_0_is_cloning(make_batch):
    found, batch = said(), make_batch(torch.ones(3, 4, dtype=torch.float64))
    nothing = {"cql_coef": 0.0, "awac_coef": 1.0}
    loss = implicit_q(*found, batch, **nothing) - implicit_q(
        *found, batch, **{**nothing, "awac_coef": 0.0}
    )
    torch.testing.assert_close(loss, -found.logp_NT)


def test_metrics_are_sums_of_the_same_parts(make_batch):
    found, batch = (
        said(),
        make_batch(torch.full((3, 4), 2.0, dtype=torch.float64), lengths=[4, 2, 3]),
    )
    options = {"gamma": 0.9, "expectile": 0.8, "awac_beta": 0.7}
    told = {
        name: (float(total), int(count))
        for name, (total, count) in implicit_metrics(*found, batch, **options).items()
    }
    assert told["implicit/reward"] == (6.0, 3) and {
        count for name, (_, count) in told.items() if name != "implicit/reward"
    } == {9}
    parts = [told[f"implicit/{name}_loss"][0] for name in ("q", "value", "cql", "awac")]
    whole = implicit_q(*found, batch, cql_coef=0.3, awac_coef=0.5, **options).sum()
    assert parts[0] + parts[1] + 0.3 * parts[2] + 0.5 * parts[3] == pytest.approx(
        float(whole.detach())
    )
    assert told["implicit/advantage"][0] == pytest.approx(
        (found.target_NT - found.value_NT)[batch.loss_mask_NT].sum().item()
    )


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_an_expectile_outside_0_and_1_is_refused(make_batch, tau):
    with pytest.raises(AssertionError):
        implicit_q(*said(), make_batch(torch.ones(3, 4, dtype=torch.float64)), expectile=tau)
