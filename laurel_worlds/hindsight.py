"""Hindsight experience replay on bit flipping.

An episode that missed its goal is a success at the place where it ended up.

Axis letters: N episodes or steps, T flips of an episode, B bits (-1 or +1), X features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from laurel.core.errors import UsageError
from laurel.report.exhibit import Chart, Claim, Exhibit, Table
from laurel_worlds.interval import interval_text, wilson_interval

Point = tuple[float, float, float, float]

GAMMA = 0.95
RATE = 8.0
FUTURES = 4
"""Goals in hindsight per step, beside the episode's own: the paper's k."""


@dataclass(frozen=True)
class Episodes:
    """N episodes played in parallel.

    States [T + 1, N, B], the bits flipped [T, N], goals [N, B], and how many flips each one made
    [N].
    """

    state_TNB: np.ndarray
    action_TN: np.ndarray
    goal_NB: np.ndarray
    length_N: np.ndarray

    @property
    def reached_N(self) -> np.ndarray:
        """Which episodes ended at their goal."""
        return (self.state_TNB[-1] == self.goal_NB).all(1)


@dataclass(frozen=True)
class Steps:
    """Steps, each with a goal.

    Bits before and after [N, B], the bit flipped [N], the goal [N, B].
    """

    before_NB: np.ndarray
    action_N: np.ndarray
    after_NB: np.ndarray
    goal_NB: np.ndarray


def hit_chance(bits: int, steps: int) -> float:
    """The exact chance that random flips meet a uniformly drawn other goal within `steps`.

    Only the number d of differing bits matters: a flip leads to d - 1 with probability d/n and to d
    + 1 otherwise. One bit, one step: 1. Two bits, one step: two of the three goals are one flip
    away, half of the flips are right, 2/3 * 1/2 = 1/3.
    """
    at_D = np.array([comb(bits, d) for d in range(bits + 1)]) / (2.0**bits - 1)
    nearer_D = np.arange(bits + 1) / bits
    at_D[0] = hit = 0.0
    for _ in range(steps):
        before_D, at_D = at_D, np.zeros(bits + 1)
        at_D[:-1] += (before_D * nearer_D)[1:]
        at_D[1:] += (before_D * (1 - nearer_D))[:-1]
        hit += float(at_D[0])
        at_D[0] = 0.0
    return hit


def features(state_NB: np.ndarray, goal_NB: np.ndarray) -> np.ndarray:
    """(1, state, goal, state * goal), [N, X = 3B + 1]: Q(s, g, .) = features @ weight [X, B].

    A universal value function: one set of weights for every goal. It is told which bit of the goal
    belongs to which bit of the state, and nothing of what a flip does. Undiscounted, the true Q
    (minus the bits that differ after the flip) has this form. Schaul et al. 2015, "Universal value
    function approximators".
    """
    return np.hstack([np.ones((len(state_NB), 1)), state_NB, goal_NB, state_NB * goal_NB])


def play(
    weight_XB: np.ndarray,
    start_NB: np.ndarray,
    goal_NB: np.ndarray,
    explore: float,
    rng: np.random.Generator,
) -> Episodes:
    """Play episodes of at most B flips; meeting the goal ends one.

    Greedy in Q = features @ weight, a random flip with probability `explore`.
    """
    N, B = start_NB.shape
    state_TNB, action_TN = np.repeat(start_NB[None], B + 1, axis=0), np.zeros((B, N), dtype=int)
    length_N = np.zeros(N, dtype=int)
    for t in range(B):
        running_N = (state_TNB[t] != goal_NB).any(1)
        greedy_N = (features(state_TNB[t], goal_NB) @ weight_XB).argmax(1)
        action_TN[t] = np.where(rng.random(N) < explore, rng.integers(B, size=N), greedy_N)
        state_TNB[t + 1] = state_TNB[t]
        state_TNB[t + 1, running_N, action_TN[t, running_N]] *= -1
        length_N += running_N
    return Episodes(state_TNB, action_TN, goal_NB, length_N)


def relabel_steps(episodes: Episodes, futures: int, rng: np.random.Generator) -> Steps:
    """Every step under its own goal and, `futures` times, under a goal in hindsight.

    That is a state which its episode reached at or after the step's end.

    A flip leads where it leads whatever was wanted: a relabelled step is a true step of the world
    with the other goal, so Q-learning, which is off-policy, may use it as it stands. futures = 0 is
    plain replay. Andrychowicz et al. 2017, strategy "future".
    """
    t_N, n_N = np.nonzero(np.arange(len(episodes.action_TN))[:, None] < episodes.length_N)
    goals = [episodes.goal_NB[n_N]]
    goals += [
        episodes.state_TNB[rng.integers(t_N + 1, episodes.length_N[n_N] + 1), n_N]
        for _ in range(futures)
    ]
    t_N, n_N = np.tile(t_N, futures + 1), np.tile(n_N, futures + 1)
    return Steps(
        episodes.state_TNB[t_N, n_N],
        episodes.action_TN[t_N, n_N],
        episodes.state_TNB[t_N + 1, n_N],
        np.concatenate(goals),
    )


def q_targets(weight_XB: np.ndarray, steps: Steps) -> np.ndarray:
    """The target of Q(s, g, a), [N]: 0 at the goal, else -1 + gamma max_a' Q(s', g, a').

    Within [-1/(1 - gamma), 0].
    """
    met_N = (steps.after_NB == steps.goal_NB).all(1)
    next_N = (features(steps.after_NB, steps.goal_NB) @ weight_XB).max(1)
    return np.where(met_N, 0.0, np.clip(-1 + GAMMA * next_N, -1 / (1 - GAMMA), 0.0))


def learn(
    bits: int, *, futures: int, rounds: int, episodes: int, updates: int, seed: int
) -> tuple[np.ndarray, int]:
    """Goal-conditioned Q-learning with replay.

    Returns the weights [X, B], and how many training episodes met their own goal.

    A round plays `episodes` episodes side by side (30 % random flips), stores their steps
    (`relabel_steps`), freezes the weights of the targets and makes `updates` least-squares steps,
    each on 256 stored steps of one earlier round: W_a += RATE / X * mean over the batch of 1[flip =
    a] (target - Q) features.
    """
    rng = np.random.default_rng(seed)
    weight_XB, met, memory = np.zeros((3 * bits + 1, bits)), 0, []
    for _ in range(rounds):
        played = play(weight_XB, *tasks(bits, episodes, rng), 0.3, rng)
        met += int(played.reached_N.sum())
        memory.append(relabel_steps(played, futures, rng))
        frozen_XB = weight_XB.copy()
        for _ in range(updates):
            some = _drawn(memory[rng.integers(len(memory))], 256, rng)
            seen_NX, flip_NB = features(some.before_NB, some.goal_NB), np.eye(bits)[some.action_N]
            error_N = q_targets(frozen_XB, some) - ((seen_NX @ weight_XB) * flip_NB).sum(1)
            weight_XB += (
                RATE / len(weight_XB) * seen_NX.T @ (flip_NB * error_N[:, None]) / len(error_N)
            )
    return weight_XB, met


def tasks(bits: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Starts and goals [N, B], uniform.

    A goal equal to its start is replaced by one that differs in one bit.
    """
    start_NB, goal_NB = rng.choice([-1.0, 1.0], size=(2, count, bits))
    same_N = np.nonzero((start_NB == goal_NB).all(1))[0]
    goal_NB[same_N, rng.integers(bits, size=len(same_N))] *= -1
    return start_NB, goal_NB


