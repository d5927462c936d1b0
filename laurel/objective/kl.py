"""KL divergence to the reference: estimators, where each may be used, and the exact one.

With d = log pi(x) - log ref(x) at a sampled token, and the true thing KL(pi || ref) = E_pi[d] per
state:

    | estimator         | value               | in the reward                 | in the loss, as
    written | in the loss, ours           |
    |-------------------|---------------------|-------------------------------|-------------------------|-----------------------------|
    | k1 = d            | unbiased, any sign  | grad KL of the sequence: use  | gradient 0: refused
    | -                           |
    | k2 = d^2 / 2      | biased, >= 0        | wrong fixed point: refused    | grad KL, on-policy
    only | ratio detached: grad KL     |
    | k3 = e^-d - 1 + d | unbiased, >= 0      | no upper bound: refused       | grad of the forward
    KL  | ratio in the graph: grad KL |
    | exact             | the KL itself       | gradient 0 at its own token   | grad KL
    | as written: grad KL         |

"In the loss" is a gradient per state with the states held fixed, right on-policy and, thanks to the
ratio, off-policy; only k1 in the reward also accounts for the states that a token leads to.
Schulman 2020, "Approximating KL divergence"; Tang and Munos 2025, arXiv:2506.09477; Liu et al.
2025, arXiv:2510.01555.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laurel.core.errors import UsageError, nearest
from laurel.core.sample import Batch
from laurel.objective.policy import log_ratio
from laurel.objective.unit import Pair, masked_sum, same_shape, trained


def k1(logp_NT: Tensor, logp_ref_NT: Tensor) -> Tensor:
    """d = log pi - log ref, pointwise. Unbiased for KL(pi || ref) over samples of pi; may be
    negative. p = .35137, ref = 1/3: .0527016.
    """
    same_shape(logp_NT, logp_ref_NT)
    return logp_NT - logp_ref_NT


def k2(logp_NT: Tensor, logp_ref_NT: Tensor) -> Tensor:
    """d^2 / 2, pointwise, d = log pi - log ref. Never negative; biased in value. p = .35137, ref =
    1/3: .0013887.
    """
    return k1(logp_NT, logp_ref_NT).square() / 2


def k3(logp_NT: Tensor, logp_ref_NT: Tensor) -> Tensor:
    """e^-d - 1 + d, pointwise, d = log pi - log ref. Never negative, unbiased, low variance: the
    one to look at.

    p = .35137, ref = 1/3: .0013647.
    """
    d_NT = k1(logp_NT, logp_ref_NT)
    return torch.expm1(-d_NT) + d_NT


def kl_loss(logp_NT: Tensor, batch: Batch, *, kl_estimator: str = "k3") -> Tensor:
    """A term of the loss whose expected gradient is that of KL(pi || ref), per token: [N, T] -> [N,
    T]. Multiply it by beta.

        k2:  sg[ratio] d^2 / 2          k3:  ratio (e^-d - 1 + d)          ratio = pi / pi_old,  d =
        log pi - log ref

    Both have the same gradient in every sample, ratio * d * grad log pi, on-policy and off-policy;
    they differ in the value shown. k3's is written ref / pi_old + ratio (d - 1), which is the same
    and does not overflow where pi has fallen far below ref. `exact` needs the whole vocabulary: see
    `exact_kl`.
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
    """KL(pi || ref) = sum_v pi(v) (log pi(v) - log ref(v)) over the last axis, in nats: [..., V] ->
    [...].

    Takes whole log-distributions (log_softmax). pi(v) = 0 contributes 0. pi = (.5, .5), ref = (.25,
    .75): .1438410. No sampling noise at the state; its gradient is exact there, whoever sampled the
    state.
    """
    assert logp_NTV.shape == logp_ref_NTV.shape, (logp_NTV.shape, logp_ref_NTV.shape)
    return (logp_NTV.exp() * torch.where(logp_NTV > -torch.inf, logp_NTV - logp_ref_NTV, 0.0)).sum(
        -1
    )


def entropy(logp_NTV: Tensor) -> Tensor:
    """H = -sum_v pi(v) log pi(v) over the last axis, in nats: [..., V] -> [...]. pi(v) = 0
    contributes 0; uniform over V: log V.
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
    """A combination of kl_placement and kl_estimator that does not optimise KL(pi || ref) is a
    UsageError that says why.
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
    """`kl`: KL(pi || ref) by k3 per token; `kl/sequence`: the same sum per row that has a trained
    token.
    """
    kl_NT = k3(logp_NT.detach(), batch.logp_ref_NT)
    total, tokens = masked_sum(kl_NT, batch.loss_mask_NT)
    rows = batch.loss_mask_NT.any(1).sum()
    return {"kl": (total, tokens), "kl/sequence": (total, rows)}
