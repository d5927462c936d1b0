"""Imitation on exact worlds: behaviour cloning, DAgger, and worlds where errors compound or do not.

Axis letters: T steps of an episode, N labelled steps; a state S of the tightrope is a pair (depth,
wind).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from laurel.core.errors import UsageError
from laurel_worlds.mdp import MDP, from_arrays


@dataclass(frozen=True)
class Labels:
    """States a learner was in and what the expert does there: both [N]."""

    state_N: np.ndarray
    action_N: np.ndarray


@dataclass(frozen=True)
class Tightrope:
    """A world, its expert's action [S], and what a learner observes of each state [S].

    All states of the fog are one observation.
    """

    mdp: MDP
    expert_S: np.ndarray
    seen_S: np.ndarray


def clone(labels: Labels, num_states: int, num_actions: int, smoothing: float = 0.1) -> np.ndarray:
    """Behaviour cloning by counting: the policy [S, A] of most likelihood.

    With `smoothing` imagined labels for every action.

        policy(a | s) = (n(s, a) + smoothing) / (n(s) + A smoothing)

    Seen 3 times a and never b at smoothing 1: 4/5 and 1/5. A state without labels: uniform.
    smoothing = 0 leaves uniform only there.
    """
    count_SA = np.zeros((num_states, num_actions))
    np.add.at(count_SA, (labels.state_N, labels.action_N), 1.0)
    total_S1 = count_SA.sum(1, keepdims=True) + num_actions * smoothing
    return np.where(
        total_S1 > 0,
        (count_SA + smoothing) / np.where(total_S1 > 0, total_S1, 1.0),
        1 / num_actions,
    )


def noisy(best_SA: np.ndarray, mistakes: float) -> np.ndarray:
    """A demonstrator that picks among the best actions: bool [S, A] -> [S, A].

    But a share `mistakes` of the time among all.
    """
    A, count_S1 = best_SA.shape[1], best_SA.sum(1, keepdims=True)
    return (1 - mistakes) * np.where(
        count_S1 > 0, best_SA / np.maximum(count_S1, 1), 1 / A
    ) + mistakes / A


def sample_walks(
    mdp: MDP, policy_SA: np.ndarray, *, steps: int, horizon: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """About `steps` steps of a policy: (states, actions, rewards), each [T, episodes].

    Episodes run side by side and end after `horizon`.

    A terminal state is stayed in and pays 0.
    """
    episodes = max(1, round(steps / horizon))
    policy_SA, outcome_SAK, start_S = (
        chance.cumsum(-1) for chance in (policy_SA, mdp.prob_SAK, mdp.start_S)
    )
    state_TN, action_TN, reward_TN = (
        np.zeros((horizon, episodes), dtype=kind) for kind in (int, int, float)
    )
    state_N = _drawn(np.broadcast_to(start_S, (episodes, len(start_S))), rng)
    for t in range(horizon):
        action_N = _drawn(policy_SA[state_N], rng)
        outcome_N = _drawn(outcome_SAK[state_N, action_N], rng)
        over_N = mdp.terminal_S[state_N]
        state_TN[t], action_TN[t] = state_N, action_N
        reward_TN[t] = np.where(over_N, 0.0, mdp.reward_SAK[state_N, action_N, outcome_N])
        state_N = np.where(over_N, state_N, mdp.next_SAK[state_N, action_N, outcome_N])
    return state_TN, action_TN, reward_TN


def _drawn(cumulative_NK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An index of each row [N], drawn by its cumulative chances.

    The last one where rounding leaves the sum of a row below the number that was drawn.
    """
    number_N = rng.random(len(cumulative_NK))
    index_N = (cumulative_NK <= number_N[:, None]).sum(1)
    last = cumulative_NK.shape[1] - 1
    return np.minimum(index_N, last)


def interactive(
    world: Tightrope,
    *,
    labels: int,
    horizon: int,
    rounds: int,
    rng: np.random.Generator,
    smoothing: float = 0.01,
) -> np.ndarray:
    """DAgger: the policy [S, A] cloned from the expert's labels in the states that learners met.

    The learner acts, the expert says what it would have done there, and all labels so far are
    cloned.

    `labels` in all, spread evenly over the first demonstration by the expert and `rounds` rounds of
    the learner. rounds = 0 is behaviour cloning. Ross, Gordon and Bagnell 2011, arXiv:1011.0686.
    """
    S, A = world.mdp.reward_SA.shape
    policy_SA, met_N = np.eye(A)[world.expert_S], np.zeros(0, dtype=int)
    for _ in range(rounds + 1):
        state_TN, _, _ = sample_walks(
            world.mdp, policy_SA, steps=labels // (rounds + 1), horizon=horizon, rng=rng
        )
        met_N = np.concatenate([met_N, state_TN.ravel()])
        policy_SA = clone(Labels(world.seen_S[met_N], world.expert_S[met_N]), S, A, smoothing)[
            world.seen_S
        ]
    return policy_SA