def _drawn(steps: Steps, count: int, rng: np.random.Generator) -> Steps:
    pick_N = rng.integers(len(steps.action_N), size=count)
    return Steps(
        steps.before_NB[pick_N],
        steps.action_N[pick_N],
        steps.after_NB[pick_N],
        steps.goal_NB[pick_N],
    )


def her(
    *,
    bits: tuple[int, ...] = (2, 5, 8, 11, 15),
    rounds: int = 120,
    episodes: int = 16,
    updates: int = 20,
    seeds: int = 2,
    trials: int = 500,
    seed: int = 0,
) -> Exhibit:
    """Hindsight experience replay on bit flipping: success by number of bits, with and without.

    Both arms are the same learner with the same episodes and updates; one also sees its steps under
    goals that they reached. A trained policy is tried greedily on `trials` fresh tasks, n flips for
    n bits; the trials of all `seeds` runs are counted together.
    """
    if not bits or min(bits) < 1 or max(bits) > 40:
        raise UsageError("the numbers of bits must be between 1 and 40.", where="bits")
    budget = {"rounds": rounds, "episodes": episodes, "updates": updates}
    runs = range(seed, seed + seeds)
    rows = [
        _row(n, arm, futures, runs, trials, budget)
        for arm, futures in (("with hindsight", FUTURES), ("without", 0))
        for n in bits
    ]
    return _exhibit(rows, rounds * episodes, seeds, trials)


