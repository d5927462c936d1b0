"""Formats: what is detected, what is mapped, what is refused and in which words."""

import pytest

from laurel.core.errors import UsageError
from laurel.data.formats import FORMATS, USES, detect_format, gold_answer, normalise, rows_fit_for
from laurel.data.source import Row, load_rows

USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": "Hello"}


def row(**columns):
    return Row(columns, "train.jsonl:17", "id-0")


FITTING = [
    ("text", {"text": "Once"}),
    ("messages", {"messages": [USER, BOT]}),
    ("prompt", {"prompt": "p"}),
    ("prompt", {"prompt": [USER]}),
    ("prompt and completion", {"prompt": "p", "completion": "c"}),
    ("prompt and completion", {"prompt": [USER], "completion": [BOT]}),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "b"}),
    ("preference", {"prompt": [USER], "chosen": [BOT], "rejected": [BOT], "margin": 2}),
    ("labelled completion", {"prompt": "p", "completion": "c", "label": True}),
    ("stepwise", {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}),
    ("K-wise ranking", {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 3]}),
    ("K-wise ranking", {"prompt": [USER], "responses": [[BOT], [BOT]], "ranks": [1, 1]}),
]


@pytest.mark.parametrize(("name", "columns"), FITTING)
def test_every_format_is_detected_and_stays_as_it_is(name, columns):
    form = detect_format(columns)
    assert form is not None and form.name == name
    assert form.conversational == (isinstance(columns.get("prompt"), list) or "messages" in columns)
    assert normalise(row(**columns)) == row(**columns)


def test_every_format_has_a_case_here():
    assert {form.name for form in FORMATS} == {name for name, _ in FITTING}


ILL_FITTING = [
    ({"prompt": 5}, ["`prompt`", "text or a list of messages", "the number 5"]),
    ({"prompt": ""}, ["`prompt`", "empty text"]),
    ({"prompt": []}, ["`prompt`", "a list of 0"]),
    ({"text": None}, ["`text`", "null"]),
    ({"text": "\ud800"}, ["`text`"]),
    ({"messages": "hello"}, ["`messages`", "a list of messages"]),
    (
        {"messages": [USER, {"role": "robot", "content": "x"}]},
        ["message 2", "'robot'", "assistant"],
    ),
    ({"messages": [USER, {"role": "assistant"}]}, ["message 2", "no `content`"]),
    ({"messages": [USER, {"role": "assistant", "content": 3}]}, ["message 2", "the number 3"]),
    ({"messages": [USER, "x"]}, ["message 2", "the text 'x'"]),
    ({"conversations": [{"from": "alien", "value": "x"}]}, ["message 1", "'alien'"]),
    ({"conversations": [{"from": "gpt"}]}, ["message 1", "no `role`"]),
    ({"prompt": "p", "completion": 7}, ["`completion`", "the number 7"]),
    (
        {"prompt": "p", "completion": [BOT]},
        ["`prompt` is the text 'p'", "`completion` is a list of 1"],
    ),
    ({"prompt": [USER], "completion": [USER]}, ["`completion`", "assistant's, not user's"]),
    (
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "big"},
        ["`margin`", "a number", "'big'"],
    ),
    ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": True}, ["`margin`", "true"]),
    ({"prompt": "p", "completion": "c", "label": "yes"}, ["`label`", "true or false", "'yes'"]),
    ({"prompt": "p", "completions": ["a"], "labels": [True, False]}, ["1 items", "`labels` 2"]),
    ({"prompt": "p", "completions": ["a"], "labels": [2]}, ["`labels`"]),
    ({"prompt": "p", "responses": ["a", 3], "ranks": [1, 2]}, ["`responses`"]),
    ({"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, ["2 items", "`ranks` 1"]),
    (
        {"query": "q", "response": "r"},
        [
            "no known format",
            "`query`, `response`",
            "Rename",
            "`query` to `prompt`",
            "`response` to `completion`",
        ],
    ),
    ({"chosen": "a", "rejected": "b"}, ["no known format"]),
    ({"a": 1}, ["no known format", "Needed"]),
]


@pytest.mark.parametrize(("columns", "parts"), ILL_FITTING)
def test_an_ill_fitting_row_names_file_line_field_and_expectation(columns, parts):
    with pytest.raises(UsageError) as caught:
        normalise(row(**columns))
    assert str(caught.value).startswith("train.jsonl:17: ")
    for part in parts:
        assert part in str(caught.value), f"{part!r} not in {caught.value}"


def test_sharegpt_becomes_messages():
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "h"},
        {"from": "gpt", "value": "g"},
    ]
    fitted = normalise(row(id="x", conversations=turns)).columns
    assert fitted == {
        "id": "x",
        "messages": [
            {"role": r, "content": c}
            for r, c in (("system", "s"), ("user", "h"), ("assistant", "g"))
        ],
    }


