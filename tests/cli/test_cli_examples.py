"""The files in examples/: each resolves for its algorithm, its data and rewards load, and those
that can run here do.
"""

import json
import re
from pathlib import Path

import pytest

from laurel.cli.main import main
from laurel.cli.serve import load_chooser
from laurel.core.config import TrainConfig, build_config
from laurel.core.files import read_yaml
from laurel.core.run import Run
from laurel.core.serve_options import ServeConfig
from laurel.data.formats import rows_fit_for
from laurel.data.source import is_file_name, load_rows
from laurel.data.tasks import is_task
from laurel.judge.options import read_judge
from laurel.judge.template import load_prompt
from laurel.model.chat import encode_supervised
from laurel.model.scratch import char_tokenizer, save_scratch
from laurel.pipeline.constitution_plan import read_constitution_plan
from laurel.pipeline.constitution_run import ConstitutionRun
from laurel.pipeline.plan import read_plan
from laurel.pipeline.run import Pipeline
from laurel.reward.load import load_reward
from laurel.reward.mixture import load_rewards
from laurel.rollout.episode import load_env
from laurel.train.algorithms import ALGORITHMS
from laurel.train.options import resolve

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    "addition": "grpo",
    "calculator": "grpo",
    "chat-sft": "sft",
    "dpo": "dpo",
    "gsm8k": "grpo",
    "stories": "grpo",
}
"""name: the algorithm it is for."""
PLANS = ("addition-rlhf", "stories-rlhf")
"""Plans of `laurel pipeline`."""
JUDGES = ("judge", "rubric")
"""Judges of `laurel judge`."""
CHOOSING = ("choose",)
"""Options of `laurel choose`."""
SERVED = ("serve-choose",)
"""Plans of `laurel serve --choose`."""
CONSTITUTIONS = ("constitution",)
"""Plans of `laurel constitution`."""


