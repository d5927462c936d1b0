"""The value of one policy from episodes of another.

Importance sampling: ordinary, weighted, per decision, and doubly robust.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from laurel.core.errors import UsageError
from laurel_worlds.gradient import Episode, estimate, returns_to_go, rollout, softmax
from laurel_worlds.mdp import MDP, Simulator
from laurel_worlds.planning import evaluate, q_values

Estimator = Callable[[Sequence[Episode], np.ndarray, np.ndarray, float], np.ndarray]


def log_ratios(episode: Episode, target_SA: np.ndarray, behaviour_SA: np.ndarray) -> np.ndarray:
    """log prod_{u<=t} pi(a_u | s_u) / b(a_u | s_u) after every move t: [T].

    -inf once the target would not have done that. The data come from b, so b of every action seen
    is above 0; an action that b never takes and the target does is missed for good.
    """
    taken = behaviour_SA[episode.states, episode.actions]
    if (taken <= 0).any():
        raise UsageError(
            "an episode holds an action that the behaviour policy never takes.", where="behaviour"
        )
    with np.errstate(divide="ignore"):
        return (np.log(target_SA[episode.states, episode.actions]) - np.log(taken)).cumsum()


def importance_sampling(
    rows: Sequence[Episode], target_SA: np.ndarray, behaviour_SA: np.ndarray, gamma: float
) -> np.ndarray:
    """rho_T G for every episode, [N].

    Their mean is unbiased for the target's J, and their spread grows exponentially with the length.

    Behaviour = target: rho = 1, plain Monte Carlo.
    """
    return np.array(
        [
            np.exp(log_ratios(row, target_SA, behaviour_SA)[-1])
            * returns_to_go(row.rewards, gamma)[0]
            for row in rows
        ]
    )


def weighted_importance_sampling(
    rows: Sequence[Episode], target_SA: np.ndarray, behaviour_SA: np.ndarray, gamma: float
) -> np.ndarray:
    """N rho G / sum rho for every episode, [N].

    Their mean is biased by O(1/N), never leaves the range of the returns seen.

    Mahmood, van Hasselt and Sutton 2014. Behaviour = target: plain Monte Carlo.
    """
    ratio_N = np.exp([log_ratios(row, target_SA, behaviour_SA)[-1] for row in rows])
    follows_N = np.array([returns_to_go(row.rewards, gamma)[0] for row in rows])
    return (
        len(rows) * ratio_N * follows_N / ratio_N.sum()
        if ratio_N.sum() > 0
        else np.full(len(rows), np.nan)
    )


def per_decision_importance_sampling(
    rows: Sequence[Episode], target_SA: np.ndarray, behaviour_SA: np.ndarray, gamma: float
) -> np.ndarray:
    """sum_t gamma^t rho_{0..t} r_t for every episode, [N].

    A reward is not weighed by what was done after it. Precup et al. 2000.
    """
    found = [
        np.exp(log_ratios(row, target_SA, behaviour_SA))
        * gamma ** np.arange(len(row.rewards))
        * row.rewards
        for row in rows
    ]
    return np.array([terms_T.sum() for terms_T in found])


def doubly_robust(model: MDP) -> Estimator:
    """The estimator that corrects a model's value by the weighed surprises of the episodes:
    unbiased whatever the model.

        V(s_0) + sum_t gamma^t rho_{0..t} (r_t + gamma V(s_{t+1}) - Q(s_t, a_t))

    V, Q: the target's values in `model`. A right deterministic model leaves no spread; a model of
    zeros is per-decision sampling. Jiang and Li 2016, arXiv:1511.03722.
    """

    def estimator(
        rows: Sequence[Episode], target_SA: np.ndarray, behaviour_SA: np.ndarray, gamma: float
    ) -> np.ndarray:
        value_S = evaluate(model, target_SA)
        q_SA = q_values(model, value_S)
        found = []
        for row in rows:
            surprise_T = row.rewards + gamma * value_S[row.after] - q_SA[row.states, row.actions]
            ratio_T = np.exp(log_ratios(row, target_SA, behaviour_SA))
            found.append(
                value_S[row.states[0]]
                + (gamma ** np.arange(len(ratio_T)) * ratio_T * surprise_T).sum()
            )
        return np.array(found)

    return estimator


ESTIMATORS: dict[str, Estimator] = {
    "ordinary": importance_sampling,
    "weighted": weighted_importance_sampling,
    "per decision": per_decision_importance_sampling,
}
"""name: (episodes of the behaviour, target [S, A], behaviour [S, A], gamma) -> one figure each.

