"""Weights per token: where the reward stands, returns, whitening, overlong shaping."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laurel.weight.shape import overlong
from laurel.weight.token import place_reward, return_to_go, whiten, whitened_return

NAN = float("nan")


def close(tensor, expected, tolerance=1e-7):
    torch.testing.assert_close(
        tensor, torch.as_tensor(expected, dtype=tensor.dtype), atol=tolerance, rtol=0
    )


def test_T05_reward_index_from_lengths():
    """T05: ids [5,6,2,7,8,2,2,2] with six real tokens and pad = eos = 2: index 5, not 1. No
    padding, four tokens: index 3.
    """
    assert place_reward(torch.tensor([7.0]), torch.tensor([6]), 8).nonzero().tolist() == [[0, 5]]
    assert place_reward(torch.tensor([7.0]), torch.tensor([4]), 4).nonzero().tolist() == [[0, 3]]


def test_T08_reward_slot():
    """T08: [t0, t1, EOS, PAD, PAD] with score s: [0, 0, s, 0, 0]. A completion without tokens has
    no slot.
    """
    assert place_reward(torch.tensor([0.5, 0.25]), torch.tensor([3, 0]), 5).tolist() == [
        [0, 0, 0.5, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def test_return_to_go_by_hand():
    reward_NT = torch.tensor([[0.0, 0, 1], [1, 2, 4]])
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert return_to_go(reward_NT, everything).tolist() == [[1, 1, 1], [7, 6, 4]]
    assert return_to_go(reward_NT, everything, gamma=0.5).tolist() == [[0.25, 0.5, 1], [3, 4, 4]]
    assert return_to_go(reward_NT, everything, gamma=0.0).tolist() == reward_NT.tolist()


def test_T48_returns_cross_masked_tokens():
    """T48: a reward beyond a tool's tokens reaches the tokens before it; the tool's own tokens get
    no return.
    """
    mask_NT = torch.tensor([[True, False, False, True, False]])
    reward_NT = torch.tensor([[0.0, 0, 0, 0, 3]])
    assert return_to_go(reward_NT, mask_NT).tolist() == [[3, 0, 0, 3, 0]]


@given(st.integers(1, 40), st.sampled_from([0.0, 0.3, 0.95, 1.0]), st.integers(0, 5))
def test_return_to_go_is_the_recursion(T, gamma, seed):
    """G_t = r_t + gamma G_{t+1}, for any length."""
    reward_NT = torch.randn(
        3, T, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    expected = torch.zeros_like(reward_NT)
    following = torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(T)):
        following = reward_NT[:, t] + gamma * following
        expected[:, t] = following
    torch.testing.assert_close(
        return_to_go(reward_NT, torch.ones_like(reward_NT, dtype=torch.bool), gamma=gamma), expected
    )


def test_return_to_go_stays_finite_where_powers_underflow():
    """gamma^5000 is 0 in float64; returns are still those of the geometric series, 1 / (1 -
    gamma).
    """
    long = return_to_go(
        torch.ones(1, 5000, dtype=torch.float64), torch.ones(1, 5000, dtype=torch.bool), gamma=0.5
    )
    assert (
        long.isfinite().all() and float(long[0, 0]) == pytest.approx(2) and float(long[0, -1]) == 1
    )


def test_T18_whitening():
    """T18: biased and unbiased variance, the masked slot ignored and returned as 0."""
    x_NT, mask_NT = torch.tensor([[1.0, 2, 3, 100]]), torch.tensor([[True, True, True, False]])
    close(whiten(x_NT, mask_NT, ddof=0), [[-1.2247449, 0, 1.2247449, 0]], 1e-6)
    close(whiten(x_NT, mask_NT), [[-1, 0, 1, 0]], 1e-6)
    close(whiten(x_NT, mask_NT, shift_mean=False), [[1, 2, 3, 0]], 1e-6)
    for bad in (NAN, float("inf")):
        x_NT[0, 3] = bad
        close(whiten(x_NT, mask_NT), [[-1, 0, 1, 0]], 1e-6)


def test_T18_square_is_not_special():
    """T18: B = T = 3 equals the same rows in a rectangle, row by row."""
    x_NT = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask_NT = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    wide = whiten(
        torch.nn.functional.pad(x_NT, (0, 2), value=9.0), torch.nn.functional.pad(mask_NT, (0, 2))
    )
    torch.testing.assert_close(whiten(x_NT, mask_NT), wide[:, :3])
    flat = whiten(x_NT[mask_NT][None], torch.ones(1, 6, dtype=torch.bool))[0]
    torch.testing.assert_close(whiten(x_NT, mask_NT)[mask_NT], flat)


@given(
    st.lists(st.integers(-50, 50), min_size=2, max_size=20), st.integers(1, 7), st.integers(-9, 9)
)
def test_whitening_ignores_shift_and_scale(values, scale, shift):
    x_NT = torch.tensor([values], dtype=torch.float64)
    mask_NT = torch.ones_like(x_NT, dtype=torch.bool)
    white = whiten(x_NT, mask_NT)
    torch.testing.assert_close(whiten(scale * x_NT + shift, mask_NT), white, atol=1e-6, rtol=1e-6)
    if len(set(values)) > 1:
        assert float(white.mean()) == pytest.approx(0, abs=1e-9) and float(
            white.std()
        ) == pytest.approx(1, abs=1e-6)
    else:
        assert (white == 0).all()


def test_whitening_nothing_or_one_value():
    x_NT = torch.tensor([[3.0, 4.0]])
    assert whiten(x_NT, torch.tensor([[False, False]])).tolist() == [[0, 0]]
    assert whiten(x_NT, torch.tensor([[True, False]])).tolist() == [[0, 0]]
    assert (
        whiten(torch.full((1, 30), 0.9), torch.ones(1, 30, dtype=torch.bool)).abs().max() == 0
    )  # T25, float32


def test_whitened_return_by_hand():
    """Rewards 1 and 0 at the end of two and one tokens: returns [1, 1], [0]; mean 2/3, std
    .5773503.
    """
    reward_NT = place_reward(torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([2, 1]), 2)
    mask_NT = torch.tensor([[True, True], [True, False]])
    close(whitened_return(reward_NT, mask_NT), [[0.5773503, 0.5773503], [-1.1547005, 0]], 1e-6)


def test_whitened_return_without_a_failed_row_is_without_that_row():
    """A NaN reward is excluded, not scored: the other rows are weighed as if it were not there, and
    its own weights are 0.
    """
    reward_N, length_N = (
        torch.tensor([1.0, NAN, 0.0, 2.0], dtype=torch.float64),
        torch.tensor([3, 2, 1, 3]),
    )
    mask_NT = torch.arange(3) < length_N[:, None]
    kl_NT = (
        0.1
        * torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        * mask_NT
    )
    reward_NT, rest = place_reward(reward_N, length_N, 3) - kl_NT, [0, 2, 3]
    weight_NT = whitened_return(reward_NT, mask_NT)
    assert (weight_NT[1] == 0).all()
    torch.testing.assert_close(weight_NT[rest], whitened_return(reward_NT[rest], mask_NT[rest]))


def test_overlong_by_hand():
    """L = 10, c = 4: nothing up to 6, then down to -1 at the limit; DAPO's own 20480 and 4096."""
    penalty = overlong(
        torch.tensor([1, 6, 7, 8, 10, 12]), max_completion_length=10, overlong_buffer=4
    )
    assert penalty.tolist() == [0, 0, -0.25, -0.5, -1, -1] and penalty.dtype == torch.float64
    assert overlong(
        torch.tensor([16384, 18432, 20480]), max_completion_length=20480, overlong_buffer=4096
    ).tolist() == [0, -0.5, -1]
    assert overlong(
        torch.tensor([1, 10]), max_completion_length=10, overlong_buffer=0
    ).tolist() == [0, 0]
