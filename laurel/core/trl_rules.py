"""Rules of TRL's names that are more than another word: a value of theirs as options of ours."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from laurel.core.errors import UsageError
from laurel.core.trl import Request, Rule, as_bool, as_number, format_value, is_bool_word

TRAINERS = {
    "sft": "sft",
    "grpo": "grpo",
    "dr_grpo": "grpo",
    "dapo": "grpo",
    "gspo": "grpo",
    "cispo": "grpo",
    "rloo": "rloo",
    "dpo": "dpo",
    "cdpo": "dpo",
    "robust_dpo": "dpo",
    "ipo": "dpo",
    "kto": "kto",
    "orpo": "orpo",
    "simpo": "cpo",
    "online_dpo": "online_dpo",
    "reward": "reward",
}
"""A row of our table -> the trainer of TRL whose configuration it reads."""
COUNTS_COMPLETIONS = ("grpo", "rloo")
"""Trainers whose batch sizes count completions, num_generations of them to a prompt."""

CLIPS_SEQUENCES = ("rloo",)


def only_values(*allowed: Any, fix: str) -> Rule:
    """Values that mean what laurel does anyway; any other is an error that says what to do."""

    def rule(value: Any, ask: Request) -> dict[str, Any]:
        if not any(is_same_value(value, one) for one in allowed):
            raise UsageError(f"{format_value(value)} is not to be had here.", fix=fix)
        return {}

    return rule


def is_same_value(one: Any, other: Any) -> bool:
    """Equal, whether a file wrote it or a command line."""
    if isinstance(other, bool):
        return isinstance(one, bool | str) and str(one).lower() == str(other).lower()
    numbers = as_number(one), as_number(other)
    return one == other or (None not in numbers and numbers[0] == numbers[1])


def switch_rule(option: str, value_of: Callable[[Any], Any]) -> Rule:
    """A switch: where it is on, the option has this value; off asks for nothing."""
    return lambda value, ask: {option: value_of(value)} if as_bool(value) else {}


def positive_integer(value: Any, name: str) -> int:
    """A whole number above 0."""
    found = as_number(value)
    if found is None or found < 1 or found % 1:
        raise UsageError(f"{name} = {format_value(value)} is no whole number above 0.")
    return int(found)


def translate_step_size(value: Any, ask: Request) -> dict[str, Any]:
    """Rows of a step: per device x accumulated x processes, or that over num_generations."""
    if not ask.algorithm:
        what = (
            "what this counts depends on the algorithm: completions for grpo and rloo, rows"
            " elsewhere."
        )
        raise UsageError(what, fix="Write prompts_per_step.")
    if not ask.has("per_device_train_batch_size") and not ask.port:
        raise UsageError(
            "it multiplies per_device_train_batch_size, which is not given.",
            fix="Give both, or prompts_per_step.",
        )
    factors = [
        positive_integer(ask.of(name), name)
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    ]
    factors.append(int(os.environ.get("WORLD_SIZE", "1")))
    rows, words = math.prod(factors), " x ".join(str(factor) for factor in factors)
    if TRAINERS.get(ask.algorithm) not in COUNTS_COMPLETIONS:
        ask.lines.append(f"per device x accumulated x processes = {words}.")
        return {"prompts_per_step": rows}
    each = positive_integer(ask.of("num_generations"), "num_generations")
    if rows % each:
        fix = "Give a product that num_generations divides, or prompts_per_step."
        raise UsageError(
            f"{words} = {rows} completions are no whole number of groups of {each}.", fix=fix
        )
    ask.lines.append(
        f"completions: per device x accumulated x processes / num_generations = {words} / {each}."
    )
    return {"prompts_per_step": rows // each}


def one_update(*, whole_batch: bool) -> Rule:
    """The completions of a step are one optimiser step.

    whole_batch: the value counts completions, else micro-batches.
    """

    def rule(value: Any, ask: Request) -> dict[str, Any]:
        accumulated = as_number(ask.of("gradient_accumulation_steps")) or 1
        each = (as_number(ask.of("per_device_train_batch_size")) or 8) * int(
            os.environ.get("WORLD_SIZE", "1")
        )
        if value is not None and as_number(value) != (
            accumulated * each if whole_batch else accumulated
        ):
            what = (
                "the completions of a step are one optimiser step (or num_iterations of them),"
                " never several on parts of them."
            )
            raise UsageError(what, fix="Leave it out, and size the step with prompts_per_step.")
        return {}

    return rule


def steps_or_fraction_rule(option: str) -> Rule:
    """A number of steps; below 1 TRL reads a share of all steps."""

    def rule(value: Any, ask: Request) -> dict[str, Any]:
        share = as_number(value)
        if value is None:
            return {}
        if share is None or not 0 < share < 1:
            return {
                option: to_sampling_steps(
                    int(value) if isinstance(value, float) and value % 1 == 0 else value, ask
                )
            }
        steps = as_number(ask.given.get("max_steps"))
        if steps is None or steps < 1:
            given = f"{option} = {format_value(value)}"
            what = f"{given} is a share of all steps, and max_steps is not given."
            raise UsageError(what, fix="Give max_steps.")
        ask.lines.append(f"{share:g} of {steps:g} steps.")
        return {option: to_sampling_steps(math.ceil(share * steps), ask)}

    return rule


def to_sampling_steps(steps: Any, ask: Request) -> Any:
    """Steps of a port: optimiser steps there, here steps over fresh samples."""
    count, each = as_number(steps), as_number(ask.of("num_iterations")) if ask.port else 1
    if count is None or each in (None, 1):
        return steps
    ask.lines.append(f"TRL counts every one of the {each:g} passes as a step.")
    return math.ceil(count / each)


def translate_max_steps(value: Any, ask: Request) -> dict[str, Any]:
    """max_steps: see `to_sampling_steps`; -1 leaves it to the epochs."""
    return {"max_steps": to_sampling_steps(value, ask)}


def translate_num_iterations(value: Any, ask: Request) -> dict[str, Any]:
    """Passes over one batch; one where TRL clips ratios of whole sequences and laurel does not."""
    if ask.port and TRAINERS.get(ask.algorithm) in CLIPS_SEQUENCES and as_number(value) != 1:
        what = "TRL's later passes clip the ratio of a sequence, laurel's have no ratio."
        raise UsageError(what, fix="Give num_iterations: 1, or train gspo.")
    return {"num_iterations": value}


def of_engine(rule: Rule) -> Rule:
    """A rule of what TRL does with the samples of vLLM only: in a port without it, nothing."""

    def only_there(value: Any, ask: Request) -> dict[str, Any]:
        return {} if ask.port and not as_bool(ask.of("use_vllm")) else rule(value, ask)

    return only_there


@of_engine
def translate_correction_switch(value: Any, ask: Request) -> dict[str, Any]:
    """Off: nothing is corrected. On: the mode says how."""
    return {} if as_bool(value) else {"importance_sampling_correction": "none"}


@of_engine
def translate_correction(value: Any, ask: Request) -> dict[str, Any]:
    """Two of TRL's four modes; none where the correction is switched off."""
    if not as_bool(ask.of("vllm_importance_sampling_correction")):
        return {}
    if value not in (None, "token_truncate", "sequence_mask"):
        near = {"token_mask": "token_truncate", "sequence_truncate": "sequence_mask"}
        raise UsageError(
            f"`{value}` is no correction here.",
            fix=f"Near it: {near.get(str(value), 'token_truncate or sequence_mask')}.",
        )
    return {} if value is None else {"importance_sampling_correction": value}


