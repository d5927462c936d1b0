"""Policy objectives and their metrics, functions of log pi of the sampled tokens and the batch.

An objective gives one value to minimise per token: [N, T] -> [N, T]. A metric gives the sum of a
number over trained tokens and their count, without a gradient.

The batch holds the weights A, the log-probabilities pi_old of the policy that sampled, and the loss
mask. Tokens that are not trained on get the value 0 and no gradient. What the values are divided by
is decided in `laurel.objective.unit`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laurel.core.errors import UsageError
from laurel.core.sample import Batch
from laurel.objective.constraint import constrained
from laurel.objective.unit import Pair, masked_sum, same_shape, trained


def likelihood(logp_NT: Tensor, batch: Batch) -> Tensor:
    """Weighted negative log-likelihood, per token: [N, T] -> [N, T].

        -A log pi(x_t)

    A = 1 is maximum likelihood (SFT). A = r - b is the score-function gradient E[A grad log pi],
    right for samples of the current policy. p = .5, A = 2: 1.3862944. Williams 1992.
    """
    same_shape(logp_NT, batch.weight_NT)
    return -batch.weight_NT * trained(logp_NT, batch)


def check_dual(name: str, *, delta: float) -> None:
    """A dual clip bounds negative weights at delta > 1; 0 turns it off."""
    if 0 < delta <= 1:
        raise UsageError("dual clip needs delta > 1 (or 0: off).", where="delta")


@constrained(check_dual)
def clip(
    logp_NT: Tensor,
    batch: Batch,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float = 0.0,
) -> Tensor:
    """The PPO surrogate with two bounds and an optional dual clip, per token: [N, T] -> [N, T].

        -min( ratio A, clamp(ratio, 1 - epsilon, 1 + epsilon_high) A ),    ratio = pi / pi_old

    and, where A < 0, at most -delta A (delta > 1; 0: off).

    epsilon_high None: equal to epsilon, as in PPO and GRPO; larger: DAPO's clip-higher. By hand,
    with both bounds at .2 and delta at 3 in the last row:

        ratio   A    value
        1.5     1    -1.2
        1.5    -1     1.5
        .5      1    -.5
        .5     -1     .8
        10     -1     3        delta = 3

    At ratio = 1 the gradient is that of `likelihood`; it is zero above the upper bound for A > 0
    and below the lower one for A < 0, and only there.

    Schulman et al. 2017, arXiv:1707.06347; clip-higher: Yu et al. 2025, arXiv:2503.14476; dual
    clip: Ye et al. 2019, arXiv:1912.09729.
    """
    same_shape(logp_NT, batch.weight_NT)
    if 0 < delta <= 1:
        raise UsageError(
            f"a dual clip at {delta:g} silences every negative weight.",
            where="delta",
            fix="Use a bound above 1, such as 3, or 0.",
        )
    gain_NT = surrogate(
        log_ratio(logp_NT, batch).exp(),
        batch.weight_NT,
        epsilon,
        epsilon if epsilon_high is None else epsilon_high,
    )
    if delta > 0:
        gain_NT = torch.where(
            batch.weight_NT < 0, torch.maximum(gain_NT, delta * batch.weight_NT), gain_NT
        )
    return -trained(gain_NT, batch)


def check_sequence(name: str, *, loss_aggregation: str) -> None:
    """One value per sequence: its mean over tokens is itself."""
    if loss_aggregation != "seq_mean_token_mean":
        raise UsageError(
            "one ratio per sequence is one value per sequence.",
            where="loss_aggregation",
            fix="Use seq_mean_token_mean.",
        )


@constrained(check_sequence)
def sequence_ratio(
    logp_NT: Tensor, batch: Batch, *, epsilon: float = 3e-4, epsilon_high: float | None = 4e-4
) -> Tensor:
    """GSPO: the clipped surrogate with one ratio for the whole row: [N, T] -> [N, T].

        -min( s A, clamp(s, 1 - epsilon, 1 + epsilon_high) A )

        s = exp( mean_t (log pi(x_t) - log pi_old(x_t)) )

    s is the geometric mean of the row's token ratios. Log-ratios [.1, .2, -.3, .4]: s = 1.1051709.

    The row's value stands at each of its trained tokens, so `seq_mean_token_mean` is exactly the
    paper's mean over rows. An unclipped row has the gradient

        s A / |y| sum_t grad log pi(x_t)

    A geometric mean hardly moves, hence bounds a thousand times tighter than those of `clip`. One
    token per row recovers `clip`. Zheng et al. 2025, arXiv:2507.18071.
    """
    same_shape(logp_NT, batch.weight_NT)
    ratio_NT = sequence_log_ratio(logp_NT, batch).exp()
    return -trained(
        surrogate(
            ratio_NT, batch.weight_NT, epsilon, epsilon if epsilon_high is None else epsilon_high
        ),
        batch,
    )


def check_cap(name: str, *, epsilon_high: float) -> None:
    """The cap is on the ratio itself, not on its distance from 1."""
    if epsilon_high < 1:
        raise UsageError(
            "here epsilon_high caps the ratio itself: below 1 it would shrink every token's"
            " weight.",
            where="epsilon_high",
        )


@constrained(check_cap)
def detached_ratio(logp_NT: Tensor, batch: Batch, *, epsilon_high: float = 5.0) -> Tensor:
    """CISPO: likelihood weighted by the capped importance ratio, per token: [N, T] -> [N, T].

        -sg[ min(ratio, epsilon_high) ] A log pi(x_t)

    sg stops the gradient: the ratio is a weight only. The cap is on the ratio itself, not on 1 plus
    something; a cap below 1 would only shrink every weight, and is refused. No token is ever
    dropped.

    By hand, epsilon_high 5: ratio 2, log pi = -1, A = 1: 2; ratio 9: 5. At ratio = 1 it is
    `likelihood`. MiniMax-M1, arXiv:2506.13585; cap 5: ScaleRL, arXiv:2510.13786.
    """
    same_shape(logp_NT, batch.weight_NT)
    if epsilon_high < 1:
        raise UsageError(
            f"the ratio is capped at epsilon_high itself: {epsilon_high:g} would shrink every"
            " weight.",
            where="epsilon_high",
            fix="Use 5.",
        )
    ratio_NT = log_ratio(logp_NT, batch).exp().clamp(max=epsilon_high).detach()
    return -ratio_NT * batch.weight_NT * trained(logp_NT, batch)


def surrogate(ratio_NT: Tensor, weight_NT: Tensor, low: float, high: float) -> Tensor:
    """The smaller of the plain and the clipped gain, to be maximised: [N, T] -> [N, T].

        min( ratio A, clamp(ratio, 1 - low, 1 + high) A )

    Both bounds .2: ratio 1.5 and A = 1 give 1.2; ratio 1.5 and A = -1 give -1.5.
    """
    return torch.minimum(ratio_NT * weight_NT, ratio_NT.clamp(1 - low, 1 + high) * weight_NT)


def log_ratio(logp_NT: Tensor, batch: Batch) -> Tensor:
    """log pi(x_t) - log pi_old(x_t) of every trained token, 0 elsewhere: [N, T] -> [N, T]."""
    same_shape(logp_NT, batch.logp_old_NT)
    return trained(logp_NT - batch.logp_old_NT, batch)


def sequence_log_ratio(logp_NT: Tensor, batch: Batch) -> Tensor:
    """The mean of `log_ratio` over each row's trained tokens, at each of them: [N, T] -> [N, T].

    [.1, .2, -.3, .4]: .1 at every token.
    """
    length_N1 = batch.loss_mask_NT.sum(1, keepdim=True).clamp(min=1)
    mean_N1 = log_ratio(logp_NT, batch).sum(1, keepdim=True) / length_N1
    return trained(mean_N1.expand_as(logp_NT), batch)


def approx_kl(logp_NT: Tensor, batch: Batch) -> Pair:
    """KL(pi_old || pi) from the tokens that pi_old sampled, as (sum, count).

        k3 = ratio - 1 - log ratio

    `laurel.objective.kl.k3` of the two. Never negative; 0 in the first pass.
    """
    log_ratio_NT = log_ratio(logp_NT.detach(), batch)
    kl_NT = torch.expm1(log_ratio_NT) - log_ratio_NT
    return masked_sum(kl_NT, batch.loss_mask_NT)


def ratio_metrics(logp_NT: Tensor, batch: Batch) -> dict[str, Pair]:
    """`ratio/mean`: pi / pi_old over the trained tokens, as (sum, count).

    For the largest ratio see `ratio_max`: a maximum is not a sum.
    """
    ratio_NT = log_ratio(logp_NT.detach(), batch).exp()
    return {"ratio/mean": masked_sum(ratio_NT, batch.loss_mask_NT)}


def ratio_max(logp_NT: Tensor, batch: Batch) -> Tensor:
    """`ratio/max`: the largest pi / pi_old of a trained token, a scalar.

    -inf if there is no trained token, so that any other maximum is larger.
    """
    ratio_NT = log_ratio(logp_NT.detach(), batch).exp()
    if not ratio_NT.numel():
        return ratio_NT.new_tensor(-torch.inf)
    trained_NT = torch.where(batch.loss_mask_NT, ratio_NT, -torch.inf)
    return trained_NT.flatten().amax()


def clip_fractions(
    logp_NT: Tensor,
    batch: Batch,
    *,
    epsilon: float,
    epsilon_high: float | None,
) -> dict[str, Pair]:
    """The share of trained tokens whose gradient `clip` removes, as (sum, count).

    - `clip_ratio/low`: ratio < 1 - epsilon and A < 0.
    - `clip_ratio/high`: ratio > 1 + epsilon_high and A > 0.
    - `clip_ratio/region`: either of them.
    """
    ratio_NT = log_ratio(logp_NT.detach(), batch).exp()
    return clip_shares(ratio_NT, batch, epsilon, epsilon_high)


def sequence_clip_fractions(
    logp_NT: Tensor,
    batch: Batch,
    *,
    epsilon: float,
    epsilon_high: float | None,
) -> dict[str, Pair]:
    """`clip_fractions` of `sequence_ratio`: the share of trained tokens in clipped rows."""
    ratio_NT = sequence_log_ratio(logp_NT.detach(), batch).exp()
    return clip_shares(ratio_NT, batch, epsilon, epsilon_high)


def cap_fractions(logp_NT: Tensor, batch: Batch, *, epsilon_high: float) -> dict[str, Pair]:
    """`clip_ratio/high` of `detached_ratio`: the share of trained tokens that are capped.

    A token is capped where its ratio is above epsilon_high.
    """
    ratio_NT = log_ratio(logp_NT.detach(), batch).exp()
    capped_NT = ratio_NT > epsilon_high
    return {"clip_ratio/high": masked_sum(capped_NT, batch.loss_mask_NT)}


def clip_shares(
    ratio_NT: Tensor,
    batch: Batch,
    epsilon: float,
    epsilon_high: float | None,
) -> dict[str, Pair]:
    """Shares of ratios beyond each bound with the sign of A that the bound concerns."""
    upper = epsilon if epsilon_high is None else epsilon_high
    low_NT = (ratio_NT < 1 - epsilon) & (batch.weight_NT < 0)
    high_NT = (ratio_NT > 1 + upper) & (batch.weight_NT > 0)
    shares = {
        "clip_ratio/low": low_NT,
        "clip_ratio/high": high_NT,
        "clip_ratio/region": low_NT | high_NT,
    }
    return {name: masked_sum(where_NT, batch.loss_mask_NT) for name, where_NT in shares.items()}