def _exhibit(rows: list[Row], episodes: int, seeds: int, trials: int) -> Exhibit:
    points: dict[str, list[Point]] = {}
    for n, arm, success, low, high, *_ in rows:
        points.setdefault(arm, []).append((float(n), success, low, high))
    curves: dict[str, Sequence[Point]] = {**points}
    title = f"Success of the greedy policy on {seeds * trials} fresh tasks (Wilson 95 %)"
    return Exhibit(
        title="Hindsight experience replay on bit flipping",
        about=(
            f"n bits, n flips, a random goal; -1 per flip until it is met. {episodes}"
            f" training episodes per run, {seeds} runs."
        ),
        data={"success": [dict(zip(COLUMNS, row, strict=True)) for row in rows]},
        tables=(Table(title, COLUMNS, tuple(rows)),),
        charts=(Chart("Success against the number of bits", "bits", "success", curves),),
        claims=_claims(max(row[0] for row in rows), curves),
        notes=(
            "The interval covers the draw of the tasks; `worst run` shows how the runs differ.",
            "Chance of random flips: exact, by the chain of how many bits differ.",
        ),
    )


COLUMNS = (
    "bits",
    "replay",
    "success",
    "low",
    "high",
    "worst run",
    "goals met in training",
    "chance of random flips",
)


Row = tuple[int, str, float, float, float, float, float, float]
"""One of COLUMNS."""


def _row(
    bits: int, arm: str, futures: int, seeds: range, trials: int, budget: dict[str, int]
) -> Row:
    """Train with every seed, and try the greedy policies."""
    wins, met = [], 0
    for seed in seeds:
        weight_XB, met_in_training = learn(bits, futures=futures, seed=seed, **budget)
        wins.append(_count_solved_tasks(weight_XB, bits, trials, seed))
        met += met_in_training
    success = wilson_interval(sum(wins), len(seeds) * trials)
    met_share = met / (len(seeds) * budget["rounds"] * budget["episodes"])
    return bits, arm, *success, min(wins) / trials, met_share, hit_chance(bits, bits)


def _count_solved_tasks(weight_XB: np.ndarray, bits: int, trials: int, seed: int) -> int:
    """How many of `trials` fresh tasks the greedy policy solves."""
    rng = np.random.default_rng([seed, bits])
    return int(play(weight_XB, *tasks(bits, trials, rng), 0.0, rng).reached_N.sum())


def _claims(most: int, curves: dict[str, Sequence[Point]]) -> tuple[Claim, ...]:
    """What the lectures say of hindsight, at the largest number of bits tried."""
    (hindsight,), (plain,) = (
        [point[1:] for point in curve if point[0] == most][:1] for curve in curves.values()
    )
    solved = Claim(
        f"With hindsight the learner solves {most} bits (success above 0.9).",
        hindsight[1] > 0.9,
        f"success {interval_text(hindsight)}",
    )
    evidence = (
        f"success {interval_text(plain)} against {interval_text(hindsight)};"
        f" random flips meet the goal with chance {hit_chance(most, most):.2g}"
    )
    if most < 10:
        return (solved,)
    return solved, Claim(
        f"The same learner without hindsight does not solve {most} bits (below 0.1).",
        plain[2] < 0.1,
        evidence,
    )
