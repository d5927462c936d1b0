"""Learning from logs: fitted Q by hand and against planning, caution as a lower bound, and who wins
on which log.
"""

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel_worlds.gridworld import gridworld
from laurel_worlds.mdp import from_arrays
from laurel_worlds.offline import Log, fitted_q, join_logs, offline, record
from laurel_worlds.planning import q_values, uniform, value_iteration

END = from_arrays(
    np.array([[[0, 1.0], [0, 1.0]], [[0, 1.0], [0, 1.0]]]),
    np.zeros((2, 2)),
    gamma=0.9,
    terminal=[1],
)
TWICE = Log(np.array([0, 0]), np.array([0, 0]), np.array([1.0, 2.0]), np.array([1, 1]))


def test_one_action_seen_twice_by_hand():
    assert np.allclose(fitted_q(TWICE, END)[0], [1.5, 0])
    assert np.allclose(
        fitted_q(TWICE, END, caution=1.0, lowest=-3.0)[0], [1.5 - 1 / np.sqrt(2), -3]
    )
    assert np.allclose(fitted_q(TWICE, END, caution=50.0, lowest=-3.0)[0], [-3, -3])


def test_with_every_outcome_in_proportion_it_is_value_iteration():
    """A log in which each pair shows its outcomes exactly as often as they happen: fitted Q
    is Q*.
    """
    mdp = gridworld(slip=0.2, gamma=0.9)
    rows = [
        (s, a, mdp.reward_SAK[s, a, k], mdp.next_SAK[s, a, k])
        for s in np.flatnonzero(~mdp.terminal_S)
        for a in range(4)
        for k in range(3)
        for _ in range(round(10 * mdp.prob_SAK[s, a, k]))
    ]
    log = Log(*(np.array(column) for column in zip(*rows, strict=True)))
    exact = q_values(mdp, value_iteration(mdp))
    found = fitted_q(log, mdp)
    assert np.allclose(found[~mdp.terminal_S], exact[~mdp.terminal_S], atol=1e-10)
    careful = fitted_q(log, mdp, caution=0.1)
    assert (careful <= found + 1e-12).all() and (
        careful[~mdp.terminal_S] < found[~mdp.terminal_S] - 0.03
    ).all()


def test_the_order_of_a_log_does_not_matter():
    mdp = gridworld(slip=0.2, gamma=0.9)
    rng = np.random.default_rng(0)
    first, second = (
        record(mdp, uniform(mdp), episodes=5, horizon=20, noise=0.3, rng=rng) for _ in range(2)
    )
    assert np.allclose(
        fitted_q(join_logs(first, second), mdp, caution=0.2),
        fitted_q(join_logs(second, first), mdp, caution=0.2),
    )


def test_a_log_holds_true_steps_and_stops_at_the_end():
    mdp = gridworld(slip=0.2, gamma=0.9)
    log = record(
        mdp, uniform(mdp), episodes=50, horizon=30, noise=0.0, rng=np.random.default_rng(1)
    )
    assert not mdp.terminal_S[log.state_N].any() and mdp.terminal_S[log.next_N].any()
    assert (mdp.transition_SAZ[log.state_N, log.action_N, log.next_N] > 0).all()
    paid = {
        (int(s), int(a), int(z)): r
        for s, a, z, r in zip(log.state_N, log.action_N, log.next_N, log.reward_N, strict=True)
    }
    for (s, a, z), reward in paid.items():
        outcomes = np.flatnonzero((mdp.next_SAK[s, a] == z) & (mdp.prob_SAK[s, a] > 0))
        assert reward in mdp.reward_SAK[s, a, outcomes]


def test_the_noise_of_a_log_has_its_size():
    mdp = gridworld(gamma=0.9)
    log, clean = (
        record(mdp, uniform(mdp), episodes=400, horizon=30, noise=n, rng=np.random.default_rng(2))
        for n in (0.5, 0.0)
    )
    spread = (log.reward_N - clean.reward_N).std()
    assert abs(spread - 0.5) < 4 * 0.5 / np.sqrt(2 * len(log.reward_N))


def test_caution_is_a_lower_bound_and_its_absence_promises_too_much():
    """One state, 20 actions worth 0 that end at once, each seen 4 times in noise of sd 1: the best
    looks like E max of 20 N(0, 1/4).
    """
    mdp = from_arrays(
        np.broadcast_to(np.eye(2)[1], (2, 20, 2)), np.zeros((2, 20)), gamma=0.9, terminal=[1]
    )
    naive, careful = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        log = Log(
            np.zeros(80, dtype=int),
            np.repeat(np.arange(20), 4),
            rng.normal(size=80),
            np.ones(80, dtype=int),
        )
        naive.append(fitted_q(log, mdp)[0].max())
        careful.append(fitted_q(log, mdp, caution=3.0)[0].max())
    assert abs(np.mean(naive) - 0.5 * 1.86748) < 4 * np.std(naive) / np.sqrt(
        200
    )  # E max of 20 standard normals
    assert np.mean(np.array(careful) > 0) < 0.1


def test_the_experiment_and_its_claims():
    shown = offline(episodes=(20, 120), seeds=12, seed=5)
    assert all(claim.holds for claim in shown.claims), shown.claims
    clones = [row for row in shown.tables[0].rows if row[:3] == ("good", 120, "cloning")]
    assert clones[0][3] == pytest.approx(shown.data["demonstrator"], abs=0.02)
    reckless = offline(episodes=(20, 120), seeds=6, caution=0.0, lowest=0.0)
    assert not all(claim.holds for claim in reckless.claims)
    with pytest.raises(UsageError):
        offline(episodes=())
