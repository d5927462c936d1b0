"""Rewards per token -> one weight per token: placing a reward, return-to-go and whitening."""

from __future__ import annotations

import torch
from torch import Tensor


def place_reward(reward_N: Tensor, length_N: Tensor, T: int) -> Tensor:
    """A reward for the whole completion on its last real token, 0 elsewhere: [N], [N] -> [N, T].

    Length 3 of T = 5: [0, 0, r, 0, 0]. The position comes from the length alone: a padding token
    that shares the end token's id cannot move it. A row of length 0 has no last token: all 0.
    """
    assert reward_N.shape == length_N.shape and reward_N.ndim == 1, (reward_N.shape, length_N.shape)
    last_NT = torch.arange(T, device=length_N.device) == (length_N - 1)[:, None]
    return torch.where(last_NT, reward_N[:, None], 0.0)


def return_to_go(reward_NT: Tensor, mask_NT: Tensor, *, gamma: float = 1.0) -> Tensor:
    """The discounted sum of the rewards from each token on: [N, T] -> [N, T].

        G_t = sum_{k >= t} gamma^(k-t) r_k

    [0, 0, 1] with gamma = .5: [.25, .5, 1]. Rewards count at every token (0 where there is none),
    so they cross the tokens of a tool; the return is reported where `mask_NT` is True and 0
    elsewhere.

    Computed by doubling, in log2(T) steps: a sum over the next s tokens plus gamma^s times the sum
    over the s after them is the sum over 2s, for any gamma and T.
    """
    assert reward_NT.shape == mask_NT.shape and mask_NT.dtype == torch.bool, (
        reward_NT.shape,
        mask_NT.shape,
        mask_NT.dtype,
    )
    return_NT, span = reward_NT, 1
    while span < reward_NT.shape[1]:
        later_NT = torch.nn.functional.pad(return_NT[:, span:], (0, span))
        return_NT = return_NT + gamma**span * later_NT
        span *= 2
    return torch.where(mask_NT, return_NT, 0.0)


def whiten(
    x_NT: Tensor, mask_NT: Tensor, *, shift_mean: bool = True, ddof: int = 1, eps: float = 1e-8
) -> Tensor:
    """Values standardised over all tokens where the mask is True, 0 elsewhere: [N, T] -> [N, T].

        (x - mean) / (std + eps)

    [1, 2, 3, (100)] with the last one masked: [-1, 0, 1, 0]; ddof = 0:
    [-1.2247449, 0, 1.2247449, 0]. shift_mean = False keeps the mean and scales the spread only.
    Values that are all equal (range test) have no spread to scale: exactly 0 (or the mean).
    """
    assert x_NT.shape == mask_NT.shape and mask_NT.dtype == torch.bool, (
        x_NT.shape,
        mask_NT.shape,
        mask_NT.dtype,
    )
    x_M = x_NT[mask_NT]
    if len(x_M) == 0:
        return torch.zeros_like(x_NT)
    mean = x_M.mean()
    std = x_M.var(correction=ddof).sqrt() if len(x_M) > ddof else torch.zeros_like(mean)
    flat = x_M.max() - x_M.min() <= 1e-9 * x_M.abs().max()
    white_NT = torch.where(flat, 0.0, (x_NT - mean) / (std + eps))
    return torch.where(mask_NT, white_NT if shift_mean else white_NT + mean, 0.0)


def whitened_return(reward_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """The return-to-go, whitened over every trained token of the batch: [N, T] -> [N, T].

        A_t = (G_t - mean) / std,    ddof = 1

    `reward_NT` holds the reward at the last token and -beta k1_t at each. A row with a NaN reward
    (no reward could judge it) is left out: it enters no statistic and gets 0. Longer completions
    have more tokens in the mean. REINFORCE++, Hu et al. 2025, arXiv:2501.03262.
    """
    judged_N1 = ~reward_NT.isnan().any(1, keepdim=True)
    mask_NT = mask_NT & judged_N1
    return whiten(return_to_go(torch.where(judged_N1, reward_NT, 0.0), mask_NT), mask_NT)
