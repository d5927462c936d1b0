"""Public shapes of rows: each loads as its authors publish it, all of the conversation is in it,
and what nobody reads is named.
"""

import pytest

from laurel.core.errors import UsageError
from laurel.data.formats import (
    detect_format,
    normalise,
    normalise_all,
    rows_fit_for,
    unused_columns,
)
from laurel.data.layouts import LAYOUTS
from laurel.data.source import Row, load_rows

SYSTEM = {"role": "system", "content": "S"}


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


def row(**columns):
    return Row(columns, "train.jsonl:1", "id-0")


def human(text):
    return {"from": "human", "value": text}


def gpt(text, **more):
    return {"from": "gpt", "value": text, **more}


def pair(prompt, chosen="g", rejected="b"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def turns(prompt, chosen="g", rejected="b"):
    return {"prompt": prompt, "chosen": [bot(chosen)], "rejected": [bot(rejected)]}


def ranking(prompt, responses, ranks):
    return {"prompt": prompt, "responses": responses, "ranks": ranks}


def steps(prompt, completions, labels):
    return {"prompt": prompt, "completions": completions, "labels": labels}


def spoken(*said):
    return {"prompt": list(said[:-1]), "completion": list(said[-1:])}


Q, A = [user("q")], [user("q"), bot("g")]
B = [user("q"), bot("b")]
ULTRA = [
    {"response": "r1", "overall_score": 3.0},
    {"response": "r2", "overall_score": 8.5},
    {"response": "r3", "annotations": {}, "overall_score": 3.0},
]
SHAPES = [
    # (whose, the row, what uses it, our fields, columns not used)
    (
        "Alpaca",
        {"instruction": "q", "input": "", "output": "g"},
        "sft",
        {"prompt": "q", "completion": "g"},
        [],
    ),
    (
        "Alpaca",
        {"instruction": "q", "input": "x", "output": "g"},
        "sft",
        {"prompt": "q\n\nx", "completion": "g"},
        [],
    ),
    (
        "Alpaca",
        {"system": "S", "instruction": "q", "input": "x", "output": "g"},
        "sft",
        spoken(SYSTEM, user("q\n\nx"), bot("g")),
        [],
    ),
    (
        "Alpaca",
        {"system": "S", "history": [["a", "b"]], "instruction": "q", "output": "g"},
        "sft",
        spoken(SYSTEM, user("a"), bot("b"), *A),
        [],
    ),
    (
        "Alpaca",
        {"history": [], "instruction": "q", "output": "g", "lang": "en"},
        "sft",
        {"prompt": "q", "completion": "g"},
        ["lang"],
    ),
    (
        "Alpaca",
        {"instruction": "q", "input": "x", "chosen": "g", "rejected": "b"},
        "preference",
        pair("q\n\nx"),
        [],
    ),
    (
        "Dolly",
        {"instruction": "q", "context": "x", "response": "g", "category": "qa"},
        "sft",
        {"prompt": "q\n\nx", "completion": "g"},
        ["category"],
    ),
    (
        "ShareGPT",
        {"system": "S", "conversations": [human("q"), gpt("g")]},
        "sft",
        {"messages": [SYSTEM, *A]},
        [],
    ),
    (
        "ShareGPT",
        {
            "system": "S",
            "tools": "[]",
            "conversations": [
                human("q"),
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "observation", "value": "o"},
                gpt("g"),
            ],
        },
        "sft",
        {
            "messages": [
                SYSTEM,
                user("q"),
                bot(
                    "",
                    tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}],
                ),
                {"role": "tool", "content": "o"},
                bot("g"),
            ]
        },
        [],
    ),
    (
        "ShareGPT",
        {"conversations": [human("q")], "chosen": gpt("g"), "rejected": gpt("b")},
        "preference",
        turns(Q),
        [],
    ),
    (
        "ShareGPT",
        {"conversations": [human("q"), gpt("g")], "kto_tag": True},
        "label",
        {**spoken(*A), "label": True},
        [],
    ),
    (
        "SlimOrca",
        {
            "conversations": [
                {"from": "system", "value": "S", "weight": None},
                {**human("q"), "weight": 0.0},
                gpt("g", weight=1.0),
            ]
        },
        "sft",
        {"messages": [SYSTEM, {**user("q"), "weight": 0.0}, bot("g", weight=1.0)]},
        [],
    ),
    (
        "OpenAI",
        {"messages": [user("q"), bot("b", weight=0), user("r"), bot("g", weight=1)]},
        "sft",
        {"messages": [user("q"), bot("b", weight=0), user("r"), bot("g", weight=1)]},
        [],
    ),
    (
        "axolotl",
        {"messages": [user("q"), bot("b", train=False), bot("c", train_on_turn=False)]},
        "sft",
        {"messages": [user("q"), bot("b", train=False), bot("c", train_on_turn=False)]},
        [],
    ),
    (
        "OpenAI preference",
        {
            "input": {"messages": Q, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [bot("g")],
            "non_preferred_output": [bot("b")],
        },
        "preference",
        turns(Q),
        [],
    ),
    (
        "Orca pairs",
        {"system": "S", "question": "q", "chosen": "g", "rejected": "b"},
        "preference",
        turns([SYSTEM, *Q]),
        [],
    ),
    (
        "Orca pairs",
        {"system": "", "question": "q", "chosen": "g", "rejected": "b"},
        "preference",
        pair("q"),
        [],
    ),
    (
        "argilla Orca",
        {
            "system": "S",
            "input": "q",
            "chosen": "g",
            "rejected": "b",
            "generations": ["g", "b"],
            "rating": [9, 7],
        },
        "preference",
        turns([SYSTEM, *Q]),
        ["generations", "rating"],
    ),
    (
        "argilla",
        {"instruction": "q", "chosen_response": "g", "rejected_response": "b", "chosen_rating": 5},
        "preference",
        pair("q"),
        ["chosen_rating"],
    ),
    (
        "OpenOrca",
        {"id": "1", "system_prompt": "S", "question": "q", "response": "g"},
        "sft",
        spoken(SYSTEM, *A),
        ["id"],
    ),
    (
        "UltraFeedback",
        {"source": "s", "instruction": "q", "completions": ULTRA},
        "comparison",
        ranking("q", ["r1", "r2", "r3"], [2, 1, 2]),
        ["source"],
    ),
    (
        "UltraFeedback",
        {"instruction": "q", "completions": ULTRA},
        "preference",
        pair("q", "r2", "r1"),
        [],
    ),
    (
        "UltraFeedback binarised",
        {
            "prompt": "q",
            "prompt_id": "i",
            "chosen": A,
            "rejected": B,
            "messages": A,
            "score_chosen": 8.0,
        },
        "preference",
        turns(Q),
        ["prompt_id", "messages", "score_chosen"],
    ),
    (
        "TRL ultrafeedback",
        {"chosen": [user("q"), bot("g")], "rejected": [user("q"), bot("b")], "score_chosen": 8.0},
        "preference",
        turns(Q),
        ["score_chosen"],
    ),
    (
        "TRL kto-mix",
        {"prompt": Q, "completion": [bot("g")], "label": False},
        "label",
        {**spoken(*A), "label": False},
        [],
    ),
    (
        "argilla kto-mix",
        {"prompt": "q", "completion": A, "label": 1},
        "label",
        {**spoken(*A), "label": True},
        [],
    ),
    (
        "distilabel",
        {"instruction": "q", "generations": ["x", "y"], "ratings": [1, 4]},
        "comparison",
        ranking("q", ["x", "y"], [2, 1]),
        [],
    ),
    (
        "Nectar",
        {
            "prompt": "\n\nHuman: q\n\nAssistant: ",
            "answers": [{"answer": "x", "model": "m", "rank": 2}, {"answer": "y", "rank": 1}],
        },
        "comparison",
        ranking(Q, [[bot("x")], [bot("y")]], [2, 1]),
        [],
    ),
    (
        "HelpSteer",
        {"prompt": "q", "response": "g", "helpfulness": 3, "correctness": 4},
        "sft",
        {"prompt": "q", "completion": "g"},
        ["helpfulness", "correctness"],
    ),
    (
        "HelpSteer2",
        {"prompt": "q", "response_1": "b", "response_2": "g", "preference_strength": 2},
        "preference",
        pair("q"),
        [],
    ),
    (
        "HelpSteer2, a tie",
        {"prompt": "q", "response_1": "x", "response_2": "y", "preference_strength": 0},
        "preference",
        {**pair("q", "x", "y"), "weight": 0.0},
        [],
    ),
    (
        "HelpSteer3",
        {"context": Q, "response1": "g", "response2": "b", "overall_preference": -1, "domain": "d"},
        "preference",
        turns(Q),
        ["domain"],
    ),
    (
        "SHP",
        {"history": "q", "human_ref_A": "g", "human_ref_B": "b", "labels": 1, "domain": "d"},
        "preference",
        pair("q"),
        ["domain"],
    ),
    (
        "SHP",
        {"history": "q", "human_ref_A": "b", "human_ref_B": "g", "labels": 0},
        "preference",
        pair("q"),
        [],
    ),
    (
        "WebGPT",
        {
            "question": {"full_text": "q", "id": "1"},
            "answer_0": "b",
            "answer_1": "g",
            "score_0": -0.5,
            "score_1": 0.5,
            "tokens_0": {"p": [1]},
        },
        "preference",
        pair("q"),
        ["tokens_0"],
    ),
    (
        "Summaries",
        {
            "info": {"subreddit": "r", "title": "t", "post": "p"},
            "summaries": [{"text": "b"}, {"text": "g"}],
            "choice": 1,
            "worker": "w",
        },
        "preference",
        pair("SUBREDDIT: r/r\n\nTITLE: t\n\nPOST: p\n\nTL;DR:"),
        ["worker"],
    ),
    (
        "MT-bench",
        {"conversation_a": A, "conversation_b": B, "winner": "model_a", "judge": "j"},
        "preference",
        turns(Q),
        ["judge"],
    ),
    (
        "Arena, a tie",
        {"conversation_a": A, "conversation_b": B, "winner": "tie (bothbad)"},
        "preference",
        {**turns(Q), "weight": 0.0},
        [],
    ),
    (
        "PKU-SafeRLHF",
        {
            "prompt": "q",
            "response_0": "b",
            "response_1": "g",
            "better_response_id": 1,
            "safer_response_id": 0,
        },
        "preference",
        pair("q"),
        ["safer_response_id"],
    ),
    (
        "AlpacaFarm",
        {"instruction": "q", "input": "x", "output_1": "b", "output_2": "g", "preference": 2},
        "preference",
        pair("q\n\nx"),
        [],
    ),
    (
        "LLMBar",
        {"input": "q", "output_1": "g", "output_2": "b", "label": 1},
        "preference",
        pair("q"),
        [],
    ),
    (
        "Stack Exchange",
        {"question": "q", "response_j": "g", "response_k": "b", "qid": 4},
        "preference",
        pair("q"),
        ["qid"],
    ),
    ("LIMA", {"conversations": ["q", "g"], "source": "s"}, "sft", {"messages": A}, ["source"]),
    (
        "LangChain",
        {"messages": [{"role": "Human", "content": "q"}, {"role": "AI", "content": "g"}]},
        "sft",
        {"messages": A},
        [],
    ),
    ("to be answered", {"messages": Q, "answer": "4"}, "rl", {"prompt": Q}, ["answer"]),
    ("GSM8K", {"question": "q", "answer": "g"}, "rl", {"prompt": "q"}, ["answer"]),
    (
        "Capybara",
        {
            "source": "s",
            "conversation": [{"input": "q", "output": "g"}, {"input": "r", "output": "h"}],
        },
        "sft",
        {"messages": [*A, user("r"), bot("h")]},
        ["source"],
    ),
    (
        "Capybara pairs",
        {"conversation": [{"input": "q", "output": "b"}], "chosen": A, "rejected": B},
        "preference",
        turns(Q),
        ["conversation"],
    ),
    (
        "SQuAD",
        {"context": "c", "question": "q", "answers": {"text": ["g", "h"], "answer_start": [1, 5]}},
        "sft",
        {"prompt": "c\n\nq", "completion": "g"},
        [],
    ),
    (
        "Self-Instruct",
        {"id": "1", "instruction": "q", "instances": [{"input": "x", "output": "g"}]},
        "sft",
        {"prompt": "q\n\nx", "completion": "g"},
        ["id"],
    ),
    (
        "MBPP",
        {
            "task_id": 1,
            "text": "q",
            "code": "g",
            "test_list": ["assert f() == 1"],
            "test_setup_code": "",
            "challenge_test_list": [],
        },
        "sft",
        {
            "prompt": "q\n\nYour code should pass these tests:\n\nassert f() == 1",
            "completion": "g",
            "task": "code",
        },
        ["task_id"],
    ),
    (
        "MBPP, sanitised",
        {"prompt": "q", "code": "g", "test_imports": [], "test_list": ["assert f() == 1"]},
        "rl",
        {
            "prompt": "q\n\nYour code should pass these tests:\n\nassert f() == 1",
            "completion": "g",
            "task": "code",
        },
        ["code"],
    ),
    (
        "MATH",
        {
            "problem": "q",
            "level": "Level 5",
            "type": "Algebra",
            "solution": r"So $x = \boxed{\frac{1}{2}}$.",
        },
        "sft",
        {
            "prompt": "q",
            "completion": r"So $x = \boxed{\frac{1}{2}}$.",
            "answer": r"\frac{1}{2}",
            "task": "math",
        },
        ["level", "type"],
    ),
    (
        "MATH-500",
        {"problem": "q", "solution": r"\boxed{7}", "answer": "8"},
        "rl",
        {"prompt": "q", "answer": "8", "task": "math"},
        ["solution", "answer"],
    ),
    (
        "ProcessBench",
        {"problem": "q", "steps": ["x", "y", "z"], "label": 1, "final_answer_correct": False},
        "steps",
        steps("q", ["x", "y"], [1, -1]),
        ["final_answer_correct"],
    ),
    (
        "ProcessBench",
        {"problem": "q", "steps": ["x", "y"], "label": -1, "final_answer_correct": True},
        "steps",
        steps("q", ["x", "y"], [1, 1]),
        ["final_answer_correct"],
    ),
    (
        "BIG-Bench Mistake",
        {"input": "q", "steps": ["x", "y", "z"], "answer": "a", "target": "t", "mistake_index": 0},
        "steps",
        steps("q", ["x"], [-1]),
        ["answer", "target"],
    ),
    (
        "BIG-Bench Mistake",
        {"input": "q", "steps": ["x", "y"], "answer": "a", "target": "a", "mistake_index": None},
        "steps",
        steps("q", ["x", "y"], [1, 1]),
        ["answer", "target"],
    ),
    (
        "PRMBench",
        {
            "idx": "i",
            "original_question": "o",
            "modified_question": "q",
            "original_process": ["u"],
            "modified_process": ["x", "y", "z"],
            "modified_steps": [2],
            "error_steps": [2, 3],
            "reason": "r",
        },
        "steps",
        steps("q", ["x", "y", "z"], [1, -1, -1]),
        ["idx", "original_question", "original_process", "modified_steps", "reason"],
    ),
]


