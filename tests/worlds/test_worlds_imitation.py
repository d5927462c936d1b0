"""Cloning, the tightrope, exact costs against a closed form and a simulation, and the growth of
errors.
"""

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel_worlds.imitate import growth_exponent, imitate
from laurel_worlds.imitation import (
    Labels,
    clone,
    cost,
    interactive,
    noisy,
    occupancy_in_time,
    sample_walks,
    tightrope,
    unrecoverable_cost,
)


def test_cloning_counts():
    labels = Labels(np.array([0, 0, 0]), np.array([1, 1, 1]))
    assert np.allclose(clone(labels, 2, 2, 1.0), [[1 / 5, 4 / 5], [1 / 2, 1 / 2]])
    assert np.allclose(clone(labels, 2, 2, 0.0), [[0, 1], [1 / 2, 1 / 2]])


def test_cloning_is_of_most_likelihood():
    rng = np.random.default_rng(0)
    labels = Labels(rng.integers(3, size=200), rng.integers(4, size=200))
    best = clone(labels, 3, 4, 0.0)
    fit = np.log(best[labels.state_N, labels.action_N]).sum()
    for _ in range(50):
        other = rng.dirichlet(np.ones(4), size=3) * 0.05 + best * 0.95
        assert np.log(other[labels.state_N, labels.action_N]).sum() < fit


@pytest.mark.parametrize("horizon", [1, 2, 7, 40])
def test_the_closed_form_is_the_exact_cost_where_nothing_can_be_undone(horizon):
    world = tightrope(fog=0.3, climbable=False)
    policy = np.eye(3)[world.expert_S]
    policy[3:6] = 1 / 3  # in fog: a guess
    assert cost(world.mdp, policy, horizon) == pytest.approx(
        unrecoverable_cost(0.2, horizon), rel=1e-12
    )


def test_the_closed_form_by_hand_and_its_limit():
    assert unrecoverable_cost(0.5, 2) == pytest.approx(1.25) and unrecoverable_cost(0.0, 9) == 0
    assert unrecoverable_cost(1e-6, 50) == pytest.approx(1e-6 * 50 * 51 / 2, rel=1e-4)
    assert unrecoverable_cost(1.0, 6) == 6


def test_the_expert_costs_nothing_and_stays_on_the_rope():
    world = tightrope()
    expert = np.eye(3)[world.expert_S]
    at = occupancy_in_time(world.mdp, expert, 30)
    assert (
        cost(world.mdp, expert, 30) == 0
        and np.allclose(at[:, :6].sum(1), 1)
        and np.allclose(at[:, 3:6].sum(1), 0.0015)
    )


def test_one_fall_costs_the_way_back():
    """Errs once, at the first step, then does as the expert: below after steps 1, 2 and 3 of a drop
    of 3, so the cost is 3.
    """
    world = tightrope(fog=0.0)
    expert = np.eye(3)[world.expert_S]
    fallen = world.mdp.start_S @ world.mdp.transition_SAZ[np.arange(30), (world.expert_S + 1) % 3]
    at, total = fallen, 1.0
    for _ in range(10):
        total -= float((at * (expert * world.mdp.reward_SA).sum(1)).sum())
        at = at @ np.einsum("sa,saz->sz", expert, world.mdp.transition_SAZ)
    assert total == pytest.approx(3)


def test_the_exact_cost_is_the_simulated_one():
    world = tightrope(fog=0.2)
    policy = 0.8 * np.eye(3)[world.expert_S] + 0.2 / 3
    total = -sample_walks(
        world.mdp, policy, steps=20_000 * 12, horizon=12, rng=np.random.default_rng(0)
    )[2].sum(0)
    z = (total.mean() - cost(world.mdp, policy, 12)) / (total.std() / np.sqrt(len(total)))
    assert abs(z) < 4


def test_a_clone_knows_nothing_below_and_the_interactive_learner_does():
    world = tightrope(fog=0.003)
    cloned, corrected = (
        interactive(world, labels=20_000, horizon=50, rounds=rounds, rng=np.random.default_rng(0))
        for rounds in (0, 10)
    )
    assert np.allclose(cloned[6:], 1 / 3)
    drop = np.flatnonzero([name.startswith("depth 3") for name in world.mdp.states])
    assert (corrected[drop, world.expert_S[drop]] > 0.9).all()
    assert cost(world.mdp, corrected, 50) < cost(world.mdp, cloned, 50) / 3


def test_no_round_of_correction_is_behaviour_cloning():
    world = tightrope()
    found = interactive(world, labels=600, horizon=20, rounds=0, rng=np.random.default_rng(5))
    state, _, _ = sample_walks(
        world.mdp, np.eye(3)[world.expert_S], steps=600, horizon=20, rng=np.random.default_rng(5)
    )
    seen = state.ravel()
    assert np.allclose(
        found, clone(Labels(world.seen_S[seen], world.expert_S[seen]), 30, 3, 0.01)[world.seen_S]
    )


def test_exponents_of_powers():
    assert growth_exponent((1, 2, 4), [3, 12, 48]) == pytest.approx(2) and growth_exponent(
        (2, 8), [5, 20]
    ) == pytest.approx(1)
    with pytest.raises(UsageError):
        growth_exponent((1, 2), [0, 1])


def test_a_demonstrator_that_errs():
    best = np.array([[True, False, False, True], [False, False, False, False]])
    assert np.allclose(noisy(best, 0.2), [[0.45, 0.05, 0.05, 0.45], [0.25] * 4])


def test_errors_compound_quadratically_unless_corrected():
    shown = imitate(horizons=(16, 64, 128), seeds=4, seed=1)
    slopes = shown.data["exponent"]
    assert (
        abs(slopes["behaviour cloning"][0] - 2) < 0.15
        and abs(slopes["interactive (DAgger)"][0] - 1) < 0.15
    )
    assert abs(slopes["behaviour cloning, simulated"][0] - 2) < 0.25
    assert all(claim.holds for claim in shown.claims), shown.claims
    z = np.array([row[7] for row in shown.tables[0].rows])
    assert np.abs(z).max() < 4


def test_the_claims_fail_where_errors_are_too_frequent():
    """Error times horizon far above 1: everybody is below nearly always, and cost grows linearly
    for the clone too.
    """
    shown = imitate(horizons=(64, 128), fog=0.9, seeds=2, labels=3000)
    assert not shown.claims[0].holds
    with pytest.raises(UsageError):
        imitate(horizons=(16,))
