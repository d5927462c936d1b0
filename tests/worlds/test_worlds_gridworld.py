"""The gridworld: its moves, rewards and slips cell by cell, and the map that shows it."""

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel_worlds.gridworld import WORLDS, cell_of, cliff, corridor, gridworld, map_of
from laurel_worlds.planning import evaluate, optimal_actions, uniform, value_iteration


def outcomes(mdp, state, action):
    """{name of the state after: (probability, reward)} of one action, outcomes that lead to the
    same cell added up.
    """
    s, a = mdp.states.index(state), mdp.actions.index(action)
    found = {}
    for chance, after, reward in zip(
        mdp.prob_SAK[s, a], mdp.next_SAK[s, a], mdp.reward_SAK[s, a], strict=True
    ):
        name = mdp.states[after]
        found[name] = (found.get(name, (0.0, 0.0))[0] + chance, reward)
    return {
        name: (pytest.approx(chance), pytest.approx(reward))
        for name, (chance, reward) in found.items()
        if chance > 0
    }


def test_the_lectures_world_has_eleven_cells_and_two_ends():
    mdp = gridworld()
    assert (
        len(mdp.states) == 11
        and "(2,2)" not in mdp.states
        and mdp.actions == ("up", "down", "left", "right")
    )
    assert [mdp.states[state] for state in np.flatnonzero(mdp.terminal_S)] == ["(4,2)", "(4,3)"]
    assert mdp.states[int(mdp.start_S.argmax())] == "(1,1)" and mdp.gamma == 1


@pytest.mark.parametrize(
    ("state", "action", "after", "reward"),
    [
        ("(1,1)", "up", "(1,2)", -0.5),
        ("(1,1)", "left", "(1,1)", -0.5),  # the border
        ("(2,1)", "up", "(2,1)", -0.5),  # the wall
        ("(3,3)", "right", "(4,3)", 0.5),  # the move into an exit pays the step reward too
        ("(3,2)", "right", "(4,2)", -1.5),
    ],
)
def test_a_move_pays_the_step_and_the_exit(state, action, after, reward):
    assert outcomes(gridworld(step_reward=-0.5), state, action) == {after: (1, reward)}


def test_a_slip_goes_to_the_sides_and_never_back():
    assert outcomes(gridworld(slip=0.2), "(3,1)", "up") == {
        "(3,2)": (0.8, -0.04),
        "(2,1)": (0.1, -0.04),
        "(4,1)": (0.1, -0.04),
    }
    assert outcomes(gridworld(slip=0.2), "(3,2)", "up") == {
        "(3,3)": (0.8, -0.04),
        "(3,2)": (0.1, -0.04),
        "(4,2)": (0.1, -1.04),
    }


def test_a_pit_pays_and_puts_back():
    assert outcomes(cliff(), "(1,1)", "right") == {"(1,1)": (1, -100)}
    assert outcomes(cliff(), "(12,2)", "down") == {"(12,1)": (1, -1)}
    assert value_iteration(cliff())[0] == -13  # up, eleven to the right, down


def test_the_uniform_policy_on_the_corridor_has_the_known_values():
    mdp = corridor()
    assert np.allclose(
        evaluate(mdp, uniform(mdp)), [0, *(np.arange(1, 6) / 6), 0], atol=1e-12
    )  # up and down only cost time


def test_turning_the_map_over_turns_the_answer_over():
    """Mirrored left to right, left and right change places and no value changes."""
    here = gridworld(slip=0.3)
    there = gridworld(slip=0.3, walls=((3, 2),), exits={(1, 3): 1.0, (1, 2): -1.0}, start=(4, 1))
    value_S, mirrored_S = value_iteration(here), value_iteration(there)
    best_SA, turned_SA = (
        optimal_actions(here, value_S, 1e-7),
        optimal_actions(there, mirrored_S, 1e-7),
    )
    for state, name in enumerate(here.states):
        column, row = cell_of(name)
        twin = there.states.index(f"({5 - column},{row})")
        assert value_S[state] == pytest.approx(mirrored_S[twin], abs=1e-11)
        assert best_SA[state].tolist() == turned_SA[twin][[0, 1, 3, 2]].tolist()


def test_the_map_has_the_top_row_first_and_arrows_for_ties():
    mdp = gridworld()
    value_S = value_iteration(mdp)
    grid = map_of("", mdp, value_S, optimal_actions(mdp, value_S))
    assert grid.marks == (("→", "→", "→", "+1"), ("↑", "", "↑", "-1"), ("↑→", "→", "↑", "←"))
    assert (
        grid.values[1][1] is None
        and grid.values[0][3] == 0
        and grid.values[2][0] == pytest.approx(0.8)
    )


@pytest.mark.parametrize(
    "wrong", [{"walls": ((5, 1),)}, {"start": (2, 2)}, {"slip": 1.5}, {"exits": {(0, 1): 1.0}}]
)
def test_a_map_that_is_none_is_refused(wrong):
    with pytest.raises(UsageError, match="4 columns and 3 rows"):
        gridworld(**wrong)


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_takes_the_three_options(name):
    mdp = WORLDS[name](step_reward=-0.5, slip=0.1, gamma=0.9)
    assert (
        mdp.gamma == 0.9
        and np.isclose(mdp.reward_SAK[~mdp.terminal_S], -0.5).any()
        and mdp.prob_SAK.shape[2] == 3
    )
