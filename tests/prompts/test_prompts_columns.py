"""Other people's names for the columns of a log; what is not used is named, and what is nearly ours
is refused.
"""

import json

import numpy as np
import pytest

from laurel.cli.main import main
from laurel.core.errors import UsageError
from laurel_prompts.logs import read_log


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [("1 + 1?", "a", True), ("1 + 1?", "b", False), ("2 + 2?", "a", True)]
NAMES = [
    ("question", "prompt", "correct"),
    ("Question", "Prompt", "Is Correct"),
    ("problem", "prompt_template", "score"),
    ("input", "template", "success"),
    ("query-text", "prompt_text", "is_correct"),
    ("QUERY", "prompt_name", "reward"),
]


@pytest.mark.parametrize("names", NAMES)
def test_common_names_are_read_and_told(tmp_path, names):
    said = []
    log = read_log(
        written(tmp_path / "log.jsonl", [dict(zip(names, row, strict=True)) for row in ROWS]),
        say=said.append,
    )
    assert (log.queries, log.prompts) == (("1 + 1?", "2 + 2?"), ("a", "b"))
    np.testing.assert_array_equal(log.reward_SP, [[1, 0], [1, np.nan]])
    ours = ("query", "prompt", "reward")
    told = [
        f"log.jsonl: column `{name}` is read as {column}"
        for name, column in zip(names, ours, strict=True)
        if name != column
    ]
    assert said == told and told


def test_more_columns_are_named_and_a_log_with_them_is_read(tmp_path):
    said = []
    more = {
        "timestamp": "2026-11-28T10:00:00Z",
        "answer": "2",
        "latency": 0.3,
        "prompt_id": 4,
        "Unnamed: 0": 0,
        "prompt_2": "x",
    }
    rows = [
        {
            "query": q,
            "prompt": p,
            "reward": r,
            "tokens": 7,
            "model_name": "m",
            "completion": "two",
            **more,
        }
        for q, p, r in ROWS
    ]
    log = read_log(written(tmp_path / "log.jsonl", rows), say=said.append)
    assert (
        log.cost_SP[0].tolist() == [7, 7]
        and log.responses[0, 1] == "two"
        and log.prompts == ("a", "b")
    )
    assert (
        "log.jsonl: columns that are not used: " + ", ".join(f"`{name}`" for name in more) in said
    )
    assert read_log(tmp_path / "log.jsonl", model="m").queries == log.queries


def test_a_csv_of_pandas_is_read(tmp_path):
    (tmp_path / "log.csv").write_text(
        "Unnamed: 0,Question,prompt_id,Correct,Cost\n0,1 + 1?,0,True,0.50\n1,1 + 1?,1,False,2\n2,2"
        " + 2?,0,TRUE,1.0\n",
        encoding="utf-8",
    )
    said = []
    log = read_log(tmp_path / "log.csv", say=said.append)
    assert log.names == ("0", "1") and log.cost_SP[0].tolist() == [0.5, 2]
    np.testing.assert_array_equal(log.reward_SP, [[1, 0], [1, np.nan]])
    assert "log.csv: columns that are not used: `Unnamed: 0`" in said


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"question": "q", "problem": "p", "prompt": "a", "reward": 1},
            "2 columns could be the query: `question`, `problem`",
        ),
        (
            {"query": "q", "prompt": "a", "correct": 1, "score": 0.2},
            "2 columns could be the reward: `correct`, `score`",
        ),
        (
            {"query": "q", "prompt": "a", "rewards": 1},
            "unknown column `rewards`. Did you mean `reward`?",
        ),
        (
            {"query": "q", "prompt": "a", "reward": 1, "propensty": 0.5},
            "unknown column `propensty`. Did you mean `propensity`?",
        ),
        (
            {"query": "q", "prompt": "a", "reward": 1, "costs": 3},
            "unknown column `costs`. Did you mean `cost`?",
        ),
        (
            {"query": "q", "prompt": "a", "grade": 1},
            "no column `reward`. The file has `query`, `prompt`, `grade`",
        ),
        ({"query": "q", "reward": 1}, "no column `prompt`"),
        (
            {"question": "q", "prompt": "a", "correct": "maybe"},
            "reward is the text 'maybe', not a number from 0 to 1",
        ),
    ],
)
def test_what_is_doubtful_is_refused(tmp_path, row, said):
    with pytest.raises(UsageError) as caught:
        read_log(written(tmp_path / "log.jsonl", [row]))
    assert said in " ".join(str(caught.value).split())


def test_a_column_under_its_own_name_is_never_replaced(tmp_path):
    said = []
    log = read_log(
        written(
            tmp_path / "log.jsonl",
            [{"query": "q", "question": "other", "prompt": "a", "reward": 0, "correct": 1}],
        ),
        say=said.append,
    )
    assert log.queries == ("q",) and log.reward_SP.tolist() == [[0.0]]
    assert said == ["log.jsonl: columns that are not used: `question`, `correct`"]


def test_the_command_line_says_so_and_goes_on(tmp_path, capsys):
    rows = [
        {"question": f"What is {n}?", "prompt": p, "correct": (n + k) % 2, "ts": n}
        for n in range(12)
        for k, p in enumerate("ab")
    ]
    assert (
        main(
            [
                "prompt",
                "fit",
                str(written(tmp_path / "log.jsonl", rows)),
                "--output_dir",
                str(tmp_path / "p"),
            ]
        )
        == 0
    )
    said = capsys.readouterr().err
    assert "`question` is read as query" in said and "not used: `ts`" in said
    asked = written(tmp_path / "asked.jsonl", [{"question": "What is 3?", "id": 8, "name": "mine"}])
    assert (
        main(
            [
                "prompt",
                "choose",
                str(tmp_path / "p"),
                str(asked),
                "--out",
                str(tmp_path / "chosen.jsonl"),
            ]
        )
        == 0
    )
    row = json.loads((tmp_path / "chosen.jsonl").read_text())
    assert (
        row["id"] == 8 and row["question"] == row["query"] == "What is 3?" and row["name"] in "ab"
    )
    assert "`name` of the file of queries make way" in capsys.readouterr().err
    assert (
        main(
            ["prompt", "choose", str(tmp_path / "p"), str(written(asked, [{"text": "What is 3?"}]))]
        )
        == 2
    )
    assert "no column `query`" in capsys.readouterr().err
