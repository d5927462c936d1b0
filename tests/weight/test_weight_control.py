"""The KL controller reaches its target; running moments are those of everything seen; the
missing-EOS penalty.
"""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laurel.core.errors import UsageError
from laurel.verify.language import kl, optimum
from laurel.weight.control import Moments, missing_eos, next_beta
from laurel.weight.token import place_reward

NAN = float("nan")


def test_next_beta_by_hand():
    settings = {"target": 6.0, "horizon": 10_000, "n": 100}
    for measured, expected in (
        (12, 0.1002),
        (6, 0.1),
        (0, 0.0998),
        (6.6, 0.1001),
        (-3, 0.0998),
        (1e9, 0.1002),
        (NAN, 0.1),
    ):
        assert next_beta(0.1, measured, **settings) == pytest.approx(expected, rel=1e-12)
    assert next_beta(0.0, 12, **settings) == 0.0


def test_next_beta_refuses_what_cannot_work():
    for target, horizon, n in ((0.0, 10, 1), (1.0, 0, 1), (1.0, 10, 50)):
        with pytest.raises(UsageError):
            next_beta(0.1, 1.0, target=target, horizon=horizon, n=n)


@pytest.mark.parametrize("start", [0.003, 0.05, 2.0])
@pytest.mark.parametrize("target", [0.2, 0.5])
def test_the_controller_reaches_its_target(start, target):
    """The policy drifts a tenth of its way per step to the exact optimum of its coefficient,
    KL(pi*(beta) || ref) of an enumerated
    language, and is measured with 30 % noise: from far too small and far too large a beta, the last
    quarter is within 20 %.
    """
    generator = torch.Generator().manual_seed(0)
    reward_XN = torch.randn(1, 40, dtype=torch.float64, generator=generator)
    logref_XN = torch.randn(1, 40, dtype=torch.float64, generator=generator).log_softmax(1)
    noise = np.random.default_rng(0)
    beta, now, seen = start, 0.0, []
    for _ in range(2000):
        now += 0.1 * (float(kl(optimum(logref_XN, reward_XN, beta), logref_XN)) - now)
        beta = next_beta(
            beta, now * (1 + 0.3 * noise.standard_normal()), target=target, horizon=1000, n=64
        )
        seen.append(now)
    assert seen[-500:] == pytest.approx([target] * 500, rel=0.2)
    fixed = float(kl(optimum(logref_XN, reward_XN, start), logref_XN))
    assert abs(fixed / target - 1) > 0.2  # without the controller it would not be there


def test_moments_by_hand():
    moments = Moments().update(torch.tensor([[1.0, 2.0]])).update(torch.tensor([[6.0, NAN]]))
    assert (moments.count, moments.mean) == (3, 3.0) and moments.std == pytest.approx(2.6457513)
    assert moments.normalise(torch.tensor([6.0, 3.0, NAN])).tolist() == pytest.approx(
        [1.1338934, 0, NAN], nan_ok=True
    )
    assert moments.normalise(torch.tensor([6.0, -9.0]), 0.8).tolist() == pytest.approx([0.8, -0.8])
    assert moments.normalise(torch.tensor([6.0]), shift_mean=False).tolist() == pytest.approx(
        [2.2677868]
    )
    assert moments.update(torch.tensor([NAN])) == moments


@given(
    st.lists(st.lists(st.floats(-100, 100), max_size=7), min_size=1, max_size=8),
    st.sampled_from([0.0, 1e6]),
)
def test_moments_of_batches_are_those_of_everything(batches, offset):
    """However the scores come, and far from 0, where a sum of squares would cancel."""
    moments = Moments()
    for batch in batches:
        moments = moments.update(torch.tensor(batch, dtype=torch.float64) + offset)
    everything = np.array([x for batch in batches for x in batch]) + offset
    assert moments.count == len(everything)
    if len(everything) > 1:
        assert moments.mean == pytest.approx(everything.mean(), abs=1e-7)
        assert moments.std == pytest.approx(everything.std(ddof=1), abs=1e-6)


def test_moments_survive_a_checkpoint_bit_for_bit():
    moments = Moments().update(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    assert Moments(**json.loads(json.dumps(asdict(moments)))) == moments


def test_without_a_spread_the_scale_stays():
    """Nothing seen: as it came; one score, or thirty times .9, whose computed spread need not be 0:
    centred, never blown up.
    """
    reward_PG = torch.tensor([[0.9, 1.9]], dtype=torch.float64)
    assert torch.equal(Moments().normalise(reward_PG), reward_PG)
    for count in (1, 30):
        moments = Moments().update(torch.full((count,), 0.9, dtype=torch.float64))
        torch.testing.assert_close(
            moments.normalise(reward_PG),
            torch.tensor([[0.0, 1.0]], dtype=torch.float64),
            atol=1e-12,
            rtol=0,
        )


def test_normalising_ignores_the_scale_of_the_reward_model():
    score = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours, theirs = (
        Moments().update(score).normalise(score, 1.5),
        Moments().update(7 * score - 3).normalise(7 * score - 3, 1.5),
    )
    torch.testing.assert_close(ours, theirs)


def test_missing_eos_lands_on_the_last_token_of_what_was_cut_off():
    """Rows of 3 and 4 tokens, the second cut off at the limit of 4 without an end token."""
    reward_N = missing_eos(
        torch.tensor([1.0, 1.0, NAN]), torch.tensor([False, True, True]), missing_eos_penalty=1.5
    )
    assert reward_N.tolist() == pytest.approx([1.0, -0.5, NAN], nan_ok=True)
    assert place_reward(reward_N[:2], torch.tensor([3, 4]), 4).tolist() == [
        [0, 0, 1, 0],
        [0, 0, 0, -0.5],
    ]
    assert missing_eos(
        torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool), missing_eos_penalty=0.0
    ).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(UsageError):
        missing_eos(torch.ones(1), torch.ones(1, dtype=torch.bool), missing_eos_penalty=-1.0)
