"""Rewards per token and a critic's values -> generalised advantages, and the critic's returns."""

from __future__ import annotations

import torch
from torch import Tensor

from laurel.weight.token import return_to_go


def gae(
    reward_NT: Tensor,
    value_NT: Tensor,
    mask_NT: Tensor,
    after_N: Tensor | None = None,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: rewards, values and mask [N, T] -> two tensors [N, T].

        delta_t  = r_t + gamma V_{t+1} - V_t
        A_t      = sum_{k >= 0} (gamma lam)^k delta_{t+k}
        return_t = A_t + V_t

    Returns (advantages, returns), both 0 where the mask is False. V_t is the value of the state
    before token t. Only trained tokens are steps: "t + 1" is the next trained token, so the tokens
    of a tool neither discount nor need a value, and a reward on one of them belongs to the last
    trained token before it. (A reward before the first trained token follows from no choice and is
    ignored.) Behind the last step V is 0, since the row is over; `after_N` gives another value, see
    `bootstrapped`. Whitening comes after this.

    By hand, r = (0, 0, 1), V = (.5, .6, .7), gamma = 1: delta = (.1, .1, .3) and

        lam = 0     A = (.1, .1, .3)      the TD errors
        lam = .5    A = (.225, .25, .3)
        lam = 1     A = (.5, .4, .3)      the return minus V

    With lam = 1 the returns are (1, 1, 1): they do not depend on V. V = 0, lam = 1: `return_to_go`.
    With the exact V of the policy, E[A_t grad log pi] is the gradient of E[R] for every lam; with a
    wrong V only for lam = 1. A row with a NaN reward (no reward could judge it) gets 0.
    Schulman et al. 2016, arXiv:1506.02438.
    """
    shapes = reward_NT.shape, value_NT.shape, mask_NT.shape
    assert len(set(shapes)) == 1, shapes
    assert mask_NT.dtype == torch.bool, mask_NT.dtype
    judged_N1 = ~reward_NT.isnan().any(1, keepdim=True)
    mask_NT = mask_NT & judged_N1
    # the number of the last step up to here; -1 before the first
    step_NT = mask_NT.cumsum(1) - 1
    counted_NT = torch.where(step_NT >= 0, reward_NT, 0.0)
    reward_NK = on_steps(counted_NT, step_NT)
    value_NK = on_steps(torch.where(mask_NT, value_NT, 0.0), step_NT)
    next_NK = next_values(value_NK, step_NT[:, -1], after_N)
    delta_NK = reward_NK + gamma * next_NK - value_NK
    every_NK = torch.ones_like(mask_NT)
    advantage_NK = return_to_go(delta_NK, every_NK, gamma=gamma * lam)
    # back from steps to tokens: each token takes its step's advantage
    advantage_NT = advantage_NK.gather(1, step_NT.clamp(min=0))
    advantage_NT = torch.where(mask_NT, advantage_NT, 0.0)
    return_NT = torch.where(mask_NT, advantage_NT + value_NT, 0.0)
    return advantage_NT, return_NT


def next_values(value_NK: Tensor, last_N: Tensor, after_N: Tensor | None) -> Tensor:
    """V of the step after each step, and `after_N` (or 0) behind the row's last: [N, K] -> [N, K].

    last_N: the number of the row's last step. V = (.5, .6, 0), last 1, after .4: (.6, .4, 0).
    """
    next_NK = torch.nn.functional.pad(value_NK[:, 1:], (0, 1))
    if after_N is None:
        return next_NK
    assert after_N.shape == last_N.shape, after_N.shape
    step_K = torch.arange(value_NK.shape[1], device=value_NK.device)
    return torch.where(step_K == last_N[:, None], after_N[:, None], next_NK)


def bootstrapped(reward_N: Tensor, after_N: Tensor, truncated_N: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards, and values behind the last token, where truncated rows are not over: [N] each.

        finished:   (R, 0)
        truncated:  (0, V(s_T))

    The reward of an answer is received at its end, and a truncated row has not reached it: the
    reward of its unfinished text is left out, and the critic's value behind its last token stands
    for what is still to come. To count both would count the outcome twice: with gamma = 1, and
    every row truncated, V = R + V, which grows without end.

    R = (1, 1), V = (.3, .4), the second truncated: (1, 0) and (0, .4). NaN (no reward could judge
    the row) stays NaN. Partial-episode bootstrapping, Pardo et al. 2018, arXiv:1712.00378.
    """
    assert reward_N.shape == after_N.shape == truncated_N.shape, (reward_N.shape, after_N.shape)
    assert truncated_N.dtype == torch.bool, truncated_N.dtype
    unpaid_N = truncated_N & ~reward_N.isnan()
    paid_N = torch.where(unpaid_N, 0.0, reward_N)
    behind_N = torch.where(truncated_N, after_N, 0.0)
    return paid_N, behind_N


def on_steps(x_NT: Tensor, step_NT: Tensor) -> Tensor:
    """The sum of x over the tokens of each step, steps moved to the front: [N, T] -> [N, T].

    x = (1, 2, 4, 8), steps (0, 0, 0, 1), as in a row whose two middle tokens are a tool's:
    (7, 8, 0, 0).
    """
    # a token before the first step is added to it: callers give 0 there
    place_NT = step_NT.clamp(min=0)
    return torch.zeros_like(x_NT).scatter_add(1, place_NT, x_NT)
