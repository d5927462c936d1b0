"""The critic's loss: values and gradients by hand, where clipping silences, and explained variance
from sums.
"""

import math

import pytest
import torch

from laurel.core.sample import Values
from laurel.objective.value import explained_variance, value_loss, value_metrics

NAN = float("nan")


def wide(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def with_values(make_batch, old, target, mask=None):
    return make_batch(torch.zeros_like(old), mask=mask).replace(values=Values(old, target))


def test_by_hand(make_batch):
    """V_old = 0, R = 1, c = .2. Inside; moved towards R too far; moved away; beyond R: values and
    gradients.
    """
    value = wide([0.1, 0.5, -0.5, 1.5, 0.0]).requires_grad_()
    loss = value_loss(value, with_values(make_batch, wide([0, 0, 0, 0, 0]), wide([1, 1, 1, 1, 1])))
    torch.testing.assert_close(loss, wide([0.405, 0.32, 1.125, 0.32, 0.5]))
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), value)[0], wide([-0.9, 0, -1.5, 0, -1])
    )


def test_by_hand_downwards(make_batch):
    """V_old = 0, R = -1: the mirror image of the same five, so that both bounds are seen."""
    value = wide([-0.1, -0.5, 0.5, -1.5, 0.0]).requires_grad_()
    loss = value_loss(
        value, with_values(make_batch, wide([0, 0, 0, 0, 0]), wide([-1, -1, -1, -1, -1]))
    )
    torch.testing.assert_close(loss, wide([0.405, 0.32, 1.125, 0.32, 0.5]))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), value)[0], wide([0.9, 0, 1.5, 0, 1]))


def test_without_clipping_it_is_half_the_square(make_batch):
    generator = torch.Generator().manual_seed(0)
    value, old, target = (
        torch.randn(3, 4, dtype=torch.float64, generator=generator) for _ in range(3)
    )
    value.requires_grad_()
    batch = with_values(make_batch, old, target)
    torch.testing.assert_close(
        value_loss(value, batch, cliprange_value=0.0), (value - target).square() / 2
    )
    torch.testing.assert_close(
        value_loss(value, batch, cliprange_value=1e9), (value - target).square() / 2
    )
    assert (value_loss(value, batch) >= value_loss(value, batch, cliprange_value=0.0)).all()
    grad = torch.autograd.grad(value_loss(value, batch, cliprange_value=0.0).sum(), value)[0]
    torch.testing.assert_close(grad, (value - target).detach())


def test_every_update_starts_with_the_plain_gradient(make_batch):
    """At V = V_old clipping does not bite: V - R exactly, for any c."""
    old, target = wide([0.3, -2.0, 5.0]), wide([1.0, 1.0, 1.0])
    for c in (0.01, 0.2, 3.0):
        value = old.clone().requires_grad_()
        loss = value_loss(value, with_values(make_batch, old, target), cliprange_value=c)
        assert torch.equal(torch.autograd.grad(loss.sum(), value)[0], old - target)


def test_shifting_everything_changes_nothing(make_batch):
    value, old, target = wide([0.5, 0.25]), wide([0.25, 0.5]), wide([1.0, -1.0])
    here = value_loss(value, with_values(make_batch, old, target))
    there = value_loss(value + 8, with_values(make_batch, old + 8, target + 8))
    torch.testing.assert_close(here, there)


def test_untrained_tokens_have_no_value_and_no_gradient(make_batch):
    value = wide([0.5, NAN, 3.0]).requires_grad_()
    batch = with_values(
        make_batch, wide([0, 0, NAN]), wide([1, NAN, 1]), mask=[[True, False, False]]
    )
    loss = value_loss(value, batch)
    assert loss.tolist() == [[pytest.approx(0.32), 0, 0]]
    plain = torch.autograd.grad(value_loss(value, batch, cliprange_value=0.0).sum(), value)[0]
    assert plain.tolist() == [[-0.5, 0, 0]]


def test_metrics_by_hand(make_batch):
    """R = (0, 2), V = (.5, 1.5), a third token untrained: explained variance .75, half of the
    tokens silenced.
    """
    batch = with_values(
        make_batch, wide([0.4, 0, 0]), wide([0, 2, NAN]), mask=[[True, True, False]]
    )
    metrics = value_metrics(wide([0.5, 1.5, NAN]), batch)
    assert all(int(count) == 2 for _, count in metrics.values())
    means = {name: float(total / count) for name, (total, count) in metrics.items()}
    assert means == pytest.approx(
        {
            "value/mean": 1.0,
            "value/target": 1.0,
            "value/target_square": 2.0,
            "value/error": 0.0,
            "value/error_square": 0.25,
            "clip_ratio/value": 0.5,
        }
    )
    assert explained_variance(means) == pytest.approx(0.75)
    shifted = value_metrics(wide([7.5, 8.5, NAN]), batch)
    assert explained_variance(
        {name: float(total / count) for name, (total, count) in shifted.items()}
    ) == pytest.approx(0.75)


def test_the_silenced_tokens_are_those_without_a_gradient(make_batch):
    generator = torch.Generator().manual_seed(1)
    value, old, target = (
        torch.randn(6, 5, dtype=torch.float64, generator=generator) for _ in range(3)
    )
    value.requires_grad_()
    batch = with_values(make_batch, old, target)
    silent = torch.autograd.grad(value_loss(value, batch).sum(), value)[0] == 0
    assert 0 < int(silent.sum()) == int(value_metrics(value, batch)["clip_ratio/value"][0]) < 30


def test_equal_returns_leave_nothing_to_explain(make_batch):
    batch = with_values(make_batch, wide([0.0, 0.0, 0.0]), wide([0.1, 0.1, 0.1]))
    metrics = value_metrics(wide([0.0, 0.1, 0.2]), batch)
    assert math.isnan(
        explained_variance({name: float(total / count) for name, (total, count) in metrics.items()})
    )


def test_shapes_are_asserted(make_batch):
    with pytest.raises(AssertionError):
        value_loss(wide([0.0, 0.0]), with_values(make_batch, wide([0.0]), wide([0.0])))
