"""Planning: the acceptance's twelve worlds solved three ways, published values, and the traps of
gamma = 1.
"""

from dataclasses import replace

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel_worlds.gridworld import gridworld
from laurel_worlds.mdp import from_arrays
from laurel_worlds.planning import (
    deterministic,
    evaluate,
    evaluate_iteratively,
    linear_programme,
    names_of,
    never_ending_states,
    occupancy,
    optimal_actions,
    policy_iteration,
    policy_iteration_rounds,
    q_values,
    uniform,
    value_iteration,
    value_iteration_sweeps,
)

STEP_REWARDS, SLIPS = (0.0, -0.04, -0.1, -0.4, -1.0, -2.0), (0.0, 0.2)
EVERY = [(step_reward, slip) for slip in SLIPS for step_reward in STEP_REWARDS]


def best(step_reward, slip=0.0):
    mdp = gridworld(step_reward=step_reward, slip=slip)
    return names_of(mdp, optimal_actions(mdp, value_iteration(mdp), 1e-7))


@pytest.mark.parametrize(("step_reward", "slip"), EVERY)
def test_three_ways_agree(step_reward, slip):
    mdp = gridworld(step_reward=step_reward, slip=slip)
    value_S = value_iteration(mdp)
    policy_SA, howard_S = policy_iteration(mdp)
    for other_S in (howard_S, linear_programme(mdp), evaluate(mdp, policy_SA)):
        assert np.abs(other_S - value_S).max() < 1e-9
        assert (optimal_actions(mdp, other_S, 1e-7) == optimal_actions(mdp, value_S, 1e-7)).all()
    assert not never_ending_states(mdp, policy_SA).any()


@pytest.mark.parametrize(("step_reward", "slip"), EVERY)
def test_the_best_value_solves_bellman_and_no_policy_beats_it(step_reward, slip):
    mdp = gridworld(step_reward=step_reward, slip=slip)
    value_S = value_iteration(mdp)
    assert np.abs(q_values(mdp, value_S).max(1) - value_S).max() < 1e-10
    for seed in range(5):
        some_SA = np.random.default_rng(seed).dirichlet(np.ones(4), size=len(mdp.states))
        assert (evaluate(mdp, some_SA) <= value_S + 1e-9).all()


@pytest.mark.parametrize(
    ("step_reward", "at_start", "expected"),
    [
        (
            -0.04,
            0.80,
            {"(3,2)": ["up"], "(3,1)": ["up"], "(4,1)": ["left"], "(1,1)": ["up", "right"]},
        ),
        (
            -2.0,
            -9.0,
            {
                "(3,2)": ["up", "right"],
                "(3,1)": ["up", "right"],
                "(4,1)": ["up"],
                "(1,1)": ["up", "right"],
            },
        ),
        (
            0.0,
            1.0,
            {
                "(3,2)": ["up", "down", "left"],
                "(4,1)": ["down", "left", "right"],
                "(1,1)": ["up", "down", "left", "right"],
            },
        ),
    ],
)
def test_the_lectures_answers(step_reward, at_start, expected):
    assert value_iteration(gridworld(step_reward=step_reward))[0] == pytest.approx(
        at_start, abs=1e-12
    )
    found = best(step_reward)
    assert {state: found[state] for state in expected} == expected


def test_a_free_step_ties_34_moves_and_some_of_them_never_end():
    mdp = gridworld(step_reward=0.0)
    value_S = value_iteration(mdp)
    assert np.allclose(value_S[~mdp.terminal_S], 1, atol=0)
    assert optimal_actions(mdp, value_S, 1e-7).sum() == 34
    left_SA = deterministic(np.full(11, 2), 4)
    assert (optimal_actions(mdp, value_S, 1e-7) >= (left_SA > 0))[
        ~mdp.terminal_S
    ].all()  # always left is best everywhere ...
    assert never_ending_states(mdp, left_SA).sum() == 9
    with pytest.raises(UsageError, match="improper: I - P is singular"):  # ... and has no value
        evaluate(mdp, left_SA)
    with pytest.raises(UsageError, match="improper"):
        evaluate_iteratively(mdp, left_SA)
    assert np.isfinite(evaluate(replace(mdp, gamma=0.99), left_SA)).all()


