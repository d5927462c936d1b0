"""Unknown dynamics: Q-learning, SARSA, Monte Carlo and a model from counts.

All learn through the simulator alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laurel_worlds.mdp import MDP, Simulator, from_arrays

# steps after which an episode that does not end is broken off; nothing is learned from its being
# broken off
CAP = 200


@dataclass(frozen=True)
class Learned:
    """What a learner has at the end.

    Its Q [S, A], the steps it took, and the undiscounted return of each episode that ended.
    """

    q_SA: np.ndarray
    steps: int
    returns: tuple[float, ...]

    def greedy(self) -> np.ndarray:
        """The best action of every state as it is believed, [S]; the first of equals."""
        return self.q_SA.argmax(1)


def q_learning(
    simulator: Simulator,
    *,
    steps: int,
    seed: int = 0,
    starts: Sequence[int] = (),
    epsilon: float | None = None,
    step_size: float | None = None,
) -> Learned:
    """Off-policy control: the target is the best next action, whichever is taken.

        Q(s, a) += alpha (r + gamma max_b Q(s', b) - Q(s, a))

    `starts`: states to begin in at random, with a random first action (none: as the world begins).
    `epsilon`: the share of random actions; None: 1 / (visits of the state), which is greedy in the
    limit with infinite exploration (GLIE). `step_size`: alpha; None: (visits of the pair)^-0.6, and
    Q is the mean of its second half of values (Polyak and Juditsky 1992). Watkins 1989.
    """
    return _td(simulator, False, steps, seed, starts, epsilon, step_size)


def sarsa(
    simulator: Simulator,
    *,
    steps: int,
    seed: int = 0,
    starts: Sequence[int] = (),
    epsilon: float | None = None,
    step_size: float | None = None,
) -> Learned:
    """On-policy control: the target is the action that is taken next.

    Options as in `q_learning`; epsilon = 0 makes the two one.

        Q(s, a) += alpha (r + gamma Q(s', a') - Q(s, a))

    With a fixed epsilon it converges to the value of acting so, mistakes included; with GLIE to the
    best. Singh et al. 2000.
    """
    return _td(simulator, True, steps, seed, starts, epsilon, step_size)


def _td(
    simulator: Simulator,
    on_policy: bool,
    steps: int,
    seed: int,
    starts: Sequence[int],
    epsilon: float | None,
    step_size: float | None,
) -> Learned:
    A, gamma, table = simulator.num_actions, simulator.gamma, _Table(simulator, step_size)
    greedy = _EpsilonGreedy(table.value_SA, seed, epsilon)
    returns: list[float] = []
    taken = 0
    while taken < steps:
        state = simulator.reset(starts[greedy.below(len(starts))] if starts else None)
        action, total = greedy.below(A) if starts else greedy.choose(state), 0.0
        for _ in range(CAP):
            after, reward, ended = simulator.step(action)
            following, future = -1, 0.0
            if not ended:
                following, row_A = greedy.choose(after), table.value_SA[after]
                future = row_A[following] if on_policy else max(row_A)
            table.update(state, action, reward + gamma * future, averaged=2 * taken >= steps)
            taken, total, state, action = taken + 1, total + reward, after, following
            if ended:
                returns.append(total)
                break
    return Learned(table.result(), taken, tuple(returns))


class _EpsilonGreedy:
    """Actions that are greedy for Q [S, A] but for a share epsilon, by streams of a seed.

    epsilon None: 1 / visits of the state.
    """

    def __init__(self, value_SA: list[list[float]], seed: int, epsilon: float | None) -> None:
        self.value_SA, self.epsilon, self.visits_S = value_SA, epsilon, [0] * len(value_SA)
        self._draw = random.Random(seed).random
        self._action = random.Random(f"{seed} actions").random

    def below(self, count: int) -> int:
        """A uniform number from 0 to count - 1."""
        return int(self._action() * count)

    def choose(self, state: int) -> int:
        """The action in a state."""
        self.visits_S[state] += 1
        row_A, epsilon = self.value_SA[state], self.epsilon
        if self._draw() < (1 / self.visits_S[state] if epsilon is None else epsilon):
            return self.below(len(row_A))
        return row_A.index(max(row_A))


class _Table:
    """Q [S, A] as lists, which single entries are read from faster, and the mean of its updates."""

    def __init__(self, simulator: Simulator, step_size: float | None) -> None:
        S, A = simulator.num_states, simulator.num_actions
        self.value_SA, self.mean_SA = ([[0.0] * A for _ in range(S)] for _ in range(2))
        self.visits_SA, self.averaged_SA = ([[0] * A for _ in range(S)] for _ in range(2))
        self.step_size = step_size

    def update(self, state: int, action: int, target: float, *, averaged: bool) -> None:
        """Q += alpha (target - Q); averaged: the result counts for the mean."""
        value_A, visits_A = self.value_SA[state], self.visits_SA[state]
        visits_A[action] += 1
        alpha = visits_A[action] ** -0.6 if self.step_size is None else self.step_size
        value_A[action] += alpha * (target - value_A[action])
        if averaged:
            mean_A, averaged_A = self.mean_SA[state], self.averaged_SA[state]
            averaged_A[action] += 1
            mean_A[action] += (value_A[action] - mean_A[action]) / averaged_A[action]

    def result(self) -> np.ndarray:
        """The means where there are any; with a fixed step size the last values."""
        if self.step_size is not None:
            return np.array(self.value_SA)
        return np.where(np.array(self.averaged_SA) > 0, self.mean_SA, self.value_SA)


def monte_carlo(
    simulator: Simulator,
    *,
    steps: int,
    seed: int = 0,
    starts: Sequence[int] = (),
    epsilon: float = 0.1,
) -> Learned:
    """On-policy control without bootstrapping.

    Q(s, a) is the mean of the returns that followed (s, a), every visit of it.

    The actions are epsilon-greedy for that Q, so it finds the best of the policies that err so, not
    the best of all. An episode that is broken off teaches nothing: its return is not known. Sutton
    and Barto 2018, section 5.4.
    """
    A, draw = simulator.num_actions, random.Random(seed).random
    value_SA = [[0.0] * A for _ in range(simulator.num_states)]
    visits_SA = [[0] * A for _ in range(simulator.num_states)]
    returns: list[float] = []
    taken = 0
    while taken < steps:
        state = simulator.reset(starts[int(draw() * len(starts))] if starts else None)
        explore, ended = bool(starts), False  # an exploring start has a random action, too
        episode: list[tuple[int, int, float]] = []
        while not ended and len(episode) < CAP:
            row_A = value_SA[state]
            action = int(draw() * A) if explore or draw() < epsilon else row_A.index(max(row_A))
            after, reward, ended = simulator.step(action)
            episode.append((state, action, reward))
            state, explore = after, False
        taken += len(episode)
        if ended:
            _average(value_SA, visits_SA, episode, simulator.gamma)
            returns.append(sum(reward for _, _, reward in episode))
    return Learned(np.array(value_SA), taken, tuple(returns))


def _average(
    value_SA: list[list[float]],
    visits_SA: list[list[int]],
    episode: list[tuple[int, int, float]],
    gamma: float,
) -> None:
    """Take the returns of an episode's (state, action, reward) into the means, in place."""
    total = 0.0
    for state, action, reward in reversed(episode):
        total = reward + gamma * total
        visits_SA[state][action] += 1
        value_SA[state][action] += (total - value_SA[state][action]) / visits_SA[state][action]


def monte_carlo_values(
    simulator: Simulator, policy_SA: np.ndarray, *, episodes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction: (mean return from the first visit of a state [S], its standard error [S]).

    NaN where fewer than two episodes came.

    First visits of different episodes are independent, so the mean is unbiased and its error is
    honest. The policy must end.
    """
    draw, cumulative_SA = random.Random(seed).random, policy_SA.cumsum(1)
    found_S: list[list[float]] = [[] for _ in range(simulator.num_states)]
    for _ in range(episodes):
        state, ended, visited, rewards = simulator.reset(), False, [], []
        while not ended:
            visited.append(state)
            action = min(
                int(cumulative_SA[state].searchsorted(draw(), side="right")),
                simulator.num_actions - 1,
            )
            state, reward, ended = simulator.step(action)
            rewards.append(reward)
        follows, first = 0.0, {}
        for before, reward in zip(reversed(visited), reversed(rewards), strict=True):
            follows = reward + simulator.gamma * follows
            first[before] = follows
        for before, value in first.items():
            found_S[before].append(value)
    mean_S, error_S = np.array([_mean_and_error(values) for values in found_S]).T
    return mean_S, error_S


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return np.nan, np.nan
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def counted_model(simulator: Simulator, *, samples: int, starts: Sequence[int]) -> MDP:
    """The dynamics as counted from `samples` tries of every action in every state of `starts`.

    Returns an MDP to plan in.

        p(s' | s, a) = n(s, a, s') / n(s, a),   r(s, a, s') = mean reward of those

    Planning in it is certainty equivalence: right in the limit, and with a deterministic world
    right after one sample of each pair.
    """
    S, A = simulator.num_states, simulator.num_actions
    count_SAZ, paid_SAZ, terminal_S = (
        np.zeros((S, A, S)),
        np.zeros((S, A, S)),
        np.ones(S, dtype=bool),
    )
    terminal_S[list(starts)] = False
    for state in starts:
        for action in range(A):
            for _ in range(samples):
                simulator.reset(state)
                after, reward, _ = simulator.step(action)
                count_SAZ[state, action, after] += 1
                paid_SAZ[state, action, after] += reward
    tried_SA = count_SAZ.sum(2, keepdims=True)
    reward_SAZ = np.divide(paid_SAZ, count_SAZ, out=np.zeros_like(paid_SAZ), where=count_SAZ > 0)
    transition_SAZ = np.divide(
        count_SAZ, tried_SA, out=np.zeros_like(count_SAZ), where=tried_SA > 0
    )
    return from_arrays(
        transition_SAZ,
        reward_SAZ,
        gamma=simulator.gamma,
        terminal=np.flatnonzero(terminal_S).tolist(),
    )
