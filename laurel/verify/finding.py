"""One line of `laurel verify`: what was compared with what, how far apart they were, and how far
they may be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Relative error that an exact comparison may show, by the precision of the path."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`error` is a relative error (or, with `samples`, a z-score over that many of them); the line
    passes where error < limit.
    """

    method: str
    quantity: str
    expected: str
    measured: str
    error: float
    limit: float
    samples: int = 0
    precision: str = "float64"

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.error < self.limit


def same(
    method: str,
    quantity: str,
    measured: Tensor | float,
    expected: Tensor | float,
    *,
    limit: float | None = None,
) -> Finding:
    """Two tensors that must be equal: ||measured - expected|| / ||expected|| (absolute where the
    expected one is 0).

    What is shown is the norm of each, or the number itself. The limit is 1e-10, or 1e-5 in float32.
    """
    precision = torch.get_default_dtype()
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (measured, expected))
    if a.shape != b.shape:
        return Finding(
            method, quantity, str(tuple(b.shape)), str(tuple(a.shape)), float("inf"), 0.0
        )
    size = float(b.norm())
    error = float((a - b).norm()) / (size if size > 1e-12 else 1.0)
    show = [f"{float(x):.6g}" if x.ndim == 0 else f"|{float(x.norm()):.6g}|" for x in (b, a)]
    return Finding(
        method,
        quantity,
        *show,
        error,
        LIMIT[precision] if limit is None else limit,
        precision=str(precision)[6:],
    )


def apart(
    method: str,
    quantity: str,
    measured: Tensor | float,
    wrong: Tensor | float,
    *,
    least: float = 1e-3,
) -> Finding:
    """Two things that must differ: passes where their relative distance is at least `least`. Its
    error is least / distance.
    """
    distance = same(method, quantity, measured, wrong)
    ratio = least / distance.error if distance.error else float("inf")
    return Finding(
        method,
        quantity,
        f"not {distance.expected}",
        distance.measured,
        ratio,
        1.0,
        precision=distance.precision,
    )


def sampled(
    method: str, quantity: str, values: Tensor, expected: float, *, samples: int, limit: float = 4.0
) -> Finding:
    """The mean of independent `values` (each a batch's) against its expectation: |z| = |mean -
    expected| / (std / sqrt(n)) below 4.

    `samples` is the number of completions behind them.
    """
    mean, error = float(values.mean()), float(values.std()) / len(values) ** 0.5
    z = abs(mean - expected) / error if error > 0 else float("inf")
    return Finding(
        method,
        quantity,
        f"{expected:.5g}",
        f"{mean:.5g} ± {error:.2g}",
        z,
        limit,
        samples,
        "float32",
    )


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Everything inside is computed in `dtype`: the training code follows torch's default where it
    makes new tensors.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
