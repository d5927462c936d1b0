"""The policy gradient: the theorem against finite differences, the estimators against the theorem,
and what a baseline changes.
"""

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel_worlds.gradient import (
    Episode,
    estimate,
    exact_ascent,
    exact_gradient,
    learn,
    objective,
    returns_to_go,
    rollout,
    second_moment,
    softmax,
)
from laurel_worlds.gridworld import gridworld
from laurel_worlds.mdp import from_arrays
from laurel_worlds.planning import evaluate, value_iteration

MDP = gridworld(slip=0.2, gamma=0.95)
LOGIT_SA = np.random.default_rng(0).normal(size=(11, 4)) * 0.5
VALUE_S = evaluate(MDP, softmax(LOGIT_SA))


def z_scores(weight, value_S, episodes=1500):
    """(mean - exact) / standard error of every entry of the gradient that varies at all."""
    policy_SA, simulator, rng = softmax(LOGIT_SA), MDP.simulator(3), np.random.default_rng(5)
    rows = (rollout(simulator, policy_SA, rng) for _ in range(episodes))
    found_NSA = np.array(
        [estimate(row, policy_SA, MDP.gamma, weight=weight, value_S=value_S) for row in rows]
    )
    error_SA = found_NSA.std(0, ddof=1) / episodes**0.5
    varied_SA = error_SA > 0
    return (found_NSA.mean(0) - exact_gradient(MDP, LOGIT_SA))[varied_SA] / error_SA[varied_SA]


def test_by_hand():
    bandit = from_arrays(
        np.array([[[0, 1], [0, 1]], [[0, 1], [0, 1]]]),
        np.array([[1.0, 0.0], [0.0, 0.0]]),
        terminal=[1],
    )
    assert exact_gradient(bandit, np.zeros((2, 2)))[0].tolist() == [0.25, -0.25]
    assert returns_to_go(np.array([1.0, 2.0, 4.0]), 0.5).tolist() == [3, 4, 4]
    one = Episode(np.array([0]), np.array([0]), np.array([1.0]), np.array([1]))
    assert estimate(one, np.full((2, 2), 0.5), 1.0)[0].tolist() == [0.5, -0.5]


def test_the_theorem_is_the_derivative():
    found_SA, h = np.zeros_like(LOGIT_SA), 1e-5
    for place in np.ndindex(*LOGIT_SA.shape):
        step_SA = np.zeros_like(LOGIT_SA)
        step_SA[place] = h
        found_SA[place] = (
            objective(MDP, LOGIT_SA + step_SA) - objective(MDP, LOGIT_SA - step_SA)
        ) / (2 * h)
    assert np.abs(found_SA - exact_gradient(MDP, LOGIT_SA)).max() < 1e-9


def test_invariances():
    gradient_SA = exact_gradient(MDP, LOGIT_SA)
    assert (
        np.abs(gradient_SA.sum(1)).max() < 1e-14
    )  # a shift of all logits of a state is no change of policy
    assert np.allclose(
        exact_gradient(MDP, LOGIT_SA + np.arange(11)[:, None]), gradient_SA, atol=1e-14
    )
    assert np.allclose(softmax(LOGIT_SA).sum(1), 1) and np.allclose(
        softmax(LOGIT_SA + 1e4), softmax(LOGIT_SA)
    )


@pytest.mark.parametrize(
    ("weight", "value_S"),
    [("return", None), ("baseline", VALUE_S), ("baseline", np.ones(11)), ("td", VALUE_S)],
    ids=["REINFORCE", "baseline V", "baseline 1", "actor-critic"],
)
def test_the_estimators_have_the_gradient_as_their_mean(weight, value_S):
    assert np.abs(z_scores(weight, value_S)).max() < 4


def test_a_wrong_critic_biases_the_actor_critic():
    assert np.abs(z_scores("td", np.zeros(11))).max() > 10


def test_a_baseline_makes_the_estimate_shorter_and_the_critic_more_so():
    plain, baseline, critic = (
        second_moment(MDP, LOGIT_SA, weight=weight, value_S=value_S, episodes=800)
        for weight, value_S in (("return", None), ("baseline", VALUE_S), ("td", VALUE_S))
    )
    assert plain > 2 * baseline > 4 * critic


def test_exact_ascent_climbs_to_the_best():
    mdp = gridworld()
    _, heights = exact_ascent(mdp, rounds=300, rate=0.5)
    assert (np.diff(heights) > 0).all() and 0 < mdp.start_S @ value_iteration(mdp) - heights[
        -1
    ] < 0.05


@pytest.mark.parametrize("weight", ["return", "baseline", "td"])
def test_each_learns(weight):
    mdp = gridworld()
    logit_SA, curve = learn(mdp.simulator(0), episodes=1000, weight=weight)
    assert objective(mdp, logit_SA) > 0.7 > objective(mdp, np.zeros((11, 4)))
    assert len(curve) == 125 and curve[-1][0] > curve[0][0]


def test_weights_and_values_must_fit():
    one = Episode(np.array([0]), np.array([0]), np.array([1.0]), np.array([1]))
    with pytest.raises(UsageError, match="takes no values"):
        estimate(one, np.full((2, 2), 0.5), 1.0, value_S=np.zeros(2))
    with pytest.raises(UsageError, match="needs values"):
        estimate(one, np.full((2, 2), 0.5), 1.0, weight="td")


def test_half_an_episode_is_refused():
    with pytest.raises(UsageError, match="did not end within 50"):
        rollout(
            gridworld(exits={}).simulator(0),
            softmax(np.zeros((12, 4))),
            np.random.default_rng(0),
            cap=50,
        )
