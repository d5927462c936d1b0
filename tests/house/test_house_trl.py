"""What a page says about TRL is true: every name has its row, and its scripts and ours begin with
the same loss and the same gradient.
"""

import json
import re
from importlib.util import find_spec

import pytest
import trl_beside
from house_pages import ROOT, blocks
from processes import begin

from laurel.cli.main import main
from laurel.core.trl_names import OF_TRAINER, TABLE, default_of
from laurel.model.scorer import load_scorer

PAGE = list(blocks(ROOT / "docs" / "from-trl.md"))
THEIRS = {
    name: block for block in PAGE for name in re.findall(r'output_dir="trl-(\w+)"', block.text)
}
OURS = {
    name: block
    for block in PAGE
    if block.language == "yaml"
    for name in re.findall(r"output_dir: runs/(\w+)", block.text)
}
READ = next(block for block in PAGE if block.language == "python" and "save_scratch" in block.text)
REWARD = """
from datasets import load_dataset
from trl import RewardConfig, RewardTrainer
args = RewardConfig(output_dir="trl-reward", max_steps=1, per_device_train_batch_size=8, bf16=False, use_cpu=True, logging_steps=1,
                    center_rewards_coefficient=0.01)
trainer = RewardTrainer(model="scorer", args=args, train_dataset=load_dataset("json", data_files="pairs.jsonl", split="train"))
trainer.train()
"""
NAMES = ["sft", "dpo", "grpo"]
SAMPLED = "num_generations=4, per_device_train_batch_size=16, max_completion_length=64"
BATCH = (
    "loss_type='bnpo', scale_rewards='batch', entropy_coef=0.1, delta=3.0,"
    " mask_truncated_completions=True"
)
MORE = {
    "dr_grpo": ("dr_grpo", "GRPO", f"{SAMPLED}, loss_type='dr_grpo', scale_rewards=False"),
    "batch": ("grpo", "GRPO", f"{SAMPLED}, {BATCH}"),
    "gspo": ("gspo", "GRPO", f"{SAMPLED}, loss_type='grpo', importance_sampling_level='sequence'"),
    "cispo": ("cispo", "GRPO", f"{SAMPLED}, loss_type='cispo', epsilon_high=5.0"),
    "kto": ("kto", "KTO", "per_device_train_batch_size=4, gradient_accumulation_steps=2"),
    "robust": ("robust_dpo", "DPO", "loss_type='robust', label_smoothing=0.2"),
    "chat": ("sft", "SFT", "per_device_train_batch_size=2, gradient_accumulation_steps=4"),
}
"""Other rows of ours, the trainer of TRL whose saved configuration they read, and what it was told.
"""
ROWS = {"GRPO": "prompts", "KTO": "labels", "DPO": "pairs", "SFT": "chat"}


def script_of(name):
    """A script of TRL's as short as can be."""
    _, trainer, told = MORE[name]
    judged = ", reward_funcs=even" if trainer == "GRPO" else ""
    return f"""
from datasets import load_dataset
from judge import even
from trl import {trainer}Config, {trainer}Trainer
args = {trainer}Config(output_dir="trl", max_steps=1, bf16=False, use_cpu=True, logging_steps=1, {told})
rows = load_dataset("json", data_files="{ROWS[trainer]}.jsonl", split="train")
trainer = {trainer}Trainer(model="tiny", args=args, train_dataset=rows{judged})
trainer.train()
"""


def more_rows(place):
    """Labelled answers and conversations beside the rows of the page."""
    sums = range(1, 9)
    turns = [
        [{"role": "user", "content": f"{n}+{n}="}, {"role": "assistant", "content": f"{n + n}"}]
        for n in sums
    ]
    labels = [{"prompt": f"{n}+{n}=", "completion": f"{n + n}", "label": n % 3 == 0} for n in sums]
    (place / "chat.jsonl").write_text(
        "".join(json.dumps({"messages": one}) + "\n" for one in turns)
    )
    (place / "labels.jsonl").write_text("".join(json.dumps(one) + "\n" for one in labels))


