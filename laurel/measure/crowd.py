"""One annotator against the crowd: votes as columns, the crowd's median and spread, tests, and
family-wise flags.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt

import numpy as np
from scipy.stats import binom, norm

LABELS = ("a", "tie", "b")
SLOTS = ("left", "tie", "right")
MAD = 1.4826
"""1 / normal quantile of 3/4: the median absolute deviation times this is the standard deviation of
a normal sample.
"""


@dataclass(frozen=True, slots=True)
class Vote:
    """One answer to "which is better?".

    `label` names the response ("a", "tie", "b"), `slot_label` the place it was shown in.

    seconds: active time, words: how much there was to read, model_label: what a language model
    answered on the item, pasted: the fraction of a written rationale that was pasted. None where
    not known. Votes of one annotator come in the order they were given.
    """

    item: Hashable
    annotator: Hashable
    slot_label: str
    label: str
    seconds: float | None = None
    words: int = 0
    model_label: str | None = None
    pasted: float | None = None


@dataclass(frozen=True, slots=True)
class Signal:
    """One sign: its value, how many standard errors it lies from its reference (`z`), its chance
    under honesty (`p`), and the flag.

    What cannot be computed or tested is None, `reason` says why, and it is never flagged. A
    binomial test has p and no z.
    """

    value: float | None
    z: float | None = None
    p: float | None = None
    flag: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Votes as columns.

    `rows[k]` are the positions of annotator k's votes in the order given, `n[k]` their number;
    model -1: none.
    """

    votes: Sequence[Vote]
    names: list[Hashable]
    item: np.ndarray
    annotator: np.ndarray
    label: np.ndarray
    slot: np.ndarray
    model: np.ndarray
    rows: list[np.ndarray]
    n: np.ndarray
    tested: np.ndarray

    @staticmethod
    def of(votes: Sequence[Vote], least_votes: int) -> Crowd:
        """Refuses no votes, unknown labels, and two votes of one annotator on one item."""
        _check_votes(votes)
        items = {name: k for k, name in enumerate(dict.fromkeys(vote.item for vote in votes))}
        names = {name: k for k, name in enumerate(dict.fromkeys(vote.annotator for vote in votes))}
        annotator = np.array([names[vote.annotator] for vote in votes])
        n = np.bincount(annotator, minlength=len(names))
        model = [
            -1 if vote.model_label is None else LABELS.index(vote.model_label) for vote in votes
        ]
        return Crowd(
            votes=votes,
            names=list(names),
            item=np.array([items[vote.item] for vote in votes]),
            annotator=annotator,
            label=np.array([LABELS.index(vote.label) for vote in votes]),
            slot=np.array([SLOTS.index(vote.slot_label) for vote in votes]),
            model=np.array(model),
            rows=[np.flatnonzero(annotator == k) for k in range(len(names))],
            n=n,
            tested=n >= least_votes,
        )

    def slot_counts(self) -> np.ndarray:
        """[W, 3] answers left, tie, right."""
        counts = np.zeros((len(self.names), len(SLOTS)), dtype=int)
        np.add.at(counts, (self.annotator, self.slot), 1)
        return counts

    def shown(
        self, value: Callable[[int], float | None], nothing: str, enough: np.ndarray | None = None
    ) -> list[Signal]:
        """One signal per annotator, untested so far.

        `nothing` is the reason for None, and few votes are a reason not to test.
        """
        signs: list[Signal] = []
        for k, fine in enumerate(self.tested if enough is None else enough):
            x = value(k)
            few = "" if fine else f"{self.n[k]} votes are too few to test"
            signs.append(Signal(x, reason=nothing if x is None else few))
        return signs


def _check_votes(votes: Sequence[Vote]) -> None:
    if not votes:
        raise ValueError("a panel needs at least one vote")
    for vote in votes:
        if (
            vote.label not in LABELS
            or vote.slot_label not in SLOTS
            or vote.model_label not in (*LABELS, None)
        ):
            raise ValueError(
                f"{vote}: labels are {LABELS}, slots {SLOTS}, the model's label one of {LABELS}"
                " or None"
            )
    if len({(vote.item, vote.annotator) for vote in votes}) < len(votes):
        raise ValueError(
            "an annotator voted twice on one item; keep the last revision of each vote"
        )


def robust_z(values: Sequence[float] | np.ndarray) -> np.ndarray | None:
    """(x - median) / (1.4826 median |x - median|), or None where half of the values or more are
    equal. Take the log of times first.

    Times 41 38 45 52 39 44 40 47 43 3: the 3 seconds have z -24.88 on the log scale, the next 2.02.
    Iglewicz and Hoaglin 1993.
    """
    x = np.asarray(values, dtype=float)
    if not len(x):
        return None
    spread = MAD * float(np.median(np.abs(x - np.median(x))))
    return (x - np.median(x)) / spread if spread > 0 else None


