"""The experiment of `laurel tabular imitate`.

How errors grow with the horizon, and what imitation cannot surpass.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laurel.core.errors import UsageError
from laurel.report.exhibit import Chart, Claim, Exhibit, Grid, Table
from laurel_worlds.gridworld import gridworld, map_of
from laurel_worlds.imitation import (
    Labels,
    Tightrope,
    clone,
    cost,
    interactive,
    noisy,
    sample_walks,
    tightrope,
    unrecoverable_cost,
)
from laurel_worlds.interval import Interval, interval_text, student_interval
from laurel_worlds.learning import q_learning
from laurel_worlds.mdp import MDP
from laurel_worlds.planning import deterministic, evaluate, optimal_actions, value_iteration

Rows = list[tuple[str | float | int | bool | None, ...]]


def imitate(
    *,
    horizons: tuple[int, ...] = (16, 32, 64, 128, 256),
    labels: int = 24_000,
    rounds: int = 10,
    fog: float = 0.00075,
    mistakes: float = 0.3,
    seeds: int = 8,
    seed: int = 0,
) -> Exhibit:
    """Imitation: error against the horizon, and imitation against optimisation.

    For behaviour cloning and an interactive learner.

    Both learners get `labels` labelled steps and the same function class, on the tightrope, whose
    `fog` makes each err now and then even where the expert walks. Then a gridworld's demonstrator
    errs in a share `mistakes` of its moves, and its clone meets Q-learning.
    """
    if len(horizons) < 2 or min(horizons) < 2 or len(set(horizons)) != len(horizons):
        raise UsageError(
            "an exponent needs at least two different horizons of 2 or more.", where="horizons"
        )
    if (
        seeds < 2
        or labels < max(horizons) * (rounds + 1)
        or not 0 < fog < 1
        or not 0 <= mistakes <= 1
    ):
        what = (
            "needed: 2 seeds, an episode of labels for every round, a chance of fog between 0 and"
            " 1, a share of mistakes."
        )
        raise UsageError(
            what,
            where="imitate",
            fix=f"With these horizons and rounds: labels >= {max(horizons) * (rounds + 1)}.",
        )
    data, table, chart, claims = _tightrope_exhibit(horizons, labels, rounds, fog, seeds, seed)
    versus, grids, second, capped = _imitation_against_q_learning(mistakes, seeds, seed)
    return Exhibit(
        title="Imitation: compounding errors, and the demonstrator as a ceiling",
        about=(
            f"A tightrope with fog: {labels} labelled steps per learner, {seeds} seeds. Then a"
            " gridworld with a demonstrator that errs."
        ),
        data={**data, **versus},
        grids=grids,
        tables=(*table, second),
        charts=(chart,),
        claims=(*claims, capped),
        notes=(
            (
                "Clones hardly differ between seeds: in fog every guess is right as often, and"
                " elsewhere on the rope labels are plenty."
            ),
            (
                "Costs are exact for each learned policy; the intervals are Student's over seeds"
                " (of data and learning)."
            ),
            (
                "The exponent is the slope of log cost against log horizon. Quadratic growth is a"
                " limit for error times horizon << 1; `closed form` is what the measured error"
                " gives at these horizons if nothing can be undone."
            ),
        ),
    )


def learners(rounds: int) -> dict[str, int]:
    """name: rounds in which the learner acts and the expert corrects."""
    return {"behaviour cloning": 0, "interactive (DAgger)": rounds}


def growth_exponent(horizons: tuple[int, ...], cost_T: list[float]) -> float:
    """The slope of log cost against log horizon by least squares: 1, 4, 16 at 1, 2, 4 gives 2."""
    if min(cost_T) <= 0:
        raise UsageError(
            "a learner made no mistake at some horizon; a cost of 0 has no logarithm.",
            where="fog",
            fix="Use more fog.",
        )
    return float(np.polyfit(np.log(horizons), np.log(cost_T), 1)[0])


def _tightrope_exhibit(
    horizons: tuple[int, ...], labels: int, rounds: int, fog: float, seeds: int, seed: int
):
    """(data, tables, chart, claims) of the tightrope.

    Axis letters: R runs, T horizons, C the figures of `_trial`.
    """
    rows: list[CostRow] = []
    curves, slopes = {}, {}
    for name, found_RTC in _trials(
        fog, horizons, labels, rounds, range(seed, seed + seeds)
    ).items():
        slopes[name] = _slope(horizons, found_RTC[..., 0])
        slopes[f"{name}, simulated"] = _slope(horizons, found_RTC[..., 2])
        of_learner = [(name, T, *_cost_row(found_RTC[:, t], T)) for t, T in enumerate(horizons)]
        curves[name] = [(float(row[1]), *row[3:6]) for row in of_learner]
        rows += of_learner
    cloning = rows[: len(horizons)]
    slopes["closed form"] = (growth_exponent(horizons, [row[-1] for row in cloning]),) * 3
    return (
        {"cost": [dict(zip(COSTS, row, strict=True)) for row in rows], "exponent": slopes},
        _cost_tables(rows, slopes),
        Chart(*AXES, curves, log_x=True, log_y=True),
        _growth_claims(slopes, max(row[2] for row in cloning) * max(horizons)),
    )


AXES = ("Cost against the horizon", "horizon", "steps spent below")
COSTS = (
    "learner",
    "horizon",
    "error per step",
    "cost",
    "low",
    "high",
    "simulated",
    "z",
    "closed form",
)


def _trials(
    fog: float, horizons: tuple[int, ...], labels: int, rounds: int, seeds: range
) -> dict[str, np.ndarray]:
    """learner -> the figures of `_trial` for each seed and horizon, [R, T, C]."""
    world = tightrope(fog=fog)
    return {
        name: np.array(
            [
                [
                    _trial(world, T, labels, own, np.random.default_rng([seed, T, number]))
                    for T in horizons
                ]
                for seed in seeds
            ]
        )
        for number, (name, own) in enumerate(learners(rounds).items())
    }


CostRow = tuple[str, int, float, float, float, float, float, float, float]
"""One of COSTS."""


def _slope(horizons: tuple[int, ...], cost_RT: np.ndarray) -> Interval:
    """The exponent of growth over runs."""
    return student_interval([growth_exponent(horizons, list(cost_T)) for cost_T in cost_RT])


def _cost_row(
    found_RC: np.ndarray, horizon: int
) -> tuple[float, float, float, float, float, float, float]:
    """COSTS of all runs of a learner at one horizon, from the error on."""
    cost_R, error_R, simulated_R, spread_R = found_RC.T
    error, simulated = float(error_R.mean()), simulated_R.mean()
    spread = np.sqrt((spread_R**2).sum()) / len(spread_R)
    z = (simulated - cost_R.mean()) / spread if spread > 0 else 0.0
    closed = unrecoverable_cost(error, horizon)
    return error, *student_interval(cost_R), float(simulated), float(z), closed


def _cost_tables(rows: list[CostRow], slopes: dict[str, Interval]) -> tuple[Table, Table]:
    growth = tuple((name, *slope) for name, slope in slopes.items())
    return (
        Table("Expected cost of the learned policies (the expert's is 0)", COSTS, tuple(rows)),
        Table("Growth with the horizon", ("cost", "exponent", "low", "high"), growth),
    )


def _trial(
    world: Tightrope, horizon: int, labels: int, rounds: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Train one learner and measure it.

    Exact cost, error per step where the expert walks, cost in a simulation and its standard error.
    """
    policy_SA = interactive(world, labels=labels, horizon=horizon, rounds=rounds, rng=rng)
    right_S = policy_SA[np.arange(len(world.expert_S)), world.expert_S]
    reward_TN = sample_walks(world.mdp, policy_SA, steps=2000 * horizon, horizon=horizon, rng=rng)[
        2
    ]
    total_N = -reward_TN.sum(0)
    error = 1 - float(world.mdp.start_S @ right_S)
    return (
        cost(world.mdp, policy_SA, horizon),
        error,
        float(total_N.mean()),
        float(total_N.std(ddof=1) / np.sqrt(len(total_N))),
    )


