"""`laurel train ALGORITHM --from-trl FILE`: a configuration of TRL's as options of laurel.

A ported run is the run they had: where the file is silent and a result depends on it, TRL's default
is taken, not laurel's, and the line says so. What changes no result keeps laurel's default.
Whatever the command line gives wins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from laurel.cli.options import read_command_line
from laurel.core.config import TrainConfig, build_config
from laurel.core.errors import UsageError
from laurel.core.files import read_yaml
from laurel.core.load import resolve_paths
from laurel.core.options import suggestion
from laurel.core.trl import Request, Translation, as_bool, as_number, format_value, translate
from laurel.core.trl_names import ADAPTERS, COMMON, DUMPED, OWN, TABLE, default_of, defaults_of
from laurel.core.trl_rules import TRAINERS, is_same_value

LONGEST = 1 << 20
"""No limit on tokens but that of the model's positions: of prompts TRL 1.16 has no other."""
UNLIMITED = {"max_length": LONGEST, "vllm_importance_sampling_clip_max": 1e9}
"""What a written null means, where it is not the same as silence."""
EPOCHS = "num_train_epochs"
EMPTY: tuple[Any, ...] = (None, "", [], {}, False)
BY_TRL, SILENT, AS_HERE = "(TRL)", "(TRL's default)", "as here"

OVERRULED = {"fp16": "dtype", "lr_scheduler_kwargs": "lr_scheduler_type"}
"""A name that there is not -> the option that says otherwise, where the command line gives it."""

DROPOUT = {"disable_dropout": "Reinforcement learning is without dropout here."}
MEMORY = "A scorer is trained without it; it saves memory only."
CLIPPED = "A ratio that is 1 is never clipped."
NEEDLESS: dict[str, dict[str, str]] = {
    "reward": {"gradient_checkpointing": MEMORY, "activation_checkpointing": MEMORY},
    "grpo": DROPOUT,
    "rloo": {**DROPOUT, "epsilon": CLIPPED, "epsilon_high": CLIPPED},
    "online_dpo": DROPOUT,
    "dpo": {},
}
"""A trainer -> names that both have, but that our row does without, and why."""
OF_ROW: dict[str, dict[str, str]] = {
    "dpo": {"label_smoothing": "TRL's sigmoid does not use it; here it would be cDPO."},
    "dr_grpo": {"scale_rewards: none": "dr_grpo never scales."},
}
"""The same, of one of several rows for a trainer; or of one of its values."""
UNSAID: dict[str, dict[str, tuple[Any, str]]] = {
    "dpo": {"use_margin": (False, "TRL's DPO reads no margin")},
    "sft": {"disable_dropout": (False, "TRL's SFT trains with the model's dropout")},
}
"""What a trainer does without an option of its own: ours -> (value, why)."""

OTHERWISE = {
    "orpo": Translation(
        "likelihood of the prompt",
        "in TRL's loss",
        (),
        "ORPO's paper has the answer's alone, as laurel has.",
    ),
    "ipo": Translation(
        "margin",
        "a mean over tokens in TRL",
        (),
        "laurel's is a sum, as in the paper: beta is on another scale.",
    ),
}
"""A row whose mathematics is not quite TRL's -> the line that says so."""


def port_config(args: Any, ask: Request) -> TrainConfig:
    """The configuration of a file of TRL's, with the command line over it.

    The translation is printed.
    """
    path = args.from_trl
    if args.config is not None:
        fix = "Give one; single options stand behind it."
        raise UsageError("two configurations.", where="--from-trl, --config", fix=fix)
    if TRAINERS.get(ask.algorithm) is None:
        what = f"TRL 1.16 has no trainer for `{ask.algorithm}`."
        raise UsageError(what, where="--from-trl", fix=f"It reads: {', '.join(TRAINERS)}.")
    words = read_command_line(args, TrainConfig)
    own = {name: value for name, value in words.items() if name in TrainConfig.model_fields}
    theirs = {name: value for name, value in words.items() if name not in own}
    values, lines = translate_config(path, {**read_trl(path), **theirs}, own, ask)
    print("\n".join(format_translation(path, ask.algorithm, lines)), flush=True)
    for name in ("model", "dataset"):
        if name not in {**values, **own}:
            raise UsageError(f"the file names no {name}.", where=path, fix=f"Give --{name}.")
    return build_config({**values, **own}, where=path, ask=ask)


def read_trl(path: str) -> dict[str, Any]:
    """The names in a YAML file, or in a JSON file as TRL saves it.

    Of a JSON file, without names at the values that every saved file holds.
    """
    if not path.endswith(".json"):
        return read_yaml(path)
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration: {error.strerror}.", where=path) from None
    except ValueError as error:
        raise UsageError(f"not valid JSON: {error}.", where=path) from None
    if not isinstance(values, dict):
        raise UsageError("a configuration is a mapping of name: value.", where=path)
    return {
        name: value for name, value in values.items() if name not in DUMPED or value != DUMPED[name]
    }


