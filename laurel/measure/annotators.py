"""Who can be believed: truth and skill estimated together from votes alone, and the panel of signs
of low effort.

No single sign sees every kind of cheating (agreement is blind to one who copies a language model,
slots to one who guesses), so there is a panel and no score. A flag is evidence for a person who
then looks; it is never a reason not to pay by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from laurel.measure.crowd import (
    LABELS,
    SLOTS,
    Crowd,
    Signal,
    Vote,
    above,
    against,
    beyond_chance,
    flagged,
    robust_z,
    runs_z,
)


@dataclass(frozen=True, slots=True)
class Consensus:
    """What the votes say together.

    Axes: I items, W annotators, K labels; `items` and `annotators` name the rows.

    posterior [I, K]: the chance of each true label. confusion [W, K, K]: row j is how an annotator
    labels items that truly are j. skill [W]: sum_j prior_j confusion_jj, the chance of a right
    label. prior [K]. objective: the log-likelihood that was climbed, with the smoothing's
    log-prior; `steps` until it stood still.
    """

    items: np.ndarray
    annotators: np.ndarray
    posterior: np.ndarray
    confusion: np.ndarray
    skill: np.ndarray
    prior: np.ndarray
    objective: float
    steps: int


def dawid_skene(
    votes: Sequence[tuple[int, int, int]] | np.ndarray,
    *,
    classes: int | None = None,
    smoothing: float = 0.0,
    steps: int = 500,
) -> Consensus:
    """Item truths and one confusion matrix per annotator, by EM from rows (item, annotator, label),
    labels 0 to K-1.

        E: T_ij prop p_j prod_k prod_l (pi^k_jl)^(n^k_il),    M: p_j = mean_i T_ij,  pi^k_jl prop
        sum_i T_ij n^k_il + smoothing

    In the log domain, started at the vote shares of each item, which fixes the names of the labels
    unless most annotators are worse
    than chance. smoothing: a symmetric Dirichlet's pseudo-votes per cell; use about 1, or
    `one_coin`, where annotators gave fewer than some 20 votes per label. Dawid and Skene 1979,
    JRSS-C 28:20. Refuses no votes, negative labels, fewer than two labels.
    """

    def confusion(truth: np.ndarray, table: _Table) -> np.ndarray:
        counts = np.zeros((len(table.annotators) * table.classes, table.classes))
        np.add.at(counts, table.annotator * table.classes + table.label, truth[table.item])
        counts = counts.reshape(-1, table.classes, table.classes).swapaxes(1, 2) + max(
            smoothing, 1e-12
        )
        return counts / counts.sum(2, keepdims=True)

    return _climb(_table(votes, classes, smoothing), confusion, smoothing, steps)


def one_coin(
    votes: Sequence[tuple[int, int, int]] | np.ndarray,
    *,
    classes: int | None = None,
    smoothing: float = 0.0,
    steps: int = 500,
) -> Consensus:
    """Item truths and one number per annotator: right with chance s_k, else any of the wrong labels
    alike.

        P(label l | truth j) = s_k if l = j else (1 - s_k) / (K - 1),    s_k = (sum of T at k's
        labels + smoothing) / (n_k + K smoothing)

    K parameters fewer per row than `dawid_skene`: for few votes per annotator. Rows, smoothing and
    refusals are the same. Skills lie anywhere in (0, 1) and a split vote is somebody's mistake:
    labels for training come from `tastes`, not from here. The one-coin model of Dawid and Skene
    1979; Zhang et al. 2014, arXiv:1406.3824.
    """

    def confusion(truth: np.ndarray, table: _Table) -> np.ndarray:
        size = len(table.annotators)
        right = np.bincount(table.annotator, truth[table.item, table.label], size) + max(
            smoothing, 1e-12
        )
        skill = right / (
            np.bincount(table.annotator, minlength=size) + table.classes * max(smoothing, 1e-12)
        )
        wrong = np.clip(1 - skill, 0, 1) / (table.classes - 1)
        same = np.eye(table.classes)
        return skill[:, None, None] * same + wrong[:, None, None] * (1 - same)

    table = _table(votes, classes, smoothing)
    return _climb(
        table, confusion, smoothing / table.classes, steps
    )  # each coin stands in K rows of its matrix


@dataclass(frozen=True, slots=True)
class _Table:
    items: np.ndarray
    annotators: np.ndarray
    item: np.ndarray
    annotator: np.ndarray
    label: np.ndarray
    classes: int


def _table(
    votes: Sequence[tuple[int, int, int]] | np.ndarray, classes: int | None, smoothing: float
) -> _Table:
    rows = np.asarray(votes)
    if (
        rows.ndim != 2
        or rows.shape[1] != 3
        or not len(rows)
        or not np.issubdtype(rows.dtype, np.integer)
    ):
        raise ValueError(
            f"votes are rows of integers (item, annotator, label), at least one; got {rows.dtype}"
            f" of shape {rows.shape}"
        )
    labels = int(rows[:, 2].max()) + 1 if classes is None else classes
    if labels < 2 or rows[:, 2].min() < 0 or rows[:, 2].max() >= labels:
        raise ValueError(
            f"labels lie between 0 and {max(labels, 2) - 1}; give `classes` if only one label was"
            " ever used"
        )
    if not (isfinite(smoothing) and smoothing >= 0):
        raise ValueError(f"smoothing is a number of pseudo-votes, 0 or more, got {smoothing}")
    items, item = np.unique(rows[:, 0], return_inverse=True)
    annotators, annotator = np.unique(rows[:, 1], return_inverse=True)
    return _Table(items, annotators, item, annotator, rows[:, 2], labels)


def _climb(
    table: _Table,
    confusion: Callable[[np.ndarray, _Table], np.ndarray],
    smoothing: float,
    steps: int,
) -> Consensus:
    """EM from the vote shares until the objective gains less than 1e-10 of itself."""
    truth = _vote_shares(table)
    matrix, prior = confusion(truth, table), truth.mean(0)
    objective, taken = -np.inf, 0
    while taken < steps:
        taken += 1
        before = objective
        matrix, prior = confusion(truth, table), truth.mean(0)
        log_matrix = np.log(np.maximum(matrix, 1e-300))
        log_prior = np.log(np.maximum(prior, 1e-300))
        log_truth = np.tile(log_prior, (len(table.items), 1))
        # Each vote adds log P(its label | truth) to its item, for every possible truth.
        np.add.at(log_truth, table.item, log_matrix[table.annotator, :, table.label])
        total = np.asarray(logsumexp(log_truth, axis=1, keepdims=True))
        truth = np.exp(log_truth - total)
        objective = float(total.sum() + (smoothing * log_matrix.sum() if smoothing else 0.0))
        if objective - before < 1e-10 * abs(objective):
            break
    skill = np.einsum("j,wjj->w", prior, matrix)
    return Consensus(table.items, table.annotators, truth, matrix, skill, prior, objective, taken)


def _vote_shares(table: _Table) -> np.ndarray:
    """[I, K] the share of an item's votes that each label has."""
    counts = np.zeros((len(table.items), table.classes))
    np.add.at(counts, (table.item, table.label), 1.0)
    return counts / counts.sum(1, keepdims=True)


