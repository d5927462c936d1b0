"""Any MDP as a Gymnasium environment (the optional extra `gym`)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from laurel.core.errors import UsageError
from laurel_worlds.gridworld import gridworld, map_of
from laurel_worlds.mdp import MDP, Simulator

try:
    import gymnasium
except ModuleNotFoundError as error:
    raise UsageError(
        "gymnasium is not installed.",
        where="laurel_worlds.gym",
        fix="Run: pip install 'laurel-rl[gym]'",
    ) from error


class GridworldEnv(gymnasium.Env[Any, Any]):
    """The lectures' gridworld, or the MDP given, as a Gymnasium environment.

    Observation and action are numbers; the names are in `mdp.states`, `mdp.actions`.

    `info` of reset and step holds the name of the state. `render_mode="ansi"`: render gives the map
    as text, "o" where we are (for worlds whose states are cells; of others the name of the state).
    Episodes are not broken off: wrap it in gymnasium.wrappers.TimeLimit for that.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(self, mdp: MDP | None = None, *, render_mode: str | None = None) -> None:
        self.mdp = gridworld() if mdp is None else mdp
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UsageError(
                f"unknown render mode {render_mode!r}.",
                where="GridworldEnv",
                fix="There is `ansi`.",
            )
        self.observation_space = gymnasium.spaces.Discrete(len(self.mdp.states))
        self.action_space = gymnasium.spaces.Discrete(len(self.mdp.actions))
        self.render_mode = render_mode
        self._simulator: Simulator | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Begin an episode: (state, info). The same seed gives the same episodes; options={"state":
        3} begins there.
        """
        super().reset(seed=seed)
        if seed is not None or self._simulator is None:
            self._simulator = self.mdp.simulator(self.np_random)
        state = self._simulator.reset((options or {}).get("state"))
        return state, {"state": self.mdp.states[state]}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """(state, reward, terminated, truncated, info) of one move."""
        if self._simulator is None:
            raise UsageError("call reset before step.", where="GridworldEnv")
        state, reward, terminated = self._simulator.step(int(action))
        return state, reward, terminated, False, {"state": self.mdp.states[state]}

    def render(self) -> str | None:
        """The map as text, one line per row, top row first; None without a render mode."""
        if self.render_mode is None or self._simulator is None:
            return None
        here, (S, A) = self._simulator.state, self.mdp.reward_SA.shape
        if not all(name.startswith("(") for name in self.mdp.states):
            return self.mdp.states[here]
        grid = map_of("", self.mdp, np.arange(S, dtype=float), np.zeros((S, A), dtype=bool))
        lines = [
            [
                "#" if number is None else "o" if number == here else mark or "."
                for number, mark in zip(*row, strict=True)
            ]
            for row in zip(grid.values, grid.marks, strict=True)
        ]
        return "\n".join(" ".join(f"{cell:>2}" for cell in line) for line in lines)
