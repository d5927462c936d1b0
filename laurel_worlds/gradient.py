"""The policy gradient of a tabular softmax policy.

Exact, and as REINFORCE and the actor-critic estimate it from episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from laurel.core.errors import UsageError
from laurel_worlds.mdp import MDP, Simulator
from laurel_worlds.planning import evaluate, occupancy, q_values

Weight = Literal["return", "baseline", "td"]


def softmax(logit_SA: np.ndarray) -> np.ndarray:
    """pi(a | s) = exp(logit) / sum exp: [S, A] -> [S, A]. Equal logits: the uniform policy."""
    shifted_SA = np.exp(logit_SA - logit_SA.max(1, keepdims=True))
    return shifted_SA / shifted_SA.sum(1, keepdims=True)


def objective(mdp: MDP, logit_SA: np.ndarray) -> float:
    """J = E[sum_t gamma^t r_t] from the start, by a linear solve."""
    return float(mdp.start_S @ evaluate(mdp, softmax(logit_SA)))


def exact_gradient(mdp: MDP, logit_SA: np.ndarray) -> np.ndarray:
    """dJ / dlogit by the policy gradient theorem: [S, A] -> [S, A].

        dJ/dlogit(s, a) = d(s) pi(a | s) (Q(s, a) - V(s)),   d(s) = sum_t gamma^t P(s_t = s)

    One state, two actions paying 1 and 0, equal logits: 1/2 (1 - 1/2) = 1/4 and -1/4. Rows sum to
    0. Sutton et al. 1999.
    """
    policy_SA = softmax(logit_SA)
    value_S = evaluate(mdp, policy_SA)
    return (
        occupancy(mdp, policy_SA)[:, None] * policy_SA * (q_values(mdp, value_S) - value_S[:, None])
    )


def exact_ascent(mdp: MDP, *, rounds: int, rate: float) -> tuple[np.ndarray, list[float]]:
    """Climb the exact gradient from the uniform policy.

    Returns (logits [S, A], J before each round and after the last).
    """
    logit_SA = np.zeros((len(mdp.states), len(mdp.actions)))
    heights = []
    for _ in range(rounds):
        heights.append(objective(mdp, logit_SA))
        logit_SA = logit_SA + rate * exact_gradient(mdp, logit_SA)
    return logit_SA, [*heights, objective(mdp, logit_SA)]


@dataclass(frozen=True)
class Episode:
    """States, actions and rewards in order.

    `after` is the state that each move led to, and the last of them ended it.
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    after: np.ndarray


def rollout(
    simulator: Simulator, policy_SA: np.ndarray, rng: np.random.Generator, *, cap: int = 10_000
) -> Episode:
    """One whole episode of a policy.

    It must end within the cap: a part of an episode would bias every estimate made of it.
    """
    cumulative_SA, moves, state = policy_SA.cumsum(1), [], simulator.reset()
    for uniform_draw in iter(rng.random, None):
        action = min(
            int(cumulative_SA[state].searchsorted(uniform_draw, side="right")),
            policy_SA.shape[1] - 1,
        )
        after, reward, ended = simulator.step(action)
        moves.append((state, action, reward, after))
        state = after
        if ended:
            break
        if len(moves) >= cap:
            raise UsageError(
                f"an episode did not end within {cap} moves.",
                where="policy",
                fix="Use a policy that ends, or a larger cap.",
            )
    states, actions, rewards, after_states = zip(*moves, strict=True)
    return Episode(np.array(states), np.array(actions), np.array(rewards), np.array(after_states))


def returns_to_go(reward_T: np.ndarray, gamma: float) -> np.ndarray:
    """G_t = r_t + gamma G_{t+1}: [T] -> [T]. Rewards 1, 2, 4 at gamma 1/2: 3, 4, 4."""
    found_T, follows = np.zeros(len(reward_T)), 0.0
    for position in range(len(reward_T) - 1, -1, -1):
        follows = reward_T[position] + gamma * follows
        found_T[position] = follows
    return found_T


