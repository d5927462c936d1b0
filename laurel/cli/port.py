"""`laurel train ALGORITHM --from-trl FILE`: a run that TRL was to make, said in our options, shown line by line.

A ported run is the run they had: where the file is silent and a result depends on it, TRL's default is taken, not laurel's, and the
line says so. What changes no result keeps laurel's default. Whatever the command line gives wins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from laurel.cli.options import given
from laurel.core.config import TrainConfig, advice, build_config, read_yaml
from laurel.core.errors import UsageError
from laurel.core.load import beside
from laurel.core.trl import Ask, Line, number, shown, translate, truth
from laurel.core.trl_names import ADAPTERS, COMMON, DUMPED, OWN, TABLE, default_of, defaults_of
from laurel.core.trl_rules import TRAINERS, same

LONGEST_PROMPT = 1 << 20
"""TRL 1.16 has no limit on prompts, only that of the model's positions."""
EMPTY: tuple[Any, ...] = (None, "", [], {}, False)


def port(args: Any, ask: Ask) -> TrainConfig:
    """The configuration of a file of TRL's, with what the command line gives over it; the translation is printed."""
    if args.config is not None:
        raise UsageError("two configurations.", where="--from-trl, --config", fix="Give one; single options stand behind it.")
    if ask.algorithm not in TRAINERS:
        what = f"TRL 1.16 has no trainer for `{ask.algorithm}`."
        raise UsageError(what, where="--from-trl", fix=f"It reads: {', '.join(TRAINERS)}.")
    words = given(args, TrainConfig)
    own = {name: value for name, value in words.items() if name in TrainConfig.model_fields}
    theirs = {name: value for name, value in words.items() if name not in own}
    values, lines = ported(args.from_trl, {**read_trl(args.from_trl), **theirs}, own, ask)
    print("\n".join(table(args.from_trl, ask.algorithm, lines)), flush=True)
    for name in ("model", "dataset"):
        if name not in {**values, **own}:
            raise UsageError(f"the file names no {name}.", where=args.from_trl, fix=f"Give --{name}.")
    return build_config({**values, **own}, where=args.from_trl, ask=ask)


def read_trl(path: str) -> dict[str, Any]:
    """The names in a YAML file, or in a JSON file as TRL saves it, without those at the values that a saved file holds anyway."""
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
    return {name: value for name, value in values.items() if name not in DUMPED or value != DUMPED[name]}


def ported(path: str, theirs: dict[str, Any], own: Mapping[str, Any], ask: Ask) -> tuple[dict[str, Any], list[Line]]:
    """(options of ours, a line for every name). own: what the command line gives by our names, which win."""
    trainer = TRAINERS[ask.algorithm]
    unknown = [name for name in theirs if name not in TABLE and name not in TrainConfig.model_fields or name == "env"]
    lines = [Line(name, "...", (), "Set variables in the shell.") for name in unknown if name == "env"]
    if unknown := [name for name in unknown if name != "env"]:
        each = " ".join(f"`{name}`: {advice(name, TrainConfig, ask) or 'neither a name of TRL 1.16 nor of laurel.'}" for name in unknown)
        raise UsageError(f"unknown: {', '.join(unknown)}.", where=path, fix=each)
    theirs = {name: value for name, value in theirs.items() if name != "env" and value is not None}
    if path.endswith(".json"):
        theirs = {name: value for name, value in theirs.items() if name not in TABLE or not same(value, default_of(name, trainer))}
    lines += list(aside(path, theirs, own, trainer, ask))
    for line in lines:
        theirs.pop(line.theirs, None)
    everything = {**theirs, **own}
    asking = replace(ask, given=everything, defaults=defaults_of(trainer), port=True)
    values, said = translate({name: theirs[name] for name in theirs}, TABLE, asking, path)
    values = beside(path, values)
    lines += [Line(name, theirs[name], ((name, values[name]),)) for name in values if name in theirs] + said
    silent = [name for name in names_taken(trainer, everything) if name not in everything]
    silent = [name for name in silent if not set(TABLE[name].ours) & {*values, *own}]
    for name in silent:
        made, _ = translate({name: asking.defaults[name]}, TABLE, asking, path)
        made = {option: value for option, value in made.items() if option in ask.own() and value is not None}
        values |= {option: value for option, value in made.items() if option not in values}
        lines += [default_line(name, made, ask)] if differs(made, ask) else []
    more = unlike(ask, trainer, everything, values)
    return {**{name: value for name, (value, _) in more.items()}, **values}, [*lines, *further(more, values, own)]


