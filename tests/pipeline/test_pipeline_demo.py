"""The demonstration, shortened: the stages, the summary, and problems that no stage has
trained on.
"""

import json

import pytest

from laurel.data.split import prompt_key
from laurel.pipeline import demo as module
from laurel.train import loop, starter
from laurel.train.supply import load_data


@pytest.fixture
def short(monkeypatch, tmp_path):
    """The demo's own configurations with a few steps, and a cache of its own."""
    monkeypatch.setenv("LAUREL_CACHE", str(tmp_path / "cache"))
    sft, grpo, plan = module.starter_config, module.grpo_config, module.preference_plan
    monkeypatch.setattr(
        module,
        "starter_config",
        lambda *a, **k: sft(*a, **k).model_copy(update={"max_steps": 3, "eval_steps": 0}),
    )
    monkeypatch.setattr(
        module,
        "grpo_config",
        lambda *a, **k: grpo(*a, **k).model_copy(update={"max_steps": 2, "prompts_per_step": 4}),
    )
    monkeypatch.setattr(module, "preference_plan", lambda *a: fewer(plan(*a)))
    return tmp_path


def fewer(plan):
    """The same plan, a few steps of each stage."""
    stages = {
        name: {**getattr(plan, name), "max_steps": 2, "prompts_per_step": 8}
        for name in ("reward", "policy")
    }
    return plan.model_copy(
        update={**stages, "dataset_size": 200, "eval_size": 40, "gold": f"{__file__}:addition"}
    )


def addition(completions, **columns):
    """A judge by the name of the task's own, who likes ones: after three steps of SFT no sum is
    right, and none would be preferred.
    """
    return [text.count("1") + 0.01 * len(text) for text in completions]


def test_demo_writes_what_it_promises(short, capsys):
    summary = module.demo(str(short / "demo"), seed=0)
    assert summary == json.loads((short / "demo/summary.json").read_text())
    assert {
        "accuracy_before",
        "accuracy_after",
        "preferences_before",
        "preferences_gain",
        "seconds",
    } <= summary.keys()
    assert summary["held_out"] == 500
    out = capsys.readouterr().out
    assert "after SFT" in out and "after GRPO" in out and "report.html" in out
    assert (short / "demo/grpo/report.html").is_file() and (
        short / "demo/preferences/report.html"
    ).is_file()
    assert (short / "demo/grpo/model/config.json").is_file()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_problems_are_in_no_stage(seed):
    """Both stages leave the same prompts out, and at least 500 different ones."""
    stages = [
        starter.starter_config(module.TASK, seed=seed, output_dir="x"),
        module.grpo_config("scratch", seed, "x"),
    ]
    kept, held = zip(*(load_data(config, "rl") for config in stages), strict=True)
    prompts = [{prompt_key(row) for row in rows} for rows in held]
    assert prompts[0] == prompts[1] and len(prompts[0]) >= module.PROBLEMS
    for rows in kept:
        assert not prompts[0] & {prompt_key(row) for row in rows}


def test_starter_is_built_once_and_the_same_each_time(monkeypatch, tmp_path):
    """The same bits from two caches; a second call finds the folder; nothing half-made is left
    where a model is looked for.
    """
    original = starter.starter_config
    few = {"max_steps": 2, "eval_steps": 0, "dataset_size": 2_000, "eval_size": 100}
    monkeypatch.setattr(
        starter, "starter_config", lambda *a, **k: original(*a, **k).model_copy(update=few)
    )
    built = []
    for cache in ("one", "two"):
        monkeypatch.setenv("LAUREL_CACHE", str(tmp_path / cache))
        folder = starter.build_starter("starter", "addition", 0, loop.train)
        assert starter.build_starter("starter", "addition", 5) == folder
        built.append((folder / "model.safetensors").read_bytes())
        assert not list((tmp_path / cache).glob("tmp*"))
    assert built[0] == built[1]


def test_starter_needs_a_generated_task():
    from laurel.core.errors import UsageError

    with pytest.raises(UsageError, match="generated tasks"):
        starter.build_starter("starter", "some/file.jsonl", 0)
