"""TRL's own trainers on what a page says, in a process of its own: their losses and gradient norms,
as JSON.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path


def steps_of(scripts: dict[str, str], folder: str) -> None:
    """Run each script in the folder; of the `trainer` that it leaves NAME.trl.json holds every
    step's log, NAME.args.json the arguments.
    """
    import datasets
    import trl

    datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"  # not the user's
    os.chdir(folder)
    sys.path.insert(0, folder)
    trl.GRPOTrainer = partial(trl.GRPOTrainer, rollout_func=replay)
    for name, script in scripts.items():
        space: dict = {"__name__": "script"}
        exec(compile(script, name, "exec"), space)
        trainer = space["trainer"]
        logged = [
            {key: line[key] for key in ("loss", "grad_norm")}
            for line in trainer.state.log_history
            if "loss" in line
        ]
        Path(f"{name}.trl.json").write_text(json.dumps(logged))
        Path(f"{name}.args.json").write_text(trainer.args.to_json_string())


def replay(prompts, trainer):
    """The completions that laurel sampled for the same prompts, in place of a generation."""
    told = [json.loads(line) for line in Path("runs/grpo/samples.jsonl").read_text().splitlines()]
    kept: dict = {}
    for line in told:
        kept.setdefault(line["prompt"], []).append(line)
    drawn = [kept[prompt].pop(0) for prompt in prompts]
    return {
        "prompt_ids": [trainer.processing_class(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": [line["ids"] for line in drawn],
        "logprobs": [line["logps"] for line in drawn],
    }


def fields(path: str) -> None:
    """Every field of TRL's configurations, and of what its command reads beside them, with its
    default: {class: {name: default}}.
    """
    import dataclasses
    from importlib import import_module

    import trl
    from transformers import TrainingArguments

    utils, grpo = import_module("trl.scripts.utils"), import_module("trl.scripts.grpo")
    kinds = {
        "": TrainingArguments,
        "model": trl.ModelConfig,
        "script": grpo.GRPOScriptArguments,
        "mixture": utils.DatasetMixtureConfig,
    }
    named = {
        "sft": "SFT",
        "grpo": "GRPO",
        "rloo": "RLOO",
        "dpo": "DPO",
        "kto": "KTO",
        "reward": "Reward",
    }
    kinds |= {trainer: getattr(trl, f"{name}Config") for trainer, name in named.items()}
    for trainer, name in {"cpo": "CPO", "orpo": "ORPO", "online_dpo": "OnlineDPO"}.items():
        kinds[trainer] = getattr(import_module(f"trl.experimental.{trainer}"), f"{name}Config")
    found = {
        kind: {field.name: default(field) for field in dataclasses.fields(of)}
        for kind, of in kinds.items()
    }
    Path(path).write_text(json.dumps(found, default=str))


def default(field):
    """What a field has where nobody gives it."""
    import dataclasses

    made = field.default_factory
    return (
        made()
        if made is not dataclasses.MISSING
        else None
        if field.default is dataclasses.MISSING
        else field.default
    )


def all_of_it(scripts: dict[str, str], folder: str) -> None:
    """Fields and steps, for one import of TRL."""
    fields(f"{folder}/fields.json")
    steps_of(scripts, folder)
