"""The discriminator's term by hand, its gradients and its optimum; what its verdict pays; both
sides balanced whatever is split.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laurel.core.sample import Demonstrations
from laurel.objective.discriminator import (
    balanced_demonstrations,
    discriminate,
    discriminator_metrics,
    imitation,
)
from laurel.objective.unit import UNITS, reduce_loss, row_mean

LOG2 = math.log(2)


def as_marked(batch, side_N):
    """The batch with demonstrations where the side is above 0; its size is the row's weight."""
    return batch.replace(demonstrations=Demonstrations(side_N > 0, side_N.abs()))


@pytest.fixture
def marked(make_batch):
    """A batch of one-token rows whose sides are given."""

    def make(side, group=None):
        batch = make_batch(torch.zeros(len(side), 1))
        group_N = batch.group_N if group is None else torch.tensor(group)
        return as_marked(batch.replace(group_N=group_N), torch.tensor(side, dtype=torch.float32))

    return make


def test_values_by_hand(marked):
    """f = 1: softplus(-1) = .3132617 for a demonstration, softplus(1) = 1.3132617 for a sample; 0:
    ln 2; a row of no side: 0.
    """
    batch = marked([1, -1, 1, -2, 0])
    values = discriminate(torch.tensor([1.0, 1, 0, 0, 9]), batch)
    assert values.tolist() == pytest.approx([0.3132617, 1.3132617, LOG2, 2 * LOG2, 0.0], abs=1e-6)


def test_smoothing_by_hand(marked):
    """eps = .1: .9 * .3132617 + .1 * 1.3132617 = .4132617 at a demonstration, 1.2132617 at a
    sample.
    """
    values = discriminate(torch.ones(2), marked([1, -1]), label_smoothing=0.1)
    assert values.tolist() == pytest.approx([0.4132617, 1.2132617], abs=1e-6)


def test_gradient_is_d_minus_label(marked):
    """d/df = |side| (D - y), y = 1 - eps of a demonstration, eps of a sample; no gradient where
    there is no side.
    """
    f = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64, requires_grad=True)
    batch = marked([1.5, -0.5, 0])
    (slope,) = torch.autograd.grad(discriminate(f, batch, label_smoothing=0.2).sum(), f)
    D = f.detach().sigmoid()
    assert torch.allclose(
        slope, torch.stack([1.5 * (D[0] - 0.8), 0.5 * (D[1] - 0.2), D[2] * 0]), atol=1e-12
    )


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.floats(0, 0.4))
@settings(max_examples=30, deadline=None)
def test_the_optimum_is_the_ratio_of_the_densities(make_batch, expert, policy, eps):
    """pi_E softplus-loss + pi loss is least at D* = ((1 - eps) pi_E + eps pi) / (pi_E + pi)."""
    best = ((1 - eps) * expert + eps * policy) / (expert + policy)
    f = torch.tensor([math.log(best / (1 - best))] * 2, dtype=torch.float64, requires_grad=True)
    sides_N = torch.tensor([expert, -policy], dtype=torch.float64)
    batch = as_marked(make_batch(torch.zeros(2, 1, dtype=torch.float64)), sides_N)
    (slope,) = torch.autograd.grad(discriminate(f, batch, label_smoothing=eps).sum(), f)
    assert abs(float(slope.sum())) < 1e-12


def test_sides_are_balanced_in_every_group(marked):
    """One demonstration of nine rows: 4.5 and -.5625; two of four: 1 and -1; a group of one kind:
    0.
    """
    batch = marked([0] * 14, group=[0] * 9 + [1] * 4 + [2])
    shown = torch.tensor([False] * 8 + [True] + [True, False, False, True] + [True])
    made = balanced_demonstrations(shown, batch)
    assert torch.equal(made.demonstration_N, shown)
    found = torch.where(shown, made.weight_N, -made.weight_N)
    assert (
        found[:9].tolist() == [-0.5625] * 8 + [4.5]
        and found[9:13].tolist() == [1, -1, -1, 1]
        and found[13] == 0
    )
    assert float(found[:9].sum()) == 0 and float(found[:9].abs().mean()) == 1


