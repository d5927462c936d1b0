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
    S, A, gamma = simulator.num_states, simulator.num_actions, simulator.gamma
    draw, below = random.Random(seed).random, random.Random(f"{seed} actions").random
    value_SA, mean_SA = [[0.0] * A for _ in range(S)], [[0.0] * A for _ in range(S)]
    visits_SA, averaged_SA, visits_S = (
        [[0] * A for _ in range(S)],
        [[0] * A for _ in range(S)],
        [0] * S,
    )
    returns: list[float] = []

    def choose(state: int) -> int:
        visits_S[state] += 1
        if draw() < (1 / visits_S[state] if epsilon is None else epsilon):
            return int(below() * A)
        row_A = value_SA[state]
        return row_A.index(max(row_A))

    taken = 0
    while taken < steps:
        state = simulator.reset(starts[int(below() * len(starts))] if starts else None)
        action, total = int(below() * A) if starts else choose(state), 0.0
        for _ in range(CAP):
            after, reward, ended = simulator.step(action)
            following = -1 if ended else choose(after)
            future = (
                0.0 if ended else value_SA[after][following] if on_policy else max(value_SA[after])
            )
            visits_SA[state][action] += 1
            alpha = visits_SA[state][action] ** -0.6 if step_size is None else step_size
            value_SA[state][action] += alpha * (reward + gamma * future - value_SA[state][action])
            if 2 * taken >= steps:
                averaged_SA[state][action] += 1
                mean_SA[state][action] += (
                    value_SA[state][action] - mean_SA[state][action]
                ) / averaged_SA[state][action]
            taken, total, state, action = taken + 1, total + reward, after, following
            if ended:
                returns.append(total)
                break
    found_SA = (
        np.where(np.array(averaged_SA) > 0, mean_SA, value_SA)
        if step_size is None
        else np.array(value_SA)
    )
    return Learned(found_SA, taken, tuple(returns))


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
    value_SA, visits_SA = (
        [[0.0] * A for _ in range(simulator.num_states)],
        [[0] * A for _ in range(simulator.num_states)],
    )
    returns: list[float] = []
    taken = 0
    while taken < steps:
        state, first, ended = (
            simulator.reset(starts[int(draw() * len(starts))] if starts else None),
            bool(starts),
            False,
        )
        episode: list[tuple[int, int, float]] = []
        while not ended and len(episode) < CAP:
            row_A = value_SA[state]
            action = int(draw() * A) if first or draw() < epsilon else row_A.index(max(row_A))
            after, reward, ended = simulator.step(action)
            episode.append((state, action, reward))
            state, first = after, False
        taken, follows = taken + len(episode), 0.0
        for before, action, reward in reversed(episode if ended else []):
            follows = reward + simulator.gamma * follows
            visits_SA[before][action] += 1
            value_SA[before][action] += (follows - value_SA[before][action]) / visits_SA[before][
                action
            ]
        if ended:
            returns.append(sum(reward for _, _, reward in episode))
    return Learned(np.array(value_SA), taken, tuple(returns))


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
    known = [len(values) > 1 for values in found_S]
    mean_S = np.array(
        [
            np.mean(values) if enough else np.nan
            for values, enough in zip(found_S, known, strict=True)
        ]
    )
    error_S = np.array(
        [
            np.std(values, ddof=1) / len(values) ** 0.5 if enough else np.nan
            for values, enough in zip(found_S, known, strict=True)
        ]
    )
    return mean_S, error_S


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
