"""majority@k: k samples vote, the most frequent answer is given.

Exact expectations instead of one lucky draw.

Answers are compared as they are: make them canonical first ("1/2" and "0.5" are two answers
otherwise). None is a blank
ballot: it uses up a sample and never wins. Ties go to the answer that was sampled first; over the
random order of samples that is the same as choosing among the tied answers with equal chance, which
is what the expectations below use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
from scipy.special import gammaln, xlog1py, xlogy

from laurel.core.errors import UsageError
from laurel.measure.intervals import Interval, bootstrap_mean

Answer = TypeVar("Answer", bound=Hashable)


def majority(answers: Sequence[Answer | None]) -> Answer | None:
    """The most frequent answer; of several, the one that came first; None when every ballot is
    blank.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__) if votes else None


def win_chances(answers: Sequence[Answer | None], k: int) -> dict[Answer, float]:
    """For each answer among n samples, the chance that it wins the vote of k of them drawn without
    replacement.

    Exact: counts of a random subset are multivariate hypergeometric, a product of polynomials in
    which one coefficient is read off. Blank ballots may leave the sum of the chances below 1.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise UsageError(
            f"majority@{k} cannot be estimated from {n} samples per prompt.",
            where=f"majority@{k}",
            fix=f"Draw at least {max(k, 1)}.",
        )
    votes = Counter(answer for answer in answers if answer is not None)
    names, counts = list(votes), list(votes.values())
    blank = _binomial(n - sum(counts), k / n, k)
    chances = _plurality([_binomial(count, k / n, k) for count in counts], blank, k)
    total = _binomial(n, k / n, k)[k]
    return {name: chance / total for name, chance in zip(names, chances, strict=True)}


def majority_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """The expected accuracy of the vote of k samples, from n >= k samples of one prompt and whether
    each is right.

        sum_a P(a wins among k of n) * share of right samples among those that answered a

    k=1 is the plain accuracy of the samples that answered; k=n is the one vote of all of them.
    Wang et al. 2022, arXiv:2203.11171 (self-consistency).
    """
    right, seen = Counter(), Counter()
    for answer, good in zip(answers, correct, strict=True):
        seen[answer] += 1
        right[answer] += bool(good)
    return float(
        sum(
            chance * right[answer] / seen[answer]
            for answer, chance in win_chances(answers, k).items()
        )
    )


def mean_majority_at_k(
    prompts: Sequence[tuple[Sequence[Hashable | None], Sequence[bool]]],
    k: int,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """majority@k over prompts, each given as (answers, correct), with a bootstrap interval over
    prompts.
    """
    return bootstrap_mean(
        [majority_at_k(answers, correct, k) for answers, correct in prompts],
        level=level,
        draws=draws,
        seed=seed,
    )


def plurality(probabilities: Sequence[float], k: int) -> list[float]:
    """The chance that each answer wins the vote of k independent samples, answer a having
    probability p_a.

    A sum of the p below 1 leaves the rest to blank ballots. Voting helps exactly when the right
    answer is the most likely
    one: (.6, .4) -> .90 at k=41, (.45, .55) -> .26, and with (.4, .35, .25) the right answer has .4
    -> .61.
    """
    rest = 1 - sum(probabilities)
    if k < 1 or rest < -1e-9 or min(probabilities) < 0:
        raise ValueError(f"plurality of {k} samples with probabilities {list(probabilities)}")
    chances = _plurality(
        [_poisson(k * p, k) for p in probabilities], _poisson(k * max(rest, 0.0), k), k
    )
    return [chance / float(_poisson(k, k)[k]) for chance in chances]


def _plurality(laws: Sequence[np.ndarray], blank: np.ndarray, k: int) -> list[float]:
    """Weight of "answer a wins" under independent counts with the given laws, restricted to counts
    that sum to k.

    laws[a][i] is the weight of i votes for a; conditioning independent binomials (Poissons) on
    their sum gives the hypergeometric (multinomial). Answers with equal laws share one computation.
    """
    known: dict[bytes, float] = {}
    chances = []
    for index, law in enumerate(laws):
        key = law.tobytes()
        if key not in known:
            others = [*laws[:index], *laws[index + 1 :]]
            known[key] = sum(
                float(law[m]) * _none_above(others, blank, m, k - m)
                for m in range(1, k + 1)
                if law[m] > 0
            )
        chances.append(known[key])
    return chances


def _none_above(others: Sequence[np.ndarray], blank: np.ndarray, m: int, rest: int) -> float:
    """Weight of: the others and the blanks share `rest` votes, none of the others has more than m,
    ties with m split the win.
    """
    most = rest // m
    table = np.zeros((most + 1, rest + 1))  # [answers tied at m, votes given out]
    table[0] = blank[: rest + 1]
    for law in others:
        grown = np.zeros_like(table)
        for i in range(min(m, rest) + 1):
            if law[i] == 0:
                continue
            if i < m:
                grown[:, i:] += law[i] * table[:, : rest + 1 - i]
            else:
                grown[1:, m:] += law[m] * table[:-1, : rest + 1 - m]
        table = grown
    return float((table[:, rest] / np.arange(1, most + 2)).sum())


def _binomial(n: int, p: float, k: int) -> np.ndarray:
    """Binomial(n, p) at 0..k (zero above n)."""
    i = np.arange(min(n, k) + 1)
    log = gammaln(n + 1) - gammaln(i + 1) - gammaln(n - i + 1) + xlogy(i, p) + xlog1py(n - i, -p)
    return np.concatenate([np.exp(log), np.zeros(k - len(i) + 1)])


def _poisson(mean: float, k: int) -> np.ndarray:
    """Poisson(mean) at 0..k."""
    i = np.arange(k + 1)
    return np.exp(xlogy(i, mean) - mean - gammaln(i + 1))
