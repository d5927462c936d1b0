"""Best of n: what the candidate that one judge likes best is worth to another, estimated from N >=
n samples without drawing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, log


def best_of_n(proxy: Sequence[float], value: Sequence[float], n: int) -> float:
    """The mean `value` of the best by `proxy` among n of the N candidates, over all subsets of size
    n: unbiased for n fresh samples.

        sum_i C(i - 1, n - 1) / C(N, n) * value_(i)        candidates ordered by proxy, i = 1 the
        worst

    Equal proxies share their places, as if a coin decided among them. n = 1 is the mean, n = N the
    value of the best. proxy (1, 2, 3), value (5, 0, 6), n = 2: the best is the second once and the
    third twice in three pairs: (0 + 2 * 6) / 3 = 4.
    """
    count = len(proxy)
    if count != len(value) or not 1 <= n <= count:
        raise ValueError(f"best of {n} of {count} candidates with {len(value)} values")
    order = sorted(range(count), key=lambda i: proxy[i])
    chance = [comb(i, n - 1) / comb(count, n) for i in range(count)]
    total, start = 0.0, 0
    while start < count:
        end = start
        while end < count and proxy[order[end]] == proxy[order[start]]:
            end += 1
        total += sum(chance[start:end]) / (end - start) * sum(value[i] for i in order[start:end])
        start = end
    return total


def best_of_n_bound(n: int) -> float:
    """log n - (n - 1) / n: what KL(best of n || policy) cannot exceed. n = 4: .6362944."""
    return log(n) - (n - 1) / n
