"""Kinds K13 to K17: runs whose inputs are edited, whose world breaks, that are stopped or fail;
nothing is lost, mixed up or promised.
"""

import json
import os
import shutil
import signal

import pytest
from toy import make_toy, toy_config

from laurel.core.errors import LaurelError, UsageError
from laurel.train import loop, starter
from laurel.train.checkpoint import finished_checkpoints
from laurel.train.input_digests import digest_code, digest_model_folder
from laurel.train.loop import Interrupted, train

REWARD = """
from helping import worth


def scored(completions, **columns):
    return [worth(text) for text in completions]
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def own(toy, tmp_path):
    """The toy with files of its own, which a test may edit."""
    shutil.copytree(toy["model"], tmp_path / "model")
    shutil.copy(toy["dataset"], tmp_path / "rows.jsonl")
    return {**toy, "model": str(tmp_path / "model"), "dataset": str(tmp_path / "rows.jsonl")}


def short(toy, folder, **options):
    return toy_config(toy, folder, **{"max_steps": 1, "prompts_per_step": 2, **options})


EDITS = {
    "a row": (
        lambda folder: (folder / "rows.jsonl").write_text(
            (folder / "rows.jsonl").read_text().replace("3=", "9=")
        )
    ),
    "the order of rows": (
        lambda folder: (folder / "rows.jsonl").write_text(
            "".join(reversed((folder / "rows.jsonl").read_text().splitlines(keepends=True)))
        )
    ),
    "a row more": (
        lambda folder: (folder / "rows.jsonl").write_text(
            (folder / "rows.jsonl").read_text() + '{"prompt": "9="}\n'
        )
    ),
    "the reward": lambda folder: (folder / "paying.py").write_text(REWARD + "\n# edited\n"),
    "the model": (
        lambda folder: (folder / "model" / "config.json").write_text(
            (folder / "model" / "config.json").read_text().replace("{", '{ "edited": 1,', 1)
        )
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_K13_an_edited_input_stops_a_resume(edit, own, tmp_path):
    (tmp_path / "paying.py").write_text(
        "def scored(completions, **columns):\n    return [float(len(text)) for text in"
        " completions]\n"
    )
    options = {
        "reward": None,
        "rewards": [f"{tmp_path / 'paying.py'}:scored"],
        "max_completion_length": 4,
    }
    train("rloo", short(own, tmp_path / "run", **options), quiet=True)
    EDITS[edit](tmp_path)
    with pytest.raises(UsageError, match=r"has changed since it began.*--resume anyway"):
        train("rloo", short(own, tmp_path / "run", resume=True, max_steps=2, **options), quiet=True)
    if edit == "a row":
        run = train(
            "rloo",
            short(own, tmp_path / "run", resume="anyway", max_steps=2, **options),
            quiet=True,
        )
        assert [line["step"] for line in run.metrics()] == [1, 2]


def test_K13_a_module_beside_the_reward_counts_too(tmp_path, monkeypatch):
    """What a reward imports from its own folder is part of it, also from a package and inside a
    function, imported already or not.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kit").mkdir()
    files = {
        "helping.py": "def worth(text):\n    from kit.scale import times\n    return times(1.0)\n",
        "kit/scale.py": "times = float\n",
    }
    for name, text in {
        **files,
        "kit/__init__.py": "",
        "paying.py": REWARD,
        "other.py": "x = 1\n",
    }.items():
        (tmp_path / name).write_text(text)
    seen = {digest_code("paying.py:scored")}
    assert digest_code("paying.scored") in seen and digest_code("exact") == "" == digest_code(
        "no_such_module.f"
    )
    for name in ("helping.py", "kit/scale.py", "paying.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "# edited\n")
        assert digest_code("paying.py:scored") not in seen
        seen.add(digest_code("paying.py:scored"))
    (tmp_path / "other.py").write_text("x = 2\n")
    assert digest_code("paying.py:scored") in seen


def test_K13_weights_are_told_apart_by_size_and_ends(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(bytes(3 << 20))
    before = digest_model_folder(tmp_path)
    for place in (0, (3 << 20) - 1):
        data = bytearray(3 << 20)
        data[place] = 1
        (tmp_path / "w.safetensors").write_bytes(bytes(data))
        assert digest_model_folder(tmp_path) != before


def test_K15_a_checkpoint_of_another_run_is_refused(toy, tmp_path):
    train("rloo", short(toy, tmp_path / "a", seed=1), quiet=True)
    train("rloo", short(toy, tmp_path / "b"), quiet=True)
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    shutil.copytree(tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints")
    with pytest.raises(LaurelError, match="step-1: this checkpoint was written by another run"):
        train("rloo", short(toy, tmp_path / "b", resume=True, max_steps=2), quiet=True)


def test_K15_the_folder_of_the_model_is_no_place_for_the_run(own, tmp_path):
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    for place in ("model", "model/run"):
        with pytest.raises(UsageError, match="the folder of the model that is trained from"):
            train("rloo", short(own, tmp_path / place), quiet=True)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before


WORLD = """
class Flaky:
    def reset(self, row):
        self.row = row
        return []

    def step(self, text):
        if self.row["prompt"] in {broken!r}:
            raise ConnectionError("connection reset by peer")
        return None
"""


def flaky(tmp_path, broken):
    (tmp_path / "world.py").write_text(WORLD.format(broken=set(broken)))
    return {"env": f"{tmp_path / 'world.py'}:Flaky", "max_turns": 2}


def test_K17_a_broken_environment_fails_its_group_and_the_run_goes_on(toy, tmp_path):
    run = train(
        "rloo", short(toy, tmp_path / "run", max_steps=4, **flaky(tmp_path, ["3="])), quiet=True
    )
    lines = run.metrics()
    assert len(lines) == 4 and sum(line["failed_fraction"] > 0 for line in lines) == 1
    failed = [sample for sample in run.samples() if sample["finish"] == "error"]
    assert {sample["prompt"] for sample in failed} == {"3="} and len(failed) == 8
    assert all(sample["reward"] is None and sample["weight"] == 0 for sample in failed)
    assert "connection reset by peer" in failed[0]["results"]["sevens"]["reason"]


def test_K17_too_many_failures_end_the_run_with_its_steps_saved(toy, tmp_path):
    """Every prompt but those of the first steps breaks: what was done is saved, and the error says
    so truly.
    """
    first = {
        line["prompt"]
        for line in train("rloo", short(toy, tmp_path / "probe"), quiet=True).samples()
    }
    world = flaky(tmp_path, {f"{i}=" for i in range(8)} - first)
    options = short(toy, tmp_path / "run", max_steps=4, max_failed_fraction=0.75, **world)
    with pytest.raises(
        LaurelError,
        match=r"environment: 16 of 16 samples.*The 1 steps before it are saved: --resume true",
    ) as caught:
        train("rloo", options, quiet=True)
    assert "connection reset by peer" in str(caught.value)
    assert [path.name for path in finished_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step-1"
    ]
    train("rloo", options.model_copy(update={"resume": True, "max_steps": 1}), quiet=True)
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_K14_a_start_that_fails_leaves_the_folder_free(toy, tmp_path):
    """The environment never works: no step, no folder, and the same command may be given again."""
    options = short(toy, tmp_path / "run", **flaky(tmp_path, [f"{i}=" for i in range(8)]))
    for _ in range(2):
        with pytest.raises(LaurelError, match=r"environment: .* samples could not be scored"):
            train("rloo", options, quiet=True)
    assert not (tmp_path / "run").exists()


def stop_in_the_first_step(monkeypatch):
    """Control-C while a step is being done."""
    finish = loop.finish_step

    def stopping(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return finish(*arguments)

    monkeypatch.setattr(loop, "finish_step", stopping)


def test_K14_saved_is_said_only_of_what_is(toy, tmp_path, monkeypatch):
    """Stopped while the starter is built: its temporary folder goes, so nothing is saved, and
    nothing says so.
    """
    monkeypatch.setenv("LAUREL_CACHE", str(tmp_path / "cache"))
    tiny = short(toy, tmp_path / "unused", reward=None, max_steps=10**6)
    monkeypatch.setattr(
        starter,
        "starter_config",
        lambda *_, output_dir, **__: tiny.model_copy(update={"output_dir": output_dir}),
    )
    stop_in_the_first_step(monkeypatch)
    with pytest.raises(
        Interrupted, match=r"nothing of it is kept. Give the same command again"
    ) as caught:
        train(
            "sft",
            short(
                {**toy, "model": "starter", "dataset": "addition"}, tmp_path / "run", reward=None
            ),
            quiet=True,
        )
    assert "everything is saved" not in str(caught.value) and caught.value.exit_code == 130
    assert not (tmp_path / "run").exists() and not list((tmp_path / "cache").glob("starter*"))


def test_K14_where_it_is_said_the_checkpoint_is_there(toy, tmp_path, monkeypatch):
    stop_in_the_first_step(monkeypatch)
    with pytest.raises(Interrupted, match=r"stopped at step (\d+): everything is saved") as caught:
        train("sft", short(toy, tmp_path / "run", reward=None, max_steps=10**6), quiet=True)
    newest = finished_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert "stopped at step 1:" in caught.value.what and newest.name == "step-1"
    assert json.loads((newest / "state.json").read_text())["step"] == 1
