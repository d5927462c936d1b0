"""From comparisons to a ranking: Bradley-Terry with ties and a first-slot term, Plackett-Luce, Elo,
and rank correlations.

The likelihoods are concave, so Newton's method finds the one maximum, where there is one: it exists
exactly when no group of items beats all others without ever losing (Ford 1957). Else the groups are
reported and no number is invented.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, log, sqrt
from statistics import NormalDist

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import logsumexp
from scipy.stats import t as student

from laurel.measure.agreement import Agreement
from laurel.measure.clustered_errors import Clustering, clustered
from laurel.measure.intervals import Interval

Matrix = Sequence[Sequence[float]] | np.ndarray
Expansion = tuple[float, np.ndarray, np.ndarray]
"""A log-likelihood at theta: its value, its slope and its bend (minus the second derivative)."""
Likelihood = Callable[[np.ndarray], Expansion]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Abilities of n items, `log_ability` with mean 0, or None with the `reason`.

    probability: exp(log_ability), summing to 1. error: standard errors of the log-abilities, from
    the inverse of the information matrix `covariance`, or from leaving out clusters where there are
    `clusters` of them. tie: Davidson's nu. slot: the first slot's advantage in logits and
    `slot_error`. n: comparisons (or rankings), weights summed. components: the groups within which
    every item can be reached from every other by wins; one group if all is well, else the strongest
    first where they are ordered.
    """

    names: tuple[Hashable, ...]
    n: float
    components: tuple[tuple[Hashable, ...], ...]
    log_ability: np.ndarray | None = None
    probability: np.ndarray | None = None
    error: np.ndarray | None = None
    covariance: np.ndarray | None = None
    tie: float | None = None
    slot: float | None = None
    slot_error: float | None = None
    reason: str = ""
    clusters: int | None = None

    def difference(self, first: Hashable, second: Hashable, *, level: float = 0.95) -> Interval:
        """log-ability of `first` minus that of `second`, with its interval.

        Times 400 / ln 10 it is a gap in Elo points.
        """
        if self.log_ability is None or self.covariance is None:
            raise ValueError(f"there are no abilities to compare: {self.reason}")
        i, j = self.names.index(first), self.names.index(second)
        value = float(self.log_ability[i] - self.log_ability[j])
        variance = self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j]
        half = self.reach(level) * sqrt(max(variance, 0))
        return Interval(value, value - half, value + half, self.clusters or round(self.n), level)

    def reach(self, level: float = 0.95) -> float:
        """Half the width of an interval in standard errors: the normal quantile, or Student's t
        with one cluster less than there are.
        """
        if self.clusters is None:
            return NormalDist().inv_cdf((1 + level) / 2)
        return float(student.ppf((1 + level) / 2, self.clusters - 1)) if self.clusters > 1 else inf

    def elo(self, *, anchor: float = 1000.0) -> np.ndarray | None:
        """Abilities in Elo points around `anchor`: 400 / ln 10 per logit, so that 7 wins to 3 are
        147.19 apart.
        """
        return None if self.log_ability is None else anchor + 400 / log(10) * self.log_ability


def bradley_terry(
    wins: Matrix,
    tied: Matrix | None = None,
    *,
    ties: str | None = None,
    names: Sequence[Hashable] | None = None,
) -> Ranking:
    """P(i beats j) = p_i / (p_i + p_j) from wins[i, j], how often i beat j.

    ties="half" counts a tie as half a win for each; "davidson" adds P(tie) prop nu sqrt(p_i p_j)
    and fits nu. `tied` is the symmetric table of ties and needs one of the two. 7 to 3: p = (.7,
    .3). Maximum likelihood; Bradley and Terry 1952, Hunter 2004 (when it exists), Davidson 1970. No
    abilities, but the components, where the graph of wins is not strongly connected.
    """
    won, drawn = _square(wins, "wins"), None if tied is None else _square(tied, "ties")
    if ties not in (None, "half", "davidson") or (drawn is None) != (ties is None):
        raise ValueError(
            f'ties is "half" or "davidson" with a table of ties, and None without one; got {ties!r}'
        )
    size = len(won)
    labels = tuple(range(size)) if names is None else tuple(names)
    if len(labels) != size:
        raise ValueError(f"{len(labels)} names for {size} items")
    if drawn is not None and (drawn.shape != won.shape or not np.array_equal(drawn, drawn.T)):
        raise ValueError(
            "the table of ties is symmetric and as large as that of wins: tied[i, j] = tied[j, i],"
            " each tie once"
        )
    drawn = np.zeros_like(won) if drawn is None else drawn
    rows, counts = _pairs_that_met(won, drawn, ties)
    return _bradley_terry(labels, rows, counts, won + drawn, davidson=ties == "davidson")