def translate_precision(value: Any, ask: Request) -> dict[str, Any]:
    """bf16 is the precision of the products, `dtype` here; TRL's dtype is `param_dtype` here."""
    if not ask.port:
        word = str(value).removeprefix("torch.")
        return {
            "dtype": ("bfloat16" if as_bool(value) else "float32") if is_bool_word(value) else word
        }
    weights = str(ask.given.get("dtype") or ask.given.get("torch_dtype") or "float32").removeprefix(
        "torch."
    )
    if as_bool(ask.given.get("fp16")) or weights == "float16":
        raise UsageError(
            "float16 is not computed here.", fix="Choose: --dtype bfloat16, or --dtype float32."
        )
    mixed = as_bool(ask.given["bf16"]) if ask.given.get("bf16") is not None else True
    return {"dtype": "bfloat16" if mixed or weights == "bfloat16" else "float32"}


def weights(value: Any, ask: Request) -> dict[str, Any]:
    """torch_dtype: the precision of the weights; in a port without bf16 of the products, too."""
    word = str(value).removeprefix("torch.")
    if word == "auto":
        ask.lines.append("auto is the precision of the files there, float32 here.")
        return {}
    if word not in ("float32", "bfloat16"):
        raise UsageError(f"weights are not held in {word} here.", fix="Choose bfloat16 or float32.")
    return {"param_dtype": word, **(translate_precision(value, ask) if ask.port else {})}


