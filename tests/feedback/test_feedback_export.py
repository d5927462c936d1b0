"""From an import through votes in swapped slots to a file: who was preferred arrives as it was
meant, and what must stay at home does.
"""

import csv
import hashlib
import json
import random
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from test_feedback_assign import annotator

from laurel.core.errors import UsageError
from laurel.data.formats import rows_fit_for
from laurel.data.source import load_rows
from laurel_feedback.exchange.export import export
from laurel_feedback.exchange.load import import_file
from laurel_feedback.store import accounts
from laurel_feedback.store.assign import Answer, TaskQueue, by_slot
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.tables import Annotator, Assignment, Audit, Batch, Item, Release, Ruling

PAIRS = [
    {"prompt": f"Name tree {n}.", "chosen": f"Laurel {n}.", "rejected": f"A stone {n}."}
    for n in range(8)
]


def opened(store, tmp_path, rows=PAIRS, name="b", **options):
    """A batch of these rows, open; its id."""
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = import_file(store, path, name, settings=BatchSettings(hit_size=100, **options)).batch
    with store.write() as session:
        session.get_one(Batch, batch).state = "open"
    return batch


def answer_all(store, identity, batch, opinion):
    """Someone rates what they get. opinion(texts by slot) -> an Answer by slot, or None: skip.
    Orders met.
    """
    queue, orders = TaskQueue(store, identity, batch), []
    while (sample := queue.next()) is not None:
        with store.read() as session:
            texts = [r.text for r in session.get_one(Item, sample.item_id).responses]
        queue.submit(sample.id, opinion(by_slot(texts, sample.order)), sample.id)
        orders.append(tuple(sample.order))
    return orders


def sure(texts):
    """Laurel is better, wherever it is shown."""
    return Answer(rating=1 if texts[0].startswith("Laurel") else 4)


def slightly(texts):
    return Answer(rating=2 if texts[0].startswith("Laurel") else 3)


def wrong(texts):
    return Answer(rating=4 if texts[0].startswith("Laurel") else 1)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_import_through_swapped_slots_to_preferences(store, tmp_path):
    batch = opened(store, tmp_path, target_votes=2)
    orders = set()
    for opinion in (sure, slightly):
        orders |= set(answer_all(store, annotator(store), batch, opinion))
    assert orders == {(0, 1), (1, 0)}
    made = export(store, "b", "preferences", tmp_path / "out.jsonl")
    assert (made.rows, made.ties, made.unrated) == (8, 0, 0)
    for n, row in enumerate(rows_of(tmp_path / "out.jsonl")):
        assert row["prompt"] == [{"role": "user", "content": f"Name tree {n}."}]
        assert row["chosen"] == [{"role": "assistant", "content": f"Laurel {n}."}]
        assert row["rejected"] == [{"role": "assistant", "content": f"A stone {n}."}]
        assert row["margin"] == pytest.approx((1 + 0.33) / 2)
        assert row["soft_label"] > 0.9 and 0.5 < row["weight"] <= 1
        assert row["provenance"]["candidates"][0] == row["provenance"]["source"]["preferred"]
        assert len(row["provenance"]["annotators"]) == row["provenance"]["votes"] == 2
    assert len(rows_fit_for(load_rows(str(tmp_path / "out.jsonl")), "preference")) == 8
    with store.read() as session:
        release = session.scalar(select(Release))
        assert release.digest == hashlib.sha256((tmp_path / "out.jsonl").read_bytes()).hexdigest()
        assert sorted(release.pseudonyms) == sorted(
            a.pseudonym for a in session.scalars(select(Annotator))
        )
        assert (
            session.scalars(select(Audit).order_by(Audit.id)).all()[-1].detail["digest"]
            == release.digest
        )


