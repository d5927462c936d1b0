"""What to look at while an objective is optimised: (sum, count) pairs of trained tokens, to be
added up and divided once.

Functions of the same arguments as objectives. Nothing here is on the graph; masked tokens are in
neither sum nor count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laurel.core.sample import Batch
from laurel.objective.kl import k3
from laurel.objective.ratio import log_ratio, same_shape, sequence_log_ratio
from laurel.objective.unit import by_group

Pair = tuple[Tensor, Tensor]
"""(sum, count) as scalar tensors, detached."""


def masked_sum(x_NT: Tensor, mask_NT: Tensor) -> Pair:
    """The sum of x where the mask is True, and how many that are. KL 1 at one token and 0 at nine
    others: (1, 10), so .1.
    """
    assert x_NT.shape == mask_NT.shape and mask_NT.dtype == torch.bool, (
        x_NT.shape,
        mask_NT.shape,
        mask_NT.dtype,
    )
    return torch.where(mask_NT, x_NT.detach(), 0).sum(), mask_NT.sum()


def approx_kl(logp_NT: Tensor, batch: Batch) -> Pair:
    """KL(pi_old || pi) from the tokens pi_old sampled: k3 = ratio - 1 - log ratio, never negative.
    0 in the first pass.
    """
    same_shape(logp_NT, batch.logp_old_NT)
    return masked_sum(k3(batch.logp_old_NT, logp_NT.detach()), batch.loss_mask_NT)


def kl_metrics(logp_NT: Tensor, batch: Batch) -> dict[str, Pair]:
    """`kl`: KL(pi || ref) by k3 per token; `kl/sequence`: the same sum per row that has a trained
    token.
    """
    total, tokens = masked_sum(k3(logp_NT.detach(), batch.logp_ref_NT), batch.loss_mask_NT)
    return {"kl": (total, tokens), "kl/sequence": (total, batch.loss_mask_NT.any(1).sum())}


def ratio_metrics(logp_NT: Tensor, batch: Batch) -> dict[str, Pair]:
    """`ratio/mean`: pi / pi_old over the trained tokens. For the largest see `ratio_max`: a maximum
    is not a sum.
    """
    return {"ratio/mean": masked_sum(log_ratio(logp_NT.detach(), batch).exp(), batch.loss_mask_NT)}


def ratio_max(logp_NT: Tensor, batch: Batch) -> Tensor:
    """`ratio/max`: the largest pi / pi_old of a trained token, a scalar; -inf if there is none, so
    that any other is larger.
    """
    ratio_NT = log_ratio(logp_NT.detach(), batch).exp()
    return (
        torch.where(batch.loss_mask_NT, ratio_NT, -torch.inf).flatten().amax()
        if ratio_NT.numel()
        else ratio_NT.new_tensor(-torch.inf)
    )


def clip_fractions(
    logp_NT: Tensor, batch: Batch, *, epsilon: float, epsilon_high: float | None
) -> dict[str, Pair]:
    """The share of trained tokens that `clip` silences.

    `clip_ratio/low`: ratio < 1 - epsilon and A < 0; `clip_ratio/high`: ratio > 1 + epsilon_high and
    A > 0; `clip_ratio/region`: either of them.
    """
    return outside(log_ratio(logp_NT.detach(), batch).exp(), batch, epsilon, epsilon_high)


def sequence_clip_fractions(
    logp_NT: Tensor, batch: Batch, *, epsilon: float, epsilon_high: float | None
) -> dict[str, Pair]:
    """`clip_fractions` for `sequence_ratio`: the share of trained tokens whose row it silences."""
    return outside(sequence_log_ratio(logp_NT.detach(), batch).exp(), batch, epsilon, epsilon_high)


def cap_fractions(logp_NT: Tensor, batch: Batch, *, epsilon_high: float) -> dict[str, Pair]:
    """`clip_ratio/high` for `detached_ratio`: the share of trained tokens whose ratio is above the
    cap and is taken as the cap.
    """
    return {
        "clip_ratio/high": masked_sum(
            log_ratio(logp_NT.detach(), batch).exp() > epsilon_high, batch.loss_mask_NT
        )
    }


def preference_metrics(logp_NT: Tensor, batch: Batch, *, beta: float) -> dict[str, Pair]:
    """What a preference objective does to both sides. rewards: beta (lp - ref) of a row, the reward
    that the policy implies.

    `rewards/chosen`, `rewards/rejected`, `logps/chosen`, `logps/rejected` are means over rows
    graded above and below 0; `rewards/margins` and `rewards/accuracies` over groups that have both
    (a margin within 1e-5 of 0 counts half, as at the start).
    """
    grade_N, lp_N = (
        batch.weight_NT[:, 0],
        torch.where(batch.loss_mask_NT, logp_NT.detach(), 0).sum(1),
    )
    reward_N = beta * (lp_N - torch.where(batch.loss_mask_NT, batch.logp_ref_NT, 0).sum(1))
    found: dict[str, Pair] = {}
    for side, of_N in (("chosen", grade_N > 0), ("rejected", grade_N < 0)):
        found[f"rewards/{side}"] = (reward_N[of_N].sum(), of_N.sum())
        found[f"logps/{side}"] = (lp_N[of_N].sum(), of_N.sum())
    both_P = (by_group((grade_N > 0).double(), batch) > 0) & (
        by_group((grade_N < 0).double(), batch) > 0
    )
    margin_P = by_group(grade_N.sign() * reward_N, batch)[both_P]
    right_P = (margin_P > 1e-5).double() + (margin_P.abs() <= 1e-5).double() / 2
    return found | {
        "rewards/margins": (margin_P.sum(), both_P.sum()),
        "rewards/accuracies": (right_P.sum(), both_P.sum()),
    }


def outside(
    ratio_NT: Tensor, batch: Batch, epsilon: float, epsilon_high: float | None
) -> dict[str, Pair]:
    """Shares of ratios beyond each bound with the sign of A that the bound concerns."""
    low_NT = (ratio_NT < 1 - epsilon) & (batch.weight_NT < 0)
    high_NT = (ratio_NT > 1 + (epsilon if epsilon_high is None else epsilon_high)) & (
        batch.weight_NT > 0
    )
    shares = {
        "clip_ratio/low": low_NT,
        "clip_ratio/high": high_NT,
        "clip_ratio/region": low_NT | high_NT,
    }
    return {name: masked_sum(where_NT, batch.loss_mask_NT) for name, where_NT in shares.items()}
