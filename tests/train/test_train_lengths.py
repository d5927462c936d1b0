"""How long a run is, when it ends, what it keeps: epochs, the best checkpoint, patience, several
evaluation sets, numbered folders.
"""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy import make_toy, toy_config

from laurel.core.config import TrainConfig, build_config
from laurel.core.errors import UsageError
from laurel.core.load import resolve_paths
from laurel.core.numbered_dirs import claim_dir
from laurel.core.run import Run
from laurel.train import interrupt, loop, progress
from laurel.train.best import check_best, is_best, out_of_patience
from laurel.train.checkpoint import finished_checkpoints
from laurel.train.loop import train
from laurel.train.run_data import in_epochs
from laurel.train.session import State


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


def supervised(toy, folder, **options):
    """SFT on the eight rows, evaluated on the same ones."""
    held = {"eval_dataset": toy["dataset"], "eval_size": 8, "eval_steps": 1}
    return toy_config(
        toy, folder, reward=None, **{"prompts_per_step": 4, "max_steps": 4, **held, **options}
    )


def without_steps(config):
    """The configuration as if max_steps had not been given."""
    return TrainConfig(
        **{name: getattr(config, name) for name in config.model_fields_set - {"max_steps"}}
    )


def told(run, words):
    return [line for line in run.facts["notes"] if words in line]


@pytest.mark.parametrize(
    ("epochs", "rows", "step", "steps"),
    [(1, 8, 4, 2), (0.5, 8, 4, 1), (2, 9, 4, 5), (3, 10, 16, 2), (0.1, 10, 1, 1)],
)
def test_epochs_make_steps_over_rows_that_are_drawn_without_a_gap(epochs, rows, step, steps):
    config, line = in_epochs(TrainConfig(num_train_epochs=epochs, prompts_per_step=step), rows)
    assert (
        config.max_steps == steps
        and f"of {rows} rows" in line
        and f"{steps * step / rows:.3g} epoch" in line
    )


def test_max_steps_goes_before_epochs_and_says_so():
    config, line = in_epochs(TrainConfig(num_train_epochs=3, max_steps=2, prompts_per_step=4), 8)
    assert config.max_steps == 2 and line.endswith("(max_steps goes before num_train_epochs=3)")


@pytest.mark.parametrize("name", ["sft", "grpo", "es", "dpo", "kto"])
def test_every_kind_of_run_says_its_epochs_and_counts_the_rows_that_remain(name, toy, tmp_path):
    """Of nine rows one is too long: epochs are of eight."""
    rows = [json.loads(line) for line in Path(toy["dataset"]).read_text().splitlines()]
    rows.append({**rows[0], "prompt": "1" * 40 + "="})
    for i, row in enumerate(rows):
        row.update(
            {"chosen": "77", "rejected": "1"}
            if name == "dpo"
            else {"label": i % 2 == 0}
            if name == "kto"
            else {}
        )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = name in ("grpo", "es")
    short = {"max_prompt_length": 20} if samples else {"max_length": 20}
    short |= {"population": 2} if name == "es" else {}
    mine = {
        **toy,
        "dataset": str(tmp_path / "rows.jsonl"),
        "num_train_epochs": 0.5,
        "prompts_per_step": 2,
        **short,
    }
    options = toy_config(mine, tmp_path / "run", reward="sevens" if samples else None)
    run = train(name, without_steps(options), quiet=True)
    assert run.metrics()[-1]["step"] == 2 and told(run, "1 of 9 rows left out")
    assert told(run, "max_steps=2 x 2 prompts_per_step: 0.5 epochs of 8 rows")
    assert run.config()["max_steps"] == 2 and run.config()["num_train_epochs"] == 0.5


def test_more_epochs_on_resume_go_on(toy, tmp_path):
    for epochs, steps in [(1, 2), (1, 2), (2, 4)]:
        options = without_steps(
            supervised(toy, tmp_path / "run", eval_steps=0, num_train_epochs=epochs, resume=True)
        )
        run = train("sft", options, quiet=True)
        assert (run.metrics()[-1]["step"], run.config()["max_steps"]) == (steps, steps)
    assert Run(tmp_path / "run").facts["resumed"][-1]["changed"] == {"num_train_epochs": [1.0, 2.0]}


def scripted(monkeypatch, values, name="eval/nll"):
    """Evaluations that say what is written here, by step."""

    def says(setup, step):
        sums = loop.Sums()
        sums.add(name, values[step], 1)
        return sums

    monkeypatch.setattr(loop, "evaluate", says)