@dataclass(frozen=True, slots=True)
class Signals:
    """The panel of one annotator with `n` votes; `flags` names the signs that stand out.

    Show all of it, to a person.

    speed: median seconds; z on log time. reading: share of votes faster than the floor of words per
    minute. entropy: of the answers as displayed, in bits; tested by how often the commonest was
    given. slots: |L - R| / sqrt(L + R). alternation: the runs test's z.
    ties: their share. agreement: with the consensus of the others on the same item minus across
    different items, as a share of the most that such a mix of answers could gain. echo: agreement
    with the model's answers, of the same item minus across, flagged only if
    `residual` is low too: agreement with the peers' majority where it differs from the model.
    pasted: share of votes with at least half of the rationale pasted.
    """

    annotator: Hashable
    n: int
    speed: Signal
    reading: Signal
    entropy: Signal
    slots: Signal
    alternation: Signal
    ties: Signal
    agreement: Signal
    echo: Signal
    residual: Signal
    pasted: Signal

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(name for name in SIGNS if getattr(self, name).flag)


LEAST_MIX = 0.05
"""Who answers more evenly than this is no less varied to `_agreement`; entropy sees them."""
SIGNS = (
    "speed",
    "reading",
    "entropy",
    "slots",
    "alternation",
    "ties",
    "agreement",
    "echo",
    "pasted",
)