def defaults_beside() -> dict[tuple[str, Any, Any], list[str]]:
    """(option, TRL's default, ours) -> rows, wherever a result depends on them and they differ: for the page about TRL."""
    from laurel.cli.train import applying

    found: dict[tuple[str, Any, Any], list[str]] = {}
    for algorithm in ("sft", "reward", "dpo", "kto", "orpo", "simpo", "online_dpo", "rloo", "grpo"):
        own, trainer = applying(algorithm), TRAINERS[algorithm]
        ask = Ask(algorithm, defaults=defaults_of(trainer), own=lambda own=own: own, port=True)
        names = [name for name in names_taken(trainer, {"use_peft": True}) if name != "loss_type" or algorithm == "grpo"]
        made = translate({name: ask.defaults[name] for name in names}, TABLE, ask, "")[0]
        made |= {option: value for option, (value, _) in unlike(ask, trainer, {}, made).items()}
        for option, value in made.items():
            if option in own and value is not None and value != own[option]:
                found.setdefault((option, value, own[option]), []).append(algorithm)
    return found


def names_taken(trainer: str, everything: Mapping[str, Any]) -> Iterator[str]:
    """The names whose default is taken where the file is silent."""
    steps = number(everything.get("max_steps"))
    for name in (*COMMON, *OWN[trainer], *(ADAPTERS if truth(everything.get("use_peft")) else ())):
        if name != "num_train_epochs" or steps is None or steps < 1:
            yield name


def aside(path: str, theirs: Mapping[str, Any], own: Mapping[str, Any], trainer: str, ask: Ask) -> Iterator[Line]:
    """Lines of the names that are left out, and why. Those that would change results, and ask for that, are an error together."""
    refused: list[str] = []
    for name, value in theirs.items():
        row = TABLE.get(name)
        if row is None:
            continue
        default = default_of(name, trainer)
        idle = same(value, default) or (value in EMPTY and default in EMPTY)
        if set(row.ours) & set(own):
            yield Line(name, value, (), "The command line gives it.")
        elif row.kind != "absent":
            if reason := needless(name, value, trainer, ask):
                yield Line(name, value, (), reason)
        elif row.harmless or idle:
            yield Line(name, value, (), row.say if not idle else "as here")
        elif name == "fp16" and "dtype" in own:
            yield Line(name, value, (), "The command line gives dtype.")
        else:
            refused.append(f"`{name}: {shown(value)}`: {row.say}")
    if refused:
        fix = " ".join([*refused, "Take them out of the file to train without."])
        raise UsageError("it asks for what laurel has not, and results would differ.", where=path, fix=fix)


def needless(name: str, value: Any, trainer: str, ask: Ask) -> str:
    """Why a name that both have is left out for this algorithm; "" where it is not."""
    if name in ("gradient_checkpointing", "activation_checkpointing") and trainer == "reward":
        return "A scorer is trained without it; it saves memory only."
    if name == "disable_dropout" and trainer in ("grpo", "rloo", "online_dpo"):
        return "Reinforcement learning is without dropout here."
    if name == "label_smoothing" and ask.algorithm == "dpo":
        return "TRL's sigmoid does not use it; here it would be cDPO."
    if name == "num_train_epochs" and (number(ask.given.get("max_steps")) or 0) > 0:
        return "max_steps is given."
    if name == "max_steps" and (number(value) or 0) < 1:
        return "The epochs say how long."
    if name == "scale_rewards" and ask.algorithm == "dr_grpo" and str(value).lower() in ("false", "none"):
        return "dr_grpo never scales."
    if name in ("epsilon", "epsilon_high") and trainer == "rloo":
        return "A ratio that is 1 is never clipped."
    return ""


