"""Adversarial imitation: what a discriminator learns, (logits, batch) -> one value per row, [N] ->
[N]; and what its verdict pays.

Convention: D = sigmoid(logit) = P(demonstration). Ho and Ermon write D for P(policy), which turns
every sign around. A row's side stands in `target_NT`, the same at every token: above 0 a
demonstration, below 0 a sample, 0 neither; see `sides`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from laurel.core.sample import Batch
from laurel.objective.metrics import Pair
from laurel.objective.unit import by_group


def discriminate(logit_N: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of telling demonstrations from samples, per row, both sides of a group counting
    the same: [N] -> [N].

        |side| [ (1 - eps) softplus(-s f) + eps softplus(s f) ],    s = sign(side), eps =
        label_smoothing

    f = 1: .3132617 for a demonstration of side 1, 1.3132617 for a sample; f = 0: ln 2. The slope at
    a demonstration is -|side| (1 - D), at a sample |side| D. The mean over rows is best at D* =
    pi_E / (pi_E + pi), f* = log pi_E - log pi, where it is ln 2 - JS(pi, pi_E); with eps at ((1 -
    eps) pi_E + eps pi) / (pi_E + pi), so that no logit is beyond log((1 - eps) / eps). Goodfellow
    et al. 2014, arXiv:1406.2661; smoothing, there of one side only: Salimans et al. 2016,
    arXiv:1606.03498.
    """
    side_N = side(logit_N, batch)
    right_N, wrong_N = softplus(-side_N.sign() * logit_N), softplus(side_N.sign() * logit_N)
    return side_N.abs() * ((1 - label_smoothing) * right_N + label_smoothing * wrong_N)


def imitation(
    logit_N: Tensor, *, imitation_reward: Literal["airl", "gail", "log_d"] = "airl"
) -> Tensor:
    """What the policy is paid for a sample with this logit, [N] -> [N]; the discriminator is held
    fixed.

        airl     f = log D - log(1 - D)     at D*, the policy gradient is -grad KL(pi || pi_E)
        gail     -log(1 - D)                -grad 2 JS(pi, pi_E)
        log_d    log D                      -grad 2 KL((pi + pi_E) / 2 || pi_E)

    f = 1: 1, 1.3132617, -.3132617. f = 0: 0, ln 2, -ln 2. All rise with f and differ in whom they
    heed: gail in samples that pass for demonstrations (it flattens where D is near 0), log_d in
    those that do not (it flattens where D is near 1), airl in both alike. Ho and Ermon 2016,
    arXiv:1606.03476; Fu, Luo and Levine 2018, arXiv:1710.11248.
    """
    return {"airl": logit_N, "gail": softplus(logit_N), "log_d": -softplus(-logit_N)}[
        imitation_reward
    ]


def sides(demonstration_N: Tensor, batch: Batch) -> Tensor:
    """+ for a demonstration, - for a sample, as large as makes both sides of a group count the
    same: [N] bool -> [N].

        +- n / (2 n_side),    n rows in the group, n_side of them on the row's own side

    One demonstration and eight samples: 4.5 and eight times -.5625; the sizes have the mean 1,
    whatever G is, so the objective's mean over rows is the mean over groups. A group that has one
    side only tells nothing apart: 0.
    """
    group_N: Any = batch.group_N
    _, where_N = group_N.unique(return_inverse=True)
    shown_N = demonstration_N.to(batch.target_NT.dtype)
    shown_N, drawn_N, is_N = (
        by_group(shown_N, batch)[where_N],
        by_group(1 - shown_N, batch)[where_N],
        demonstration_N,
    )
    signed_N = torch.where(is_N, 1 / shown_N, -1 / drawn_N) * (shown_N + drawn_N) / 2
    return torch.where((shown_N > 0) & (drawn_N > 0), signed_N, 0.0)


def discriminator_metrics(logit_N: Tensor, batch: Batch) -> dict[str, Pair]:
    """(sum, count), off the graph. `discriminator/loss` in nats, unsmoothed;
    `discriminator/accuracy`, a logit of 0 counting half;
    both with the two sides counting the same. `discriminator/demonstrations`,
    `discriminator/samples`: the mean D of each side.
    """
    logit_N = logit_N.detach()
    side_N = side(logit_N, batch)
    right_N = ((side_N * logit_N > 0) + 0.5 * (logit_N == 0)) * side_N.abs()
    found = {"discriminator/loss": (discriminate(logit_N, batch).sum(), side_N.abs().sum())}
    found["discriminator/accuracy"] = (right_N.sum(), side_N.abs().sum())
    for name, of_N in (("demonstrations", side_N > 0), ("samples", side_N < 0)):
        found[f"discriminator/{name}"] = (
            torch.where(of_N, logit_N.sigmoid(), 0.0).sum(),
            of_N.sum(),
        )
    return found


def side(logit_N: Tensor, batch: Batch) -> Tensor:
    """The side of each row, in the precision of the logits: [N]."""
    assert logit_N.shape == (len(batch),) and logit_N.dtype in (torch.float32, torch.float64), (
        logit_N.shape,
        logit_N.dtype,
    )
    return batch.target_NT[:, 0].to(logit_N.dtype)
