"""Files into batches: every shape, what is refused and where, what is left out and why, and that
ids and order are those of the content.
"""

import gzip
import json

import pytest
from sqlalchemy import select

from laurel.core.errors import UsageError
from laurel_feedback.exchange.load import ENDLESS, import_file
from laurel_feedback.statistics.batches import (
    change_settings,
    create_batch,
    never_shown,
    open_batch,
    reason_not_to_open,
)
from laurel_feedback.store.assign import Refused
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, Audit, Batch, Item, Plan

PAIR = {"prompt": "Name a tree.", "chosen": "Laurel.", "rejected": "A stone."}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def items(store, batch=None):
    """(item, texts in order) of every item, with what the tests look at loaded."""
    with store.read() as session:
        found = session.scalars(
            select(Item).where(Item.batch_id == batch) if batch else select(Item)
        ).all()
        found.sort(key=lambda item: (item.batch_id, item.place))
        return [
            (item, [r.text for r in item.responses], [r.model for r in item.responses])
            for item in found
        ]


def test_preferences_come_in_an_order_that_does_not_say_who_was_preferred(store, tmp_path):
    rows = [{**PAIR, "prompt": f"Name tree {n}."} for n in range(40)]
    import_file(store, lines(tmp_path / "p.jsonl", rows), "b")
    places = []
    for item, texts, _ in items(store):
        assert sorted(texts) == ["A stone.", "Laurel."]
        with store.read() as session:
            responses = session.get(Item, item.id).responses
            places.append(
                [r.source["candidate"] for r in responses].index(item.source["preferred"])
            )
            assert responses[places[-1]].text == "Laurel."
    assert 8 < sum(places) < 32


def test_two_imports_give_the_same_ids(tmp_path):
    rows = [{**PAIR, "prompt": f"Name tree {n}."} for n in range(5)]
    first, second = (Store(str(tmp_path / f"{n}.db")) for n in range(2))
    import_file(first, lines(tmp_path / "a.jsonl", rows), "b")
    import_file(second, lines(tmp_path / "c.jsonl", rows[::-1]), "b")
    import_file(second, tmp_path / "c.jsonl", "other")

    def ids(store, batch):
        with store.read() as session:
            found = session.scalars(select(Item).where(Item.batch_id == batch)).all()
            return {i.id: [(r.id, r.source["candidate"]) for r in i.responses] for i in found}

    def candidates(found):
        return sorted(c for responses in found.values() for _, c in responses)

    assert ids(first, 1) == ids(second, 1)
    assert not ids(first, 1).keys() & ids(second, 2).keys()
    assert candidates(ids(first, 1)) == candidates(ids(second, 2))
    for made in (first, second):
        made.close()


def test_conversations_and_hh_transcripts(store, tmp_path):
    start = "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: a tree?\n\nAssistant:"
    rows = [
        {
            "chosen": f"{start} Laurel.",
            "rejected": f"{start} Stone.\n\nHuman: what?\n\nAssistant: Sorry.",
        }
    ]
    path = tmp_path / "hh.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(rows[0]).encode()))
    import_file(store, path, "b", harm=["insults"])
    ((item, texts, _),) = items(store)
    assert [turn["content"] for turn in item.prompt] == ["hello", "hi", "a tree?"]
    assert sorted(texts) == ["Laurel.", "assistant: Stone.\n\nuser: what?\n\nassistant: Sorry."]
    assert (item.harm, item.harmful) == (["insults"], True)
    turns = [{"role": "user", "content": "a tree?"}]
    said = [[{"role": "assistant", "content": text}] for text in ("Laurel.", "Stone.")]
    import_file(
        store,
        lines(tmp_path / "c.jsonl", [{"prompt": turns, "chosen": said[0], "rejected": said[1]}]),
        "c",
    )
    assert sorted(items(store, 2)[0][1]) == ["Laurel.", "Stone."]