def test_any_order_of_showing_gives_the_same_ranks(store, tmp_path):
    """Whatever slots the four responses were shown in, the ranks and pairs that come out are those
    of the texts.
    """
    rater = annotator(store)

    @settings(max_examples=12, deadline=None)
    @given(st.permutations(range(4)), st.permutations(range(4)))
    def holds(truth, order):
        name = uuid.uuid4().hex
        queue = TaskQueue(
            store,
            rater,
            opened(
                store,
                tmp_path,
                [{"prompt": "Go.", "responses": list(map(str, truth))}],
                name,
                form="ranking",
            ),
        )
        sample = queue.next()
        with store.write() as session:
            session.get_one(Assignment, sample.id).order = order
            texts = [r.text for r in session.get_one(Item, sample.item_id).responses]
        queue.submit(
            sample.id, Answer(ranking=[1 + int(text) for text in by_slot(texts, order)]), name
        )
        export(store, name, "ranks", tmp_path / "ranks.jsonl")
        export(store, name, "preferences", tmp_path / "pairs.jsonl")
        (row,), pairs = rows_of(tmp_path / "ranks.jsonl"), rows_of(tmp_path / "pairs.jsonl")
        ranked = {
            said[0]["content"]: rank
            for said, rank in zip(row["responses"], row["ranks"], strict=True)
        }
        assert ranked == {str(n): n + 1 for n in range(4)}
        assert len(row["pairs"]) == 6 and row["pair_weight"] == pytest.approx(1 / 6)
        found = sorted((p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs)
        assert found == [(str(a), str(b)) for a in range(4) for b in range(a + 1, 4)]
        assert [p["weight"] for p in pairs] == pytest.approx([row["weight"] / 6] * 6, abs=1e-8)

    holds()
    assert rows_fit_for(load_rows(str(tmp_path / "ranks.jsonl")), "comparison")


def test_who_is_wrong_often_is_believed_less(store, tmp_path):
    rows = [{**PAIRS[0], "prompt": f"Name tree {n}."} for n in range(30)]
    batch, dice = opened(store, tmp_path, rows, target_votes=5), random.Random(0)
    for opinion in (sure, sure, sure):
        answer_all(store, annotator(store), batch, opinion)
    guesses = lambda texts: Answer(rating=dice.choice((1, 4)))  # noqa: E731
    for _ in range(2):
        answer_all(store, annotator(store), batch, guesses)
    export(store, "b", "preferences", tmp_path / "out.jsonl")
    found = rows_of(tmp_path / "out.jsonl")
    assert all(
        row["chosen"][0]["content"].startswith("Laurel") and 0.7 < row["soft_label"] < 0.9
        for row in found
    )  # of five, two guess
    assert all(0.4 < row["weight"] < 0.85 for row in found)


def test_ties_are_left_out_and_counted_or_said(store, tmp_path):
    batch = opened(store, tmp_path, PAIRS[:2], target_votes=2, allow_tie=True)
    tie = lambda texts: Answer(rating=0)  # noqa: E731
    for opinion in (tie, tie):
        answer_all(store, annotator(store), batch, opinion)
    with pytest.raises(UsageError, match="every pair is a tie"):
        export(store, "b", "preferences", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    made = export(store, "b", "preferences", tmp_path / "out.jsonl", ties="half")
    assert (made.rows, made.ties) == (2, 2)
    assert [(r["soft_label"], r["margin"]) for r in rows_of(tmp_path / "out.jsonl")] == [
        (0.5, 0.0)
    ] * 2


def test_an_even_split_is_a_tie_and_a_ruling_decides_it(store, tmp_path):
    batch = opened(store, tmp_path, PAIRS[:1], target_votes=2)
    for opinion in (sure, wrong):
        answer_all(store, annotator(store), batch, opinion)
    with pytest.raises(UsageError, match="every pair is a tie"):
        export(store, "b", "preferences", tmp_path / "out.jsonl")
    with store.write() as session:
        item = session.scalar(select(Item))
        stone = [r.text for r in item.responses].index("A stone 0.")
        session.add(Ruling(item_id=item.id, rating=1 if stone == 0 else 4, made_at=0.0))
    export(store, "b", "preferences", tmp_path / "out.jsonl")
    (row,) = rows_of(tmp_path / "out.jsonl")
    assert row["chosen"][0]["content"] == "A stone 0."
    assert (row["soft_label"], row["weight"], row["margin"], row["provenance"]["ruled"]) == (
        1,
        1,
        1,
        True,
    )


def test_what_is_not_there_to_be_rated_never_leaves(store, tmp_path):
    rows = [
        *PAIRS[:4],
        *(
            {**row, "kind": kind}
            for row, kind in zip(PAIRS[4:], ("gold", "check", "training", "attention"), strict=True)
        ),
    ]
    batch = opened(store, tmp_path, rows, target_votes=1, gold_share=0.45, repeat_share=0.4)
    answer_all(store, annotator(store), batch, sure)
    with store.read() as session:
        given = [
            (session.get_one(Item, a.item_id).kind, a.repeat)
            for a in session.scalars(select(Assignment))
        ]
    assert {kind for kind, _ in given} >= {"gold", "attention"} and any(
        repeat for _, repeat in given
    )
    for kind in ("preferences", "unpaired", "votes"):
        export(store, "b", kind, tmp_path / f"{kind}.jsonl")
        found = rows_of(tmp_path / f"{kind}.jsonl")
        assert {row["provenance"]["kind"] for row in found} == {"normal"}
        assert len(found) == {"preferences": 4, "unpaired": 8, "votes": 4}[kind]
    opened(store, tmp_path, [{**PAIRS[0], "kind": "gold"}], name="g")
    with pytest.raises(UsageError, match="never leave"):
        export(store, "g", "votes", tmp_path / "g.jsonl")


def test_raw_votes_have_order_time_and_revisions(store, tmp_path, clock):
    batch = opened(
        store, tmp_path, PAIRS[:1], target_votes=1, rationale="optional", helpfulness=True
    )
    queue = TaskQueue(store, annotator(store), batch)
    sample = queue.next()
    clock.time += 12
    queue.submit(sample.id, Answer(rating=1, helpfulness=[5, 1], rationale="=1+1"), "a")
    queue.submit(sample.id, Answer(rating=4, helpfulness=[1, 5], rationale="other"), "b")
    export(store, "b", "votes", tmp_path / "last.jsonl")
    export(store, "b", "votes", tmp_path / "all.jsonl", revisions=True)
    (last,), every = rows_of(tmp_path / "last.jsonl"), rows_of(tmp_path / "all.jsonl")
    assert [row["revision"] for row in every] == [1, 2] and every[1] == last
    assert (last["order"], last["active_ms"], last["given_at"]) == (
        sample.order,
        12_000,
        clock.time,
    )
    assert last["scales"]["helpfulness"] == ([1, 5] if sample.order == [0, 1] else [5, 1])
    assert last["annotator"].startswith("annotator-") and last["rationale"] == "other"


def test_a_spreadsheet_does_not_take_a_text_for_a_formula(store, tmp_path):
    batch = opened(store, tmp_path, PAIRS[:1], target_votes=1, rationale="optional")
    answer_all(
        store, annotator(store), batch, lambda texts: Answer(rating=1, rationale="=HYPERLINK(1)")
    )
    export(store, "b", "votes", tmp_path / "votes.csv")
    with open(tmp_path / "votes.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["rationale"] == "'=HYPERLINK(1)"
    assert not any(value[:1] in "=+@" for value in row.values() if value)


def test_no_prompt_stands_in_both_parts(store, tmp_path):
    rows = [
        {"prompt": f"Name tree {n // 2}.", "chosen": f"Laurel {n}.", "rejected": f"A stone {n}."}
        for n in range(40)
    ]
    batch = opened(store, tmp_path, rows, target_votes=1)
    answer_all(store, annotator(store), batch, sure)
    made = export(store, "b", "preferences", tmp_path / "out.jsonl", eval_share=0.3)
    train, held = (rows_of(path) for path in made.files)
    assert (
        made.files[1].name == "out.eval.jsonl"
        and len(train) + len(held) == 40
        and 2 <= len(held) <= 24
    )
    prompts = [{row["prompt"][0]["content"] for row in part} for part in (train, held)]
    assert not prompts[0] & prompts[1]


def test_people_who_left_are_nameless_or_gone(store, tmp_path):
    batch = opened(store, tmp_path, target_votes=3)
    ids = [annotator(store) for _ in range(3)]
    accounts.consent(store, ids[1], "delete 1")
    for identity in ids:
        answer_all(store, identity, batch, sure)
    export(store, "b", "votes", tmp_path / "before.jsonl")
    released = [accounts.withdraw(store, identity)["released_in"] for identity in ids[:2]]
    assert released == [[str(tmp_path / "before.jsonl")]] * 2
    export(store, "b", "votes", tmp_path / "after.jsonl")
    with store.read() as session:
        names = [session.get_one(Annotator, identity).pseudonym for identity in ids]
        assert session.scalars(select(Release).order_by(Release.id)).all()[-1].pseudonyms == [
            names[2]
        ]
    text = (tmp_path / "after.jsonl").read_text()
    assert names[0] not in text and names[1] not in text and names[2] in text
    assert [row["annotator"] for row in rows_of(tmp_path / "after.jsonl")].count("withdrawn") == 8


def test_single_answers_by_thumbs_and_by_pairs(store, tmp_path):
    batch = opened(
        store,
        tmp_path,
        [{"prompt": "Go.", "responses": [text]} for text in ("Laurel", "stone")],
        target_votes=1,
    )
    answer_all(store, annotator(store), batch, sure)
    export(store, "b", "unpaired", tmp_path / "one.jsonl")
    assert [
        (r["completion"][0]["content"], r["label"]) for r in rows_of(tmp_path / "one.jsonl")
    ] == [("Laurel", True), ("stone", False)]
    assert rows_fit_for(load_rows(str(tmp_path / "one.jsonl")), "label")


def test_wishes_that_cannot_be_are_refused(store, tmp_path):
    opened(store, tmp_path)
    for options, told in (
        ({"kind": "odd"}, "unknown kind"),
        ({"ties": "odd"}, "unknown treatment"),
        ({"columns": ["odd"]}, "unknown column"),
        ({"ties": "half", "columns": ["margin"]}, "soft_label"),
        ({"eval_share": 3.0}, "no share below 1.*Give 0.1"),
        ({"batches": "odd"}, "no batch `odd`.*There are: b"),
        ({"out": tmp_path / "nowhere" / "x.jsonl"}, "no such folder"),
        ({}, "no item has"),
    ):
        with pytest.raises(UsageError, match=r"(?s)" + told):
            export(
                store,
                **{"batches": "b", "kind": "preferences", "out": tmp_path / "x.jsonl", **options},
            )
    assert list(tmp_path.glob("*.part*")) == []


def test_a_batch_that_is_named_twice_is_written_once_and_its_file_is_remembered_whole(
    store, tmp_path, monkeypatch
):
    batch = opened(store, tmp_path, target_votes=1)
    answer_all(store, annotator(store), batch, sure)
    monkeypatch.chdir(tmp_path)
    made = export(store, ["b", "b"], "preferences", "out.jsonl", eval_share=0.5)
    assert made.rows == sum(len(rows_of(path)) for path in made.files) == 8
    with store.read() as session:
        assert (
            session.scalar(select(Release)).path
            == f"{tmp_path / 'out.jsonl'}, {tmp_path / 'out.eval.jsonl'}"
        )
