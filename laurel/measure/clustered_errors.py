"""Errors of a logistic fit whose votes come in clusters: several people about one item are no
independent witnesses.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

WHOLE = 0.99
"""A cluster that has this much of the say on some coefficient has no other cluster to be compared
with.
"""


@dataclass(frozen=True, slots=True)
class Clustering:
    """The number of clusters, and the covariance from theta and the inverse information."""

    count: int
    covariance: Callable[[np.ndarray, np.ndarray], np.ndarray]


def clustered_covariance(
    rows: np.ndarray,
    won: np.ndarray,
    weight: np.ndarray,
    cluster: np.ndarray,
    theta: np.ndarray,
    inverse: np.ndarray,
) -> np.ndarray:
    """The covariance of theta in P(won) = sigmoid(rows theta), by leaving out clusters.

        (G - 1) / G * V [sum_g s_g s_g^T] V,   s_g = A_g^T (I - A_g V A_g^T)^-1 e_g,
        V the inverse information `inverse`,  A = rows sqrt(w p (1 - p)),
        e = w (won - p) / sqrt(w p (1 - p))

    One cluster at a time, to first order. The jackknife form of the sandwich (CR3; Bell and
    McCaffrey 2002), to be read with Student's t of G - 1 degrees: with few clusters the plain one
    is too small. Where one cluster alone settles a coefficient its votes count as one vote:
    A_g^T A_g times their weight.
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
        # [clusters of this size, size]: the rows of each, which stand together in `order`
        begins = starts[sizes == size]
        members = order[begins[:, None] + np.arange(size)]
        # in portions, for the memory of A V A^T
        for some in np.array_split(members, max(1, members.size // 20_000)):
            meat += _meat(A_RD[some], e_R[some], weight[some].sum(1), inverse)
    return inverse @ meat @ inverse * (len(sizes) - 1) / len(sizes)


def _meat(A: np.ndarray, e: np.ndarray, weight: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """sum of s s^T over clusters of equal size."""
    # (I - A V A^T)^-1 by its eigenvalues `left`, the share of itself that each direction keeps.
    left, turn = np.linalg.eigh(np.eye(A.shape[1]) - A @ inverse @ A.swapaxes(1, 2))
    alone = left[:, 0] < 1 - WHOLE
    left = np.where(alone[:, None], 1.0, left)
    turned = np.einsum("nji,nj->ni", turn, e) / left
    adjusted = np.einsum("nij,nj->ni", turn, turned)
    score = np.einsum("nsd,ns->nd", A, adjusted)[~alone]
    root = np.sqrt(weight[alone])[:, None, None]
    lone = (A[alone] * root).reshape(-1, A.shape[2])
    return score.T @ score + lone.T @ lone


def clustered(
    rows: np.ndarray,
    place: np.ndarray,
    share: np.ndarray,
    weight: np.ndarray,
    clusters: Sequence[Hashable],
) -> Clustering:
    """The clusters of votes on rows of a fit, for its errors.

    Votes of one cluster on the same two in the same slots are put together, as
    `clustered_covariance` takes them.
    """
    if len(clusters) != len(place):
        raise ValueError(f"one cluster for each vote: {len(clusters)} for {len(place)}")
    index = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
    # One number per (cluster, row): cluster * rows + row.
    numbered = [
        index[name] * len(rows) + k for name, k in zip(clusters, place.tolist(), strict=True)
    ]
    keys, at = np.unique(numbered, return_inverse=True)
    cluster, row = np.divmod(keys, len(rows))
    amount = np.bincount(at, weight)
    won = np.divide(
        np.bincount(at, weight * share), amount, out=np.zeros(len(keys)), where=amount > 0
    )

    def covariance(theta: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        return clustered_covariance(rows[row], won, amount, cluster, theta, inverse)

    return Clustering(len(index), covariance)
