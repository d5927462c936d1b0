"""How far two computations of one number may lie apart: bounds that follow the arithmetic, not the
processor that they were tried on.
"""

import pytest
import torch


def rounding(*numbers, units: float = 256, least: float = 1.0) -> float:
    """The bound for float32 numbers like these (tensors, lists or numbers), when they are computed
    in another order.

    Every addition may err by half a unit (1.2e-7) of its largest term, and a layer adds some
    hundred terms, so the bound is `units` of the largest of the numbers. least: the size that is
    taken at least; log-probabilities near 0 are differences of logits near 1.
    """
    sizes = [torch.as_tensor(some).detach().abs() for some in numbers]
    return (
        units
        * torch.finfo(torch.float32).eps
        * max([least, *(float(size.max()) for size in sizes if size.numel())])
    )


def agree(found: torch.Tensor, wanted: torch.Tensor, *, units: float = 256) -> None:
    """Assert that two tensors are the same float32 numbers but for rounding."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=rounding(wanted, units=units))


def near(wanted: object) -> object:
    """`found == near(wanted)`: a float32 number, or a list or tensor of them, but for rounding."""
    return pytest.approx(
        wanted.tolist() if isinstance(wanted, torch.Tensor) else wanted, abs=rounding(wanted), rel=0
    )