def runs_z(labels: Sequence[Hashable]) -> float | None:
    """How many more runs of equal answers a sequence has than a shuffled one, in standard
    deviations; None if all are equal.

        E = (n(n + 1) - s2) / n,    Var = (s2 (s2 + n(n + 1)) - 2 n s3 - n^3) / (n^2 (n - 1)),
        s_p = sum over labels of count^p

    Left right left right ... is far above 0, long blocks far below. Wald and Wolfowitz 1940; Barton
    and David 1957 for k labels.
    """
    kinds: dict[Hashable, int] = {}
    for label in labels:
        kinds[label] = kinds.get(label, 0) + 1
    n, s2, s3 = len(labels), sum(c**2 for c in kinds.values()), sum(c**3 for c in kinds.values())
    variance = (s2 * (s2 + n * (n + 1)) - 2 * n * s3 - n**3) / (n * n * (n - 1)) if n > 1 else 0.0
    runs = 1 + sum(one != two for one, two in pairwise(labels))
    return (runs - (n * (n + 1) - s2) / n) / sqrt(variance) if variance > 1e-12 else None


def spread(value: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """The crowd's median m and its true spread tau beyond sampling error, neither moved by a few
    cheaters.

    tau makes the median of (x - m)^2 / (error^2 + tau^2) that of chi-squared with one degree of
    freedom, .4549; 0 if it is less already. A robust form of the moment estimate of random-effects
    meta-analysis (Paule and Mandel 1982).
    """
    middle = float(np.median(value))
    squares, target = (value - middle) ** 2, norm.ppf(0.75) ** 2
    low, high = 0.0, float(np.abs(value - middle).max()) * 4 + 1e-12
    if np.median(squares / np.maximum(error, 1e-12) ** 2) <= target:
        return middle, 0.0
    for _ in range(60):
        tau = (low + high) / 2
        low, high = (tau, high) if np.median(squares / (error**2 + tau**2)) > target else (low, tau)
    return middle, high


def against(
    signs: list[Signal],
    value: np.ndarray,
    error: np.ndarray,
    side: int,
    *,
    least: float | None = None,
) -> list[Signal]:
    """Adds z and p to the signals that have no reason not to be tested, against the crowd of just
    these.

        z = (x - m) / sqrt(error^2 + tau^2),    or, with `least`, where that is the sharper against
        x = 0,    z = (x - least m) / error

    The second asks whether x lies below the share `least` of the crowd's median: in a crowd whose
    skill varies much, one who guesses is no outlier of the spread. Which is asked depends on the
    crowd and the number of votes, not on x. side: -1 low is bad, 1 high is bad, 0 both are. Fewer
    than 4 annotators are no crowd.
    """
    fine = np.flatnonzero([not sign.reason for sign in signs])
    if len(fine) < 4:
        return [
            sign if sign.reason else replace(sign, reason="fewer than 4 annotators to compare with")
            for sign in signs
        ]
    middle, tau = spread(value[fine], error[fine])
    tested = list(signs)
    for k in fine:
        wide, narrow = sqrt(error[k] ** 2 + tau**2), float(error[k])
        if least is None or middle <= 0 or least * wide <= narrow:
            z = float(value[k] - middle) / wide
        else:
            z = float(value[k] - least * middle) / narrow
        tested[k] = replace(
            signs[k], z=z, p=float(2 * norm.sf(abs(z)) if side == 0 else norm.sf(side * z))
        )
    return tested


def above(
    signs: list[Signal], hits: Sequence[int], trials: Sequence[int], tolerated: float
) -> list[Signal]:
    """Adds p of the exact binomial test that an annotator's share of hits exceeds the tolerated
    share.
    """
    return [
        sign if sign.reason else replace(sign, p=float(binom.sf(hit - 1, trial, tolerated)))
        for sign, hit, trial in zip(signs, hits, trials, strict=True)
    ]


def beyond_chance(
    crowd: Crowd, score: np.ndarray, known: np.ndarray, nothing: str
) -> tuple[list[Signal], np.ndarray, np.ndarray]:
    """Signals, values [W] and errors [W] of: own labels' mean score on their own items minus on the
    annotator's other items.

    score [V, K]: what each label would earn on the item of each vote; known [V]: whether the item
    counts. An always equal answer earns exactly 0. The error of n votes is sd / sqrt(n) with the
    crowd's median sd per vote: such an annotator has none of their own. Shnayder et al. 2016,
    arXiv:1603.03151 (correlated agreement).
    """
    value, sd = np.full(len(crowd.names), np.nan), np.full(len(crowd.names), np.nan)
    count = np.zeros(len(crowd.names))
    for k, rows in enumerate(crowd.rows):
        rows = rows[known[rows]]
        n = count[k] = len(rows)
        if n < 2:
            continue
        own = crowd.label[rows]
        gained = score[rows, own] - score[rows] @ (np.bincount(own, minlength=len(LABELS)) / n)
        value[k], sd[k] = gained.mean() * n / (n - 1), gained.std()
    signs = crowd.shown(lambda k: None if np.isnan(value[k]) else float(value[k]), nothing)
    used = crowd.tested & ~np.isnan(sd)
    error = (float(np.median(sd[used])) if used.any() else 0.0) / np.sqrt(
        np.maximum(count, 1)
    ) + 1e-9
    return signs, value, error


def flagged(signs: list[Signal], alpha: float) -> list[Signal]:
    """Holm's procedure over annotators: flag in order of p while p <= alpha / (tests left).

    Where all are honest, any flag at all has a chance of at most alpha. Holm 1979, Scandinavian
    Journal of Statistics 6:65.
    """
    tests = sorted((sign.p, k) for k, sign in enumerate(signs) if sign.p is not None)
    marked = list(signs)
    for done, (p, k) in enumerate(tests):
        if p > alpha / (len(tests) - done):
            break
        marked[k] = replace(signs[k], flag=True)
    return marked