@pytest.mark.parametrize(("whose", "columns", "use", "fields", "left"), SHAPES)
def test_public_shapes_load_as_they_are(whose, columns, use, fields, left):
    (fitted,) = rows_fit_for([row(**columns)], use)
    assert {name: fitted.columns.get(name) for name in fields} == fields
    assert sorted(unused_columns([fitted], use)) == sorted(left)
    assert all(
        value in (None, fitted.columns.get(name, value))
        for name, value in columns.items()
        if name not in (*fields, "conversation", "conversations")
    )
    once = normalise(row(**columns))
    assert normalise(once) == once


def test_every_known_shape_has_a_case_here():
    """No row of the table of shapes is untried: each is the one that reads some case above, or a
    benchmark tried elsewhere.
    """
    cases = [
        {name: value for name, value in columns.items() if value is not None}
        for _, columns, *_ in SHAPES
    ]
    reads = {
        next((shape.name for shape in LAYOUTS if shape.read(columns)), None) for columns in cases
    }
    elsewhere = {"HumanEval", "IFEval", "PRM800K", "LLaMA-Factory KTO"}
    assert {shape.name for shape in LAYOUTS} - reads <= elsewhere


SAID = "what the model must see"
PLACES = [
    {"prompt": "q", "completion": "g"},
    {"prompt": Q, "completion": [bot("g")]},
    {"messages": A},
    {"conversations": [human("q"), gpt("g")]},
    {"instruction": "q", "output": "g"},
    {"question": "q", "response": "g"},
    pair("q"),
    {"question": "q", "chosen": "g", "rejected": "b"},
    {"prompt": "q", "chosen": A, "rejected": B},
    {"prompt": "q", "completion": "g", "label": True},
    ranking("q", ["x", "y"], [1, 2]),
    steps("q", ["x"], [1]),
    {"prompt": "q", "answer": "4"},
]


