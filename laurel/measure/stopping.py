"""When enough answers have been drawn to say which is the most likely, however often one looks.

Answers come one by one from an unknown distribution p. The leader is announced once every rival has
been tested away; the chance that an answer is announced that is not a most likely one is at most
alpha, whatever p is, and whenever one stops.

Against a rival m that is thought to be most likely (the hypothesis: p_m >= p_i for all i), each
other answer i is bet on by

    M(a, b) = integral over theta in [1/2, 1] of (2 theta)^a (2 (1 - theta))^b dprior(theta)

with a draws of i and b of m: under the hypothesis a draw among the two is i with a chance of 1/2 at
most, so that M, which begins at 1, does not grow on average. Whoever comes first, second, ... is
not known before, and is bet on with its share of the stake from its first draw on:

    E_m = sum over r of w_r M(max(a_r, 1), b) / M(1, 0),    w_r = 1 / (r (r + 1))

where a_r counts the r-th answer to appear beside m. Before it appears its place is worth as much as
just after, so that E_m does not grow on average either, and E_m >= 1 / alpha happens at any time
with a chance of at most alpha (Ville 1939). An error means that the most likely answer itself was
tested away; hence no correction for the number of answers, and none for those not seen yet: they
are rivals with b = 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, lgamma, log

import numpy as np
from scipy.special import betainc

PRIOR = 4.0
"""The prior of theta goes as theta^(PRIOR - 1): answers that lead tend to lead by far."""


@lru_cache(maxsize=1 << 16)
def log_bet(a: int, b: int) -> float:
    """log M(a, b), see above. M(1, 0) = 2 E[theta], M(a, b) <= 2^a.

    2^(a + b) B(a + PRIOR, b + 1) P(Beta(a + PRIOR, b + 1) > 1/2), over the same of a = b = 0.
    """
    if min(a, b) < 0:
        raise ValueError(f"counts are 0 or more, got {a} and {b}")
    top = a + PRIOR
    log_beta = lgamma(top) + lgamma(b + 1) - lgamma(top + b + 1)
    above = float(betainc(b + 1, top, 0.5))
    whole = (1 - 0.5**PRIOR) / PRIOR
    return (a + b) * log(2) + log_beta + log(above) - log(whole)


def evidence(others: Sequence[int], rival: int) -> float:
    """E_m from the counts of the other answers, in the order in which they appeared, and of m.

    Places that nobody has taken yet count as with one draw. others (9,), rival 0: 51.31.
    """
    start = log_bet(1, 0)
    total, left = 0.0, 1.0
    for place, count in enumerate(others, start=1):
        share = 1 / (place * (place + 1))
        left -= share
        total += share * exp(log_bet(max(count, 1), rival) - start)
    return total + left * exp(log_bet(1, rival) - start)


@dataclass
class LeaderTest:
    """Answers one by one; `decided` once the leader is announced.

    alpha: the chance of an error. None is a blank ballot: drawn, and for nobody.
    """

    alpha: float = 0.05
    counts: dict[Hashable, int] = field(default_factory=dict[Hashable, int])
    drawn: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is between 0 and 1, got {self.alpha}")

    def add(self, answer: Hashable | None) -> None:
        """One more draw."""
        self.drawn += 1
        if answer is not None:
            self.counts[answer] = self.counts.get(answer, 0) + 1

    @property
    def leader(self) -> Hashable | None:
        """The answer with most draws; of several the one that came first; None without any."""
        return max(self.counts, key=self.counts.__getitem__) if self.counts else None

    @property
    def decided(self) -> bool:
        """Is every rival of the leader tested away, those that were never seen included?"""
        return is_decided(list(self.counts.values()), self.alpha)

    def settled(self, left: int) -> bool:
        """Can `left` more draws not change who has most? Then the vote of all of them is known."""
        return is_settled(list(self.counts.values()), left)

    def hopeless(self, left: int) -> bool:
        """Would it stay undecided even if the leader were all of `left` more draws?"""
        return is_hopeless(list(self.counts.values()), left, self.alpha)


def is_decided(counts: Sequence[int], alpha: float) -> bool:
    """Is the leader announced at these counts, which stand in the order of first appearance?"""
    if not counts:
        return False
    leader = int(np.argmax(counts))
    # an unseen rival is the hardest to be sure about only where few have been drawn; test it first
    if evidence(counts, 0) < 1 / alpha:
        return False
    rivals = [place for place in range(len(counts)) if place != leader]
    rivals.sort(key=lambda place: -counts[place])
    return all(
        evidence([*counts[:place], *counts[place + 1 :]], counts[place]) >= 1 / alpha
        for place in rivals
    )


def is_settled(counts: Sequence[int], left: int) -> bool:
    """Has the leader more draws than any rival can come to have, unseen ones included?"""
    ranked = sorted(counts, reverse=True)
    return bool(ranked) and ranked[0] > (ranked[1] if len(ranked) > 1 else 0) + left


def is_hopeless(counts: Sequence[int], left: int, alpha: float) -> bool:
    """Do `left` draws of the leader alone not decide it?"""
    if not counts:
        return False
    best = list(counts)
    best[int(np.argmax(counts))] += left
    return not is_decided(best, alpha)
