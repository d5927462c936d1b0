"""Evolution strategies: one weight per member from its mean reward, and the ascent direction.

Members come in pairs: 2k tries theta + sigma eps_k, 2k + 1 tries theta - sigma eps_k. M members,
K = M / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor


def shaped(
    reward_M: Tensor, *, shape_returns: Literal["ranks", "zscore", "raw"] = "ranks"
) -> Tensor:
    """Weights of the members from their mean rewards: [M] -> [M] float64.

        ranks:   rank / (M - 1) - 1/2    rank 0 the worst, equal rewards share their mean rank
        zscore:  (R - mean) / std        ddof = 1
        raw:     R

    Rewards that are all equal (by their range) get weights of 0, except raw ones. R = (1, 3, 3, 0):

        ranks     -1/6, 1/3, 1/3, -1/2
        zscore    -.5, .8333333, .8333333, -1.1666667

    Ranks are the same for any increasing function of the reward, z-scores for any shift and scale.
    Of a pair only the difference counts, so a shift changes no step even with raw. A z-score is raw
    over the std, without which a step has the scale of the reward. No constant is added to the std:
    members differ by as little as sigma. Ranks: Salimans et al. 2017, arXiv:1703.03864; z-scores:
    Qiu et al. 2025, arXiv:2509.24372.
    """
    assert reward_M.ndim == 1 and len(reward_M) % 2 == 0 and reward_M.dtype == torch.float64, (
        reward_M.shape,
        reward_M.dtype,
    )
    assert bool(reward_M.isfinite().all()), reward_M
    if shape_returns == "raw":
        return reward_M
    if not bool(reward_M.max() - reward_M.min() > 1e-9 * reward_M.abs().max()):
        return torch.zeros_like(reward_M)
    if shape_returns == "zscore":
        return (reward_M - reward_M.mean()) / reward_M.std()
    below_M = (reward_M < reward_M[:, None]).sum(1).double()
    ties_M = (reward_M == reward_M[:, None]).sum(1) - 1
    return (below_M + ties_M / 2) / (len(reward_M) - 1) - 0.5


def search_gradient(
    weight_M: Tensor, noise: Callable[[int], Tensor], *, sigma: float = 0.001
) -> Tensor:
    """The direction of ascent of one parameter tensor, of the tensor's shape.

        (1 / (M sigma)) sum_m w_m eps_m  =  (1 / (M sigma)) sum_k (w_2k - w_2k+1) eps_k

    noise(k) is what pair k added, in units of sigma. This is
    E[w grad log N(theta + sigma eps; theta, sigma^2)] over the population: REINFORCE, where a
    sample is a set of parameters. With raw rewards it is an unbiased estimate of the gradient of J
    smoothed by that Gaussian, which is grad J up to O(sigma^2). Weights (3, 1), noise (1, -2),
    sigma = .5:

        (2 / (2 * .5)) (1, -2) = (2, -4)

    For R = g.theta the estimate is the mean of (g.eps) eps, whatever sigma. Noise is computed pair
    by pair and added up, never kept. Salimans et al. 2017, arXiv:1703.03864.
    """
    total = torch.zeros_like(noise(0))
    # w_2k - w_2k+1 of every pair
    gap_K: Any = weight_M[0::2] - weight_M[1::2]
    gaps: list[float] = gap_K.tolist()
    for k, gap in enumerate(gaps):
        if gap:
            total += gap * noise(k)
    return total / (len(weight_M) * sigma)
