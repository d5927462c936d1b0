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
    both = [*first, *second]
    names = list(dict.fromkeys(both))
    reason = _why_not(first, won, gaps, names)
    if reason:
        return _undefined(names, len(first), reason, level)
    i, j = _places(first, names), _places(second, names)
    rows = _design(i, j, np.asarray(gaps, dtype=float), len(names))
    share = np.asarray(won, dtype=float)
    theta, inverse = _fit(rows, share)
    if theta is None:
        why = "no finite estimate: a group of systems always wins, or always the longer response"
        return _undefined(names, len(i), why, level)
    covariance, groups = _by_cluster(rows, share - expit(rows @ theta), inverse, clusters)
    fit = _Fit(theta, covariance, _reach(groups, level), level)
    rates: dict[str, Agreement] = {}
    for k, name in enumerate(names):
        others = _opponents(i, j, k)
        rates[name] = _rate(fit, k, others)
    slope = _slope(fit, len(i))
    return LengthControl(rates, slope)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Abilities and the length term, their covariance, standard errors in half an interval."""

    theta: np.ndarray
    covariance: np.ndarray
    reach: float
    level: float


def _places(chosen: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """The place of each among the names."""
    index = {name: k for k, name in enumerate(names)}
    return np.array([index[name] for name in chosen])


def _reach(groups: int, level: float) -> float:
    """Standard errors in half an interval; of one cluster nothing is known."""
    if groups < 2:
        return float("inf")
    return float(student.ppf((1 + level) / 2, groups - 1))


def _design(i: np.ndarray, j: np.ndarray, gap: np.ndarray, systems: int) -> np.ndarray:
    """[rows, systems + 1] +1 for the first, -1 for the second, and the scaled gap."""
    rows = np.zeros((len(i), systems + 1))
    each = np.arange(len(i))
    rows[each, i] += 1
    rows[each, j] -= 1
    rows[:, -1] = np.tanh(gap / gap.std(ddof=1))
    return rows


def _opponents(i: np.ndarray, j: np.ndarray, own: int) -> np.ndarray:
    """Whom a system met, once for each comparison."""
    mine = (i == own) | (j == own)
    return np.where(i[mine] == own, j[mine], i[mine])


def _slope(fit: _Fit, n: int) -> Agreement:
    """The weight of the length term."""
    error = fit.reach * float(np.sqrt(max(fit.covariance[-1, -1], 0)))
    phi = float(fit.theta[-1])
    return Agreement(phi, *_bounds(phi, error), n, _few(error), fit.level)


def _why_not(
    first: Sequence[str], won: Sequence[float], gaps: Sequence[float], names: Sequence[str]
) -> str:
    if len(first) < 3 or len(names) < 2:
        return "fewer than three comparisons of two systems of known length"
    finite = all(isfinite(gap) for gap in gaps)
    shares = all(0 <= share <= 1 for share in won)
    if not (finite and shares):
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
        spread = chance * (1 - chance)
        weighted = rows * spread[:, None]
        bend = weighted.T @ rows
        inverse = np.linalg.pinv(bend, rcond=1e-9, hermitian=True)
        step = inverse @ (rows.T @ (share - chance))
        longest = float(np.abs(step).max())
        # far from the maximum a full step may overshoot
        theta = theta + step * min(1.0, 4.0 / max(1e-12, longest))
        if np.abs(theta).max() > MOST:
            return None, inverse
        if longest < 1e-9:
            return theta, inverse
    return None, inverse


def _by_cluster(
    rows: np.ndarray, residual: np.ndarray, inverse: np.ndarray, clusters: Sequence[Hashable]
) -> tuple[np.ndarray, int]:
    """The sandwich H^-1 (sum_g s_g s_g') H^-1 G / (G - 1), and how many clusters there are."""
    index = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
    score = np.zeros((len(index), rows.shape[1]))
    places = [index[name] for name in clusters]
    np.add.at(score, places, rows * residual[:, None])
    groups = len(index)
    few = groups / max(groups - 1, 1)
    meat = score.T @ score * few
    return inverse @ meat @ inverse, groups


def _rate(fit: _Fit, own: int, others: np.ndarray) -> Agreement:
    """The mean chance of one system against those it met, at equal lengths."""
    chance = expit(fit.theta[own] - fit.theta[others])
    bend = chance * (1 - chance) / len(others)
    slope = np.zeros(len(fit.theta))
    slope[own] = bend.sum()
    np.add.at(slope, others, -bend)
    variance = slope @ fit.covariance @ slope
    error = fit.reach * float(np.sqrt(max(variance, 0)))
    value = float(chance.mean())
    low, high = _bounds(value, error)
    if low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 1.0)
    return Agreement(value, low, high, len(others), _few(error), fit.level)


def _bounds(value: float, error: float) -> tuple[float | None, float | None]:
    return (value - error, value + error) if isfinite(error) else (None, None)


def _few(error: float) -> str:
    return "" if isfinite(error) else "one prompt only"
