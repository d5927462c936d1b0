"""`laurel.train` from Python: objects where the command takes names, callbacks, metrics of one's
own, errors in our words.
"""

import functools
import json
from collections.abc import Mapping

import numpy
import pytest
import torch
from datasets import Dataset, DatasetDict
from toy import make_toy
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig

import laurel
from laurel.core.bound_objects import bind_objects, bound_object, qualified_name
from laurel.core.config import EvalConfig, TrainConfig
from laurel.core.errors import LaurelError, UsageError
from laurel.core.run import Run
from laurel.data.in_memory import records_of
from laurel.data.source import load_rows
from laurel.train.checkpoint import finished_checkpoints
from laurel.train.python import name_object, with_names

ROWS = [{"prompt": f"{i}=", "answer": "7"} for i in range(8)]
PAIRS = [{"prompt": f"{i}=", "chosen": "77", "rejected": "1"} for i in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The toy's model, as a folder."""
    return make_toy(tmp_path_factory.mktemp("toy"))["model"]


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def sevens(completions, **columns):
    return [text.count("7") / 4 for text in completions]


def others(completions):
    return [0.5 for _ in completions]


def short(folder, where, **options):
    """Options of a run of a few steps."""
    small = {
        "max_completion_length": 4,
        "rewards": [sevens],
        "dataset": ROWS,
        "eval_size": 0,
        "learning_rate": 1e-2,
    }
    return {
        "model": folder,
        "prompts_per_step": 4,
        "max_steps": 2,
        "output_dir": where,
        "quiet": True,
        **small,
        **options,
    }


def weights(where):
    return AutoModelForCausalLM.from_pretrained(where).state_dict()


def same(a: Mapping, b: Mapping):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Watcher:
    """Remembers what it heard."""

    def __init__(self, stop_at=0, answer=True):
        self.heard, self.stop_at, self.answer = [], stop_at, answer

    def on_step(self, step, metrics):
        self.heard.append(("step", step, metrics["learning_rate"]))
        return self.answer if step == self.stop_at else None

    def on_evaluation(self, step, metrics):
        assert all(name.startswith("eval/") for name in metrics)
        self.heard.append(("evaluation", step, metrics["eval/samples"]))

    def on_checkpoint(self, step, folder):
        assert (folder / "manifest.json").is_file()
        self.heard.append(("checkpoint", step, folder.name))


def test_a_model_in_memory_is_trained_in_place_and_is_what_is_saved(
    folder, model, tokenizer, tmp_path
):
    """Functions, an iterator of rows and a loaded model give what names of files give, bit for bit;
    the tokenizer is left alone.
    """
    before, template = (
        {name: value.clone() for name, value in model.state_dict().items()},
        tokenizer.chat_template,
    )
    run = laurel.train(
        "grpo", **short(model, tmp_path / "a", dataset=iter(ROWS), tokenizer=tokenizer)
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    named = laurel.train(
        "grpo",
        **short(
            folder, tmp_path / "b", dataset=tmp_path / "rows.jsonl", rewards=f"{__file__}:sevens"
        ),
    )
    assert same(weights(run.model), weights(named.model)) and same(
        weights(run.model), model.state_dict()
    )
    assert not same(before, model.state_dict()) and tokenizer.chat_template == template
    assert run.config()["model"] == "python:LlamaForCausalLM" and run.config()["rewards"] == [
        f"{__name__}.sevens"
    ]
    assert any("trained in place, not copied" in line for line in run.facts["notes"])
    assert any(
        line == f"called in this process, not pickled: {__name__}.sevens"
        for line in run.facts["notes"]
    )


def test_a_model_finds_the_tokenizer_of_its_folder(model, tmp_path):
    assert laurel.train("grpo", **short(model, tmp_path / "run", max_steps=1)).metrics()
    model.config._name_or_path = model.name_or_path = ""
    with pytest.raises(UsageError, match="Give tokenizer, too"):
        laurel.train("grpo", **short(model, tmp_path / "other"))


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "reward"])
def test_a_model_in_memory_serves_every_kind_of_run(algorithm, model, tokenizer, tmp_path):
    data = (
        [{"prompt": f"{i}=", "completion": "7777"} for i in range(8)]
        if algorithm == "sft"
        else PAIRS
    )
    options = {
        "dataset": Dataset.from_list(data),
        "tokenizer": tokenizer,
        "eval_dataset": data,
        "eval_steps": 1,
        "rewards": None,
    }
    seen = []

    def own(groups):
        seen.extend(groups)
        return {"mean": sum(sum(group.rewards) for group in groups) / len(groups)}

    run = laurel.train(
        algorithm,
        **short(
            model,
            tmp_path / "run",
            **options,
            max_completion_length=None,
            compute_metrics=own,
            max_steps=1,
        ),
    )
    assert (
        run.model.exists()
        and len(seen) == 8
        and run.metrics()[-1]["eval/mean"] == pytest.approx(own(seen[:8])["mean"])
    )
    if algorithm == "sft":  # what a group's reward is there: log pi of its answer
        nll = run.metrics()[-1]["eval/nll"]
        tokens = sum(sum(sample.loss_mask) for group in seen[:8] for sample in group.samples)
        assert -sum(group.rewards[0] for group in seen[:8]) / tokens == pytest.approx(nll, rel=1e-5)