def test_completions_of_a_run_of_a_pipeline_and_plain_ones(store, tmp_path):
    samples = [
        {
            "run": "r",
            "step": step,
            "prompt_id": "p",
            "prompt": "1+1=",
            "sample": n,
            "completion": f"{step}{n}",
            "reward": 0.5,
            "ids": [],
        }
        for step in (1, 2)
        for n in (1, 0)
    ]
    import_file(store, lines(tmp_path / "samples.jsonl", samples), "samples")
    assert [(texts, models) for _, texts, models in items(store)] == [
        (["10", "11"], ["r step 1"] * 2),
        (["20", "21"], ["r step 2"] * 2),
    ]
    answers = [
        {
            "id": "p-0",
            "columns": {"prompt": "1+1=", "target": "2"},
            "responses": ["a", "b", "a", "c"],
            "ids": [],
            "finish": [],
        }
    ]
    ranking = BatchSettings(form="ranking", target_votes=5)
    made = import_file(
        store, lines(tmp_path / "answers.jsonl", answers), "answers", settings=ranking
    )
    assert [(texts, item.target) for item, texts, _ in items(store, made.batch)] == [
        (["a", "b", "c"], 5)
    ]
    plain = [
        {
            "prompt": "Go.",
            "input": "Now.",
            "responses": [{"text": "x", "model": "m"}, "y"],
            "target": 7,
            "harm": "hate, gore",
        }
    ]
    made = import_file(store, lines(tmp_path / "plain.jsonl", plain), "plain")
    ((item, texts, models),) = items(store, made.batch)
    assert (item.input, item.target, item.harm, texts, models) == (
        "Now.",
        7,
        ["gore", "hate"],
        ["x", "y"],
        ["m", ""],
    )


def test_pairs_of_many_answers(store, tmp_path):
    path = lines(
        tmp_path / "plain.jsonl",
        [{"prompt": f"Go {n}.", "responses": ["a", "b", "c", "d"]} for n in range(3)],
    )
    with pytest.raises(UsageError, match=r"plain.jsonl:1.*4 responses"):
        import_file(store, path, "b")
    assert import_file(store, path, "b", pairs=2).items == 6
    assert all(len(texts) == 2 for _, texts, _ in items(store))


def test_llmfao_with_its_votes_planned(store, tmp_path):
    pair = {
        "prompt": 8,
        "text": "Go.",
        "slug": "go",
        "model_x": 1,
        "result_x": "a",
        "model_y": 2,
        "result_y": "b",
    }
    lines(tmp_path / "models.jsonl", [{"id": 1, "name": "One"}, {"id": 2, "name": "Two"}])
    path = lines(tmp_path / "pairs.jsonl", [{**pair, "id": 0}, {**pair, "id": 1, "result_x": "c"}])
    votes = tmp_path / "votes.csv"
    votes.write_text("id,worker,winner\n0,58,left\n0,83,tie\n1,58,right\n")
    import_file(store, path, "b", votes=votes)
    found = items(store)
    assert [(texts, models, item.target) for item, texts, models in found] == [
        (["a", "b"], ["One", "Two"], 2),
        (["c", "b"], ["One", "Two"], 1),
    ]
    with store.read() as session:
        names = {a.id: a.pseudonym for a in session.scalars(select(Annotator))}
        plan = {(p.item_id, names[p.annotator_id]) for p in session.scalars(select(Plan))}
    assert plan == {
        (found[0][0].id, "worker-58"),
        (found[0][0].id, "worker-83"),
        (found[1][0].id, "worker-58"),
    }
    with pytest.raises(UsageError, match="nobody voted"):
        votes.write_text("id,worker,winner\n0,58,left\n")
        import_file(store, path, "c", votes=votes)
    training = [
        {**pair, "id": -1, "golden": "right", "reason": "why"},
        {**pair, "id": -2, "golden": "tie"},
    ]
    made = import_file(store, lines(tmp_path / "training.jsonl", training), "t")
    ((item, _, _),) = items(store, made.batch)
    assert (item.kind, item.gold, item.explanation, item.target) == ("training", 1, "why", ENDLESS)
    assert "tie" in made.left_out[0] and made.left_out[0].startswith("training.jsonl:2")