def weights(path):
    return {name: value.clone() for name, value in load_file(path).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_best_checkpoint_is_kept_and_is_the_model(toy, tmp_path, monkeypatch):
    """Best at step 2 of 6, with one checkpoint kept: its folder stays, `model/` has its weights,
    run.json says so; resumed, too.
    """
    scripted(monkeypatch, {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.5, 5: 1.0, 6: 4.0, 7: 4.0, 8: 4.0})
    best = {
        "metric_for_best_model": "nll",
        "load_best_model_at_end": True,
        "save_total_limit": 1,
        "save_steps": 1,
    }
    run = train("sft", supervised(toy, tmp_path / "run", max_steps=6, **best), quiet=True)
    assert [path.name for path in finished_checkpoints(run.checkpoints)] == ["step-6", "step-2"]
    saved, last = (
        weights(run.checkpoints / name / "weights.safetensors") for name in ("step-2", "step-6")
    )
    model = weights(run.model / "model.safetensors")
    assert same({name: saved[name] for name in model}, model) and not same(saved, last)
    assert run.facts["best"] == {
        "metric": "eval/nll",
        "value": 1.0,
        "step": 2,
        "checkpoint": "checkpoints/step-2",
    }
    assert run.facts["model_step"] == 2
    again = train(
        "sft", supervised(toy, tmp_path / "run", max_steps=8, resume=True, **best), quiet=True
    )
    assert [path.name for path in finished_checkpoints(again.checkpoints)] == ["step-8", "step-2"]
    assert (
        same(model, weights(again.model / "model.safetensors")) and again.facts["best"]["step"] == 2
    )


def test_without_loading_it_the_model_is_the_last_steps(toy, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, {1: 1.0, 2: 2.0})
    run = train(
        "sft", supervised(toy, tmp_path / "run", max_steps=2, metric_for_best_model="eval/nll")
    )
    last = weights(run.checkpoints / "step-2" / "weights.safetensors")
    model = weights(run.model / "model.safetensors")
    assert same({name: last[name] for name in model}, model) and (
        run.facts["best"]["step"],
        run.facts["model_step"],
    ) == (1, 2)
    assert (
        "best eval/nll 1 at step 1 (checkpoints/step-1); model/ is that of step 2"
        in capsys.readouterr().out
    )


def test_patience_ends_a_run_and_a_resumed_one_stays_ended(toy, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, dict(enumerate([5.0, 4.0, 4.0, float("nan"), 1.0, 1.0, 1.0], 1)))
    early = {"metric_for_best_model": "eval_nll", "early_stopping_patience": 2, "max_steps": 7}
    run = train("sft", supervised(toy, tmp_path / "run", **early))
    assert run.metrics()[-1]["step"] == 4
    said = "2 evaluations without a better eval/nll (best: 4 at step 2): the run ends at step 4"
    assert said in capsys.readouterr().out
    again = train("sft", supervised(toy, tmp_path / "run", resume=True, **early), quiet=True)
    assert again.metrics()[-1]["step"] == 4
    longer = train(
        "sft",
        supervised(toy, tmp_path / "run", resume=True, **early | {"early_stopping_patience": 3}),
        quiet=True,
    )
    assert longer.metrics()[-1]["step"] == 7 and longer.facts["best"]["step"] == 5


def test_which_way_is_better_is_known_or_asked_for(toy):
    setup = type("Setup", (), {"config": None})()
    for name, greater, values, expected in [
        ("accuracy", None, (0.1, 0.3, 0.2), 2),
        ("nll", None, (3.0, 1.0, 2.0), 2),
        ("nll", True, (3.0, 1.0, 2.0), 1),
        ("eval/rewards/margins", None, (0.0, -1.0, 2.0), 3),
    ]:
        setup.config, state = (
            TrainConfig(
                metric_for_best_model=name, greater_is_better=greater, early_stopping_patience=1
            ),
            State(),
        )
        full = name if "/" in name else f"eval/{name}"
        for step, value in enumerate(values, 1):
            state.step = step
            is_best(setup, state, {full: value})
        assert state.best_step == expected and out_of_patience(setup.config, state) == (
            expected != 3
        )


ROW = [type("Row", (), {"part": ""})()]
NAMED = [type("Row", (), {"part": "hard"})()]


@pytest.mark.parametrize(
    ("options", "held", "message"),
    [
        ({"load_best_model_at_end": True}, ROW, "load_best_model_at_end: .*metric_for_best_model"),
        ({"early_stopping_patience": 2}, ROW, "early_stopping_patience: .*metric_for_best_model"),
        ({"greater_is_better": False}, ROW, "greater_is_better: .*metric_for_best_model"),
        ({"metric_for_best_model": "nll"}, ROW, "Set eval_steps"),
        ({"metric_for_best_model": "nll", "eval_steps": 1}, [], "eval_size"),
        (
            {"metric_for_best_model": "eval/acuracy", "eval_steps": 1},
            ROW,
            "no metric is called `eval/acuracy`.*eval/accuracy",
        ),
        ({"metric_for_best_model": "eval/score/mean", "eval_steps": 1}, ROW, "greater_is_better"),
        ({"metric_for_best_model": "nll", "eval_steps": 1}, NAMED, "eval/hard/nll"),
    ],
)
def test_what_cannot_be_best_is_refused_before_weights(options, held, message):
    with pytest.raises(UsageError, match=message):
        check_best(TrainConfig(**options), held)


def test_a_metric_of_another_algorithm_is_refused_before_the_first_step(toy, tmp_path):
    with pytest.raises(UsageError, match=r"do not measure `eval/accuracy`.*They measure: eval/nll"):
        train(
            "sft", supervised(toy, tmp_path / "run", metric_for_best_model="accuracy"), quiet=True
        )
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="ends at step 4, before its first evaluation"):
        train(
            "sft",
            supervised(toy, tmp_path / "run", metric_for_best_model="nll", eval_steps=5),
            quiet=True,
        )


