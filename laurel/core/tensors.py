"""What torch leaves untyped: tensors as Python lists, norms of rows, random generators.

`Tensor.tolist()` has no element type for a type checker, because the depth of the list follows the
tensor's shape. Each name here says the shape that it takes and the type that comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from operator import methodcaller
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor

ints: Callable[[Tensor], list[int]] = methodcaller("tolist")
"""The whole numbers of a tensor `[N]` of an integer type."""
floats: Callable[[Tensor], list[float]] = methodcaller("tolist")
"""The numbers of a tensor `[N]` of a floating-point type."""
bools: Callable[[Tensor], list[bool]] = methodcaller("tolist")
"""The truth values of a tensor `[N]` of type bool."""
int_rows: Callable[[Tensor], list[list[int]]] = methodcaller("tolist")
"""The whole numbers of a tensor `[N, L]` of an integer type, one list a row."""
float_rows: Callable[[Tensor], list[list[float]]] = methodcaller("tolist")
"""The numbers of a tensor `[N, L]` of a floating-point type, one list a row."""
bool_rows: Callable[[Tensor], list[list[bool]]] = methodcaller("tolist")
"""The truth values of a tensor `[N, L]` of type bool, one list a row."""


def row_norms(x: Tensor) -> Tensor:
    """The Euclidean norm of every row of a tensor `[..., D]`: `[...]`."""
    return cast("Any", x).norm(dim=-1)


def forked_rng() -> AbstractContextManager[None]:
    """Within it torch's generator on the CPU draws as it will, and afterwards it is as before."""
    import torch

    random: Any = torch.random
    return random.fork_rng(devices=[])
