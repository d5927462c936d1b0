"""Best of n: what the candidate that one judge likes best is worth to another, estimated from N >=
n samples without drawing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, log

import numpy as np


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


def best_of_n_law(probabilities: Sequence[float], scores: Sequence[float], n: int) -> np.ndarray:
    """The law of the best by `scores` of n independent draws: an array of probabilities.

        P_n(y) = (F(<= y)^n - F(< y)^n) p(y) / P(score = that of y)

    F of the scores; equal scores share their place as if a coin decided. p (.5, .5), scores (0, 1),
    n = 2: (.25, .75). Beirami et al. 2024, arXiv:2401.01879.
    """
    p, score = np.asarray(probabilities, dtype=float), np.asarray(scores, dtype=float)
    if p.shape != score.shape or p.ndim != 1 or n < 1 or (p < 0).any() or abs(p.sum() - 1) > 1e-9:
        raise ValueError(f"best of {n} of {p.shape} probabilities and {score.shape} scores")
    levels, place = np.unique(score, return_inverse=True)
    mass = np.bincount(place, weights=p, minlength=len(levels))
    up_to = np.cumsum(mass)
    before = np.concatenate([[0.0], up_to[:-1]])
    # a difference of powers of numbers near each other, as a sum: nothing is lost
    rise = mass * sum(up_to**i * before ** (n - 1 - i) for i in range(n))
    share = np.divide(p, mass[place], out=np.zeros_like(p), where=mass[place] > 0)
    return rise[place] * share


def kl(one: np.ndarray, other: np.ndarray) -> float:
    """KL(one || other) in nats; 0 log 0 is 0."""
    there = one > 0
    return float((one[there] * np.log(one[there] / other[there])).sum())


def rejection_law(
    probabilities: Sequence[float], scores: Sequence[float], beta: float, bar: float
) -> tuple[np.ndarray, float]:
    """What rejection sampling accepts: the law of an accepted draw, and the chance to accept one.

        accept y with probability min(1, exp((score(y) - bar) / beta))

    With the bar at the highest score or above the law is p exp(score / beta) / Z exactly; below it
    the best are cut to the same chance. Liu et al. 2023, arXiv:2309.06657.
    """
    p, score = np.asarray(probabilities, dtype=float), np.asarray(scores, dtype=float)
    if beta <= 0:
        raise ValueError(f"beta is above 0, got {beta}")
    accepted = p * np.exp(np.minimum((score - bar) / beta, 0.0))
    chance = float(accepted.sum())
    return accepted / chance, chance


def value_of_one_more(scores: Sequence[float]) -> float:
    """What one more draw is expected to raise the best of these n scores by.

        mean over the upper half of i * (s_i - s_(i+1)) / (n + 1),    s_1 >= s_2 >= ...

    Where the scores' upper tail is exponential, i * (s_i - s_(i+1)) are independent with the tail's
    mean (Renyi 1953), and the n + 1st draw raises the expected maximum by that over n + 1: the
    estimate is unbiased. Infinite for fewer than two scores. (3, 1): (1 * 2) / 3 = 2/3.
    """
    ranked = sorted(scores, reverse=True)
    if len(ranked) < 2:
        return float("inf")
    steps = max(len(ranked) // 2, 1)
    gaps = [i * (ranked[i - 1] - ranked[i]) for i in range(1, steps + 1)]
    return sum(gaps) / steps / (len(ranked) + 1)