def test_adapters_go_onto_a_model_in_memory_and_a_second_time_is_refused(
    model, tokenizer, tmp_path
):
    lora = {"use_peft": True, "lora_r": 2, "tokenizer": tokenizer, "save_merged": True}
    lora = {
        name: value
        for name, value in lora.items()
        if name in TrainConfig.model_fields or name == "tokenizer"
    }
    run = laurel.train("grpo", **short(model, tmp_path / "run", **lora))
    assert (run.model / "config.json").exists() or (run.model / "adapter_config.json").exists()
    with pytest.raises(UsageError, match="LoRA layers of an earlier training"):
        laurel.train("grpo", **short(model, tmp_path / "other", **lora))


def test_a_model_that_was_rounded_is_saved_as_it_was_trained(tokenizer, tmp_path):
    """`.to(bfloat16)` rounds rotary frequencies and the scale of embeddings too, which no file
    holds; ties and frozen weights stay.
    """
    small = {
        "vocab_size": len(tokenizer) + 4,
        "hidden_size": 24,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "head_dim": 12,
    }
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        **small, num_attention_heads=2, num_key_value_heads=1, sliding_window=16, layer_types=layers
    )
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.model.layers[0].requires_grad_(False)
    frozen = model.model.layers[0].mlp.up_proj.weight.float()
    data = [{"prompt": f"{i}=", "completion": "7777"} for i in range(8)]
    run = laurel.train(
        "sft",
        **short(
            model,
            tmp_path / "run",
            tokenizer=tokenizer,
            dataset=data,
            rewards=None,
            max_completion_length=None,
        ),
    )
    ids = torch.arange(12)[None]
    again = AutoModelForCausalLM.from_pretrained(run.model)
    assert (
        again(ids).logits.equal(model.eval()(ids).logits)
        and model.lm_head.weight is model.model.embed_tokens.weight
    )
    assert float(model.model.embed_tokens.embed_scale) == pytest.approx(24**0.5, abs=1e-6)
    assert (
        model.model.layers[0].mlp.up_proj.weight.equal(frozen)
        and not model.model.layers[0].mlp.up_proj.weight.requires_grad
    )
    assert any(
        "its weights now in float32 (given in bfloat16)" in line for line in run.facts["notes"]
    )


def test_what_cannot_be_trained_is_refused_by_kind(model, tmp_path):
    frozen = AutoModelForCausalLM.from_config(model.config).requires_grad_(False)
    with torch.device("meta"):
        nowhere = AutoModelForCausalLM.from_config(model.config)
    for thing, words in [
        (torch.nn.Linear(2, 2), "no model of transformers"),
        (frozen, "every weight of it is frozen"),
        (nowhere, "meta"),
    ]:
        with pytest.raises(UsageError, match=words):
            laurel.train("grpo", **short(thing, tmp_path / "run"))