def translate_config(
    path: str, theirs: dict[str, Any], own: Mapping[str, Any], ask: Request
) -> tuple[dict[str, Any], list[Translation]]:
    """(options of ours, a line for every name).

    own: what the command line gives by our names, which win.
    """
    trainer = TRAINERS[ask.algorithm]
    lines: list[Translation] = []
    if "env" in theirs:
        lines.append(Translation("env", "...", (), "Set variables in the shell."))
    theirs = given_names(path, theirs, ask)
    asking = replace(ask, given={**theirs, **own}, defaults=defaults_of(trainer), port=True)
    lines += list(unused_lines(path, theirs, own, asking))
    for line in lines:
        theirs.pop(line.theirs, None)
    values, notes = translate(theirs, TABLE, asking, path)
    values = resolve_paths(path, values)
    for name in values:
        if name in theirs:
            lines.append(Translation(name, theirs[name], ((name, values[name]),)))
    lines += notes
    lines += list(unwritten_defaults(path, values, own, asking))
    lines += list(mathematical_differences(asking, values))
    for option, (value, why) in implied_options(asking, values).items():
        if option not in values and option not in own:
            values[option] = value
            lines.append(Translation(BY_TRL, why, ((option, value),)))
    return values, lines


def given_names(path: str, theirs: Mapping[str, Any], ask: Request) -> dict[str, Any]:
    """The names that ask for something: no nulls, and of a saved JSON nothing at its default.

    UsageError for a name that is neither TRL's nor laurel's.
    """
    found: dict[str, Any] = {}
    for name, value in theirs.items():
        value = UNLIMITED.get(name) if value is None else value
        if name != "env" and value is not None:
            found[name] = value
    check_names_known(path, found, ask)
    if not path.endswith(".json"):
        return found
    trainer = TRAINERS[ask.algorithm]
    return {
        name: value
        for name, value in found.items()
        if name not in TABLE or not is_same_value(value, default_of(name, trainer))
    }


def check_names_known(path: str, theirs: Mapping[str, Any], ask: Request) -> None:
    """UsageError for names that are neither theirs nor ours."""
    unknown = [
        name for name in theirs if name not in TABLE and name not in TrainConfig.model_fields
    ]
    if unknown:
        nothing = "neither a name of TRL 1.16 nor of laurel."
        each = " ".join(
            f"`{name}`: {suggestion(name, TrainConfig, ask) or nothing}" for name in unknown
        )
        raise UsageError(f"unknown: {', '.join(unknown)}.", where=path, fix=each)


def unused_lines(
    path: str, theirs: Mapping[str, Any], own: Mapping[str, Any], ask: Request
) -> Iterator[Translation]:
    """Lines of the names that are left out, and why.

    Names that would change results, and ask for that, are one error together.
    """
    trainer, refused = TRAINERS[ask.algorithm], list[str]()
    for name in [name for name in theirs if name in TABLE]:
        row, value, default = TABLE[name], theirs[name], default_of(name, trainer)
        idle = is_same_value(value, default) or (value in EMPTY and default in EMPTY)
        if set(row.ours) & set(own) or OVERRULED.get(name) in own:
            yield Translation(name, value, (), "The command line gives it.")
        elif row.kind != "absent":
            if reason := unneeded_reason(name, value, ask):
                yield Translation(name, value, (), reason)
        elif row.harmless or idle:
            yield Translation(name, value, (), AS_HERE if idle else row.say)
        else:
            refused.append(f"`{name}: {format_value(value)}`: {row.say}")
    if refused:
        fix = " ".join([*refused, "Take them out of the file to train without."])
        raise UsageError(
            "it asks for what laurel has not, and results would differ.", where=path, fix=fix
        )


def unneeded_reason(name: str, value: Any, ask: Request) -> str:
    """Why a name that both have is left out for this algorithm; "" where it is not."""
    counted = as_number(ask.given.get("max_steps")) or 0
    if name == EPOCHS and counted > 0:
        return "max_steps is given."
    if name == "max_steps" and counted < 1:
        return "The epochs say how long."
    found = {**NEEDLESS.get(TRAINERS[ask.algorithm], {}), **OF_ROW.get(ask.algorithm, {})}
    unscaled = name == "scale_rewards" and str(value).lower() in ("false", "none")
    return found.get("scale_rewards: none" if unscaled else name, "")


