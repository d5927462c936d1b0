"""Training that samples on `laurel serve`: equal to the bit to sampling in its own process.

Killed servers, and two runs on one server, with the real programs.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from serving import running

from laurel.cli.main import main
from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError, UsageError
from laurel.model.policy import load_policy
from laurel.model.scratch import save_scratch
from laurel.train.loop import train
from laurel.train.options import resolve

REWARD = '''def sevens(completions, **columns):
    """The share of characters that are 7."""
    return [text.count("7") / 4 for text in completions]
'''


@pytest.fixture
def toy(tmp_path):
    """A character model, prompts, a reward; options for TrainConfig."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    save_scratch(tmp_path / "model", alphabet="0123456789+=", seed=0, **shape)
    rows = [{"prompt": f"{i}=", "answer": "7777"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(REWARD)
    return {
        "model": str(tmp_path / "model"),
        "dataset": str(tmp_path / "rows.jsonl"),
        "rewards": [f"{tmp_path / 'reward.py'}:sevens"],
        "eval_size": 0,
        "prompts_per_step": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "max_steps": 3,
    }


def samples_of(folder):
    """The samples of a run, without its name."""
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return [{**json.loads(line), "run": ""} for line in lines]


def same_run(one, other):
    """Are samples and model of two runs equal, to the bit?"""
    assert samples_of(one) == samples_of(other)
    name = "adapter_model.safetensors"
    name = name if (one / "model" / name).exists() else "model.safetensors"
    assert (one / "model" / name).read_bytes() == (other / "model" / name).read_bytes()


@pytest.mark.parametrize("weights", ["full", "lora", "merged"])
def test_a_run_on_a_server_is_the_run_in_one_process(toy, tmp_path, weights):
    """Full weights by folder, adapters, adapters merged: samples, log-probabilities and model."""
    options = {**toy, "use_peft": weights != "full"}
    here = train("grpo", TrainConfig(output_dir=str(tmp_path / "here"), **options), quiet=True)
    policy = load_policy(TrainConfig(model=toy["model"]))
    with running(policy, roots=(tmp_path,), places=64) as server:
        there = TrainConfig(
            output_dir=str(tmp_path / "there"),
            engine=[server.url],
            engine_weights="folder" if weights == "merged" else None,
            **options,
        )
        if weights == "merged":
            train("grpo", there, quiet=True)
            assert len(samples_of(tmp_path / "there")) == 48
            return  # merged weights round differently
        train("grpo", there, quiet=True)
    same_run(here.folder, tmp_path / "there")
    assert not (tmp_path / "there" / "engine").exists()


def test_doctor_tells_whether_training_can_sample_there(toy, tmp_path, capsys):
    """A server that can be used; one that reads no new weights; and nobody at all."""
    policy = load_policy(TrainConfig(model=toy["model"]))
    with running(policy, roots=(tmp_path,), places=64) as server:
        assert main(["doctor", "--engine", server.url]) == 0
        said = capsys.readouterr().out
        assert "training can sample there." in said and "processed" in said
        assert max(map(len, said.splitlines())) <= 100
    with running(policy) as server:
        assert main(["doctor", "--engine", server.url]) == 1
        assert "--allow_folder" in capsys.readouterr().out
    assert main(["doctor", "--engine", f"{server.url},http://127.0.0.1:9", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["usable"] and len(found["checks"]) == 2
    assert all("connection failed" in check["text"] for check in found["checks"])


@pytest.fixture
def start(toy, tmp_path):
    """Begins `laurel serve` in a process of its own, and gives it with its address; all end with
    the test.
    """
    begun = []

    def begin():
        command = [sys.executable, "-m", "laurel", "serve", toy["model"], "--port", "0"]
        command += ["--served_model_name", "m", "--allow_folder", str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
        begun.append(process)
        line = process.stdout.readline()
        return process, line.split(" at ")[1].split()[0].removesuffix("/v1")

    yield begin
    for process in begun:
        process.kill()
        process.wait(10)


def kill_once(process, run, lines):
    """Kill a process (-9) as soon as a run has written so many lines of metrics."""

    def watch():
        until = time.monotonic() + 120
        path = run / "metrics.jsonl"
        while time.monotonic() < until:
            if path.exists() and len(path.read_text().splitlines()) >= lines:
                process.send_signal(signal.SIGKILL)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.whole
def test_a_server_killed_in_the_middle_of_a_run(toy, tmp_path, start):
    """The run ends naming the server, and goes on with another, to the same end."""
    options = {**toy, "max_steps": 20, "save_steps": 5}
    here = train("grpo", TrainConfig(output_dir=str(tmp_path / "here"), **options), quiet=True)
    process, url = start()
    there = {**options, "output_dir": str(tmp_path / "there"), "engine_timeout": 30.0}
    thread = kill_once(process, tmp_path / "there", 4)
    with pytest.raises(LaurelError, match="connection failed") as raised:
        train("grpo", TrainConfig(**there, engine=[url]), quiet=True)
    assert url in str(raised.value) and "--resume true goes on from there" in str(raised.value)
    thread.join(10)
    process.wait(10)
    _, url = start()
    train("grpo", TrainConfig(**there, engine=[url], resume=True), quiet=True)
    same_run(here.folder, tmp_path / "there")


@pytest.mark.whole
def test_a_server_killed_while_another_lives(toy, tmp_path, start):
    """Its rows go to the other, and the run is what it would have been."""
    options = {**toy, "max_steps": 12}
    here = train("grpo", TrainConfig(output_dir=str(tmp_path / "here"), **options), quiet=True)
    one, first = start()
    _, second = start()
    there = {**options, "output_dir": str(tmp_path / "there"), "engine_timeout": 30.0}
    thread = kill_once(one, tmp_path / "there", 4)
    train("grpo", TrainConfig(**there, engine=[first, second]), quiet=True)
    thread.join(10)
    same_run(here.folder, tmp_path / "there")


@pytest.mark.whole
def test_two_runs_on_one_server(toy, tmp_path, start):
    """One of the two stops, and says why; the other ends well, and is what it would have been."""
    options = {**toy, "max_steps": 15}
    here = train("grpo", TrainConfig(output_dir=str(tmp_path / "here"), **options), quiet=True)
    _, url = start()
    (tmp_path / "options.json").write_text(json.dumps({**options, "engine": [url]}))
    runs = {}
    for name in ("a", "b"):
        command = [sys.executable, "-m", "laurel", "train", "grpo", "--config"]
        command += [str(tmp_path / "options.json"), "--output_dir", str(tmp_path / name)]
        runs[name] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = {name: run.communicate(timeout=240)[1] for name, run in runs.items()}
    failed = [name for name, run in runs.items() if run.returncode]
    assert failed
    for name in failed:
        assert url in said[name] and "another run train on the same server" in said[name]
    for name in runs.keys() - set(failed):
        same_run(here.folder, tmp_path / name)


def test_options_of_servers_belong_to_sampling():
    """Not to data, nor to evolution strategies, which perturb the weights; and not without one."""
    for algorithm in ("sft", "es", "dpo"):
        with pytest.raises(UsageError, match=f"`engine` does not apply to `{algorithm}`"):
            resolve(algorithm, TrainConfig(engine=["http://h:1"]))
    for option in ({"engine_timeout": 5.0}, {"engine_weights": "lora"}):
        with pytest.raises(UsageError, match="none is named"):
            resolve("grpo", TrainConfig(**option))
    assert resolve("ppo", TrainConfig(engine=["http://h:1,http://i:2"])).engine_timeout == 600.0
    assert TrainConfig(engine=["http://h:1,http://i:2"]).engine == ["http://h:1", "http://i:2"]