def signals(
    votes: Sequence[Vote],
    *,
    alpha: float = 0.05,
    least_votes: int = 30,
    words_per_minute: float = 600.0,
    tolerated: float = 0.1,
    commonest: float = 0.8,
    least_agreement: float = 0.65,
) -> list[Signals]:
    """The panel for every annotator, in order of first appearance.

    Speed, slots, alternation, ties, agreement and echo are compared with the crowd's median and its
    true spread between annotators (`spread`, `against`); in a crowd of mixed skill agreement is
    compared with `least_agreement` of the median instead. Shares of unread and of pasted votes are
    tested against `tolerated`, that of the commonest answer against `commonest` (binomial). Each
    sign's flags come from Holm's procedure over the annotators at level `alpha`: where all are
    honest, one sign flags anybody at all in about one of twenty batches. Fewer than `least_votes`
    votes are shown and not tested. Refuses what `Crowd.of` refuses.

    On the real votes of LLMFAO (124 workers, 4 a pair, mixed skill) with cheaters of 80, 100, 150
    votes planted, 24 seeds each: guessing is flagged in .83, .81, 1.0 of cases; always left, always
    tie, alternating and copying GPT-4 always; half effort never by agreement, as half of a planted
    one's votes agree as well as those of many a real worker: only times can tell it there. 6 of the
    124 are flagged; `least_votes` and `least_agreement` were chosen on these same workers (20 and
    2/3 flag 7 or 8), so that share is no forecast. In a simulated crowd of equal skill, 12 votes an
    item, agreement finds half effort in .85 of cases at 80 votes and .9 at 120, and none of 2,400
    honest ones; nor any of 12 who honestly call 85 % of pairs a tie where others call a quarter so.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha lies between 0 and 1, got {alpha}")
    crowd = Crowd.of(votes, least_votes)
    echo, residual = _echo(crowd)
    columns = {
        "speed": _speed(crowd),
        "reading": _share(
            crowd,
            lambda vote: _unread(vote, words_per_minute),
            tolerated,
            "no times or no word counts",
        ),
        "entropy": _entropy(crowd, commonest),
        "slots": _slots(crowd),
        "alternation": _alternation(crowd),
        "ties": _ties(crowd),
        "agreement": _agreement(crowd, least_agreement),
        "echo": echo,
        "pasted": _share(
            crowd,
            lambda vote: None if vote.pasted is None else vote.pasted >= 0.5,
            tolerated,
            "no written rationale",
        ),
    }
    columns = {sign: flagged(column, alpha) for sign, column in columns.items()} | {
        "residual": residual
    }
    return [
        Signals(name, int(crowd.n[k]), **{sign: column[k] for sign, column in columns.items()})
        for k, name in enumerate(crowd.names)
    ]


def _speed(crowd: Crowd) -> list[Signal]:
    def median(k: int) -> float | None:
        times = [
            t
            for t in (crowd.votes[row].seconds for row in crowd.rows[k])
            if t is not None and t > 0
        ]
        return float(np.exp(np.median(np.log(times)))) if times else None

    signs = crowd.shown(median, "no times")
    fine = [k for k, sign in enumerate(signs) if not sign.reason]
    scores = (
        robust_z(
            np.log([sign.value for sign in signs if sign.value is not None and not sign.reason])
        )
        if len(fine) >= 4
        else None
    )
    if scores is None:
        return [
            (
                sign
                if sign.reason
                else replace(sign, reason="too few or too equal times to compare with")
            )
            for sign in signs
        ]
    for k, z in zip(fine, scores, strict=True):
        signs[k] = replace(signs[k], z=float(z), p=float(norm.cdf(z)))
    return signs


def _unread(vote: Vote, words_per_minute: float) -> bool | None:
    return (
        None
        if vote.seconds is None or not vote.words
        else vote.seconds < vote.words * 60 / words_per_minute
    )


def _share(
    crowd: Crowd, hit: Callable[[Vote], bool | None], tolerated: float, nothing: str
) -> list[Signal]:
    """The share of an annotator's votes that are hits, among those where it is known."""
    seen = [
        [x for x in (hit(crowd.votes[row]) for row in rows) if x is not None] for rows in crowd.rows
    ]
    signs = crowd.shown(lambda k: float(np.mean(seen[k])) if seen[k] else None, nothing)
    return above(signs, [sum(x) for x in seen], [len(x) for x in seen], tolerated)


