"""Training scorers: the language-model term, LoRA, subsets of pairs; resumed, split and refused."""

import json

import pytest
import torch
from test_train_resume import final_weights, same
from toy import make_toy, toy_config

from laurel.cli.main import main
from laurel.core.errors import LaurelError, UsageError
from laurel.model import scorer as scorers
from laurel.model.scorer import load_scorer
from laurel.reward.load import load_reward
from laurel.train.loop import train
from laurel.train.setup import prepare_session


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def data(toy, tmp_path_factory):
    """Sevens are better: pairs, rankings of four, steps, outcomes; the toy's options with each."""
    folder, found = tmp_path_factory.mktemp("data"), {}
    several = ("7777", "7712", "7123", "3210")
    makers = {
        "reward": lambda i: {"chosen": several[0], "rejected": f"{i:04d}"},
        "reward_kwise": lambda i: {
            "responses": [several[(i + k) % 4] for k in range(4)],
            "ranks": [1 + (i + k) % 4 for k in range(4)],
        },
        "reward_pl": lambda i: {
            "responses": [several[(i + k) % 4] for k in range(4)],
            "ranks": [1 + (i + k) % 4 for k in range(4)],
        },
        "orm": lambda i: {"completion": several[0] if i % 2 else several[3], "label": bool(i % 2)},
        "prm": lambda i: {
            "completions": ["7" if i % 2 else "3", "77"],
            "labels": [1 if i % 2 else -1, 1],
        },
    }
    for name, make in makers.items():
        path = folder / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({"prompt": f"{i}=", **make(i)}) + "\n" for i in range(10, 90))
        )
        found[name] = {**toy, "dataset": str(path), "eval_size": 8}
    return found


def run(name, data, folder, **options):
    return train(name, toy_config(data[name], folder, reward=None, **options), quiet=True)


@pytest.mark.parametrize("name", ["reward", "reward_kwise", "reward_pl"])
def test_imitation_learns_both_and_saves_an_ordinary_folder(name, data, tmp_path):
    """The comparison is learned, the best answers' likelihood rises, and the folder is a reward
    like any other.
    """
    lines = run(name, data, tmp_path, max_steps=30, imitation_coef=0.5).metrics()
    assert (
        lines[-1]["accuracy"] > 0.9 and lines[-1]["imitation/nll"] < lines[0]["imitation/nll"] / 3
    )
    good, bad = load_reward(f"model:{tmp_path / 'model'}").function(["5=", "5="], ["7777", "3210"])
    assert good > bad


def test_the_first_loss_is_the_sum_of_its_terms(data, tmp_path):
    """lambda times the comparison plus beta times the likelihood; and with beta = 0 no language
    head is kept.
    """
    losses = {}
    for i, (coef, beta) in enumerate([(1.0, 0.0), (0.25, 0.0), (0.25, 0.5)]):
        line = run(
            "reward", data, tmp_path / str(i), max_steps=1, reward_coef=coef, imitation_coef=beta
        ).metrics()[0]
        losses[coef, beta] = line["loss"]
        assert ("imitation/nll" in line) == bool(beta)
    assert losses[0.25, 0.0] == pytest.approx(0.25 * losses[1.0, 0.0], rel=1e-5)
    assert losses[0.25, 0.5] == pytest.approx(
        losses[0.25, 0.0] + 0.5 * line["imitation/nll"], rel=1e-5
    )  # every answer has 5 tokens
    setup, _ = prepare_session("reward", toy_config(data["reward"], tmp_path / "bare", reward=None))
    assert setup.policy.language is None and [reads for reads, _, _ in setup.terms] == [
        ("score_NT",)
    ]


@pytest.mark.parametrize("options", [{"imitation_coef": 0.3}, {"pairs_per_prompt": 2}])
def test_micro_batches_change_nothing(options, data, tmp_path):
    name = "reward_kwise"
    lines = [
        run(name, data, tmp_path / str(b), max_steps=2, token_budget=b, **options).metrics()[-1]
        for b in (8, 4096)
    ]
    for key in ("loss", "grad_norm", "accuracy"):
        assert lines[0][key] == pytest.approx(lines[1][key], rel=2e-4)


