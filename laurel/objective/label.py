"""What a pair's label is worth: how likely it is right, how much better the better one is, and how
much the pair counts.

The rows of data say it, and the batch carries it: w is the size of a pair's grades (chosen +w,
rejected -w), the margin is `target_NT` of the chosen row, and `value_NT` of the rejected row is the
chance that it is the better one after all. All zeros say: certain, no margin.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from laurel.core.sample import Batch
from laurel.objective.unit import by_group

Objective = Callable[..., Tensor]


def expected(objective: Objective) -> Objective:
    """An objective's expectation over who is better in truth: a soft label instead of a hard one,
    [N, T] -> [P].

        s f(chosen better) + (1 - s) f(rejected better),    s = soft_label

    The second is the same function of the pair turned round, with the margin's sign turned, too:
    for a link f = softplus(-(z - m)) it is softplus(z - m), and the whole is the cross-entropy
    against (s, 1 - s). z = 1, s = .8: .8 * .3132617 + .2 * 1.3132617 = .5132617; the gradient in z
    is sigmoid(z - m) - s. s = 1 is the objective itself, bit for bit, and costs nothing more.
    """

    @wraps(objective)
    def values(x_NT: Tensor, batch: Batch, **options: Any) -> Tensor:
        hard_P = objective(x_NT, batch, **options)
        doubt_P = doubt(batch).to(hard_P.dtype)
        if not bool((doubt_P > 0).any()):
            return hard_P
        turned_P = objective(x_NT, turned(batch), **options)
        return torch.where(doubt_P > 0, (1 - doubt_P) * hard_P + doubt_P * turned_P, hard_P)

    return values


def weighted(objective: Objective) -> Objective:
    """An objective of pairs graded +w and -w: w times its value for pairs graded +1 and -1, [N, T]
    -> [P]. w = 1 changes no bit.
    """

    @wraps(objective)
    def values(x_NT: Tensor, batch: Batch, **options: Any) -> Tensor:
        value_P = objective(x_NT, batch.replace(weight_NT=batch.weight_NT.sign()), **options)
        return reliability(batch).to(value_P.dtype) * value_P

    return values


def grade(batch: Batch) -> Tensor:
    """The row's grade, [N]: its weight, the same at every token."""
    return batch.weight_NT[:, 0]


def compared(batch: Batch) -> Tensor:
    """The grade of each row, 0 where it stands aside (no trained token): [N]."""
    return torch.where(batch.loss_mask_NT.any(1), grade(batch), 0.0)


def reliability(batch: Batch) -> Tensor:
    """The smallest |grade| among the rows of each group that are compared, 0 where none is: [P].
    (-.6, -1.2, 0): .6.
    """
    group_N: Any = batch.group_N
    groups, where_N = group_N.unique(return_inverse=True)
    size_N = compared(batch).abs()
    size_N = torch.where(size_N > 0, size_N, torch.inf)
    least_P = torch.full(
        (len(groups),), torch.inf, dtype=size_N.dtype, device=size_N.device
    ).scatter_reduce(0, where_N, size_N, "amin")
    return torch.where(least_P.isinf(), 0.0, least_P)


def asked(batch: Batch) -> Tensor:
    """The margin of each pair, its chosen row's target: [P]."""
    return by_group(torch.where(grade(batch) > 0, batch.target_NT[:, 0], 0.0), batch)


def doubt(batch: Batch) -> Tensor:
    """The chance that a pair's rejected answer is the better one: [P]. Of groups that are no pairs
    0.
    """
    pair_P = (by_group((grade(batch) > 0).long(), batch) == 1) & (
        by_group((grade(batch) < 0).long(), batch) == 1
    )
    return torch.where(
        pair_P, by_group(torch.where(grade(batch) < 0, batch.value_NT[:, 0], 0.0), batch), 0.0
    )


def turned(batch: Batch) -> Batch:
    """Every pair the other way round: the rejected row is the chosen one, and the margin is asked
    of it with its sign turned.
    """
    _, where_N = batch.group_N.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    target_N = torch.where(grade(batch) < 0, -asked(batch)[where_N], 0.0)
    return batch.replace(
        weight_NT=-batch.weight_NT,
        target_NT=target_N[:, None].expand_as(batch.target_NT).to(batch.target_NT.dtype),
    )
