"""A judge over the feedback database: its verdicts beside the items, spot checks beside people."""

import json
import re
from pathlib import Path

import pytest
from judge_server import SAID, Scripted, label_chances
from sqlalchemy import select

from laurel.cli.main import main
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, Assignment, Batch, Item, Response, Verdict, Vote

ROWS = [
    {
        "prompt": f"Name tree {n}.",
        "responses": [
            {"text": f"Laurel {n}.", "model": "one"},
            {"text": f"Oak {n}.", "model": "two"},
        ],
    }
    for n in range(16)
]
WORDS = {"A": "a", "B": "b", "C": "tie"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with rows and a judge, in which the test works."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with Scripted() as server:
        options = {"model": "m", "url": server.url, "label": "logprobs"}
        (tmp_path / "judge.yaml").write_text(json.dumps(options))
        yield tmp_path, server


@pytest.fixture
def store(folder):
    """The rows as a batch of ./feedback.db, and one item whose better response is known."""
    assert main(["feedback", "import", "rows.jsonl", "--batch", "b"]) == 0
    found = Store("feedback.db")
    with found.write() as session:
        for item in session.scalars(select(Item).order_by(Item.place).limit(6)):
            item.kind, item.gold = "gold", 0
    yield found
    found.close()


def verdicts_of(store):
    """(texts by place, order, status) of each verdict."""
    with store.read() as session:
        texts = {}
        for one in session.scalars(select(Response).order_by(Response.item_id, Response.place)):
            texts.setdefault(one.item_id, []).append(one.text)
        rows = session.scalars(select(Verdict).order_by(Verdict.id)).all()
        return [(one.item_id, texts[one.item_id], one.order, one.status, one.raw) for one in rows]


def as_shown(texts, order):
    """What the judge says of the texts in the places where it was shown them."""
    shares = label_chances(texts[order[0]], texts[order[1]])
    return WORDS[max(shares, key=shares.get)]


def test_verdicts_are_kept_beside_their_items(folder, store):
    """By place as shown, in both orders, whichever way round a pair was asked; once."""
    words = ["judge", "run", "judge.yaml", "feedback.db", "--output_dir", "out"]
    for _ in range(2):
        assert main(words) == 0
        found = verdicts_of(store)
        assert len(found) == 2 * len(ROWS)
        for _, texts, order, status, _ in found:
            assert status == as_shown(texts, order)
        orders = {
            item: sorted(order for i, _, order, _, _ in found if i == item) for item, *_ in found
        }
        assert all(both == [[0, 1], [1, 0]] for both in orders.values())
    assert {"a", "b"} <= {status for _, _, _, status, _ in found}
    judged = [json.loads(line) for line in Path("out/judgements.jsonl").read_text().splitlines()]
    assert {row["gold"] for row in judged} == {"a", "b", None}


def test_failures_are_kept_as_what_they_are(folder, store):
    """Invalid and error stand in the database as such, with odd letters and all."""
    _, server = folder
    faults = {"Laurel 9.": SAID["surrogate"], "Laurel 10.": SAID["nul"]}
    server.fault = lambda body, digest, count: next(
        (fault for text, fault in faults.items() if text in json.dumps(body)), None
    )
    assert main(["judge", "run", "judge.yaml", "feedback.db", "--output_dir", "out"]) == 0
    for _, texts, _, status, _ in verdicts_of(store):
        assert (status == "invalid") == (texts[0] in faults)


def rated(store):
    """One person prefers each item's first response as shown."""
    with store.write() as session:
        person = Annotator(pseudonym="ada", state="active", consent="keep 1", made_at=0)
        session.add(person)
        session.flush()
        for n, item in enumerate(session.scalars(select(Item)).all(), 1):
            item.live += 1
            given = {"id": f"a{n}", "item_id": item.id, "batch_id": item.batch_id, "seq": n}
            session.add(
                Assignment(
                    annotator_id=person.id,
                    state="submitted",
                    lease_until=0,
                    order=[0, 1],
                    made_at=0,
                    **given,
                )
            )
            session.flush()
            session.add(Vote(assignment_id=f"a{n}", revision=1, key=f"k{n}", rating=1, made_at=0))


def test_spot_checks_go_to_people(folder, capsys):
    """A share of what was judged becomes a batch; the report has the judge beside people."""
    words = ["judge", "run", "judge.yaml", "rows.jsonl", "--output_dir", "out"]
    words += ["--spot_check", "0.7", "--database", "feedback.db", "--batch", "checks"]
    assert main(words) == 0
    said = capsys.readouterr().out
    store = Store("feedback.db")
    try:
        found = verdicts_of(store)
        items = {item for item, *_ in found}
        assert f"spot checks: {len(items)} pairs added to the batch `checks`" in said
        assert 4 < len(items) < len(ROWS) and len(found) == 2 * len(items)
        for _, texts, order, status, _ in found:
            assert status == as_shown(texts, order)
        assert main(words) == 0  # once more: none is added, none is lost
        assert sorted(verdicts_of(store)) == sorted(found)
        with store.read() as session:
            names = [batch.name for batch in session.scalars(select(Batch))]
            assert names == ["checks"]
        rated(store)
    finally:
        store.close()
    capsys.readouterr()
    assert main(["feedback", "report", "feedback.db"]) == 0
    said = capsys.readouterr().out
    # the person has said of each that the first is better; what the judge says of the responses
    words = {item: set() for item in items}
    for item, _, order, status, _ in found:
        turned = {"a": "b", "b": "a"}.get(status, status) if order == [1, 0] else status
        words[item].add(turned)
    agreed = sum(word == {"a"} for word in words.values())
    decided = sum(len(word) == 1 for word in words.values())
    assert "Judge m beside people" in said
    assert re.search(rf"m with a person +{agreed}/{len(items)} ", said)
    assert re.search(rf"same verdict in both orders +{100 * decided / len(items):.1f} %", said)
