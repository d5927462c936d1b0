"""What one unit of the loss is, and the one place that divides.

    loss = sum over trained tokens of weight * value / total

total is the number of units of the whole optimiser step. It is counted over all micro-batches and
processes before the batch is split, so no split changes the loss or its gradient.

Two rows with per-token values [1, 1] and [2, 2, 2, 2], and a limit of 8 tokens, give

| aggregation            | loss                     | meaning                                  |
|------------------------|--------------------------|------------------------------------------|
| `token_mean`           | (2 + 8) / 6 = 1.6666667  | every token counts the same              |
| `seq_mean_token_mean`  | (2/2 + 8/4) / 2 = 1.5    | every row counts the same                |
| `seq_mean_token_sum`   | (2 + 8) / 2 = 5          | mean over rows of sums, no length bias   |
| `token_sum_over_const` | (2 + 8) / (2 * 8) = .625 | the same over a constant length          |

- `token_mean`: long rows weigh more (DAPO).
- `seq_mean_token_mean`: the tokens of a row share its weight (GRPO).
- `seq_mean_token_sum`: the gradient of a mean over rows (REINFORCE, RLOO).
- `token_sum_over_const`: Dr. GRPO.

Where a value belongs to a comparison of rows, not to a token, `comparison_mean` is the mean over
comparisons (DPO, RRHF). A row without a trained token counts nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from laurel.core.errors import UsageError
from laurel.core.sample import Batch


@dataclass(frozen=True, slots=True)
class Unit:
    """What each value is multiplied by, and the number of units.

    weight: [N, T] as the values, or [P] for comparisons. count: an int64 scalar.
    """

    weight: Tensor
    count: Tensor


def token_mean(batch: Batch) -> Unit:
    """A unit is a token: the mean over all trained tokens of the step.

    DAPO, Yu et al. 2025, arXiv:2503.14476; SFT.
    """
    return Unit(batch.loss_mask_NT.to(batch.weight_NT.dtype), batch.loss_mask_NT.sum())


def seq_mean_token_mean(batch: Batch) -> Unit:
    """A unit is a row: the mean over rows of each row's token mean.

    A token of a long row counts less. GRPO, arXiv:2402.03300.
    """
    length_N1 = batch.loss_mask_NT.sum(1, keepdim=True).clamp(min=1)
    return Unit(batch.loss_mask_NT.to(batch.weight_NT.dtype) / length_N1, rows(batch))


def seq_mean_token_sum(batch: Batch) -> Unit:
    """A unit is a row: the mean over rows of each row's token sum.

    As in grad E[R] = E[A sum_t grad log pi_t]. REINFORCE, RLOO.
    """
    return Unit(batch.loss_mask_NT.to(batch.weight_NT.dtype), rows(batch))


def token_sum_over_const(batch: Batch, *, max_completion_length: int) -> Unit:
    """A unit is a token that a row could have had: rows times max_completion_length of them.

    The sum over tokens is divided by a constant for each row. Dr. GRPO, arXiv:2503.20783.
    """
    if not max_completion_length:
        raise UsageError(
            "`token_sum_over_const` divides by max_completion_length, and there is none.",
            where="loss_aggregation",
        )
    return Unit(batch.loss_mask_NT.to(batch.weight_NT.dtype), rows(batch) * max_completion_length)


def comparison_mean(batch: Batch) -> Unit:
    """A unit is a comparison: the rows of one group.

    A group without a row that is compared and has a trained token counts nowhere.
    """
    compared_N = required(batch.comparison).compared_N & batch.loss_mask_NT.any(1)
    compares_P = by_group(compared_N.to(batch.weight_NT.dtype), batch) > 0
    return Unit(compares_P.to(batch.weight_NT.dtype), compares_P.sum())


def by_group(x_N: Tensor, batch: Batch) -> Tensor:
    """The sum of x over the rows of each group, groups in ascending order: [N] -> [P].

    x = (1, 2, 4), groups (7, 3, 7): (2, 5).
    """
    count, group_N = group_places(batch)
    zeros_P = torch.zeros(count, dtype=x_N.dtype, device=x_N.device)
    return zeros_P.index_add(0, group_N, x_N)


def group_places(batch: Batch) -> tuple[int, Tensor]:
    """The number of groups, and the index of each row's group in ascending order: [N].

    Groups (7, 3, 7): 2 and (1, 0, 1).
    """
    numbers_N: Any = batch.group_N
    groups, group_N = numbers_N.unique(return_inverse=True)
    return len(groups), group_N


def rows(batch: Batch) -> Tensor:
    """The number of rows with a trained token."""
    return batch.loss_mask_NT.any(1).sum()


def row_mean(batch: Batch) -> Unit:
    """A unit is a row, whatever is trained on in it.

    For values [N] of whole rows, demonstrations among them.
    """
    return Unit(
        torch.ones_like(batch.weight_NT[:, 0]),
        torch.tensor(len(batch), device=batch.weight_NT.device),
    )


AGGREGATIONS: dict[str, Callable[..., Unit]] = {
    "token_mean": token_mean,
    "seq_mean_token_mean": seq_mean_token_mean,
    "seq_mean_token_sum": seq_mean_token_sum,
    "token_sum_over_const": token_sum_over_const,
    "comparison_mean": comparison_mean,
}
UNITS: dict[str, Callable[..., Unit]] = {**AGGREGATIONS, "row_mean": row_mean}
"""What a further term of a loss may be reduced over: any aggregation, or whole rows."""


def reduce_loss(values: Tensor, unit: Unit, total: Tensor | float) -> Tensor:
    """sum(weight * value) / total, a scalar.

    `values` may belong to a part of the step; `total` counts the units of all of it. A value whose
    weight is 0 is left out, not multiplied by 0: inf or NaN there reaches neither the loss nor the
    gradient. total = 0 gives NaN, not 0: an empty step has no loss. Values [1, 1, 2], weights
    [1, 1, 0], total 2: 1.
    """
    assert values.shape == unit.weight.shape, (values.shape, unit.weight.shape)
    return torch.where(unit.weight != 0, values * unit.weight, 0.0).sum() / total


Column = TypeVar("Column")


def required(column: Column | None) -> Column:
    """A column, or record of columns, that the batch must have; ValueError where it is None."""
    if column is None:
        raise ValueError("this batch lacks a column that the objective is a function of")
    return column


def same_shape(logp_NT: Tensor, *others_NT: Tensor) -> None:
    """Assert that a tensor is [N, T] in float32 or float64 and that the others have its shape.

    Anything else is an AssertionError, never a broadcast.
    """
    assert logp_NT.ndim == 2 and logp_NT.dtype in (torch.float32, torch.float64), (
        logp_NT.shape,
        logp_NT.dtype,
    )
    assert all(other.shape == logp_NT.shape for other in others_NT), [
        tuple(t.shape) for t in (logp_NT, *others_NT)
    ]


def trained(x_NT: Tensor, batch: Batch) -> Tensor:
    """x where the loss mask is True, 0 elsewhere: [N, T] -> [N, T].

    Neither a masked value nor its gradient gets through, be it inf or NaN.
    """
    assert batch.loss_mask_NT.dtype == torch.bool, batch.loss_mask_NT.dtype
    same_shape(x_NT, batch.loss_mask_NT)
    return torch.where(batch.loss_mask_NT, x_NT, 0.0)


Pair = tuple[Tensor, Tensor]
"""(sum, count) as scalar tensors, detached."""


def masked_sum(x_NT: Tensor, mask_NT: Tensor) -> Pair:
    """The sum of x where the mask is True, and the number of such places, without a gradient.

    KL 1 at one token and 0 at nine others: (1, 10), so .1.
    """
    assert x_NT.shape == mask_NT.shape, (x_NT.shape, mask_NT.shape)
    assert mask_NT.dtype == torch.bool, mask_NT.dtype
    kept_NT = torch.where(mask_NT, x_NT.detach(), 0)
    return kept_NT.sum(), mask_NT.sum()
