"""Adversarial imitation: the discriminator's loss and the reward it gives the policy.

An objective takes (logits, batch) and returns one value per row: [N] -> [N].

Convention: D = sigmoid(logit) = P(demonstration). Ho and Ermon write D for P(policy), which turns
every sign around. Which rows are demonstrations stands in `batch.demonstrations`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from laurel.core.sample import Batch, Demonstrations
from laurel.objective.unit import Pair, by_group, group_places, required


def discriminate(logit_N: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of telling demonstrations from samples, per row: [N] -> [N].

        w [ (1 - eps) softplus(-s f) + eps softplus(s f) ]

    f is the logit; s = 1 at a demonstration, -1 at a sample; w its weight, such that both kinds of
    a group count the same; eps = label_smoothing. By hand, w = 1, eps = 0:

        f = 1    .3132617 for a demonstration, 1.3132617 for a sample
        f = 0    ln 2 for both

    The slope at a demonstration is -w (1 - D), at a sample w D. The mean over rows is least, and
    equal to ln 2 - JS(pi, pi_E), at

        D* = pi_E / (pi_E + pi),    f* = log pi_E - log pi

    With eps it is least at

        D = ((1 - eps) pi_E + eps pi) / (pi_E + pi)

    so that no logit is beyond log((1 - eps) / eps).

    Goodfellow et al. 2014, arXiv:1406.2661; smoothing, there of one side only:
    Salimans et al. 2016, arXiv:1606.03498.
    """
    sign_N, weight_N = signs(logit_N, batch)
    right_N = softplus(-sign_N * logit_N)
    wrong_N = softplus(sign_N * logit_N)
    smoothed_N = (1 - label_smoothing) * right_N + label_smoothing * wrong_N
    return weight_N * smoothed_N


def imitation(
    logit_N: Tensor, *, imitation_reward: Literal["airl", "gail", "log_d"] = "airl"
) -> Tensor:
    """The policy's reward for a sample with this logit, the discriminator fixed: [N] -> [N].

        airl     f = log D - log(1 - D)     at D*, the policy gradient is -grad KL(pi || pi_E)
        gail     -log(1 - D)                -grad 2 JS(pi, pi_E)
        log_d    log D                      -grad 2 KL((pi + pi_E) / 2 || pi_E)

    By hand: f = 1 gives 1, 1.3132617 and -.3132617; f = 0 gives 0, ln 2 and -ln 2.

    All three rise with f. They differ in where the slope is large: gail at samples that pass for
    demonstrations (it is flat where D is near 0), log_d at those that do not
    (it is flat where D is near 1), airl the same everywhere. Ho and Ermon 2016, arXiv:1606.03476;
    Fu, Luo and Levine 2018, arXiv:1710.11248.
    """
    return {"airl": logit_N, "gail": softplus(logit_N), "log_d": -softplus(-logit_N)}[
        imitation_reward
    ]


def balanced_demonstrations(demonstration_N: Tensor, batch: Batch) -> Demonstrations:
    """Demonstrations and samples, weighted so that both count the same in every group.

        n / (2 n_kind),    n rows in the group, n_kind of the row's own kind

    One demonstration and eight samples: 4.5 and eight times .5625. The weights have the mean 1,
    whatever G is, so the objective's mean over rows is the mean over groups. A group of one kind
    has nothing to tell apart: its weights are 0. demonstration_N: [N] bool.
    """
    _, group_N = group_places(batch)
    shown_N = demonstration_N.to(batch.weight_NT.dtype)
    # by_group counts per group; group_N takes each group's count back to its rows
    shown_N, drawn_N = by_group(shown_N, batch)[group_N], by_group(1 - shown_N, batch)[group_N]
    share_N = torch.where(demonstration_N, 1 / shown_N, 1 / drawn_N)
    weight_N = share_N * (shown_N + drawn_N) / 2
    both_N = (shown_N > 0) & (drawn_N > 0)
    weight_N = torch.where(both_N, weight_N, 0.0)
    return Demonstrations(demonstration_N, weight_N)


def discriminator_metrics(logit_N: Tensor, batch: Batch) -> dict[str, Pair]:
    """Metrics of the discriminator as (sum, count), without a gradient.

    - `discriminator/loss`: the cross-entropy in nats, unsmoothed; both kinds count the same.
    - `discriminator/accuracy`: likewise; a logit of 0 counts half.
    - `discriminator/demonstrations`, `discriminator/samples`: the mean D of each kind.
    """
    logit_N = logit_N.detach()
    sign_N, weight_N = signs(logit_N, batch)
    right_N = ((sign_N * logit_N > 0) + 0.5 * (logit_N == 0)) * weight_N
    found = {
        "discriminator/loss": (discriminate(logit_N, batch).sum(), weight_N.sum()),
        "discriminator/accuracy": (right_N.sum(), weight_N.sum()),
    }
    for name, sign in (("demonstrations", 1), ("samples", -1)):
        of_N = (sign_N == sign) & (weight_N > 0)
        chance_N = torch.where(of_N, logit_N.sigmoid(), 0.0)
        found[f"discriminator/{name}"] = (chance_N.sum(), of_N.sum())
    return found


def signs(logit_N: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The sign and the weight of each row, in the precision of the logits: [N] each.

    The sign is +1 at a demonstration and -1 at a sample.
    """
    assert logit_N.shape == (len(batch),), logit_N.shape
    assert logit_N.dtype in (torch.float32, torch.float64), logit_N.dtype
    found = required(batch.demonstrations)
    one_N = torch.ones_like(logit_N)
    sign_N = torch.where(found.demonstration_N, one_N, -one_N)
    return sign_N, found.weight_N.to(logit_N.dtype)