def _growth_claims(slopes: dict[str, Interval], scale: float) -> tuple[Claim, ...]:
    """Near 2 and near 1, each with its whole interval, where the theory applies.

    It applies where error times horizon is well below 1.
    """
    cloned, cloned_simulated, corrected, corrected_simulated, closed = slopes.values()
    where = (
        f"simulated {interval_text(cloned_simulated)}; closed form {closed[0]:.3f};"
        f" error times the longest horizon {scale:.2f}"
    )
    return (
        Claim(
            "Behaviour cloning's cost grows quadratically with the horizon (exponent 2, to 0.2).",
            abs(cloned[1] - 2) < 0.2 and abs(cloned[2] - 2) < 0.2,
            f"{interval_text(cloned)}; {where}",
        ),
        Claim(
            "The interactive learner's grows linearly (exponent 1, to 0.2).",
            abs(corrected[1] - 1) < 0.2 and abs(corrected[2] - 1) < 0.2,
            f"{interval_text(corrected)}; simulated {interval_text(corrected_simulated)}",
        ),
        Claim(
            "The two exponents differ: their intervals do not meet.",
            min(cloned[1], cloned_simulated[1]) > max(corrected[2], corrected_simulated[2]),
            f"{interval_text(cloned)} against {interval_text(corrected)};"
            f" simulated {interval_text(cloned_simulated)}"
            f" against {interval_text(corrected_simulated)}",
        ),
    )