def test_llmbar_is_gold_and_other_kinds_say_what_is_right(store, tmp_path):
    (tmp_path / "dataset.json").write_text(
        json.dumps([{"input": "Go.", "output_1": "a", "output_2": "b", "label": 2}])
    )
    import_file(store, tmp_path / "dataset.json", "b")
    ((item, texts, _),) = items(store)
    assert (item.kind, texts[item.gold], item.target) == ("gold", "b", ENDLESS)
    import_file(
        store,
        lines(tmp_path / "p.jsonl", [{**PAIR, "kind": "check", "explanation": "a stone is none"}]),
        "c",
    )
    item, texts, _ = items(store, 2)[0]
    assert (item.kind, texts[item.gold], item.explanation) == (
        "check",
        "Laurel.",
        "a stone is none",
    )
    plain = {"prompt": "Go.", "responses": ["a", "b"]}
    import_file(
        store,
        lines(tmp_path / "q.jsonl", [{**plain, "gold": 1, "ranks": [2, 1]}]),
        "d",
        kind="attention",
    )
    item, texts, _ = items(store, 3)[0]
    assert (item.kind, texts[item.gold]) == ("attention", "b")
    with pytest.raises(UsageError, match=r"r.jsonl:1: .*which response is right"):
        import_file(store, lines(tmp_path / "r.jsonl", [{**plain, "kind": "gold", "gold": 2}]), "e")


def test_argilla_and_distilabel(store, tmp_path):
    rows = [
        {
            "id": "x",
            "fields": {"instruction": "Go.", "response1": "a", "response2": "b"},
            "metadata": {"harm": "gore"},
        }
    ]
    import_file(store, lines(tmp_path / "a.jsonl", rows), "b")
    rows = [{"instruction": "Go.", "generations": ["a", "b"], "generation_models": ["m", "n"]}]
    import_file(store, lines(tmp_path / "d.jsonl", rows), "c")
    assert [(t, m, i.harm) for i, t, m in items(store)] == [
        (["a", "b"], ["", ""], ["gore"]),
        (["a", "b"], ["m", "n"], []),
    ]


def test_what_is_twice_and_what_is_equal_is_named(store, tmp_path):
    turned = {"prompt": PAIR["prompt"], "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    path = lines(tmp_path / "p.jsonl", [PAIR, {**PAIR, "chosen": "x", "rejected": "x"}, turned])
    made = import_file(store, path, "b")
    assert made.items == 1
    assert made.left_out == (
        "p.jsonl:2: its responses are equal",
        "p.jsonl:3: the same as p.jsonl:1",
    )
    assert import_file(store, path, "b").left_out[0] == "p.jsonl:1: the same as item 0 of the batch"
    assert [item.place for item, _, _ in items(store)] == [0]
    with store.read() as session:
        assert [(a.action, a.detail["items"]) for a in session.scalars(select(Audit))] == [
            ("import", 1),
            ("import", 0),
        ]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "Go.", "chosen": "a"}, "rejected"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt"),
        ({"prompt": "", "responses": ["a", "b"]}, "prompt"),
        ({"prompt": "Go.", "responses": []}, "list of responses"),
        ({"prompt": "Go.", "responses": ["a", 3]}, "response 2"),
        ({"prompt": "Go.", "responses": ["a\0", "b"]}, "NUL"),
        ({"prompt": "Go.", "responses": ["a\ud800", "b"]}, "half a character"),
        ({"prompt": "Go.", "responses": ["a", "b"], "harm": 3}, "harm"),
        ({"prompt": "Go.", "responses": ["a", "b"], "target": 0}, "target"),
        ({"prompt": "Go.", "responses": ["a", "b"], "kind": "odd"}, "kind"),
        ({"prompt": [{"role": "wizard", "content": "x"}], "responses": ["a", "b"]}, "prompt"),
    ],
)
def test_a_wrong_row_is_an_error_at_its_line_and_nothing_is_imported(store, tmp_path, row, told):
    good = PAIR if "chosen" in row else {"prompt": "Go.", "responses": ["a", "b"]}
    with pytest.raises(UsageError, match=told) as error:
        import_file(store, lines(tmp_path / "p.jsonl", [good, row]), "b")
    assert "p.jsonl:2" in str(error.value)
    with store.read() as session:
        assert session.scalars(select(Item)).all() == session.scalars(select(Batch)).all() == []


