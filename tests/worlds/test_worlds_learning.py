"""Learners that see only the simulator, against what planning knows: greedy policies, values, and
what each rule converges to.
"""

import inspect

import numpy as np
import pytest

from laurel_worlds.gridworld import corridor, gridworld
from laurel_worlds.learning import (
    CAP,
    counted_model,
    monte_carlo,
    monte_carlo_values,
    q_learning,
    sarsa,
)
from laurel_worlds.mdp import from_arrays
from laurel_worlds.planning import evaluate, optimal_actions, q_values, uniform, value_iteration
from laurel_worlds.solve import default_moves

STEP_REWARDS = (0.0, -0.04, -0.1, -0.4, -1.0, -2.0)


def live(mdp):
    return np.flatnonzero(~mdp.terminal_S).tolist()


def wrong(mdp, learned):
    """States where the greedy action is none of the best."""
    best_SA = optimal_actions(mdp, value_iteration(mdp), 1e-7)
    return [mdp.states[state] for state in live(mdp) if not best_SA[state, learned.greedy()[state]]]


@pytest.mark.parametrize("learner", [q_learning, sarsa])
@pytest.mark.parametrize("step_reward", STEP_REWARDS)
def test_without_slips_five_seeds_of_five_find_the_best_policy(learner, step_reward):
    mdp = gridworld(step_reward=step_reward)
    for seed in range(5):
        assert not wrong(
            mdp, learner(mdp.simulator(seed), steps=20_000, seed=seed, starts=live(mdp))
        )


@pytest.mark.parametrize("learner", [q_learning, sarsa])
@pytest.mark.parametrize("step_reward", [-0.04, -2.0])
def test_with_slips_the_first_seed_finds_it(learner, step_reward):
    """All five seeds of all twelve worlds are what `laurel tabular compare --every-world` shows."""
    mdp = gridworld(step_reward=step_reward, slip=0.2)
    assert not wrong(
        mdp, learner(mdp.simulator(0), steps=default_moves(mdp), seed=0, starts=live(mdp))
    )


def test_a_wrong_target_is_seen():
    """The same check fails a learner that knows less: a hundred moves."""
    mdp = gridworld(slip=0.2)
    assert wrong(mdp, q_learning(mdp.simulator(0), steps=100, starts=live(mdp)))


def test_one_update_by_hand():
    """One state, one action, reward 3, then the end: from Q = 0 at step size 1/2, Q = 1.5, 2.25,
    2.625.
    """
    one = from_arrays(np.array([[[0, 1]], [[0, 1]]]), np.array([3.0, 0.0]), terminal=[1])
    for learner in (q_learning, sarsa):
        assert learner(one.simulator(0), steps=3, step_size=0.5, epsilon=0.0).q_SA[0, 0] == 2.625


def test_without_random_actions_the_two_rules_are_one():
    mdp = gridworld(slip=0.3)
    left, right = (
        learner(mdp.simulator(4), steps=5000, seed=2, epsilon=0.0, step_size=0.1)
        for learner in (q_learning, sarsa)
    )
    assert (left.q_SA == right.q_SA).all() and left.returns == right.returns


def test_in_a_random_walk_sarsa_learns_the_walk_and_q_learning_the_best():
    """epsilon = 1: behaviour is uniform. SARSA's Q is the uniform policy's, Q-learning's the best
    one's.
    """
    mdp = corridor(gamma=0.9)
    uniform_SA = q_values(mdp, evaluate(mdp, uniform(mdp)))
    best_SA = q_values(mdp, value_iteration(mdp))
    for learner, limit_SA, other_SA in (
        (sarsa, uniform_SA, best_SA),
        (q_learning, best_SA, uniform_SA),
    ):
        learned = learner(mdp.simulator(1), steps=60_000, seed=1, epsilon=1.0, starts=live(mdp))
        assert (
            np.abs(learned.q_SA - limit_SA)[live(mdp)].max()
            < 0.02
            < np.abs(learned.q_SA - other_SA)[live(mdp)].max()
        )


def test_the_learners_are_told_nothing_but_what_the_simulator_says():
    for learner in (q_learning, sarsa, monte_carlo, monte_carlo_values, counted_model):
        assert next(iter(inspect.signature(learner).parameters.values())).annotation == "Simulator"


def test_the_same_seed_is_the_same_run_and_another_is_not():
    mdp = gridworld(slip=0.2)
    runs = [q_learning(mdp.simulator(seed), steps=2000, seed=seed).q_SA for seed in (0, 0, 1)]
    assert (runs[0] == runs[1]).all() and (runs[0] != runs[2]).any()


def test_an_episode_that_does_not_end_is_broken_off():
    world = gridworld(exits={})
    learned = sarsa(world.simulator(0), steps=3 * CAP, seed=0)
    assert learned.returns == () and learned.steps == 3 * CAP


def test_monte_carlo_control_finds_the_best_policy():
    mdp = gridworld(step_reward=-0.4)
    assert not wrong(mdp, monte_carlo(mdp.simulator(0), steps=30_000, starts=live(mdp)))


def test_monte_carlo_prediction_is_unbiased():
    mdp = gridworld(slip=0.2, gamma=0.9)
    policy_SA = np.random.default_rng(0).dirichlet(np.ones(4), size=11)
    mean_S, error_S = monte_carlo_values(mdp.simulator(11), policy_SA, episodes=4000, seed=12)
    seen_S = np.isfinite(error_S) & ~mdp.terminal_S
    z_S = (mean_S - evaluate(mdp, policy_SA))[seen_S] / error_S[seen_S]
    assert seen_S.sum() == 9 and np.abs(z_S).max() < 4 and error_S[seen_S].max() < 0.1
    assert (
        np.abs((mean_S - 0.2 - evaluate(mdp, policy_SA))[seen_S] / error_S[seen_S]).max() > 4
    )  # a shift of .2 would be seen


def test_one_try_of_each_pair_is_the_whole_model_where_nothing_is_left_to_chance():
    mdp = gridworld()
    model = counted_model(mdp.simulator(0), samples=1, starts=live(mdp))
    assert (model.transition_SAZ == mdp.transition_SAZ).all() and np.allclose(
        model.reward_SA, mdp.reward_SA, atol=0
    )
    assert (value_iteration(model) == value_iteration(mdp)).all()


def test_a_counted_model_comes_nearer_with_samples():
    mdp = gridworld(slip=0.2)
    gaps = [
        np.abs(
            value_iteration(counted_model(mdp.simulator(3), samples=samples, starts=live(mdp)))
            - value_iteration(mdp)
        ).max()
        for samples in (20, 2000)
    ]
    assert gaps[1] < 0.05 and gaps[1] < gaps[0]