def test_rows_of_every_kind_are_the_same_rows():
    pandas = pytest.importorskip("pandas")
    rows = [
        {"prompt": "a", "answer": 1},
        {"prompt": "b", "answer": None, "parts": (1, numpy.float64(2), {"x": numpy.arange(2)})},
    ]
    wanted = [{"prompt": "a", "answer": 1}, {"prompt": "b", "parts": [1, 2.0, {"x": [0, 1]}]}]
    assert [columns for _, columns in records_of(iter(rows), "dataset")] == wanted
    assert [where for where, _ in records_of(tuple(rows), "dataset")] == [
        "dataset:record 1",
        "dataset:record 2",
    ]
    table = Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}])
    for thing in (table, DatasetDict(train=table), pandas.DataFrame({"prompt": ["a", "b"]})):
        assert [columns for _, columns in records_of(thing, "dataset")] == [
            {"prompt": "a"},
            {"prompt": "b"},
        ]
    with bind_objects({"python:dataset": records_of(table, "dataset")}):
        assert [row.columns for row in load_rows("python:dataset")] == [
            {"prompt": "a"},
            {"prompt": "b"},
        ]
    rows[1]["parts"][2]["x"][0] = 9  # what was read was copied
    assert bound_object("python:dataset") is None


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ([], "no rows"),
        (iter(()), "no rows"),
        ({"prompt": ["a"]}, "a mapping is no list"),
        ([{"prompt": "a"}, 3], "record 2: .*number 3"),
        (5, "the number 5"),
        ([{}], "no columns"),
        (DatasetDict(trian=Dataset.from_list([{"a": 1}])), "no split `train`.*trian"),
    ],
)
def test_what_is_no_rows_is_refused(thing, words):
    with pytest.raises(UsageError, match=words):
        records_of(thing, "dataset")


def test_names_of_things():
    held = {}
    partial = functools.partial(sevens, weight=1)
    assert [name_object(one, "rewards", held) for one in (sevens, partial, sevens, len)] == [
        f"{__name__}.sevens",
        f"{__name__}.sevens#2",
        f"{__name__}.sevens",
        "builtins.len",
    ]
    assert qualified_name(Watcher()) == qualified_name(
        Watcher
    ) == f"{__name__}.Watcher" and qualified_name(Watcher().on_step).endswith("Watcher.on_step")
    values, objects = with_names(
        {
            "dataset": ["a.jsonl", "b.jsonl"],
            "eval_dataset": {"x": ROWS, "y": "c.jsonl"},
            "rewards": ["exact", sevens],
        }
    )
    assert values["dataset"] == "a.jsonl,b.jsonl" and values["eval_dataset"] == {
        "x": "python:eval_dataset/x",
        "y": "c.jsonl",
    }
    assert values["rewards"] == ["exact", f"{__name__}.sevens"] and objects.keys() == {
        "python:eval_dataset/x",
        f"{__name__}.sevens",
    }


def test_resume_asks_for_the_same_functions_and_rows(folder, tmp_path):
    from laurel.cli.main import main

    where = tmp_path / "run"
    laurel.train("grpo", **short(folder, where))
    with pytest.raises(UsageError, match=r"rewards \['.*sevens'\] -> \['.*others'\]"):
        laurel.train("grpo", **short(folder, where, rewards=[others], resume=True))
    with pytest.raises(
        UsageError, match="what the run reads has changed since it began: dataset python:dataset"
    ):
        laurel.train("grpo", **short(folder, where, dataset=ROWS[:6], resume=True))
    run = laurel.train(
        "grpo", **short(folder, where, dataset=Dataset.from_list(ROWS), resume=True, max_steps=3)
    )
    assert run.metrics()[-1]["step"] == 3
    assert (
        main(["train", "grpo", "--config", str(where / "config.yaml"), "--resume", "true"]) == 2
    )  # `algorithm` is no option
    words = [
        "--model",
        folder,
        "--dataset",
        "python:dataset",
        "--output_dir",
        str(where),
        "--resume",
        "true",
    ]
    assert main(["train", "grpo", *words]) == 2


def test_the_command_line_says_that_an_object_is_missing(folder, capsys):
    from laurel.cli.main import main

    for words in (
        ["--dataset", "python:dataset"],
        ["--dataset", "addition", "--rewards", "__main__.f"],
        ["--model", "python:LlamaForCausalLM"],
    ):
        assert main(["train", "grpo", "--model", folder, *words]) == 2
        assert "was an object of the Python program" in capsys.readouterr().err


def test_callbacks_hear_of_steps_evaluations_and_checkpoints(folder, tmp_path):
    watcher = Watcher()
    run = laurel.train(
        "grpo",
        **short(
            folder,
            tmp_path / "run",
            callbacks=[watcher],
            eval_dataset=ROWS[:3],
            eval_steps=2,
            save_steps=2,
            max_steps=3,
        ),
    )
    assert watcher.heard == [
        ("step", 1, 0.01),
        ("step", 2, 0.01),
        ("evaluation", 2, 3.0),
        ("checkpoint", 2, "step-2"),
        ("step", 3, 0.01),
        ("checkpoint", 3, "step-3"),
    ]
    assert run.facts["callbacks"] == [f"{__name__}.Watcher"]


