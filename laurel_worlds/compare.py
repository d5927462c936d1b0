"""`laurel tabular compare`: on-policy against off-policy, known against unknown dynamics.

In moves and in failures, and what not knowing the dynamics costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from laurel.core.errors import UsageError
from laurel.report.exhibit import Chart, Claim, Exhibit, Table
from laurel_worlds.gradient import Episode, objective, rollout
from laurel_worlds.gridworld import WORLDS, cliff, gridworld
from laurel_worlds.interval import mean as interval
from laurel_worlds.interval import words
from laurel_worlds.learning import counted_model, q_learning, sarsa
from laurel_worlds.mdp import MDP, from_arrays
from laurel_worlds.offpolicy import ESTIMATORS, doubly_robust, ratio_second_moment, reuse
from laurel_worlds.planning import (
    deterministic,
    endless,
    evaluate,
    optimal_actions,
    q_values,
    uniform,
    value_iteration,
    value_iteration_sweeps,
)
from laurel_worlds.solve import LEARNERS, TIE, learned_row, moves_for

STEP_REWARDS, SLIPS = (0.0, -0.04, -0.1, -0.4, -1.0, -2.0), (0.0, 0.2)
FLOOR = -1000.0  # the value of a policy that walks on and on
ARMS: dict[str, dict[str, Any]] = {
    "on-policy, 1 step a batch": {"updates": 1},
    "16 steps, weights ignored": {"updates": 16, "corrected": False},
    "16 steps, weighted": {"updates": 16},
    "up to 16, weighted, share kept": {"updates": 16, "least_share": 0.7},
}
"""name: how a batch of episodes is used, as `reuse` takes it."""


def compare(
    *,
    seeds: int = 6,
    seed: int = 0,
    epsilon: float = 0.1,
    rounds: int = 60,
    every_world: bool = False,
) -> Exhibit:
    """What on-policy and off-policy learning cost, and how stable they are.

    seeds: runs of every arm, on which the intervals rest. seed: the first of them. epsilon: the
    share of random moves on the cliff. rounds: batches of 8 episodes for the policy gradients.
    every_world: also Q-learning and SARSA on the gridworld at six step rewards and two slips (two
    minutes).
    """
    chosen = range(seed, seed + seeds)
    parts = [_cliff(chosen, epsilon), _reuse(chosen, rounds), _weights(chosen), _unknown(chosen)]
    parts += [_every_world(chosen)] if every_world else []
    return Exhibit(
        title="on-policy against off-policy",
        about=(
            "Worlds learned from one's own episodes, from others' and from none (planning): moves"
            " needed, value reached, failures."
        ),
        data={name: figures for part in parts for name, figures in part.data.items()},
        tables=tuple(table for part in parts for table in part.tables),
        charts=tuple(chart for part in parts for chart in part.charts),
        claims=tuple(claim for part in parts for claim in part.claims),
        notes=(f"Intervals are 95 % (Student's t) over seeds {seed} to {seed + seeds - 1}.",),
    )


def soft(mdp: MDP, epsilon: float) -> MDP:
    """The world where an action becomes a random one with probability epsilon.

    Its best policy is the best epsilon-soft one.
    """
    S, A, K = mdp.prob_SAK.shape

    def spread(array_SAK: np.ndarray) -> np.ndarray:
        every = np.broadcast_to(array_SAK.reshape(S, 1, A * K), (S, A, A * K))
        return np.concatenate([array_SAK, every], axis=2)

    prob_SAK = spread(mdp.prob_SAK)
    prob_SAK = np.concatenate(
        [prob_SAK[..., :K] * (1 - epsilon), prob_SAK[..., K:] * epsilon / A], axis=2
    )
    return MDP(
        prob_SAK,
        spread(mdp.next_SAK),
        spread(mdp.reward_SAK),
        mdp.gamma,
        mdp.terminal_S,
        mdp.start_S,
        mdp.states,
        mdp.actions,
    )


def _cliff(seeds: range, epsilon: float) -> Exhibit:
    """Q-learning learns the shortest path and falls on the way.

    SARSA learns the path that is best with its own mistakes.
    """
    mdp = cliff()
    mistaken = soft(mdp, epsilon)
    shortest_SA = deterministic(q_values(mdp, value_iteration(mdp)).argmax(1), len(mdp.actions))
    careful_S = value_iteration(mistaken)
    careful_SA = deterministic(q_values(mistaken, careful_S).argmax(1), len(mdp.actions))
    start = mdp.start_S
    exact = {
        "Q-learning": (
            float(start @ evaluate(mistaken, shortest_SA)),
            float(start @ evaluate(mdp, shortest_SA)),
        ),
        "SARSA": (float(start @ careful_S), float(start @ evaluate(mdp, careful_SA))),
    }
    online: dict[str, list[float]] = {name: [] for name in LEARNERS}
    curves: dict[str, list[np.ndarray]] = {name: [] for name in LEARNERS}
    for name, learner in LEARNERS.items():
        for seed in seeds:
            returns = np.array(
                learner(
                    mdp.simulator(seed), steps=20_000, seed=seed, epsilon=epsilon, step_size=0.25
                ).returns
            )
            online[name].append(float(returns[-200:].mean()))
            curves[name].append(
                returns[:600].reshape(-1, 30).mean(1)
                if len(returns) >= 600
                else np.full(20, np.nan)
            )
    gap = interval(np.subtract(online["SARSA"], online["Q-learning"]).tolist())
    rows = tuple(
        (name, words(interval(online[name]), 1), exact[name][0], exact[name][1])
        for name in LEARNERS
    )
    figures = {
        name: {
            "online": online[name],
            "limit_online": exact[name][0],
            "limit_greedy": exact[name][1],
        }
        for name in LEARNERS
    }
    claims = (
        Claim(
            "while learning, SARSA earns more than Q-learning on the cliff",
            gap[1] > 0,
            f"{words(gap, 1)} more an episode at the end",
        ),
        Claim(
            "once mistakes stop, Q-learning's limit is the better one (exact)",
            exact["Q-learning"][1] > exact["SARSA"][1],
            f"{exact['Q-learning'][1]:g} against {exact['SARSA'][1]:g}",
        ),
    )
    points: dict[str, Sequence[tuple[float, float, float, float]]] = {
        name: [(30.0 * (i + 1), *interval([curve[i] for curve in found])) for i in range(20)]
        for name, found in curves.items()
    }
    columns = (
        "learner",
        "return while learning, last 200",
        "its limit, exact",
        "limit without mistakes, exact",
    )
    return Exhibit(
        title="",
        about="",
        data={"cliff": figures},
        tables=(Table(f"the cliff, {epsilon:g} of all moves random", columns, rows),),
        charts=(Chart("return on the cliff while learning", "episode", "return", points),),
        claims=claims,
    )


def _height(mdp: MDP, logit_SA: np.ndarray) -> float:
    """J, and FLOOR where it is below or the policy has all but ceased to end."""
    try:
        return max(FLOOR, objective(mdp, logit_SA))
    except UsageError:
        return FLOOR


def _reuse(seeds: range, rounds: int) -> Exhibit:
    """The policy gradient from its own fresh episodes, and from used ones."""
    mdp = gridworld(slip=0.2)
    best, bar = float(mdp.start_S @ value_iteration(mdp)), 0.6
    rows, figures, points, stride = [], {}, {}, max(1, rounds // 20)
    finals: dict[str, np.ndarray] = {}
    failed: dict[str, int] = {}
    for name, options in ARMS.items():
        trails = [
            reuse(mdp.simulator(seed), rounds=rounds, batch=8, rate=0.5, seed=seed, **options)
            for seed in seeds
        ]
        heights = [
            np.array([_height(mdp, logit_SA) for _, logit_SA, _ in trail]) for trail in trails
        ]
        moves = [
            next((trail[i][0] for i in np.flatnonzero(height > bar)), None)
            for trail, height in zip(trails, heights, strict=True)
        ]
        finals[name] = np.array([height[-1] for height in heights])
        failed[name] = sum(
            len(trail) < rounds or bool(height[-1] < 0)
            for trail, height in zip(trails, heights, strict=True)
        )
        shares = float(np.mean([share for trail in trails for *_, share in trail]))
        reached = [move for move in moves if move is not None]
        worst = max(float((np.maximum.accumulate(height) - height).max()) for height in heights)
        told = (
            f"{np.median(reached):.0f} ({len(reached)} of {len(seeds)})"
            if reached
            else f"none of {len(seeds)}"
        )
        rows.append((name, told, float(np.median(finals[name])), failed[name], worst, shares))
        figures[name] = {
            "moves_to_bar": moves,
            "final": finals[name].tolist(),
            "failed": failed[name],
            "worst_fall": worst,
            "share": shares,
        }
        held = [
            np.concatenate([height, np.full(rounds - len(height), height[-1])])
            for height in heights
        ]
        spread = np.quantile(held, (0.5, 0, 1), axis=0)
        points[name] = [
            (8.0 * (i + 1), *(float(max(-3.0, value)) for value in spread[:, i]))
            for i in range(0, rounds, stride)
        ]
    fresh, bold, blind, kept = (finals[name] for name in ARMS)
    fails = list(failed.values())
    gain = interval((kept - fresh).tolist())
    claims = (
        Claim(
            "from the same episodes, used batches earn more than fresh ones if they are left when"
            " their weights decay",
            gain[1] > 0,
            f"final value {words(gain)} higher; moves to {bar:g} are in the table",
        ),
        Claim(
            "used without that care they fail, and fresh ones do not",
            fails[2] > fails[0] == 0,
            f"{fails[2]} of {len(seeds)} end below 0 or stop ({fails[0]} fresh); largest fall"
            f" {rows[2][4]:.3g} against {rows[0][4]:.3g}",
        ),
        Claim(
            "used without weights they reach less than fresh ones",
            float(np.median(bold)) < float(np.median(fresh)),
            f"median final value {np.median(bold):.3g} against {np.median(fresh):.3g}; weighted,"
            f" unguarded {np.median(blind):.3g}",
        ),
    )
    columns = (
        "how a batch is used",
        f"median moves to {bar:g}",
        f"median value at the end (best {best:.3f})",
        "failed",
        "largest fall",
        "effective share",
    )
    return Exhibit(
        title="",
        about="",
        data={"reuse": figures},
        claims=claims,
        tables=(
            Table(
                f"policy gradient, {rounds} batches of 8 episodes, rate 0.5", columns, tuple(rows)
            ),
        ),
        charts=(
            Chart(
                "value of the policy (median and range; below -3 shown as -3)",
                "episodes",
                "value",
                points,
            ),
        ),
    )


def row_of_moves(length: int) -> MDP:
    """A world of `length` moves in a row, each paying 1 / length for the first of two actions.

    Only the horizon differs between such worlds.
    """
    transition_SAZ = np.zeros((length + 1, 2, length + 1))
    transition_SAZ[np.arange(length), :, np.arange(length) + 1] = 1.0
    return from_arrays(
        transition_SAZ, np.tile([1 / length, 0.0], (length + 1, 1)), terminal=[length]
    )


def _weights(
    seeds: range, horizons: Sequence[int] = (1, 2, 4, 8, 16, 32), episodes: int = 200
) -> Exhibit:
    """Evaluation from another policy's episodes: the error as the horizon grows."""
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    rows, figures = [], {}
    for horizon in horizons:
        mdp = row_of_moves(horizon)
        target_SA, behaviour_SA = (
            np.tile([chance, 1 - chance], (horizon + 1, 1)) for chance in (0.8, 0.5)
        )
        truth = float(mdp.start_S @ evaluate(mdp, target_SA))
        errors: dict[str, list[float]] = {}
        wrong = replace(
            mdp, reward_SAK=mdp.reward_SAK / 2
        )  # a model that knows where moves lead and half of what they pay
        estimators = {**ESTIMATORS, "doubly robust": doubly_robust(wrong)}
        for seed in seeds:
            rows_b, rows_t = (
                _episodes(mdp, policy_SA, episodes, seed) for policy_SA in (behaviour_SA, target_SA)
            )
            errors.setdefault("on-policy", []).append(
                float(np.mean([row.rewards.sum() for row in rows_t])) - truth
            )
            for name, estimator in estimators.items():
                errors.setdefault(name, []).append(
                    float(estimator(rows_b, target_SA, behaviour_SA, 1.0).mean()) - truth
                )
        rms = {name: float(np.sqrt(np.mean(np.square(found)))) for name, found in errors.items()}
        moment = ratio_second_moment(mdp, target_SA, behaviour_SA, horizon)
        figures[horizon] = {"rms_error": rms, "weight_second_moment": moment}
        rows.append((horizon, moment, *rms.values()))
        for name, error in rms.items():
            curves.setdefault(name, []).append((float(horizon), error, error, error))
    names = tuple(curves)
    first, last = figures[horizons[0]], figures[horizons[-1]]
    growth = (last["weight_second_moment"] / first["weight_second_moment"]) ** (
        1 / (horizons[-1] - horizons[0])
    )
    grew = {
        name: last["rms_error"][name] / first["rms_error"][name]
        for name in ("ordinary", "on-policy")
    }
    claims = (
        Claim(
            "importance weights' error grows with the horizon, on-policy's does not",
            grew["ordinary"] > 3 and grew["on-policy"] < 1.5,
            f"horizon {horizons[-1]} over 1: {grew['ordinary']:.3g} times, on-policy"
            f" {grew['on-policy']:.3g} times; E[weight^2] grows {growth:.4g} times a move, exactly",
        ),
    )
    columns = ("horizon", "E[weight^2], exact", *names)
    return Exhibit(
        title="",
        about="",
        data={"horizon": figures},
        claims=claims,
        tables=(
            Table(
                f"root mean square error of evaluation from {episodes} episodes",
                columns,
                tuple(rows),
            ),
        ),
        charts=(
            Chart(
                "error of the value of another policy",
                "horizon",
                "root mean square error",
                {**curves},
                log_x=True,
                log_y=True,
            ),
        ),
    )


