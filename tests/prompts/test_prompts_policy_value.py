"""What a choice is worth: values by hand, coverage of the intervals where the truth is known, the
bound on the regret.
"""

import numpy as np
import pytest

from laurel.measure.intervals import Interval
from laurel_prompts.policy_value import (
    auc,
    doubly_robust,
    exact,
    gain,
    inverse_propensity,
    one_hot,
    regret,
    self_normalised,
    split_oracle,
    verdict,
)
from laurel_prompts.synthetic import OTHERWISE, RIGHT, synthetic_log

NAN = np.nan


def test_values_by_hand():
    reward = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    policy = one_hot(np.array([0, 0, 1, 1]), 2)
    assert exact(reward, policy, range(4)).value == 0.5
    assert exact(reward, np.full((4, 2), 0.5), range(4)).value == 0.5
    assert regret(reward, policy, range(4)).value == 0.25
    assert gain(reward, policy, one_hot(np.array([1, 1, 1, 1]), 2), range(4)).value == 0.0
    with pytest.raises(ValueError, match="not tried"):
        exact(np.array([[NAN, 1.0]]), one_hot(np.array([0]), 2), range(1))
    with pytest.raises(ValueError, match="every prompt tried"):
        regret(np.array([[NAN, 1.0]]), one_hot(np.array([1]), 2), range(1))


def test_estimators_by_hand():
    reward = np.array([[1.0, NAN], [NAN, 0.0], [NAN, 1.0]])
    propensity = np.array([[0.25, NAN], [NAN, 0.75], [NAN, 0.5]])
    first, predicted = one_hot(np.zeros(3, int), 2), np.full((3, 2), 0.5)
    assert inverse_propensity(reward, propensity, first, range(3)).value == pytest.approx(4 / 3)
    assert self_normalised(reward, propensity, first, range(3)).value == 1.0
    assert doubly_robust(reward, propensity, first, predicted, range(3)).value == pytest.approx(
        0.5 + 4 * 0.5 / 3
    )
    mixed = np.full((3, 2), 0.5)
    assert self_normalised(reward, propensity, mixed, range(3)).value == pytest.approx(
        (2 + 1) / (2 + 2 / 3 + 1)
    )
    with pytest.raises(ValueError, match="nothing of what was tried"):
        self_normalised(reward[1:], propensity[1:], first[1:], range(2))
    with pytest.raises(ValueError, match="needs its propensity"):
        inverse_propensity(reward, np.full((3, 2), NAN), first, range(3))


def test_doubly_robust_is_exact_where_the_model_is_and_unbiased_where_it_is_not():
    log, truth = synthetic_log(4000, seed=3, every=False, noisy=False)
    policy = one_hot(truth.argmax(1), 6)
    given = (log.reward_SP, log.propensity_SP, policy)
    right = doubly_robust(*given, truth, log.question_S)
    assert right.value == pytest.approx(truth.max(1).mean(), abs=1e-12)
    for wrong in (np.zeros_like(truth), np.ones_like(truth), 1 - truth):
        found = doubly_robust(*given, wrong, log.question_S)
        assert abs(found.value - truth.max(1).mean()) < 4 * (found.high - found.low) / 3.92


@pytest.mark.parametrize(
    ("logs", "least"), [(40, 36), pytest.param(200, 186, marks=pytest.mark.whole)]
)
def test_intervals_hold_the_truth_in_at_least_93_percent_of_200_logs(logs, least):
    """Of fewer logs in 90 percent. The truth is that of the population: every kind of query at
    every difficulty.

    The choice is not the oracle's, and the model of DR is off.
    """
    easy = np.where(np.eye(6, dtype=bool), RIGHT, OTHERWISE)
    population = np.concatenate([easy - 0.1 * hard for hard in np.linspace(-1, 1, 2001)])
    drawn = synthetic_log(600, noisy=False)[1]
    assert np.allclose(
        np.ptp(drawn - population[drawn.argmax(1)], axis=1), 0
    )  # a query is one of these, but for its difficulty
    others = {"IPS": 0, "SNIPS": 0, "DR": 0, "regret": 0}

    def choice(truth):
        return np.where(truth[:, 0] > 0.53, truth.argmax(1), 0)  # hard questions get the default

    worth = population[np.arange(len(population)), choice(population)].mean()
    lost = population.max(1).mean() - worth
    for seed in range(logs):
        log, truth = synthetic_log(600, seed=seed, every=False)
        policy = one_hot(choice(truth), 6)
        given = (log.reward_SP, log.propensity_SP, policy)
        found = {
            "IPS": inverse_propensity(*given, log.question_S),
            "SNIPS": self_normalised(*given, log.question_S),
            "DR": doubly_robust(*given, 0.8 * truth + 0.05, log.question_S),
        }
        for name, interval in found.items():
            others[name] += interval.low <= worth <= interval.high
        interval = regret(truth, policy, range(600))  # of expected rewards
        others["regret"] += interval.low <= lost <= interval.high
    print(others)
    assert min(others.values()) >= least, others


def test_regret_is_at_most_twice_the_largest_error():
    rng = np.random.default_rng(0)
    for _ in range(50):
        truth, predicted = rng.random((40, 5)), rng.random((40, 5))
        found = regret(truth, one_hot(predicted.argmax(1), 5), range(40)).value
        assert found <= 2 * np.abs(predicted - truth).max(1).mean() + 1e-12


def test_the_oracle_of_split_draws_is_not_fooled_by_luck():
    rng = np.random.default_rng(1)
    coins = (rng.random((2000, 6)) < 0.5).astype(
        float
    )  # no prompt is better: the oracle of single draws is worth 1 - 2^-6
    question = np.arange(2000) // 4
    assert coins.max(1).mean() > 0.97
    split = split_oracle(coins, question)
    assert split.low < 0.5 < split.high
    assert split_oracle(coins, np.arange(2000)) is None
    sure = np.eye(6)[rng.integers(0, 6, 500)].repeat(4, 0)
    assert split_oracle(sure, question).value == 1.0


def test_verdicts():
    assert verdict(Interval(0.1, 0.01, 0.2, 99)) == "a credible gain"
    assert (
        verdict(Interval(0.1, -0.01, 0.2, 99))
        == verdict(Interval(0, 0, 0, 99))
        == "no credible gain"
    )
    assert verdict(Interval(-0.1, -0.2, -0.01, 99)) == "a credible loss"
    assert verdict(Interval(1.0, 1.0, 1.0, 2)) == "too few questions to tell"


def test_auc_counts_pairs():
    assert auc(np.array([0.9, 0.8, 0.1]), np.array([1, 0, 0])) == 1.0
    assert auc(np.array([0.5, 0.5, 0.1]), np.array([1, 0, 1])) == 0.25
    assert auc(np.full(5, 0.0), np.array([1, 0, 0, 1, 0])) == 0.5 and np.isnan(
        auc(np.ones(3), np.ones(3))
    )
