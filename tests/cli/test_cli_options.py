"""Options: what the command line and a YAML file say becomes one validated configuration, before
torch is imported.
"""

import argparse
import subprocess
import sys

import pytest
import yaml

from laurel.cli import options
from laurel.cli.main import main
from laurel.core.config import ALGORITHM_NAMES, EvalConfig, TrainConfig, build_config
from laurel.core.errors import UsageError
from laurel.core.options import option

LIGHT = (
    "import sys\nfrom laurel.cli.main import main\ncode = main(sys.argv[1:])\n"
    "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'\nsys.exit(code)"
)


def read(*words: str, kind=TrainConfig, resolve=None):
    parser = argparse.ArgumentParser()
    options.add_options(parser, kind)
    return options.read_options(parser.parse_args(words), kind, resolve=resolve)


def light(*words: str, cwd=None) -> subprocess.CompletedProcess:
    """Run a command and fail if it imported torch."""
    return subprocess.run(
        [sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, timeout=60, cwd=cwd
    )


def test_no_words_give_the_defaults():
    assert read() == TrainConfig()
    assert read(kind=EvalConfig) == EvalConfig()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--max_steps", "3"], "max_steps", 3),
        (["--learning_rate=1e-5"], "learning_rate", 1e-5),
        (["--resume", "true"], "resume", True),
        (["--resume", "false"], "resume", False),
        (["--resume"], "resume", True),
        (["--resume", "anyway"], "resume", "anyway"),
        (["--stop", "1"], "stop", ["1"]),
        (["--stop", "true", "1e3", "null"], "stop", ["true", "1e3", "null"]),
        (["--stop", "a", "b", "--stop", "c"], "stop", ["a", "b", "c"]),
        (["--stop", "[a, 1]", "c"], "stop", ["a", "1", "c"]),
        (["--stop", "]"], "stop", ["]"]),
        (["--stop", "[]"], "stop", []),
        (["--stop", "null"], "stop", None),
        (["--reward_weights", "1", "0.5"], "reward_weights", [1.0, 0.5]),
        (["--reward_weights", "[1, -1e-1]"], "reward_weights", [1.0, -0.1]),
        (["--model", "1"], "model", "1"),
        (["--eval_dataset", "null"], "eval_dataset", None),
        (["--train_on", "last"], "train_on", "last"),
        (["--beta", "0"], "beta", 0.0),
    ],
)
def test_values(words, name, value):
    """A19 among them: `--beta 0` and `--stop []` are values, not absences."""
    config = read(*words)
    assert getattr(config, name) == value and type(getattr(config, name)) is type(value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_steps", "x"], "option `max_steps` = 'x'"),
        (["--max_steps", "0"], "option `max_steps` = '0'"),
        (["--max_steps", "2.5"], "option `max_steps` = '2.5'"),
        (["--resume", "perhaps"], "option `resume` = 'perhaps'"),
        (["--train_on", "assistent"], "option `train_on` = 'assistent'"),
        (["--max_steps", "null"], "option `max_steps` = 'null'"),
        (["--stop", "[a, 'b]"], "not a YAML list"),
    ],
)
def test_wrong_values_name_the_option(words, said):
    with pytest.raises(UsageError, match="command line") as caught:
        read(*words)
    assert said in str(caught.value)


def test_the_command_line_wins_over_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("max_steps: 5\nlearning_rate: 1e-3\nstop: ['1']\n")
    config = read("--config", str(tmp_path / "run.yaml"), "--max_steps", "7")
    assert (config.max_steps, config.learning_rate, config.stop) == (7, 1e-3, ["1"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lerning_rate: 1\n", "unknown option `lerning_rate`. Did you mean `learning_rate`?"),
        ("max_steps: many\n", "option `max_steps` = 'many'"),
        ("stop: [1]\n", "option `stop.0` = 1"),
        ("- max_steps\n", "a configuration is a mapping"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, said):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read("--config", str(path), "--max_steps", "3")
    assert str(path) in str(caught.value) and said in str(caught.value)


def test_T36_unknown_option_before_torch():
    """T36: `--lerning_rate 1` -> exit 2, the right name, and torch was never imported."""
    done = light("train", "grpo", "--lerning_rate", "1")
    assert (done.returncode, "Did you mean `--learning_rate`?" in done.stderr) == (2, True), (
        done.stderr
    )


def test_T36_unknown_key_of_a_file_before_torch(tmp_path):
    """T36: the same in YAML names the file and the right key."""
    (tmp_path / "mine.yaml").write_text("lerning_rate: 1\n")
    done = light("train", "grpo", "--config", "mine.yaml", cwd=tmp_path)
    assert (
        done.returncode == 2
        and "mine.yaml: unknown option `lerning_rate`. Did you mean `learning_rate`?" in done.stderr
    ), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "name an algorithm"),
        (["train", "grop"], "unknown algorithm `grop`. Did you mean `grpo`?"),
        (["train", "grpo", "--max_steps", "-1"], "option `max_steps` = '-1'"),
        (
            ["train", "grpo", "--config", "absent.yaml"],
            "absent.yaml: cannot read the configuration",
        ),
        (["eval", "--temperature", "0"], "option `temperature` = '0'"),
    ],
)
def test_wrong_usage_before_torch(words, said):
    done = light(*words)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_an_option_of_another_algorithm_is_refused(capsys):
    """A19: an option that does not apply is refused, never ignored, and the message says where it
    belongs.
    """
    assert main(["train", "sft", "--epsilon", "0.1", "--print_config"]) == 2
    said = capsys.readouterr().err
    assert "option `epsilon` does not apply to `sft`" in said and "grpo" in said


