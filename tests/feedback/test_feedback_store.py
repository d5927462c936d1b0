"""The database: migrations make what the tables say, two kinds of transaction, and what is
refused.
"""

import re
import sqlite3
import subprocess
import sys
import uuid

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text
from test_feedback_assign import annotator as join
from test_feedback_assign import make_batch

from laurel.core.errors import UsageError
from laurel_feedback.store import accounts, audit
from laurel_feedback.store.assign import Answer, TaskQueue
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Audit, Base, Guideline, Vote


def test_the_migrated_database_is_what_the_tables_say(store):
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_opening_twice_migrates_once(store):
    again = Store(store.engine.url.render_as_string(hide_password=False))
    with again.read() as session:
        assert session.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [
            "0003"
        ]
    again.close()


def test_processes_that_open_a_new_database_at_once_all_find_it_whole(tmp_path):
    code = (
        "import sys; from laurel_feedback.store.database import Store; Store(sys.argv[1]).close()"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "new.db")], stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    assert [(p.communicate()[1].decode()[-300:], p.returncode) for p in started] == [("", 0)] * 4


def test_an_exception_undoes_a_transaction(store):
    with pytest.raises(RuntimeError), store.write() as session:
        session.add(Guideline(text="half", made_at=0.0))
        session.flush()
        raise RuntimeError
    with store.read() as session:
        assert session.scalars(select(Guideline)).all() == []


def test_a_newer_database_is_refused(store):
    with store.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UsageError, match="newer laurel"):
        Store(store.engine.url.render_as_string(hide_password=False))


def test_a_database_of_something_else_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(UsageError, match="something else: songs"):
        Store(str(tmp_path / "other.db"))


@pytest.mark.parametrize("url", ["nosuch://here/db", "postgresql://127.0.0.1:1/none"])
def test_an_address_that_does_not_answer_is_told(url):
    with pytest.raises(UsageError, match=r"not a database's address|cannot be used"):
        Store(url)


def write_rows(store, count=5):
    with store.write() as session:
        for i in range(count):
            audit.record(session, "someone", "act", f"thing {i}", 1.5 * i, size=i)


def test_an_audit_log_is_whole_until_it_is_touched(store):
    write_rows(store)
    with store.read() as session:
        assert audit.verify(session) == []


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE id = 3", "row 3 .* was changed"),
        ("DELETE FROM audit WHERE id = 3", "row 3 is missing"),
        ("DELETE FROM audit WHERE id = 1", "row 1 is missing"),
        ("UPDATE audit SET made_at = 99 WHERE id = 5", "row 5 .* was changed"),
        ("UPDATE audit SET detail = '{\"size\": 7}' WHERE id = 2", "row 2 .* was changed"),
        ("DELETE FROM audit WHERE id = 5", "missing at its end"),
    ],
)
def test_tampering_with_the_audit_log_shows(store, harm, told):
    write_rows(store)
    with store.read() as session:
        head = session.scalars(select(Audit.hash).order_by(Audit.id)).all()[-1]
    with store.write() as session:
        session.execute(text(harm))
    with store.read() as session:
        wrong = audit.verify(session, head)
    assert wrong
    assert any(re.search(told, line) for line in wrong), wrong


def test_a_row_rewritten_with_a_right_hash_breaks_the_chain(store):
    write_rows(store)
    with store.write() as session:
        row = session.get(Audit, 2)
        row.actor = "nobody"
        row.hash = audit.digest_of(row)
    with store.read() as session:
        assert audit.verify(session) == ["row 3 does not follow the row before it"]


def test_no_password_is_shown():
    with pytest.raises(UsageError) as refused:
        Store("postgresql://someone:secretpw@127.0.0.1:1/none")
    assert "secretpw" not in str(refused.value)
    assert "someone" in str(refused.value)


@pytest.mark.parametrize("name", ["what?.db", "a#b.db", "a%20b.db"])
def test_a_name_that_would_be_taken_for_something_else_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="is not taken"):
        Store(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_database_is_told(tmp_path):
    (tmp_path / "letter.db").write_text("Dear all, " * 500)
    for path in (tmp_path / "letter.db", tmp_path):
        with pytest.raises(UsageError, match="Name a database that laurel made"):
            Store(str(path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE vote SET rating = 4 WHERE id = 2", "vote 2 was changed"),
        ("UPDATE vote SET rationale = 'another' WHERE id = 3", "vote 3 was changed"),
        ("UPDATE vote SET made_at = made_at + 1 WHERE id = 1", "vote 1 was changed"),
        ("DELETE FROM vote WHERE id = 3", "vote 3 was taken out"),
        (
            "UPDATE annotator SET state = 'erased'; DELETE FROM vote WHERE id = 1",
            "vote 1 was taken out",
        ),
    ],
)
def test_a_vote_that_is_changed_behind_the_products_back_shows(store, change, told):
    """The log covers votes: changed, taken out, added, each is named; a withdrawal is no change."""
    batch = make_batch(store, items=3, rationale="optional")
    queue = TaskQueue(store, join(store), batch)
    for _ in range(3):
        queue.submit(queue.next().id, Answer(rating=1, rationale="because"), str(uuid.uuid4()))
    with store.read() as session:
        assert audit.verify(session) == []
    with store.write() as session:
        for line in change.split("; "):
            session.execute(text(line))
    with store.read() as session:
        assert audit.verify(session) == [told]


def test_votes_that_are_added_show_and_those_of_who_left_do_not(store):
    batch = make_batch(store, items=3)
    who = join(store)
    queue = TaskQueue(store, who, batch)
    votes = [queue.submit(queue.next().id, Answer(rating=1), str(uuid.uuid4())) for _ in range(2)]
    with store.write() as session:
        session.add(
            Vote(
                assignment_id=votes[0].assignment_id,
                revision=9,
                key="forged-key",
                rating=4,
                scales={},
                made_at=store.now(),
            )
        )
    with store.read() as session:
        assert audit.verify(session) == ["vote 3 is in no row of the log"]
    with store.write() as session:
        session.execute(text("DELETE FROM vote WHERE id = 3"))
    accounts.withdraw(store, who, erase=True)
    with store.read() as session:
        assert audit.verify(session) == []
        assert session.scalars(select(Vote)).all() == []
