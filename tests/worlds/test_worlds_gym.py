"""The Gymnasium environment: Gymnasium's own checker, agreement with the simulator, what it shows,
and life without Gymnasium.
"""

import subprocess
import sys
import warnings

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel_worlds.gridworld import cliff, gridworld
from laurel_worlds.mdp import from_arrays

CHAIN = from_arrays(
    np.array([[[0, 1], [1, 0]], [[0, 1], [0, 1]]]), np.array([1.0, 0.0]), terminal=[1]
)


@pytest.fixture
def make():
    pytest.importorskip("gymnasium")
    from laurel_worlds.gym import GridworldEnv

    return GridworldEnv


@pytest.mark.parametrize(
    "mdp",
    [None, gridworld(slip=0.2), cliff(), CHAIN],
    ids=["default", "slippery", "cliff", "chain"],
)
def test_gymnasiums_checker_has_nothing_to_say(make, mdp):
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*alternative render modes.*"
        )  # that needs a registered environment
        check_env(make(mdp, render_mode="ansi"))


def test_it_is_the_simulator_and_a_seed_repeats_it(make):
    mdp = gridworld(slip=0.3)
    env = make(mdp)

    def walk(seed):
        trail = [env.reset(seed=seed)[0]]
        for action in range(40):
            state, reward, terminated, truncated, info = env.step(action % 4)
            assert (
                info["state"] == mdp.states[state] and not truncated and isinstance(reward, float)
            )
            trail += [state, reward, terminated]
            if terminated:
                env.reset()
        return trail

    assert walk(5) == walk(5) != walk(6)
    simulator = mdp.simulator(np.random.default_rng(5))
    assert env.reset(seed=5)[0] == simulator.reset()
    for action in (0, 0, 3, 1):
        assert env.step(action)[:3] == simulator.step(action)


def test_the_map_shows_where_we_are(make):
    env = make(render_mode="ansi")
    env.reset(seed=0)
    env.step(3)
    assert [line.split() for line in env.render().splitlines()] == [
        [".", ".", ".", "+1"],
        [".", "#", ".", "-1"],
        [".", "o", ".", "."],
    ]
    assert make().render() is None
    chain = make(CHAIN, render_mode="ansi")
    chain.reset(seed=0)
    assert chain.render() == "0"


def test_wrong_use_is_refused(make):
    with pytest.raises(UsageError, match="reset before step"):
        make().step(0)
    with pytest.raises(UsageError, match="There is `ansi`"):
        make(render_mode="human")


def test_an_episode_begins_where_it_is_told(make):
    assert make().reset(seed=0, options={"state": 3})[0] == 3


def test_without_gymnasium_the_error_names_the_extra():
    code = "import sys; sys.modules['gymnasium'] = None; import laurel_worlds.gym"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "pip install 'laurel-rl[gym]'" in done.stderr
