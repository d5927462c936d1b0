"""What torch leaves untyped: tensors as Python lists, numpy arrays as tensors, and the like.

`Tensor.tolist()` has no element type for a type checker, because the depth of the list follows the
tensor's shape. Each function here names the shape it takes and the type that comes out; the numbers
are those of `tolist()`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np
    import torch


def _listed(tensor: "torch.Tensor") -> Any:
    """`tensor.tolist()`, whose type torch leaves open."""
    return cast("Any", tensor).tolist()


def ints(tensor: "torch.Tensor") -> list[int]:
    """The whole numbers of a tensor `[N]` of an integer type."""
    return _listed(tensor)


def floats(tensor: "torch.Tensor") -> list[float]:
    """The numbers of a tensor `[N]` of a floating-point type."""
    return _listed(tensor)


def bools(tensor: "torch.Tensor") -> list[bool]:
    """The truth values of a tensor `[N]` of type bool."""
    return _listed(tensor)


def int_rows(tensor: "torch.Tensor") -> list[list[int]]:
    """The whole numbers of a tensor `[N, L]` of an integer type, one list a row."""
    return _listed(tensor)


def float_rows(tensor: "torch.Tensor") -> list[list[float]]:
    """The numbers of a tensor `[N, L]` of a floating-point type, one list a row."""
    return _listed(tensor)


def bool_rows(tensor: "torch.Tensor") -> list[list[bool]]:
    """The truth values of a tensor `[N, L]` of type bool, one list a row."""
    return _listed(tensor)


def from_numpy(array: "np.ndarray") -> "torch.Tensor":
    """A numpy array as a tensor that shares its memory."""
    import torch

    return cast("Any", torch).from_numpy(array)


def row_norms(x: "torch.Tensor") -> "torch.Tensor":
    """The Euclidean norm of every row of a tensor `[..., D]`: `[...]`."""
    return cast("Any", x).norm(dim=-1)


def forked_rng() -> "AbstractContextManager[None]":
    """Within it torch's generator on the CPU draws as it will, and afterwards it is as before."""
    import torch

    random: Any = torch.random
    return random.fork_rng(devices=[])


def unflatten(x: "torch.Tensor", dim: int, sizes: Sequence[int]) -> "torch.Tensor":
    """One dimension of a tensor as several of these sizes (-1: what is left), without a copy."""
    return cast("Any", x).unflatten(dim, sizes)


def split(x: "torch.Tensor", sizes: Sequence[int], dim: int = 0) -> "tuple[torch.Tensor, ...]":
    """The tensor as parts of these sizes, one behind the other along a dimension."""
    return cast("Any", x).split(list(sizes), dim)


def group_numbers(values: "torch.Tensor") -> "torch.Tensor":
    """For each number its place among the sorted distinct numbers, from 0: same shape."""
    return cast("Any", values).unique(return_inverse=True)[1]


def run_lengths(values: "torch.Tensor") -> "torch.Tensor":
    """The length of each run of equal numbers in a tensor `[N]`."""
    return cast("Any", values).unique_consecutive(return_counts=True)[1]