The mean of the figures is the estimate.
"""


def effective_sample_size(
    rows: Sequence[Episode], target_SA: np.ndarray, behaviour_SA: np.ndarray
) -> float:
    """(sum rho)^2 / sum rho^2: how many of the target's own episodes these are worth.

    Behaviour = target: all of them. Kish 1965.
    """
    log_N = np.array([log_ratios(row, target_SA, behaviour_SA)[-1] for row in rows])
    if not np.isfinite(log_N).any():
        return 0.0
    ratio_N = np.exp(log_N - log_N.max())
    return float(ratio_N.sum() ** 2 / (ratio_N**2).sum())


def ratio_second_moment(
    mdp: MDP, target_SA: np.ndarray, behaviour_SA: np.ndarray, horizon: int
) -> float:
    """E_b[rho^2] after `horizon` moves (or the end, if sooner), exactly.

    One vector is pushed forward `horizon` times.

        m_{t+1}(s') = sum_{s, a} m_t(s) pi(a | s)^2 / b(a | s) p(s' | s, a),   m_0 = start

    1 for equal policies; with the same c = sum_a pi^2 / b in every state and no end it is
    c^horizon. Var[rho] is this less 1.
    """
    squared_SA = np.divide(
        target_SA**2, behaviour_SA, out=np.zeros_like(target_SA), where=behaviour_SA > 0
    )
    step_SZ = np.einsum("sa,saz->sz", squared_SA, mdp.transition_SAZ)
    moment_S, ended = mdp.start_S.copy(), 0.0
    for _ in range(horizon):
        moment_S = moment_S @ step_SZ
        ended += moment_S[mdp.terminal_S].sum()
        moment_S = np.where(mdp.terminal_S, 0.0, moment_S)
    return float(ended + moment_S.sum())


def reuse(
    simulator: Simulator,
    *,
    rounds: int,
    batch: int,
    updates: int,
    rate: float,
    corrected: bool = True,
    least_share: float = 0.0,
    seed: int = 0,
) -> list[tuple[int, np.ndarray, float]]:
    """REINFORCE with up to `updates` steps on every batch.

    Returns (moves so far, logits [S, A], effective share of the batch) of each round.

        dJ/dlogit = E_b[rho_T sum_t gamma^t (G_t - V(s_t)) grad log pi(a_t | s_t)]

    where b is the policy that drew the batch.

    V is the mean return seen from a state in the rounds before; no V biases it. The share is the
    effective sample size over the batch after its last step. `corrected` False leaves rho out:
    from the second step on the direction is no gradient of J. `least_share` > 0: the batch is left
    when its share falls below. updates = 1 is REINFORCE with a baseline. A run whose policy makes
    an episode of over 1000 moves stops, with fewer rounds to show.
    """
    logit_SA = np.zeros((simulator.num_states, simulator.num_actions))
    rng, taken = np.random.default_rng([seed, 1]), 0
    value_S, trail = np.zeros(simulator.num_states), []
    for _ in range(rounds):
        behaviour_SA = softmax(logit_SA)
        try:
            rows = [rollout(simulator, behaviour_SA, rng, cap=1000) for _ in range(batch)]
        except UsageError:
            break
        taken, share = taken + sum(len(row.rewards) for row in rows), 1.0
        for _ in range(updates):
            slope_SA = _slope(
                rows,
                softmax(logit_SA),
                behaviour_SA if corrected else None,
                value_S,
                simulator.gamma,
            )
            logit_SA = logit_SA + rate * slope_SA / batch
            share = effective_sample_size(rows, softmax(logit_SA), behaviour_SA) / batch
            if share < least_share:
                break
        for row in rows:
            error_T = returns_to_go(row.rewards, simulator.gamma) - value_S[row.states]
            np.add.at(value_S, row.states, 0.05 * error_T)
        trail.append((taken, logit_SA, share))
    return trail


def _slope(
    rows: Sequence[Episode],
    policy_SA: np.ndarray,
    behaviour_SA: np.ndarray | None,
    value_S: np.ndarray,
    gamma: float,
) -> np.ndarray:
    """The sum of the episodes' estimates, weighted by rho_T; without a behaviour unweighted."""
    found_SA = np.zeros_like(policy_SA)
    for row in rows:
        rho = 1.0
        if behaviour_SA is not None:
            rho = float(np.exp(log_ratios(row, policy_SA, behaviour_SA)[-1]))
        slope_SA = estimate(row, policy_SA, gamma, weight="baseline", value_S=value_S)
        found_SA += rho * slope_SA
    return found_SA
