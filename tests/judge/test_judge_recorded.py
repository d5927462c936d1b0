"""Published verdicts, read as they are published: small files of the exact shapes, and the real
ones with the figures that their authors print.
"""

import json

import pytest

from laurel.core.errors import UsageError
from laurel.judge.published import maker_of
from laurel.judge.recorded import read_recorded, read_votes, with_votes
from laurel.measure.judge_card import card


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def llmbar_row(k, winners, *, extra=()):
    """A row of LLMBar's result files; winners by response, in both orders."""
    answers = {
        f"swap = {swap}": {"completion": [text, "stop"], "winner": winner}
        for swap, (winner, text) in zip((False, True), winners, strict=True)
    }
    asked = {"input": f"q{k}", "output_1": "one", "output_2": "three", "label": 1 + k % 2}
    return asked, {**asked, "results": [*extra, answers]}


@pytest.fixture
def llmbar(tmp_path):
    """Two items of gold a, b: a twice; b in the first order only, then silence."""
    rows = [
        llmbar_row(0, (("1", "(a)"), ("1", "(a)"))),
        llmbar_row(1, (("2", "(b)"), (None, ""))),
    ]
    folder = tmp_path / "Tiny"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps([asked for asked, _ in rows], indent=2))
    (folder / "swap_J.json").write_text(json.dumps([row for _, row in rows], indent=2))
    return folder


def test_llmbar(llmbar):
    (found,) = read_recorded(llmbar)
    assert found.name == "LLMBar, Tiny" and [i.gold for i in found.items.values()] == ["a", "b"]
    told = [(a.status, a.order) for a in found.judges["J"]]
    assert told == [("a", (0, 1)), ("a", (1, 0)), ("b", (0, 1)), ("error", (1, 0))]
    assert read_recorded(llmbar.parent)[0].name == found.name
    figures = card(found).judges[0]
    assert (figures.accuracy.value, figures.accuracy_asked.value) == (1, 0.75)


def test_llmbar_as_in_its_repository(llmbar):
    """evaluators/JUDGE/STRATEGY/result.json; metrics that were asked first are no verdicts."""
    path = llmbar / "evaluators" / "GPT-4" / "Metrics" / "result.json"
    path.parent.mkdir(parents=True)
    said = ((None, "both are fine"), ("2", "(b)"))
    rows = [llmbar_row(k, said, extra=[["is it clear?", "stop"]])[1] for k in range(2)]
    path.write_text(json.dumps(rows))
    answers = read_recorded(llmbar)[0].judges["GPT-4/Metrics"]
    assert [a.status for a in answers] == ["invalid", "b"] * 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows.pop(), "1 answers to the 2 items"),
        (lambda rows: rows[1].update(input="other"), "record 2: this is another item"),
        (lambda rows: rows[0]["results"].clear(), "record 1: there is no answer `swap = False`"),
        (lambda rows: rows[0]["results"][0]["swap = True"].update(winner="3"), "record 1: `3`"),
    ],
)
def test_llmbar_faults_are_named(llmbar, change, told):
    path = llmbar / "swap_J.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))
    with pytest.raises(UsageError, match=told) as error:
        read_recorded(llmbar)
    assert "swap_J.json" in str(error.value)


BATTLE = {"question_id": 81, "turn": 1, "model_a": "y", "model_b": "x", "judge": "expert_1"}


def test_mtbench(tmp_path):
    """(x, y) and (y, x) are one item; authors are left out; inconsistent is no tie of its own."""
    rows = [
        {**BATTLE, "winner": "model_a"},
        {**BATTLE, "model_a": "x", "model_b": "y", "winner": "model_a", "judge": "expert_2"},
        {**BATTLE, "winner": "tie", "judge": "author_1"},
        {**BATTLE, "winner": "model_b", "turn": 2},
    ]
    lines(tmp_path / "human.jsonl", rows)
    inconsistent = {**BATTLE, "winner": "tie (inconsistent)", "judge": "gpt4_pair"}
    lines(tmp_path / "gpt4_pair.jsonl", [inconsistent])
    first, second = read_recorded(tmp_path)
    assert [vote.label for vote in first.votes] == ["b", "a"] and list(first.items) == ["81/1:x:y"]
    assert [a.status for a in first.judges["GPT-4"]] == ["inconsistent"]
    assert first.published["people"] == 0.66 and not second.published
    assert "1 votes of the paper's authors are left out." in first.notes
    assert [vote.label for vote in second.votes] == ["a"]


