"""Importance sampling on a world whose every episode can be listed: means exact by enumeration,
growth of weights, limits.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel_worlds.compare import chain_world
from laurel_worlds.gradient import Episode, objective, rollout, softmax
from laurel_worlds.gridworld import gridworld
from laurel_worlds.offpolicy import (
    ESTIMATORS,
    doubly_robust,
    effective_sample_size,
    importance_sampling,
    log_ratios,
    per_decision_importance_sampling,
    ratio_second_moment,
    reuse,
    weighted_importance_sampling,
)
from laurel_worlds.planning import evaluate, uniform

LENGTH = 4
WORLD = chain_world(LENGTH)
HALF = replace(WORLD, reward_SAK=WORLD.reward_SAK / 2)  # a wrong model
TARGET_SA, BEHAVIOUR_SA = (np.tile([chance, 1 - chance], (LENGTH + 1, 1)) for chance in (0.7, 0.5))
TRUTH = float(WORLD.start_S @ evaluate(WORLD, TARGET_SA))


def every_episode():
    """All 2^4 episodes with their probabilities under the behaviour."""
    for actions in product((0, 1), repeat=LENGTH):
        states = np.arange(LENGTH)
        rewards = np.where(np.array(actions) == 0, 1 / LENGTH, 0.0)
        yield (
            Episode(states, np.array(actions), rewards, states + 1),
            float(np.prod(BEHAVIOUR_SA[states, list(actions)])),
        )


def mean_of(estimator):
    return sum(
        chance * float(estimator([row], TARGET_SA, BEHAVIOUR_SA, 1.0)[0])
        for row, chance in every_episode()
    )


def test_by_hand():
    row = Episode(np.array([0, 1]), np.array([0, 1]), np.array([1.0, 2.0]), np.array([1, 2]))
    assert np.exp(log_ratios(row, TARGET_SA, BEHAVIOUR_SA)) == pytest.approx([1.4, 0.84])
    assert importance_sampling([row], TARGET_SA, BEHAVIOUR_SA, 0.5) == pytest.approx([0.84 * 2])
    assert per_decision_importance_sampling([row], TARGET_SA, BEHAVIOUR_SA, 0.5) == pytest.approx(
        [1.4 * 1 + 0.84 * 0.5 * 2]
    )
    assert weighted_importance_sampling([row], TARGET_SA, BEHAVIOUR_SA, 0.5) == pytest.approx(
        [2]
    )  # one episode: its own return


@pytest.mark.parametrize(
    "estimator",
    [
        importance_sampling,
        per_decision_importance_sampling,
        doubly_robust(WORLD),
        doubly_robust(HALF),
    ],
)
def test_the_mean_over_every_episode_is_the_targets_value(estimator):
    assert pytest.approx(0.7) == TRUTH
    assert mean_of(estimator) == pytest.approx(TRUTH, abs=1e-14)


def test_weighted_is_biased_and_in_range():
    assert mean_of(weighted_importance_sampling) == pytest.approx(
        0.5, abs=1e-14
    )  # N = 1: the behaviour's own value
    rows = [row for row, _ in every_episode()]
    assert weighted_importance_sampling(rows, TARGET_SA, BEHAVIOUR_SA, 1.0).mean() == pytest.approx(
        TRUTH, abs=1e-14
    )  # all of them, equally likely


def test_doubly_robust_with_the_right_model_has_no_spread_and_with_a_wrong_one_no_bias():
    rows = [row for row, _ in every_episode()]
    assert doubly_robust(WORLD)(rows, TARGET_SA, BEHAVIOUR_SA, 1.0) == pytest.approx(
        [TRUTH] * len(rows), abs=1e-14
    )
    zeros = replace(WORLD, reward_SAK=WORLD.reward_SAK * 0)
    found = doubly_robust(zeros)(rows, TARGET_SA, BEHAVIOUR_SA, 1.0)
    assert found == pytest.approx(
        per_decision_importance_sampling(rows, TARGET_SA, BEHAVIOUR_SA, 1.0), abs=1e-14
    )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_on_policy_all_are_plain_monte_carlo(name):
    rows = [row for row, _ in every_episode()]
    found = ESTIMATORS[name](rows, BEHAVIOUR_SA, BEHAVIOUR_SA, 1.0)
    assert found == pytest.approx([row.rewards.sum() for row in rows])
    assert effective_sample_size(rows, BEHAVIOUR_SA, BEHAVIOUR_SA) == pytest.approx(len(rows))


def test_the_weights_second_moment_grows_exponentially():
    by_listing = sum(
        chance * np.exp(2 * log_ratios(row, TARGET_SA, BEHAVIOUR_SA)[-1])
        for row, chance in every_episode()
    )
    c = (0.7**2 + 0.3**2) / 0.5
    assert (
        ratio_second_moment(WORLD, TARGET_SA, BEHAVIOUR_SA, LENGTH)
        == pytest.approx(by_listing)
        == pytest.approx(c**LENGTH)
    )
    assert ratio_second_moment(WORLD, TARGET_SA, BEHAVIOUR_SA, 2) == pytest.approx(c**2)
    assert ratio_second_moment(WORLD, TARGET_SA, BEHAVIOUR_SA, 99) == pytest.approx(
        c**LENGTH
    )  # the episode ended
    assert ratio_second_moment(WORLD, TARGET_SA, TARGET_SA, LENGTH) == pytest.approx(1)


def test_effective_sample_size_of_all_episodes():
    rows = [row for row, _ in every_episode()]
    c = (0.7**2 + 0.3**2) / 0.5
    assert effective_sample_size(rows, TARGET_SA, BEHAVIOUR_SA) == pytest.approx(
        len(rows) / c**LENGTH
    )
    never = np.tile([0.0, 1.0], (LENGTH + 1, 1))
    first = [row for row in rows if row.actions[0] == 0]
    assert effective_sample_size(first, never, BEHAVIOUR_SA) == 0


def test_on_a_slippery_grid_the_sampled_mean_is_the_value():
    mdp = gridworld(slip=0.2, gamma=0.9)
    target_SA = softmax(np.random.default_rng(1).normal(size=(11, 4)) * 0.3)
    simulator, rng = mdp.simulator(2), np.random.default_rng(3)
    rows = [rollout(simulator, uniform(mdp), rng) for _ in range(1500)]
    truth = float(mdp.start_S @ evaluate(mdp, target_SA))
    for estimator in (
        importance_sampling,
        per_decision_importance_sampling,
        doubly_robust(gridworld(slip=0.0, gamma=0.9)),
    ):
        found = estimator(rows, target_SA, uniform(mdp), mdp.gamma)
        assert abs(found.mean() - truth) < 4 * found.std(ddof=1) / len(rows) ** 0.5


def test_data_the_behaviour_cannot_have_made_is_refused():
    row = Episode(np.array([0]), np.array([0]), np.array([1.0]), np.array([1]))
    with pytest.raises(UsageError, match="never takes"):
        log_ratios(row, TARGET_SA, np.tile([0.0, 1.0], (LENGTH + 1, 1)))


def test_one_update_a_batch_is_reinforce_with_or_without_weights():
    mdp = gridworld(slip=0.2)
    runs = [
        reuse(mdp.simulator(0), rounds=5, batch=4, updates=1, rate=0.5, corrected=corrected)
        for corrected in (True, False)
    ]
    for (moves, logit_SA, _), (others, other_SA, _) in zip(*runs, strict=True):
        assert moves == others and np.allclose(logit_SA, other_SA, atol=1e-14)


def test_a_guarded_batch_is_left_and_learns():
    mdp = gridworld(slip=0.2)
    trail = reuse(mdp.simulator(0), rounds=40, batch=8, updates=16, rate=0.5, least_share=0.7)
    assert len(trail) == 40 and objective(mdp, trail[-1][1]) > 0.55 > objective(
        mdp, np.zeros((11, 4))
    )
