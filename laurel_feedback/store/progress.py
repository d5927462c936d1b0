"""How far an annotator and a batch are."""

from __future__ import annotations

import time
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Assignment, Item

COUNTED: dict[tuple[str, int], tuple[float, tuple[int, int]]] = {}
"""(store, batch): when its votes were counted, and the counts."""
MANY, SECONDS = 20_000, 60.0
"""Wanted votes beyond which a count is kept for so long."""


class Progress(NamedTuple):
    """How far an annotator is, and the batch.

    This annotator's `done` of `size` samples, states of those begun in order, and the batch's
    `votes` of `wanted`.
    """

    done: int
    size: int
    states: dict[int, str]
    votes: int
    wanted: int


def totals(store: Store, session: Session, batch: int) -> tuple[int, int]:
    """(votes, wanted) on the normal items of a batch.

    Counting a million takes a tenth of a second, so that is not done for every page.
    """
    now, kept = time.monotonic(), COUNTED.get((store.url, batch))
    if kept is not None and kept[1][1] > MANY and now - kept[0] < SECONDS:
        return kept[1]
    sums = func.coalesce(func.sum(Item.live), 0), func.coalesce(func.sum(Item.target), 0)
    live, wanted = session.execute(
        select(*sums).where(Item.batch_id == batch, Item.kind == "normal")
    ).one()
    mine = Assignment.batch_id == batch, Assignment.state == "leased", Assignment.repeat == 0
    leased = (
        select(func.count()).select_from(Assignment).join(Item).where(*mine, Item.kind == "normal")
    )
    found = live - (session.scalar(leased) or 0), wanted
    COUNTED[store.url, batch] = now, found
    return found
