"""`laurel eval` and `laurel sample` as the command line calls them, on a tiny model."""

import json
import subprocess
import sys

import pytest

from laurel.cli.main import main
from laurel.model.scratch import save_scratch

ALPHABET = "0123456789+= "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return str(save_scratch(tmp_path_factory.mktemp("model"), alphabet=ALPHABET, **shape))


def on_four_rows(model, *words):
    return main(
        ["eval", "--model", model, "--dataset_size", "4", "--max_completion_length", "4", *words]
    )


def test_eval_prints_a_table(model, capsys):
    assert on_four_rows(model) == 0
    printed = capsys.readouterr().out
    assert "95 % interval" in printed and "accuracy" in printed and "pass@" not in printed


def test_eval_of_samples_with_a_reference_as_json(model, tmp_path, capsys):
    """Every figure with its interval and number, the configuration beside them, and KL 0 to the
    model itself.
    """
    path = tmp_path / "deep" / "eval.json"
    words = ["--num_generations", "3", "--k", "1", "2", "--reference", model, "--output", str(path)]
    assert on_four_rows(model, *words) == 0
    assert f"written to {path}" in capsys.readouterr().out.replace("\n", "")
    written = json.loads(path.read_text())
    figures = written["figures"]
    assert list(figures) == [
        "accuracy",
        "reward",
        "pass@1",
        "pass@2",
        "majority@2",
        "sampled/reward",
        "sampled/distinct",
        "sampled/kl",
    ]
    assert all(
        figure["low"] <= figure["value"] <= figure["high"] and figure["n"] == 4
        for figure in figures.values()
    )
    assert figures["sampled/kl"]["value"] == pytest.approx(0, abs=1e-4)
    assert (written["prompts"], written["failed"], written["config"]["num_generations"]) == (
        4,
        0,
        3,
    )


def test_the_same_command_gives_the_same_file(model, tmp_path):
    texts = []
    for name in ("a", "b"):
        path = tmp_path / name
        assert on_four_rows(model, "--num_generations", "2", "--output", str(path)) == 0
        texts.append(json.loads(path.read_text())["figures"])
    assert texts[0] == texts[1]


def test_eval_with_rewards_of_a_file_counts_failures(model, tmp_path, capsys):
    """A reward that breaks on some rows: counted and said aloud, the rest is scored."""
    file = tmp_path / "odd.py"
    file.write_text(
        "def odd(completions, answer, **columns):\n    return [1.0 if int(a) % 2 else float('nan')"
        " for a in answer]\n"
    )
    assert on_four_rows(model, "--dataset_size", "20", "--rewards", f"{file}:odd") == 0
    printed = capsys.readouterr().out
    assert "could not be scored (counted as wrong" in printed


def test_eval_reads_a_configuration_file(model, tmp_path, capsys):
    (tmp_path / "eval.yaml").write_text(
        f"model: {model}\ndataset_size: 4\nmax_completion_length: 4\nnum_generations: 2\n"
    )
    assert main(["eval", "--config", str(tmp_path / "eval.yaml"), "--limit", "3"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "accuracy" in line)
    assert row.split("│")[-2].strip() == "3"


SAMPLE = ["sample", "1+1=", "--num_generations", "2", "--max_completion_length", "3", "--model"]


def test_sample_prints_completions_with_their_ends(model, capfd):
    """One line per completion, from the prompt to how it ended; and nothing else."""
    assert main([*SAMPLE, model]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert len(lines) == 2 and all(
        line.startswith("1+1=") and ", log-prob -" in line for line in lines
    )
    assert all(line.rsplit("[", 1)[1].split(",")[0] in ("eos", "length") for line in lines)


def test_sample_takes_several_prompts_or_rows(model, capsys):
    common = ["--model", model, "--max_completion_length", "2"]
    assert main(["sample", "1+1=", "2+2=", *common]) == 0
    assert [line[:4] for line in capsys.readouterr().out.splitlines()] == ["1+1=", "2+2="]
    assert main(["sample", *common]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["sample", *common, "--limit", "5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_sample_plays_an_environment(model, capsys):
    words = [
        "--model",
        model,
        "--env",
        "calculator",
        "--dataset",
        "calculator",
        "--limit",
        "2",
        "--max_completion_length",
        "8",
    ]
    assert main(["sample", *words]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "--num_generation", "2"], "Did you mean `--num_generations`?"),
        (["sample", "1+1=", "--temprature", "2"], "Did you mean `--temperature`?"),
        (["eval", "--model", "no/such/folder"], "no such model folder"),
        (["sample", "1+1=", "--model", "./nowhere"], "no such model folder"),
        (["eval", "--dataset", "nowhere.jsonl"], "nowhere.jsonl"),
        (["eval", "--rewards", "exakt"], "exact"),
        (["eval", "--k", "2"], "num_generations=1"),
        (["eval", "--num_generations", "2", "--k", "3"], "1 <= k <= num_generations"),
        (["eval", "--temperature", "0.5"], "num_generations=1"),
        (["eval", "--temperature", "hot"], "temperature"),
        (["sample", "1+1=", "--output", "x.json"], "`--output` is about scores"),
        (["sample", "1+1=", "--limit", "2"], "`--limit` belongs to the rows"),
    ],
)
def test_wrong_usage_is_refused_with_exit_code_2(words, said, capsys):
    """A19, A59: unknown, impossible and inapplicable options are named, before any weight is
    loaded.
    """
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_reference_with_another_vocabulary_is_refused(model, tmp_path, capsys):
    """Log-probabilities of other tokens are not comparable, even where the ids fit."""
    other = save_scratch(
        tmp_path / "other",
        alphabet=ALPHABET[::-1],
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    assert on_four_rows(model, "--num_generations", "2", "--reference", str(other)) == 2
    assert "another vocabulary" in capsys.readouterr().err


@pytest.mark.whole
def test_a_cold_sample_prints_nothing_else_either(model):
    done = subprocess.run(
        [sys.executable, "-m", "laurel", *SAMPLE, model],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout.splitlines()) == 2
