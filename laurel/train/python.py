"""`laurel.train("grpo", model=..., dataset=..., rewards=[function])`.

It takes the command's path, with objects where the command takes names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from laurel.core.bound_objects import PREFIX, bind_objects, qualified_name
from laurel.core.config import ALGORITHM_NAMES, TrainConfig, build_config
from laurel.core.errors import UsageError, nearest
from laurel.core.files import read_yaml
from laurel.core.load import resolve_paths
from laurel.core.run import Run
from laurel.data.in_memory import are_names, records_of

ALIASES = {"train_dataset": "dataset", "reward_funcs": "rewards", "processing_class": "tokenizer"}
"""What trainers of TRL call an argument: what it is called here."""
OWN = ("callbacks", "compute_metrics", "config", "quiet", "tokenizer", *ALIASES)
CODE = ("env", "relabel")
ROWS = ("dataset", "ptx_dataset")


def train(
    algorithm: str,
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    callbacks: Sequence[Any] = (),
    compute_metrics: Callable[..., Mapping[str, float]] | None = None,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Train one algorithm of the table to the end and return its run directory.

    options: those of `laurel train ALGORITHM --help`, by name; config: a TrainConfig, a mapping or
    a YAML file of them, which single options win over. Objects may stand where the command takes
    names: `model` (of transformers or peft, trained in place) with its `tokenizer`, `dataset`,
    `eval_dataset` (or a mapping of several) and `ptx_dataset` (a datasets.Dataset or any iterable
    of mappings, read whole), `rewards` (functions, called in this process), `env` (a class),
    `relabel`. The run remembers functions by `module.qualname`. compute_metrics: of each
    evaluation's groups, further numbers by name. callbacks: objects with any of on_step(step,
    metrics), on_evaluation(step, metrics), on_checkpoint(step, folder); True or "stop" from one of
    the first two ends the run, saved. TRL's names train_dataset, reward_funcs and processing_class
    are understood.
    """
    check_algorithm(algorithm)
    options = rename_trl_options(options)
    check_names(options)
    values = {**given_values(config), **options}
    tokenizer = values.pop("tokenizer", None)
    values, objects = with_names(values)
    # from here on torch is needed
    from laurel.train.callbacks import check_callbacks
    from laurel.train.loop import train as run_to_the_end
    from laurel.train.session import Observers

    observers = Observers(
        check_callbacks(callbacks),
        check_function(compute_metrics),
        tuple(object_notes(objects, values.get("param_dtype"))),
    )
    with bind_objects(objects):
        resolved = build_config(values, where="laurel.train")
        with bind_objects(with_tokenizer(resolved.model, values, objects, tokenizer)):
            return run_to_the_end(algorithm, resolved, quiet=quiet, observers=observers)


def check_algorithm(name: Any) -> None:
    """UsageError for what is no row of the table."""
    if name not in ALGORITHM_NAMES:
        raise UsageError(
            f"unknown algorithm `{name}`.",
            where="laurel.train",
            fix=nearest(str(name), ALGORITHM_NAMES),
        )


def rename_trl_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with TRL's names for objects as ours.

    One given under both names is a UsageError. None counts as not given.
    """
    found = dict[str, Any]()
    for name, value in options.items():
        ours = ALIASES.get(name, name)
        if ours in found or (ours != name and ours in options):
            raise UsageError(
                f"`{name}` and `{ours}` are one option.",
                where="laurel.train",
                fix="Give one of them.",
            )
        found[ours] = value
    return found


def check_names(options: Mapping[str, Any]) -> None:
    """UsageError for an unknown name of which the nearest is an argument of Python's.

    `build_config` names the nearest option of the others.
    """
    for name in options:
        if name in TrainConfig.model_fields or name == "tokenizer":
            continue
        hint = nearest(name, [*TrainConfig.model_fields, *OWN])
        if any(f"`{own}`" in hint for own in OWN):
            raise UsageError(f"unknown option `{name}`.", where="laurel.train", fix=hint)


def given_values(config: TrainConfig | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """The options of a configuration, as far as it sets them."""
    if config is None:
        return {}
    if isinstance(config, TrainConfig):
        return {name: getattr(config, name) for name in config.model_fields_set}
    if isinstance(config, str | Path):
        return resolve_paths(config, read_yaml(config))
    # a program may give anything
    if isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        return rename_trl_options(config)
    raise UsageError(
        f"`{type(config).__name__}` is no configuration.",
        where="config",
        fix="A TrainConfig, a mapping or a YAML file.",
    )


def with_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options with names in the places of objects, and the objects by those names."""
    named, objects = dict[str, Any](), dict[str, Any]()
    split = str(values.get("dataset_split", TrainConfig.model_fields["dataset_split"].default))
    for option, value in values.items():
        value = path_as_text(value)
        if value is not None:
            value = with_name(option, value, split, objects)
        named[option] = value
    return named, objects