def test_fastchat(tmp_path):
    """Winners are by model in both games; g2 shows model_2 first. An unreadable judgement is no
    tie, nor is a call that failed.
    """
    row = {
        "question_id": 81,
        "model_1": "vicuna-13b",
        "model_2": "alpaca-13b",
        "g1_winner": "model_1",
        "g2_winner": "tie",
        "judge": ["gpt-4", "pair-v2"],
        "g1_judgment": "[[A]]",
        "g2_judgment": "[[C]]",
        "turn": 1,
    }
    failed = {"g1_winner": "error", "g2_winner": "error", "g1_judgment": "hm"}
    failed["g2_judgment"] = "$ERROR$"
    folder = tmp_path / "model_judgment"
    folder.mkdir()
    lines(folder / "gpt-4_pair.jsonl", [row, {**row, "question_id": 82, **failed}])
    (found,) = read_recorded(tmp_path)
    assert found.items["81/1:alpaca-13b:vicuna-13b"].cluster == "81"
    told = [(a.status, a.order) for a in found.judges["gpt-4"]]
    assert told[:2] == [("b", (1, 0)), ("tie", (0, 1))]
    assert [status for status, _ in told[2:]] == ["invalid", "error"]
    assert found.families == {"gpt-4": "openai"}


ALPACA = {
    "instruction": "Say hello.",
    "output_1": "Hello there!",
    "output_2": "Hi",
    "generator_1": "gpt4_1106_preview",
    "generator_2": "tiny",
    "dataset": "helpful_base",
    "annotator": "weighted",
    "price_per_example": 0.01,
}


@pytest.mark.parametrize(
    ("preference", "status", "chance"),
    [
        (1, "a", None),
        (2.0, "b", None),
        (1.5, "tie", None),
        (0, "tie", None),
        (1.2, "a", 0.8),
        (1.9999, "b", 0.0001),
        (None, "error", None),
    ],
)
def test_alpaca_eval(tmp_path, preference, status, chance):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{**ALPACA, "preference": preference}]))
    (found,) = read_recorded(tmp_path)
    (answer,) = found.judges["weighted"]
    assert (answer.status, answer.order, answer.cost) == (status, None, 0.01)
    assert answer.chance == (None if chance is None else pytest.approx(chance))
    (item,) = found.items.values()
    assert (item.models, item.lengths) == (("gpt4_1106_preview", "tiny"), (12, 2))


def test_alpaca_eval_tells_the_order_in_newer_files(tmp_path):
    """m was shown first; here it stood for the second output, and M won."""
    said = {"raw_completion": {"ordered_models": [{"model": "M", "rank": 1}]}, "preference": 1.0}
    row = {**ALPACA, **said, "referenced_models": {"M": "output_1", "m": "output_2"}}
    (tmp_path / "annotations.json").write_text(json.dumps([row]))
    (answer,) = read_recorded(tmp_path)[0].judges["weighted"]
    assert (answer.status, answer.order, answer.first_won) == ("a", (1, 0), False)


