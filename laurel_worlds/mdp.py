"""A Markov decision process as arrays, and a simulator for learners that do not know them.

Axis letters: S states, A actions, Z the state after (s'), K the possible outcomes of one (state,
action).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laurel.core.errors import UsageError


@dataclass(frozen=True)
class MDP:
    """A finite Markov decision process: p(s', r | s, a) as a list of outcomes.

    Outcome k of action a in state s has probability `prob_SAK`, leads to `next_SAK` and pays
    `reward_SAK`.

    A deterministic world has one outcome (K = 1); a reward distribution p(r | s, a) has one outcome
    per value. Outcomes of probability 0 are padding. An episode starts in a state drawn from
    `start_S` and ends on entering a state where `terminal_S` is True, whose value is 0 and whose
    rows are not read. `states` and `actions` are names for people.
    """

    prob_SAK: np.ndarray
    next_SAK: np.ndarray
    reward_SAK: np.ndarray
    gamma: float
    terminal_S: np.ndarray
    start_S: np.ndarray
    states: tuple[str, ...]
    actions: tuple[str, ...]

    def __post_init__(self) -> None:
        S, A, K = self.prob_SAK.shape
        same = self.next_SAK.shape == self.reward_SAK.shape == (S, A, K)
        if (
            not same
            or self.terminal_S.shape != (S,)
            or self.start_S.shape != (S,)
            or (len(self.states), len(self.actions)) != (S, A)
        ):
            raise UsageError(
                "the arrays of an MDP must be [S, A, K], [S, A, K], [S, A, K], [S] and [S].",
                where="MDP",
            )
        totals_SA = self.prob_SAK[~self.terminal_S].sum(2)
        if (
            (self.prob_SAK < 0).any()
            or not np.allclose(totals_SA, 1, atol=1e-9)
            or not np.isclose(self.start_S.sum(), 1, atol=1e-9)
        ):
            raise UsageError("probabilities must be at least 0 and sum to 1.", where="MDP")
        if not 0 <= self.gamma <= 1:
            raise UsageError(
                f"the discount must be between 0 and 1, not {self.gamma}.", where="gamma"
            )

    @property
    def transition_SAZ(self) -> np.ndarray:
        """p(s' | s, a), [S, A, S]; rows of terminal states are 0."""
        S, A, _ = self.prob_SAK.shape
        found_SAZ = np.zeros((S, A, S))
        np.add.at(
            found_SAZ,
            (np.arange(S)[:, None, None], np.arange(A)[None, :, None], self.next_SAK),
            self.prob_SAK,
        )
        found_SAZ[self.terminal_S] = 0.0
        return found_SAZ

    @property
    def reward_SA(self) -> np.ndarray:
        """E[r | s, a], [S, A]; 0 in terminal states."""
        return np.where(self.terminal_S[:, None], 0.0, (self.prob_SAK * self.reward_SAK).sum(2))

    def simulator(self, seed: int | np.random.Generator = 0) -> Simulator:
        """The world as a learner meets it that does not know the dynamics."""
        return Simulator(self, np.random.default_rng(seed))


class Simulator:
    """Episodes of an MDP, without its arrays.

    `reset` gives a state, `step` the next one, the reward and whether the episode ended. A learner
    gets nothing more.
    """

    def __init__(self, mdp: MDP, rng: np.random.Generator) -> None:
        self._mdp, self._rng = mdp, rng
        self._cumulative_SAK, self._start_S = mdp.prob_SAK.cumsum(2), mdp.start_S.cumsum()
        self.num_states, self.num_actions, self.gamma = len(mdp.states), len(mdp.actions), mdp.gamma
        self.state = -1

    def reset(self, state: int | None = None) -> int:
        """Begin an episode, in a given state (exploring starts) or one drawn from `start_S`."""
        drawn = (
            int(self._start_S.searchsorted(self._rng.random(), side="right"))
            if state is None
            else state
        )
        self.state = min(drawn, self.num_states - 1)
        return self.state

    def step(self, action: int) -> tuple[int, float, bool]:
        """(next state, reward, terminated)."""
        outcome = int(
            self._cumulative_SAK[self.state, action].searchsorted(self._rng.random(), side="right")
        )
        outcome = min(outcome, self._mdp.prob_SAK.shape[2] - 1)
        reward = float(self._mdp.reward_SAK[self.state, action, outcome])
        self.state = int(self._mdp.next_SAK[self.state, action, outcome])
        return self.state, reward, bool(self._mdp.terminal_S[self.state])


def from_arrays(
    transition_SAZ: np.ndarray,
    reward: np.ndarray | tuple[Sequence[float], np.ndarray],
    *,
    gamma: float = 1.0,
    terminal: Sequence[int] = (),
    start: np.ndarray | int = 0,
    states: Sequence[str] | None = None,
    actions: Sequence[str] | None = None,
) -> MDP:
    """An MDP from p(s' | s, a) [S, A, S] and a reward.

    The reward is r(s) [S], r(s, a) [S, A], r(s, a, s') [S, A, S], or a distribution.

    A distribution p(r | s, a) is a pair (values [R], probabilities [S, A, R]), drawn independently
    of s' given (s, a). `start` is a state or a distribution [S]. Two states, stay or go, going pays
    1: transition [[[1, 0], [0, 1]], [[0, 1], [0, 1]]], reward [[0, 1], [0, 0]], terminal [1].
    """
    transition_SAZ = np.asarray(transition_SAZ, dtype=float)
    S, A, _ = transition_SAZ.shape
    if isinstance(reward, tuple):
        outcomes = _drawn_rewards(transition_SAZ, *map(np.asarray, reward))
    else:
        outcomes = _fixed_rewards(transition_SAZ, np.asarray(reward, dtype=float))
    terminal_S = np.isin(np.arange(S), list(terminal))
    start_S = np.eye(S)[start] if isinstance(start, int) else np.asarray(start, dtype=float)
    return MDP(
        *_possible(*outcomes),
        gamma=gamma,
        terminal_S=terminal_S,
        start_S=start_S,
        states=tuple(states or map(str, range(S))),
        actions=tuple(actions or map(str, range(A))),
    )


def _possible(
    prob_SAK: np.ndarray, next_SAK: np.ndarray, reward_SAK: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The outcomes without columns that are impossible everywhere."""
    possible_SAK = prob_SAK > 0
    keep = max(1, int(possible_SAK.sum(2).max()))
    # possible outcomes first, in their order, and as many columns as the largest number of them
    order_SAK = np.argsort(~possible_SAK, axis=2, kind="stable")[..., :keep]
    prob_SAK, next_SAK, reward_SAK = (
        np.take_along_axis(array_SAK, order_SAK, axis=2)
        for array_SAK in (prob_SAK, next_SAK, reward_SAK)
    )
    return prob_SAK, next_SAK, reward_SAK


def _fixed_rewards(
    transition_SAZ: np.ndarray, reward: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(prob, next, reward) [S, A, S] of r(s), r(s, a) or r(s, a, s'): an outcome for each s'."""
    shape = transition_SAZ.shape
    # missing axes (a, s') are added at the end, so that the reward is the same along them
    reward_SAZ = reward.reshape(reward.shape + (1,) * (3 - reward.ndim))
    next_SAZ = np.broadcast_to(np.arange(shape[0]), shape)
    return transition_SAZ, next_SAZ, np.broadcast_to(reward_SAZ, shape)


def _drawn_rewards(
    transition_SAZ: np.ndarray, level_R: np.ndarray, prob_SAR: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(prob, next, reward) [S, A, S * R]: an outcome for each pair of s' and reward."""
    S, A, _ = transition_SAZ.shape
    shape = (S, A, S, len(level_R))
    prob_SAZR = transition_SAZ[..., :, None] * prob_SAR[..., None, :]
    next_SAZR = np.broadcast_to(np.arange(S)[:, None], shape)
    reward_SAZR = np.broadcast_to(level_R.astype(float), shape)
    prob_SAK, next_SAK, reward_SAK = (
        array.reshape(S, A, -1) for array in (prob_SAZR, next_SAZR, reward_SAZR)
    )
    return prob_SAK, next_SAK, reward_SAK
