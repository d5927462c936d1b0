"""What objectives and metrics start from: the trained tokens of a batch, and how far the policy has
moved on them.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from laurel.core.sample import Batch

Column = TypeVar("Column")


def required(column: Column | None) -> Column:
    """A column, or record of columns, that not every batch has; a batch without it is an error."""
    if column is None:
        raise ValueError("this batch lacks a column that the objective is a function of")
    return column


def same_shape(logp_NT: Tensor, *others_NT: Tensor) -> None:
    """[N, T] in float32 or float64, and every other tensor of that shape; anything else is an
    AssertionError, never a broadcast.
    """
    assert logp_NT.ndim == 2 and logp_NT.dtype in (torch.float32, torch.float64), (
        logp_NT.shape,
        logp_NT.dtype,
    )
    assert all(other.shape == logp_NT.shape for other in others_NT), [
        tuple(t.shape) for t in (logp_NT, *others_NT)
    ]


def trained(x_NT: Tensor, batch: Batch) -> Tensor:
    """x where the loss mask is True, 0 elsewhere. Neither a masked value nor its gradient gets
    through, be it inf or NaN.
    """
    assert batch.loss_mask_NT.dtype == torch.bool, batch.loss_mask_NT.dtype
    same_shape(x_NT, batch.loss_mask_NT)
    return torch.where(batch.loss_mask_NT, x_NT, 0.0)


def log_ratio(logp_NT: Tensor, batch: Batch) -> Tensor:
    """log pi(x_t) - log pi_old(x_t) of every trained token, 0 elsewhere: [N, T] -> [N, T]."""
    same_shape(logp_NT, batch.logp_old_NT)
    return trained(logp_NT - batch.logp_old_NT, batch)


def sequence_log_ratio(logp_NT: Tensor, batch: Batch) -> Tensor:
    """The mean of `log_ratio` over the trained tokens of each row, at each of them: [N, T] -> [N,
    T]. [.1, .2, -.3, .4]: .1.
    """
    length_N1 = batch.loss_mask_NT.sum(1, keepdim=True).clamp(min=1)
    mean_N1 = log_ratio(logp_NT, batch).sum(1, keepdim=True) / length_N1
    return trained(mean_N1.expand_as(logp_NT), batch)