needs_trl = pytest.mark.skipif(
    not (find_spec("trl") and find_spec("accelerate")),
    reason="needs TRL beside laurel: pip install trl==1.16.0 (extra `test`)",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which our three runs are made."""
    base = tmp_path_factory.mktemp("trl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        exec(compile(READ.text, str(READ), "exec"), {})
        for name, block in OURS.items():
            (base / f"{name}.yaml").write_text(block.text)
            assert main(["train", name, "--config", f"{name}.yaml"]) == 0
    return base


@pytest.fixture(scope="module")
def beside(place):
    """The same folder, with TRL's logs in it."""
    load_scorer(str(place / "tiny"), num_labels=1, device="cpu", dtype="float32").save(
        place / "scorer"
    )
    more_rows(place)
    scripts = (
        {name: block.text for name, block in THEIRS.items()}
        | {"reward": REWARD}
        | {name: script_of(name) for name in MORE}
    )
    process = begin(trl_beside.all_of_it, scripts, str(place), log=place / "log")
    process.join(300)
    assert process.exitcode == 0, (place / "log").read_text()[-5000:]
    return place


def same_step(folder, name):
    """(our steps, TRL's), of which the first has the same loss, to 1e-5, and a gradient of the same
    norm.
    """
    theirs = json.loads((folder / f"{name}.trl.json").read_text())
    ours = [
        json.loads(line)
        for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(theirs) == len(ours)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=1e-5)
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1e-5)
    assert theirs[0]["grad_norm"] > 1e-3
    return ours, theirs


def test_our_side_of_the_page_trains(place):
    """Three scripts, three files of options, each a run; this needs no TRL."""
    assert list(THEIRS) == list(OURS) == NAMES
    assert all((place / "runs" / name / "model" / "config.json").is_file() for name in NAMES)


@needs_trl
@pytest.mark.parametrize("name", NAMES)
def test_the_page_s_scripts_begin_alike(name, beside):
    """The loss of step 1 to 1e-5, the norm of its gradient to 1e-5 of it; after a step of AdamW
    (dpo) the next one, too.
    """
    ours, theirs = same_step(beside, name)
    assert abs(theirs[0]["loss"]) > 1e-2
    if name == "dpo":
        assert (
            ours[1]["loss"] == pytest.approx(theirs[1]["loss"], abs=1e-5)
            and theirs[1]["loss"] < theirs[0]["loss"] / 2
        )


@needs_trl
def test_a_saved_configuration_begins_alike(beside, monkeypatch, capsys):
    """Reward: the JSON that TRL saves, with --from-trl, gives the run that TRL made."""
    monkeypatch.chdir(beside)
    words = ["--model", "scorer", "--dataset", "pairs.jsonl", "--output_dir", "runs/reward"]
    assert main(["train", "reward", "--from-trl", "reward.args.json", *words]) == 0, (
        capsys.readouterr()
    )
    said = capsys.readouterr().out
    assert "learning_rate: 0.0001" in said and "center_rewards_coefficient: 0.01" in said
    same_step(beside, "reward")


@needs_trl
@pytest.mark.parametrize("name", MORE)
def test_other_rows_begin_alike(name, beside, monkeypatch, capsys):
    """From the JSON that TRL saved of its run; the samples are those of the page's run, which TRL
    was given.
    """
    monkeypatch.chdir(beside)
    row, trainer, _ = MORE[name]
    words = [
        "--model",
        "tiny",
        "--dataset",
        f"{ROWS[trainer]}.jsonl",
        "--output_dir",
        f"runs/{name}",
        "--seed",
        "0",
    ]
    words += ["--rewards", "judge.py:even"] if trainer == "GRPO" else []
    assert main(["train", row, "--from-trl", f"{name}.args.json", *words]) == 0, capsys.readouterr()
    same_step(beside, name)


@needs_trl
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_configuration_is_the_page_s(name, beside, monkeypatch, capsys):
    """The JSON that TRL saves of each script is read as the options that the page writes line by
    line, but for the seed.
    """
    monkeypatch.chdir(beside)
    written = re.findall(r"^(\w+): (\S+)", OURS[name].text, re.MULTILINE)
    more = [
        f"--{option}={value}"
        for option, value in written
        if option in ("model", "dataset", "rewards", "output_dir")
    ]
    printed = []
    for words in (
        ["--from-trl", f"{name}.args.json", *more, "--seed", "0"],
        ["--config", f"{name}.yaml"],
    ):
        assert main(["train", name, *words, "--print_config"]) == 0, capsys.readouterr()
        said = capsys.readouterr().out
        printed.append(
            set(
                said[said.index("\nmodel: ") :].splitlines()
                if "--from-trl" in words
                else said.splitlines()
            )
        )
    apart = {line.split(":")[0] for line in printed[0] ^ printed[1]} - {
        "",
        "report_to",
        "logging_steps",
        "max_prompt_length",
        "use_margin",
    }
    assert not apart


@needs_trl
def test_every_field_of_theirs_has_its_row(beside):
    """Every field of every configuration of TRL 1.16 and of TrainingArguments, and its default
    where a trainer is named.
    """
    found = json.loads((beside / "fields.json").read_text())
    assert len(found) == 13 and len(set().union(*found.values())) > 250
    for kind, fields in found.items():
        assert set(fields) <= set(TABLE), set(fields) - set(TABLE)
        for name, default in fields.items():
            if kind in OF_TRAINER:
                assert default_of(name, kind) == default, (kind, name)