def with_name(option: str, value: Any, split: str, objects: dict[str, Any]) -> Any:
    """The value of an option with names in the place of objects, which go into `objects`."""
    if option in ROWS:
        return rows_by_name(value, option, split, objects)
    if option == "eval_dataset":
        return evaluation_by_name(value, split, objects)
    if option == "rewards":
        several = isinstance(value, list | tuple)
        listed = cast("Sequence[Any]", value) if several else list[Any]([value])
        return [
            one if isinstance(one, str) else name_object(one, option, objects) for one in listed
        ]
    if option in CODE and not isinstance(value, str):
        return name_object(value, option, objects)
    if option == "model" and not isinstance(value, str):
        return model_by_name(value, objects)
    return value


def evaluation_by_name(value: Any, split: str, objects: dict[str, Any]) -> Any:
    """One evaluation set by name, or several sets by theirs."""
    parts = cast("Mapping[Any, Any]", value) if isinstance(value, Mapping) else dict[Any, Any]()
    # a DatasetDict, whose parts have columns, is one set with splits
    several = isinstance(value, Mapping) and not all(
        hasattr(part, "column_names") for part in parts.values()
    )
    if not several:
        split = split_for_evaluation(value, split)
        return rows_by_name(value, "eval_dataset", split, objects)
    return {
        name: rows_by_name(part, f"eval_dataset/{name}", split, objects)
        for name, part in parts.items()
    }


def split_for_evaluation(value: Any, split: str) -> str:
    """Of a DatasetDict to evaluate on: its first split that is not the one to train on."""
    others = [
        name
        for name in ("validation", "test", "eval", "dev")
        if isinstance(value, Mapping) and name in value
    ]
    return others[0] if others else split


def rows_by_name(value: Any, option: str, split: str, objects: dict[str, Any]) -> Any:
    """The value of an option of rows, by name.

    A name stays as it is; names of files become one text; rows go under the name of their option.
    """
    value = path_as_text(value)
    if isinstance(value, str) or are_names(value):
        return value if isinstance(value, str) else ",".join(value)
    name = f"{PREFIX}{option}"
    objects[name] = records_of(value, option.replace("/", " "), split)
    return name


def path_as_text(value: Any) -> Any:
    """The text of a path; anything else as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    return value


def name_object(value: Any, option: str, objects: dict[str, Any]) -> str:
    """`module.qualname` of a function or class, by which a run remembers it.

    A second one of that name becomes `...#2`.
    """
    if not callable(value):
        raise UsageError(
            f"`{value!r:.60}` is neither a name nor a function.",
            where=option,
            fix="Give functions, classes or names.",
        )
    name = plain = qualified_name(value)
    count = 1
    while name in objects and objects[name] is not value:
        count += 1
        name = f"{plain}#{count}"
    objects[name] = value
    return name


def model_by_name(model: Any, objects: dict[str, Any]) -> str:
    """The name of a model that can be trained."""
    from laurel.model.objects import check_model

    check_model(model)
    name = f"{PREFIX}{type(model).__name__}"
    objects[name] = model
    return name


def with_tokenizer(
    model: str, values: Mapping[str, Any], objects: Mapping[str, Any], tokenizer: Any
) -> dict[str, Any]:
    """The tokenizer under the name of its model.

    A model in memory that comes without one has that of the folder it was loaded from.
    """
    from laurel.model.objects import TOKENIZER
    from laurel.model.policy import load_tokenizer

    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(os.fspath(tokenizer))
    if tokenizer is not None:
        if "model" not in values:
            raise UsageError(
                "a tokenizer belongs to a model.", where="tokenizer", fix="Give model, too."
            )
        if not callable(getattr(tokenizer, "decode", None)) or not callable(
            getattr(tokenizer, "get_vocab", None)
        ):
            fix = "Give what AutoTokenizer.from_pretrained returns."
            raise UsageError(
                f"`{type(tokenizer).__name__}` is no tokenizer of transformers.",
                where="tokenizer",
                fix=fix,
            )
    elif model in objects:
        source = str(getattr(objects[model], "name_or_path", "") or "")
        if not source:
            raise UsageError(
                "the model does not say which tokenizer is its own.",
                where=f"model={model}",
                fix="Give tokenizer, too.",
            )
        try:
            tokenizer = load_tokenizer(source)
        except UsageError as error:
            raise UsageError(
                f"the model's tokenizer: {error}",
                where=f"model={model}",
                fix="Give tokenizer, too.",
            ) from None
    return {} if tokenizer is None else {f"{TOKENIZER}{model}": tokenizer}


def check_function(function: Any) -> Any:
    """compute_metrics, if it can be called."""
    if function is not None and not callable(function):
        raise UsageError(
            f"`{function!r:.60}` is no function.",
            where="compute_metrics",
            fix="Give a function of a list of groups.",
        )
    return function


def object_notes(objects: Mapping[str, Any], kept: str | None = None) -> list[str]:
    """Notes on objects: where they run, and what becomes of them.

    kept: the precision asked for weights.
    """
    functions = [name for name in objects if not name.startswith(PREFIX)]
    lines = [f"called in this process, not pickled: {', '.join(functions)}"] if functions else []
    for thing in objects.values():
        if hasattr(thing, "named_parameters"):
            from laurel.model.objects import note_of_given

            lines.append(note_of_given(thing, kept if kept == "bfloat16" else "float32"))
    return lines