def _entropy(crowd: Crowd, commonest: float) -> list[Signal]:
    counts = crowd.slot_counts()
    share = counts / crowd.n[:, None]
    bits = -(share * np.log2(np.maximum(share, 1e-300))).sum(1) + 0.0
    return above(
        crowd.shown(lambda k: float(bits[k]), ""),
        counts.max(1).tolist(),
        crowd.n.tolist(),
        commonest,
    )


def _slots(crowd: Crowd) -> list[Signal]:
    left, _, right = crowd.slot_counts().T
    decided = np.maximum(left + right, 1)
    z = np.abs(left - right) / np.sqrt(decided)
    signs = crowd.shown(lambda k: float(z[k]) if left[k] + right[k] else None, "ties only")
    return against(signs, left / decided, 0.5 / np.sqrt(decided), 0)


def _ties(crowd: Crowd) -> list[Signal]:
    """On the arcsine scale, where the error of a share is .5 / sqrt(n) whatever the share."""
    share = crowd.slot_counts()[:, 1] / crowd.n
    return against(
        crowd.shown(lambda k: float(share[k]), ""),
        np.arcsin(np.sqrt(share)),
        0.5 / np.sqrt(crowd.n),
        1,
    )


def _alternation(crowd: Crowd) -> list[Signal]:
    z = [runs_z([SLOTS[s] for s in crowd.slot[rows]]) for rows in crowd.rows]
    return against(
        crowd.shown(lambda k: z[k], "one answer throughout"),
        np.array([x or 0.0 for x in z]),
        np.ones(len(z)),
        0,
    )


def _agreement(crowd: Crowd, least: float) -> list[Signal]:
    """Agreement with the others beyond chance.

    Scores are the posterior of each item's label from the other annotators alone, weighed by their
    skill (Dawid and Skene). What is gained on chance is divided by the most that the annotator's
    own mix of answers could gain, 1 - sum of squared shares, and the error goes with its root: who
    honestly says tie often, which few others do, is not thereby one who guesses. An annotator who
    agrees with the others where both decide is not flagged.
    """
    score = _from_others(crowd, np.ones(len(crowd.label), dtype=bool))
    shared = np.bincount(crowd.item)[crowd.item] > 1
    signs, value, error = beyond_chance(crowd, score, shared, "no item shared with a peer")
    most = _most_gain(crowd)
    signs = [
        sign if sign.value is None else replace(sign, value=sign.value / own)
        for sign, own in zip(signs, most.tolist(), strict=True)
    ]
    signs = against(signs, value / most, error / np.sqrt(most * np.median(most)), -1, least=least)
    reason = "not flagged: it agrees with the others where both decide"
    # Those spared get p = 1, not None: they stay in the count of tests.
    return [
        replace(one, p=1.0, reason=reason) if spared and one.p is not None else one
        for one, spared in zip(signs, _agree_where_decided(crowd, least), strict=True)
    ]


