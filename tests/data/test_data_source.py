"""Reading: every kind of file, every kind of damage, stable ids, hub datasets."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from laurel.core.errors import UsageError
from laurel.data.read import read_records
from laurel.data.source import GENERATED_ROWS, load_hub, load_rows

ROWS = [
    {"prompt": "a\u2028b", "completion": "c"},
    {"prompt": "\u00e9", "completion": "", "margin": 1.5},
]


def refused(path, *parts):
    with pytest.raises(UsageError) as caught:
        load_rows(str(path))
    for part in parts:
        assert part in str(caught.value), f"{part!r} not in {caught.value}"


def test_every_kind_of_file_gives_the_same_columns(tmp_path):
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    (tmp_path / "a.jsonl").write_text(f"\ufeff{lines}\n\n", encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.replace("\n", "\r\n").encode()))
    (tmp_path / "A.JSON").write_text(json.dumps(ROWS))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(ROWS, indent=2).encode()))
    (tmp_path / "a.csv").write_text(
        'prompt,completion,margin\na\u2028b,c,\n\u00e9,"""""",1.5\n', encoding="utf-8"
    )
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{**row, "margin": row.get("margin")} for row in ROWS]),
        tmp_path / "a.parquet",
    )
    for name in ("a.jsonl", "a.jsonl.gz", "A.JSON", "a.json.gz", "a.csv", "a.parquet"):
        rows = load_rows(str(tmp_path / name))
        assert [row.columns for row in rows] == ROWS, name
        assert [row.id for row in rows] == [row.id for row in load_rows(str(tmp_path / "a.jsonl"))]


def test_where_is_a_line_in_jsonl_and_a_record_elsewhere(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": "y"}\n')
    (tmp_path / "a.json").write_text('[{"text": "x"}, {"text": "y"}]')
    (tmp_path / "a.csv").write_text('text\n"two\nlines"\ny\n')
    assert [row.where for row in load_rows(str(tmp_path / "a.jsonl"))] == ["a.jsonl:1", "a.jsonl:3"]
    assert [row.where for row in load_rows(str(tmp_path / "a.json"))] == [
        "a.json:record 1",
        "a.json:record 2",
    ]
    assert [row.where for row in load_rows(str(tmp_path / "a.csv"))] == [
        "a.csv:record 1",
        "a.csv:record 2",
    ]


def test_T28_identical_rows_keep_different_and_stable_ids(tmp_path):
    """TRAPS T28: the same prompt twice in a dataset is two prompts; ids do not depend on the run or
    the column order.
    """
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "p", "answer": "1"}\n{"prompt": "p", "answer": "1"}\n{"answer": "1", "prompt":'
        ' "p"}\n'
    )
    ids = [row.id for row in load_rows(str(tmp_path / "a.jsonl"))]
    assert len(set(ids)) == 3
    assert len({name.partition("-")[0] for name in ids}) == 1
    assert [name.partition("-")[2] for name in ids] == ["0", "1", "2"]
    assert ids == [row.id for row in load_rows(str(tmp_path / "a.jsonl"))]
    generated = [row.id for row in load_rows("addition:digits=1", size=300)]
    assert len(set(generated)) == 300


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"text": "a"}\n{"text": \n', ["a.jsonl:2", "not valid JSON", "column"]),
        (b'{"text": "a"}\n[1]\n', ["a.jsonl:2", "expected an object", "a list of 1"]),
        (b'{"text": "a"}\nnull\n', ["a.jsonl:2", "nothing (null)"]),
        (b'{"text": "a"} {"text": "b"}\n', ["a.jsonl:1", "Extra data"]),
        (b'\n{"text": "\xff"}\n', ["a.jsonl:2", "not UTF-8", "0xff"]),
        (b'{"margin": NaN}\n', ["a.jsonl:1", "NaN is not a JSON value"]),
        (b'{"text": "a", "text": "b"}\n', ["a.jsonl:1", "`text` occurs twice"]),
        (b"{}\n", ["a.jsonl:1", "no columns"]),
        (b"[" * 100_000 + b"\n", ["a.jsonl:1"]),
        (b"", ["a.jsonl", "holds no rows"]),
        (b"\n \n", ["a.jsonl", "holds no rows"]),
    ],
)
def test_malformed_jsonl_names_file_line_and_fault(tmp_path, content, parts):
    (tmp_path / "a.jsonl").write_bytes(content)
    refused(tmp_path / "a.jsonl", *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[]", ["a.json", "holds no rows"]),
        ("", ["a.json", "holds no rows"]),
        (
            '{"data": [{"text": "a"}], "version": 1}',
            ["a.json", "expected a list", "its list `data`"],
        ),
        ('[{"text": "a"}, 5]', ["a.json:record 2", "the number 5"]),
        ('[\n{"text": "a"},\n]', ["a.json", "line 3"]),
        ('{"text": "a"}\n{"text": \n', ["a.json:2", "not valid JSON"]),
        ('"text"', ["a.json", "expected a list", "the text 'text'"]),
    ],
)
def test_malformed_json(tmp_path, content, parts):
    (tmp_path / "a.json").write_text(content)
    refused(tmp_path / "a.json", *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["holds no rows"]),
        ("prompt,completion\n", ["holds no rows"]),
        ("prompt,completion\na,b\nc\n", ["a.csv:record 2", "1 cells", "2 columns"]),
        ("prompt,completion\na,b,c\n", ["a.csv:record 1", "3 cells"]),
        ("prompt,prompt\na,b\n", ["a.csv:1", "distinct"]),
        ("prompt,\na,b\n", ["a.csv:1", "present"]),
        ('prompt\n"open\n', ["a.csv", "not valid CSV"]),
        ("prompt\n" + "x" * 300_000 + ",y\n", ["a.csv:record 1", "2 cells"]),
    ],
)
def test_malformed_csv(tmp_path, content, parts):
    (tmp_path / "a.csv").write_text(content)
    refused(tmp_path / "a.csv", *parts)


def test_foreign_csv_keeps_numbers_in_text_columns_as_text(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,score,zip,ok\nq,46,2.5,007,true\n")
    (row,) = load_rows(str(tmp_path / "a.csv"))
    assert row.columns == {"question": "q", "answer": "46", "score": 2.5, "zip": "007", "ok": True}


def test_damaged_gzip_and_parquet(tmp_path):
    whole = gzip.compress(b'{"text": "a"}\n' * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "a.parquet.gz").write_bytes(whole)
    refused(tmp_path / "cut.jsonl.gz", "cut.jsonl.gz", "gzip")
    refused(tmp_path / "plain.jsonl.gz", "gzip")
    refused(tmp_path / "bad.parquet", "bad.parquet", "Parquet")
    refused(tmp_path / "a.parquet.gz", "Name it .parquet")


def test_missing_files_and_folders_name_what_is_near(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path / "trian.jsonl", "no such file", "`train.jsonl`")
    refused(tmp_path / "nowhere" / "a.jsonl", "no such folder", "a.jsonl")
    with pytest.raises(UsageError, match="folder, not a file"):
        read_records(tmp_path)
    refused(tmp_path / "notes.txt", "unknown kind of file `.txt`", ".parquet")


def test_generated_names_parameters_and_misspellings():
    assert [row.columns for row in load_rows("addition", size=3)] == [
        row.columns for row in load_rows("addition", size=7)
    ][:3]
    assert len(load_rows("addition")) == GENERATED_ROWS
    assert (
        load_rows("addition", seed=1, size=3)[0].columns
        != load_rows("addition", seed=2, size=3)[0].columns
    )
    assert load_rows("addition", seed=4, size=2)[1].where == "addition:seed 4:2"
    assert (
        max(
            max(row.columns["metadata"]["numbers"])
            for row in load_rows("addition:digits=4", size=50)
        )
        > 999
    )
    refused("adition", "`addition`")
    refused("addition:digit=3", "no parameter `digit`", "`digits`")
    refused("addition:digits=three", "whole number")
    refused("addition:digits=99", "from 1 to 18")
    refused("leg_counting", "no generator")
    refused("", "no name")
    with pytest.raises(UsageError, match="at least one"):
        load_rows("addition", size=-1)
    with pytest.raises(UsageError, match="at least one"):
        load_rows("addition", size=0)


def test_reasoning_gym_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("laurel.data.reasoning.find_spec", lambda name: None)
    refused("reasoning_gym:chain_sum", "need their package", 'pip install "laurel-rl[reasoning]"')


def test_hub_datasets_come_through_datasets(tmp_path, monkeypatch):
    """The layout of a hub dataset in a local folder: the same code path, without a network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"question": "q", "answer": "a", "hint": "t"}\n')
    (folder / "test.jsonl").write_text(
        '{"question": "x", "answer": "y", "hint": "h"}\n{"question": "z", "answer": "w", "hint":'
        " null}\n"
    )
    assert load_hub(str(folder), "train")[0][1] == {"question": "q", "answer": "a", "hint": "t"}
    rows = load_hub(str(folder), "test")
    assert [columns for _, columns in rows] == [
        {"question": "x", "answer": "y", "hint": "h"},
        {"question": "z", "answer": "w"},
    ]
    assert rows[1][0].endswith("dataset[test]:record 2")
    with pytest.raises(UsageError, match="split"):
        load_hub(str(folder), "validation")
    (folder / "test.jsonl").write_text('{"other": "x"}\n')
    with pytest.raises(UsageError, match="other"):
        load_hub(str(folder), "test")


def test_a_hub_name_without_a_connection_says_what_to_do():
    """HF_HUB_OFFLINE is set for all tests: the message names the dataset, and what else the name
    could have been.
    """
    refused(
        "nobody/no-such-dataset",
        "nobody/no-such-dataset",
        "cannot load the dataset",
        "addition",
        "connection",
    )
