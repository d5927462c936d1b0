"""How sure a sampled figure is: Wilson's interval for a share, Student's for a mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

Interval = tuple[float, float, float]
"""(estimate, low, high) at 95 %."""


def wilson_interval(successes: int, trials: int) -> Interval:
    """A share of independent trials with Wilson's interval: 8 of 10 gives (.8, .490, .943)."""
    found = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return successes / trials, float(found.low), float(found.high)


def student_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean of independent runs, -+ t(n - 1, .975) sd / sqrt(n).

    1, 2, 3 gives (2, -.484, 4.484). One run has no interval.
    """
    value_N = np.asarray(values, dtype=float)
    count = len(value_N)
    middle = float(value_N.mean())
    if count < 2:
        return middle, middle, middle
    quantile = stats.t.ppf(0.975, count - 1)
    half = float(quantile * value_N.std(ddof=1) / np.sqrt(count))
    return middle, middle - half, middle + half


def interval_text(interval: Interval, digits: int = 3) -> str:
    """`0.800 (0.490 to 0.943)`."""
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*interval, d=digits)
