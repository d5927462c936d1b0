"""The verb solve: what --json prints, the step rewards where the policy changes, and claims that
can fail.
"""

import json

import numpy as np
import pytest

from laurel_worlds.gridworld import gridworld
from laurel_worlds.planning import (
    evaluate,
    names_of,
    optimal_actions,
    policy_iteration,
    value_iteration,
)
from laurel_worlds.solve import default_moves, learned_row, solve, switch_points


@pytest.mark.parametrize(("step_reward", "slip"), [(-2.0, 0.0), (-0.04, 0.2), (0.0, 0.0)])
def test_the_figures_are_the_planners(step_reward, slip):
    mdp = gridworld(step_reward=step_reward, slip=slip)
    exhibit = solve(step_reward=step_reward, slip=slip, seeds=0)
    data = json.loads(json.dumps(exhibit.data))
    assert (
        set(data["values"])
        == set(data["optimal_actions"])
        == {name for name in mdp.states if name not in ("(4,2)", "(4,3)")}
    )
    value_S = value_iteration(mdp)
    assert all(
        value == pytest.approx(value_S[mdp.states.index(name)], abs=1e-9)
        for name, value in data["values"].items()
    )
    assert data["optimal_actions"] == names_of(mdp, optimal_actions(mdp, value_S, 1e-7))
    assert (
        max(data["gaps"].values()) < 1e-9
        and data["same_actions"]
        and all(claim.holds for claim in exhibit.claims)
    )


def test_switches_without_slips():
    """(4,1) goes for the -1 exit below -2/3: 5 more moves x step = 2 less; (3,2) below -2."""
    first, second = switch_points(lambda reward: gridworld(step_reward=reward))
    assert first["step_reward"] == pytest.approx(-2, abs=3e-6) and second[
        "step_reward"
    ] == pytest.approx(-2 / 3, abs=3e-6)
    assert first["changes"]["(3,2)"] == (["right"], ["up"])
    assert second["changes"] == {"(4,1)": (["up"], ["left"])}


def test_at_a_switch_the_policies_of_both_sides_are_worth_the_same():
    """With slips there are eight. By linear solves: each side's policy beats the other's on its own
    side, and they tie between.
    """

    def worth(policy_SA, step_reward, state):
        mdp = gridworld(step_reward=step_reward, slip=0.2)
        return evaluate(mdp, policy_SA)[mdp.states.index(state)]

    rows = switch_points(lambda reward: gridworld(step_reward=reward, slip=0.2))
    assert len(rows) == 8
    for row in rows:
        switch, (state, *others) = row["step_reward"], row["changes"]
        below_SA, above_SA = (
            policy_iteration(gridworld(step_reward=switch + side, slip=0.2))[0]
            for side in (-1e-4, 1e-4)
        )
        assert not others and (below_SA != above_SA).any()
        assert worth(below_SA, switch, state) == pytest.approx(
            worth(above_SA, switch, state), abs=3e-5
        )
        assert worth(below_SA, switch - 1e-3, state) > worth(above_SA, switch - 1e-3, state)
        assert worth(below_SA, switch + 1e-3, state) < worth(above_SA, switch + 1e-3, state)


def test_learners_are_shown_with_their_ties():
    exhibit = solve(step_reward=-2.0, seeds=1)
    assert [row["learner"] for row in exhibit.data["learners"]] == ["Q-learning", "SARSA"]
    for row in exhibit.data["learners"]:
        assert row["wrong"] == [] and row["ends"] and row["lost"] == pytest.approx(0, abs=1e-9)
        assert set(row["tied"]) == {"(1,1)", "(3,1)", "(3,2)"} and row["tied"]["(3,2)"] in (
            "up",
            "right",
        )
    assert exhibit.claims[-1].holds and len(exhibit.tables) == 2


def test_the_claim_about_learners_can_fail():
    exhibit = solve(slip=0.2, seeds=1, steps=50)
    assert not exhibit.claims[-1].holds and "seed 0" in exhibit.claims[-1].evidence


def test_a_free_step_says_that_best_moves_may_never_arrive():
    exhibit = solve(step_reward=0.0, seeds=0)
    assert any("never end" in note for note in exhibit.notes)
    assert not solve(step_reward=-0.04, seeds=0).notes


def test_thresholds_are_a_table():
    exhibit = solve(seeds=0, thresholds=True)
    assert [round(row["step_reward"], 4) for row in exhibit.data["switches"]] == [-2.0, -0.6667]
    assert exhibit.tables[-1].rows[-1] == (-0.66667, "(4,1)", "up", "left")


def test_a_learner_gets_more_moves_where_chance_rules():
    assert default_moves(gridworld(slip=0.2)) > 5 * default_moves(gridworld()) == 5 * 36 * 1100
    mdp = gridworld()
    row = learned_row(mdp, np.ones((11, 4), dtype=bool), "SARSA", 0, 100)
    assert row["wrong"] == [] and len(row["tied"]) == 9