def test_a_policy_that_all_but_never_ends_is_refused_too():
    mdp = gridworld()
    nearly_SA = deterministic(np.full(11, 2), 4) * (1 - 1e-15) + 1e-15 * uniform(mdp)
    with pytest.raises(UsageError, match="too rarely"):
        evaluate(mdp, nearly_SA)


def test_a_loop_that_pays_is_refused():
    with pytest.raises(UsageError, match="no loop may pay"):
        value_iteration(gridworld(step_reward=0.1), max_sweeps=500)


PUBLISHED = {
    "(1,1)": 0.705,
    "(2,1)": 0.655,
    "(3,1)": 0.611,
    "(4,1)": 0.388,
    "(1,2)": 0.762,
    "(3,2)": 0.660,
    "(1,3)": 0.812,
    "(2,3)": 0.868,
    "(3,3)": 0.918,
}


def test_russell_and_norvigs_utilities():
    """Section 17.1, slip .2, a cost of .04 in each cell left: as many as moves, so the same values,
    to the three digits printed.
    """
    mdp = gridworld(slip=0.2)
    found = dict(zip(mdp.states, value_iteration(mdp), strict=True))
    assert max(abs(found[state] - value) for state, value in PUBLISHED.items()) < 5e-4


@pytest.mark.parametrize(("step_reward", "slip"), EVERY)
def test_the_other_convention_shifts_every_value_and_moves_no_action(step_reward, slip):
    """If the move into an exit paid no step reward: one payment less on every path that ends."""
    mdp = gridworld(step_reward=step_reward, slip=slip)
    free_SAK = mdp.reward_SAK - np.where(mdp.terminal_S[mdp.next_SAK], step_reward, 0.0)
    other = replace(mdp, reward_SAK=free_SAK)
    value_S, other_S = value_iteration(mdp), value_iteration(other)
    assert np.abs(other_S - value_S + step_reward)[~mdp.terminal_S].max() < 1e-9
    assert (optimal_actions(mdp, value_S, 1e-7) == optimal_actions(other, other_S, 1e-7)).all()


def test_evaluation_by_hand_by_sweeps_and_by_visits():
    two = from_arrays(
        np.array([[[1, 0], [0, 1]], [[0, 1], [0, 1]]]), np.array([[0, 1], [0, 0]]), terminal=[1]
    )
    assert evaluate(two, uniform(two)).tolist() == [1.0, 0.0]
    for gamma in (1.0, 0.9):
        mdp = gridworld(slip=0.2, gamma=gamma)
        policy_SA = np.random.default_rng(0).dirichlet(np.ones(4), size=11)
        value_S = evaluate(mdp, policy_SA)
        assert np.abs(evaluate_iteratively(mdp, policy_SA)[0] - value_S).max() < 1e-9
        earned = occupancy(mdp, policy_SA) @ (policy_SA * mdp.reward_SA).sum(1)
        assert earned == pytest.approx(mdp.start_S @ value_S, abs=1e-12)
    assert occupancy(two, uniform(two)).tolist() == [2.0, 0.0]  # a coin until it says go


def test_adding_a_constant_to_rewards_adds_its_discounted_sum():
    """Without exits, gamma .9: a constant c adds c / (1 - .9) to every value and changes no best
    action.
    """
    mdp = gridworld(slip=0.2, gamma=0.9, exits={}, step_reward=-0.3)
    assert np.allclose(value_iteration(mdp), -0.3 / 0.1, atol=1e-9)


def test_policy_iteration_only_climbs():
    mdp = gridworld(step_reward=-0.4, slip=0.2)
    start_S = evaluate(mdp, uniform(mdp))
    _, value_S, rounds = policy_iteration_rounds(mdp)
    assert (
        1 < rounds < 10 and (value_S >= start_S).all() and value_iteration_sweeps(mdp)[1] > rounds
    )
