"""The experiment of `laurel tabular irl`: a reward from demonstrations.

Whether it explains the expert, and what cannot be known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from laurel.core.errors import UsageError
from laurel.report.exhibit import Chart, Claim, Exhibit, Grid, Table
from laurel_worlds.gridworld import cell_of, gridworld, map_of
from laurel_worlds.imitation import sample_walks
from laurel_worlds.interval import Interval, interval_text, student_interval
from laurel_worlds.inverse import (
    demonstrated_visits,
    expected_visits,
    recover,
    rewarded,
    shaped,
    soft_solution,
)
from laurel_worlds.mdp import MDP
from laurel_worlds.planning import deterministic, evaluate, optimal_actions, value_iteration

COLUMNS = (
    "learned from",
    "episodes",
    "same set of best actions",
    "greedy action is best",
    "value",
    "largest gap of soft policies",
)
NOTES = (
    (
        "Value: of the recovered reward's greedy policy under the true reward. Rewards in"
        " the maps are divided by the sharpness."
    ),
    (
        "Policies are identified, rewards only up to shaping: a free r(s, a) leaves one"
        " number per state open, one number per cell entered leaves a single one."
    ),
)
TITLE = "Is the recovered reward's best policy the expert's? (best value {:.4f})"
NEEDED = "needed: at least one demonstration, a discount below 1, a positive sharpness, a seed."
TIE = 1e-6
"""Actions whose values differ by less are equally good.

