"""`laurel feedback`: files in and out, people, keys, the audit log, copies, and a server that
answers.
"""

import json
import re
import socket
import sqlite3
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from sqlalchemy import select, text

from laurel.cli.main import main
from laurel_feedback import demo
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, ApiKey, Assignment, Audit, Batch, Item, Vote

sys.path.insert(0, str(Path(__file__).parents[1] / "feedback"))
from feedback_server import free_port, served

ROWS = [
    {"prompt": f"Name tree {n}.", "chosen": f"Laurel {n}.", "rejected": f"A stone {n}."}
    for n in range(4)
]


@pytest.fixture
def database(tmp_path, monkeypatch):
    """A folder with a file of preferences, imported into ./feedback.db."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]])
    )
    assert (
        main(
            [
                "feedback",
                "import",
                "rows.jsonl",
                "--batch",
                "b",
                "--set",
                "target_votes=2",
                "hit_size=9",
            ]
        )
        == 0
    )
    store = Store("feedback.db")
    yield store
    store.close()


def rated(store):
    """One person has said that each item's first response is better."""
    with store.write() as session:
        person = Annotator(pseudonym="ada", state="active", consent="keep 1", made_at=0)
        session.add(person)
        session.flush()
        for n, item in enumerate(session.scalars(select(Item)).all(), 1):
            item.live += 1
            session.add(
                Assignment(
                    id=f"a{n}",
                    item_id=item.id,
                    annotator_id=person.id,
                    batch_id=item.batch_id,
                    seq=n,
                    state="submitted",
                    lease_until=0,
                    order=[1, 0],
                    made_at=0,
                )
            )
            session.flush()
            session.add(Vote(assignment_id=f"a{n}", revision=1, key=f"k{n}", rating=1, made_at=0))


def test_import_says_what_was_left_out_and_keeps_settings(database, capsys):
    with database.read() as session:
        batch = session.scalar(select(Batch))
        assert (batch.state, batch.settings["target_votes"], batch.settings["hit_size"]) == (
            "draft",
            2,
            9,
        )
        assert len(session.scalars(select(Item)).all()) == 4
    assert main(["feedback", "import", "rows.jsonl", "--batch", "b"]) == 0
    printed = capsys.readouterr().out
    assert "left out: rows.jsonl:5: the same as" in printed and re.search(
        r"items added +0", printed
    )
    assert main(["feedback", "import", "rows.jsonl", "--batch", "c", "--set", "target_vote=2"]) == 2
    assert "target_vote" in capsys.readouterr().err


def test_export_and_erase(database, tmp_path, capsys):
    assert main(["feedback", "export", "out.jsonl", "--batch", "b"]) == 2
    rated(database)
    assert main(["feedback", "export", "out.jsonl", "--batch", "b", "--columns", "weight"]) == 0
    assert re.search(r"rows +4", capsys.readouterr().out)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and "weight" in rows[0] and "margin" not in rows[0]
    assert main(["feedback", "erase", "ada"]) == 0
    assert str(tmp_path / "out.jsonl") in capsys.readouterr().out
    assert main(["feedback", "erase", "ada"]) == 0
    assert "ada was erased already" in capsys.readouterr().out
    with database.read() as session:
        assert session.scalars(select(Vote)).all() == []


def test_the_audit_log_is_checked(database, capsys):
    assert main(["feedback", "verify-audit"]) == 0
    head = capsys.readouterr().out.split()[-1]
    assert main(["feedback", "verify-audit", "--head", head]) == 0
    with database.write() as session:
        session.scalar(select(Audit)).actor = "somebody"
    assert main(["feedback", "verify-audit", "--head", head]) == 1
    assert "was changed" in capsys.readouterr().err


def test_a_backup_is_a_whole_database(database, tmp_path, capsys):
    rated(database)
    assert main(["feedback", "backup", "copy.db"]) == 0
    assert re.search(r"vote +4", capsys.readouterr().out)
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        assert copy.execute("SELECT count(*) FROM vote").fetchone() == (4,)
    assert sorted(path.name for path in tmp_path.glob("*copy.db*")) == ["copy.db"]
    assert main(["feedback", "backup", "copy.db"]) == 2
    assert main(["feedback", "backup", "x.db", "--database", "typing-mistake.db"]) == 2
    assert not (tmp_path / "typing-mistake.db").exists()


