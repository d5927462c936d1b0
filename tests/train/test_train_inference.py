"""`laurel.load`, `laurel.generate`, `laurel.evaluate`: one line each, on the toy model, and the same
answers as the command's.
"""

import json

import pytest
from toy import HERE, make_toy

import laurel
from laurel.cli.main import main
from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.model.policy import Policy
from laurel.model.scorer import Scorer
from laurel.train.loop import train

SHORT = {"max_completion_length": 4, "device": "cpu", "num_threads": 1}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


def ids_of(groups):
    return [[sample.completion_ids for sample in group.samples] for group in groups]


def test_generate_is_one_line(toy):
    """A group for each prompt, as many samples as asked for, equal for equal seeds."""
    groups = laurel.generate(toy["model"], ["1=", "2="], num_generations=3, **SHORT)
    assert [group.row["prompt"] for group in groups] == ["1=", "2="]
    assert all(len(group.samples) == 3 for group in groups)
    policy = laurel.load(toy["model"], device="cpu")
    again = laurel.generate(policy, ["1=", "2="], num_generations=3, **SHORT)
    assert ids_of(again) == ids_of(groups)
    other = laurel.generate(policy, ["1=", "2="], num_generations=3, seed=1, **SHORT)
    assert ids_of(other) != ids_of(groups)
    assert len(laurel.generate(policy, "1=", **SHORT)) == 1


def test_generate_refuses_what_is_no_prompt(toy):
    with pytest.raises(UsageError, match="neither a text nor a list of messages"):
        laurel.generate(toy["model"], [3], **SHORT)
    with pytest.raises(UsageError, match="num_generations"):
        laurel.generate(toy["model"], "1=", num_generation=3)


def test_evaluate_is_what_the_command_writes(toy, tmp_path):
    options = {"num_generations": 2, "limit": 4, **SHORT}
    found = laurel.evaluate(toy["model"], toy["dataset"], rewards=[f"{HERE}:sevens"], **options)
    words = [f"--{name}={value}" for name, value in options.items()]
    words += [f"--model={toy['model']}", f"--dataset={toy['dataset']}"]
    out = tmp_path / "eval.json"
    assert main(["eval", *words, "--rewards", f"{HERE}:sevens", f"--output={out}"]) == 0
    assert json.loads(out.read_text())["figures"] == found.as_json()["figures"]


def test_a_scorer_is_loaded_and_evaluated_as_one(toy, tmp_path):
    pairs = [{"prompt": "1=", "chosen": "7" * n, "rejected": "1"} for n in range(1, 9)]
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = TrainConfig(
        model=toy["model"],
        dataset=str(rows),
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        prompts_per_step=4,
        eval_size=0,
        device="cpu",
    )
    run = train("reward", config, quiet=True)
    assert isinstance(laurel.load(run.model, device="cpu"), Scorer)
    assert isinstance(laurel.load(toy["model"], device="cpu"), Policy)
    assert laurel.evaluate(str(run.model), str(rows), device="cpu").figures["pairs"] == 8