A recovered reward is a number from an optimiser.
"""


def irl(
    *,
    demonstrations: tuple[int, ...] = (10, 100, 1000),
    slip: float = 0.2,
    step_reward: float = -0.04,
    gamma: float = 0.9,
    sharpness: float = 10.0,
    decay: float = 0.3,
    seeds: int = 5,
    seed: int = 0,
) -> Exhibit:
    """Maximum-entropy inverse RL: recover a reward from demonstrations and check it.

    Whether its optimal policy is the expert's, and what is not identified.

    The expert is soft-optimal for `sharpness` times the gridworld's reward, from a uniform start.
    The reward sought has one number for every cell entered. `decay` per episode regularises finite
    demonstrations; the exact occupancy needs none.
    """
    if min(*demonstrations, seeds, len(demonstrations)) < 1 or not 0 <= gamma < 1 or sharpness <= 0:
        raise UsageError(NEEDED, where="irl")
    mdp = _world(slip, step_reward, gamma)
    best = _best_value(mdp)
    rows, curve, (exact_F, weight_F) = _recovered(
        mdp, demonstrations, sharpness=sharpness, decay=decay, seeds=seeds, seed=seed
    )
    unknown, claims = _identifiability(mdp, sharpness, seed)
    title = TITLE.format(best)
    return Exhibit(
        title="Maximum-entropy inverse reinforcement learning",
        about=(
            f"Gridworld, slip {slip}, step reward {step_reward}, discount {gamma}; an expert of"
            f" sharpness {sharpness}, uniform start."
        ),
        data=_figures(mdp, rows, exact_F / sharpness, unknown),
        grids=_reward_maps(mdp, sharpness, exact_F, weight_F, demonstrations[-1]),
        tables=(Table(title, COLUMNS, tuple(rows)), unknown),
        charts=(_value_chart(curve),),
        claims=(
            *_recovery_claims(rows[1], curve[-1], best),
            _shaping_explains_claim(mdp, exact_F / sharpness),
            *claims,
        ),
        notes=NOTES,
    )


def _value_chart(curve: list[tuple[float, float, float, float]]) -> Chart:
    title = "Value of the recovered policy under the true reward"
    return Chart(title, "episodes", "value", {"recovered": curve}, log_x=True)


def _best_value(mdp: MDP) -> float:
    return float(mdp.start_S @ value_iteration(mdp))


def _recovered(
    mdp: MDP,
    demonstrations: tuple[int, ...],
    *,
    sharpness: float,
    decay: float,
    seeds: int,
    seed: int,
) -> tuple[list[tuple], list[tuple[float, float, float, float]], tuple[np.ndarray, np.ndarray]]:
    """(rows of COLUMNS, values by episodes, weights from the occupancy and the last episodes)."""
    expert_SA, _ = soft_solution(rewarded(mdp, sharpness * mdp.reward_SA))
    exact_F = recover(mdp, mdp.transition_SAZ, expected_visits(mdp, expert_SA))
    rows: list[tuple] = [
        (
            "the true reward",
            None,
            *score_recovered_reward(mdp, expert_SA, sharpness * mdp.reward_SA),
        ),
        (
            "the exact occupancy",
            None,
            *score_recovered_reward(mdp, expert_SA, mdp.transition_SAZ @ exact_F),
        ),
    ]
    curve, weight_F = [], exact_F
    for count in demonstrations:
        found, weight_F = _from_episodes(mdp, expert_SA, count, decay, seeds, seed)
        same, greedy, value, gap = (student_interval(column) for column in zip(*found, strict=True))
        name = f"{count} episodes (mean of {seeds})"
        rows.append((name, count, same[0], greedy[0], value[0], gap[0]))
        curve.append((float(count), *value))
    return rows, curve, (exact_F, weight_F)


def _from_episodes(
    mdp: MDP, expert_SA: np.ndarray, count: int, decay: float, seeds: int, seed: int
) -> tuple[list[tuple[float, float, float, float]], np.ndarray]:
    """Scores of the rewards recovered from `count` episodes by seed, and the last weights [F]."""
    found, weight_F = [], np.zeros(len(mdp.states))
    for run in range(seeds):
        rng = np.random.default_rng([seed + run, count])
        state_TN, action_TN, _ = sample_walks(mdp, expert_SA, steps=count * 80, horizon=80, rng=rng)
        weight_F = recover(
            mdp,
            mdp.transition_SAZ,
            demonstrated_visits(mdp, state_TN, action_TN),
            decay=decay / count,
            tolerance=1e-7,
        )
        found.append(score_recovered_reward(mdp, expert_SA, mdp.transition_SAZ @ weight_F))
    return found, weight_F


def _figures(mdp: MDP, rows: list[tuple], reward_S: np.ndarray, unknown: Table) -> dict[str, Any]:
    return {
        "recovered": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        "reward_of_entering": {
            name: float(reward_S[state]) for state, name in enumerate(mdp.states)
        },
        "identifiability": [dict(zip(unknown.columns, row, strict=True)) for row in unknown.rows],
    }


def _reward_maps(
    mdp: MDP, sharpness: float, exact_F: np.ndarray, sampled_F: np.ndarray, episodes: int
) -> tuple[Grid, ...]:
    """The true reward and the recovered ones, as maps."""
    true = _reward_map(
        "True: reward of entering a cell, and the best actions",
        mdp,
        _entry_rewards(mdp),
        mdp.reward_SA,
    )
    recovered = {
        "Recovered from the exact occupancy": exact_F,
        f"Recovered from {episodes} episodes": sampled_F,
    }
    return true, *(
        _reward_map(title, mdp, weight_F / sharpness, mdp.transition_SAZ @ weight_F)
        for title, weight_F in recovered.items()
    )


def _world(slip: float, step_reward: float, gamma: float) -> MDP:
    """The gridworld; episodes begin in every open cell alike, so that all demonstrate something."""
    mdp = gridworld(slip=slip, step_reward=step_reward, gamma=gamma)
    return replace(mdp, start_S=~mdp.terminal_S / (~mdp.terminal_S).sum())


def score_recovered_reward(
    mdp: MDP, expert_SA: np.ndarray, reward_SA: np.ndarray
) -> tuple[float, float, float, float]:
    """A recovered reward against the true one, as four figures.

    (share of states with the same set of best actions, share whose greedy action is truly best,
    value of the greedy policy under the true reward, largest difference of its soft-optimal policy
    from the expert's).
    """
    found, live_S = rewarded(mdp, reward_SA), ~mdp.terminal_S
    value_S = value_iteration(found)
    best_SA, found_SA = (
        optimal_actions(mdp, value_iteration(mdp), TIE),
        optimal_actions(found, value_S, TIE),
    )
    greedy_S = found_SA.argmax(1)
    value = float(mdp.start_S @ evaluate(mdp, deterministic(greedy_S, len(mdp.actions))))
    gap = float(np.abs(soft_solution(found)[0] - expert_SA)[live_S].max())
    right_S = best_SA[np.arange(len(greedy_S)), greedy_S]
    return (
        float((best_SA == found_SA).all(1)[live_S].mean()),
        float(right_S[live_S].mean()),
        value,
        gap,
    )


def _entry_rewards(mdp: MDP) -> np.ndarray:
    """The reward paid on entering each state, [S]; in a gridworld the same from everywhere."""
    paid_S = np.zeros(len(mdp.states))
    live_SAK = (mdp.prob_SAK > 0) & ~mdp.terminal_S[:, None, None]
    paid_S[mdp.next_SAK[live_SAK]] = mdp.reward_SAK[live_SAK]
    return paid_S


def _reward_map(title: str, mdp: MDP, entered_S: np.ndarray, reward_SA: np.ndarray) -> Grid:
    """Every cell with the reward of entering it and the best actions under `reward_SA`."""
    found = rewarded(mdp, reward_SA)
    drawn = map_of(title, found, entered_S, optimal_actions(found, value_iteration(found), TIE))
    values = [list(line) for line in drawn.values]
    marks = [list(line) for line in drawn.marks]
    for state in np.flatnonzero(mdp.terminal_S):
        column, row = cell_of(mdp.states[state])
        values[-row][column - 1], marks[-row][column - 1] = float(entered_S[state]), "end"
    return Grid(title, tuple(map(tuple, values)), tuple(map(tuple, marks)))


def _recovery_claims(
    exact: tuple, sampled: tuple[float, float, float, float], best: float
) -> tuple[Claim, ...]:
    episodes, *interval = sampled
    value: Interval = (interval[0], interval[1], interval[2])
    return (
        Claim(
            "From the exact occupancy: in every state the recovered reward has the expert's set of"
            " best actions.",
            exact[2] == 1.0 and exact[5] < 1e-3,
            f"share {exact[2]:.3f}, soft policies differ by at most {exact[5]:.2g}",
        ),
        Claim(
            "From the largest set of demonstrations: the recovered policy is worth the best one"
            " under the true reward (to 0.02).",
            value[0] > best - 0.02,
            f"{interval_text(value, 4)} against {best:.4f} with {episodes:.0f} episodes",
        ),
    )


def _shaping_explains_claim(mdp: MDP, found_S: np.ndarray) -> Claim:
    """Does the least-squares shaping explain the difference of two rewards?

    With one number per cell entered, the only shaping left adds c to every open cell and c/(1 -
    gamma) to every exit.
    """
    error_S, free_S = (
        found_S - _entry_rewards(mdp),
        np.where(mdp.terminal_S, 1 / (1 - mdp.gamma), 1.0),
    )
    c = float(error_S @ free_S / (free_S @ free_S))
    left = float(np.abs(error_S - c * free_S).max())
    return Claim(
        "One number per cell entered is found up to one constant: c on every open cell, c/(1 -"
        " gamma) on every exit.",
        left < 1e-4,
        f"off by at most {np.abs(error_S).max():.2g}, of which c = {c:.4f} explains all but"
        f" {left:.2g}",
    )


def _identifiability(mdp: MDP, sharpness: float, seed: int) -> tuple[Table, tuple[Claim, ...]]:
    """Other rewards the expert could have: which of them change the policy?"""
    base = rewarded(mdp, sharpness * mdp.reward_SA)
    expert_SA, _ = soft_solution(base)
    potential_S = 5 * np.random.default_rng(seed).normal(size=len(mdp.states))
    constant = 1.5 * sharpness
    others = {
        "shaped by a random potential": shaped(base, potential_S).reward_SA,
        "constant, the end paying it for ever": (
            shaped(base, np.full(len(mdp.states), -constant / (1 - mdp.gamma))).reward_SA
        ),
        "constant on every move": base.reward_SA + constant,
        "doubled": 2 * base.reward_SA,
    }
    live_S = ~mdp.terminal_S
    rows = []
    for name, reward_SA in others.items():
        same, _, _, gap = score_recovered_reward(mdp, expert_SA, reward_SA)
        rows.append((name, float(np.abs(reward_SA - base.reward_SA)[live_S].max()), same, gap))
    columns = (
        "reward",
        "largest change of the reward",
        "same set of best actions",
        "largest gap of soft policies",
    )
    title = f"Other rewards that could be the expert's (rewards of size {sharpness:g})"
    return Table(title, columns, tuple(rows)), _shaping_claims(rows[:2], rows[2])


def _shaping_claims(harmless: list[tuple], harmful: tuple) -> tuple[Claim, ...]:
    return (
        Claim(
            "Reward values are not identified: shaping changes them and no policy.",
            all(row[1] > 0.1 and row[2] == 1 and row[3] < 1e-6 for row in harmless),
            "; ".join(
                f"{row[0]}: reward by {row[1]:.3g}, policy by {row[3]:.2g}" for row in harmless
            ),
        ),
        Claim(
            "A constant on every move is no shaping where episodes end: it changes the best"
            " policy.",
            harmful[2] < 1 and harmful[3] > 0.01,
            f"best actions kept in {harmful[2]:.0%} of the states, policy changed by"
            f" {harmful[3]:.2g}",
        ),
    )
