"""Adversarial imitation on exact worlds.

A discriminator tells the expert's visits from the learner's, and its verdict is the reward.

Convention: D(s, a) = P(expert | s, a). `rho` is the normalised discounted occupancy of state-action
pairs, [S, A], summing to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, softmax, xlogy

from laurel.core.errors import UsageError, nearest
from laurel.report.exhibit import Chart, Claim, Exhibit, Grid, Table
from laurel_worlds.gridworld import gridworld, map_of
from laurel_worlds.imitation import noisy
from laurel_worlds.mdp import MDP, from_arrays
from laurel_worlds.planning import evaluate, occupancy, optimal_actions, q_values, value_iteration

REWARDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "airl": lambda f_SA: f_SA,
    "gail": lambda f_SA: -log_expit(-f_SA),
    "logd": log_expit,
}
"""name: the reward as a function of the discriminator's logit f = log D/(1 - D).

f itself, -log(1 - D), log D.
"""


def restarted(mdp: MDP) -> MDP:
    """The same world without an end: what entered a terminal state goes on from the start.

    Rewards on average as before.

    Then every policy makes equally many steps, which the identities below need. In a world that
    ends, a reward that is always positive (GAIL's) pays for staying and one that is always negative
    (log D) for leaving, whatever the expert does: Kostrikov et al. 2019, arXiv:1809.02925.
    """
    ended_SA = mdp.transition_SAZ[..., mdp.terminal_S].sum(2)
    transition_SAZ = (
        np.where(mdp.terminal_S, 0.0, mdp.transition_SAZ) + ended_SA[..., None] * mdp.start_S
    )
    terminal = np.flatnonzero(mdp.terminal_S).tolist()
    return from_arrays(
        transition_SAZ,
        mdp.reward_SA,
        gamma=mdp.gamma,
        terminal=terminal,
        start=mdp.start_S,
        states=mdp.states,
        actions=mdp.actions,
    )


def visits(mdp: MDP, policy_SA: np.ndarray) -> np.ndarray:
    """rho(s, a) = (1 - gamma) sum_t gamma^t P(s_t = s, a_t = a), [S, A], in a world without an end:
    it sums to 1.
    """
    if mdp.gamma == 1:
        raise UsageError("occupancies are discounted: the discount must be below 1.", where="gamma")
    return (1 - mdp.gamma) * occupancy(mdp, policy_SA)[:, None] * policy_SA


def optimal_logit(expert_SA: np.ndarray, rho_SA: np.ndarray, floor: float = 1e-12) -> np.ndarray:
    """The logit of the best discriminator D* = rho_E / (rho_E + rho): log rho_E - log rho, [S, A].

    Both are floored to stay finite.
    """
    return np.log(np.maximum(expert_SA, floor)) - np.log(np.maximum(rho_SA, floor))


def train_discriminator(
    logit_SA: np.ndarray,
    expert_SA: np.ndarray,
    rho_SA: np.ndarray,
    *,
    steps: int,
    rate: float = 2.0,
) -> np.ndarray:
    """The discriminator's logit [S, A] after some steps of logistic regression.

    Ascent on E_expert[log D] + E_learner[log(1 - D)], one number per pair:

        f += rate (D* - D)

    It is the gradient rho_E (1 - D) - rho D, divided by the pair's share rho_E + rho of the data.

    It ends at `optimal_logit`; where D* is 0 or 1 that is infinite, and few steps keep it small.
    """
    seen_SA = expert_SA + rho_SA
    best_SA = np.divide(expert_SA, seen_SA, out=np.full_like(seen_SA, 0.5), where=seen_SA > 0)
    for _ in range(steps):
        logit_SA = logit_SA + rate * (best_SA - expit(logit_SA))
    return logit_SA


def advantage(mdp: MDP, policy_SA: np.ndarray, reward_SA: np.ndarray) -> np.ndarray:
    """A(s, a) = Q(s, a) - V(s) of a policy for a reward that is not the world's: [S, A]."""
    paid = from_arrays(
        mdp.transition_SAZ,
        reward_SA,
        gamma=mdp.gamma,
        terminal=np.flatnonzero(mdp.terminal_S).tolist(),
        start=mdp.start_S,
    )
    value_S = evaluate(paid, policy_SA)
    return q_values(paid, value_S) - value_S[:, None]


def policy_gradient(mdp: MDP, logit_SA: np.ndarray, reward_SA: np.ndarray) -> np.ndarray:
    """The exact gradient of (1 - gamma) E[sum_t gamma^t reward] by softmax logits, [S, A].

    It is rho(s, a) A(s, a), with the reward held fixed.

    With the reward made from D* it is, exactly, minus the gradient of a divergence between rho and
    rho_E (`DIVERGENCES`).
    """
    policy_SA = softmax(logit_SA, axis=1)
    return visits(mdp, policy_SA) * advantage(mdp, policy_SA, reward_SA)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) = sum p log(p/q) of two distributions of one shape; 0 log 0 = 0."""
    return float((xlogy(p, p) - xlogy(p, q)).sum())


DIVERGENCES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "airl": lambda rho, expert: kl(rho, expert),
    "gail": lambda rho, expert: kl(rho, (rho + expert) / 2) + kl(expert, (rho + expert) / 2),
    "logd": lambda rho, expert: 2 * kl((rho + expert) / 2, expert),
}
"""name: the divergence that its policy gradient descends at the best discriminator.

