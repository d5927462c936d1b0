"""`laurel data check | show | convert`: what they print, and the code they leave with."""

import argparse
import json
from typing import get_args

import pytest

from laurel.cli.data import MASKS, add_parser
from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.result import Abstain, Failed, Score
from laurel.data.check import check_rows
from laurel.data.source import Row, load_rows


@pytest.fixture
def laurel_data(capsys):
    """laurel_data("check", "addition") -> (exit code, what was printed)."""

    def call(*words):
        parser = argparse.ArgumentParser()
        add_parser(parser.add_subparsers())
        args = parser.parse_args(["data", *map(str, words)])
        code = args.run(args)
        return code, capsys.readouterr().out

    return call


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_check_of_a_generated_task(laurel_data):
    code, out = laurel_data("check", "addition:digits=3", "--size", 40, "--seed", 5)
    assert code == 0 and out.splitlines()[-1] == "40 of 40 gold answers right"


def test_check_counts_wrong_failed_and_duplicates(laurel_data, tmp_path):
    rows = [{"prompt": "1+1=", "completion": gold, "task": "addition"} for gold in ("2", "3", "2")]
    path = write(
        tmp_path / "a.jsonl",
        *rows,
        {"prompt": "hello", "completion": "2", "task": "addition"},
        {"prompt": "2+2=", "task": "addition"},
    )
    code, out = laurel_data("check", path)
    assert code == 1 and out.splitlines()[-1] == "2 of 5 gold answers right"
    assert "a.jsonl:2: score: 3, not 2; gold answer 3" in out
    assert "a.jsonl:4: failed: " in out and "a.jsonl:5: the row holds no gold answer" in out
    code, out = laurel_data("check", path, "--json")
    found = json.loads(out)
    assert code == 1 and not found["passed"]
    assert (found["rows"], found["right"], len(found["wrong"]), len(found["failed"])) == (
        5,
        2,
        1,
        2,
    )
    assert (found["identical_rows"], found["repeated_prompts"]) == (1, 2)
    assert found["wrong"][0] == {"where": "a.jsonl:2", "answer": "3", "reason": "score: 3, not 2"}


def test_check_names_what_is_missing(laurel_data, tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "1+1=", "completion": "2"})
    with pytest.raises(UsageError, match=r"a\.jsonl:1: the row has no `task`.*--verifier"):
        laurel_data("check", path)
    assert laurel_data("check", path, "--verifier", "addition")[0] == 0
    write(path, {"prompt": "1+1="})
    with pytest.raises(UsageError, match="no row holds a gold answer"):
        laurel_data("check", path, "--verifier", "addition")


def test_check_rows_keeps_abstentions_and_failures_apart_from_zeros():
    rows = [Row({"completion": str(i)}, f"a:{i}", str(i)) for i in range(4)]
    results = [Score(1.0), Score(0.4, "close"), Abstain("not mine"), Failed("broke")]
    found = check_rows(rows, lambda row: lambda answer, columns: results[int(answer)])
    assert (found.rows, found.right, found.passed) == (4, 1, False)
    assert [item.reason for item in found.wrong] == ["score: close"]
    assert [item.reason for item in found.failed] == ["abstain: not mine", "failed: broke"]


@pytest.mark.parametrize(
    "path", ["data/gsm8k/test.jsonl", "data/verifiable-tasks/countdown_3to4_test.jsonl.gz"]
)
def test_check_of_public_files(laurel_data, shared, path):
    file = shared(path)
    count = len(load_rows(str(file)))
    code, out = laurel_data("check", file, *(["--verifier", "gsm8k"] if "gsm8k" in path else []))
    assert code == 0 and out.splitlines()[-1] == f"{count} of {count} gold answers right"


def test_show(laurel_data, tmp_path):
    turns = [{"from": "human", "value": "Hi [bold]there"}, {"from": "gpt", "value": "Hello"}]
    path = write(
        tmp_path / "a.jsonl", {"conversations": turns}, {"prompt": "p", "completion": "x" * 900}
    )
    code, out = laurel_data("show", path)
    assert code == 0
    assert (
        "a.jsonl:1  id " in out
        and "messages, conversational" in out
        and "user: Hi [bold]there" in out
    )
    assert "prompt and completion" in out and "x" * 399 + "…" in out and "x" * 400 not in out
    assert "2 of 2 rows shown" in out
    assert "a.jsonl:2" not in laurel_data("show", path, "--limit", 1)[1]


def test_the_masks_are_those_of_the_configuration():
    literal = get_args(TrainConfig.model_fields["train_on"].annotation)[0]
    assert get_args(literal) == MASKS


def test_show_tokens_marks_the_supervised_spans(laurel_data, shared, tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "Once upon", "completion": " a time"})
    model = shared("models/tinystories-656k")
    code, out = laurel_data("show", path, "--tokens", "--model", model)
    assert code == 0
    ids, text, count = out.splitlines()[1:4]
    assert text.partition("«")[0].endswith("Once upon") and text.partition("«")[2].startswith(
        " a time"
    )
    assert ids.count("«") == ids.count("»") == 1 and "tokens supervised" in count


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "addition", "--limit", "0"], "at least one"),
        (["show", "addition", "--model", "m"], "--tokens"),
        (["show", "addition", "--train_on", "all"], "--tokens"),
        (["show", "addition", "--tokens"], "--model"),
        (["show", "addition", "--split", "test"], "hub"),
        (["check", "a.jsonl", "--size", "5"], "generated"),
        (["check", "a.jsonl", "--seed", "5"], "generated"),
        (["convert", "addition", "a.docx"], "unknown kind"),
        (["check", "adition"], "addition"),
    ],
)
def test_options_that_do_not_apply_are_refused(laurel_data, words, message):
    with pytest.raises(UsageError, match=message):
        laurel_data(*words)


