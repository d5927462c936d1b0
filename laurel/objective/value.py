"""The critic's objective and its metrics.

The objective takes (values, batch) and returns one value to minimise per token: [N, T] -> [N, T].

The batch holds the returns R and the values V_old that the critic gave when the row was sampled,
see `laurel.core.sample.Values`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from laurel.core.sample import Batch
from laurel.objective.unit import required, same_shape, trained

Pair = tuple[Tensor, Tensor]
"""(sum, count) as scalar tensors, detached."""


def value_loss(
    value_NT: Tensor, batch: Batch, *, vf_coef: float = 0.5, cliprange_value: float = 0.2
) -> Tensor:
    """The critic's squared error, clipped pessimistically, per token: [N, T] -> [N, T].

        vf_coef max( (V - R)^2, (clamp(V, V_old - c, V_old + c) - R)^2 ),    c = cliprange_value

    V_old is the critic's value at sampling time. c is in units of the reward; c = 0: no clipping.
    The default vf_coef = .5 makes it half the squared error. By hand, with V_old = 0, R = 1 and
    c = .2:

        V       value    gradient
        .1      .405     -.9
        .5      .32       0      V has moved towards R by more than c
        -.5     1.125    -1.5    V moved away and may come back

    At V = V_old, where every update starts, the gradient is V - R, that of the plain square.
    Schulman et al. 2017, arXiv:1707.06347 (their code). Whether clipping helps is disputed:
    Andrychowicz et al. 2021, arXiv:2006.05990.
    """
    return vf_coef * torch.maximum(*squares(value_NT, batch, cliprange_value))


def value_metrics(
    value_NT: Tensor, batch: Batch, *, cliprange_value: float = 0.2
) -> dict[str, Pair]:
    """Metrics of the critic over the trained tokens of a step, as (sum, count).

    - `value/mean`, `value/target`, `value/target_square`, `value/error`, `value/error_square`: V,
      R, R^2, R - V and (R - V)^2. `explained_variance` takes their means.
    - `clip_ratio/value`: the share of tokens whose clipped square is the larger, so that they have
      no gradient.

    Sums are float64: a variance is a difference of large numbers.
    """
    value_NT = value_NT.detach()
    plain_NT, clipped_NT = squares(value_NT, batch, cliprange_value)
    return_NT = required(batch.values).return_NT.double()
    error_NT = return_NT - value_NT
    columns = {
        "value/mean": value_NT,
        "value/target": return_NT,
        "value/target_square": return_NT.square(),
        "value/error": error_NT,
        "value/error_square": error_NT.square(),
        "clip_ratio/value": clipped_NT > plain_NT,
    }
    count = batch.loss_mask_NT.sum()
    return {
        name: (torch.where(batch.loss_mask_NT, x_NT.double(), 0.0).sum(), count)
        for name, x_NT in columns.items()
    }


def explained_variance(means: Mapping[str, float]) -> float:
    """The share of the returns' variance that the critic explains, from `value_metrics`' means.

        1 - Var(R - V) / Var(R)

    1 for a perfect critic, 0 for a constant one, below 0 for a harmful one. R = (0, 2),
    V = (.5, 1.5): 1 - .25 / 1 = .75. A constant added to V changes nothing: `value/error` shows
    that. NaN where all R are equal: there is no variance to explain.
    """
    variance = means["value/target_square"] - means["value/target"] ** 2
    unexplained = means["value/error_square"] - means["value/error"] ** 2
    return (
        1 - unexplained / variance
        if variance > 1e-12 * means["value/target_square"]
        else float("nan")
    )


def squares(value_NT: Tensor, batch: Batch, cliprange_value: float) -> tuple[Tensor, Tensor]:
    """The plain and the clipped squared error, 0 where not trained: [N, T] each.

        (V - R)^2    and    (clamp(V, V_old - c, V_old + c) - R)^2,    c = cliprange_value

    c = 0: the first one twice.
    """
    old_NT, return_NT = required(batch.values).value_NT, required(batch.values).return_NT
    same_shape(value_NT, old_NT, return_NT)
    assert cliprange_value >= 0, cliprange_value
    # masked before squaring: 0 times the slope at NaN is NaN
    plain_NT = trained(value_NT - return_NT, batch).square()
    if cliprange_value == 0:
        return plain_NT, plain_NT
    near_NT = value_NT.clamp(old_NT - cliprange_value, old_NT + cliprange_value)
    return plain_NT, trained(near_NT - return_NT, batch).square()