def test_sets_to_evaluate_on_have_names(tmp_path):
    def read(value):
        return build_config({"eval_dataset": value}).eval_dataset

    assert read("a=x.jsonl,b=y.jsonl,z.jsonl") == {"a": "x.jsonl", "b": "y.jsonl,z.jsonl"}
    assert read({"a": ["x.jsonl", "y.jsonl"], "b": "owner/name:part"}) == {
        "a": "x.jsonl,y.jsonl",
        "b": "owner/name:part",
    }
    assert read("x.jsonl,y.jsonl") == read(["x.jsonl", "y.jsonl"]) == "x.jsonl,y.jsonl"
    assert read("addition:digits=3,sloppy=20") == "addition:digits=3,sloppy=20"
    assert read("easy=addition:digits=2,sloppy=7,hard=addition:digits=4") == {
        "easy": "addition:digits=2,sloppy=7",
        "hard": "addition:digits=4",
    }
    for wrong, words in [
        ({"a/b": "x"}, "cannot name a set"),
        ({}, "no set"),
        ("a=x.jsonl,a=y.jsonl", "two sets"),
        ({"a": 3}, "eval_dataset"),
    ]:
        with pytest.raises(UsageError, match=words):
            read(wrong)
    (tmp_path / "x.jsonl").write_text("{}\n")
    for value in ({"a": "x.jsonl"}, "a=x.jsonl"):
        assert resolve_paths(tmp_path / "c.yaml", {"eval_dataset": value})["eval_dataset"] == {
            "a": str(tmp_path / "x.jsonl")
        }


