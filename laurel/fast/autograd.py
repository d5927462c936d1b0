"""Autograd functions, checkpointing and methods of tensors with types, which torch's own lack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd import function as autograd_function
from torch.utils import checkpoint

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

unflatten: Callable[[Tensor, int, Sequence[int]], Tensor] = cast("Any", Tensor).unflatten
"""(x, dim, sizes) -> x with one dimension as several of these sizes (-1: what is left)."""
from_numpy: Callable[[np.ndarray], Tensor] = cast("Any", torch).from_numpy
"""A numpy array as a tensor that shares its memory."""


def as_function(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """An autograd function as a plain function: its arguments -> the outputs of its forward."""
    kind: Any = function
    return kind.apply


def once_differentiable(backward: F) -> F:
    """A backward pass whose gradients have no gradients themselves."""
    library: Any = autograd_function
    return library.once_differentiable(backward)


def recompute_in_backward(function: Callable[..., T], *arguments: Any, keep_rng: bool = False) -> T:
    """`function(*arguments)`, whose inner values are computed again in the backward pass.

    keep_rng: random numbers are drawn in it, and are to be the same the second time.
    """
    library: Any = checkpoint
    return library.checkpoint(
        function, *arguments, use_reentrant=False, preserve_rng_state=keep_rng
    )