def _episodes(mdp: MDP, policy_SA: np.ndarray, count: int, seed: int) -> list[Episode]:
    simulator, rng = mdp.simulator(seed), np.random.default_rng([seed, 1])
    return [rollout(simulator, policy_SA, rng) for _ in range(count)]


def _unknown(seeds: range, allowed: float = 0.01) -> Exhibit:
    """Moves in the world until the policy found loses at most `allowed` at the start.

    Planning takes none, learning more.
    """
    mdp = gridworld(slip=0.2)
    live = np.flatnonzero(~mdp.terminal_S).tolist()
    value_S, sweeps = value_iteration_sweeps(mdp)

    def loss(q_SA: np.ndarray) -> float:
        policy_SA = deterministic(q_SA.argmax(1), len(mdp.actions))
        return (
            math.inf
            if endless(mdp, policy_SA).any()
            else float(mdp.start_S @ (value_S - evaluate(mdp, policy_SA)))
        )

    def modelled(moves: int, seed: int) -> np.ndarray:
        samples = max(1, moves // (len(live) * len(mdp.actions)))
        model = counted_model(mdp.simulator(seed), samples=samples, starts=live)
        if model.gamma == 1 and endless(model, uniform(model)).any():
            return np.zeros_like(mdp.reward_SA)  # too few samples to have seen a way out
        return q_values(model, value_iteration(model))

    ways: dict[str, Callable[[int, int], np.ndarray]] = {
        "model from counts": modelled,
        "Q-learning": lambda moves, seed: (
            q_learning(mdp.simulator(seed), steps=moves, seed=seed, starts=live).q_SA
        ),
        "SARSA": lambda moves, seed: (
            sarsa(mdp.simulator(seed), steps=moves, seed=seed, starts=live).q_SA
        ),
    }
    budgets = [36 * 2**power for power in range(11)]
    needed = {
        name: [
            next((moves for moves in budgets if loss(way(moves, seed)) <= allowed), None)
            for seed in seeds
        ]
        for name, way in ways.items()
    }
    medians = {
        name: float(np.median([math.inf if moves is None else moves for moves in found]))
        for name, found in needed.items()
    }
    rows = [
        (
            "planning, dynamics known",
            0.0,
            f"{sweeps} sweeps of {len(live) * len(mdp.actions)} pairs",
        )
    ]
    rows += [
        (name, medians[name], ", ".join(str(moves or "more") for moves in needed[name]))
        for name in ways
    ]
    ratio = min(medians["Q-learning"], medians["SARSA"]) / medians["model from counts"]
    claim = Claim(
        "a model from counts needs fewer moves than learning without a model",
        ratio > 1,
        f"{ratio:.3g} times fewer than the better of the two",
    )
    title = (
        f"moves until the policy loses at most {allowed:g} (doubled from {budgets[0]} to"
        f" {budgets[-1]})"
    )
    return Exhibit(
        title="",
        about="",
        data={"unknown": {"needed": needed, "sweeps": sweeps}},
        claims=(claim,),
        tables=(Table(title, ("way", "median moves", "per seed"), tuple(rows)),),
    )


def _every_world(seeds: range) -> Exhibit:
    """Q-learning and SARSA against planning on the gridworld.

    At every step reward and slip of the lectures and more.
    """
    rows, wrong = [], 0
    for slip in SLIPS:
        for step_reward in STEP_REWARDS:
            mdp = WORLDS["gridworld"](step_reward=step_reward, slip=slip)
            best_SA = optimal_actions(mdp, value_iteration(mdp), TIE)
            found = {
                name: [learned_row(mdp, best_SA, name, seed, moves_for(mdp)) for seed in seeds]
                for name in LEARNERS
            }
            misses = {name: sum(len(row["wrong"]) for row in runs) for name, runs in found.items()}
            wrong += sum(misses.values())
            rows.append((step_reward, slip, int((best_SA.sum(1) > 1).sum()), *misses.values()))
    columns = (
        "step reward",
        "slip",
        "states with ties",
        *(f"{name}: states wrong" for name in LEARNERS),
    )
    claim = Claim(
        "Q-learning and SARSA take a best action in every state of every world",
        wrong == 0,
        f"{wrong} states wrong in all",
    )
    return Exhibit(
        title="",
        about="",
        data={"worlds": [dict(zip(columns, row, strict=True)) for row in rows]},
        claims=(claim,),
        tables=(Table(f"twelve worlds, {len(seeds)} seeds", columns, tuple(rows)),),
    )
