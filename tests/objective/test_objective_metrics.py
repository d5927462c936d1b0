"""Metrics of an update: sums and counts over trained tokens, off the graph."""

import pytest
import torch

from laurel.core.metric_catalogue import CATALOGUE
from laurel.core.metrics import Sums
from laurel.objective.kl import kl_metrics
from laurel.objective.policy import (
    approx_kl,
    cap_fractions,
    clip,
    clip_fractions,
    detached_ratio,
    ratio_max,
    ratio_metrics,
    sequence_clip_fractions,
    sequence_ratio,
)
from laurel.objective.unit import masked_sum


@pytest.fixture
def moved(make_batch):
    """Ratio and sign of A of eight tokens: two (1.5, +), one (1.5, -), three (.5, -), one (.5, +),
    one (1, +); a wild ninth is masked.
    """
    ratio = torch.tensor([[1.5, 1.5, 1.5, 0.5, 0.5, 0.5, 0.5, 1.0, 99.0]])
    logp = torch.full_like(ratio, -1.0, requires_grad=True)
    weight = torch.tensor([[1.0, 1, -1, -1, -1, -1, 1, 1, 1]])
    mask = torch.arange(9)[None] < 8
    return logp, make_batch(weight, old=logp - ratio.log(), ref=logp - 0.1, mask=mask)


def numbers(pairs):
    return {name: (float(total), int(count)) for name, (total, count) in pairs.items()}


def test_clip_fractions(moved):
    """Only the tokens that the objective silences: (1.5, +) is high, (.5, -) is low."""
    logp, batch = moved
    assert numbers(clip_fractions(logp, batch, epsilon=0.2, epsilon_high=None)) == {
        "clip_ratio/low": (3, 8),
        "clip_ratio/high": (2, 8),
        "clip_ratio/region": (5, 8),
    }
    assert (
        float(clip_fractions(logp, batch, epsilon=0.2, epsilon_high=0.6)["clip_ratio/high"][0]) == 0
    )
    silenced = torch.autograd.grad(clip(logp, batch).sum(), logp)[0][batch.loss_mask_NT] == 0
    assert int(silenced.sum()) == 5


def test_sequence_and_capped_fractions(make_batch):
    old = torch.zeros(2, 2)
    logp = torch.tensor([[0.1, -0.098], [0.0, 0.0]])  # the first row's geometric mean is e^.001
    batch = make_batch(torch.ones(2, 2), old=old)
    assert numbers(sequence_clip_fractions(logp, batch, epsilon=3e-4, epsilon_high=4e-4))[
        "clip_ratio/high"
    ] == (2, 4)
    assert numbers(cap_fractions(logp, batch, epsilon_high=1.05)) == {"clip_ratio/high": (1, 4)}


def test_every_clipping_objective_has_its_metric():
    """The options of the metric are among those of its objective, so both are bound from the same
    configuration.
    """
    from inspect import signature

    from laurel.train.algorithms import ALGORITHMS

    clipped = {
        clip: clip_fractions,
        sequence_ratio: sequence_clip_fractions,
        detached_ratio: cap_fractions,
    }
    for objective, metric in clipped.items():
        assert set(signature(metric).parameters) <= set(signature(objective).parameters)
        rows = [row for row in ALGORITHMS.values() if row.objective is objective]
        assert rows and all(row.measure is metric for row in rows)
    for row in ALGORITHMS.values():
        assert row.objective in clipped or row.measure not in clipped.values()


def test_ratio_and_kl(moved):
    logp, batch = moved
    total, count = ratio_metrics(logp, batch)["ratio/mean"]
    assert (float(total), int(count)) == (pytest.approx(7.5), 8)
    assert float(ratio_max(logp, batch)) == pytest.approx(1.5)
    expected = sum(
        r - 1 - torch.tensor(r).log().item() for r in (1.5, 1.5, 1.5, 0.5, 0.5, 0.5, 0.5, 1.0)
    )
    assert (
        float(approx_kl(logp, batch)[0]) == pytest.approx(expected, abs=1e-6)
        and int(approx_kl(logp, batch)[1]) == 8
    )
    kl = numbers(kl_metrics(logp, batch))
    each = 2.718281828 ** (-0.1) - 1 + 0.1
    assert kl["kl"] == (pytest.approx(8 * each, abs=1e-6), 8) and kl["kl/sequence"] == (
        pytest.approx(8 * each, abs=1e-6),
        1,
    )


def test_same_policy_same_numbers(make_batch):
    """In the first pass ratio = 1, nothing is clipped and both KLs are exactly 0."""
    logp = -torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    batch = make_batch(torch.randn(3, 4), old=logp, ref=logp, lengths=[4, 2, 0])
    assert (
        float(ratio_max(logp, batch)) == 1
        and float(approx_kl(logp, batch)[0]) == 0
        and float(kl_metrics(logp, batch)["kl"][0]) == 0
    )
    assert all(
        float(total) == 0
        for total, _ in clip_fractions(logp, batch, epsilon=0.2, epsilon_high=0.2).values()
    )
    assert int(kl_metrics(logp, batch)["kl/sequence"][1]) == 2


def test_T67_sums_divide_once(make_batch):
    """T67: KL 1.0 over one token and 0 over nine: .1, not .5."""
    sums = Sums()
    for value, tokens in ((1.0, 1), (0.0, 9)):
        total, count = masked_sum(
            torch.full((1, tokens), value), torch.ones(1, tokens, dtype=torch.bool)
        )
        sums.add("kl", float(total), int(count))
    assert sums.means()["kl"] == pytest.approx(0.1)


def test_metrics_are_detached_known_and_blind_to_masked_tokens(moved):
    logp, batch = moved
    pairs = {
        **clip_fractions(logp, batch, epsilon=0.2, epsilon_high=0.2),
        **ratio_metrics(logp, batch),
        **kl_metrics(logp, batch),
        "approx_kl": approx_kl(logp, batch),
    }
    for name, (total, count) in pairs.items():
        assert (
            name in CATALOGUE
            and not total.requires_grad
            and not count.requires_grad
            and total.shape == count.shape == ()
        )
    assert (
        not ratio_max(logp, batch).requires_grad
        and not masked_sum(logp, batch.loss_mask_NT)[0].requires_grad
    )
    dirty = batch.replace(
        logp_old_NT=batch.logp_old_NT.masked_fill(~batch.loss_mask_NT, float("nan"))
    )
    assert (
        numbers(ratio_metrics(logp, dirty)) == numbers(ratio_metrics(logp, batch))
        and ratio_max(logp, dirty).isfinite()
    )
    assert approx_kl(logp, dirty)[0].isfinite()


def test_no_trained_token(make_batch):
    """Counts of 0, which `Sums` leaves out, and a maximum below any other."""
    batch = make_batch(torch.ones(1, 2), mask=[[False, False]])
    assert int(approx_kl(torch.zeros(1, 2), batch)[1]) == 0 and float(
        ratio_max(torch.zeros(1, 2), batch)
    ) == float("-inf")
    assert float(ratio_max(torch.zeros(0, 0), make_batch(torch.ones(0, 0)))) == float("-inf")