def test_settings_are_the_batchs_own(store, tmp_path):
    path = lines(tmp_path / "p.jsonl", [PAIR])
    import_file(store, path, "b", settings=BatchSettings(target_votes=2))
    with pytest.raises(UsageError, match="other settings"):
        import_file(store, path, "b", settings=BatchSettings(target_votes=3))
    assert [item.target for item, _, _ in items(store)] == [2]
    with pytest.raises(UsageError, match="unknown shape `csv`"):
        import_file(store, path, "b", shape="csv")
    with pytest.raises(UsageError, match="`model_x` is missing"):
        import_file(store, path, "b", shape="llmfao")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"limit": -3}, "limit: -3 is too few"),
        ({"limit": 0}, "limit: 0"),
        ({"pairs": -3}, "pairs: -3 is too few"),
        ({"batch": " "}, "1 to 200 characters"),
        ({"batch": "x" * 5000}, "1 to 200 characters"),
    ],
)
def test_wishes_that_cannot_be_are_refused(store, tmp_path, options, told):
    with pytest.raises(UsageError, match=told) as error:
        import_file(store, lines(tmp_path / "p.jsonl", [PAIR]), **{"batch": "b", **options})
    assert error.value.fix
    with store.read() as session:
        assert session.scalars(select(Batch)).all() == []


def test_a_name_is_the_one_of_the_web_form(store, tmp_path):
    number = create_batch(store, " b ", BatchSettings(), actor="c")
    assert import_file(store, lines(tmp_path / "p.jsonl", [PAIR]), " b").batch == number


def test_at_most_twelve_responses_are_ranked(store, tmp_path):
    ranking = BatchSettings(form="ranking")
    rows = [{"prompt": "Go.", "responses": list(map(str, range(count)))} for count in (12, 13)]
    with pytest.raises(UsageError, match=r"p.jsonl:2: 13 responses.*more than 12.*--pairs"):
        import_file(store, lines(tmp_path / "p.jsonl", rows), "b", settings=ranking)
    assert (
        import_file(store, lines(tmp_path / "p.jsonl", rows[:1]), "b", settings=ranking).items == 1
    )


def test_items_that_nobody_is_shown_are_named(store, tmp_path):
    rows = [
        {**PAIR, "prompt": f"Name tree {n}.", "kind": kind}
        for n, kind in enumerate(("gold", "gold", "attention", "check", "normal"))
    ]
    made = import_file(store, lines(tmp_path / "p.jsonl", rows), "b")
    assert (
        never_shown(store, made.batch)
        == "2 gold (gold_share is 0), 1 attention (gold_share is 0), 1 check (needs_check is off)"
    )
    change_settings(store, made.batch, BatchSettings(gold_share=0.1, needs_check=True), actor="c")
    assert never_shown(store, made.batch) == ""


def test_a_batch_whose_questions_are_missing_is_not_opened(store, tmp_path):
    made = import_file(
        store, lines(tmp_path / "p.jsonl", [PAIR]), "b", settings=BatchSettings(needs_check=True)
    )
    assert "--kind check" in reason_not_to_open(store, made.batch)
    with pytest.raises(Refused, match=r"no item of kind check.*--kind check.*needs_check off"):
        open_batch(store, made.batch, actor="c")
    told = {
        "prompt": "Q?",
        "chosen": "As an AI language model by OpenAI, yes.",
        "rejected": "No.",
        "kind": "check",
    }
    import_file(store, lines(tmp_path / "told.jsonl", [told]), "b")
    with pytest.raises(Refused, match="words that tell"):  # its only question would be held back
        open_batch(store, made.batch, actor="c")
    import_file(store, lines(tmp_path / "q.jsonl", [{**PAIR, "kind": "check"}]), "b")
    assert reason_not_to_open(store, made.batch) == ""
    open_batch(store, made.batch, actor="c")
    with store.read() as session:
        assert session.get_one(Batch, made.batch).state == "open"
