"""Win rates at equal lengths: logistic regression on who answered and on the gap in length."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from scipy.special import expit
from scipy.stats import t as student

from laurel.measure.agreement import Agreement

MOST = 15.0
"""Logits that no finite estimate has: one outcome explains every comparison."""


@dataclass(frozen=True, slots=True)
class LengthControl:
    """Win rates at equal lengths by system, and the weight of the length term in logits.

    Where there is no finite estimate every rate is None with the reason.
    """

    rates: dict[str, Agreement]
    slope: Agreement


def length_controlled(
    first: Sequence[str],
    second: Sequence[str],
    won: Sequence[float],
    gaps: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
) -> LengthControl:
    """What the win rates would be if both responses were always equally long.

        logit P(first wins) = theta_first - theta_second + phi tanh(gap / sd(gap)),
        rate of m = mean over its comparisons of sigmoid(theta_m - theta_other)

    gap: length of the first less that of the second; won: 1, .5 for a tie, 0, or a chance between.
    With one system and one baseline this is the model of AlpacaEval 2 without its term for the
    difficulty of an instruction (which needs other systems' verdicts) and without its penalty;
    with more systems phi is common to all. Dubois et al. 2024, arXiv:2404.04475. The
    intervals: delta method, from the variance of the scores by cluster, Student's t.
    """
    one, two = list(first), list(second)
    names = list(dict.fromkeys([*one, *two]))
    reason = _why_not(one, won, gaps, names)
    if reason:
        return _undefined(names, len(one), reason, level)
    index = {name: k for k, name in enumerate(names)}
    i = np.array([index[name] for name in one])
    j = np.array([index[name] for name in two])
    gap = np.asarray(gaps, dtype=float)
    rows = np.zeros((len(i), len(names) + 1))
    rows[np.arange(len(i)), i] += 1
    rows[np.arange(len(i)), j] -= 1
    rows[:, -1] = np.tanh(gap / gap.std(ddof=1))
    share = np.asarray(won, dtype=float)
    theta, inverse = _fit(rows, share)
    if theta is None:
        why = "no finite estimate: a group of systems always wins, or always the longer response"
        return _undefined(names, len(i), why, level)
    covariance, groups = _by_cluster(rows, share - expit(rows @ theta), inverse, clusters)
    reach = float(student.ppf((1 + level) / 2, groups - 1)) if groups > 1 else float("inf")
    rates = {}
    for k, name in enumerate(names):
        mine = (i == k) | (j == k)
        others = np.where(i[mine] == k, j[mine], i[mine])
        rates[name] = _rate(theta, covariance, k, others, reach, level)
    error = reach * float(np.sqrt(max(covariance[-1, -1], 0)))
    phi = float(theta[-1])
    slope = Agreement(phi, *_bounds(phi, error), len(i), _few(error), level)
    return LengthControl(rates, slope)


def _why_not(
    first: Sequence[str], won: Sequence[float], gaps: Sequence[float], names: Sequence[str]
) -> str:
    if len(first) < 3 or len(names) < 2:
        return "fewer than three comparisons of two systems of known length"
    if not all(isfinite(gap) for gap in gaps) or not all(0 <= share <= 1 for share in won):
        raise ValueError("gaps are finite and won lies between 0 and 1")
    return "" if float(np.std(gaps)) > 0 else "the lengths never differ by more or less"


def _undefined(names: Sequence[str], n: int, reason: str, level: float) -> LengthControl:
    nothing = Agreement(None, None, None, n, reason, level)
    return LengthControl(dict.fromkeys(names, nothing), nothing)


def _fit(rows: np.ndarray, share: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The maximum of the likelihood by Newton's method, and the inverse of the information.

    Abilities are free up to a constant in each group of systems that met: the pseudo-inverse keeps
    their mean at 0. None where there is no finite maximum.
    """
    theta = np.zeros(rows.shape[1])
    inverse = np.zeros((len(theta), len(theta)))
    for _ in range(100):
        chance = expit(rows @ theta)
        bend = (rows * (chance * (1 - chance))[:, None]).T @ rows
        inverse = np.linalg.pinv(bend, rcond=1e-9, hermitian=True)
        step = inverse @ (rows.T @ (share - chance))
        theta = theta + step * min(1.0, 4.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(theta).max() > MOST:
            return None, inverse
        if np.abs(step).max() < 1e-9:
            return theta, inverse
    return None, inverse


def _by_cluster(
    rows: np.ndarray, residual: np.ndarray, inverse: np.ndarray, clusters: Sequence[Hashable]
) -> tuple[np.ndarray, int]:
    """The sandwich H^-1 (sum_g s_g s_g') H^-1 G / (G - 1), and how many clusters there are."""
    index = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
    score = np.zeros((len(index), rows.shape[1]))
    np.add.at(score, [index[name] for name in clusters], rows * residual[:, None])
    groups = len(index)
    meat = score.T @ score * (groups / max(groups - 1, 1))
    return inverse @ meat @ inverse, groups


def _rate(
    theta: np.ndarray,
    covariance: np.ndarray,
    own: int,
    others: np.ndarray,
    reach: float,
    level: float,
) -> Agreement:
    """The mean chance of one system against those it met, at equal lengths."""
    chance = expit(theta[own] - theta[others])
    bend = chance * (1 - chance) / len(others)
    slope = np.zeros(len(theta))
    slope[own] = bend.sum()
    np.add.at(slope, others, -bend)
    error = reach * float(np.sqrt(max(slope @ covariance @ slope, 0)))
    value = float(chance.mean())
    low, high = _bounds(value, error)
    low, high = (None, None) if low is None or high is None else (max(low, 0.0), min(high, 1.0))
    return Agreement(value, low, high, len(others), _few(error), level)


def _bounds(value: float, error: float) -> tuple[float | None, float | None]:
    return (value - error, value + error) if isfinite(error) else (None, None)


def _few(error: float) -> str:
    return "" if isfinite(error) else "one prompt only"
