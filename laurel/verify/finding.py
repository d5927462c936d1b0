"""One line of `laurel verify`: what was compared with what, how far apart they are and may be."""

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
    """A comparison and its outcome; it passes where error < limit.

    `error` is a relative error, or with `samples` a z-score over that many of them.
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


def compare_equal(
    method: str,
    quantity: str,
    measured: Tensor | float,
    expected: Tensor | float,
    *,
    limit: float | None = None,
) -> Finding:
    """Two tensors that must be equal.

        error = ||measured - expected|| / ||expected||,    absolute where the expected one is 0

    What is shown is the norm of each, or the number itself. The limit is 1e-10, or 1e-5 in float32.
    """
    precision = torch.get_default_dtype()
    a = torch.as_tensor(measured, dtype=torch.float64).detach()
    b = torch.as_tensor(expected, dtype=torch.float64).detach()
    if a.shape != b.shape:
        return Finding(
            method, quantity, str(tuple(b.shape)), str(tuple(a.shape)), float("inf"), 0.0
        )
    size = float(b.norm())
    error = float((a - b).norm()) / (size if size > 1e-12 else 1.0)
    return Finding(
        method,
        quantity,
        _shown(b),
        _shown(a),
        error,
        LIMIT[precision] if limit is None else limit,
        precision=str(precision).removeprefix("torch."),
    )


def _shown(value: Tensor) -> str:
    """A number, or the norm of a tensor, with six digits."""
    return f"{float(value):.6g}" if value.ndim == 0 else f"|{float(value.norm()):.6g}|"


def compare_different(
    method: str,
    quantity: str,
    measured: Tensor | float,
    wrong: Tensor | float,
    *,
    least: float = 1e-3,
) -> Finding:
    """Two things that must differ: passes where their relative distance is at least `least`.

    Its error is least / distance.
    """
    distance = compare_equal(method, quantity, measured, wrong)
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


def compare_sampled_mean(
    method: str, quantity: str, values: Tensor, expected: float, *, samples: int, limit: float = 4.0
) -> Finding:
    """The mean of independent `values`, each a batch's, against its expectation: |z| below 4.

        z = (mean - expected) / (std / sqrt(n))

    `samples` is the number of completions behind them.
    """
    mean = float(values.mean())
    error = float(values.std()) / len(values) ** 0.5
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
    """Everything inside is computed in `dtype`.

    The training code follows torch's default where it makes new tensors.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
