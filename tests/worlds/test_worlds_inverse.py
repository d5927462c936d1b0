"""Soft-optimal policies, the likelihood's slope, recovery of a reward, and what no demonstration
can tell.
"""

import numpy as np
import pytest
from scipy.special import logsumexp

from laurel.core.errors import UsageError
from laurel_worlds.gridworld import gridworld
from laurel_worlds.imitation import sample_walks
from laurel_worlds.inverse import (
    demonstrated_visits,
    expected_visits,
    likelihood,
    recover,
    rewarded,
    shaped,
    soft_solution,
)
from laurel_worlds.irl import irl, score_recovered_reward
from laurel_worlds.mdp import from_arrays
from laurel_worlds.planning import evaluate, optimal_actions, value_iteration

RNG = np.random.default_rng(1)
WORLD = from_arrays(
    RNG.dirichlet(np.ones(5), size=(5, 3)),
    RNG.normal(size=(5, 3)),
    gamma=0.85,
    terminal=[4],
    start=np.array([0.4, 0.3, 0.2, 0.1, 0]),
)


def test_one_choice_by_hand():
    mdp = from_arrays(
        np.array([[[0, 1.0], [0, 1.0]], [[0, 1.0], [0, 1.0]]]),
        np.array([[0, 1.0], [0, 0]]),
        gamma=0.5,
        terminal=[1],
    )
    policy, value = soft_solution(mdp)
    assert value == pytest.approx([np.log(1 + np.e), 0]) and policy[0] == pytest.approx(
        [1 / (1 + np.e), np.e / (1 + np.e)]
    )


def test_the_soft_value_solves_its_equation_and_counts_reward_and_entropy():
    policy, value = soft_solution(WORLD)
    q = WORLD.reward_SA + 0.85 * WORLD.transition_SAZ @ value
    assert np.allclose(value[:4], logsumexp(q, axis=1)[:4], atol=1e-11) and value[4] == 0
    assert np.allclose(policy[:4], np.exp(q - value[:, None])[:4], atol=1e-11)
    with_entropy = np.where(WORLD.terminal_S[:, None], 0, WORLD.reward_SA - np.log(policy))
    assert np.allclose(evaluate(rewarded(WORLD, with_entropy), policy), value)


def test_as_rewards_grow_it_becomes_the_optimal_policy():
    policy, value = soft_solution(rewarded(WORLD, 1e4 * WORLD.reward_SA))
    best = value_iteration(WORLD)
    assert np.allclose(policy[:4], optimal_actions(WORLD, best)[:4], atol=1e-6) and np.allclose(
        value / 1e4, best, atol=1e-2
    )


def test_the_slope_is_that_of_finite_differences_and_the_two_forms_agree():
    features, weight = RNG.normal(size=(5, 3, 4)), RNG.normal(size=4)
    expert = RNG.dirichlet(np.ones(3), size=5)
    seen = expected_visits(WORLD, expert)
    total, slope = likelihood(WORLD, features, weight, seen)
    policy, _ = soft_solution(rewarded(WORLD, features @ weight))
    assert total == pytest.approx((seen * np.log(policy)).sum(), rel=1e-9)
    for index in range(4):
        nudge = np.eye(4)[index] * 1e-5
        up, down = (likelihood(WORLD, features, weight + sign * nudge, seen)[0] for sign in (1, -1))
        assert slope[index] == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-8)


def test_the_likelihood_is_concave_and_flat_at_the_expert():
    features = np.eye(15).reshape(5, 3, 15)
    truth = WORLD.reward_SA.ravel()
    seen = expected_visits(WORLD, soft_solution(WORLD)[0])
    best, slope = likelihood(WORLD, features, truth, seen)
    assert np.abs(slope).max() < 1e-9
    assert all(
        likelihood(WORLD, features, truth + RNG.normal(size=15), seen)[0] <= best + 1e-12
        for _ in range(20)
    )


def test_a_free_reward_is_recovered_up_to_shaping():
    """r(s, a) from exact visits: the soft-optimal policy is the expert's; the reward is another
    one.
    """
    expert, _ = soft_solution(WORLD)
    found = recover(WORLD, np.eye(15).reshape(5, 3, 15), expected_visits(WORLD, expert)).reshape(
        5, 3
    )
    assert np.allclose(soft_solution(rewarded(WORLD, found))[0][:4], expert[:4], atol=1e-5)
    assert np.abs(found - WORLD.reward_SA)[:4].max() > 0.1


def test_demonstrated_visits_by_hand():
    """Two episodes of two steps at discount 0.85; the terminal state is not counted."""
    states, actions = np.array([[0, 1], [2, 4]]), np.array([[1, 0], [2, 0]])
    want = np.zeros((5, 3))
    want[0, 1], want[1, 0], want[2, 2] = 0.5, 0.5, 0.425
    assert np.allclose(demonstrated_visits(WORLD, states, actions), want)


def test_demonstrations_estimate_the_exact_visits():
    policy, _ = soft_solution(WORLD)
    states, actions, _ = sample_walks(
        WORLD, policy, steps=4000 * 60, horizon=60, rng=np.random.default_rng(3)
    )
    found, exact = demonstrated_visits(WORLD, states, actions), expected_visits(WORLD, policy)
    assert np.abs(found - exact).max() < 4 * np.sqrt(exact.max() * 3 / 4000)


def test_shaping_changes_every_value_and_no_policy():
    potential = RNG.normal(size=5)
    other = shaped(WORLD, potential)
    potential[4] = 0
    policy = RNG.dirichlet(np.ones(3), size=5)
    assert np.allclose(
        evaluate(other, policy), (evaluate(WORLD, policy) - potential) * ~WORLD.terminal_S
    )
    assert np.allclose(soft_solution(other)[0][:4], soft_solution(WORLD)[0][:4])
    assert (
        optimal_actions(other, value_iteration(other))
        == optimal_actions(WORLD, value_iteration(WORLD))
    ).all()


def test_a_constant_is_shaping_only_if_the_end_pays_it_for_ever():
    constant = 0.7
    whole = shaped(WORLD, np.full(5, -constant / 0.15))
    arrives = WORLD.transition_SAZ[..., 4]
    assert np.allclose(
        (whole.reward_SA - WORLD.reward_SA)[:4], (constant + 0.85 * constant / 0.15 * arrives)[:4]
    )
    moved = soft_solution(rewarded(WORLD, WORLD.reward_SA + constant))[0] - soft_solution(WORLD)[0]
    assert np.abs(moved[:4]).max() > 0.01


def test_scores_of_the_truth_and_of_its_opposite():
    mdp = gridworld(slip=0.2, gamma=0.9)
    expert, _ = soft_solution(mdp)
    best = float(mdp.start_S @ value_iteration(mdp))
    assert score_recovered_reward(mdp, expert, mdp.reward_SA) == pytest.approx(
        (1, 1, best, 0), abs=1e-9
    )
    wrong = score_recovered_reward(mdp, expert, -mdp.reward_SA)
    assert wrong[0] < 0.5 and wrong[2] < best - 1 and wrong[3] > 0.04


def test_the_experiment_and_its_claims():
    shown = irl(demonstrations=(5, 400), seeds=3, seed=4)
    assert all(claim.holds for claim in shown.claims), shown.claims
    few, many = shown.tables[0].rows[2:]
    assert many[5] < few[5]  # the soft policy gets nearer with the demonstrations
    assert not irl(demonstrations=(1,), seeds=2, decay=50.0).claims[1].holds
    with pytest.raises(UsageError):
        irl(gamma=1.0)
