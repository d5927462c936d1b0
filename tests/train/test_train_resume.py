"""A resumed run is the uninterrupted run, bit by bit; a killed one always has a checkpoint that
loads.
"""

import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from processes import FORKS, begin
from safetensors.torch import load_file
from toy import make_toy, toy_config

from laurel.core.errors import LaurelError, UsageError
from laurel.core.run import Run
from laurel.train.checkpoint import (
    finished_checkpoints,
    is_sound,
    newest_checkpoint,
    save_checkpoint,
)
from laurel.train.loop import Interrupted, train
from laurel.train.session import State


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"), dropout=0.1)


def final_weights(run):
    """The newest checkpoint's weights, off the file (which is mapped into memory, and may be cut
    short below).
    """
    return {
        name: w.clone()
        for name, w in load_file(
            finished_checkpoints(run.checkpoints)[0] / "weights.safetensors"
        ).items()
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


CASES = {
    "sft": {"reward": None, "disable_dropout": False},
    "grpo": {"beta": 0.05},
    "grpo lora": {"use_peft": True, "lora_r": 4, "beta": 0.05, "num_iterations": 2},
    "dapo": {},
    "reinforce_baseline": {},
}


@pytest.mark.parametrize("case", CASES)
def test_T59_resume_is_bit_identical(case, toy, tmp_path):
    """T59: 8 steps against 3 + resume + 3 + resume + 2, rollouts, metrics and samples included."""
    name, options = case.split()[0], CASES[case]
    whole = train(name, toy_config(toy, tmp_path / "whole", max_steps=8, **options), quiet=True)
    for stop in (3, 6, 8):
        parts = train(
            name,
            toy_config(toy, tmp_path / "parts", max_steps=stop, resume=True, **options),
            quiet=True,
        )
    assert same(final_weights(whole), final_weights(parts))
    drop = {
        "run",
        "time",
        "seconds/step",
        "seconds/sample",
        "seconds/score",
        "seconds/update",
        "tokens_per_second",
        "rss_mb",
    }
    strip = [
        [{k: v for k, v in line.items() if k not in drop} for line in run.metrics()]
        for run in (whole, parts)
    ]
    assert strip[0] == strip[1]
    samples = [
        [{k: v for k, v in line.items() if k != "run"} for line in run.samples()]
        for run in (whole, parts)
    ]
    assert samples[0] == samples[1]


def test_a_damaged_newest_checkpoint_is_passed_over(toy, tmp_path):
    """T61: a truncated newest checkpoint is skipped with a message, and the one before is
    loaded.
    """
    config = {"max_steps": 4, "save_steps": 2}
    whole = train("grpo", toy_config(toy, tmp_path, **config), quiet=True)
    before = final_weights(whole)
    newest = finished_checkpoints(whole.checkpoints)[0]
    with open(newest / "weights.safetensors", "r+b") as file:
        file.truncate(100)
    found, damaged = newest_checkpoint(whole.checkpoints)
    assert damaged == ["step-4"] and found.name == "step-2"
    again = train("grpo", toy_config(toy, tmp_path, resume=True, **config), quiet=True)
    assert same(before, final_weights(again)) and is_sound(
        finished_checkpoints(again.checkpoints)[0]
    )


def saver(folder, told):
    """Save again and again, and tell each step that is saved."""
    model = torch.nn.Linear(400, 400)
    policy = SimpleNamespace(trainable=lambda: dict(model.named_parameters()), template="t")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 400)).sum().backward()
    optimizer.step()
    for step in range(1, 10_000):
        save_checkpoint(
            folder, "r", policy.template, policy.trainable(), optimizer, State(step=step), keep=1
        )
        told.send(step)


def test_T61_kill_in_save_leaves_a_sound_checkpoint(tmp_path):
    """T61: keep-last = 1, SIGKILL at random moments of saving: a complete checkpoint always exists
    and is sound.
    """
    chance = random.Random(0)
    for trial in range(5):
        folder = tmp_path / str(trial)
        hear, tell = FORKS.Pipe(duplex=False)
        process = begin(saver, folder, tell, log=tmp_path / "log")
        tell.close()
        assert hear.recv() == 1
        time.sleep(chance.random() * 0.15)
        process.kill()
        process.join(60)
        hear.close()
        assert process.exitcode == -signal.SIGKILL
        found, _ = newest_checkpoint(folder)
        assert found is not None


def forty_steps(toy, folder, resume):
    """A run that is saved every other step."""
    train("grpo", toy_config(toy, folder, max_steps=40, save_steps=2, resume=resume), quiet=True)


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    """The weights of the run that was left alone, in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    process = begin(forty_steps, toy, folder / "run", False, log=folder / "log")
    process.join(600)
    assert process.exitcode == 0, (folder / "log").read_text()[-2000:]
    return final_weights(Run(folder / "run"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_continued_equals_uninterrupted(how, toy, uninterrupted, tmp_path):
    """A process killed at random moments and continued each time ends with the very weights of one
    that was left alone.

    The moments are counted in steps that it adds, one to eight, and a little more; once it is
    stopped while it loads.
    """
    cut = tmp_path / "killed"
    chance, kills = random.Random(1), 0

    def steps():
        return (
            (cut / "metrics.jsonl").read_bytes().count(b"\n")
            if (cut / "metrics.jsonl").exists()
            else 0
        )

    for attempt in range(5):
        before, process = steps(), begin(forty_steps, toy, cut, True, log=tmp_path / "log")
        further = 0 if attempt == 2 else chance.randint(1, 8)
        while attempt < 4 and steps() < before + further and process.is_alive():
            time.sleep(0.002)
        process.join(chance.random() * 0.02 if attempt < 4 else 600)
        if process.is_alive():
            os.kill(process.pid, how)
            process.join(60)
            kills += 1
        if process.exitcode == 0:
            break
        assert (
            process.exitcode == -9 if how == signal.SIGKILL else process.exitcode in (-15, 1)
        )  # -15: before training had begun
    assert process.exitcode == 0 and kills >= 2
    assert same(uninterrupted, final_weights(Run(cut)))


def test_changed_options_are_refused_on_resume(toy, tmp_path):
    """A50: another learning rate is another experiment."""
    train("grpo", toy_config(toy, tmp_path, max_steps=1), quiet=True)
    with pytest.raises(UsageError, match="learning_rate"):
        train(
            "grpo",
            toy_config(toy, tmp_path, max_steps=2, resume=True, learning_rate=0.5),
            quiet=True,
        )
    with pytest.raises(UsageError, match="already holds a run"):
        train("grpo", toy_config(toy, tmp_path, max_steps=2), quiet=True)


def test_another_reference_is_refused_on_resume(toy, tmp_path):
    """A12: the reference is what it was at step 0, or the run stops."""
    import shutil

    shutil.copytree(toy["model"], tmp_path / "model")
    mine = {**toy, "model": str(tmp_path / "model")}
    train("grpo", toy_config(mine, tmp_path / "run", max_steps=1, beta=0.1), quiet=True)
    make_toy(tmp_path / "other")
    weights = load_file(tmp_path / "model/model.safetensors")
    from safetensors.torch import save_file

    save_file(
        {name: w + 0.01 for name, w in weights.items()},
        tmp_path / "model/model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(LaurelError, match="reference"):
        train(
            "grpo",
            toy_config(mine, tmp_path / "run", max_steps=2, beta=0.1, resume=True),
            quiet=True,
        )


def test_interrupted_says_how_to_go_on():
    assert Interrupted("stopped").exit_code == 143