KL(rho || rho_E), 2 JS, 2 KL((rho + rho_E)/2 || rho_E).
"""


def imitate_adversarially(
    mdp: MDP,
    expert_SA: np.ndarray,
    *,
    reward: str = "airl",
    rounds: int = 400,
    rate: float = 0.3,
    discriminator_steps: int | None = None,
) -> tuple[np.ndarray, list[float]]:
    """GAIL and its relatives, exactly.

    Returns (policy [S, A], total variation to the expert's occupancy before each round).

    A round: the discriminator sees both occupancies (`discriminator_steps` of
    `train_discriminator`; None: the best one), then logits += rate * A under its reward, the
    natural policy gradient (Kakade 2001). Ho and Ermon 2016, arXiv:1606.03476 (who write D for
    P(learner)); Fu, Luo and Levine 2018, arXiv:1710.11248.
    """
    if reward not in REWARDS:
        raise UsageError(
            f"unknown reward `{reward}`.", where="reward", fix=nearest(reward, REWARDS)
        )
    logit_SA, judge_SA = np.zeros_like(expert_SA), np.zeros_like(expert_SA)
    distances: list[float] = []
    for _ in range(rounds):
        policy_SA = softmax(logit_SA, axis=1)
        rho_SA = visits(mdp, policy_SA)
        distances.append(float(np.abs(rho_SA - expert_SA).sum() / 2))
        if discriminator_steps is None:
            judge_SA = optimal_logit(expert_SA, rho_SA)
        else:
            judge_SA = train_discriminator(judge_SA, expert_SA, rho_SA, steps=discriminator_steps)
        logit_SA = logit_SA + rate * advantage(mdp, policy_SA, REWARDS[reward](judge_SA))
    return softmax(logit_SA, axis=1), distances


def bell_policy(place: float, log_width: float, num_actions: int) -> np.ndarray:
    """A bell over actions 0 ... A - 1, [A]: a policy with a single mode.

    p(a) is in proportion to exp(-(a - place)^2 / (2 width^2)).
    """
    return softmax(-((np.arange(num_actions) - place) ** 2) / (2 * np.exp(2 * log_width)))


def fit_bell(
    expert_A: np.ndarray, divergence: Callable[[np.ndarray, np.ndarray], float]
) -> np.ndarray:
    """The bell of least divergence(bell, expert), [A].

    The best of searches from every action, narrow and wide.
    """
    A = len(expert_A)
    starts = [(float(place), log_width) for place in range(A) for log_width in (-0.5, 0.7)]
    searches = [
        minimize(
            lambda x: divergence(bell_policy(x[0], x[1], A), expert_A),
            start,
            method="L-BFGS-B",
            bounds=[(-1, A), (-1.2, 3)],
        )
        for start in starts
    ]
    best = min(searches, key=lambda search: search.fun)
    return bell_policy(best.x[0], best.x[1], A)


def gail(
    *, rounds: int = 400, mistakes: float = 0.2, slip: float = 0.2, gamma: float = 0.9
) -> Exhibit:
    """Adversarial imitation: it reaches the expert's occupancy.

    A policy class too small shows mode seeking against covering.

    The expert of the gridworld errs in a share `mistakes` of its moves, so that every reward of the
    discriminator is finite. Nothing is sampled: occupancies, discriminators and gradients are
    exact, or the discriminator is trained for 5 steps a round.
    """
    if not 0 < mistakes <= 1 or not 0 <= gamma < 1:
        raise UsageError(
            "needed: a share of mistakes above 0 and a discount below 1.", where="gail"
        )
    world = gridworld(slip=slip, gamma=gamma)
    mdp, best_S = restarted(world), value_iteration(world)
    best_SA = optimal_actions(world, best_S)
    policy_SA = noisy(best_SA, mistakes)
    expert_SA = visits(mdp, policy_SA)
    value = float(world.start_S @ evaluate(world, policy_SA))
    rows, curves, last = _imitators(world, expert_SA, rounds)
    covering, claims = _two_modes()
    return Exhibit(
        title="Adversarial imitation on an exact world",
        about=(
            f"Gridworld that starts again, slip {slip}, an expert with {mistakes:.0%} random moves;"
            " TV: distance to its occupancy."
        ),
        data={
            "imitation": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
            "expert_value": value,
        },
        grids=_imitation_maps(world, policy_SA, best_SA, last),
        tables=(
            Table(f"Imitators of an expert of value {value:.4f}", COLUMNS, tuple(rows)),
            covering,
        ),
        charts=(
            Chart(
                "Distance to the expert's occupancy", "round", "total variation", curves, log_y=True
            ),
        ),
        claims=(*_imitation_claims(rows), *claims),
    )


COLUMNS = (
    "reward",
    "discriminator",
    "TV at first",
    "TV at last",
    "value",
    "error of the gradient identity",
)


def _imitators(
    world: MDP, expert_SA: np.ndarray, rounds: int
) -> tuple[list[tuple], dict[str, Sequence[tuple[float, float, float, float]]], np.ndarray]:
    """(rows of COLUMNS, distance by round, the last policy) of every reward and discriminator."""
    mdp = restarted(world)
    curves: dict[str, Sequence[tuple[float, float, float, float]]] = {}
    rows, last_SA = [], expert_SA
    for name in REWARDS:
        error = _identity_error(mdp, expert_SA, name)
        for judge, steps in (("best", None), ("trained", 5)):
            last_SA, distances = imitate_adversarially(
                mdp, expert_SA, reward=name, rounds=rounds, discriminator_steps=steps
            )
            distance = float(np.abs(visits(mdp, last_SA) - expert_SA).sum() / 2)
            value = float(world.start_S @ evaluate(world, last_SA))
            rows.append((name, judge, distances[0], distance, value, error))
            curves[f"{name}, {judge} discriminator"] = [
                (float(t), d, d, d) for t, d in enumerate(distances) if t % 10 == 0
            ]
    return rows, curves, last_SA


def _imitation_maps(
    world: MDP, expert_SA: np.ndarray, best_SA: np.ndarray, last_SA: np.ndarray
) -> tuple[Grid, Grid]:
    usual_SA = last_SA >= last_SA.max(1, keepdims=True) - 1e-3
    return (
        map_of(
            "The expert's value, and what it does most often",
            world,
            evaluate(world, expert_SA),
            best_SA,
        ),
        map_of("The same of the last learner", world, evaluate(world, last_SA), usual_SA),
    )


def _imitation_claims(rows: list[tuple]) -> tuple[Claim, ...]:
    """What the rows of COLUMNS show."""
    return (
        Claim(
            "Every variant reaches the expert's occupancy (total variation below 1e-3).",
            all(row[3] < 1e-3 for row in rows),
            f"largest {max(row[3] for row in rows):.2g}",
        ),
        Claim(
            "At the best discriminator each policy gradient is minus the gradient of its"
            " divergence (to 1e-6).",
            all(row[5] < 1e-6 for row in rows),
            f"largest relative error {max(row[5] for row in rows):.2g}",
        ),
    )


def _identity_error(mdp: MDP, expert_SA: np.ndarray, reward: str) -> float:
    """How far the policy gradient is from minus the gradient of its divergence, relative.

    By central differences, at a fixed odd policy.
    """
    logit_SA = np.sin(np.arange(expert_SA.size, dtype=float)).reshape(expert_SA.shape)
    rho_SA = visits(mdp, softmax(logit_SA, axis=1))
    found_SA = policy_gradient(mdp, logit_SA, REWARDS[reward](optimal_logit(expert_SA, rho_SA)))
    step, slope_SA = 1e-5, np.zeros_like(logit_SA)
    for index in np.ndindex(logit_SA.shape):
        nudge_SA = np.zeros_like(logit_SA)
        nudge_SA[index] = step
        up, down = (
            DIVERGENCES[reward](visits(mdp, softmax(logit_SA + sign * nudge_SA, axis=1)), expert_SA)
            for sign in (1, -1)
        )
        slope_SA[index] = (up - down) / (2 * step)
    return float(np.abs(found_SA + slope_SA).max() / np.abs(slope_SA).max())


def _two_modes() -> tuple[Table, tuple[Claim, ...]]:
    """An expert with two habits and a policy class with one.

    Which one cloning finds, and which the adversarial reward.
    """
    expert_A = softmax(np.array([0.0, 3.0, 4.0, 3.0, 0.0, 0.0, 2.6, 3.6, 2.6]))
    cloned_A = fit_bell(expert_A, lambda bell_A, target_A: kl(target_A, bell_A))
    sought_A = fit_bell(expert_A, DIVERGENCES["airl"])
    rows = tuple(
        (name, *(float(p) for p in policy_A), kl(expert_A, policy_A), kl(policy_A, expert_A))
        for name, policy_A in (
            ("expert", expert_A),
            ("cloned", cloned_A),
            ("adversarial (airl)", sought_A),
        )
    )
    columns = (
        "policy",
        *(f"a{action}" for action in range(len(expert_A))),
        "KL(expert || it)",
        "KL(it || expert)",
    )
    (*_, cloned_forward, cloned_reverse), (*_, sought_forward, sought_reverse) = rows[1:]
    return Table("Two habits, one bell: probabilities of nine actions", columns, rows), (
        Claim(
            "A policy class too small: cloning covers the modes (least forward KL), the adversarial"
            " reward seeks one (least reverse KL).",
            cloned_forward < sought_forward and sought_reverse < cloned_reverse,
            f"forward {cloned_forward:.3f} < {sought_forward:.3f}; reverse {sought_reverse:.3f} <"
            f" {cloned_reverse:.3f}",
        ),
    )