@pytest.mark.parametrize("answer", [True, "stop", numpy.True_])
def test_a_callback_may_stop_the_run_and_everything_is_saved(answer, folder, tmp_path, capsys):
    options = short(folder, tmp_path / "run", max_steps=9, quiet=False)
    run = laurel.train("grpo", **options, callbacks=[Watcher(2, answer), Watcher()])
    said = f"stopped at step 2, as callback `{__name__}.Watcher.on_step` asked: everything is saved"
    assert said in capsys.readouterr().out and run.facts["stopped"] == {
        "step": 2,
        "by": f"{__name__}.Watcher.on_step",
    }
    assert run.model.exists() and [path.name for path in finished_checkpoints(run.checkpoints)] == [
        "step-2"
    ]
    if answer is True:
        run = laurel.train("grpo", **{**options, "max_steps": 3, "resume": True})
        assert run.metrics()[-1]["step"] == 3 and "stopped" not in Run(run.folder).facts


class Broken:
    def on_step(self, step, metrics):
        return {"a": 1}["b"] if step == 2 else None


class Odd:
    def on_evaluation(self, step, metrics):
        return "halt"


def test_a_callback_that_fails_ends_the_run_named_and_saved(folder, tmp_path):
    with pytest.raises(
        LaurelError,
        match=(
            r"step 2: callback `.*Broken.on_step` failed: KeyError: 'b'.*2 steps before it are"
            r" saved"
        ),
    ) as caught:
        laurel.train("grpo", **short(folder, tmp_path / "run", callbacks=[Broken()], max_steps=4))
    assert isinstance(caught.value.__cause__, KeyError)
    run = laurel.train("grpo", **short(folder, tmp_path / "run", max_steps=4, resume=True))
    whole = laurel.train("grpo", **short(folder, tmp_path / "whole", max_steps=4))
    assert same(weights(run.model), weights(whole.model))
    with pytest.raises(LaurelError, match=r"Odd.on_evaluation` returned 'halt': True or 'stop'"):
        laurel.train(
            "grpo",
            **short(folder, tmp_path / "odd", callbacks=[Odd()], eval_dataset=ROWS, eval_steps=1),
        )


class Transformers:
    def on_step_end(self, args, state, control):
        pass


class TooFew:
    def on_step(self, step):
        pass


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        ([Transformers()], "none of on_step.*`on_step`"),
        ([TooFew()], "step, metrics"),
        ([Watcher], "this is a class"),
        (3, "none of on_step"),
    ],
)
def test_callbacks_that_would_never_be_called_are_refused(callbacks, words, folder, tmp_path):
    with pytest.raises(UsageError, match=words):
        laurel.train("grpo", **short(folder, tmp_path / "run", callbacks=callbacks))
    assert not (tmp_path / "run").exists()


def test_metrics_of_ones_own_are_logged_per_set_and_may_choose_the_best(folder, tmp_path):
    def own(groups):
        return {
            "length": numpy.float32(
                sum(len(s.completion_ids) for group in groups for s in group.samples) / len(groups)
            )
        }

    sets = {"a": ROWS[:2], "b": ROWS}
    best = {
        "metric_for_best_model": "b/length",
        "greater_is_better": True,
        "load_best_model_at_end": True,
    }
    run = laurel.train(
        "grpo",
        **short(
            folder, tmp_path / "run", eval_dataset=sets, eval_steps=1, compute_metrics=own, **best
        ),
    )
    assert {"eval/a/length", "eval/b/length"} <= run.metrics()[0].keys() and run.facts["best"][
        "metric"
    ] == "eval/b/length"
    assert run.facts["compute_metrics"].endswith("own")
    again = {"eval_dataset": ROWS, "eval_steps": 1, "max_steps": 1}
    for wrong, words in [
        (lambda groups: {"accuracy": 1.0}, "`eval/accuracy` is measured already"),
        (lambda groups: 3, "int, not a mapping"),
        (lambda groups: {"x": "much"}, "not a name and a number"),
        (lambda groups: 1 / 0, "ZeroDivisionError"),
    ]:
        with pytest.raises(
            LaurelError, match=f"evaluation at step 1: compute_metrics `.*` failed: .*{words}"
        ):
            laurel.train(
                "grpo", **short(folder, tmp_path / "wrong-{n}", compute_metrics=wrong, **again)
            )


