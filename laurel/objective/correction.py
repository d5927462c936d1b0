"""Importance weights of samples that were drawn with other log-probabilities than the trainer's.

An engine computes the same weights with other kernels, or in another precision: what it draws
follows mu, and what is trained is pi. Of the tokens that mu drew,

    rho_t = pi(x_t) / mu(x_t)    of a token
    rho   = prod_t rho_t         of a row

A function here gives what each token's weight A is multiplied by: numbers without a gradient,
exactly 1 where mu = pi. pi is the trainer's policy before the update, not the one that moves in
it: the ratio of the objectives, pi / pi_old, begins at 1 all the same, and there is one cap for
each of the two.

| weight            | its mean over samples of mu, of A rho grad log pi                     |
|-------------------|-----------------------------------------------------------------------|
| none              | grad J(pi) where mu = pi only                                         |
| `token_truncate`  | grad at pi of L_mu(pi) = sum_s d_mu(s) sum_a pi(a|s) Q_mu(s,a), if C  |
|                   | is above all ratios; else with min(pi, C mu) in the place of pi       |
| `sequence_mask`   | grad J(pi), if C is above all ratios; else its part that the rows     |
|                   | with rho <= C add                                                     |

s is the tokens so far, a the next one; d_mu(s) is how often mu comes to s, and Q_mu(s,a) is what
it goes on to earn. So a weight per token corrects the choice of each token, and leaves what came
before it and what follows to mu: right to first order in the gap, exact for rows of one token, and
of a variance that does not grow with the length of a row, as that of a whole row's ratio does.
An objective with one ratio for a whole row (`sequence_ratio`) takes a row's mean of its tokens'
weights.

`laurel verify` holds each of these against a world where all samples are listed.

Ionides 2008, "Truncated importance sampling", JCGS 17(2); Yao et al. 2025, "Your efficient RL
framework secretly brings you off-policy RL training"; Liu et al. 2025, "When speed kills
stability: demystifying RL collapse from the training-inference mismatch".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from laurel.objective.unit import same_shape


def token_truncate(log_ratio_NT: Tensor, *, cap: float) -> Tensor:
    """What every token's weight is multiplied by, truncated from above: [N, T] -> [N, T].

        min(rho_t, C),    rho_t = pi(x_t) / mu(x_t)

    log_ratio_NT: log pi - log mu, 0 where the sampler drew nothing. C = 3: (pi, mu) = (.5, .1)
    gives 3, (.2, .4) gives .5, (.3, .3) gives 1. A small ratio stays: it is a small weight.
    """
    same_shape(log_ratio_NT)
    return log_ratio_NT.exp().clamp(max=cap).detach()


def sequence_mask(log_ratio_NT: Tensor, *, cap: float) -> Tensor:
    """What every token's weight is multiplied by, one number a row: [N, T] -> [N, T].

        rho if rho <= C else 0,    rho = prod_t pi(x_t) / mu(x_t)

    log_ratio_NT: as above. C = 3: a row of ratios (1.5, 1.5) gives 2.25 at each of its places, one
    of (2, 2) gives 0.
    """
    same_shape(log_ratio_NT)
    ratio_N1 = log_ratio_NT.sum(1, keepdim=True).exp()
    kept_N1 = torch.where(ratio_N1 <= cap, ratio_N1, 0.0)
    return kept_N1.expand_as(log_ratio_NT).detach()


CORRECTIONS: dict[str, Callable[..., Tensor]] = {
    "token_truncate": token_truncate,
    "sequence_mask": sequence_mask,
}
"""The values of `importance_sampling_correction` that correct."""