def test_alpaca_eval_more(tmp_path):
    """Unreadable is told from no answer; people's cross annotations are votes; equal texts."""
    rows = [
        {**ALPACA, "preference": None, "raw_completion": "I like both"},
        {**ALPACA, "preference": 2, "annotator_index": 7},
        {**ALPACA, "instruction": "Same?", "output_1": "Hi", "preference": 1},
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    (found,) = read_recorded(path)
    assert [a.status for a in found.judges["weighted"]] == ["invalid", "a"]
    assert [(v.rater, v.label) for v in found.votes] == [("7", "b")]
    assert card(found).judges[0].identical.value == 0
    path.write_text(json.dumps([{**ALPACA, "preference": 3}]))
    with pytest.raises(UsageError, match=r"annotations.json:record 1: `3` is no preference"):
        read_recorded(path)


def arena_row(**more):
    talk = [{"role": "user", "content": "hey"}, {"role": "assistant", "content": "hello"}]
    return {
        "question_id": "58210e39",
        "model_a": "vicuna-13b",
        "model_b": "koala-13b",
        "winner": "tie (bothbad)",
        "judge": "arena_user_973",
        "conversation_a": talk,
        "conversation_b": [*talk, *talk],
        "turn": 1,
        "anony": True,
        "language": "English",
        "tstamp": 1682351591.1,
        **more,
    }


def test_chatbot_arena(tmp_path):
    path = lines(tmp_path / "arena.jsonl", [arena_row(), arena_row(question_id="2", judge="gpt-4")])
    (found,) = read_recorded(path)
    item = found.items["58210e39:koala-13b:vicuna-13b"]
    assert item.lengths == (10, 5) and found.name == "arena"
    assert [(v.rater, v.label) for v in found.votes] == [("arena_user_973", "tie")]
    assert [a.status for a in found.judges["gpt-4"]] == ["tie"]


def test_chatbot_arena_as_csv(tmp_path):
    path = tmp_path / "arena.csv"
    path.write_text("question_id,model_a,model_b,winner,judge\n1,b,a,model_a,arena_user_1\n")
    (found,) = read_recorded(path)
    assert [(v.item, v.label) for v in found.votes] == [("1:a:b", "b")]
    path.write_text("question_id,model_a,model_b,winner,judge\n1,b,a,left,arena_user_1\n")
    with pytest.raises(UsageError, match=r"arena.csv:record 1: `left` is no `winner`"):
        read_recorded(path)


VERDICT = {"id": "p1", "judge": "m", "prompt_version": "pair 1", "order": [0, 1], "repeat": 0}
VERDICT |= {"status": "a", "chance": 0.9, "level": None, "score": None, "tokens": [100, 1]}


def test_our_own_verdicts(tmp_path):
    rows = [
        VERDICT,
        {**VERDICT, "order": [1, 0], "status": "b", "chance": 0.3},
        {**VERDICT, "repeat": 1, "status": "invalid", "chance": None},
    ]
    lines(tmp_path / "verdicts.jsonl", rows)
    item = {"id": "p1", "prompt": "hello", "first": "x", "second": "x", "models": ["s", "t"]}
    lines(tmp_path / "judgements.jsonl", [{**item, "lengths": [3, 4], "gold": "b"}])
    (tmp_path / "summary.json").write_text('{"cost": 0.3}')
    (found,) = read_recorded(tmp_path)
    (known,) = found.items.values()
    assert (known.models, known.lengths, known.gold, known.identical) == (
        ("s", "t"),
        (3, 4),
        "b",
        True,
    )
    assert [a.repeat for a in found.judges["m"]] == [0, 0, 1]
    made = card(found).judges[0]
    assert (made.tokens_in, made.tokens_out, made.cost) == (300, 3, pytest.approx(0.3))
    assert (made.consistency.value, made.parse.value) == (0, pytest.approx(2 / 3))


def test_scores_are_no_verdicts_on_pairs(tmp_path):
    path = lines(tmp_path / "verdicts.jsonl", [VERDICT, {**VERDICT, "status": "scored"}])
    with pytest.raises(UsageError, match=r"verdicts.jsonl:2: this row scores a single response"):
        read_recorded(path)


def test_votes_beside_verdicts(tmp_path):
    lines(tmp_path / "verdicts.jsonl", [VERDICT, {**VERDICT, "order": [1, 0]}])
    votes = lines(
        tmp_path / "votes.jsonl",
        [
            {"id": "p1", "label": "a", "rater": "w"},
            {"item": "p1", "winner": "right", "worker": 3},
            {"id": "other", "label": "b"},
        ],
    )
    found = with_votes(read_recorded(tmp_path / "verdicts.jsonl")[0], read_votes(votes))
    assert [(v.rater, v.label) for v in found.votes] == [("w", "a"), ("3", "b")]
    assert "1 votes are about other items." in found.notes
    assert card(found).judges[0].people.value == 0.5


@pytest.mark.parametrize("kind", ["absent", "empty folder", "text", "other rows", "no row"])
def test_what_is_no_source_is_refused(tmp_path, kind):
    path = tmp_path / "x.jsonl"
    if kind == "empty folder":
        path = tmp_path
    elif kind == "text":
        path = tmp_path / "x.txt"
        path.write_text("hello")
    elif kind == "other rows":
        path.write_text('{"prompt": "x"}\n')
    elif kind == "no row":
        path.write_text("")
    with pytest.raises(UsageError) as error:
        read_recorded(path)
    assert str(path.name) in str(error.value)


def test_makers():
    assert [maker_of(n) for n in ("GPT 3.5 Turbo", "gpt4_pair", "claude-v1")] == [
        "openai",
        "openai",
        "anthropic",
    ]
    assert maker_of("alpaca-13b") == "" == maker_of("vicuna-13b-v1.2")


@pytest.mark.parametrize(
    ("subset", "judge", "consistency", "accuracy", "first"),
    [
        ("Natural", "GPT-4", 0.930, 0.925, 0.525),
        ("Natural", "ChatGPT", 0.620, 0.730, 0.670),
        ("Natural", "PaLM2", 0.818, 0.800, 0.571),
        ("Natural", "LLaMA2", 0.670, 0.755, 0.595),
        ("Natural", "Falcon", 0.140, 0.570, 0.930),
        ("Adversarial_Neighbor", "ChatGPT", 0.612, 0.231, 0.687),
    ],
)
def test_llmbar_by_its_figures(shared, subset, judge, consistency, accuracy, first):
    (found,) = read_recorded(shared(f"data/llmbar/{subset}"))
    made = card(found, [judge]).judges[0]
    figures = (made.consistency.value, made.accuracy_asked.value, made.first_slot.value)
    assert figures == pytest.approx((consistency, accuracy, first), abs=5e-4)


def test_mtbench_by_what_was_published(shared):
    one, two = (card(found) for found in read_recorded(shared("data/mtbench")))
    for made, counts in (
        (one, ((886, 1343), (727, 859), (454, 721), (388, 479))),
        (two, ((0.6574, 1325), (0.8461, 864), (0.6662, 707), (0.8186, 474))),
    ):
        judge, people = made.judges[0], made.people
        agreed = (judge.people, judge.people_no_ties, people.agreement, people.agreement_no_ties)
        for figure, (equal, pairs) in zip(agreed, counts, strict=True):
            share = equal / pairs if equal > 1 else equal
            assert (figure.n, figure.value) == (pairs, pytest.approx(share, abs=5e-5))
    printed = [f"{v:.0%}" for v in one.published.values()]
    assert printed == ["66%", "85%", "63%", "81%"]
    said = [one.judges[0].items["inconsistent"], two.judges[0].items["inconsistent"]]
    assert sum(said) == 380
