"""`laurel tabular compare`: on-policy against off-policy, known against unknown dynamics.

In moves and in failures, and what not knowing the dynamics costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from laurel.core.errors import UsageError
from laurel.report.exhibit import Chart, Claim, Exhibit, Table
from laurel_worlds.gradient import Episode, objective, rollout
from laurel_worlds.gridworld import WORLDS, cliff, gridworld
from laurel_worlds.interval import interval_text
from laurel_worlds.interval import student_interval as interval
from laurel_worlds.learning import counted_model, q_learning, sarsa
from laurel_worlds.mdp import MDP, from_arrays
from laurel_worlds.offpolicy import ESTIMATORS, doubly_robust, ratio_second_moment, reuse
from laurel_worlds.planning import (
    deterministic,
    evaluate,
    never_ending_states,
    optimal_actions,
    q_values,
    uniform,
    value_iteration,
    value_iteration_sweeps,
)
from laurel_worlds.solve import LEARNERS, TIE, default_moves, learned_row

STEP_REWARDS, SLIPS = (0.0, -0.04, -0.1, -0.4, -1.0, -2.0), (0.0, 0.2)
FLOOR = -1000.0  # the value of a policy that walks on and on
BAR = 0.6  # a value that a good policy reaches
Point = tuple[float, float, float, float]
Way = Callable[[MDP, int, int], np.ndarray]
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
    parts = [
        _cliff_exhibit(chosen, epsilon),
        _reuse_exhibit(chosen, rounds),
        _weights_exhibit(chosen),
        _unknown_dynamics_exhibit(chosen),
    ]
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


def with_random_moves(mdp: MDP, epsilon: float) -> MDP:
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


def _cliff_exhibit(seeds: range, epsilon: float) -> Exhibit:
    """Q-learning learns the shortest path and falls on the way.

    SARSA learns the path that is best with its own mistakes.
    """
    mdp = cliff()
    limits = _cliff_limits(mdp, epsilon)
    returns = {
        name: [_cliff_returns(mdp, name, seed, epsilon) for seed in seeds] for name in LEARNERS
    }
    online = {name: [float(run[-200:].mean()) for run in runs] for name, runs in returns.items()}
    columns = (
        "learner",
        "return while learning, last 200",
        "its limit, exact",
        "limit without mistakes, exact",
    )
    rows = tuple(
        (name, interval_text(interval(online[name]), 1), *limits[name]) for name in LEARNERS
    )
    figures = {
        name: {
            "online": online[name],
            "limit_online": limits[name][0],
            "limit_greedy": limits[name][1],
        }
        for name in LEARNERS
    }
    curves: dict[str, Sequence[Point]] = {
        name: _learning_curve(runs) for name, runs in returns.items()
    }
    return Exhibit(
        title="",
        about="",
        data={"cliff": figures},
        tables=(Table(f"the cliff, {epsilon:g} of all moves random", columns, rows),),
        charts=(Chart("return on the cliff while learning", "episode", "return", curves),),
        claims=_cliff_claims(online, limits),
    )


def _cliff_limits(mdp: MDP, epsilon: float) -> dict[str, tuple[float, float]]:
    """What each learner converges to, exactly: value with and without its random moves."""
    mistaken = with_random_moves(mdp, epsilon)
    shortest_SA = deterministic(q_values(mdp, value_iteration(mdp)).argmax(1), len(mdp.actions))
    careful_S = value_iteration(mistaken)
    careful_SA = deterministic(q_values(mistaken, careful_S).argmax(1), len(mdp.actions))
    start = mdp.start_S
    return {
        "Q-learning": (
            float(start @ evaluate(mistaken, shortest_SA)),
            float(start @ evaluate(mdp, shortest_SA)),
        ),
        "SARSA": (float(start @ careful_S), float(start @ evaluate(mdp, careful_SA))),
    }


def _cliff_returns(mdp: MDP, name: str, seed: int, epsilon: float) -> np.ndarray:
    """The return of every episode of a run."""
    run = LEARNERS[name](
        mdp.simulator(seed), steps=20_000, seed=seed, epsilon=epsilon, step_size=0.25
    )
    return np.array(run.returns)


def _learning_curve(runs: list[np.ndarray]) -> list[Point]:
    """The mean return of 30 episodes after another with its interval over runs, 20 times.

    A run of fewer than 600 episodes has no curve.
    """
    curves = [
        run[:600].reshape(-1, 30).mean(1) if len(run) >= 600 else np.full(20, np.nan)
        for run in runs
    ]
    return [(30.0 * (i + 1), *interval([curve[i] for curve in curves])) for i in range(20)]


def _cliff_claims(
    online: dict[str, list[float]], limits: dict[str, tuple[float, float]]
) -> tuple[Claim, ...]:
    gap = interval(np.subtract(online["SARSA"], online["Q-learning"]).tolist())
    shortest, careful = limits["Q-learning"][1], limits["SARSA"][1]
    return (
        Claim(
            "while learning, SARSA earns more than Q-learning on the cliff",
            gap[1] > 0,
            f"{interval_text(gap, 1)} more an episode at the end",
        ),
        Claim(
            "once mistakes stop, Q-learning's limit is the better one (exact)",
            shortest > careful,
            f"{shortest:g} against {careful:g}",
        ),
    )


def _value_or_floor(mdp: MDP, logit_SA: np.ndarray) -> float:
    """J, and FLOOR where it is below or the policy has all but ceased to end."""
    try:
        return max(FLOOR, objective(mdp, logit_SA))
    except UsageError:
        return FLOOR


def _reuse_exhibit(seeds: range, rounds: int) -> Exhibit:
    """The policy gradient from its own fresh episodes, and from used ones."""
    mdp = gridworld(slip=0.2)
    best = float(mdp.start_S @ value_iteration(mdp))
    arms = {name: _run_arm(mdp, seeds, rounds, options) for name, options in ARMS.items()}
    columns = (
        "how a batch is used",
        f"median moves to {BAR:g}",
        f"median value at the end (best {best:.3f})",
        "failed",
        "largest fall",
        "effective share",
    )
    rows = tuple(
        (
            name,
            arm.reached(len(seeds)),
            float(np.median(arm.final)),
            arm.failed,
            arm.worst_fall,
            arm.share,
        )
        for name, arm in arms.items()
    )
    return Exhibit(
        title="",
        about="",
        data={"reuse": {name: arm.figures() for name, arm in arms.items()}},
        claims=_reuse_claims(list(arms.values()), len(seeds)),
        tables=(
            Table(f"policy gradient, {rounds} batches of 8 episodes, rate 0.5", columns, rows),
        ),
        charts=(
            Chart(
                "value of the policy (median and range; below -3 shown as -3)",
                "episodes",
                "value",
                {name: arm.curve(rounds) for name, arm in arms.items()},
            ),
        ),
    )


@dataclass(frozen=True)
class _Arm:
    """The runs of one way to use a batch: each run's values by round, and what they came to."""

    values: list[np.ndarray]
    moves: list[int | None]
    final: np.ndarray
    failed: int
    worst_fall: float
    share: float

    def reached(self, runs: int) -> str:
        """The median moves to BAR, and how many runs got there."""
        reached = [move for move in self.moves if move is not None]
        if not reached:
            return f"none of {runs}"
        return f"{np.median(reached):.0f} ({len(reached)} of {runs})"

    def figures(self) -> dict[str, Any]:
        """The figures by name."""
        return {
            "moves_to_bar": self.moves,
            "final": self.final.tolist(),
            "failed": self.failed,
            "worst_fall": self.worst_fall,
            "share": self.share,
        }

    def curve(self, rounds: int) -> list[Point]:
        """Median and range of the value over runs; a run that stopped keeps its last value."""
        padded = [
            np.concatenate([value, np.full(rounds - len(value), value[-1])])
            for value in self.values
        ]
        low, middle, high = np.quantile(padded, (0, 0.5, 1), axis=0).clip(min=-3.0).tolist()
        return [
            (8.0 * (i + 1), middle[i], low[i], high[i])
            for i in range(0, rounds, max(1, rounds // 20))
        ]


def _run_arm(mdp: MDP, seeds: range, rounds: int, options: dict[str, Any]) -> _Arm:
    runs = [
        reuse(mdp.simulator(seed), rounds=rounds, batch=8, rate=0.5, seed=seed, **options)
        for seed in seeds
    ]
    values = [np.array([_value_or_floor(mdp, logit_SA) for _, logit_SA, _ in run]) for run in runs]
    moves = [
        next((run[i][0] for i in np.flatnonzero(value > BAR)), None)
        for run, value in zip(runs, values, strict=True)
    ]
    return _Arm(
        values,
        moves,
        final=np.array([value[-1] for value in values]),
        failed=sum(
            len(run) < rounds or bool(value[-1] < 0)
            for run, value in zip(runs, values, strict=True)
        ),
        worst_fall=max(float((np.maximum.accumulate(value) - value).max()) for value in values),
        share=float(np.mean([share for run in runs for *_, share in run])),
    )


def _reuse_claims(arms: list[_Arm], runs: int) -> tuple[Claim, ...]:
    """Of the four ARMS in their order: fresh, without weights, weighted, weighted with care."""
    fresh, unweighted, weighted, careful = arms
    gain = interval((careful.final - fresh.final).tolist())
    fresh_median, unweighted_median, weighted_median = (
        float(np.median(arm.final)) for arm in (fresh, unweighted, weighted)
    )
    return (
        Claim(
            "from the same episodes, used batches earn more than fresh ones if they are left when"
            " their weights decay",
            gain[1] > 0,
            f"final value {interval_text(gain)} higher; moves to {BAR:g} are in the table",
        ),
        Claim(
            "used without that care they fail, and fresh ones do not",
            weighted.failed > fresh.failed == 0,
            f"{weighted.failed} of {runs} end below 0 or stop ({fresh.failed} fresh); largest fall"
            f" {weighted.worst_fall:.3g} against {fresh.worst_fall:.3g}",
        ),
        Claim(
            "used without weights they reach less than fresh ones",
            unweighted_median < fresh_median,
            f"median final value {unweighted_median:.3g} against {fresh_median:.3g}; weighted,"
            f" unguarded {weighted_median:.3g}",
        ),
    )


def chain_world(length: int) -> MDP:
    """A world of `length` moves in a row, each paying 1 / length for the first of two actions.

    Only the horizon differs between such worlds.
    """
    transition_SAZ = np.zeros((length + 1, 2, length + 1))
    transition_SAZ[np.arange(length), :, np.arange(length) + 1] = 1.0
    return from_arrays(
        transition_SAZ, np.tile([1 / length, 0.0], (length + 1, 1)), terminal=[length]
    )


def _weights_exhibit(
    seeds: range, horizons: Sequence[int] = (1, 2, 4, 8, 16, 32), episodes: int = 200
) -> Exhibit:
    """Evaluation from another policy's episodes: the error as the horizon grows."""
    curves: dict[str, list[Point]] = {}
    rows, figures = [], {}
    for horizon in horizons:
        rms, moment = _evaluation_errors(horizon, seeds, episodes)
        figures[horizon] = {"rms_error": rms, "weight_second_moment": moment}
        rows.append((horizon, moment, *rms.values()))
        for name, error in rms.items():
            curves.setdefault(name, []).append((float(horizon), error, error, error))
    columns = ("horizon", "E[weight^2], exact", *curves)
    return Exhibit(
        title="",
        about="",
        data={"horizon": figures},
        claims=(_growth_claim(figures, horizons[0], horizons[-1]),),
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


def _evaluation_errors(horizon: int, seeds: range, episodes: int) -> tuple[dict[str, float], float]:
    """The root mean square error of every estimator by name, and E[weight^2], exactly."""
    mdp = chain_world(horizon)
    target_SA, behaviour_SA = (
        np.tile([chance, 1 - chance], (horizon + 1, 1)) for chance in (0.8, 0.5)
    )
    truth = float(mdp.start_S @ evaluate(mdp, target_SA))
    # doubly robust gets a model that knows where moves lead and half of what they pay
    wrong = replace(mdp, reward_SAK=mdp.reward_SAK / 2)
    estimators = {**ESTIMATORS, "doubly robust": doubly_robust(wrong)}
    errors: dict[str, list[float]] = {}
    for seed in seeds:
        of_behaviour, of_target = (
            _episodes(mdp, policy_SA, episodes, seed) for policy_SA in (behaviour_SA, target_SA)
        )
        on_policy = float(np.mean([episode.rewards.sum() for episode in of_target]))
        errors.setdefault("on-policy", []).append(on_policy - truth)
        for name, estimator in estimators.items():
            estimate = float(estimator(of_behaviour, target_SA, behaviour_SA, 1.0).mean())
            errors.setdefault(name, []).append(estimate - truth)
    rms = {name: float(np.sqrt(np.mean(np.square(found)))) for name, found in errors.items()}
    return rms, ratio_second_moment(mdp, target_SA, behaviour_SA, horizon)


def _growth_claim(figures: dict[int, dict[str, Any]], shortest: int, longest: int) -> Claim:
    first, last = figures[shortest], figures[longest]
    per_move = 1 / (longest - shortest)
    growth = (last["weight_second_moment"] / first["weight_second_moment"]) ** per_move
    ordinary, on_policy = (
        last["rms_error"][name] / first["rms_error"][name] for name in ("ordinary", "on-policy")
    )
    return Claim(
        "importance weights' error grows with the horizon, on-policy's does not",
        ordinary > 3 and on_policy < 1.5,
        f"horizon {longest} over 1: {ordinary:.3g} times, on-policy"
        f" {on_policy:.3g} times; E[weight^2] grows {growth:.4g} times a move, exactly",
    )


def _episodes(mdp: MDP, policy_SA: np.ndarray, count: int, seed: int) -> list[Episode]:
    simulator, rng = mdp.simulator(seed), np.random.default_rng([seed, 1])
    return [rollout(simulator, policy_SA, rng) for _ in range(count)]


def _unknown_dynamics_exhibit(seeds: range, allowed: float = 0.01) -> Exhibit:
    """Moves in the world until the policy found loses at most `allowed` at the start.

    Planning takes none, learning more.
    """
    mdp = gridworld(slip=0.2)
    value_S, sweeps = value_iteration_sweeps(mdp)
    pairs = int((~mdp.terminal_S).sum()) * len(mdp.actions)
    budgets = [36 * 2**power for power in range(11)]

    def needs(way: Way, seed: int) -> int | None:
        enough = (
            m for m in budgets if _loss_of_greedy_policy(mdp, value_S, way(mdp, m, seed)) <= allowed
        )
        return next(enough, None)

    needed = {name: [needs(way, seed) for seed in seeds] for name, way in WAYS.items()}
    medians = {
        name: float(np.median([math.inf if moves is None else moves for moves in found]))
        for name, found in needed.items()
    }
    rows = [("planning, dynamics known", 0.0, f"{sweeps} sweeps of {pairs} pairs")]
    rows += [
        (name, medians[name], ", ".join(str(moves or "more") for moves in needed[name]))
        for name in WAYS
    ]
    title = (
        f"moves until the policy loses at most {allowed:g} (doubled from {budgets[0]} to"
        f" {budgets[-1]})"
    )
    return Exhibit(
        title="",
        about="",
        data={"unknown": {"needed": needed, "sweeps": sweeps}},
        claims=(_model_claim(medians),),
        tables=(Table(title, ("way", "median moves", "per seed"), tuple(rows)),),
    )


def _model_claim(medians: dict[str, float]) -> Claim:
    ratio = min(medians["Q-learning"], medians["SARSA"]) / medians["model from counts"]
    return Claim(
        "a model from counts needs fewer moves than learning without a model",
        ratio > 1,
        f"{ratio:.3g} times fewer than the better of the two",
    )


def _loss_of_greedy_policy(mdp: MDP, value_S: np.ndarray, q_SA: np.ndarray) -> float:
    """What the greedy policy of Q loses at the start; infinity if it may never end."""
    policy_SA = deterministic(q_SA.argmax(1), len(mdp.actions))
    if never_ending_states(mdp, policy_SA).any():
        return math.inf
    return float(mdp.start_S @ (value_S - evaluate(mdp, policy_SA)))


def _open_states(mdp: MDP) -> list[int]:
    return np.flatnonzero(~mdp.terminal_S).tolist()


def _learn_by_model(mdp: MDP, moves: int, seed: int) -> np.ndarray:
    starts = _open_states(mdp)
    samples = max(1, moves // (len(starts) * len(mdp.actions)))
    model = counted_model(mdp.simulator(seed), samples=samples, starts=starts)
    if model.gamma == 1 and never_ending_states(model, uniform(model)).any():
        return np.zeros_like(mdp.reward_SA)  # too few samples to have seen a way out
    return q_values(model, value_iteration(model))


def _learn_by_q_learning(mdp: MDP, moves: int, seed: int) -> np.ndarray:
    return q_learning(mdp.simulator(seed), steps=moves, seed=seed, starts=_open_states(mdp)).q_SA


def _learn_by_sarsa(mdp: MDP, moves: int, seed: int) -> np.ndarray:
    return sarsa(mdp.simulator(seed), steps=moves, seed=seed, starts=_open_states(mdp)).q_SA


WAYS: dict[str, Way] = {
    "model from counts": _learn_by_model,
    "Q-learning": _learn_by_q_learning,
    "SARSA": _learn_by_sarsa,
}
"""name: (world, moves, seed) -> the Q [S, A] that so many moves give."""


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
                name: [learned_row(mdp, best_SA, name, seed, default_moves(mdp)) for seed in seeds]
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