def test_several_sets_are_evaluated_each_under_its_name_and_a_cut_is_said(toy, tmp_path):
    lines = Path(toy["dataset"]).read_text().splitlines()
    for name, part in (("few", lines[:3]), ("many", lines)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    sets = {name: str(tmp_path / f"{name}.jsonl") for name in ("few", "many")}
    run = train(
        "grpo",
        toy_config(
            toy,
            tmp_path / "run",
            max_steps=1,
            eval_steps=1,
            **{"eval_dataset": sets, "eval_size": 4},
        ),
        quiet=True,
    )
    (line,) = run.metrics()
    assert (line["eval/few/samples"], line["eval/many/samples"]) == (
        3,
        4,
    ) and "eval/accuracy" not in line
    assert told(run, "held out: many: the first 4 of 8 rows") and not told(run, "few:")
    best = {"metric_for_best_model": "eval/few/nll", "load_best_model_at_end": True}
    run = train(
        "sft",
        supervised(toy, tmp_path / "sft", eval_dataset=sets, eval_size=0, max_steps=1, **best),
        quiet=True,
    )
    (line,) = run.metrics()
    assert run.facts["best"]["value"] == line["eval/few/nll"] != line["eval/many/nll"] and not told(
        run, "held out"
    )


def test_a_cut_of_the_only_set_is_said(toy, tmp_path):
    run = train("sft", supervised(toy, tmp_path / "run", eval_size=3, max_steps=1), quiet=True)
    assert told(run, "held out: the first 3 of 8 rows are evaluated on")


def test_a_resumed_run_takes_another_learning_rate_only_on_request_and_keeps_the_moments(
    toy, tmp_path
):
    plain = {"eval_steps": 0, "weight_decay": 0.1}
    first = train("sft", supervised(toy, tmp_path / "run", max_steps=2, **plain), quiet=True)
    before = torch.load(finished_checkpoints(first.checkpoints)[0] / "optimizer.pt")
    other = {**plain, "max_steps": 3, "learning_rate": 1e-4, "weight_decay": 0.5}
    with pytest.raises(UsageError, match=r"learning_rate.*--resume anyway"):
        train("sft", supervised(toy, tmp_path / "run", resume=True, **other), quiet=True)
    with pytest.raises(UsageError, match="train_on"):
        train(
            "sft",
            supervised(toy, tmp_path / "run", resume="anyway", train_on="all", **other),
            quiet=True,
        )
    run = train("sft", supervised(toy, tmp_path / "run", resume="anyway", **other), quiet=True)
    after = torch.load(finished_checkpoints(run.checkpoints)[0] / "optimizer.pt")
    assert run.metrics()[-1]["learning_rate"] == 1e-4 and run.config()["learning_rate"] == 1e-4
    assert {float(state["step"]) for state in after["state"].values()} == {3.0} and {
        float(s["step"]) for s in before["state"].values()
    } == {2.0}
    assert max(group["weight_decay"] for group in after["param_groups"]) == 0.5
    assert min(group["weight_decay"] for group in after["param_groups"]) == 0.0
    assert run.facts["resumed"][-1]["changed"]["learning_rate"] == [0.01, 1e-4]


def test_a_numbered_folder_is_the_next_free_one_and_nobody_elses(tmp_path):
    (tmp_path / "grpo-7").mkdir()
    (tmp_path / "grpo-x").mkdir()
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda _: claim_dir(tmp_path / "grpo-{n}"), range(40)))
    assert sorted(int(folder.name[5:]) for folder, _ in taken) == list(range(8, 48)) and all(
        made for _, made in taken
    )
    assert claim_dir(tmp_path / "plain") == (tmp_path / "plain", False)
    assert claim_dir(tmp_path / "{n}" / "deep")[0] == tmp_path / "1" / "deep"
    with pytest.raises(UsageError, match="one place"):
        claim_dir("{n}/{n}")


def test_a_numbered_run_counts_up_and_resume_continues_the_newest(toy, tmp_path):
    where, plain = tmp_path / "sft-{n}", {"eval_steps": 0}
    runs = [
        train("sft", supervised(toy, where, max_steps=1, **plain), quiet=True) for _ in range(2)
    ]
    assert [run.folder.name for run in runs] == ["sft-1", "sft-2"]
    run = train("sft", supervised(toy, where, max_steps=2, resume=True, **plain), quiet=True)
    assert (
        run.folder.name == "sft-2"
        and run.metrics()[-1]["step"] == 2
        and run.config()["output_dir"] == str(tmp_path / "sft-2")
    )
    with pytest.raises(UsageError):
        train("sft", supervised({**toy, "model": str(tmp_path)}, where, **plain), quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sft-1", "sft-2"]


def test_where_nobody_watches_a_line_comes_at_least_once_a_minute(
    toy, tmp_path, capsys, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    setup = type("Setup", (), {"name": "sft", "config": TrainConfig(max_steps=10_000)})()
    shown = progress.Progress(setup)
    for step in range(1, 11):
        clock[0] += 25.0
        shown.advance(step, {"nll": 1.0, "eval/hard/accuracy": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [
        "1",
        "4",
        "7",
        "10",
    ] and "eval/hard/accuracy 0.5" in lines[0]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_wanted_stop_is_no_error(sent, code, toy, tmp_path, monkeypatch, capsys):
    from laurel.cli.main import main

    finish = loop.finish_step

    def stopping(*arguments):
        os.kill(os.getpid(), sent)
        return finish(*arguments)

    monkeypatch.setattr(loop, "finish_step", stopping)
    words = [
        "--model",
        toy["model"],
        "--dataset",
        toy["dataset"],
        "--eval_size",
        "0",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main(["train", "sft", *words]) == code
    said = capsys.readouterr().err
    assert (
        said.endswith("stopped at step 1: everything is saved. Continue with --resume true.\n")
        and "error" not in said
    )
    assert interrupt.Interrupted("x", by=sent).again("y", "z").exit_code == code
