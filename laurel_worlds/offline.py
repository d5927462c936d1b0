"""Learning from logged steps alone.

Cloning whoever made them, fitted Q iteration, and fitted Q with caution where the log is thin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laurel.core.errors import UsageError
from laurel.report.exhibit import Chart, Claim, Exhibit, Grid, Table
from laurel_worlds.gridworld import gridworld, map_of
from laurel_worlds.imitation import Labels, clone, noisy, sample_walks
from laurel_worlds.interval import Interval, interval_text, student_interval
from laurel_worlds.mdp import MDP
from laurel_worlds.planning import (
    deterministic,
    evaluate,
    optimal_actions,
    uniform,
    value_iteration,
)


@dataclass(frozen=True)
class Log:
    """N steps that somebody made: state, action, reward and next state, each [N]."""

    state_N: np.ndarray
    action_N: np.ndarray
    reward_N: np.ndarray
    next_N: np.ndarray


def record(
    mdp: MDP,
    policy_SA: np.ndarray,
    *,
    episodes: int,
    horizon: int,
    noise: float,
    rng: np.random.Generator,
) -> Log:
    """The steps of some episodes of a policy, rewards seen with normal noise of sd `noise`.

    Steps after the end are not in it.
    """
    state_TN, action_TN, reward_TN = sample_walks(
        mdp, policy_SA, steps=episodes * (horizon + 1), horizon=horizon + 1, rng=rng
    )
    live_TN = ~mdp.terminal_S[state_TN[:-1]]
    seen_TN = reward_TN[:-1] + noise * rng.normal(size=live_TN.shape)
    return Log(
        state_TN[:-1][live_TN], action_TN[:-1][live_TN], seen_TN[live_TN], state_TN[1:][live_TN]
    )


def join_logs(first: Log, second: Log) -> Log:
    """Both logs as one."""
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return Log(*(np.concatenate(pair) for pair in pairs))


def fitted_q(
    log: Log, mdp: MDP, *, caution: float = 0.0, lowest: float | None = None, sweeps: int = 300
) -> np.ndarray:
    """Fitted Q iteration on a log, [S, A].

    Of `mdp` only the shape, the discount and the terminal states are used.

        Q(s, a) <- mean of r + gamma max_b Q(s', b)  -  caution / sqrt(n(s, a))

    where the mean is over the log's n(s, a) steps at (s, a).


    An unseen pair stays at 0, where it began: with costs on the way that is a promise (Ernst et al.
    2005). `lowest` instead says what an unseen pair is worth and is a floor to all: with caution, a
    lower confidence bound (Jin, Yang and Wang 2021, arXiv:2012.15085; Rashidinejad et al. 2021,
    arXiv:2103.12021; conservative Q-learning, arXiv:2006.04779, has a like penalty in tables). One
    state, an action seen twice that ended and paid 1 and 2: Q = 1.5; with caution 1, 1.5 -
    1/sqrt(2).
    """
    S, A = mdp.reward_SA.shape
    count_SA, total_SA, next_SAZ = np.zeros((S, A)), np.zeros((S, A)), np.zeros((S, A, S))
    np.add.at(count_SA, (log.state_N, log.action_N), 1.0)
    np.add.at(total_SA, (log.state_N, log.action_N), log.reward_N)
    np.add.at(next_SAZ, (log.state_N, log.action_N, log.next_N), 1.0)
    share_SA = np.maximum(count_SA, 1.0)
    base_SA = total_SA / share_SA - caution / np.sqrt(share_SA)
    next_SAZ /= share_SA[..., None]
    unseen = 0.0 if lowest is None else lowest
    q_SA = np.full((S, A), unseen)
    for _ in range(sweeps):
        value_S = np.where(mdp.terminal_S, 0.0, q_SA.max(1))
        q_SA = np.where(count_SA > 0, base_SA + mdp.gamma * next_SAZ @ value_S, unseen)
        q_SA = q_SA if lowest is None else np.maximum(q_SA, lowest)
    return q_SA


Cautions = dict[str, tuple[float, float | None]]
"""learner: (what is taken off an uncertain value, the floor of all values)."""
Runs = dict[tuple[str, int, str], tuple[np.ndarray, np.ndarray]]
"""(log, episodes, learner): the value of what it learned in every run, and the value it promised.

Cloning promises none.
"""


def offline(
    *,
    episodes: tuple[int, ...] = (10, 40, 160),
    mistakes: float = 0.02,
    noise: float = 0.5,
    little: float = 1.0,
    caution: float = 3.0,
    lowest: float = -2.0,
    seeds: int = 30,
    seed: int = 0,
) -> Exhibit:
    """Offline RL from logs: behaviour cloning against fitted Q iteration.

    With none, a little and enough caution, on good and mixed logs.

    Logs of a gridworld with slip 0.2: good (best moves but for a share `mistakes` of random ones),
    mixed (every second episode at random) and random. Rewards are seen with noise. `little` and
    `caution` count standard deviations of the noise; `lowest` is about what the worst policy of
    this world gets. Every learned policy is evaluated exactly, at the start.
    """
    if not episodes or min(episodes) < 2 or seeds < 2 or noise <= 0 or not 0 <= mistakes <= 1:
        raise UsageError(NEEDED, where="offline")
    mdp = gridworld(slip=0.2, gamma=0.95)
    expert_SA = noisy(optimal_actions(mdp, value_iteration(mdp)), mistakes)
    demonstrators = _demonstrators(mdp, expert_SA)
    cautions = _cautions(little, caution, noise, lowest)
    runs = _runs(mdp, demonstrators, cautions, episodes, noise, range(seed, seed + seeds))
    rng = np.random.default_rng(seed)
    shown = _record_half_by_each(mdp, demonstrators["mixed"], episodes[-1], noise, rng)
    q_SA = fitted_q(shown, mdp, caution=caution * noise, lowest=lowest)
    about = f"Gridworld, slip 0.2, discount 0.95, reward noise {noise}"
    return _exhibit(mdp, expert_SA, q_SA, runs, f"{seeds} seeds.", about)


def _exhibit(
    mdp: MDP, expert_SA: np.ndarray, q_SA: np.ndarray, runs: Runs, seeds: str, about: str
) -> Exhibit:
    best_S, rows = value_iteration(mdp), _rows(runs)
    best, expert = float(mdp.start_S @ best_S), _policy_value(mdp, expert_SA)
    random = _policy_value(mdp, uniform(mdp))
    return Exhibit(
        title="Learning from logs: cloning, fitted Q, and caution",
        about=f"{about}; best {best:.3f}, demonstrator {expert:.3f}, random {random:.3f}; {seeds}",
        data={
            "learned": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
            "best": best,
            "demonstrator": expert,
        },
        grids=_maps(mdp, best_S, q_SA),
        tables=(Table(TITLE, COLUMNS, rows),),
        charts=_charts(runs),
        claims=_claims(runs),
        notes=NOTES,
    )


def _demonstrators(mdp: MDP, expert_SA: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """log -> the policies of its first half and of its second."""
    return {
        "good": (expert_SA, expert_SA),
        "mixed": (expert_SA, uniform(mdp)),
        "random": (uniform(mdp), uniform(mdp)),
    }


def _cautions(little: float, much: float, noise: float, lowest: float) -> Cautions:
    """Three learners: without caution, with a little and with enough."""
    return {
        "fitted Q": (0.0, None),
        f"Q, caution {little:g}": (little * noise, lowest),
        f"Q, caution {much:g}": (much * noise, lowest),
    }


def _runs(
    mdp: MDP,
    demonstrators: dict[str, tuple[np.ndarray, np.ndarray]],
    cautions: Cautions,
    episodes: tuple[int, ...],
    noise: float,
    seeds: range,
) -> Runs:
    """Every learner on every log."""
    return {
        (kind, count, name): found
        for kind, pair in demonstrators.items()
        for count in episodes
        for name, found in _learned(mdp, _logs(mdp, pair, count, noise, seeds), cautions).items()
    }


def _logs(
    mdp: MDP, pair: tuple[np.ndarray, np.ndarray], count: int, noise: float, seeds: range
) -> list[Log]:
    return [
        _record_half_by_each(mdp, pair, count, noise, np.random.default_rng([seed, count]))
        for seed in seeds
    ]


def _learned(
    mdp: MDP, logs: list[Log], cautions: Cautions
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """learner -> (value of what it learned from each log, the value it promised)."""
    cloned = [clone(Labels(log.state_N, log.action_N), *mdp.reward_SA.shape) for log in logs]
    value_N = np.array([_policy_value(mdp, policy_SA) for policy_SA in cloned])
    found = {"cloning": (value_N, np.full(len(logs), np.nan))}
    for name, (weight, floor) in cautions.items():
        learned = [fitted_q(log, mdp, caution=weight, lowest=floor) for log in logs]
        greedy = [deterministic(q_SA.argmax(1), q_SA.shape[1]) for q_SA in learned]
        found[name] = (
            np.array([_policy_value(mdp, policy_SA) for policy_SA in greedy]),
            np.array([float(mdp.start_S @ q_SA.max(1)) for q_SA in learned]),
        )
    return found


NEEDED = "needed: logs of at least 2 episodes, 2 seeds, some noise, a share of mistakes."
TITLE = "Exact value of the learned policies (Student's 95 % over seeds)"
COLUMNS = (
    "log",
    "episodes",
    "learner",
    "value",
    "low",
    "high",
    "promised too much",
    "at least",
    "at most",
)
NOTES = (
    (
        "`promised too much`: what the learner's own Q says of the start, minus what its"
        " policy is worth."
    ),
    (
        "Without caution an unseen pair keeps the 0 it began with; with caution it is worth"
        " `lowest`: both halves of pessimism."
    ),
)


def _charts(runs: Runs) -> tuple[Chart, ...]:
    """One for each kind of log."""
    return tuple(_chart(kind, runs) for kind in dict.fromkeys(kind for kind, _, _ in runs))


def _rows(runs: Runs) -> tuple[tuple, ...]:
    """A row of COLUMNS for each entry."""
    rows = []
    for (kind, count, name), (worth, promised) in runs.items():
        excess = (None, None, None) if name == "cloning" else student_interval(promised - worth)
        rows.append((kind, count, name, *student_interval(worth), *excess))
    return tuple(rows)


def _maps(mdp: MDP, best_S: np.ndarray, q_SA: np.ndarray) -> tuple[Grid, Grid]:
    """The best values and actions, and those of a learned Q."""
    greedy_SA = (q_SA >= q_SA.max(1, keepdims=True)) & ~mdp.terminal_S[:, None]
    title = "Cautious Q of one mixed log: what it promises, and its best action"
    return (
        map_of("Best values and actions", mdp, best_S, optimal_actions(mdp, best_S)),
        map_of(title, mdp, q_SA.max(1), greedy_SA),
    )


def _record_half_by_each(
    mdp: MDP,
    pair: tuple[np.ndarray, np.ndarray],
    episodes: int,
    noise: float,
    rng: np.random.Generator,
) -> Log:
    """Half of the episodes by one policy, half by the other."""
    halves = (episodes // 2, episodes - episodes // 2)
    first, second = (
        record(mdp, p, episodes=n, horizon=60, noise=noise, rng=rng)
        for p, n in zip(pair, halves, strict=True)
    )
    return join_logs(first, second)


def _policy_value(mdp: MDP, policy_SA: np.ndarray) -> float:
    return float(mdp.start_S @ evaluate(mdp, policy_SA))


def _chart(kind: str, runs: Runs) -> Chart:
    curves: dict[str, Sequence[tuple[float, float, float, float]]] = {}
    for (log, count, name), (worth, _) in runs.items():
        if log == kind:
            curves[name] = [*curves.get(name, ()), (float(count), *student_interval(worth))]
    return Chart(
        f"Value against the size of a {kind} log",
        "episodes",
        "value at the start",
        curves,
        log_x=True,
    )


def _claims(runs: Runs) -> tuple[Claim, ...]:
    """Paired differences over seeds with their intervals, at every size of the log or the last."""
    _, naive, little, cautious = dict.fromkeys(learner for _, _, learner in runs)
    episodes = list(dict.fromkeys(count for _, count, _ in runs))

    def gains(kind: str, better: str, worse: str) -> dict[int, Interval]:
        return {
            count: student_interval(runs[kind, count, better][0] - runs[kind, count, worse][0])
            for count in episodes
        }

    good, mixed = gains("good", "cloning", naive), gains("mixed", cautious, "cloning")
    largest = gains("good", "cloning", little)[episodes[-1]]
    surpassing = gains("good", cautious, "cloning")
    return (
        Claim(
            "Good logs: cloning beats fitted Q without caution, at every size.",
            all(low > 0 for _, low, _ in good.values()),
            _by_size(good),
        ),
        Claim(
            f"The largest good log: cloning beats {little}, too: that is too little.",
            largest[1] > 0,
            interval_text(largest),
        ),
        Claim(
            f"Good logs: {cautious} does not lose to cloning (by more than 0.02), at any size.",
            all(low > -0.02 for _, low, _ in surpassing.values()),
            _by_size(surpassing),
        ),
        Claim(
            f"Mixed logs: {cautious} beats cloning, at every size.",
            all(low > 0 for _, low, _ in mixed.values()),
            _by_size(mixed),
        ),
        _overestimation_claim(runs, naive, cautious),
    )


def _by_size(found: dict[int, Interval]) -> str:
    return "; ".join(
        f"{count} episodes: {interval_text(interval)}" for count, interval in found.items()
    )


def _overestimation_claim(runs: Runs, naive: str, cautious: str) -> Claim:
    without, with_caution = (
        [
            student_interval(promised - worth)
            for key, (worth, promised) in runs.items()
            if key[2] == name
        ]
        for name in (naive, cautious)
    )
    (least, most), (lowest, highest) = (
        (min(excess)[0], max(excess)[0]) for excess in (without, with_caution)
    )
    return Claim(
        "Without caution fitted Q promises more than it delivers, in every log; with enough it"
        " never does.",
        all(low > 0 for _, low, _ in without) and all(high < 0 for _, _, high in with_caution),
        f"too much by {least:.2f} to {most:.2f} without, {lowest:.2f} to {highest:.2f} with",
    )
