"""The label of a comparison: its weight, its margin, and the probability that it is wrong.

The batch holds them in `comparison`, see `laurel.core.sample.Comparisons`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from laurel.core.sample import Batch
from laurel.objective.unit import by_group, group_places, required

Objective = Callable[..., Tensor]


def expected(objective: Objective) -> Objective:
    """An objective's expectation under soft labels: [N, T] -> [P].

        s f(chosen better) + (1 - s) f(rejected better),    s = soft_label

    The second term is the same function of the pair with the two rows exchanged and the sign of the
    margin turned. For a link f = softplus(-(z - m)) it is softplus(z - m), and the whole is the
    cross-entropy against (s, 1 - s). The gradient in z is sigmoid(z - m) - s.

    By hand: z = 1, m = 0, s = .8: .8 * .3132617 + .2 * 1.3132617 = .5132617. s = 1 is the objective
    itself, bit for bit, and costs nothing more.
    """

    @wraps(objective)
    def values(x_NT: Tensor, batch: Batch, **options: Any) -> Tensor:
        hard_P = objective(x_NT, batch, **options)
        flip_P = flip_chance(batch).to(hard_P.dtype)
        if not bool((flip_P > 0).any()):
            return hard_P
        turned_P = objective(x_NT, swap_pairs(batch), **options)
        return torch.where(flip_P > 0, (1 - flip_P) * hard_P + flip_P * turned_P, hard_P)

    return values


def weighted(objective: Objective) -> Objective:
    """An objective times the weight of each comparison: [N, T] -> [P].

    A weight of 1 changes no bit.
    """

    @wraps(objective)
    def values(x_NT: Tensor, batch: Batch, **options: Any) -> Tensor:
        value_P = objective(x_NT, batch, **options)
        return reliability(batch).to(value_P.dtype) * value_P

    return values


def grade(batch: Batch) -> Tensor:
    """Each row's grade in its group, higher is better; +1 and -1 for a pair: [N]."""
    return required(batch.comparison).grade_N


def is_compared(batch: Batch) -> Tensor:
    """Whether the row takes part in a comparison and has a trained token: [N] bool."""
    return required(batch.comparison).compared_N & batch.loss_mask_NT.any(1)


def reliability(batch: Batch) -> Tensor:
    """The weight of each comparison: [P].

    It is the smallest weight among the group's compared rows; 0 where none is compared.
    """
    count, group_N = group_places(batch)
    weight_N = required(batch.comparison).weight_N
    weight_N = torch.where(is_compared(batch), weight_N, torch.inf)
    most_P = torch.full((count,), torch.inf, dtype=weight_N.dtype, device=weight_N.device)
    # the smallest of the rows of each group, by their group's place among all groups
    least_P = most_P.scatter_reduce(0, group_N, weight_N, "amin")
    return torch.where(least_P.isinf(), 0.0, least_P)


def margin_asked(batch: Batch) -> Tensor:
    """The margin that the data give for each pair, read at its chosen row: [P]."""
    return by_group(torch.where(grade(batch) > 0, required(batch.comparison).margin_N, 0.0), batch)


def flip_chance(batch: Batch) -> Tensor:
    """The probability that a pair's rejected answer is the better one: [P].

    0 for groups that are not pairs.
    """
    chosen_P = by_group((grade(batch) > 0).long(), batch)
    rejected_P = by_group((grade(batch) < 0).long(), batch)
    flip_N = torch.where(grade(batch) < 0, required(batch.comparison).flip_N, 0.0)
    return torch.where((chosen_P == 1) & (rejected_P == 1), by_group(flip_N, batch), 0.0)


def swap_pairs(batch: Batch) -> Batch:
    """Every pair the other way round: the rejected row becomes the chosen one.

    The margin changes its sign.
    """
    found = required(batch.comparison)
    return batch.replace(
        comparison=replace(found, grade_N=-found.grade_N, margin_N=-found.margin_N)
    )
