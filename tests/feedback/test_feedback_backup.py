"""Copies of a database in use: whole, counted, restorable; and a server that is killed between
click and answer loses nothing.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select
from test_feedback_assign import annotator, make_batch

from laurel.core.errors import LaurelError, UsageError
from laurel_feedback.store import backup as room
from laurel_feedback.store.assign import Answer, TaskQueue
from laurel_feedback.store.audit import verify
from laurel_feedback.store.backup import backup, count_rows
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Vote


def used(store):
    """Some answers in a database, one with text that a dump must escape."""
    queue = TaskQueue(
        store, annotator(store, person="Ada\n\\."), make_batch(store, rationale="optional")
    )
    for n in range(3):
        queue.submit(
            queue.next().id, Answer(rating=1, rationale="line\nCOPY vote \\. \t end"), f"k{n}"
        )


def test_a_copy_can_be_put_back(store, url, tmp_path):
    used(store)
    before = count_rows(store)
    counts = backup(store, tmp_path / "copy")
    assert counts == before and counts["vote"] == 3
    if store.sqlite:
        again = Store(str(tmp_path / "copy"))
    else:
        url = url.rsplit("/", 1)[0] + "/restored"
        with create_engine(store.url, isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE restored")
        program = shutil.which("pg_restore") or str(
            sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_restore"))[-1]
        )
        subprocess.run(
            [program, "--no-owner", f"--dbname={url}", str(tmp_path / "copy")],
            check=True,
            env=os.environ,
        )
        again = Store(url)
    assert count_rows(again) == before
    with again.read() as session:
        assert verify(session) == []
        assert [vote.rationale for vote in session.scalars(select(Vote))] == [
            "line\nCOPY vote \\. \t end"
        ] * 3
    again.close()


def test_a_copy_that_is_not_whole_is_none(store, tmp_path, monkeypatch):
    used(store)
    real = count_rows
    monkeypatch.setattr(
        room, "count_rows", lambda s: {**real(s), "vote": real(s)["vote"] + (s is store)}
    )
    with pytest.raises(LaurelError, match=r"vote 3 of 4"):
        backup(store, tmp_path / "copy")
    assert list(tmp_path.glob("*copy*")) == []
    with pytest.raises(UsageError, match="no such folder"):
        backup(store, tmp_path / "nowhere" / "copy")