def unwritten_defaults(
    path: str, values: dict[str, Any], own: Mapping[str, Any], ask: Request
) -> Iterator[Translation]:
    """TRL's defaults where the file is silent and a result depends on them.

    They are put into `values`; there is a line where laurel's differ.
    """
    for name in names_taken(ask):
        if name in ask.given or set(TABLE[name].ours) & {*values, *own}:
            continue
        made, _ = translate({name: ask.defaults[name]}, TABLE, ask, path)
        made = {option: value for option, value in made.items() if value is not None}
        made = {
            option: value
            for option, value in made.items()
            if option in ask.own() or option == EPOCHS
        }
        values |= made
        if any(value != ask.own().get(option) for option, value in made.items()):
            ours = ", ".join(format_value(ask.own().get(option)) for option in made)
            yield Translation(name, SILENT, tuple(made.items()), f"laurel's own would be {ours}")


def mathematical_differences(ask: Request, values: Mapping[str, Any]) -> Iterator[Translation]:
    """Where the same options are not quite the same mathematics."""
    if line := OTHERWISE.get(ask.algorithm):
        yield line
    unit = values.get("loss_aggregation", ask.own().get("loss_aggregation"))
    if as_bool(ask.given.get("mask_truncated_completions")) and unit != "token_mean":
        why = "laurel's are in no count: the loss is larger, its direction the same."
        yield Translation("masked completions", "zeros in TRL's mean", (), why)


def names_taken(ask: Request) -> Iterator[str]:
    """The names whose default is taken where the file is silent."""
    steps = as_number(ask.given.get("max_steps")) or 0
    adapters = ADAPTERS if as_bool(ask.given.get("use_peft")) else ()
    for name in (*COMMON, *OWN[TRAINERS[ask.algorithm]], *adapters):
        if name != EPOCHS or steps < 1:
            yield name


def implied_options(ask: Request, values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """What TRL does without an option of its own: ours -> (value, why)."""
    found = dict(UNSAID.get(TRAINERS[ask.algorithm], {}))
    everything = {**ask.given, **values}
    if everything.get("eval_steps") and not everything.get("eval_dataset"):
        found["eval_size"] = (
            200,
            "rows held out of dataset, not the split test: or name --eval_dataset",
        )
    elif not everything.get("eval_dataset"):
        found["eval_size"] = 0, "nothing is evaluated, so every row is trained on"
    if "num_generations" in ask.own():
        found["max_prompt_length"] = LONGEST, "TRL 1.16 leaves no prompt out"
    if None not in (ask.own().get("epsilon"), ask.own().get("epsilon_high")):
        why = "where it is not given TRL takes epsilon"
        found["epsilon_high"] = (everything.get("epsilon", 0.2), why)
    if "train_on" in ask.own() and "train_on" not in everything and holds_messages(everything):
        found["train_on"] = "all", "TRL's default for rows of messages is every token"
    weight_dtype = str(ask.given.get("dtype")).removeprefix("torch.")
    if weight_dtype == "bfloat16" and "param_dtype" not in everything:
        why = "TRL's dtype is that of the weights; where all are trained, laurel keeps float32"
        why += " masters"
        found["param_dtype"] = (weight_dtype, why)
    if as_bool(everything.get("use_peft")) and (chosen := peft_default_modules(everything)):
        found["lora_target_modules"] = chosen, "peft's choice for this model, as in TRL"
    return {option: one for option, one in found.items() if option in ask.own()}


def holds_messages(values: Mapping[str, Any]) -> bool:
    """Are the rows of the data set conversations in one column? Read as they will be trained on."""
    from laurel.data.rows import read_rows

    name, split = values.get("dataset"), str(values.get("dataset_split") or "train")
    if not name:
        return False
    return (
        "messages" in read_rows(str(name), "sft", split=split, seed=0, size=1, by="sft")[0].columns
    )


def peft_default_modules(values: Mapping[str, Any]) -> list[str]:
    """The modules that peft adapts by default; none where the model is not on this machine."""
    file = Path(str(values.get("model"))) / "config.json"
    if not file.is_file():
        return []
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICES

    return list(CHOICES.get(json.loads(file.read_text(encoding="utf-8")).get("model_type"), []))


def format_translation(path: str, algorithm: str, lines: list[Translation]) -> list[str]:
    """The translation as printed: what was read, TRL's defaults, what was left out."""
    kept = [line for line in lines if line.ours]
    rest = [line for line in kept if line.theirs == BY_TRL or line.value == SILENT]
    parts = {
        "read": [
            line for line in lines if line not in rest and (line.ours or not is_left_out(line))
        ],
        "TRL's defaults, which are not laurel's": rest,
        "left out": [line for line in lines if is_left_out(line) and line.said != AS_HERE],
    }
    told = [f"{path}: a configuration of TRL's, as `laurel train {algorithm}`"]
    for title, part in parts.items():
        told += [f"{title}:", *(f"  {line}" for line in part)] if part else []
    return told


def is_left_out(line: Translation) -> bool:
    """Did this name become no option? One that asks for the usual thing counts as read."""
    row = TABLE.get(line.theirs)
    asked_for_nothing = (
        row is not None and row.kind == "translated" and (not row.ours or not line.said)
    )
    return not line.ours and not asked_for_nothing