def estimate(
    episode: Episode,
    policy_SA: np.ndarray,
    gamma: float,
    *,
    weight: Weight = "return",
    value_S: np.ndarray | None = None,
) -> np.ndarray:
    """One episode's estimate of dJ / dlogit: [S, A].

    Its mean over episodes of the policy is `exact_gradient`.

        sum_t gamma^t w_t grad log pi(a_t | s_t)

        weight      w_t
        "return"    G_t                              REINFORCE (Williams 1992)
        "baseline"  G_t - V(s_t)                     unbiased with any V
        "td"        r_t + gamma V(s_{t+1}) - V(s_t)  actor-critic, unbiased for the true V

    grad log pi(a | s) by the logits of s is e_a - pi(. | s). V = 0 makes "baseline" "return".
    """
    if (value_S is None) != (weight == "return"):
        raise UsageError(
            f"weight {weight!r} {'needs' if value_S is None else 'takes no'} values.",
            where="estimate",
        )
    follows_T = returns_to_go(episode.rewards, gamma)
    if weight == "baseline" and value_S is not None:
        follows_T = follows_T - value_S[episode.states]
    elif weight == "td" and value_S is not None:
        follows_T = episode.rewards + gamma * value_S[episode.after] - value_S[episode.states]
    weight_T = gamma ** np.arange(len(follows_T)) * follows_T
    found_SA, total_S = np.zeros_like(policy_SA), np.zeros(len(policy_SA))
    np.add.at(found_SA, (episode.states, episode.actions), weight_T)
    np.add.at(total_S, episode.states, weight_T)
    return found_SA - total_S[:, None] * policy_SA


def second_moment(
    mdp: MDP,
    logit_SA: np.ndarray,
    *,
    weight: Weight,
    value_S: np.ndarray | None,
    episodes: int,
    seed: int = 0,
) -> float:
    """The mean squared length of the estimate, measured.

    A baseline makes it smaller while the mean stays.
    """
    policy_SA, simulator, rng = (
        softmax(logit_SA),
        mdp.simulator(seed),
        np.random.default_rng([seed, 1]),
    )
    rows = (rollout(simulator, policy_SA, rng) for _ in range(episodes))
    return float(
        np.mean(
            [
                (estimate(row, policy_SA, mdp.gamma, weight=weight, value_S=value_S) ** 2).sum()
                for row in rows
            ]
        )
    )


def learn(
    simulator: Simulator,
    *,
    episodes: int,
    batch: int = 8,
    rate: float = 0.5,
    critic_rate: float = 0.1,
    weight: Weight = "baseline",
    seed: int = 0,
) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Ascent on the estimates, with a critic learned by TD(0).

    Returns (logits [S, A], (moves so far, mean return) of each batch).

    "return" is REINFORCE, "baseline" REINFORCE with a baseline, "td" the actor-critic (Konda and
    Tsitsiklis 2000). The critic of "td" is being learned while it judges, so its gradient is biased
    until the critic is right; a baseline never biases.
    """
    logit_SA = np.zeros((simulator.num_states, simulator.num_actions))
    value_S, rng, taken = np.zeros(simulator.num_states), np.random.default_rng([seed, 1]), 0
    curve: list[tuple[int, float]] = []
    for _ in range(max(1, episodes // batch)):
        policy_SA = softmax(logit_SA)
        rows = [rollout(simulator, policy_SA, rng) for _ in range(batch)]
        critic_S = None if weight == "return" else value_S
        slopes = [
            estimate(row, policy_SA, simulator.gamma, weight=weight, value_S=critic_S)
            for row in rows
        ]
        logit_SA = logit_SA + rate * np.mean(slopes, axis=0)
        value_S = value_S.copy()
        for row in rows:
            _td_updates(value_S, row, simulator.gamma, critic_rate)
        taken += sum(len(row.rewards) for row in rows)
        curve.append((taken, float(np.mean([row.rewards.sum() for row in rows]))))
    return logit_SA, curve


def _td_updates(value_S: np.ndarray, episode: Episode, gamma: float, rate: float) -> None:
    """V(s) += rate (r + gamma V(s') - V(s)) at every step of an episode, in place."""
    for state, reward, after in zip(episode.states, episode.rewards, episode.after, strict=True):
        value_S[state] += rate * (reward + gamma * value_S[after] - value_S[state])