def configuration(name):
    return build_config(read_yaml(ROOT / "examples" / f"{name}.yaml"), TrainConfig)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """The examples name their data from the repository's root; small models are built in a cache of
    the test's own.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LAUREL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_every_example_is_known():
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.yaml")) == sorted(
        [*EXAMPLES, *PLANS, *JUDGES, *CONSTITUTIONS, *CHOOSING, *SERVED]
    )


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_is_sound_and_is_a_reward(name, here):
    """Read with its prompt, and named as the file says it is used."""
    path = f"examples/{name}.yaml"
    assert load_prompt(read_judge(path).form).labels
    assert load_reward(f"judge:{path}").name == name
    text = (ROOT / path).read_text()
    assert text.startswith("# ") and f"laurel judge run {path}" in text


@pytest.mark.parametrize("name", CHOOSING)
def test_answers_vote_by_it(name, here, capsys):
    """The command that it shows, on few questions: fewer answers than it may draw, a choice each."""
    path = f"examples/{name}.yaml"
    assert f"laurel choose vote --config {path}" in (ROOT / path).read_text()
    words = ["--dataset_size", "6", "--output_dir", str(here / "out"), "--model", scratch(here)]
    assert main(["choose", "vote", "--config", path, *words]) == 0
    facts = json.loads((here / "out/summary.json").read_text())
    assert facts["questions"] == 6 and facts["answers"]["value"] <= 16
    assert "accuracy" in capsys.readouterr().out


def scratch(folder):
    """A small model that knows the letters of sums, and nothing of them."""
    save_scratch(folder / "model", alphabet="0123456789+=", hidden_size=32, num_hidden_layers=1)
    return str(folder / "model")


@pytest.mark.parametrize("name", SERVED)
def test_a_server_chooses_by_it(name):
    """Read as the server reads it, and its first lines say how it is used."""
    path = f"examples/{name}.yaml"
    assert load_chooser(ServeConfig(choose=str(ROOT / path))).names == ("best-of-16", "vote-16")
    text = (ROOT / path).read_text()
    assert text.startswith("# ") and f"--choose {path}" in text


@pytest.mark.parametrize("name", CONSTITUTIONS)
def test_a_constitution_is_sound(name, here):
    """Read as the command line reads it and checked whole: sections, prompts, principles, the judge,
    the hidden scorers where their package is installed.
    """
    pytest.importorskip("vaderSentiment")
    path = ROOT / f"examples/{name}.yaml"
    plan = read_constitution_plan(path, {"output_dir": str(here / "out")})
    assert ConstitutionRun(plan, quiet=True).law.principles
    assert f"laurel constitution examples/{name}.yaml" in path.read_text()


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_sound_and_its_data_and_judge_load(name, here):
    """Read as the command line reads it, and checked whole: sections, prompts, the hidden judge
    where its package is installed.
    """
    if name == "stories-rlhf":
        pytest.importorskip("vaderSentiment")
    plan = read_plan(ROOT / "examples" / f"{name}.yaml")
    assert plan.output_dir == f"runs/{name}" and Pipeline(plan, quiet=True).learns_reward
    assert (
        f"laurel pipeline examples/{name}.yaml" in (ROOT / "examples" / f"{name}.yaml").read_text()
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_resolves_and_is_short(name):
    """No unknown option and none that its algorithm does not use; about a dozen lines; the command
    it shows names it.
    """
    text = (ROOT / "examples" / f"{name}.yaml").read_text()
    assert text.startswith("# ") and len(text.splitlines()) <= 20
    assert resolve(EXAMPLES[name], configuration(name)).output_dir == f"runs/{name}"
    for algorithm, file in re.findall(r"laurel train (\w+) --config examples/([\w-]+)\.yaml", text):
        assert (EXAMPLES[file], file) == (algorithm, name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_data_and_rewards_of_an_example_load(name, here):
    """What is on the hub is not visited; a third party's reward is looked at where its package is
    installed.
    """
    config = configuration(name)
    if name == "stories":
        pytest.importorskip("vaderSentiment")
    if not (is_task(config.dataset) or is_file_name(config.dataset)):
        assert all(load_reward(reward).name for reward in config.rewards or [])
        return
    source = ALGORITHMS[EXAMPLES[name]].source
    rows = rows_fit_for(load_rows(config.dataset, size=20), source.needs)
    if source.sampled:
        assert load_rewards(config.rewards, config.reward_weights, rows).names
    if config.env:
        assert load_env(config.env)().reset(rows[0].columns) == []


@pytest.mark.parametrize("train_on", ["assistant", "last", "all", "no_tags"])
def test_every_mask_applies_to_the_example_conversations(train_on):
    """Each mask finds targets in each conversation, all in letters the small model knows; `last` is
    the smallest, `all` the largest.
    """
    tokenizer = char_tokenizer()
    rows = load_rows(str(ROOT / "examples/data/chats.jsonl"))
    count = {}
    for mask in ("last", "assistant", "no_tags", "all"):
        encoded = [encode_supervised(tokenizer, row.columns, train_on=mask) for row in rows]
        assert all(tokenizer.unk_token_id not in row.ids and row.supervised for row in encoded)
        count[mask] = sum(row.supervised for row in encoded)
    assert len(rows) >= 20 and count["last"] < count["assistant"] < count["no_tags"] < count["all"]
    assert count[train_on]


def test_the_conversations_train_from_the_command_line(here):
    """Held-out loss falls within twelve steps, and the run holds what it was asked for."""
    words = [
        "--max_steps",
        "12",
        "--eval_steps",
        "6",
        "--output_dir",
        str(here / "run"),
        "--train_on",
        "no_tags",
    ]
    assert main(["train", "sft", "--config", "examples/chat-sft.yaml", *words]) == 0
    run = Run(here / "run")
    losses = [line["eval/nll"] for line in run.metrics() if "eval/nll" in line]
    assert len(losses) == 2 and losses[1] < losses[0] - 0.1
    assert (run.model / "config.json").is_file() and run.config()["train_on"] == "no_tags"


@pytest.mark.parametrize("name", ["addition", "calculator"])
def test_an_example_of_reinforcement_takes_a_step_from_the_command_line(name, here):
    """With an untrained model instead of the starter, which takes a minute to make."""
    words = [
        "--model",
        "scratch",
        "--max_steps",
        "1",
        "--prompts_per_step",
        "2",
        "--dataset_size",
        "40",
        "--output_dir",
        str(here / "run"),
    ]
    assert main(["train", "grpo", "--config", f"examples/{name}.yaml", *words]) == 0
    run = Run(here / "run")
    assert len(run.samples(1)) == 2 * 8 and run.metrics()[-1]["step"] == 1