def test_invitations_keys_and_coordinators(database, capsys, monkeypatch):
    assert main(["feedback", "invite", "--count", "2", "--public-url", "https://rate.example"]) == 0
    links = re.findall(r"annotator-\w+  https://rate.example/invite/(\S+)", capsys.readouterr().out)
    assert len(set(links)) == 2
    for wrong in ("nonsense", "http://", "https://a b", "http://x:port", "ftp://rate.example"):
        assert main(["feedback", "invite", "--public_url", wrong]) == 2
        assert "is not an address" in capsys.readouterr().err
    with database.read() as session:
        assert len(session.scalars(select(Annotator)).all()) == 2
    assert main(["feedback", "key", "chat"]) == 0
    key = capsys.readouterr().out.strip()
    with database.read() as session:
        assert key.startswith("laurel-") and key not in session.scalar(select(ApiKey)).digest
    assert main(["feedback", "key", "chat", "--revoke"]) == 0
    assert main(["feedback", "key", "chat", "--revoke"]) == 1
    assert main(["feedback", "admin", "ada"]) == 2
    monkeypatch.setenv("LAUREL_PASSWORD", "short")
    assert main(["feedback", "admin", "ada"]) == 2
    monkeypatch.setenv("LAUREL_PASSWORD", "a long password")
    assert main(["feedback", "admin", "ada"]) == 0
    assert main(["feedback", "admin", " "]) == main(["feedback", "admin", "a" * 201]) == 2
    assert "1 to 200 characters" in capsys.readouterr().err


def test_an_address_that_others_reach_needs_a_coordinator(database, capsys):
    assert main(["feedback", "serve", "--host", "0.0.0.0"]) == 2
    assert "no coordinator has a password" in capsys.readouterr().err
    assert main(["feedback", "serve", "--public_url", "rate.example"]) == 2


def test_what_cannot_be_served_is_told_before_the_demo_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, told in (
            (["--port", port], "another --port"),
            (["--host", "192.0.2.1"], "an address of this machine"),
            (["--host", "no..host"], "an address of this machine"),
            (["--public_url", "nonsense"], "is not an address"),
        ):
            assert main(["feedback", "serve", "--demo", *words]) == 2
            printed = capsys.readouterr()
            assert told in " ".join(printed.err.split()) and printed.out == ""
    store = Store("feedback.db")
    with store.read() as session:
        assert session.scalars(select(Batch)).all() == []
    demo.fill(store)
    store.close()
    assert main(["feedback", "serve", "--demo", "--port", str(free_port())]) == 2
    assert "Leave --demo out to serve it again." in " ".join(capsys.readouterr().err.split())


def test_what_the_database_refuses_is_told_without_its_sql(database, tmp_path, capsys):
    with database.write() as session:
        session.execute(text("DROP TABLE verdict"))
        session.execute(text("DROP TABLE release"))
    rated(database)
    assert main(["feedback", "export", "out.jsonl", "--batch", "b"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "no such table: release" in said and "Then run it again" in said
    assert not re.search("INSERT|SELECT|sqlalche|Traceback", said) and not list(
        tmp_path.glob("out*")
    )


def test_items_that_nobody_is_shown_are_told_at_the_import(database, tmp_path, capsys):
    (tmp_path / "gold.jsonl").write_text(json.dumps({**ROWS[0], "kind": "gold"}) + "\n")
    assert main(["feedback", "import", "gold.jsonl", "--batch", "b"]) == 0
    assert re.search(r"shown to nobody +1 gold \(gold_share is 0\)", capsys.readouterr().out)
    assert (
        main(["feedback", "import", "gold.jsonl", "--batch", "c", "--set", "gold_share=0.1"]) == 0
    )
    assert "shown to nobody" not in capsys.readouterr().out


def test_what_is_not_installed_is_named(database, capsys, monkeypatch):
    from laurel.cli import feedback

    monkeypatch.setattr(feedback, "NEEDED", ("not_a_package",))
    assert main(["feedback", "verify-audit"]) == 2
    assert "pip install 'laurel-rl[feedback]'" in capsys.readouterr().err


def test_a_report_is_printed(database, capsys):
    rated(database)
    assert main(["feedback", "report", "--out", "report.html"]) == 0
    assert "b" in capsys.readouterr().out
    assert "<html" in Path("report.html").read_text()


def test_the_demo_is_served_by_two_processes(tmp_path):
    with served(tmp_path, "--demo", "--workers", "2") as (store, address):
        said = (tmp_path / "server.log").read_text()
        (link,) = re.findall(r"annotator +(\S+/invite/\S+)", said)
        assert link.startswith(address) and re.search(r"password +\S{20}", said)
        assert "Come in" in urlopen(link, timeout=10).read().decode()
        with store.read() as session:
            kinds = [
                (batch.name, item.kind, len(item.responses))
                for batch in session.scalars(select(Batch))
                for item in batch.items
            ]
            assert {batch.state for batch in session.scalars(select(Batch))} == {"open"}
        counts = {
            (name, kind): sum(k[:2] == (name, kind) for k in kinds) for name, kind, _ in kinds
        }
        expected = {
            ("pairs", "normal"): 12,
            ("pairs", "check"): 3,
            ("pairs", "gold"): 3,
            ("pairs", "training"): 1,
        }
        assert counts == {**expected, ("rankings", "normal"): 4}
        assert {size for name, _, size in kinds if name == "rankings"} == {4}