@pytest.mark.parametrize("columns", PLACES)
@pytest.mark.parametrize(
    "more",
    [
        {"system": SAID},
        {"system_prompt": SAID},
        {"system_message": SAID},
        {"system": [{"type": "text", "text": SAID}]},
        {"history": [[SAID, "x"]]},
        {"history": [user(SAID), bot("x")]},
        {"history": [human(SAID), gpt("x")]},
        {"history": [{"user": SAID, "assistant": "x"}]},
        {"history": [SAID, "x"]},
    ],
)
def test_a_system_text_and_earlier_turns_reach_the_prompt(columns, more):
    """K02: they stood in a column of their own and were dropped without a word, in every format."""
    fitted = normalise(row(**columns, **more))
    said = fitted.columns.get("prompt", fitted.columns.get("messages"))
    assert [turn for turn in said if turn["content"] == SAID]
    assert not set(unused_columns([fitted])) & {
        "system",
        "system_prompt",
        "system_message",
        "history",
    }
    assert normalise(fitted) == fitted


@pytest.mark.parametrize(
    ("columns", "use", "left"),
    [
        ({"prompt": "q", "completion": "g", "context": "c"}, "sft", ["context"]),
        (
            {"prompt": "q", "completion": "g", "thoughts": "c", "empty": "", "none": None},
            "sft",
            ["thoughts"],
        ),
        ({"prompt": "q", "completion": "g", "history": 5}, "sft", ["history"]),
        ({"prompt": "q", "completion": "g", "history": ["odd"]}, "sft", ["history"]),
        ({"messages": [SYSTEM, *A], "system": "another"}, "sft", ["system"]),
        ({"text": "t", "system": "s"}, "sft", ["system"]),
        ({"prompt": "q", "completion": "g", "weight": 2.0}, "sft", ["weight"]),
        ({**pair("q"), "weight": 2.0, "margin": 1.0, "source": "s"}, "preference", ["source"]),
        ({"question": "q", "choices": ["x", "y"], "answer": 1}, "rl", ["choices", "answer"]),
        ({"instruction": "q", "context": {"title": "t"}, "response": "g"}, "sft", ["context"]),
        ({"prompt": "q", "completion": "g", "tools": [{"name": "f"}]}, "sft", ["tools"]),
        ({"messages": A, "tools": [{"name": "f"}]}, "sft", []),
    ],
)
def test_what_nobody_reads_is_named(columns, use, left):
    assert unused_columns(rows_fit_for([row(**columns)], use), use) == left


