"""Known dynamics: policy evaluation, value iteration, policy iteration and the linear programme."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from laurel.core.errors import UsageError
from laurel_worlds.mdp import MDP


def uniform(mdp: MDP) -> np.ndarray:
    """The policy that takes every action alike, [S, A]."""
    S, A = mdp.reward_SA.shape
    return np.full((S, A), 1 / A)


def deterministic(best_S: np.ndarray, num_actions: int) -> np.ndarray:
    """One action per state [S] as a policy [S, A]."""
    return np.eye(num_actions)[np.asarray(best_S, dtype=int)]


def never_ending_states(mdp: MDP, policy_SA: np.ndarray) -> np.ndarray:
    """The states [S] from which a policy never reaches a terminal state.

    None: the policy is proper.
    """
    step_SZ = np.einsum("sa,saz->sz", policy_SA, mdp.transition_SAZ) > 0
    ends_S = mdp.terminal_S.copy()
    while (grown_S := ends_S | step_SZ[:, ends_S].any(1)).sum() > ends_S.sum():
        ends_S = grown_S
    return ~ends_S


def occupancy(mdp: MDP, policy_SA: np.ndarray, start_S: np.ndarray | None = None) -> np.ndarray:
    """The expected discounted visits of each state, from the start (or `start_S`): [S].

    0 in terminal states.

    d = (I - gamma P_pi^T)^-1 start,   J = sum_s d(s) r_pi(s)
    """
    start_S = mdp.start_S if start_S is None else start_S
    visits_S = np.linalg.solve(_bellman(mdp, policy_SA).T, np.where(mdp.terminal_S, 0.0, start_S))
    return np.where(mdp.terminal_S, 0.0, visits_S)


def evaluate(mdp: MDP, policy_SA: np.ndarray) -> np.ndarray:
    """The value of a policy in every state by one linear solve: [S, A] -> [S].

        V = (I - gamma P_pi)^-1 r_pi

    Undiscounted, I - P is singular for a policy that never ends from some state; that is refused,
    by name. Two states, stay or go, going pays 1: the uniform policy's value is V = 1/2 (0 + V) +
    1/2 (1) = 1.
    """
    return np.linalg.solve(_bellman(mdp, policy_SA), (policy_SA * mdp.reward_SA).sum(1))


def _bellman(mdp: MDP, policy_SA: np.ndarray) -> np.ndarray:
    lost_S = never_ending_states(mdp, policy_SA)
    if mdp.gamma == 1 and lost_S.any():
        names = ", ".join(np.array(mdp.states)[lost_S][:6]) + (", ..." if lost_S.sum() > 6 else "")
        raise UsageError(
            f"undiscounted, this policy has no value: from {names} it never ends (it is improper: I"
            " - P is singular).",
            where="policy",
            fix=(
                "Evaluate a policy that reaches a terminal state from everywhere, or use gamma < 1."
            ),
        )
    bellman_SZ = np.eye(len(mdp.states)) - mdp.gamma * np.einsum(
        "sa,saz->sz", policy_SA, mdp.transition_SAZ
    )
    if mdp.gamma == 1 and np.linalg.cond(bellman_SZ) > 1e13:
        raise UsageError(
            "undiscounted, this policy ends too rarely for its value to be computed (I - P is"
            " singular to sixteen digits).",
            where="policy",
            fix="Evaluate a policy that reaches a terminal state sooner, or use gamma < 1.",
        )
    return bellman_SZ


def evaluate_iteratively(
    mdp: MDP, policy_SA: np.ndarray, *, tolerance: float = 1e-12, max_sweeps: int = 100_000
) -> tuple[np.ndarray, int]:
    """The same value by sweeps V <- r_pi + gamma P_pi V from 0: (V [S], sweeps).

    The change of the last sweep is below the tolerance.
    """
    _bellman(mdp, policy_SA)  # refuses an improper policy, whose sweeps would not end
    step_SZ, reward_S = (
        np.einsum("sa,saz->sz", policy_SA, mdp.transition_SAZ),
        (policy_SA * mdp.reward_SA).sum(1),
    )
    return _sweep(
        lambda value_S: reward_S + mdp.gamma * step_SZ @ value_S,
        len(mdp.states),
        tolerance,
        max_sweeps,
    )


def q_values(mdp: MDP, value_S: np.ndarray) -> np.ndarray:
    """Q(s, a) = E[r + gamma V(s')]: [S] -> [S, A]; 0 in terminal states."""
    return mdp.reward_SA + mdp.gamma * mdp.transition_SAZ @ value_S


def value_iteration(mdp: MDP, *, tolerance: float = 1e-12, max_sweeps: int = 100_000) -> np.ndarray:
    """The best value of every state, [S]: see `value_iteration_sweeps`."""
    return value_iteration_sweeps(mdp, tolerance=tolerance, max_sweeps=max_sweeps)[0]


def value_iteration_sweeps(
    mdp: MDP, *, tolerance: float = 1e-12, max_sweeps: int = 100_000
) -> tuple[np.ndarray, int]:
    """Value iteration, V <- max_a E[r + gamma V(s')] from V = 0: (V [S], sweeps).

    It stops when a sweep changes nothing by more than the tolerance.

    Undiscounted it converges where no loop pays: with a positive step reward the value is infinite,
    and that is refused. Bellman 1957, "A Markovian decision process".
    """
    reward_SA, transition_SAZ = mdp.reward_SA, mdp.transition_SAZ
    return _sweep(
        lambda value_S: (reward_SA + mdp.gamma * transition_SAZ @ value_S).max(1),
        len(mdp.states),
        tolerance,
        max_sweeps,
    )


def _sweep(update, num_states: int, tolerance: float, max_sweeps: int) -> tuple[np.ndarray, int]:
    value_S = np.zeros(num_states)
    for sweep in range(1, max_sweeps + 1):
        before_S, value_S = value_S, update(value_S)
        if np.abs(value_S - before_S).max() <= tolerance:
            return value_S, sweep
    raise UsageError(
        f"the values still change after {max_sweeps} sweeps (the last:"
        f" {np.abs(value_S - before_S).max():g}).",
        where="gamma",
        fix="Undiscounted, no loop may pay: use a step reward of at most 0, or gamma < 1.",
    )


def policy_iteration(mdp: MDP) -> tuple[np.ndarray, np.ndarray]:
    """(policy [S, A], V [S]): see `policy_iteration_rounds`."""
    return policy_iteration_rounds(mdp)[:2]


def policy_iteration_rounds(
    mdp: MDP, *, strictly: float = 1e-10, max_rounds: int = 1000
) -> tuple[np.ndarray, np.ndarray, int]:
    """Evaluate, then improve, until no state can be improved: (policy [S, A], V [S], rounds).
    Howard 1960.

    It starts from the uniform policy, which ends wherever any policy does, and changes a state only
    for a strict gain. So every policy on the way ends too if no loop pays (undiscounted, step
    reward 0 included): a loop of changed states would have to gain on the way round. A state where
    the uniform choice is already best keeps it.
    """
    policy_SA = uniform(mdp)
    for rounds in range(1, max_rounds + 1):
        value_S = evaluate(mdp, policy_SA)
        q_SA = q_values(mdp, value_S)
        gains_S = q_SA.max(1) > value_S + strictly * np.maximum(1, np.abs(value_S))
        if not gains_S.any():
            return policy_SA, value_S, rounds
        policy_SA = np.where(
            gains_S[:, None], deterministic(q_SA.argmax(1), q_SA.shape[1]), policy_SA
        )
    raise UsageError(f"no best policy after {max_rounds} rounds.", where="policy iteration")


def linear_programme(mdp: MDP) -> np.ndarray:
    """The best value of every state, [S], as the least V that no action beats.

    It is the best of the policies that end.

        min sum_s V(s)
        subject to V(s) >= r(s, a) + gamma sum_s' p(s' | s, a) V(s') for all s, a
                   V(terminal) = 0

    Manne 1960, "Linear programming and sequential decisions".
    """
    live_S, S = ~mdp.terminal_S, len(mdp.states)
    above = mdp.gamma * mdp.transition_SAZ - np.eye(S)[:, None, :]
    bounds = [(None, None) if live else (0, 0) for live in live_S]
    found = linprog(
        np.ones(S),
        A_ub=above[live_S].reshape(-1, S),
        b_ub=-mdp.reward_SA[live_S].reshape(-1),
        bounds=bounds,
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if not found.success:
        raise UsageError(
            f"the linear programme has no solution: {found.message}",
            where="gamma",
            fix="Undiscounted, every state needs a way out.",
        )
    return found.x


def optimal_actions(mdp: MDP, value_S: np.ndarray, tolerance: float = 1e-9) -> np.ndarray:
    """Which actions are best, ties included: V [S] -> bool [S, A].

    Those with Q(s, a) >= max Q(s, .) - tolerance. All False in terminal states.

    Undiscounted with step reward 0 a policy of best actions may still never end: that every move is
    tied says that none loses anything yet, not that repeating it arrives: see
    `never_ending_states`.
    """
    q_SA = q_values(mdp, value_S)
    return (q_SA >= q_SA.max(1, keepdims=True) - tolerance) & ~mdp.terminal_S[:, None]


def names_of(mdp: MDP, best_SA: np.ndarray) -> dict[str, list[str]]:
    """{state: [its best actions]} for the states where a choice is open."""
    live = np.flatnonzero(~mdp.terminal_S)
    return {
        mdp.states[state]: [mdp.actions[action] for action in np.flatnonzero(best_SA[state])]
        for state in live
    }