def test_convert_normalises_and_reads_back(laurel_data, tmp_path):
    source = write(
        tmp_path / "a.jsonl",
        {"question": "q", "answer": "w\n#### 5"},
        {"question": "r", "answer": "#### 6"},
    )
    steps = ["b.parquet", "c.csv.gz", "d.json", "e.jsonl.gz"]
    for step in steps:
        code, out = laurel_data("convert", source, tmp_path / step)
        assert code == 0 and "2 rows read, 2 rows written" in out
        source = tmp_path / step
    columns = [row.columns for row in load_rows(str(source))]
    assert columns[0] == {
        "prompt": "q",
        "completion": "w\n#### 5",
        "task": "gsm8k",
        "question": "q",
        "answer": "w\n#### 5",
    }
    bad = write(tmp_path / "bad.jsonl", {"prompt": "p"}, {"prompt": 5})
    with pytest.raises(UsageError, match=r"bad\.jsonl:2"):
        laurel_data("convert", bad, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_check_of_humaneval_takes_the_verifier_from_the_rows(laurel_data, shared, tmp_path):
    rows = load_rows(str(shared("data/humaneval/HumanEval.jsonl.gz")))
    path = write(tmp_path / "few.jsonl", *(row.columns for row in rows[::40]))
    code, out = laurel_data("check", path)
    assert code == 0 and out.splitlines()[-1] == "5 of 5 gold answers right"


REWARDS = """
async def awaited(completions, answer, **columns):
    return [float(said == right) for said, right in zip(completions, answer)]

def plain(prompts, completions, answer):
    texts = [said if isinstance(said, str) else said[-1]["content"] for said in completions]
    return [float(text == right) for text, right in zip(texts, answer)]

def judge(answer, row):
    return float(answer == row["answer"])

def ids(completion_ids):
    return [1.0 for _ in completion_ids]

def unasked(completions, colour):
    return [1.0 for _ in completions]

def broken(completions, **columns):
    raise RuntimeError("no")
"""


@pytest.mark.parametrize("function", ["awaited", "plain", "judge"])
def test_check_takes_whatever_rewards_takes(laurel_data, tmp_path, function):
    """`--verifier` knew names only: a file's function could be trained on and not checked."""
    (tmp_path / "mine.py").write_text(REWARDS)
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "completion": "4", "answer": "4"},
        {"prompt": "q", "completion": "5", "answer": "6"},
    )
    code, out = laurel_data("check", path, "--verifier", f"{tmp_path / 'mine.py'}:{function}")
    assert (
        code == 1
        and out.splitlines()[-1] == "1 of 2 gold answers right"
        and "a.jsonl:2: score" in out
    )


def test_check_gives_a_reward_what_training_gives_it(laurel_data, tmp_path):
    (tmp_path / "mine.py").write_text(REWARDS)
    talk = {
        "prompt": [{"role": "user", "content": "p"}],
        "completion": [{"role": "assistant", "content": "4"}],
        "answer": "4",
    }
    path = write(tmp_path / "a.jsonl", talk)
    assert laurel_data("check", path, "--verifier", f"{tmp_path / 'mine.py'}:plain")[0] == 0
    assert laurel_data("check", path, "--verifier", "exact")[0] == 0
    code, out = laurel_data("check", path, "--verifier", f"{tmp_path / 'mine.py'}:broken")
    assert code == 1 and "failed: RuntimeError: no" in out
    for function, said in (
        ("ids", "asks for `completion_ids`"),
        ("unasked", "asks for `colour`"),
        ("none", "no function `none`"),
    ):
        with pytest.raises(UsageError, match=said):
            laurel_data("check", path, "--verifier", f"{tmp_path / 'mine.py'}:{function}")
    with pytest.raises(UsageError, match=r"unknown reward `exakt`.*`exact`"):
        laurel_data("check", path, "--verifier", "exakt")


def test_a_rows_task_names_a_verifier_and_never_a_file(laurel_data, tmp_path):
    (tmp_path / "mine.py").write_text(REWARDS)
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "completion": "4", "answer": "4", "task": f"{tmp_path / 'mine.py'}:judge"},
    )
    with pytest.raises(UsageError, match="unknown verifier"):
        laurel_data("check", path)


def test_columns_that_no_field_holds_are_named(laurel_data, tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "1+1=", "completion": "2", "task": "addition", "source": "s", "empty": ""},
    )
    assert (
        "columns not used: task, source (only rewards are given them)"
        in laurel_data("show", path)[1]
    )
    assert "columns not used: task, source" in laurel_data("check", path)[1]
    assert "columns not used" not in laurel_data("show", "addition", "--size", 3)[1]
    assert (
        "columns not used"
        not in laurel_data(
            "show", write(tmp_path / "b.jsonl", {"instruction": "i", "input": "x", "output": "o"})
        )[1]
    )


def test_several_files_and_splits_of_a_folder(laurel_data, tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        write(tmp_path / "set" / name, {"prompt": name})
    assert "test.jsonl:1" in laurel_data("show", tmp_path / "set", "--split", "test")[1]
    files = (tmp_path / "set" / "train.jsonl", tmp_path / "set" / "test.jsonl")
    assert "2 of 2 rows shown" in laurel_data("show", *files)[1]
    assert "2 rows read" in laurel_data("convert", *files, tmp_path / "both.jsonl")[1]
    with pytest.raises(UsageError, match="--split belongs to hub datasets and folders"):
        laurel_data("show", files[0], "--split", "test")
