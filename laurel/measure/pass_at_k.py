"""pass@k: the chance that at least one of k samples is right, estimated from n >= k samples without
bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, log1p

from laurel.core.errors import UsageError
from laurel.measure.intervals import Interval, bootstrap_mean


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k for one prompt, from c right answers among n samples.

        1 - C(n-c, k) / C(n, k)  =  1 - prod_{i = n-c+1..n} (1 - k/i)

    The product is taken in logarithms, so neither factor overflows and small results keep their
    digits. n=5, c=2, k=2: 1 - 3/10 = .7. k=1 is c/n. The plug-in 1 - (1 - c/n)^k is biased
    downwards. Chen et al. 2021, arXiv:2107.03374.
    """
    if not 0 <= c <= n:
        raise ValueError(f"{c} right answers among {n} samples")
    if not 1 <= k <= n:
        raise UsageError(
            f"pass@{k} cannot be estimated from {n} samples per prompt.",
            where=f"pass@{k}",
            fix=f"Draw at least {max(k, 1)}.",
        )
    if n - c < k:
        return 1.0
    return -expm1(sum(log1p(-k / i) for i in range(n - c + 1, n + 1)))


def mean_pass_at_k(
    counts: Sequence[tuple[int, int]],
    k: int,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """pass@k over prompts, each given as (samples n, right answers c), with a bootstrap interval
    over prompts.
    """
    return bootstrap_mean(
        [pass_at_k(n, c, k) for n, c in counts], level=level, draws=draws, seed=seed
    )
