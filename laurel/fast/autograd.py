"""Autograd functions and activation checkpointing with types, which torch's own lack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.autograd import function as autograd_function
from torch.utils import checkpoint

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """The outputs of an autograd function's forward pass."""
    kind: Any = function
    return kind.apply(*arguments)


def once_differentiable(backward: F) -> F:
    """A backward pass whose gradients have no gradients themselves."""
    library: Any = autograd_function
    return library.once_differentiable(backward)


def recomputed(function: Callable[..., T], *arguments: Any, keep_rng: bool = False) -> T:
    """`function(*arguments)`, whose inner values are computed again in the backward pass.

    keep_rng: random numbers are drawn in it, and are to be the same the second time.
    """
    library: Any = checkpoint
    return library.checkpoint(
        function, *arguments, use_reentrant=False, preserve_rng_state=keep_rng
    )
