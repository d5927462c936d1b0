"""`laurel tabular solve`: one world, planned three ways and learned two ways.

And the step rewards at which the best policy changes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np

from laurel.report.exhibit import Claim, Exhibit, Table
from laurel_worlds.gridworld import WORLDS, map_of
from laurel_worlds.learning import Learned, q_learning, sarsa
from laurel_worlds.mdp import MDP
from laurel_worlds.planning import (
    deterministic,
    evaluate,
    linear_programme,
    names_of,
    never_ending_states,
    optimal_actions,
    policy_iteration_rounds,
    value_iteration,
    value_iteration_sweeps,
)

ABOUT = (
    "The value of a cell is the best expected sum of rewards from it; arrows are the best moves,"
    " several where they tie."
)
TIE = 1e-7  # actions whose values differ by less are tied
LEARNERS: dict[str, Callable[..., Learned]] = {"Q-learning": q_learning, "SARSA": sarsa}


def solve(
    world: Literal["gridworld", "cliff", "corridor"] = "gridworld",
    *,
    step_reward: float = -0.04,
    slip: float = 0.0,
    gamma: float = 1.0,
    seeds: int = 5,
    steps: int = 0,
    thresholds: bool = False,
) -> Exhibit:
    """The best values and actions of a world, planned with the dynamics known and learned without.

    world: the world to solve. step_reward: paid on every move, the one into an exit included. slip:
    the chance to go off at a right angle, half to each side. gamma: the discount. seeds: Q-learning
    and SARSA are run with seeds 0 to this, less one; 0 leaves them out. steps: moves that each run
    may make; 0: 8400 for every state and action, 1100 where moves never slip. thresholds: also the
    step rewards from -3 to 0 at which the best policy changes.
    """
    mdp = WORLDS[world](step_reward=step_reward, slip=slip, gamma=gamma)
    steps = steps or default_moves(mdp)
    value_S, data = _planned(mdp)
    best_SA = optimal_actions(mdp, value_S, TIE)
    data["learners"] = rows = _learned_rows(mdp, best_SA, seeds, steps)
    tables = [_planning_table(mdp, value_S, data["sweeps"], data["rounds"], data["gaps"])]
    claims = [_planning_claim(data["gaps"], data["same_actions"])]
    if rows:
        tables.append(_learning_table(rows))
        claims.append(_learning_claim(rows, steps, len(data["values"])))
    if thresholds:
        data["switches"] = switch_points(partial(_world, world, slip, gamma))
        tables.append(_switch_table(data["switches"]))
    return Exhibit(
        title=f"{world}: step reward {step_reward:g}, slip {slip:g}, gamma {gamma:g}",
        about=ABOUT,
        data=data,
        grids=(map_of("best values and moves", mdp, value_S, best_SA),),
        tables=tuple(tables),
        claims=tuple(claims),
        notes=_notes(mdp, best_SA, rows),
    )


def default_moves(mdp: MDP) -> int:
    """The moves that a learner gets by default.

    So many for every state and action, fewer where nothing is left to chance.
    """
    pairs = int((~mdp.terminal_S).sum()) * len(mdp.actions)
    return pairs * (1100 if mdp.prob_SAK[~mdp.terminal_S].max(2).min() == 1 else 8400)


def learned_row(mdp: MDP, best_SA: np.ndarray, name: str, seed: int, steps: int) -> dict[str, Any]:
    """One run of a learner, compared with the best policy.

    The states where its choice is no best action, which of several it took, and what its greedy
    policy loses.

    `lost` is the value of the best policy less that of the learner's greedy one, at the start; None
    where that one never ends.
    """
    live = np.flatnonzero(~mdp.terminal_S).tolist()
    learned = LEARNERS[name](mdp.simulator(seed), steps=steps, seed=seed, starts=live)
    greedy_S = learned.greedy()
    policy_SA = deterministic(greedy_S, len(mdp.actions))
    ends = mdp.gamma < 1 or not never_ending_states(mdp, policy_SA).any()
    lost = float(mdp.start_S @ (value_iteration(mdp) - evaluate(mdp, policy_SA))) if ends else None
    return {
        "learner": name,
        "seed": seed,
        "steps": learned.steps,
        "lost": lost,
        "ends": ends,
        "wrong": [mdp.states[state] for state in live if not best_SA[state, greedy_S[state]]],
        "tied": {
            mdp.states[state]: mdp.actions[greedy_S[state]]
            for state in live
            if best_SA[state].sum() > 1
        },
    }


def _learned_rows(mdp: MDP, best_SA: np.ndarray, seeds: int, steps: int) -> list[dict[str, Any]]:
    runs = itertools.product(LEARNERS, range(seeds))
    return [learned_row(mdp, best_SA, name, seed, steps) for name, seed in runs]


def _world(name: str, slip: float, gamma: float, step_reward: float) -> MDP:
    return WORLDS[name](step_reward=step_reward, slip=slip, gamma=gamma)


def _planned(mdp: MDP) -> tuple[np.ndarray, dict[str, Any]]:
    """The best value of every state, and what the three ways to plan come to."""
    value_S, sweeps = value_iteration_sweeps(mdp)
    policy_SA, howard_S, rounds = policy_iteration_rounds(mdp)
    best_SA = optimal_actions(mdp, value_S, TIE)
    others = {"policy iteration": howard_S, "linear programme": linear_programme(mdp)}
    same = all((optimal_actions(mdp, other_S, TIE) == best_SA).all() for other_S in others.values())
    return value_S, {
        "values": {
            mdp.states[state]: float(value_S[state]) for state in np.flatnonzero(~mdp.terminal_S)
        },
        "optimal_actions": names_of(mdp, best_SA),
        "sweeps": sweeps,
        "rounds": rounds,
        "gaps": {name: float(np.abs(other_S - value_S).max()) for name, other_S in others.items()},
        "same_actions": same,
        "policy_iteration_ends": not never_ending_states(mdp, policy_SA).any(),
    }


def _planning_claim(gaps: dict[str, float], same: bool) -> Claim:
    return Claim(
        "value iteration, policy iteration and the linear programme find the same values and"
        " the same sets of best actions",
        same and max(gaps.values()) < 1e-9,
        ", ".join(f"{name}: largest gap {gap:.1e}" for name, gap in gaps.items()),
    )


def _learning_claim(rows: list[dict[str, Any]], steps: int, states: int) -> Claim:
    wrong = [
        f"{row['learner']} seed {row['seed']} at {' '.join(row['wrong'])}"
        for row in rows
        if row["wrong"]
    ]
    return Claim(
        "Q-learning and SARSA, which do not know the dynamics, take a best action in every state",
        not wrong,
        "; ".join(wrong) or f"{len(rows)} runs of {steps} moves, {states} states each",
    )


def switch_points(
    world: Callable[[float], MDP],
    *,
    low: float = -3.0,
    high: float = 0.0,
    resolution: float = 0.02,
    accuracy: float = 1e-6,
) -> list[dict[str, Any]]:
    """The step rewards between `low` and `high` at which the best actions change, lowest first.

    A scan at `resolution` finds the intervals, halving pins each down to `accuracy`; a policy best
    on less than the resolution may be missed. At the switch itself the actions on either side are
    tied. `changes`: {state: (best below, best above)}.
    """

    count = math.ceil((high - low) / resolution)
    # the offset keeps a round switch such as -2 off the scan's points, where it would be a tie
    offset = resolution / math.pi
    knots = [low + offset + position * resolution for position in range(count)]
    knots = [knot for knot in knots if knot < high - accuracy] + [high - 10 * accuracy]
    found = [
        switch
        for below, above in itertools.pairwise(knots)
        for switch in _switches_between(world, below, above, accuracy)
    ]
    switches: list[dict[str, Any]] = []
    for switch in found:
        if switches and switch - switches[-1]["step_reward"] < 4 * accuracy:
            continue  # the middle of a halving fell on the switch: found from both sides
        before, after = (
            names_of(mdp, _best_actions(mdp))
            for mdp in (world(switch - 2 * accuracy), world(switch + 2 * accuracy))
        )
        changes = {
            state: (before[state], after[state])
            for state in before
            if before[state] != after[state]
        }
        switches += [{"step_reward": switch, "changes": changes}] if changes else []
    return switches


def _best_actions(mdp: MDP) -> np.ndarray:
    return optimal_actions(mdp, policy_iteration_rounds(mdp)[1], TIE)


def _switches_between(
    world: Callable[[float], MDP], below: float, above: float, accuracy: float
) -> list[float]:
    """Switches strictly inside: each halving keeps every half whose ends differ."""
    if (_best_actions(world(below)) == _best_actions(world(above))).all():
        return []
    middle = (below + above) / 2
    if above - below < accuracy:
        return [middle]
    return [
        *_switches_between(world, below, middle, accuracy),
        *_switches_between(world, middle, above, accuracy),
    ]


def _planning_table(
    mdp: MDP, value_S: np.ndarray, sweeps: int, rounds: int, gaps: dict[str, float]
) -> Table:
    pairs = int((~mdp.terminal_S).sum()) * len(mdp.actions)
    start = float(mdp.start_S @ value_S)
    rows = (
        ("value iteration", f"{sweeps} sweeps of {pairs} pairs", start, 0.0),
        ("policy iteration", f"{rounds} linear solves", start, gaps["policy iteration"]),
        ("linear programme", f"{pairs} constraints", start, gaps["linear programme"]),
    )
    return Table(
        "known dynamics",
        ("method", "work", "value of the start", "largest gap to value iteration"),
        rows,
    )


def _learning_table(rows: list[dict[str, Any]]) -> Table:
    shown = [
        (
            row["learner"],
            row["seed"],
            row["steps"],
            " ".join(row["wrong"]) or "none",
            row["lost"] if row["ends"] else "never ends",
            ", ".join(f"{state} {action}" for state, action in list(row["tied"].items())[:4])
            or "none",
        )
        for row in rows
    ]
    return Table(
        "unknown dynamics",
        (
            "learner",
            "seed",
            "moves",
            "states gone wrong",
            "loss of its policy",
            "choice where tied",
        ),
        tuple(shown),
    )


def _switch_table(switches: list[dict[str, Any]]) -> Table:
    shown = [
        (round(row["step_reward"], 5), state, " or ".join(before), " or ".join(after))
        for row in switches
        for state, (before, after) in row["changes"].items()
    ]
    return Table(
        "where the best policy changes",
        ("step reward", "state", "best below it", "best above it"),
        tuple(shown),
    )


def _notes(mdp: MDP, best_SA: np.ndarray, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    notes = []
    first_SA = deterministic(best_SA.argmax(1), len(mdp.actions))
    if mdp.gamma == 1 and never_ending_states(mdp, first_SA).any():
        notes.append(
            "Here a policy can take a best action everywhere and never end (the first of each set"
            " does): without a cost of moving, a tie says that nothing is lost yet, not that"
            " repeating the move arrives."
        )
    if any(not row["ends"] for row in rows):
        count = sum(not row["ends"] for row in rows)
        notes.append(
            f"{count} of {len(rows)} learned greedy policies loop so from some state, each of their"
            " moves being a best one."
        )
    return tuple(notes)
