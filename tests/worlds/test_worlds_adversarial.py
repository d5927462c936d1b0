"""Discriminator, rewards, the gradient identities, and convergence to the expert's occupancy."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from laurel.core.errors import UsageError
from laurel_worlds.adversarial import (
    DIVERGENCES,
    REWARDS,
    advantage,
    bell_policy,
    fit_bell,
    gail,
    imitate_adversarially,
    kl,
    optimal_logit,
    policy_gradient,
    restarted,
    train_discriminator,
    visits,
)
from laurel_worlds.gridworld import gridworld
from laurel_worlds.mdp import from_arrays
from laurel_worlds.planning import deterministic, uniform, value_iteration

RNG = np.random.default_rng(0)
WORLD = from_arrays(
    RNG.dirichlet(np.ones(4), size=(4, 3)),
    np.zeros((4, 3)),
    gamma=0.8,
    start=RNG.dirichlet(np.ones(4)),
)
EXPERT = visits(WORLD, RNG.dirichlet(np.ones(3), size=4))


def test_visits_are_a_distribution_that_flows():
    """Discounted flow: what is in s is the share that starts there plus gamma times what
    arrives.
    """
    policy = RNG.dirichlet(np.ones(3), size=4)
    rho = visits(WORLD, policy)
    assert rho.sum() == pytest.approx(1)
    assert np.allclose(
        rho.sum(1), 0.2 * WORLD.start_S + 0.8 * np.einsum("sa,saz->z", rho, WORLD.transition_SAZ)
    )


def test_the_restarted_world_has_no_end():
    mdp = restarted(gridworld(gamma=0.9, slip=0.2))
    open_S = ~mdp.terminal_S
    assert (
        np.allclose(mdp.transition_SAZ[open_S].sum(2), 1)
        and not mdp.transition_SAZ[..., mdp.terminal_S].any()
    )
    assert visits(mdp, uniform(mdp)).sum() == pytest.approx(1)


def test_rewards_by_hand():
    """D = 3/4: log 3, log 4 and log 3/4."""
    f = np.log(np.array([3.0]))
    assert [float(REWARDS[name](f)[0]) for name in ("airl", "gail", "logd")] == pytest.approx(
        [np.log(3), np.log(4), np.log(0.75)]
    )


def test_the_best_discriminator_is_bayes_rule_and_training_ends_there():
    rho = visits(WORLD, uniform(WORLD))
    assert np.allclose(expit(optimal_logit(EXPERT, rho)), EXPERT / (EXPERT + rho))
    trained = train_discriminator(np.zeros((4, 3)), EXPERT, rho, steps=400)
    assert np.allclose(trained, optimal_logit(EXPERT, rho), atol=1e-8)


def test_no_other_discriminator_tells_them_apart_better():
    rho = visits(WORLD, uniform(WORLD))

    def fit(logit):
        return (EXPERT * np.log(expit(logit)) + rho * np.log(expit(-logit))).sum()

    best = optimal_logit(EXPERT, rho)
    assert all(fit(best + 0.1 * RNG.normal(size=best.shape)) < fit(best) for _ in range(30))
    js = DIVERGENCES["gail"](rho, EXPERT) / 2
    assert fit(best) == pytest.approx(2 * js - 2 * np.log(2))  # Goodfellow et al. 2014


@pytest.mark.parametrize("name", REWARDS)
def test_each_policy_gradient_is_minus_the_gradient_of_its_divergence(name):
    logit = RNG.normal(size=(4, 3))
    rho = visits(WORLD, softmax(logit, axis=1))
    found = policy_gradient(WORLD, logit, REWARDS[name](optimal_logit(EXPERT, rho)))
    slope, step = np.zeros_like(logit), 1e-5
    for index in np.ndindex(logit.shape):
        nudge = np.zeros_like(logit)
        nudge[index] = step
        up, down = (
            DIVERGENCES[name](visits(WORLD, softmax(logit + sign * nudge, axis=1)), EXPERT)
            for sign in (1, -1)
        )
        slope[index] = (up - down) / (2 * step)
    assert np.abs(found + slope).max() < 1e-7 * max(1, np.abs(slope).max()) + 1e-8
    assert np.abs(found).max() > 1e-3


def test_the_three_objectives_differ():
    logit = RNG.normal(size=(4, 3))
    rho = visits(WORLD, softmax(logit, axis=1))
    a, b, c = (
        policy_gradient(WORLD, logit, REWARDS[name](optimal_logit(EXPERT, rho))) for name in REWARDS
    )
    assert np.allclose(b + c, a)  # log D/(1 - D) = log D - log(1 - D)
    cosine = (b * c).sum() / np.sqrt((b**2).sum() * (c**2).sum())
    assert cosine < 0.9999


def test_an_advantage_has_mean_zero_and_ignores_a_constant_reward():
    policy, reward = softmax(RNG.normal(size=(4, 3)), axis=1), RNG.normal(size=(4, 3))
    found = advantage(WORLD, policy, reward)
    assert np.allclose((policy * found).sum(1), 0) and np.allclose(
        advantage(WORLD, policy, reward + 7), found
    )


def test_in_a_world_that_ends_the_sign_of_the_reward_decides_alone():
    """A discriminator that knows nothing, D = 1/2: GAIL's log 2 a step is best collected for ever,
    -log 2 is best left at once.
    """
    mdp = gridworld(gamma=0.9)
    for name, endless in (("gail", True), ("logd", False)):
        reward = REWARDS[name](np.zeros((11, 4)))
        paid = from_arrays(
            mdp.transition_SAZ, reward, gamma=0.9, terminal=list(np.flatnonzero(mdp.terminal_S))
        )
        value = value_iteration(paid)[~mdp.terminal_S]
        assert (
            np.allclose(value, 10 * np.log(2))
            if endless
            else value.max() == pytest.approx(-np.log(2))
        )


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("steps", [None, 3])
def test_it_reaches_the_experts_occupancy(name, steps):
    policy, distances = imitate_adversarially(
        WORLD, EXPERT, reward=name, rounds=300, discriminator_steps=steps
    )
    assert np.abs(visits(WORLD, policy) - EXPERT).sum() / 2 < 1e-6 and distances[0] > 0.01


def test_wrong_use_is_refused():
    with pytest.raises(UsageError, match="airl"):
        imitate_adversarially(WORLD, EXPERT, reward="arl")
    with pytest.raises(UsageError):
        visits(gridworld(), uniform(gridworld()))


def test_kl_and_bells_by_hand():
    assert (
        kl(np.array([1.0, 0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))
        and kl(EXPERT, EXPERT) == 0
    )
    assert np.allclose(
        bell_policy(1, 0.0, 3), np.array([np.exp(-0.5), 1, np.exp(-0.5)]) / (1 + 2 * np.exp(-0.5))
    )
    target = bell_policy(2.3, 0.4, 6)
    for divergence in (kl, lambda it, expert: kl(expert, it)):
        assert np.allclose(fit_bell(target, divergence), target, atol=1e-4)


def test_the_experiment_and_its_claims():
    shown = gail(rounds=200)
    assert all(claim.holds for claim in shown.claims), shown.claims
    assert not gail(rounds=3).claims[0].holds
    stubborn = deterministic(np.zeros(11), 4)
    mdp = restarted(gridworld(gamma=0.9))
    assert kl(visits(mdp, stubborn), visits(mdp, uniform(mdp))) > 0
