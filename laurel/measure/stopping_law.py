"""The exact law of a stopping rule: for a distribution of answers, what is announced and when.

Every sequence of draws is counted, by the counts of the answers and the order in which they first
appeared: rules look at nothing else. Beside the rule of `laurel.measure.stopping` stand three that
look after every draw and correct for nothing; their errors go beyond the alpha that they name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binomtest

from laurel.measure.stopping import is_decided

Rule = Callable[[Sequence[int]], bool]
"""counts, in the order of first appearance -> is the leader announced?"""
State = tuple[tuple[int, ...], tuple[int, ...]]
"""The answers in the order of first appearance, and their counts."""


@dataclass(frozen=True)
class StoppingLaws:
    """What a rule does on D distributions; an array of D numbers each.

    error: P(an answer is announced that is not a most likely one). decided: P(one is announced by
    the last draw). draws: the mean number. right: P(the answer given is the first of p), the
    leader's where nothing was announced.
    """

    error: np.ndarray
    decided: np.ndarray
    draws: np.ndarray
    right: np.ndarray


def stopping_laws(distributions: Sequence[Sequence[float]], most: int, rule: Rule) -> StoppingLaws:
    """The laws of a rule with at most so many draws from each distribution.

    distributions: D rows of K probabilities each; the first answer is the right one.
    """
    p_DK = np.asarray(distributions, dtype=float)
    if p_DK.ndim != 2 or (p_DK < 0).any() or not np.allclose(p_DK.sum(1), 1):
        raise ValueError("distributions are rows of probabilities that sum to 1")
    likeliest_DK = p_DK >= p_DK.max(1, keepdims=True) - 1e-12
    found = StoppingLaws(*(np.zeros(len(p_DK)) for _ in range(4)))
    states: dict[State, np.ndarray] = {((), ()): np.ones(len(p_DK))}
    for drawn in range(1, most + 1):
        states = drawn_once(states, p_DK)
        for state in list(states):
            announced = rule(state[1])
            if announced or drawn == most:
                chance_D = states.pop(state)
                leader = state[0][int(np.argmax(state[1]))]
                found.draws[:] += chance_D * drawn
                found.right[:] += chance_D * (leader == 0)
                found.decided[:] += chance_D * announced
                found.error[:] += chance_D * announced * ~likeliest_DK[:, leader]
    return found


def drawn_once(states: dict[State, np.ndarray], p_DK: np.ndarray) -> dict[State, np.ndarray]:
    """The chances of the states after one more draw."""
    following: dict[State, np.ndarray] = {}
    for state, chance_D in states.items():
        for answer in range(p_DK.shape[1]):
            new = with_draw(state, answer)
            more_D = chance_D * p_DK[:, answer]
            if new in following:
                following[new] += more_D
            else:
                following[new] = more_D
    return following


def with_draw(state: State, answer: int) -> State:
    """The state after one more draw."""
    names, counts = state
    if answer not in names:
        return (*names, answer), (*counts, 1)
    place = names.index(answer)
    return names, (*counts[:place], counts[place] + 1, *counts[place + 1 :])


def anytime(alpha: float) -> Rule:
    """The rule of `laurel.measure.stopping`."""
    known: dict[Sequence[int], bool] = {}

    def rule(counts: Sequence[int]) -> bool:
        if counts not in known:
            known[counts] = is_decided(counts, alpha)
        return known[counts]

    return rule


def peeking_test(alpha: float) -> Rule:
    """A sign test of the leader against the next, at alpha, after every draw."""
    known: dict[tuple[int, int], bool] = {}

    def rule(counts: Sequence[int]) -> bool:
        first, second = best_two(counts)
        if (first, second) not in known:
            test = binomtest(first, first + second, alternative="greater")
            known[first, second] = float(test.pvalue) <= alpha
        return known[first, second]

    return rule


def adaptive_consistency(alpha: float) -> Rule:
    """P(the leader is likelier than the next) under a flat prior is 1 - alpha or more.

    Aggarwal et al. 2023, arXiv:2305.11860.
    """
    known: dict[tuple[int, int], bool] = {}

    def rule(counts: Sequence[int]) -> bool:
        first, second = best_two(counts)
        if (first, second) not in known:
            known[first, second] = float(beta.sf(0.5, first + 1, second + 1)) >= 1 - alpha
        return known[first, second]

    return rule


def in_a_row(window: int) -> Rule:
    """As many more draws for the leader than for the next, such as the first `window` alike.

    Close to Li et al. 2024, arXiv:2401.10480, who stop where a window of answers agrees.
    """

    def rule(counts: Sequence[int]) -> bool:
        first, second = best_two(counts)
        return first - second >= window

    return rule


def best_two(counts: Sequence[int]) -> tuple[int, int]:
    """The two largest counts; 0 for one that is not there."""
    ranked = sorted(counts, reverse=True)
    return ranked[0], ranked[1] if len(ranked) > 1 else 0