def occupancy_in_time(mdp: MDP, policy_SA: np.ndarray, horizon: int) -> np.ndarray:
    """The chance to be in a state before step t, exactly: [T, S].

    Rows sum to 1 while no state is terminal.
    """
    step_SZ = np.einsum("sa,saz->sz", policy_SA, mdp.transition_SAZ)
    at_TS = np.empty((horizon, len(mdp.states)))
    at_TS[0] = mdp.start_S
    for t in range(1, horizon):
        at_TS[t] = at_TS[t - 1] @ step_SZ
    return at_TS


def cost(mdp: MDP, policy_SA: np.ndarray, horizon: int) -> float:
    """Minus the expected total reward of the first `horizon` steps, exactly.

    It carries the state distribution forward.
    """
    return -float(
        (
            occupancy_in_time(mdp, policy_SA, horizon).sum(0) * (policy_SA * mdp.reward_SA).sum(1)
        ).sum()
    )


def unrecoverable_cost(error: float, horizon: int) -> float:
    """E[steps spent off] if every step on the rope errs with chance eps and nothing is ever undone:

        sum_t 1 - (1 - eps)^t = T - (1 - eps) (1 - (1 - eps)^T) / eps
                              ~ eps T (T + 1) / 2   for eps T << 1

    eps = 1/2, T = 2: 1/2 + 3/4 = 1.25. Ross and Bagnell 2010, "Efficient reductions for imitation
    learning".
    """
    if error <= 0:
        return 0.0
    right = 1 - error
    return horizon - right * (1 - right**horizon) / error


NEEDED = "a tightrope needs two winds, a drop between 1 and its depth, and a chance of fog."


def _rope_states(winds: int, depth: int) -> list[tuple[int, int, bool]]:
    """(depth, wind, fog) of every state; there is fog on the rope only."""
    in_sight = itertools.product(range(1), range(winds), (False,))
    in_fog = itertools.product(range(1), range(winds), (True,))
    below = itertools.product(range(1, depth + 1), range(winds), (False,))
    return [*in_sight, *in_fog, *below]


def _texts(names: list[tuple[int, int, bool]]) -> list[str]:
    return [f"depth {depth}, wind {wind}{', fog' * fog}" for depth, wind, fog in names]


def tightrope(
    *, winds: int = 3, fog: float = 0.0015, depth: int = 8, drop: int = 3, climbable: bool = True
) -> Tightrope:
    """A rope in changing wind, with fog: where imitation errors compound.

    At each step one of `winds` winds blows, each alike, and on the rope fog hides it with chance
    `fog`.

    On the rope (depth 0) the one right action of the wind keeps the walker there; any other drops
    it to depth `drop`. Below, the right action is another one; it climbs one step, and any other
    sinks one, down to `depth`. A step that ends below costs 1. The expert knows the wind even in
    fog, costs 0 and so is never seen below; a learner can only guess in fog and errs with chance
    fog (winds - 1) / winds per step. climbable = False: nothing that is done below helps.
    """
    if winds < 2 or not 1 <= drop <= depth or not 0 <= fog <= 1:
        raise UsageError(NEEDED, where="tightrope")
    names = _rope_states(winds, depth)
    depth_S, wind_S, fog_S = np.array(names).T
    right_S = np.where(depth_S == 0, wind_S, (wind_S + 1) % winds)
    risen_S = np.maximum(depth_S - climbable, 0)
    sunk_S = np.where(depth_S == 0, drop, np.minimum(depth_S + 1, depth))
    is_right_SA = np.eye(winds, dtype=bool)[right_S]
    after_SA = np.where(is_right_SA, risen_S[:, None], sunk_S[:, None])
    # of the states at the depth that a step leads to, each is met with this chance
    arrival_S = np.where(fog_S, fog, np.where(depth_S == 0, 1 - fog, 1.0)) / winds
    transition_SAZ = np.where(after_SA[..., None] == depth_S, arrival_S, 0.0)
    reward_SA = -(after_SA > 0).astype(float)
    start_S = np.where(depth_S == 0, arrival_S, 0.0)
    mdp = from_arrays(transition_SAZ, reward_SA, start=start_S, states=_texts(names))
    # all states of the fog look like one more state
    return Tightrope(mdp, right_S, np.where(fog_S, winds, np.arange(len(names))))
