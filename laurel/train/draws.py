"""Which rows a step draws, on every process, and which other rows they need beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from laurel.data.source import Row
from laurel.data.split import take
from laurel.rollout.given import partners
from laurel.train import parallel

if TYPE_CHECKING:
    from laurel.train.checkpoint import State
    from laurel.train.setup import Setup


def next_rows(setup: Setup, state: State, count: int) -> list[Row]:
    """The next `count` rows for this rank; the cursor moves by what all ranks take, so no row is
    drawn twice in an epoch.

    The epoch becomes part of a row's id (`row~epoch`): a prompt that two epochs bring into one step
    is two groups.
    """
    counts = parallel.gather(count)
    start = state.cursor + sum(counts[: parallel.rank()])
    state.cursor += sum(counts)
    return drawn(setup, start, count)


def drawn(setup: Setup, start: int, count: int) -> list[Row]:
    """The rows of `count` draws after `start` earlier ones, each named by its epoch, too."""
    positions = take(start, count, len(setup.rows), setup.config.seed)
    draws = zip(range(start, start + count), positions, strict=True)
    return [
        replace(setup.rows[i], id=f"{setup.rows[i].id}~{draw // len(setup.rows)}")
        for draw, i in draws
    ]


def beside(setup: Setup, state: State, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """What rows of data need of others: of labelled answers, the row whose answer stands beside
    each in this step, on any process.
    """
    if setup.row.source != "labels":
        return {}
    count = setup.config.prompts_per_step
    return {
        "others": partners(
            rows,
            drawn(setup, state.cursor - count, count),
            drawn(setup, state.cursor, len(setup.rows)),
        )
    }
