"""Adaptive KL coefficient, running moments of the score, and the missing-EOS penalty."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, sqrt

import torch
from torch import Tensor

from laurel.core.errors import UsageError


def next_beta(beta: float, kl: float, *, target: float, horizon: float, n: int) -> float:
    """The KL coefficient after a step of n samples that measured `kl`.

        beta (1 + clip(kl / target - 1, -.2, .2) n / horizon)

    Proportional control of the coefficient's logarithm. beta = .1, target = 6, horizon = 10000,
    n = 100:

        kl = 12    .1002
        kl = 6     .1
        kl = 0     .0998

    `kl` and `target` are in nats of a whole completion. The sampled KL may be negative; NaN
    (nothing was measured) leaves beta as it is. A beta of 0 stays 0. Ziegler et al. 2019,
    arXiv:1909.08593; target 6 and horizon 10000 are the customary ones of the summarisation work.
    """
    if not (target > 0 and horizon > 0):
        raise UsageError(
            f"a controller needs a target and a horizon above 0, not {target:g} and {horizon:g}.",
            where="kl_target",
        )
    if n >= 5 * horizon:
        raise UsageError(
            f"steps of {n} samples with a horizon of {horizon:g} could turn the coefficient"
            " negative.",
            where="kl_horizon",
            fix=f"Use a horizon of {n} or more.",
        )
    if isnan(kl):
        return beta
    return beta * (1 + min(max(kl / target - 1, -0.2), 0.2) * n / horizon)


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and spread of every score so far, in three numbers that a checkpoint holds.

    `square`: the sum of (x - mean)^2.
    """

    count: int = 0
    mean: float = 0.0
    square: float = 0.0

    @property
    def std(self) -> float:
        """The sample standard deviation (ddof = 1); 0 before the second score."""
        return sqrt(self.square / (self.count - 1)) if self.count > 1 else 0.0

    def update(self, reward_PG: Tensor) -> Moments:
        """The moments with one more batch of scores, of any shape; NaN is absent.

            d       = mean_m - mean
            mean'   = mean + d m / (n + m)
            square' = square + square_m + d^2 n m / (n + m)

        n scores before, m in the batch, with mean_m and square_m of their own. No batch is kept, so
        none is too large. (1, 2) and then (6): count 3, mean 3, std 2.6457513, as of (1, 2, 6) at
        once. Welford 1962; Chan, Golub and LeVeque 1983.
        """
        x_M = reward_PG[~reward_PG.isnan()].double()
        n, m = self.count, x_M.numel()
        if m == 0:
            return self
        mean = float(x_M.mean())
        apart = mean - self.mean
        square = self.square + float((x_M - mean).square().sum()) + apart**2 * n * m / (n + m)
        return Moments(n + m, self.mean + apart * m / (n + m), square)

    def normalise(self, reward_PG: Tensor, clip: float = 0.0, *, shift_mean: bool = True) -> Tensor:
        """The score normalised by the historical mean and std, of the same shape.

            clamp((r - mean) / std, -clip, clip)

        clip = 0: no bounds. NaN stays NaN. Moments of (1, 2, 6), r = 6: 3 / 2.6457513 = 1.1338934,
        with clip = .8: .8. shift_mean = False: r / std, scaling alone. Without a spread yet
        (one score, or all equal) the scale stays as it is. Update first, then normalise: so the
        first batch has a history. PPO-max, Zheng et al. 2023, arXiv:2307.04964
        (clips of .3 and .8 compared).
        """
        scale = self.std if self.std > 1e-9 * abs(self.mean) else 1.0
        z_PG = (reward_PG - (self.mean if shift_mean else 0.0)) / scale
        return z_PG.clamp(-clip, clip) if clip > 0 else z_PG


def missing_eos(
    reward_N: Tensor, truncated_N: Tensor, *, missing_eos_penalty: float = 1.0
) -> Tensor:
    """The reward minus a penalty where the completion was truncated: [N] -> [N].

        r - missing_eos_penalty    truncated
        r                          finished

    r = (1, 1), the second truncated, penalty 1: (1, 0). NaN stays NaN; penalty 0 changes nothing.
    Use it after normalising and clipping the score, so that no clip removes it; and before
    `place_reward`, which puts the sum on the row's last token.
    """
    assert reward_N.shape == truncated_N.shape and truncated_N.dtype == torch.bool, (
        reward_N.shape,
        truncated_N.shape,
        truncated_N.dtype,
    )
    if missing_eos_penalty < 0:
        raise UsageError(
            "a penalty below 0 would reward being cut off.",
            where="missing_eos_penalty",
            fix="Use 0 or more.",
        )
    return torch.where(truncated_N, reward_N - missing_eos_penalty, reward_N)