def _pairs_that_met(
    won: np.ndarray, drawn: np.ndarray, ties: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [R, n] with +1 for i and -1 for j, and counts [R, (i's wins, j's wins, ties)]."""
    i, j = np.triu_indices(len(won), 1)
    met = won[i, j] + won[j, i] + drawn[i, j] > 0
    i, j = i[met], j[met]
    half = drawn[i, j] / 2 if ties == "half" else 0.0
    third = drawn[i, j] if ties == "davidson" else np.zeros(len(i))
    counts = np.stack([won[i, j] + half, won[j, i] + half, third], 1)
    return _differences(i, j, len(won)), counts


def bradley_terry_slots(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    won: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    clusters: Sequence[Hashable] | None = None,
    slots: bool = True,
) -> Ranking:
    """Abilities freed from the slot, and the slot's pull g.

        logit P(A wins) = b_A - b_B + g s,    s = +1 where A was shown first

    Row r: `first[r]` was shown first, `second[r]` second, won[r] is 1 if the first won, 0 if the
    second did, .5 for a tie, or any soft label between. weights: how much a vote counts (an
    annotator's skill). clusters: the item of each vote; votes on one item are not independent, and
    the errors then come from leaving out items (`clustered_covariance`). slots=False: without g.
    With every pair shown both ways equally g changes nothing but itself. Davidson and Beaver 1977.
    No numbers where the graph of wins is not strongly connected, or the first slot always won.
    """
    share, weight = _checked_votes(first, second, won, weights)
    index = {name: k for k, name in enumerate(dict.fromkeys([*first, *second]))}
    size = len(index)
    # Votes on the same two in the same slots are one row: its code is first * size + second.
    codes, place = np.unique(_pair_codes(first, second, index), return_inverse=True)
    shown_first, shown_second = codes // size, codes % size
    first_won = np.bincount(place, weight * share)
    second_won = np.bincount(place, weight * (1 - share))
    counts = np.stack([first_won, second_won, np.zeros(len(codes))], 1)
    differences = _differences(shown_first, shown_second, size)
    rows = np.hstack([differences, np.ones((len(codes), int(slots)))])
    beats = _wins(shown_first, shown_second, first_won, size)
    beats += _wins(shown_second, shown_first, second_won, size)
    by_cluster = None if clusters is None else clustered(rows, place, share, weight, clusters)
    return _bradley_terry(tuple(index), rows, counts, beats, slot=slots, clustering=by_cluster)


def _pair_codes(
    first: Sequence[Hashable], second: Sequence[Hashable], index: dict[Hashable, int]
) -> np.ndarray:
    """[rows] the number of the first item times the number of items, plus that of the second."""
    one = np.array([index[name] for name in first])
    two = np.array([index[name] for name in second])
    if (one == two).any():
        row = int((one == two).argmax())
        raise ValueError(f"row {row} compares {first[row]!r} with itself")
    return one * len(index) + two


def _wins(winner: np.ndarray, loser: np.ndarray, amount: np.ndarray, size: int) -> np.ndarray:
    """[size, size] how much each item won against each other."""
    table = np.zeros((size, size))
    np.add.at(table, (winner, loser), amount)
    return table


def _differences(one: np.ndarray, two: np.ndarray, size: int) -> np.ndarray:
    """[R, size] +1 for one item and -1 for the other: a row times abilities is b_one - b_two."""
    rows = np.zeros((len(one), size))
    rows[np.arange(len(one)), one] = 1
    rows[np.arange(len(one)), two] = -1
    return rows


def _checked_votes(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    won: Sequence[float],
    weights: Sequence[float] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """`won` and the weights (1 where there are none) as arrays of one length."""
    share = np.asarray(won, dtype=float)
    weight = np.ones(len(share)) if weights is None else np.asarray(weights, dtype=float)
    if not len(first) == len(second) == len(share) == len(weight) or not len(share):
        raise ValueError(
            f"columns of one length, at least one row: {len(first)}, {len(second)}, {len(share)}"
            f" and {len(weight)}"
        )
    between = (share >= 0) & (share <= 1)
    if not (between.all() and np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("won lies between 0 and 1 and weights are finite and not negative")
    return share, weight


def plackett_luce(
    rankings: Sequence[Sequence[Hashable]], *, weights: Sequence[float] | None = None
) -> Ranking:
    """P(a > b > c ...) = product over places of p_chosen / sum of p over those not placed yet.

    Rankings best first, partial ones allowed. 3 times 0>1>2, 2 times 1>0>2, once 0>2>1: (.68775,
    .26581, .04644). Two items are Bradley-Terry. Plackett 1975; Luce 1959; Hunter 2004 (when the
    maximum exists). Pairs cut out of one ranking are not independent: keep them together with
    weight 1 / C(K, 2), or fit this.
    """
    weight = np.ones(len(rankings)) if weights is None else np.asarray(weights, dtype=float)
    whole = all(len(set(ranking)) == len(ranking) >= 2 for ranking in rankings)
    if not len(rankings) or len(weight) != len(rankings) or not whole:
        raise ValueError(
            "rankings name two or more different items each, best first, and have one weight each"
        )
    named = dict.fromkeys(name for ranking in rankings for name in ranking)
    index = {name: k for k, name in enumerate(named)}
    size = len(index)
    chosen, among_RN, weight_R = _choices(
        [[index[name] for name in ranking] for ranking in rankings], weight, size
    )
    beats = np.zeros((size, size))
    for best, among, w in zip(chosen, among_RN, weight_R, strict=True):
        beats[best, among] += w
    beats[np.arange(size), np.arange(size)] = 0  # the chosen one is among those left
    likelihood = partial(_best_of_those_left, chosen, among_RN, weight_R)
    return _finish(tuple(index), float(weight.sum()), beats, likelihood)


def _best_of_those_left(
    chosen: np.ndarray, among_RN: np.ndarray, weight_R: np.ndarray, theta: np.ndarray
) -> Expansion:
    """The log-likelihood of choices: a softmax over those left, whose scores alone count."""
    scores = np.where(among_RN, theta, -np.inf)
    total = np.asarray(logsumexp(scores, axis=1, keepdims=True))
    p = np.exp(scores - total)
    value = float(weight_R @ (theta[chosen] - total[:, 0]))
    slope = np.bincount(chosen, weight_R, len(theta)) - weight_R @ p
    bend = np.diag(weight_R @ p) - (p * weight_R[:, None]).T @ p
    return value, slope, bend


def _choices(
    orders: Sequence[Sequence[int]], weight: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each ranking as choices of the best of those left: chosen [R], left [R, N], weight [R]."""
    chosen: list[int] = []
    left: list[np.ndarray] = []
    amount: list[float] = []
    for order, w in zip(orders, weight, strict=True):
        for place in range(len(order) - 1):
            among = np.zeros(size, dtype=bool)
            among[order[place:]] = True
            chosen.append(order[place])
            left.append(among)
            amount.append(w)
    return np.array(chosen), np.array(left), np.array(amount)


def elo(
    games: Sequence[tuple[Hashable, Hashable, float]],
    *,
    k: float = 32.0,
    start: float = 1000.0,
    scale: float = 400.0,
) -> dict[Hashable, float]:
    """Ratings after games (a, b, score of a): r_a += k (s - E), r_b -= k (s - E), E = 1 / (1 +
    10^((r_b - r_a) / scale)).

    The order of the games changes the ratings (a circle of three wins ends with three different
    ones): report `bradley_terry`, use this for a running view only. Elo 1978.
    """
    rating: dict[Hashable, float] = {}
    for a, b, score in games:
        if not 0 <= score <= 1:
            raise ValueError(f"a score lies between 0 and 1, got {score} for {a!r} against {b!r}")
        one, two = rating.setdefault(a, start), rating.setdefault(b, start)
        gain = k * (score - expected_score(one, two, scale=scale))
        rating[a], rating[b] = one + gain, two - gain
    return rating


def expected_score(own: float, other: float, *, scale: float = 400.0) -> float:
    """1 / (1 + 10^((other - own) / scale)): 1000 against 1200 expects .240253."""
    return 1 / (1 + 10 ** ((other - own) / scale))


def kendall_w(ranks: Matrix) -> Agreement:
    """Concordance of m raters who rank n items, rows of ranks (mid-ranks for ties): W = 12 S / (m^2
    (n^3 - n) - m sum T).

    S: squared deviations of the rank sums from their mean; T = sum over a rater's groups of t ties
    of t^3 - t. 1234, 2134, 1324: .7778. Kendall and Babington Smith 1939. Undefined where every
    rater ties everything. No interval: raters are few.
    """
    table = np.asarray(ranks, dtype=float)
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 2:
        raise ValueError(
            f"ranks are a table [raters, items] of at least 2 by 2, got shape {table.shape}"
        )
    table = np.stack([_midranks(row) for row in table])
    m, n = table.shape
    tied = sum(
        float((c**3 - c).sum()) for c in (np.unique(row, return_counts=True)[1] for row in table)
    )
    below = m * m * (n**3 - n) - m * tied
    if below <= 0:
        return Agreement(None, None, None, n, "every rater ties every item")
    return Agreement(
        float(12 * ((table.sum(0) - table.sum(0).mean()) ** 2).sum() / below),
        None,
        None,
        n,
        "not bootstrapped",
    )


def spearman(
    x: Sequence[float], y: Sequence[float], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Agreement:
    """rho: the correlation of mid-ranks, with a bootstrap interval over the n systems.

    Spearman 1904.

    Read n first: over 6 systems even 1.0 proves little. Undefined where either is constant.
    """
    a, b = _paired(x, y)

    def rho(weight: np.ndarray) -> np.ndarray:
        ranks = []
        for column in (a, b):
            below = (column[None, :] < column[:, None]) + (column[None, :] == column[:, None]) / 2
            rank = weight @ below.T
            ranks.append(rank - (weight * rank).sum(1, keepdims=True) / len(a))
        one, two = ranks
        return _over(
            (weight * one * two).sum(1), (weight * one**2).sum(1) * (weight * two**2).sum(1)
        )

    return _correlation(rho, len(a), level, draws, seed)


def kendall_tau_b(
    x: Sequence[float], y: Sequence[float], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Agreement:
    """tau-b = (C - D) / sqrt((n0 - n1)(n0 - n2)): concordant minus discordant pairs, ties in x (n1)
    and in y (n2) taken out.

    [1, 2, 2, 3] against [1, 3, 2, 4]: .9129. Kendall 1945. Undefined where either is constant.
    """
    a, b = _paired(x, y)
    one, two = (np.sign(np.subtract.outer(column, column)) for column in (a, b))

    def tau(weight: np.ndarray) -> np.ndarray:
        agree, in_x, in_y = (
            ((weight @ signs) * weight).sum(1) for signs in (one * two, np.abs(one), np.abs(two))
        )
        return _over(agree, in_x * in_y)

    return _correlation(tau, len(a), level, draws, seed)


def _square(table: Matrix, what: str) -> np.ndarray:
    matrix = np.asarray(table, dtype=float)
    if (
        matrix.ndim != 2
        or matrix.shape[0] != matrix.shape[1]
        or len(matrix) < 2
        or not np.isfinite(matrix).all()
        or (matrix < 0).any()
    ):
        raise ValueError(
            f"{what} are a square table of counts of two or more items, got shape {matrix.shape}"
        )
    if np.diag(matrix).any():
        raise ValueError(f"the diagonal of {what} is zero: nothing is compared with itself")
    return matrix


def _bradley_terry(
    names: tuple[Hashable, ...],
    rows: np.ndarray,
    counts: np.ndarray,
    beats: np.ndarray,
    *,
    davidson: bool = False,
    slot: bool = False,
    clustering: Clustering | None = None,
) -> Ranking:
    """The maximum likelihood for rows X [R, n (+ slot)] and counts [R, (wins, losses, ties)].

    P(first) : P(second) : P(tie) = e^(u/2) : e^(-u/2) : e^t with u = X theta, t = log nu. Without
    `davidson` there is no third outcome.
    """
    return _finish(
        names,
        float(counts.sum(1).sum()),
        beats,
        partial(_davidson if davidson else _two_outcomes, rows, counts),
        davidson=davidson,
        slot=slot,
        clustering=clustering,
    )


def _two_outcomes(rows: np.ndarray, counts: np.ndarray, theta: np.ndarray) -> Expansion:
    """The log-likelihood of wins and losses with its slope and bend."""
    scores = _outcome_scores(rows @ theta, -np.inf)
    return _log_likelihood(rows, counts, scores)[0]


def _davidson(rows: np.ndarray, counts: np.ndarray, theta: np.ndarray) -> Expansion:
    """The same with ties: the last of theta is t = log nu."""
    scores = _outcome_scores(rows @ theta[:-1], theta[-1])
    (value, slope, bend), p, gap = _log_likelihood(rows, counts, scores)
    total = counts.sum(1)
    cross = -(total * gap * p[:, 2]) @ rows
    corner = float((total * p[:, 2] * (1 - p[:, 2])).sum())
    return (
        value + float(counts[:, 2].sum() * theta[-1]),
        np.append(slope, (counts[:, 2] - total * p[:, 2]).sum()),
        np.block([[bend, cross[:, None]], [cross[None], np.array([[corner]])]]),
    )


def _outcome_scores(u: np.ndarray, tie: float) -> np.ndarray:
    """[R, (first, second, tie)] the log of what the three probabilities are proportional to."""
    return np.stack([u / 2, -u / 2, np.full(len(u), tie)], 1)


def _log_likelihood(
    rows: np.ndarray, counts: np.ndarray, scores: np.ndarray
) -> tuple[Expansion, np.ndarray, np.ndarray]:
    """(value, slope, bend) in u's part of theta, the probabilities [R, 3], and their gap [R]."""
    total = counts.sum(1)
    norm = np.asarray(logsumexp(scores, axis=1))
    p = np.exp(scores - norm[:, None])
    gap = (p[:, 0] - p[:, 1]) / 2
    slope = ((counts[:, 0] - counts[:, 1]) / 2 - total * gap) @ rows
    bend = rows.T @ (rows * (total * ((p[:, 0] + p[:, 1]) / 4 - gap**2))[:, None])
    value = float((counts[:, :2] * scores[:, :2]).sum() - total @ norm)
    return (value, slope, bend), p, gap


def _finish(
    names: tuple[Hashable, ...],
    n: float,
    beats: np.ndarray,
    likelihood: Likelihood,
    *,
    davidson: bool = False,
    slot: bool = False,
    clustering: Clustering | None = None,
) -> Ranking:
    """The ranking at the maximum, or the reason why there is none."""
    parts = tuple(tuple(names[k] for k in group) for group in _components(beats))
    if len(parts) > 1:
        return Ranking(names, n, parts, reason=_not_connected(parts))
    items = len(names)
    # Abilities are free up to a constant: `ones` fixes their mean and moves nothing else.
    ones = np.zeros((items + davidson + slot, items + davidson + slot))
    ones[:items, :items] = 1 / items
    theta, inverse = _newton(likelihood, ones)
    if theta is None:
        extra = "nu of the ties" if davidson else "the first slot's term"
        reason = f"{extra} has no finite estimate: one outcome explains every comparison"
        return Ranking(names, n, parts, reason=reason)
    whole = inverse - ones if clustering is None else clustering.covariance(theta, inverse)
    ranking = _abilities(names, n, parts, theta[:items], whole[:items, :items])
    return replace(
        ranking,
        tie=float(np.exp(theta[items])) if davidson else None,
        slot=float(theta[items]) if slot else None,
        slot_error=float(np.sqrt(whole[items, items])) if slot else None,
        clusters=None if clustering is None else clustering.count,
    )


def _not_connected(parts: Sequence[tuple[Hashable, ...]]) -> str:
    return (
        f"no finite abilities: {len(parts)} groups never lose to, or never meet, each other: "
        + "; ".join(map(str, parts))
    )


def _abilities(
    names: tuple[Hashable, ...],
    n: float,
    parts: tuple[tuple[Hashable, ...], ...],
    theta: np.ndarray,
    covariance: np.ndarray,
) -> Ranking:
    """The ranking of items whose abilities are theta, up to a constant."""
    ability = theta - theta.mean()
    return Ranking(
        names,
        n,
        parts,
        log_ability=ability,
        probability=np.exp(ability - logsumexp(ability)),
        error=np.sqrt(np.maximum(np.diag(covariance), 0)),
        covariance=covariance,
    )


def _newton(likelihood: Likelihood, ones: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The maximum of a concave function, and the inverse of bend + ones there.

    The function is flat along the direction of `ones`. None where the maximum is not finite.
    """
    theta = np.zeros(len(ones))
    value, slope, bend = likelihood(theta)
    for _ in range(200):
        try:
            step = np.linalg.solve(bend + ones, slope)
        except np.linalg.LinAlgError:
            return None, ones
        if np.abs(step).max() < 1e-11 * max(1.0, np.abs(theta).max()):
            return theta, np.linalg.inv(bend + ones)
        size = 1.0
        found = likelihood(theta + size * step)
        while found[0] < value - 1e-12 * abs(value) and size > 1e-6:
            size /= 2
            found = likelihood(theta + size * step)
        theta = theta + size * step
        value, slope, bend = found
        if np.abs(theta).max() > 40:
            return None, ones
    return theta, np.linalg.inv(bend + ones)


def _components(beats: np.ndarray) -> list[list[int]]:
    """Strongly connected groups of the graph i -> j where i beat j, more wins against the rest
    first.
    """
    count, label = connected_components(csr_array(beats > 0), directed=True, connection="strong")
    groups = [np.flatnonzero(label == k).tolist() for k in range(count)]
    outside = [float(beats[g].sum() - beats[:, g].sum()) for g in groups]
    return [groups[k] for k in sorted(range(count), key=lambda k: (-outside[k], groups[k]))]


def _paired(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if (
        a.shape != b.shape
        or a.ndim != 1
        or len(a) < 2
        or not (np.isfinite(a).all() and np.isfinite(b).all())
    ):
        raise ValueError(
            "a rank correlation needs two columns of finite numbers of one length, got shapes"
            f" {a.shape} and {b.shape}"
        )
    return a, b


def _midranks(x: np.ndarray) -> np.ndarray:
    return (x[None, :] < x[:, None]).sum(1) + ((x[None, :] == x[:, None]).sum(1) + 1) / 2


def _over(above: np.ndarray, squared: np.ndarray) -> np.ndarray:
    return np.divide(
        above,
        np.sqrt(np.maximum(squared, 0)),
        out=np.full(len(above), np.nan),
        where=squared > 1e-12,
    )


def _correlation(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, level: float, draws: int, seed: int
) -> Agreement:
    """A statistic of how often each system is drawn [draws, n], and its percentile bootstrap."""
    value = float(statistic(np.ones((1, n)))[0])
    if np.isnan(value):
        return Agreement(None, None, None, n, "one of the two columns is constant", level)
    found = statistic(
        np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws).astype(float)
    )
    found = found[np.isfinite(found)]
    if len(found) < 0.9 * draws:
        return Agreement(
            value, None, None, n, "too few systems: too many of the resamples are constant", level
        )
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Agreement(value, float(low), float(high), n, "", level)
