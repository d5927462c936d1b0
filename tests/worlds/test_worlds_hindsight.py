"""Bit flipping: the chance of luck by enumeration, what replay stores, the learner's target, and 15
bits with and without hindsight.
"""

from itertools import product

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel_worlds.hindsight import (
    FUTURES,
    GAMMA,
    Episodes,
    Steps,
    features,
    her,
    hit_chance,
    learn,
    play,
    q_targets,
    relabel_steps,
    tasks,
)
from laurel_worlds.interval import student_interval, wilson_interval


@pytest.mark.parametrize(("bits", "steps"), [(1, 1), (2, 1), (2, 2), (3, 4), (4, 3)])
def test_the_chance_of_luck_is_what_enumerating_every_flip_gives(bits, steps):
    won = 0
    goals = [goal for goal in product((0, 1), repeat=bits) if any(goal)]
    for goal, flips in product(goals, product(range(bits), repeat=steps)):
        state = [0] * bits
        for flip in flips:
            state[flip] ^= 1
            if tuple(state) == goal:
                won += 1
                break
    assert hit_chance(bits, steps) == pytest.approx(won / (len(goals) * bits**steps), abs=1e-12)


def test_the_chance_of_luck_worked_by_hand():
    assert (
        hit_chance(1, 1) == pytest.approx(1)
        and hit_chance(2, 1) == pytest.approx(1 / 3)
        and hit_chance(2, 2) == pytest.approx(1 / 2)
    )


def perfect(bits: int) -> np.ndarray:
    """Minus the differing bits after the flip: sum_j (s_j g_j - 1)/2 before it, and flipping bit a
    takes s_a g_a away.
    """
    weight = np.full((3 * bits + 1, bits), 0.0)
    weight[0] = -bits / 2
    weight[1 + 2 * bits :] = 0.5 - np.eye(bits)
    return weight


def test_the_true_values_are_linear_in_the_features():
    rng = np.random.default_rng(0)
    state, goal = rng.choice([-1.0, 1.0], size=(2, 50, 6))
    found = features(state, goal) @ perfect(6)
    for action in range(6):
        after = state.copy()
        after[:, action] *= -1
        assert np.allclose(found[:, action], -(after != goal).sum(1))


def test_greedy_play_with_the_true_values_takes_the_shortest_way():
    rng = np.random.default_rng(1)
    start, goal = tasks(7, 200, rng)
    played = play(perfect(7), start, goal, 0.0, rng)
    assert (
        played.reached_N.all()
        and (played.length_N == (start != goal).sum(1)).all()
        and (played.length_N > 0).all()
    )


def test_replay_keeps_the_world_and_only_changes_the_goal():
    rng = np.random.default_rng(2)
    played = play(np.zeros((16, 5)), *tasks(5, 40, rng), 1.0, rng)
    plain, more = relabel_steps(played, 0, rng), relabel_steps(played, FUTURES, rng)
    steps = int(played.length_N.sum())
    assert len(plain.action_N) == steps and len(more.action_N) == steps * (FUTURES + 1)
    assert (more.goal_NB[:steps] == plain.goal_NB).all()
    flipped = more.before_NB.copy()
    flipped[np.arange(len(flipped)), more.action_N] *= -1
    assert (flipped == more.after_NB).all()


def test_goals_in_hindsight_lie_ahead_in_the_same_episode():
    state = np.array([[[-1.0, -1, -1]], [[1, -1, -1]], [[1, 1, -1]], [[1, 1, 1]]])
    played = Episodes(state, np.array([[0], [1], [2]]), np.array([[1.0, 1, 1]]), np.array([3]))
    seen = relabel_steps(played, 400, np.random.default_rng(0))
    ahead = {step: set() for step in range(3)}
    for action, goal in zip(seen.action_N[3:], seen.goal_NB[3:], strict=True):
        ahead[int(action)].add(int((goal > 0).sum()))
    assert ahead == {0: {1, 2, 3}, 1: {2, 3}, 2: {3}}


def test_targets_worked_by_hand():
    """Met: 0. Two bits to go with the true values: -1 + gamma (-1). Values far too low or high stay
    within [-1/(1 - gamma), 0].
    """
    before = np.array([[1.0, 1, 1], [1, 1, 1]])
    after = np.array([[-1.0, 1, 1], [-1, 1, 1]])
    goal = np.array([[-1.0, 1, 1], [1, -1, 1]])
    steps = Steps(before, np.array([0, 0]), after, goal)
    assert np.allclose(q_targets(perfect(3), steps), [0, -1 - GAMMA])
    low, high = perfect(3), perfect(3)
    low[0], high[0] = -1e3, 1e3
    assert np.allclose(q_targets(low, steps), [0, -1 / (1 - GAMMA)]) and np.allclose(
        q_targets(high, steps), 0
    )


def test_fifteen_bits_need_hindsight():
    solved = {}
    for futures in (FUTURES, 0):
        weight, _ = learn(15, futures=futures, rounds=120, episodes=16, updates=20, seed=3)
        rng = np.random.default_rng(9)
        solved[futures] = wilson_interval(
            int(play(weight, *tasks(15, 400, rng), 0.0, rng).reached_N.sum()), 400
        )
    assert solved[FUTURES][1] > 0.9 and solved[0][2] < 0.05


def test_the_experiment_measures_and_can_contradict_itself():
    shown = her(bits=(3, 12), rounds=40, seeds=1, trials=100)
    assert [row[:2] for row in shown.tables[0].rows] == [
        (3, "with hindsight"),
        (12, "with hindsight"),
        (3, "without"),
        (12, "without"),
    ]
    starved = her(bits=(12,), rounds=1, seeds=1, trials=100)
    assert not starved.claims[0].holds
    with pytest.raises(UsageError):
        her(bits=())


def test_intervals_worked_by_hand():
    assert wilson_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert student_interval([1, 2, 3]) == pytest.approx(
        (2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5
    )
    assert student_interval([4.0]) == (4.0, 4.0, 4.0)
