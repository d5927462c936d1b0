"""Files as people have them (K15): folders, patterns, lists, tables from other programs; each
loads, or the advice is true.
"""

import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from laurel.core.config import EvalConfig, TrainConfig, build_config
from laurel.core.errors import UsageError
from laurel.core.load import resolve_paths
from laurel.data.formats import normalise_all
from laurel.data.paths import files_of
from laurel.data.rows import read_rows
from laurel.data.source import load_rows

ROW = {"prompt": "2+2=", "completion": "4"}


def columns(name, **more):
    return [row.columns for row in load_rows(str(name), **more)]


def refused(name, *parts, **more):
    with pytest.raises(UsageError) as caught:
        load_rows(str(name), **more)
    for part in parts:
        assert part in str(caught.value), f"{part!r} not in {caught.value}"


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def saved(folder, *rows):
    """A folder as `datasets.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    table = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    )
    return folder


TABLES = {
    "comma.csv": "prompt,completion\n2+2=,4\n",
    "semicolon.csv": "prompt;completion\n2+2=;4\n",
    "tab.csv": "prompt\tcompletion\n2+2=\t4\n",
    "said.csv": "sep=;\nprompt;completion\n2+2=;4\n",
    "tab.tsv": "prompt\tcompletion\n2+2=\t4\n",
    "bom.csv": "\ufeffprompt,completion\n2+2=,4\n",
    "crlf.csv": "prompt,completion\r\n2+2=,4\r\n",
    "excel_blank_rows.csv": "prompt,completion\n2+2=,4\n,\n,\n",
    "excel_blank_columns.csv": "prompt,completion,,\n2+2=,4,,\n",
    "excel_short_rows.csv": "prompt,completion,,\n2+2=,4\n",
    "spaced_header.csv": "prompt , completion\n2+2=,4\n",
    "lines.json": '{"prompt": "2+2=", "completion": "4"}\n',
    "hub.json": '{"prompt": "2+2=", "completion": "4"}\n\n',
    "bom_crlf.jsonl": '\ufeff{"prompt": "2+2=", "completion": "4"}\r\n\r\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_other_programs_write_them(tmp_path, name):
    text = TABLES[name] * (2 if name == "hub.json" else 1)
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    if name == "lines.json":
        refused(tmp_path / name, "expected a list")
        return
    assert columns(tmp_path / name) == [ROW] * (2 if name == "hub.json" else 1)


def test_an_index_stays_under_pandas_name_and_labels_are_booleans(tmp_path):
    (tmp_path / "a.csv").write_text(
        ",prompt,completion,label\n0,2+2=,4,True\n1,3+3=,7,False\n2,3+3=,6,TRUE\n"
    )
    rows = normalise_all(load_rows(str(tmp_path / "a.csv")))
    assert [row.columns["label"] for row in rows] == [True, False, True]
    assert [row.columns["Unnamed: 0"] for row in rows] == [0, 1, 2]


def test_every_unusable_row_is_named_the_first_twenty_and_how_many_more(tmp_path):
    """Of reading and of the format alike, in one error; a remedy that all share stands once."""
    good, bad = json.dumps(ROW), json.dumps({"prompt": "p", "completion": 5})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([good, "{", bad, good, '{"other": 1}', "5"]))
    with pytest.raises(UsageError) as caught:
        read_rows(str(path), "sft", by="sft")
    said = str(caught.value)
    assert said.startswith("a.jsonl: 4 of 6 rows cannot be used:") and "more" not in said
    assert all(f"\n  a.jsonl:{number}: " in said for number in (2, 3, 5, 6))
    path.write_text("\n".join([good, *[bad] * 27]))
    with pytest.raises(UsageError) as caught:
        read_rows(str(path), "sft")
    said = str(caught.value)
    assert (
        "27 of 28 rows" in said
        and "a.jsonl:21: " in said
        and "a.jsonl:22: " not in said
        and "... and 7 more" in said
    )
    path.write_text("\n".join([good, bad]))
    with pytest.raises(UsageError, match=r"^a\.jsonl:2: field `completion`"):
        read_rows(str(path), "sft")
    (tmp_path / "b.csv").write_text("prompt,completion\na,b\nc\nd,e,f\n")
    refused(tmp_path / "b.csv", "2 of 3 rows", "b.csv:record 2", "b.csv:record 3")


def test_the_error_blames_the_option_and_says_what_the_algorithm_needs(tmp_path):
    path = lines(tmp_path / "held.jsonl", {"prompt": "p", "response": "r"})
    with pytest.raises(UsageError) as caught:
        read_rows(str(path), "preference", by="dpo", option="eval_dataset")
    assert str(caught.value).startswith(
        f"eval_dataset={path}: held.jsonl:1: dpo needs `prompt` + `chosen` + `rejected`"
    )
    asked = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    with pytest.raises(UsageError, match="Give what comes before the answer as `prompt`"):
        read_rows(str(lines(tmp_path / "m.jsonl", {"messages": asked})), "rl")


def test_folders_of_save_to_disk(tmp_path):
    assert columns(saved(tmp_path / "saved", ROW)) == [ROW]
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    saved(tmp_path / "both" / "train", ROW, ROW)
    saved(tmp_path / "both" / "test", ROW)
    assert (
        len(columns(tmp_path / "both")) == 2 and len(columns(tmp_path / "both", split="test")) == 1
    )
    refused(tmp_path / "both", "no split `validation`", "test, train", split="validation")
    assert columns(tmp_path / "saved" / "data-00000-of-00001.arrow") == [ROW]


def test_datasets_own_folders_are_read(tmp_path):
    from datasets import Dataset

    Dataset.from_list([ROW, {**ROW, "completion": None}]).save_to_disk(tmp_path / "own")
    assert columns(tmp_path / "own") == [ROW, {"prompt": "2+2="}]


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (
            [
                "data/train-00000-of-00002.parquet",
                "data/train-00001-of-00002.parquet",
                "data/test-00000-of-00001.parquet",
            ],
            2,
            1,
        ),
        (["train.parquet", "test.parquet"], 1, 1),
        (["train/a.parquet", "train/b.parquet", "test/a.parquet"], 2, 1),
        (["my_set_train.parquet", "my_set_test.parquet"], 1, 1),
        (["default/train-00000-of-00001.parquet", "default/test-00000-of-00001.parquet"], 1, 1),
        (["data/train-00000-of-00001-7c1a.parquet", "data/test_sft-00000-of-00001.parquet"], 1, 1),
    ],
)
def test_cloned_hub_sets(tmp_path, names, train, test):
    for name in names:
        parquet(tmp_path / name, ROW)
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "dataset_infos.json").write_text("{}")
    lines(tmp_path / ".git" / "train.jsonl", ROW)
    assert len(columns(tmp_path)) == train and len(columns(tmp_path, split="test")) == test
    places = [row.where for row in load_rows(str(tmp_path))]
    assert len(set(places)) == train and all(place.rpartition(":")[0] in names for place in places)


def test_folders_of_files_alone_and_those_that_are_not_clear(tmp_path):
    lines(tmp_path / "parts" / "b.jsonl", {**ROW, "n": 2})
    lines(tmp_path / "parts" / "a.jsonl", {**ROW, "n": 1})
    assert [row["n"] for row in columns(tmp_path / "parts")] == [1, 2]
    parquet(tmp_path / "parts" / "a.parquet", ROW)
    refused(tmp_path / "parts", "several kinds", ".jsonl, .parquet")
    for name in ("main", "socratic"):
        parquet(tmp_path / "two" / name / "train-00000-of-00001.parquet", ROW)
    refused(tmp_path / "two", "several sets: main, socratic", f"{tmp_path / 'two' / 'socratic'}")
    assert columns(tmp_path / "two" / "main") == [ROW]
    lines(tmp_path / "some" / "train.jsonl", ROW)
    lines(tmp_path / "some" / "extra.jsonl", ROW)
    refused(tmp_path / "some", "extra.jsonl", "do not")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("x")
    refused(tmp_path / "none", "holds no data file", ".parquet")


def test_patterns_and_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("parts/a.jsonl", "parts/b.jsonl", "other/a.jsonl"):
        lines(tmp_path / name, {**ROW, "from": name})
    assert [row["from"] for row in columns("parts/*.jsonl")] == ["parts/a.jsonl", "parts/b.jsonl"]
    assert [row["from"] for row in columns("parts/b.jsonl, other/a.jsonl")] == [
        "parts/b.jsonl",
        "other/a.jsonl",
    ]
    assert len(columns("**/*.jsonl")) == 3 and len(columns("parts/[ab].jsonl")) == 2
    assert [row.where for row in load_rows("parts/a.jsonl,other/a.jsonl")] == [
        "parts/a.jsonl:1",
        "other/a.jsonl:1",
    ]
    assert len({row.id for row in load_rows("**/*.jsonl")}) == 3
    refused("parts/*.csv", "no file fits this pattern", "a.jsonl, b.jsonl")
    refused("nowhere/*.csv", "no file fits this pattern")
    refused("parts/a.jsonl,parts/c.jsonl", "no such file", "parts/c.jsonl")
    refused("parts/a.jsonl,parts/*.jsonl", "named twice")
    lines(tmp_path / "a,b.jsonl", ROW)
    assert [path.name for path, _ in files_of("a,b.jsonl")] == ["a,b.jsonl"]


def test_yaml_lists_and_patterns_beside_the_file(tmp_path, monkeypatch):
    lines(tmp_path / "sets" / "a.jsonl", ROW)
    lines(tmp_path / "sets" / "b.jsonl", ROW)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    given = resolve_paths(
        tmp_path / "run.yaml",
        {"dataset": ["sets/a.jsonl", "sets/b.jsonl"], "eval_dataset": "sets/*.jsonl"},
    )
    config = build_config(given, TrainConfig)
    assert len(columns(config.dataset)) == len(columns(config.eval_dataset)) == 2
    assert (
        build_config({"dataset": ["a.jsonl", "b.jsonl"]}, EvalConfig).dataset == "a.jsonl,b.jsonl"
    )


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n",
            ["pointer of Git LFS", "lfs pull"],
        ),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n",
            ["pointer of Git LFS", "lfs pull"],
        ),
        (
            "a.csv",
            "prompt,completion\nq,caf\u00e9\n".encode("latin-1"),
            ["not UTF-8", "Save the file as UTF-8"],
        ),
        (
            "a.csv",
            "prompt,completion\nq,a\n".encode("utf-16"),
            ["not UTF-8", "Save the file as UTF-8"],
        ),
        ("a.xlsx", b"PK", ["unknown kind", "Save it as CSV"]),
        ("a.txt", b"once", ["unknown kind", '{"text": ...}']),
        ("a.jsonl.zst", b"x", ["unknown kind", "zstd"]),
        ("a.arrow", b"x", ["not a readable Arrow file"]),
    ],
)
def test_what_cannot_be_read_says_the_way_out(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, *parts)
