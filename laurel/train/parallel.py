"""Several processes as one: the only module with collectives.

Each rank takes its share of prompts; sums are global.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

COLLECTIVES: Any = dist
"""torch.distributed, whose collectives have no types."""
PATIENCE = timedelta(minutes=10)
"""The longest wait: a peer that stays away longer is an error that names the operation."""


def join_process_group() -> None:
    """Join the process group that torchrun describes in the environment; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


def rank() -> int:
    """This process's number: 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(count: Tensor) -> Tensor:
    """The sum over all ranks of a scalar; itself alone."""
    if world_size() > 1:
        count = count.clone()
        COLLECTIVES.all_reduce(count)
    return count


def gather(value: Any) -> list[Any]:
    """One picklable value from every rank, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    COLLECTIVES.all_gather_object(values, value)
    return values


def over_all_ranks(function: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """function(*columns) of the rows of all ranks together; returns this rank's rows of the result.

    Statistics over a batch (means, standard deviations) are those of the whole batch. Last axes
    that differ in length are padded with 0.
    """
    if world_size() == 1:
        return function(*columns)
    parts = gather(columns)
    long = max(part[0].shape[1] for part in parts)
    padded = [
        [torch.nn.functional.pad(column, (0, long - column.shape[1])) for column in part]
        for part in parts
    ]
    before = sum(len(part[0]) for part in parts[: rank()])
    whole = function(*(torch.cat(rows) for rows in zip(*padded, strict=True)))
    return whole[before : before + len(columns[0]), : columns[0].shape[1]]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up gradients over ranks.

    A rank without a gradient contributes zeros, so no rank waits for another in vain. A parameter
    with a gradient on no rank keeps none: AdamW would take a zero for a step, which moves it by
    decay and momentum.
    """
    if world_size() == 1:
        return
    parameters = list(parameters)
    has = gather([parameter.grad is not None for parameter in parameters])
    for parameter, anywhere in zip(parameters, zip(*has, strict=True), strict=True):
        if not any(anywhere):
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        COLLECTIVES.all_reduce(parameter.grad)
