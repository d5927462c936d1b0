"""Maximum-entropy inverse reinforcement learning.

Which reward makes the expert's behaviour likely, and what that leaves open.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from laurel.core.errors import UsageError
from laurel_worlds.mdp import MDP, from_arrays
from laurel_worlds.planning import occupancy


def rewarded(mdp: MDP, reward: np.ndarray) -> MDP:
    """The same world with another reward: r(s, a) [S, A] or r(s, a, s') [S, A, S]."""
    terminal = np.flatnonzero(mdp.terminal_S).tolist()
    return from_arrays(
        mdp.transition_SAZ,
        reward,
        gamma=mdp.gamma,
        terminal=terminal,
        start=mdp.start_S,
        states=mdp.states,
        actions=mdp.actions,
    )


def soft_solution(
    mdp: MDP, *, tolerance: float = 1e-12, max_rounds: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """The best policy when entropy is worth as much as reward: (policy [S, A], soft value V [S]).

        V(s)    = log sum_a exp Q(s, a),   V(terminal) = 0
        Q(s, a) = r + gamma E[V(s')]
        policy  = exp(Q - V)

    Found by soft policy iteration: evaluate the policy with r - log policy, then policy = softmax
    Q, which is Newton's method for V. One state, two actions that end and pay 0 and 1: V = log(1 +
    e), policy (1/(1 + e), e/(1 + e)). As rewards grow it becomes the optimal policy, ties shared.
    Ziebart 2010, "Modeling purposeful adaptive behavior with the principle of maximum causal
    entropy".
    """
    if mdp.gamma == 1:
        raise UsageError(
            "the soft value needs a discount below 1: without an end entropy is collected for"
            " ever.",
            where="gamma",
        )
    S, live_S1 = len(mdp.states), ~mdp.terminal_S[:, None]
    reward_SA, transition_SAZ, value_S = mdp.reward_SA, mdp.transition_SAZ, np.zeros(S)
    for _ in range(max_rounds):
        logp_SA = log_softmax(reward_SA + mdp.gamma * transition_SAZ @ value_S, axis=1)
        policy_SA, before_S = np.exp(logp_SA), value_S
        gain_S = (policy_SA * np.where(live_S1, reward_SA - logp_SA, 0.0)).sum(1)
        value_S = np.linalg.solve(
            np.eye(S) - mdp.gamma * np.einsum("sa,saz->sz", policy_SA, transition_SAZ), gain_S
        )
        if np.abs(value_S - before_S).max() <= tolerance * max(1.0, np.abs(value_S).max()):
            return policy_SA, value_S
    raise UsageError(
        f"the soft value still changes after {max_rounds} rounds.",
        where="reward",
        fix="Smaller rewards or discount.",
    )


def expected_visits(mdp: MDP, policy_SA: np.ndarray) -> np.ndarray:
    """sum_t gamma^t P(s_t = s, a_t = a) from the start, before the end: [S, A]."""
    return np.where(mdp.terminal_S, 0.0, occupancy(mdp, policy_SA))[:, None] * policy_SA


def demonstrated_visits(mdp: MDP, state_TN: np.ndarray, action_TN: np.ndarray) -> np.ndarray:
    """The same from demonstrations [T, episodes]: the mean discounted count of every pair, [S, A].

    Terminal states are not counted.
    """
    found_SA = np.zeros(mdp.reward_SA.shape)
    discount_TN = np.where(
        mdp.terminal_S[state_TN], 0.0, mdp.gamma ** np.arange(len(state_TN))[:, None]
    )
    np.add.at(found_SA, (state_TN, action_TN), discount_TN / state_TN.shape[1])
    return found_SA


def likelihood(
    mdp: MDP, features_SAF: np.ndarray, weight_F: np.ndarray, visits_SA: np.ndarray
) -> tuple[float, np.ndarray]:
    """The expert's log-likelihood under the soft-optimal policy of a reward: (L, gradient [F]).

    The reward is r = features @ weight; the gradient is by the weights.

        L     = sum rho_E(s, a) log policy_r(a | s) = sum rho_E r - E_start[V_soft]
        dL/dw = sum (rho_E - rho_r) features

    rho are discounted visits. The second form follows by telescoping; for demonstrations it counts
    the dynamics as known. L is concave in r. Ziebart et al. 2008, "Maximum entropy inverse
    reinforcement learning".
    """
    world = rewarded(mdp, features_SAF @ weight_F)
    policy_SA, value_S = soft_solution(world)
    total = float((visits_SA * world.reward_SA).sum() - mdp.start_S @ value_S)
    return total, np.einsum("sa,saf->f", visits_SA - expected_visits(mdp, policy_SA), features_SAF)


def recover(
    mdp: MDP,
    features_SAF: np.ndarray,
    visits_SA: np.ndarray,
    *,
    decay: float = 0.0,
    tolerance: float = 1e-10,
) -> np.ndarray:
    """Weights [F] of most likelihood, minus decay/2 |w|^2, by L-BFGS from 0.

    A demonstrator that never errs asks for an infinite reward; `decay` > 0 keeps it finite.
    """

    def loss(weight_F: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope_F = likelihood(mdp, features_SAF, weight_F, visits_SA)
        return decay / 2 * float(weight_F @ weight_F) - total, decay * weight_F - slope_F

    options = {"ftol": 1e-15, "gtol": tolerance, "maxiter": 1000}
    return minimize(
        loss, np.zeros(features_SAF.shape[-1]), jac=True, method="L-BFGS-B", options=options
    ).x


def shaped(mdp: MDP, potential_S: np.ndarray) -> MDP:
    """The same world paying r + gamma Phi(s') - Phi(s), with Phi(terminal) taken as 0.

    Every policy's value falls by Phi(s).

    So Q(s, a) - V(s), the optimal actions and the soft-optimal policy stay. Phi = -c/(1 - gamma)
    adds the constant c to every step if the end counts as a state that pays c for ever. Ng, Harada
    and Russell 1999, "Policy invariance under reward transformations".
    """
    potential_S = np.where(mdp.terminal_S, 0.0, potential_S)
    return rewarded(
        mdp, mdp.reward_SA + mdp.gamma * mdp.transition_SAZ @ potential_S - potential_S[:, None]
    )
