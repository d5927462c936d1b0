"""How far an annotator and a batch are."""

from __future__ import annotations

import time
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from laurel.feedback.store import Store
from laurel.feedback.tables import Assignment, Item

COUNTED: dict[tuple[str, int], tuple[float, float, tuple[int, int]]] = {}
"""(store, batch): when its votes were counted, how long that took, and the counts."""
QUICK, RARE = 0.005, 1000.0
"""Seconds that counting may take every time; beyond, it takes at most one of so many seconds."""


class Progress(NamedTuple):
    """This annotator's `done` of `size` samples, states of those begun in order, and the batch's `votes` of `wanted`."""

    done: int
    size: int
    states: dict[int, str]
    votes: int
    wanted: int


def totals(store: Store, session: Session, batch: int) -> tuple[int, int]:
    """(votes, wanted) on the normal items of a batch. Counting a million takes a tenth of a second, so that is not done for every page."""
    began = time.monotonic()
    kept = COUNTED.get((store.url, batch))
    if kept is not None and kept[1] > QUICK and began - kept[0] < RARE * kept[1]:
        return kept[2]
    sums = func.coalesce(func.sum(Item.live), 0), func.coalesce(func.sum(Item.target), 0)
    live, wanted = session.execute(select(*sums).where(Item.batch_id == batch, Item.kind == "normal")).one()
    mine = Assignment.batch_id == batch, Assignment.state == "leased", Assignment.repeat == 0
    leased = select(func.count()).select_from(Assignment).join(Item).where(*mine, Item.kind == "normal")
    found = live - (session.scalar(leased) or 0), wanted
    COUNTED[store.url, batch] = began, time.monotonic() - began, found
    return found