def test_a_column_read_in_some_rows_only_comes_with_the_others_number():
    rows = [row(prompt="q", completion="g", history=held) for held in ([["a", "b"]], 5, 6)]
    assert unused_columns(rows_fit_for(rows, "sft"), "sft") == ["history (2 rows)"]


def test_one_system_text_makes_conversations_of_the_whole_file():
    """Half texts, half messages would be two kinds of prompt in one run, and kto mixes the answers
    of different rows.
    """
    rows = normalise_all(
        [row(system=said, question="q", chosen="g", rejected="b") for said in ("S", "", None)]
    )
    assert [item.columns["prompt"] for item in rows] == [[SYSTEM, *Q], Q, Q]
    assert all(item.columns["chosen"] == [bot("g")] for item in rows)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}], "hello"),
        ([{"type": "text", "text": "hello", "image_url": None}], "hello"),
        ([{"type": "input_text", "text": "hello"}], "hello"),
        (
            [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}],
            "image_url",
        ),
        ([{"type": "input_audio", "input_audio": {}}], "input_audio"),
        ([5], "a int"),
    ],
)
def test_contents_in_parts_are_joined_and_what_is_no_text_is_refused_by_name(content, expected):
    given = row(messages=[{"role": "user", "content": content}, bot("g")])
    if expected == "hello":
        assert normalise(given).columns["messages"][0]["content"] == "hello"
        assert normalise(row(prompt=[{"role": "user", "content": content}])).columns["prompt"] == [
            user("hello")
        ]
        return
    with pytest.raises(UsageError, match=f"message 1 has a part of type `{expected}`"):
        normalise(given)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"messages": A, "prompt": None, "completion": None}, "messages"),
        ({"messages": A, "prompt": "", "completion": ""}, "messages"),
        ({"prompt": "q", "completion": "g", "messages": []}, "prompt and completion"),
        ({"prompt": "q", "completion": "g", "label": None, "text": None}, "prompt and completion"),
        ({**pair("q"), "margin": None, "responses": None, "ranks": None}, "preference"),
        ({"text": "t", "prompt": None, "chosen": None, "rejected": None}, "text"),
        ({"prompt": "q", "completion": "g", "label": 3}, "prompt and completion"),
    ],
)
def test_columns_without_content_do_not_decide_the_format(columns, name):
    """K15: an Arrow table writes a null for every column that a row lacks, and pandas an empty
    text.
    """
    assert detect_format(normalise(row(**columns)).columns).name == name


