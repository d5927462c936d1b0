"""KL divergence to the reference: estimators, where each may be used, and the exact one.

With d = log pi(x) - log ref(x) at a sampled token x, the quantity wanted is, per state,

    KL(pi || ref) = E_pi[d]

As a value, and in the reward:

| estimator         | value               | gradient when in the reward           |
|-------------------|---------------------|---------------------------------------|
| k1 = d            | unbiased, any sign  | grad KL of the sequence: use this     |
| k2 = d^2 / 2      | biased, >= 0        | wrong fixed point: refused            |
| k3 = e^-d - 1 + d | unbiased, >= 0      | no upper bound: refused               |
| exact             | the KL itself       | gradient 0 at its own token: refused  |

In the loss:

| estimator | gradient as written     | gradient of `kl_loss`                   |
|-----------|-------------------------|-----------------------------------------|
| k1        | 0: refused              | -                                       |
| k2        | grad KL, on-policy only | times the detached ratio: grad KL       |
| k3        | grad of the forward KL  | times the ratio, in the graph: grad KL  |
| exact     | grad KL                 | as written: grad KL                     |

"In the loss" is a gradient per state with the states held fixed, right on-policy and, thanks to the
ratio, off-policy; only k1 in the reward also accounts for the states that a token leads to.
Schulman 2020, "Approximating KL divergence"; Tang and Munos 2025, arXiv:2506.09477;
Liu et al. 2025, arXiv:2510.01555.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laurel.core.errors import UsageError, nearest
from laurel.core.sample import Batch
from laurel.objective.policy import log_ratio
from laurel.objective.unit import Pair, masked_sum, same_shape, trained


def k1(logp_NT: Tensor, logp_ref_NT: Tensor) -> Tensor:
    """The log-ratio d, pointwise: unbiased for KL(pi || ref) over samples of pi, may be negative.

        d = log pi - log ref

    p = .35137, ref = 1/3: .0527016.
    """
    same_shape(logp_NT, logp_ref_NT)
    return logp_NT - logp_ref_NT


def k2(logp_NT: Tensor, logp_ref_NT: Tensor) -> Tensor:
    """Half the squared log-ratio, pointwise: never negative, biased in value.

        d^2 / 2,    d = log pi - log ref

    p = .35137, ref = 1/3: .0013887.
    """
    return k1(logp_NT, logp_ref_NT).square() / 2


def k3(logp_NT: Tensor, logp_ref_NT: Tensor) -> Tensor:
    """The estimator to report, pointwise: never negative, unbiased, of low variance.

        e^-d - 1 + d,    d = log pi - log ref

    p = .35137, ref = 1/3: .0013647.
    """
    d_NT = k1(logp_NT, logp_ref_NT)
    return torch.expm1(-d_NT) + d_NT


def kl_loss(logp_NT: Tensor, batch: Batch, *, kl_estimator: str = "k3") -> Tensor:
    """A loss term whose expected gradient is that of KL(pi || ref), per token: [N, T] -> [N, T].

        k2:  sg[ratio] d^2 / 2
        k3:  ratio (e^-d - 1 + d)

        ratio = pi / pi_old,    d = log pi - log ref

    sg stops the gradient. Multiply the term by beta. Both have the same gradient in every sample,
    on-policy and off-policy,

        ratio d grad log pi

    and differ in the value shown; at ratio = 1 these are the values of `k2` and `k3`. k3 is
    computed as ref / pi_old + ratio (d - 1), which is the same and does not overflow where pi has
    fallen far below ref. `exact` needs the whole vocabulary: see `exact_kl`.
    """
    check_kl("loss", kl_estimator)
    if kl_estimator == "exact":
        raise ValueError(
            "the exact KL cannot be taken from sampled tokens: exact_kl(logp_NTV, logp_ref_NTV) has"
            " the whole vocabulary"
        )
    same_shape(logp_NT, batch.logp_old_NT, batch.logp_ref_NT)
    ratio_NT, d_NT = log_ratio(logp_NT, batch).exp(), trained(logp_NT - batch.logp_ref_NT, batch)
    if kl_estimator == "k2":
        return ratio_NT.detach() * d_NT.square() / 2
    return trained(batch.logp_ref_NT - batch.logp_old_NT, batch).exp() + ratio_NT * (d_NT - 1)


def exact_kl(logp_NTV: Tensor, logp_ref_NTV: Tensor) -> Tensor:
    """The exact KL(pi || ref) over the last axis, in nats: [..., V] -> [...].

        sum_v pi(v) (log pi(v) - log ref(v))

    Takes whole log-distributions (log_softmax). pi(v) = 0 contributes 0. pi = (.5, .5),
    ref = (.25, .75): .1438410. There is no sampling noise at the state, and the gradient is exact
    there, whichever policy sampled the state.
    """
    assert logp_NTV.shape == logp_ref_NTV.shape, (logp_NTV.shape, logp_ref_NTV.shape)
    return (logp_NTV.exp() * torch.where(logp_NTV > -torch.inf, logp_NTV - logp_ref_NTV, 0.0)).sum(
        -1
    )


def entropy(logp_NTV: Tensor) -> Tensor:
    """The entropy over the last axis, in nats: [..., V] -> [...].

        H = -sum_v pi(v) log pi(v)

    pi(v) = 0 contributes 0; uniform over V: log V.
    """
    return -(logp_NTV.exp() * torch.where(logp_NTV > -torch.inf, logp_NTV, 0.0)).sum(-1)


WRONG = {
    (
        "loss",
        "k1",
    ): "k1 in the loss has an expected gradient of zero: it would do nothing but add noise.",
    (
        "reward",
        "k2",
    ): "k2 in the reward is not the KL: the policy would settle at the wrong distribution.",
    (
        "reward",
        "k3",
    ): "k3 in the reward leaves the objective without an upper bound: the policy would collapse.",
    (
        "reward",
        "exact",
    ): (
        "the exact KL of a state does not depend on the token drawn there: as a reward it has no"
        " gradient at that token."
    ),
}
RIGHT = {"reward": ("k1",), "loss": ("k2", "k3", "exact")}
"""The estimators whose gradient is that of KL(pi || ref), by placement."""


def check_kl(placement: str, estimator: str) -> None:
    """Refuse a kl_placement and kl_estimator that together do not optimise KL(pi || ref).

    The UsageError says why.
    """
    if placement not in RIGHT:
        raise UsageError(
            f"unknown placement `{placement}`.", where="kl_placement", fix=nearest(placement, RIGHT)
        )
    if estimator not in RIGHT[placement]:
        what = WRONG.get((placement, estimator), f"unknown estimator `{estimator}`.")
        raise UsageError(
            what, where="kl_estimator", fix=f"In the {placement}: {', '.join(RIGHT[placement])}."
        )


def kl_metrics(logp_NT: Tensor, batch: Batch) -> dict[str, Pair]:
    """KL(pi || ref) by k3 as (sum, count), per token and per sequence.

    `kl`: the sum over trained tokens and their number. `kl/sequence`: the same sum, and the number
    of rows that have a trained token.
    """
    kl_NT = k3(logp_NT.detach(), batch.logp_ref_NT)
    total, tokens = masked_sum(kl_NT, batch.loss_mask_NT)
    rows = batch.loss_mask_NT.any(1).sum()
    return {"kl": (total, tokens), "kl/sequence": (total, rows)}