IDLE_KWARGS = ("attn_implementation", "use_cache", "low_cpu_mem_usage", "device_map")
"""Arguments of from_pretrained on which no result depends here."""


def translate_init_kwargs(value: Any, ask: Request) -> dict[str, Any]:
    """Arguments of from_pretrained: dtype is `param_dtype`; others are ignored, or an error."""
    read_value: Any = parse_text(value) if isinstance(value, str) else value or dict[str, Any]()
    if not isinstance(read_value, dict):
        raise UsageError(f"{format_value(value)} is no mapping.", fix="Leave it out.")
    everything = cast("dict[str, Any]", read_value)
    asked = {name: one for name, one in everything.items() if one not in (None, False)}
    if other := sorted(set(asked) - {"dtype", "torch_dtype", *IDLE_KWARGS}):
        raise UsageError(
            f"`{other[0]}` of it is not to be had here.",
            fix="Load the model so, and give it in Python (`laurel.train`).",
        )
    if idle := sorted(set(asked) & set(IDLE_KWARGS)):
        ask.lines.append(f"{', '.join(idle)}: laurel's own way is taken.")
    word = asked.get("dtype", asked.get("torch_dtype"))
    return weights(word, ask) if word is not None else {}


def parse_text(text: str) -> Any:
    """What a text says as YAML, or JSON; itself where it is neither."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


OPTIMISERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"), "adamw_torch"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), "adamw_8bit"),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit"), "paged_adamw_32bit"),
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"""A name of transformers' -> ours."""


def translate_optimiser(value: Any, ask: Request) -> dict[str, Any]:
    """AdamW by any of its names."""
    word = str(value).rpartition(".")[2].lower()
    if value is None:
        return {}
    if word not in OPTIMISERS:
        what = f"{format_value(value)} is not to be had here."
        raise UsageError(
            what, fix=f"AdamW is what there is: {', '.join(dict.fromkeys(OPTIMISERS.values()))}."
        )
    return {"optim": OPTIMISERS[word]}


def translate_schedule(value: Any, ask: Request) -> dict[str, Any]:
    """The shapes that both have."""
    names = {
        "constant_with_warmup": "constant",
        "linear": "linear",
        "cosine": "cosine",
        "constant": "constant",
    }
    return {"lr_scheduler_type": names.get(str(value).rpartition(".")[2].lower(), value)}


def single_item_rule(option: str) -> Rule:
    """A list of one value is that value."""

    def rule(value: Any, ask: Request) -> dict[str, Any]:
        items = cast("list[Any]", value) if isinstance(value, list) else []
        return {option: items[0] if len(items) == 1 else value}

    return rule


def translate_reward_scale(value: Any, ask: Request) -> dict[str, Any]:
    """true is group, false is none."""
    words = {"true": "group", "false": "none"}
    return {"scale_rewards": words.get(str(value).lower(), value)}


def strategy_interval(option: str, follow: str, default: int) -> Rule:
    """A strategy: `no` is 0, `steps` is as often as its own option says."""

    def rule(value: Any, ask: Request) -> dict[str, Any]:
        word = str(value).rpartition(".")[2].lower()
        if word in ("no", "false"):  # YAML reads a bare `no` as false
            return {option: 0}
        if word == "steps":
            often = ask.given.get(option) or ask.given.get(follow) or default
            return steps_or_fraction_rule(option)(often, ask)
        if ask.port:  # no result depends on it
            ask.lines.append(f"{option} counts steps: give --{option}.")
            return {}
        raise UsageError(
            f"`{value}` is not to be had here: {option} counts steps.",
            fix="One epoch is rows / prompts_per_step steps.",
        )

    return rule


def translate_logging_strategy(value: Any, ask: Request) -> dict[str, Any]:
    """Metrics are always written: the strategy says nothing that logging_steps does not."""
    return {}


def translate_report_to(value: Any, ask: Request) -> dict[str, Any]:
    """`none` is nothing beside the files of the run; `all` is every sink there is."""
    if value in ("all", ["all"]):
        return {"report_to": ["tensorboard", "wandb", "trackio"]}
    return {"report_to": [] if value in ("none", ["none"]) else value}


def as_name_list(value: Any) -> list[str]:
    """A text, a list of texts, or nothing, as a list."""
    return (
        []
        if value in (None, "", "none")
        else [value]
        if isinstance(value, str)
        else [str(item) for item in value]
    )