def differs(made: Mapping[str, Any], ask: Ask) -> bool:
    """Is this not what laurel would take?"""
    return any(value != ask.own().get(option) for option, value in made.items())


def default_line(name: str, made: Mapping[str, Any], ask: Ask) -> Line:
    """The line of a name that the file does not have."""
    ours = ", ".join(shown(ask.own().get(option)) for option in made)
    return Line(name, "(TRL's default)", tuple(made.items()), f"laurel's own would be {ours}")


def unlike(ask: Ask, trainer: str, everything: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """What TRL does without an option of its own: ours -> (value, why)."""
    found: dict[str, tuple[Any, str]] = {}
    options = ask.own()
    if not values.get("eval_steps") and not everything.get("eval_dataset"):
        found["eval_size"] = 0, "nothing is evaluated, so every row is trained on"
    elif values.get("eval_steps") and not everything.get("eval_dataset"):
        found["eval_size"] = 200, "rows held out of dataset, not the split test: or name --eval_dataset"
    if "use_margin" in options and trainer == "dpo":
        found["use_margin"] = False, "TRL's DPO reads no margin"
    if "num_generations" in options:
        found["max_prompt_length"] = LONGEST_PROMPT, "TRL 1.16 leaves no prompt out"
    if trainer == "sft" and "disable_dropout" not in everything:
        found["disable_dropout"] = False, "TRL's SFT trains with the model's dropout"
    if "train_on" in options and "train_on" not in values and holds_messages({**values, **everything}):
        found["train_on"] = "all", "TRL's default for rows of messages is every token"
    if truth(everything.get("use_peft")) and not everything.get("lora_target_modules") and (chosen := chosen_by_peft({**values, **everything})):
        found["lora_target_modules"] = chosen, "peft's choice for this model, as in TRL"
    return found


def further(more: Mapping[str, tuple[Any, str]], values: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[Line]:
    """The lines of what TRL does by itself, unless somebody asked for something else."""
    for option, (value, why) in more.items():
        if option not in values and option not in own:
            yield Line("(TRL)", why, ((option, value),))


def holds_messages(values: Mapping[str, Any]) -> bool:
    """Are the rows of the data set conversations in one column? Read as they will be trained on."""
    from laurel.data.rows import read_rows

    name = values.get("dataset")
    if not name:
        return False
    split = str(values.get("dataset_split") or "train")
    return "messages" in read_rows(str(name), "sft", split=split, seed=0, size=1, by="sft")[0].columns


def chosen_by_peft(values: Mapping[str, Any]) -> list[str]:
    """The modules that peft adapts where nobody names any; none where the model is not on this machine."""
    file = Path(str(values.get("model"))) / "config.json"
    if not file.is_file():
        return []
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICES

    return list(CHOICES.get(json.loads(file.read_text(encoding="utf-8")).get("model_type"), []))


def table(path: str, algorithm: str, lines: list[Line]) -> list[str]:
    """The translation as it is printed: what was read, what was taken by default, what was left out."""
    kept = [line for line in lines if line.ours]
    asked = [line for line in kept if line.theirs != "(TRL)" and line.value != "(TRL's default)"]
    rest = [line for line in kept if line not in asked]
    out = [line for line in lines if not line.ours and line.said != "as here"]
    told = [f"{path}: a configuration of TRL's, as `laurel train {algorithm}`"]
    for title, part in (("read", asked), ("TRL's defaults, which are not laurel's", rest), ("left out", out)):
        told += [f"{title}:", *(f"  {line}" for line in part)] if part else []
    return told