def test_worlds_and_relabelling_may_be_objects(folder, tmp_path):
    class World:
        def reset(self, row):
            return []

        def step(self, text):
            return None

    run = laurel.train("grpo", **short(folder, tmp_path / "run", env=World, max_steps=1))
    assert run.config()["env"].endswith("World")
    run = laurel.train(
        "hindsight",
        **short(
            folder,
            tmp_path / "other",
            relabel=lambda completions: [f"{text[:1]}=" for text in completions],
            max_steps=1,
        ),
    )
    assert run.metrics()[-1]["hindsight/relabelled"] == 1
    with pytest.raises(UsageError, match="no class with reset"):
        laurel.train("grpo", **short(folder, tmp_path / "third", env=Watcher))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lerning_rate": 1}, "unknown option `lerning_rate`.*`learning_rate`"),
        ({"callback": []}, "Did you mean `callbacks`"),
        ({"reward_func": sevens}, "Did you mean `reward_funcs`"),
        ({"max_steps": "many"}, "option `max_steps` = 'many'"),
        ({"rewards": [3]}, "neither a name nor a function"),
        ({"compute_metrics": 3}, "no function"),
        ({"config": 3}, "no configuration"),
        ({"reward_funcs": [sevens]}, "are one option"),
        ({"tokenizer": 3}, "no tokenizer"),
        ({"train_on": "all"}, "does not apply"),
    ],
)
def test_mistakes_are_told_in_our_words(options, words, folder, tmp_path):
    with pytest.raises(UsageError, match=words):
        laurel.train("grpo", **short(folder, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_configuration_made_in_python_is_refused_in_our_words():
    for kind, values, words in [
        (
            TrainConfig,
            {"lerning_rate": 1},
            "TrainConfig: unknown option `lerning_rate`.*`learning_rate`",
        ),
        (TrainConfig, {"max_steps": 0}, "option `max_steps` = 0: it must be at least 1"),
        (EvalConfig, {"limti": 3}, "`limit`"),
        (
            TrainConfig,
            {"eval_dataset": 3},
            "option `eval_dataset` = 3: text is wanted, or a mapping of names is wanted",
        ),
        (
            TrainConfig,
            {"lr_scheduler_type": "cosin"},
            r"one of 'constant', 'linear' or 'cosine' \(Did you mean `cosine`\?\)",
        ),
        (
            TrainConfig,
            {"max_steps": 1.5, "dtype": 3},
            "`max_steps` = 1.5: a whole number is wanted. option `dtype` = '3': it is one of",
        ),
        (
            TrainConfig,
            {"resume": "maybe"},
            "true or false is wanted, or it is one of 'anyway'|'anyway'",
        ),
        (TrainConfig, {"stop": 3}, "option `stop` = 3: a list is wanted"),
        (
            TrainConfig,
            {"use_peft": "perhaps"},
            "option `use_peft` = 'perhaps': true or false is wanted",
        ),
        (TrainConfig, {"learning_rate": 0}, "it must be above 0"),
        (TrainConfig, {"rewards": [3]}, "`rewards.0` = 3: text is wanted"),
    ]:
        with pytest.raises(UsageError, match=words):
            kind(**values)
    with pytest.raises(UsageError, match=r"unknown algorithm `grop`.*`grpo`"):
        laurel.train("grop")


def test_names_of_trl_and_configurations_are_understood(folder, tmp_path):
    plain = short(folder, tmp_path / "run", max_steps=1)
    del plain["rewards"], plain["dataset"], plain["quiet"]
    config = TrainConfig(**{**plain, "output_dir": str(tmp_path / "run"), "max_steps": 5})
    run = laurel.train(
        "grpo", config, train_dataset=ROWS, reward_funcs=sevens, max_steps=1, quiet=True
    )
    assert run.metrics()[-1]["step"] == 1 and run.config()["rewards"] == [f"{__name__}.sevens"]
    (tmp_path / "c.yaml").write_text(
        f"model: {folder}\nmax_completion_length: 4\nprompts_per_step: 4\neval_size:"
        " 0\nmax_steps: 1\n"
    )
    run = laurel.train(
        "grpo",
        tmp_path / "c.yaml",
        dataset=ROWS,
        rewards=sevens,
        output_dir=tmp_path / "yaml",
        quiet=True,
    )
    assert Run(tmp_path / "yaml").metrics() == run.metrics()