def test_question_and_answer_become_prompt_and_completion_and_stay():
    plain = normalise(row(question="q", answer="a")).columns
    assert plain == {"prompt": "q", "completion": "a", "question": "q", "answer": "a"}
    worked = normalise(row(question="q", answer="so it is\n#### 1,080")).columns
    assert worked["task"] == "gsm8k" and worked["completion"] == "so it is\n#### 1,080"
    assert normalise(row(question="q", answer="a\n#### 5", task="mine")).columns["task"] == "mine"


def test_instruction_rows():
    assert (
        normalise(row(instruction="Add", input="1 2", output="3")).columns["prompt"] == "Add\n\n1 2"
    )
    assert normalise(row(instruction="Add", input="", output="3")).columns["prompt"] == "Add"
    assert normalise(row(instruction="Add", output="3")).columns["completion"] == "3"


def test_whole_dialogues_share_a_prompt():
    """The prompt ends before the first reply that differs; each side keeps at least its last
    turn.
    """
    shared_turns = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    fitted = normalise(row(chosen=shared_turns + "good", rejected=shared_turns + "bad")).columns
    assert [turn["content"] for turn in fitted["prompt"]] == ["a", "b", "c"]
    assert fitted["chosen"] == [{"role": "assistant", "content": "good"}]
    assert fitted["rejected"] == [{"role": "assistant", "content": "bad"}]
    same = normalise(row(chosen=shared_turns + "x", rejected=shared_turns + "x")).columns
    assert same["chosen"] == same["rejected"] == [{"role": "assistant", "content": "x"}]
    longer = normalise(
        row(chosen=[USER, BOT], rejected=[USER, {"role": "assistant", "content": "?"}, USER, BOT])
    ).columns
    assert longer["prompt"] == [USER] and len(longer["rejected"]) == 3
    forked = normalise(
        row(chosen=[USER, BOT, USER, BOT], rejected=[USER, BOT, {**USER, "content": "Else"}, BOT])
    ).columns
    assert forked["prompt"] == [USER] and len(forked["chosen"]) == 3


def test_benchmarks_get_their_task():
    code = {
        "task_id": "t/0",
        "prompt": "def f():\n",
        "canonical_solution": "    return 1",
        "test": "x",
        "entry_point": "f",
    }
    fitted = normalise(row(**code)).columns
    assert fitted["task"] == "humaneval" and gold_answer(fitted) == "    return 1"
    followed = normalise(row(key=1, prompt="Write", instruction_id_list=["a"], kwargs=[{}])).columns
    assert followed["task"] == "ifeval" and gold_answer(followed) is None


def test_normalising_twice_changes_nothing():
    for columns in (
        {
            "conversations": [
                {"from": "human", "value": "h"},
                {"from": "gpt", "value": "g", "weight": None},
            ]
        },
        {"question": "q", "answer": "a"},
        {"instruction": "i", "input": "x", "output": "o"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    ):
        once = normalise(row(**columns))
        assert normalise(once) == once


def test_gold_answer_of_each_kind():
    assert gold_answer({"completion": "c", "answer": "a"}) == "c"
    assert gold_answer({"completion": [BOT]}) == "Hello"
    assert gold_answer({"messages": [USER, BOT, USER]}) == "Hello"
    assert gold_answer({"answer": "a"}) == "a"
    assert gold_answer({"prompt": "p", "answer": 5}) is None


def test_needs_says_what_to_rename():
    fitting = [row(prompt="p", completion="c")]
    assert rows_fit_for(fitting, "sft") == fitting == rows_fit_for(fitting, "rl")
    assert rows_fit_for([row(question="q", answer="a")], "rl")[0].columns["prompt"] == "q"
    for rows, use, parts in [
        ([*fitting, row(text="t")], "rl", ["rl needs `prompt`", "this row has `text`"]),
        (
            [row(prompt="p", response="r")],
            "sft",
            ["`messages` or `prompt` + `completion`", "Rename `response` to `completion`"],
        ),
        (
            [row(prompt="p", better="b", worse="w")],
            "preference",
            ["Rename `better` to `chosen` and `worse` to `rejected`"],
        ),
        (fitting, "nothing", ["unknown use", *USES]),
    ]:
        with pytest.raises(UsageError) as caught:
            rows_fit_for(rows, use)
        for part in parts:
            assert part in str(caught.value)
    with pytest.raises(UsageError, match="column `answer` is missing"):
        rows_fit_for(fitting, "rl", ["answer"])


@pytest.mark.parametrize(
    ("path", "count", "name"),
    [
        ("data/chats/dummy_conversation.json", 500, "messages"),
        ("data/hh-rlhf/harmless-base_test.jsonl.gz", 2312, "preference"),
        ("data/hh-rlhf/helpful-base_test.jsonl.gz", 2354, "preference"),
        ("data/ifeval/input_data.jsonl", 541, "prompt"),
        ("data/humaneval/HumanEval.jsonl.gz", 164, "prompt and completion"),
        ("data/gsm8k/train.jsonl", 7473, "prompt and completion"),
    ],
)
def test_public_files_fit(shared, path, count, name):
    rows = [normalise(item) for item in load_rows(str(shared(path)))]
    assert len(rows) == count and {detect_format(item.columns).name for item in rows} == {name}
    assert len({item.id for item in rows}) == count