def translate_rewards(value: Any, ask: Request) -> dict[str, Any]:
    """A scorer's folder and functions by name, in TRL's order.

    TRL's own functions are laurel's where it has them, else imported from TRL.
    """
    found: list[str] = []
    for name in ("reward_model_name_or_path", "reward_model_path"):
        found += [f"model:{folder}" for folder in as_name_list(ask.given.get(name))]
    for name in as_name_list(ask.given.get("reward_funcs")):
        if name == "accuracy_reward":
            ask.lines.append(
                "accuracy_reward is `math` here, against the column answer (or completion; of TRL:"
                " solution)."
            )
            found.append("math")
        elif name == "get_soft_overlong_punishment":
            fix = (
                "Leave it out of the list, and write overlong_buffer: 256 with"
                " max_completion_length: 1280."
            )
            raise UsageError("get_soft_overlong_punishment is an option here.", fix=fix)
        elif name in ("think_format_reward", "reasoning_accuracy_reward"):
            ask.lines.append(f"{name} is read from the package trl, which must be installed.")
            found.append(f"trl.rewards.{name}")
        else:
            found.append(name)
    return {"rewards": found} if found else {}


def translate_dataset(value: Any, ask: Request) -> dict[str, Any]:
    """The name, and behind a colon its configuration."""
    name, config = ask.given.get("dataset_name"), ask.given.get("dataset_config")
    if name is None:
        raise UsageError(
            "a configuration of what?", fix="Give the data set, too: --dataset NAME:CONFIGURATION."
        )
    return {"dataset": f"{name}:{config}" if config else str(name)}


def translate_engine(value: Any, ask: Request) -> dict[str, Any]:
    """A server to sample on, where one is asked for; else the sampler of this process."""
    if not as_bool(ask.of("use_vllm")):
        return {}
    url = ask.given.get("vllm_server_base_url")
    mode = ask.given.get("vllm_mode") or ("server" if url else "colocate")
    if mode != "server":
        ask.lines.append("Sampling is laurel's own, in this process.")
        return {}
    host = str(ask.of("vllm_server_host") or "0.0.0.0")
    # a server that listens on every address is asked on this machine's own
    name = "127.0.0.1" if host == "0.0.0.0" else host
    ask.lines.append("The server is vLLM's own, or `laurel serve`; not `trl vllm-serve`.")
    return {"engine": [url or f"http://{name}:{ask.of('vllm_server_port') or 8000}"]}


def translate_mixture(value: Any, ask: Request) -> dict[str, Any]:
    """A list of files or sets, one after the other; shares and choices of columns are errors."""
    found, splits = list[str](), set[str]()
    parts: list[Any] = value or []
    for part in parts:
        fields: dict[str, Any] = {"path": part} if isinstance(part, str) else part
        asked = {name: one for name, one in fields.items() if one is not None}
        over = sorted(set(asked) - {"path", "name", "data_files", "split"})
        files = asked.get("data_files")
        if over or isinstance(files, dict):
            fix = "Write the mixture as one file, or name files between commas."
            what = (
                f"`{(over or ['data_files by split'])[0]}` of a data set in the list is not to be"
                " had here."
            )
            raise UsageError(what, fix=fix)
        name = f"{asked['path']}:{asked['name']}" if "name" in asked else str(asked["path"])
        found += as_name_list(files) if files else [name]
        splits.add(str(asked.get("split", "train")))
    if len(splits) > 1:
        raise UsageError(
            "the data sets of the list are of different splits.", fix="Write them as one file."
        )
    return {"dataset": ",".join(found), "dataset_split": splits.pop()} if found else {}


def translate_resume(value: Any, ask: Request) -> dict[str, Any]:
    """true, or a checkpoint of the run's own folder: the newest sound one is taken."""
    if value in (None, "", False) or str(value).lower() == "false":
        return {}
    folder = ask.given.get("output_dir")
    if str(value).lower() not in ("true", "anyway") and (
        folder is None or Path(str(value)).parent != Path(str(folder))
    ):
        what = f"a run goes on from its own output_dir, not from {value}."
        raise UsageError(what, fix="Give output_dir, and resume: true.")
    return {"resume": True}


def translate_train_on(value: Any, ask: Request) -> dict[str, Any]:
    """Which tokens are supervised, from TRL's two switches."""
    assistant, completion = (
        ask.given.get("assistant_only_loss"),
        ask.given.get("completion_only_loss"),
    )
    if assistant is not None and as_bool(assistant):
        return {"train_on": "assistant"}
    if completion is not None:
        return {"train_on": "completion" if as_bool(completion) else "all"}
    return {}