CASES = {
    "imitation": ("reward", {"imitation_coef": 0.5}),
    "subset of pairs": ("reward_kwise", {"pairs_per_prompt": 2}),
    "lora": ("reward", {"use_peft": True, "lora_r": 2}),
    "lora of three classes": ("prm", {"use_peft": True, "lora_r": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_T59_resumed_scorers_are_the_unbroken_ones(case, data, tmp_path):
    name, options = CASES[case]
    whole = run(name, data, tmp_path / "whole", max_steps=4, **options)
    for stop in (2, 4):
        parts = run(name, data, tmp_path / "parts", max_steps=stop, resume=True, **options)
    assert same(final_weights(whole), final_weights(parts))
    assert [line["loss"] for line in whole.metrics()] == [line["loss"] for line in parts.metrics()]


@pytest.mark.parametrize("name", ["reward", "reward_kwise", "reward_pl", "orm", "prm"])
def test_lora_learns_and_its_folder_is_whole(name, data, tmp_path):
    """Adapters and head alone are in the checkpoint, and in the saved folder, which says what the
    trained scorer said.
    """
    finished = run(
        name,
        data,
        tmp_path,
        max_steps=40,
        use_peft=True,
        lora_r=4,
        lora_alpha=16,
        learning_rate=2e-2,
    )
    lines = finished.metrics()
    assert lines[-1]["accuracy"] > 0.9 and lines[-1]["loss"] < lines[0]["loss"]
    assert all("lora_" in key or key.startswith("score.") for key in final_weights(finished))
    assert (finished.model / "adapter_config.json").exists() and not (
        finished.model / "config.json"
    ).exists()
    assert not any(
        "lora" in key for key, _ in load_scorer(str(finished.model)).model.named_parameters()
    )


def test_what_cannot_be_is_refused_before_weights(data, toy, tmp_path):
    trained = run("reward", data, tmp_path / "trained", max_steps=1).model
    untouched = tmp_path / "untouched"
    with pytest.raises(UsageError, match="needs a language model's head"):
        train(
            "reward",
            toy_config(
                {**data["reward"], "model": str(trained)},
                untouched,
                reward=None,
                imitation_coef=0.1,
            ),
            quiet=True,
        )
    with pytest.raises(UsageError, match="does not apply to `orm`"):
        train(
            "orm", toy_config(data["orm"], untouched, reward=None, imitation_coef=0.1), quiet=True
        )
    with pytest.raises(UsageError, match="does not apply to `reward`"):
        train(
            "reward",
            toy_config(data["reward"], untouched, reward=None, pairs_per_prompt=2),
            quiet=True,
        )
    assert not untouched.exists()
    go_on = toy_config(
        {**data["reward"], "model": str(trained)},
        tmp_path / "on",
        reward=None,
        use_peft=True,
        max_steps=1,
    )
    assert train("reward", go_on, quiet=True).metrics()  # a trained scorer may go on under adapters


def test_eval_says_what_the_run_said(data, tmp_path, capsys):
    """`laurel eval` on the rows that were held out prints the run's own verdict, and writes it as
    JSON.
    """
    for name in ("reward", "orm", "prm"):
        setup = {**data[name], "eval_dataset": data[name]["dataset"], "eval_size": 12}
        finished = train(
            name, toy_config(setup, tmp_path / name, reward=None, max_steps=3), quiet=True
        )
        verdict = json.loads((finished.folder / "run.json").read_text())["held_out"]
        path = tmp_path / f"{name}.json"
        words = [
            "eval",
            "--model",
            str(finished.model),
            "--dataset",
            data[name]["dataset"],
            "--limit",
            "12",
            "--output",
            str(path),
        ]
        capsys.readouterr()
        assert main(words) == 0
        printed = capsys.readouterr().out.splitlines()
        assert [
            line
            for line in verdict
            if "length" not in line and "wins" not in line and line not in printed
        ] == []
        written = json.loads(path.read_text())
        assert (
            written["left_out"] == 0
            and written["figures"]["accuracy"]["low"] <= written["figures"]["accuracy"]["value"]
        )
    assert main([*words, "--num_generations", "4"]) == 2
    assert "is about answers" in capsys.readouterr().err


def test_a_process_model_judges_samples_of_a_run(data, toy, tmp_path):
    """prm:FOLDER as the reward of a policy: numbers in [0, 1], under its own name."""
    judge = run("prm", data, tmp_path / "judge", max_steps=3).model
    lines = train(
        "rloo",
        toy_config(
            {**toy, "rewards": [f"prm:{judge}:min"], "max_completion_length": 4},
            tmp_path / "run",
            reward=None,
            max_steps=2,
        ),
        quiet=True,
    ).metrics()
    assert all(0 <= line["rewards/prm_min/mean"] <= 1 for line in lines)


def test_adapters_of_a_run_are_a_start_a_reward_a_critic_and_resumed(
    data, toy, tmp_path, monkeypatch, capsys
):
    """A LoRA reward run: its folder is used by the next runs and by `laurel eval`; resumed merged,
    nothing of the adapters stays.
    """
    judge = run("reward", data, tmp_path / "judge", max_steps=2, use_peft=True, lora_r=2)
    folder = str(judge.model)
    on = toy_config({**data["reward"], "model": folder}, tmp_path / "on", reward=None, max_steps=1)
    assert (
        train("reward", on, quiet=True).model / "adapter_config.json"
    ).is_file()  # its adapters are trained on
    options = {
        "rewards": [f"model:{folder}"],
        "critic_model": folder,
        "num_generations": 2,
        "max_steps": 1,
        "use_peft": True,
        "lora_r": 2,
    }
    ppo = train("ppo", toy_config(toy, tmp_path / "ppo", reward=None, **options), quiet=True)
    again = toy_config(
        {**toy, "model": str(ppo.model)}, tmp_path / "again", num_generations=2, max_steps=1
    )
    assert (train("grpo", again, quiet=True).model / "adapter_config.json").is_file()
    assert (
        main(["eval", "--model", folder, "--dataset", data["reward"]["dataset"], "--limit", "8"])
        == 0
    )
    assert main(["sample", "a", "--model", str(ppo.model), "--max_completion_length", "2"]) == 0
    assert main(["sample", "a", "--model", folder, "--max_completion_length", "2"]) == 2
    assert "adapters of a trained scorer" in capsys.readouterr().err
    before = load_scorer(folder).score([(5, 6, 7)])
    merged = run(
        "reward",
        data,
        tmp_path / "judge",
        max_steps=2,
        use_peft=True,
        lora_r=2,
        resume=True,
        save_merged=True,
    )
    assert (
        not any("adapter" in file.name for file in merged.model.iterdir())
        and (merged.model / "config.json").is_file()
    )
    torch.testing.assert_close(load_scorer(folder).score([(5, 6, 7)]), before, rtol=0, atol=1e-6)


def test_a_failed_check_at_the_end_keeps_all_and_resume_saves_again(data, tmp_path, monkeypatch):
    """The run is an error that says how far off; its checkpoint and what was written stay; --resume
    true saves.
    """
    real = scorers.write_adapters

    def spoiled(one, folder, dtype):
        real(type(one)({n: t * 1.01 for n, t in one.tensors.items()}, one.config), folder, dtype)

    monkeypatch.setattr(scorers, "write_adapters", spoiled)
    with pytest.raises(
        LaurelError,
        match=(
            r"differs from the trained one by .*, where rounding explains .*checkpoint is"
            r" kept.*resume"
        ),
    ):
        run("reward", data, tmp_path / "run", max_steps=2, use_peft=True, lora_r=2)
    assert (tmp_path / "run/checkpoints/step-2").is_dir() and (
        tmp_path / "run/model-unproven/adapter_model.safetensors"
    ).is_file()
    assert not (tmp_path / "run/model").exists()
    monkeypatch.undo()
    done = run("reward", data, tmp_path / "run", max_steps=2, use_peft=True, lora_r=2, resume=True)
    assert load_scorer(str(done.model)).num_labels == 1
