"""Errors of a logistic fit whose votes come in clusters: several people about one item are no
independent witnesses.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.special import expit

Around = tuple[int, Callable[[np.ndarray, np.ndarray], np.ndarray]]
"""The number of clusters, and the covariance from theta and the inverse information."""
WHOLE = 0.99
"""A cluster that has this much of the say on some coefficient has no other cluster to be compared
with.
"""


def clustered_covariance(
    rows: np.ndarray,
    won: np.ndarray,
    weight: np.ndarray,
    cluster: np.ndarray,
    theta: np.ndarray,
    inverse: np.ndarray,
) -> np.ndarray:
    """The covariance of theta in P(won) = sigmoid(rows theta) by leaving out one cluster at a time,
    to first order.

        (G - 1) / G * V [sum_g s_g s_g^T] V,   s_g = A_g^T (I - A_g V A_g^T)^-1 e_g,   V the inverse
        information `inverse`,
        A = rows sqrt(w p (1 - p)),  e = w (won - p) / sqrt(w p (1 - p))

    The jackknife form of the sandwich (CR3; Bell and McCaffrey 2002), to be read with Student's t
    of G - 1 degrees: with few clusters the plain one is too small. Where one cluster alone settles
    a coefficient its votes count as one vote: A_g^T A_g times their weight.
    """
    p = expit(rows @ theta)
    spread = weight * p * (1 - p)
    A_RD = rows * np.sqrt(spread)[:, None]
    e_R = np.divide(weight * (won - p), np.sqrt(spread), out=np.zeros(len(p)), where=spread > 0)
    order = np.argsort(cluster, kind="stable")
    sizes = np.unique(cluster, return_counts=True)[1]
    starts = np.cumsum(sizes) - sizes
    meat = np.zeros_like(inverse)
    for size in np.unique(sizes):
        members = order[
            starts[sizes == size][:, None] + np.arange(size)
        ]  # [clusters of this size, size]
        for some in np.array_split(members, max(1, members.size // 20_000)):
            meat += _meat(A_RD[some], e_R[some], weight[some].sum(1), inverse)
    return inverse @ meat @ inverse * (len(sizes) - 1) / len(sizes)


def _meat(A: np.ndarray, e: np.ndarray, weight: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """sum of s s^T over clusters of equal size."""
    left, turn = np.linalg.eigh(np.eye(A.shape[1]) - A @ inverse @ A.swapaxes(1, 2))
    alone = left[:, 0] < 1 - WHOLE
    left = np.where(alone[:, None], 1.0, left)
    told = np.einsum("nij,nj->ni", turn, np.einsum("nji,nj->ni", turn, e) / left)
    score = np.einsum("nsd,ns->nd", A, told)[~alone]
    lone = (A[alone] * np.sqrt(weight[alone])[:, None, None]).reshape(-1, A.shape[2])
    return score.T @ score + lone.T @ lone


def around(
    rows: np.ndarray,
    place: np.ndarray,
    share: np.ndarray,
    weight: np.ndarray,
    clusters: Sequence[Hashable],
) -> Around:
    """Votes of one cluster on the same two in the same slots together, as `clustered_covariance`
    takes them.
    """
    if len(clusters) != len(place):
        raise ValueError(f"one cluster for each vote: {len(clusters)} for {len(place)}")
    index = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
    keys, at = np.unique(
        [index[name] * len(rows) + k for name, k in zip(clusters, place.tolist(), strict=True)],
        return_inverse=True,
    )
    amount = np.bincount(at, weight)
    won = np.divide(
        np.bincount(at, weight * share), amount, out=np.zeros(len(keys)), where=amount > 0
    )

    def covariance(theta: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        return clustered_covariance(
            rows[keys % len(rows)], won, amount, keys // len(rows), theta, inverse
        )

    return len(index), covariance