def test_the_mean_over_rows_is_half_of_each_side(marked):
    """With logits of 0 everywhere it is ln 2 whatever the numbers; otherwise the mean of the two
    sides' means.
    """
    batch = marked([0] * 4, group=[0] * 4)
    shown = torch.tensor([False, False, False, True])
    batch = batch.replace(demonstrations=balanced_demonstrations(shown, batch))
    unit = row_mean(batch)
    assert float(
        reduce_loss(discriminate(torch.zeros(4), batch), unit, unit.count)
    ) == pytest.approx(LOG2)
    f = torch.tensor([0.0, 1.0, 2.0, 3.0])
    soft = torch.nn.functional.softplus
    expected = (soft(f[:3]).mean() + soft(-f[3])) / 2
    assert float(reduce_loss(discriminate(f, batch), unit, unit.count)) == pytest.approx(
        float(expected), abs=1e-6
    )


def test_whole_rows_are_counted_whatever_is_trained_on(make_batch):
    """A row without a trained token counts; parts of a batch add up to the whole."""
    batch = make_batch(
        torch.zeros(3, 2), lengths=[2, 1, 2], mask=[[True, True], [False, False], [True, False]]
    )
    unit = UNITS["row_mean"](batch)
    assert unit.count == 3 and unit.weight.tolist() == [1, 1, 1]
    values = torch.tensor([1.0, 5.0, 3.0])
    parts = sum(
        float(reduce_loss(values[rows], row_mean(batch.rows(rows)), unit.count))
        for rows in ([0, 2], [1])
    )
    assert parts == pytest.approx(3.0) == float(reduce_loss(values, unit, unit.count))


def test_what_a_verdict_pays():
    """f = 1 and f = 0 by hand; airl = gail + log_d, always; all rise."""
    f = torch.tensor([1.0, 0.0, -40.0, 40.0], dtype=torch.float64)
    pays = {name: imitation(f, imitation_reward=name) for name in ("airl", "gail", "log_d")}
    assert pays["airl"].tolist() == [1, 0, -40, 40]
    assert pays["gail"][:2].tolist() == pytest.approx([1.3132617, LOG2], abs=1e-6)
    assert pays["log_d"][:2].tolist() == pytest.approx([-0.3132617, -LOG2], abs=1e-6)
    assert torch.allclose(pays["gail"] + pays["log_d"], pays["airl"]) and all(
        bool(p.isfinite().all()) for p in pays.values()
    )
    D = torch.tensor([0.2, 0.9], dtype=torch.float64)
    assert torch.allclose(imitation(torch.logit(D), imitation_reward="gail"), -torch.log(1 - D))
    assert torch.allclose(imitation(torch.logit(D), imitation_reward="log_d"), torch.log(D))


def test_metrics_by_hand(marked):
    """Both sides count the same; a tie counts half; rows of no side in neither."""
    f = torch.tensor([2.0, -1.0, 1.0, 0.0, 9.0], requires_grad=True)
    found = discriminator_metrics(f, marked([3, -1, -1, -1, 0]))
    means = {name: float(total / count) for name, (total, count) in found.items()}
    assert means["discriminator/accuracy"] == pytest.approx((3 + 1 + 0 + 0.5) / 6)
    assert means["discriminator/demonstrations"] == pytest.approx(
        torch.tensor(2.0).sigmoid().item(), abs=1e-6
    )
    assert means["discriminator/samples"] == pytest.approx(
        torch.tensor([-1.0, 1, 0]).sigmoid().mean().item(), abs=1e-6
    )
    assert not any(total.requires_grad for total, _ in found.values())


def test_half_precision_and_wrong_shapes_are_refused(marked):
    with pytest.raises(AssertionError):
        discriminate(torch.zeros(2, dtype=torch.bfloat16), marked([1, -1]))
    with pytest.raises(AssertionError):
        discriminate(torch.zeros(2, 1), marked([1, -1]))
