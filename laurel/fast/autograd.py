"""Calls of autograd functions and of activation checkpointing, which torch leaves untyped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils import checkpoint

T = TypeVar("T")


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """The outputs of an autograd function's forward pass."""
    kind: Any = function
    return kind.apply(*arguments)


def recomputed(function: Callable[..., T], *arguments: Any) -> T:
    """`function(*arguments)`, whose inner values are computed again in the backward pass.

    Without random numbers: their state is not kept.
    """
    library: Any = checkpoint
    return library.checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
