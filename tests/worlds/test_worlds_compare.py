"""The verb compare: its claims at a small size, and the exact worlds its figures are held
against.
"""

import json

import numpy as np
import pytest

from laurel_worlds.compare import ARMS, chain_world, compare, with_random_moves
from laurel_worlds.gridworld import cliff, gridworld
from laurel_worlds.planning import evaluate, uniform, value_iteration


@pytest.fixture(scope="module")
def exhibit():
    return compare(seeds=3, rounds=60)


def test_every_claim_holds_with_its_figures(exhibit):
    assert len(exhibit.claims) == 7
    assert all(claim.holds for claim in exhibit.claims), [
        claim for claim in exhibit.claims if not claim.holds
    ]


def test_the_figures_are_complete(exhibit):
    data = json.loads(json.dumps(exhibit.data))
    assert set(data) == {"cliff", "reuse", "horizon", "unknown"} and set(data["reuse"]) == set(ARMS)
    assert (
        len(data["cliff"]["SARSA"]["online"]) == 3
        and len(exhibit.tables) == 4
        and len(exhibit.charts) == 3
    )
    assert all(
        low <= y <= high
        for chart in exhibit.charts
        for curve in chart.curves.values()
        for _, y, low, high in curve
    )


def test_online_returns_come_near_their_exact_limits(exhibit):
    for figures in exhibit.data["cliff"].values():
        assert abs(np.mean(figures["online"]) - figures["limit_online"]) < 12
    assert exhibit.data["cliff"]["Q-learning"]["limit_greedy"] == -13


def test_the_soft_world_is_the_policy_with_mistakes():
    """A deterministic policy where actions go astray is worth what its epsilon-soft version is in
    the plain world.
    """
    mdp = gridworld(slip=0.2)
    policy_SA = np.eye(4)[np.random.default_rng(0).integers(0, 4, size=11)] * 0.9 + 0.1 * uniform(
        mdp
    )
    straying_SA = 0.8 * policy_SA + 0.2 * uniform(mdp)
    assert np.allclose(
        evaluate(with_random_moves(mdp, 0.2), policy_SA), evaluate(mdp, straying_SA), atol=1e-11
    )
    assert np.allclose(
        value_iteration(with_random_moves(mdp, 0.0)), value_iteration(mdp), atol=1e-11
    )
    assert np.allclose(
        evaluate(with_random_moves(cliff(), 1.0), policy_SA[:1].repeat(38, 0)),
        evaluate(cliff(), uniform(cliff())),
        rtol=1e-9,
    )


def test_the_row_of_moves_pays_the_share_of_first_actions():
    mdp = chain_world(5)
    assert evaluate(mdp, np.tile([0.8, 0.2], (6, 1)))[0] == pytest.approx(0.8)


def test_another_seed_is_another_experiment(exhibit):
    assert (
        compare(seeds=2, seed=7, rounds=2).data["cliff"]["SARSA"]["online"][0]
        != exhibit.data["cliff"]["SARSA"]["online"][0]
    )
