"""The lectures' gridworld and its relatives, and a map of values and best actions to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from laurel.core.errors import UsageError
from laurel.report.exhibit import Grid
from laurel_worlds.mdp import MDP

Cell = tuple[int, int]

MOVES: dict[str, Cell] = {"up": (0, 1), "down": (0, -1), "left": (-1, 0), "right": (1, 0)}
ARROWS: dict[str, str] = {"up": "↑", "down": "↓", "left": "←", "right": "→"}


def gridworld(
    *,
    step_reward: float = -0.04,
    slip: float = 0.0,
    gamma: float = 1.0,
    columns: int = 4,
    rows: int = 3,
    walls: Sequence[Cell] = ((2, 2),),
    exits: Mapping[Cell, float] | None = None,
    pits: Mapping[Cell, float] | None = None,
    start: Cell = (1, 1),
) -> MDP:
    """A map of cells (column, row), counted from the bottom left.

    States are named "(1,1)" and so on, walls are none.

        r                          = step_reward + exits[cell entered]
        p(the way meant)           = 1 - slip
        p(each way at right angle) = slip / 2

    Bumping into a wall or the border stays and pays the step reward. Entering an exit ends the
    episode; entering a pit pays and puts back to the start. The default map is the lectures': 4 x
    3, a wall at (2,2), +1 at (4,3), -1 at (4,2). At slip = 0.2 and step_reward = -0.04 it is
    Russell and Norvig's (Artificial Intelligence, 3rd edition, section 17.1), with the same values:
    they pay the step reward in every cell left, we on every move, and those are equally many.
    """
    exits, pits = {(4, 3): 1.0, (4, 2): -1.0} if exits is None else exits, pits or {}
    inside = [(column, row) for row in range(1, rows + 1) for column in range(1, columns + 1)]
    cells = [cell for cell in inside if cell not in walls and cell not in pits]
    wrong = ""
    if start not in cells or not 0 <= slip <= 1:
        wrong = "the start must be a free cell and the slip between 0 and 1."
    if outside := [cell for cell in (*walls, *exits, *pits, start) if cell not in inside]:
        wrong = f"cell {outside[0]} is not on the map."
    if wrong:
        size = f"The map has {columns} columns and {rows} rows, counted from 1."
        raise UsageError(wrong, where="gridworld", fix=size)
    return _grid_mdp(cells, exits, pits, start, step_reward=step_reward, slip=slip, gamma=gamma)


def _grid_mdp(
    cells: Sequence[Cell],
    exits: Mapping[Cell, float],
    pits: Mapping[Cell, float],
    start: Cell,
    *,
    step_reward: float,
    slip: float,
    gamma: float,
) -> MDP:
    """The MDP whose states are these cells."""
    index = {cell: state for state, cell in enumerate(cells)}
    entered_SAK = _entered_cells(index, pits)
    shape = (len(cells), len(MOVES), 3)
    prob_SAK, next_SAK, reward_SAK = np.zeros(shape), np.zeros(shape, dtype=int), np.zeros(shape)
    prob_SAK[:] = [1 - slip, slip / 2, slip / 2]
    for place in np.ndindex(shape):
        cell = entered_SAK[place]
        next_SAK[place] = index[start if cell in pits else cell]
        reward_SAK[place] = step_reward + exits.get(cell, 0.0) + pits.get(cell, 0.0)
    outcomes = 1 if slip == 0 else 3  # without slip only the way meant is an outcome
    return MDP(
        prob_SAK[..., :outcomes],
        next_SAK[..., :outcomes],
        reward_SAK[..., :outcomes],
        gamma=gamma,
        terminal_S=np.array([cell in exits for cell in cells]),
        start_S=np.eye(len(cells))[index[start]],
        states=tuple(f"({column},{row})" for column, row in cells),
        actions=tuple(MOVES),
    )


def _entered_cells(
    index: Mapping[Cell, int], pits: Mapping[Cell, float]
) -> dict[tuple[int, ...], Cell]:
    """(state, action, outcome) -> the cell entered; outcomes: ahead, then both sides."""
    found: dict[tuple[int, ...], Cell] = {}
    for (column, row), state in index.items():
        for action, ahead in enumerate(MOVES.values()):
            # the ways at right angles are those whose product with the way ahead is 0
            sides = (side for side in MOVES.values() if np.dot(side, ahead) == 0)
            for outcome, (dx, dy) in enumerate((ahead, *sides)):
                target = (column + dx, row + dy)
                free = target in index or target in pits
                found[state, action, outcome] = target if free else (column, row)
    return found


def cliff(*, step_reward: float = -1.0, slip: float = 0.0, gamma: float = 1.0) -> MDP:
    """12 x 4: walk from (1,1) to (12,1) past a cliff of ten cells.

    A fall pays -99 beside the step reward and puts back to the start.

    The shortest path runs along the edge (13 moves), the safe one a row or two further in. Sutton
    and Barto 2018, example 6.6.
    """
    return gridworld(
        step_reward=step_reward,
        slip=slip,
        gamma=gamma,
        columns=12,
        rows=4,
        walls=(),
        exits={(12, 1): 0.0},
        pits={(column, 1): -99.0 for column in range(2, 12)},
    )


def corridor(*, step_reward: float = 0.0, slip: float = 0.0, gamma: float = 1.0) -> MDP:
    """A random walk: seven cells in a row, start in the middle.

    0 at the left end, +1 at the right; left and right are the walk's two ways.

    At step_reward = 0 the uniform policy's values are 1/6 ... 5/6. Sutton and Barto 2018, example
    6.2.
    """
    return gridworld(
        step_reward=step_reward,
        slip=slip,
        gamma=gamma,
        columns=7,
        rows=1,
        walls=(),
        exits={(1, 1): 0.0, (7, 1): 1.0},
        start=(4, 1),
    )


WORLDS: dict[str, Callable[..., MDP]] = {
    "gridworld": gridworld,
    "cliff": cliff,
    "corridor": corridor,
}
"""name: its maker, which takes step_reward, slip and gamma."""


def cell_of(state: str) -> Cell:
    """The (column, row) that the name of a state says: "(4,1)" -> (4, 1)."""
    column, row = state.strip("()").split(",")
    return int(column), int(row)


def map_of(title: str, mdp: MDP, value_S: np.ndarray, best_SA: np.ndarray) -> Grid:
    """Values and best actions laid out as the map: arrows where a choice is open ("↑→" for a tie).

    An exit shows what it pays.

    value_S [S], best_SA [S, A] bool. Cells that are no states (walls, pits) have value None and the
    mark "".
    """
    where = {cell_of(name): state for state, name in enumerate(mdp.states)}
    columns, rows = max(column for column, _ in where), max(row for _, row in where)
    values: list[tuple[float | None, ...]] = []
    marks: list[tuple[str, ...]] = []
    for row in range(rows, 0, -1):
        line = [where.get((column, row)) for column in range(1, columns + 1)]
        values.append(tuple(None if state is None else float(value_S[state]) for state in line))
        marks.append(
            tuple("" if state is None else _mark(mdp, state, best_SA[state]) for state in line)
        )
    return Grid(title, tuple(values), tuple(marks))


def _mark(mdp: MDP, state: int, best_A: np.ndarray) -> str:
    if not mdp.terminal_S[state]:
        return "".join(ARROWS[mdp.actions[action]] for action in np.flatnonzero(best_A))
    paid = mdp.reward_SAK[
        (mdp.next_SAK == state) & (mdp.prob_SAK > 0) & ~mdp.terminal_S[:, None, None]
    ]
    return "end" if not len(paid) else f"{paid[0] - _step_reward(mdp):+g}"


def _step_reward(mdp: MDP) -> float:
    return float(np.median(mdp.reward_SAK[~mdp.terminal_S]))