def test_printed_configuration_reads_back_to_itself(tmp_path, capsys):
    assert (
        main(["train", "dapo", "--stop", "1", "]", "--learning_rate", "3e-4", "--print_config"])
        == 0
    )
    first = capsys.readouterr().out
    values = yaml.safe_load(first)
    assert (
        values["stop"] == ["1", "]"]
        and values["epsilon_high"] == 0.28
        and values["learning_rate"] == 3e-4
    )
    (tmp_path / "again.yaml").write_text(first)
    assert main(["train", "dapo", "--config", str(tmp_path / "again.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == first


def test_paths_of_a_file_are_sought_here_then_beside_it(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    for path in (
        here / "both.jsonl",
        there / "both.jsonl",
        there / "rows.jsonl",
        there / "my.py",
        there / "chat.jinja",
    ):
        path.touch()
    monkeypatch.chdir(here)
    values = {
        "dataset": "rows.jsonl",
        "eval_dataset": "both.jsonl",
        "model": "there",
        "chat_template": "chat.jinja",
        "env": "my.py:World",
        "rewards": ["my.py:f", "module.function", "absent.py:f", "exact"],
        "output_dir": "rows.jsonl",
    }
    found = options.resolve_paths(there / "run.yaml", values)
    assert found["dataset"] == str(there / "rows.jsonl")
    assert found["eval_dataset"] == "both.jsonl"
    assert found["model"] == "there"
    assert found["chat_template"] == str(there / "chat.jinja")
    assert found["env"] == f"{there / 'my.py'}:World"
    assert found["rewards"] == [f"{there / 'my.py'}:f", "module.function", "absent.py:f", "exact"]
    assert found["output_dir"] == "rows.jsonl"


def test_paths_on_the_command_line_stay_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "rows.jsonl").touch()
    (tmp_path / "sub" / "run.yaml").write_text("max_steps: 1\n")
    monkeypatch.chdir(tmp_path)
    assert read("--config", "sub/run.yaml", "--dataset", "rows.jsonl").dataset == "rows.jsonl"


def test_groups_hold_every_field_once():
    for kind in (TrainConfig, EvalConfig):
        names = [name for group in options.fields_by_heading(kind).values() for name in group]
        assert names == list(kind.model_fields)
    assert "learning_rate" in options.fields_by_heading(TrainConfig)["optimiser"]


def test_every_field_has_a_meaning_and_a_type_in_words():
    for kind in (TrainConfig, EvalConfig):
        for name, field in kind.model_fields.items():
            assert field.description, name
            assert options.describe_type(field.annotation), name


@pytest.mark.parametrize("algorithm", ALGORITHM_NAMES)
def test_help_of_an_algorithm_shows_exactly_what_applies(algorithm, capsys):
    from laurel.train.algorithms import ALGORITHMS
    from laurel.train.options import defaults

    assert main(["train", algorithm, "--help"]) == 0
    printed = capsys.readouterr().out
    shown = {
        line.split()[0].removeprefix("--")
        for line in printed.splitlines()
        if line.startswith("  --")
    }
    elsewhere = set().union(*(defaults(other) for other in ALGORITHMS)) - set(defaults(algorithm))
    assert shown == (set(TrainConfig.model_fields) - elsewhere) | {
        "config",
        "print_config",
        "from_trl",
    }


def test_help_shows_the_default_of_the_row(capsys):
    assert main(["train", "dapo", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "upper bound is 1 + epsilon_high; cispo: the absolute cap (default 0.28)" in printed


def test_help_without_an_algorithm_prints_the_table(capsys):
    assert main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in ALGORITHM_NAMES)


def test_a_percent_sign_in_a_meaning_survives(capsys):
    class Kind(TrainConfig):
        share: int = option(95, "95 % of it")

    parser = argparse.ArgumentParser()
    options.add_options(parser, Kind)
    assert "95 % of it" in parser.format_help()


def test_K17_every_fault_of_a_file_is_named_at_once(tmp_path):
    """The kind: one fault a try. Unknown keys together, and wrong values together, each by its
    name.
    """
    (tmp_path / "many.yaml").write_text("lerning_rate: 1\nfrobnicate: 2\nmax_step: 3\nseed: 0\n")
    with pytest.raises(UsageError) as caught:
        read("--config", str(tmp_path / "many.yaml"))
    said = str(caught.value)
    assert (
        said.count("many.yaml") == 1
        and "unknown options `lerning_rate`, `frobnicate`, `max_step`." in said
    )
    assert (
        "`lerning_rate`: Did you mean `learning_rate`?" in said
        and "`max_step`: Did you mean `max_steps`?" in said
    )
    (tmp_path / "wrong.yaml").write_text(
        "seed: -1\nmax_steps: many\nlr_scheduler_type: square\nresume: perhaps\n"
    )
    with pytest.raises(UsageError) as caught:
        read("--config", str(tmp_path / "wrong.yaml"))
    assert all(
        f"option `{name}` =" in str(caught.value)
        for name in ("seed", "max_steps", "lr_scheduler_type", "resume")
    )
    assert str(caught.value).count("option `resume`") == 1


def test_K21_one_item_stands_for_a_list_of_one(tmp_path):
    (tmp_path / "one.yaml").write_text(
        "report_to: none\nrewards: exact\nlora_target_modules: all-linear\nstop: '12'\n"
    )
    config = read("--config", str(tmp_path / "one.yaml"))
    assert (config.report_to, config.rewards, config.lora_target_modules, config.stop) == (
        [],
        ["exact"],
        ["all-linear"],
        ["12"],
    )
    assert build_config({"model": "none", "reward_weights": [1]}).model == "none"