def _most_gain(crowd: Crowd) -> np.ndarray:
    """[W] the most that an annotator's own mix of answers could gain on chance."""
    counts = np.zeros((len(crowd.names), len(LABELS)))
    np.add.at(counts, (crowd.annotator, crowd.label), 1.0)
    return np.maximum(1 - ((counts / crowd.n[:, None]) ** 2).sum(1), LEAST_MIX)


def _agree_where_decided(crowd: Crowd, least: float) -> list[bool]:
    """[W] whether an annotator agrees with the others on items where both chose a side."""
    decided = crowd.label != LABELS.index("tie")
    shared = decided & (np.bincount(crowd.item, decided)[crowd.item] > 1)
    signs, value, error = beyond_chance(
        crowd, _from_others(crowd, decided), shared, "no item on which a peer decided, too"
    )
    signs = against(signs, value, error, -1, least=least)
    return [sign.p is not None and sign.p >= 0.05 for sign in signs]


def _from_others(crowd: Crowd, used: np.ndarray) -> np.ndarray:
    """[V, K] what the other annotators' votes make of the item of each vote; 0 of votes not used.

    The posterior of the item's label without the vote itself: its factor is divided out.
    """
    found = np.zeros((len(crowd.label), len(LABELS)))
    if used.any():
        consensus = dawid_skene(
            np.stack([crowd.item, crowd.annotator, crowd.label], 1)[used],
            classes=len(LABELS),
            smoothing=1.0,
        )
        item = np.searchsorted(consensus.items, crowd.item[used])
        who = np.searchsorted(consensus.annotators, crowd.annotator[used])
        posterior = np.log(np.maximum(consensus.posterior[item], 1e-300))
        others = posterior - np.log(consensus.confusion[who, :, crowd.label[used]])
        found[used] = np.exp(others - logsumexp(others, axis=1, keepdims=True))
    return found


def _echo(crowd: Crowd) -> tuple[list[Signal], list[Signal]]:
    """Agreement with the model beyond chance, and with the peers where they contradict it.

    The second is agreement with the peers' strict majority on the items where it is not the model's
    answer.
    """
    known = crowd.model >= 0
    same = (crowd.model[:, None] == np.arange(len(LABELS))) * 1.0
    signs, value, error = beyond_chance(crowd, same, known, "no model's answers")
    echo = against(signs, value, error, 1)
    majority, strict = _peer_majority(crowd)
    differ = known & strict & (majority != crowd.model)
    right = crowd.label == majority
    number = np.bincount(crowd.annotator, differ, len(crowd.names))
    share = np.bincount(crowd.annotator, differ & right, len(crowd.names)) / np.maximum(number, 1)
    signs = crowd.shown(
        lambda k: float(share[k]) if number[k] else None, "no item where peers and model differ"
    )
    pooled = float(right[differ].mean()) if differ.any() else 0.5
    error = np.sqrt(max(pooled * (1 - pooled), 1e-3) / np.maximum(number, 1))
    residual = against(signs, share, error, -1)
    return [_gated(one, two) for one, two in zip(echo, residual, strict=True)], residual


def _peer_majority(crowd: Crowd) -> tuple[np.ndarray, np.ndarray]:
    """[V] the commonest label of each vote's peers, and whether it is the only commonest."""
    counts = np.zeros((crowd.item.max() + 1, len(LABELS)))
    np.add.at(counts, (crowd.item, crowd.label), 1.0)
    peers = counts[crowd.item]
    peers[np.arange(len(peers)), crowd.label] -= 1  # without the vote itself
    ranked = np.sort(peers, 1)
    return peers.argmax(1), ranked[:, -1] > ranked[:, -2]


def _gated(echo: Signal, residual: Signal) -> Signal:
    if echo.p is None or (residual.p is not None and residual.p < 0.05):
        return echo
    return replace(echo, p=None, reason="not flagged: the residual test does not speak for an echo")