def test_lists_of_turns_written_out_as_text_are_read():
    """What pandas makes of a column of lists in a CSV file."""
    for text in (
        '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "g"}]',
        repr(A),
    ):
        assert normalise(row(messages=text)).columns["messages"] == A
    assert normalise(row(prompt="[{not a list}]")).columns["prompt"] == "[{not a list}]"


def test_a_prompt_that_its_dialogues_do_not_begin_with_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match="must begin with what `prompt` says"):
        normalise(row(prompt="another", chosen=A, rejected=B))
    (fitted,) = rows_fit_for(
        [row(prompt="q", chosen=[bot("g")], rejected=[bot("b")])], "preference"
    )
    assert fitted.columns["prompt"] == Q
    (fitted,) = rows_fit_for([row(prompt=Q, chosen=A, rejected=B)], "preference")
    assert (fitted.columns["prompt"], fitted.columns["chosen"]) == (Q, [bot("g")])


@pytest.mark.parametrize(
    ("path", "use", "left"),
    [
        ("data/self-instruct/seed_tasks.jsonl", "sft", {"id", "name", "is_classification"}),
        ("data/llmbar/Natural/dataset.json", "preference", set()),
        ("data/chats/dummy_conversation.json", "sft", {"id"}),
    ],
)
def test_public_files_load_for_training(shared, path, use, left):
    rows = rows_fit_for(load_rows(str(shared(path))), use)
    assert set(unused_columns(rows, use)) == left