def _imitation_against_q_learning(
    mistakes: float, seeds: int, seed: int
) -> tuple[dict[str, Any], tuple[Grid, ...], Table, Claim]:
    """Clones of a demonstrator that errs, and Q-learning, on the same gridworld.

    Values at the start, by exact evaluation.
    """
    mdp = gridworld(step_reward=-0.04, slip=0.2, gamma=0.99)
    best_S = value_iteration(mdp)
    expert_SA = noisy(optimal_actions(mdp, best_S), mistakes)
    ceiling, best = float(mdp.start_S @ evaluate(mdp, expert_SA)), float(mdp.start_S @ best_S)
    rows: Rows = [("demonstrator", None, *[ceiling] * 3), ("optimum", None, *[best] * 3)]
    found = {}
    runs = range(seed, seed + seeds)
    for steps in (300, 3_000, 30_000):
        cloned = [_clone_value(mdp, expert_SA, steps, run) for run in runs]
        learned = [_learned_value(mdp, steps, run) for run in runs]
        found = {"clone": student_interval(cloned), "Q-learning": student_interval(learned)}
        rows += [(name, steps, *interval) for name, interval in found.items()]
    return (
        {"value": [dict(zip(VALUES, row, strict=True)) for row in rows]},
        _demonstrator_maps(mdp, best_S, expert_SA),
        Table(TITLE.format(mistakes), VALUES, tuple(rows)),
        _ceiling_claim(found["clone"], found["Q-learning"], ceiling, best),
    )


VALUES = ("policy", "steps", "value at the start", "low", "high")
TITLE = "Imitation against optimisation: a demonstrator with {:.0%} random moves, 0.2 slip"


def _ceiling_claim(clone: Interval, learned: Interval, ceiling: float, best: float) -> Claim:
    return Claim(
        "With enough data the clone is as good as its demonstrator and no better (to 0.02), while"
        " optimisation surpasses the demonstrator.",
        abs(clone[0] - ceiling) < 0.02 and learned[1] > max(ceiling, clone[2]),
        f"demonstrator {ceiling:.3f}, clone {interval_text(clone)}, Q-learning"
        f" {interval_text(learned)}, optimum {best:.3f}",
    )


def _clone_value(mdp: MDP, expert_SA: np.ndarray, steps: int, seed: int) -> float:
    """The value at the start of a clone of so many steps of the demonstrator."""
    rng = np.random.default_rng([seed, steps])
    state_TN, action_TN, _ = sample_walks(mdp, expert_SA, steps=steps, horizon=60, rng=rng)
    running_TN = ~mdp.terminal_S[state_TN]
    labels = Labels(state_TN[running_TN], action_TN[running_TN])
    return float(mdp.start_S @ evaluate(mdp, clone(labels, *expert_SA.shape)))


def _learned_value(mdp: MDP, steps: int, seed: int) -> float:
    """The value at the start of what Q-learning finds in so many steps."""
    learned = q_learning(mdp.simulator(seed), steps=steps, seed=seed, epsilon=0.3)
    policy_SA = deterministic(learned.greedy(), len(mdp.actions))
    return float(mdp.start_S @ evaluate(mdp, policy_SA))


def _demonstrator_maps(mdp: MDP, best_S: np.ndarray, expert_SA: np.ndarray) -> tuple[Grid, Grid]:
    title = "Value of the demonstrator, and what it does most often"
    usual_SA = expert_SA >= expert_SA.max(1, keepdims=True)
    return (
        map_of("The optimum", mdp, best_S, optimal_actions(mdp, best_S)),
        map_of(title, mdp, evaluate(mdp, expert_SA), usual_SA),
    )
