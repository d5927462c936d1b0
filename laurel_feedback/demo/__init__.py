"""A small example with which every page can be seen.

Pairs to rate, answers to rank, questions about the guidelines, gold items.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select

from laurel.core.errors import UsageError
from laurel_feedback.exchange.load import import_file
from laurel_feedback.statistics.batches import open_batch
from laurel_feedback.store import accounts
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Batch, Guideline

HERE = Path(__file__).parent
BATCHES = {
    "pairs": BatchSettings(
        target_votes=3,
        hit_size=14,
        needs_check=True,
        gold_share=0.15,
        helpfulness=True,
        rationale="optional",
        pay_per_item=0.25,
        expected_seconds=40.0,
        pay_floor=12.0,
    ),
    "rankings": BatchSettings(
        target_votes=3,
        hit_size=4,
        form="ranking",
        pay_per_item=0.6,
        expected_seconds=90.0,
        pay_floor=12.0,
    ),
}


class Demo(NamedTuple):
    """What is needed to log in to the demonstration.

    An annotator's pseudonym and the token of their invitation, the coordinator's name and password.
    """

    pseudonym: str
    token: str
    admin: str
    password: str


def fill(store: Store) -> Demo:
    """Put the example into an empty database. The password is random and told only here."""
    with store.read() as session:
        names = set(session.scalars(select(Batch.name)))
        if names >= BATCHES.keys():
            raise UsageError(
                "the database has the example already.",
                where="--demo",
                fix="Leave --demo out to serve it again.",
            )
        if names:
            raise UsageError(
                "the database has batches already.",
                where="--demo",
                fix="Give a new database: --database demo.db.",
            )
    with store.write() as session:
        session.add(
            Guideline(
                text=(HERE / "guidelines.md").read_text(encoding="utf-8"), made_at=store.now()
            )
        )
    for name, settings in BATCHES.items():
        made = import_file(store, HERE / f"{name}.jsonl", name, settings=settings, actor="demo")
        open_batch(store, made.batch, actor="demo")
    password = secrets.token_urlsafe(15)
    accounts.add_admin(store, "admin", password)
    pseudonym, token = accounts.invite_annotator(store)
    return Demo(pseudonym, token, "admin", password)
