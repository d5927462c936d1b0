"""The rows and rewards of a run: read, split, checked; and notes on columns that nothing reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.named_datasets import format_named_sets
from laurel.data.rows import columns_note, read_rows
from laurel.data.source import Row
from laurel.data.split import split_rows
from laurel.data.tasks import is_task
from laurel.reward.load import is_verifier
from laurel.reward.mixture import Mixture, load_rewards
from laurel.rollout.source import Source

SCORERS = ("model:", "prm:")
"""How rewards begin that load weights."""


def load_data(config: TrainConfig, use: str, algorithm: str = "") -> tuple[list[Row], list[Row]]:
    """The training rows, and those held out for evaluation.

    Held out are all rows of eval_dataset, which `cut_sets` then cuts; without one, at most a tenth
    of the rows, split off by prompt.
    """
    how: dict[str, Any] = {
        "split": config.dataset_split,
        "seed": config.seed,
        "size": config.dataset_size,
        "by": algorithm,
    }
    rows = read_rows(config.dataset, use, **how)
    if config.eval_dataset is not None:
        return rows, [
            row
            for name, source in eval_sources(config).items()
            for row in read_set(config, name, source, use, how)
        ]
    most = len(rows) // 10
    count = min(config.eval_size, most)
    return split_rows(rows, count, config.seed, most=most) if count else (rows, [])


def eval_sources(config: TrainConfig) -> dict[str, str]:
    """name: source of each evaluation set that eval_dataset names; the only one has no name."""
    named = config.eval_dataset
    return named if isinstance(named, dict) else {"": named} if named else {}


def read_set(
    config: TrainConfig, name: str, source: str, use: str, how: dict[str, Any]
) -> list[Row]:
    """The rows of one evaluation set; each remembers which it is of, where there are several."""
    rows = read_rows(source, use, option=f"eval_dataset {name}".strip(), **how)
    return [replace(row, part=name) for row in rows] if name else rows


def cut_sets(config: TrainConfig, eval_rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The first `eval_size` rows of each evaluation set, and what is said of the others."""
    kept, notes = list[Row](), list[str]()
    for name in eval_sources(config):
        rows = [row for row in eval_rows if row.part == name]
        kept += rows[: config.eval_size or None]
        if config.eval_size and len(rows) > config.eval_size:
            of = f"{name}: " if name else ""
            notes.append(
                f"held out: {of}the first {config.eval_size:,} of {len(rows):,} rows are evaluated"
                " on (eval_size; 0: all)"
            )
    return (kept, notes) if config.eval_dataset is not None else (eval_rows, [])


def load_mixture(
    config: TrainConfig, source: Source, rows: list[Row], eval_rows: list[Row]
) -> Mixture | None:
    """The rewards of the run.

    Supervised rows that name a verifiable task have their answers checked in evaluation, too. The
    rewards must fit the rows of eval_dataset as well: what these lack is found now, not in the
    first evaluation.
    """
    how: dict[str, Any] = {
        "timeout": config.reward_timeout,
        "max_failed_fraction": config.max_failed_fraction,
    }
    if not source.prompts or source.judge:
        every = [*rows, *eval_rows]
        verifiable = source.verifiable and all(
            is_verifier(row.columns.get("task")) and "prompt" in row.columns for row in every
        )
        return load_rewards(None, None, every) if verifiable and config.eval_steps else None
    mixture = load_rewards(config.rewards, config.reward_weights, rows, **how)
    if config.eval_dataset is None or not eval_rows:
        return mixture
    names = (
        None
        if config.rewards is None
        else [name for name in config.rewards if not str(name).startswith(SCORERS)]
    )
    try:
        if names != []:
            load_rewards(names, None, eval_rows)
        # rows of another task than the training rows' are judged by their own verifier
        return load_rewards(None, None, [*rows, *eval_rows], **how) if names is None else mixture
    except UsageError as error:
        where = f"eval_dataset={format_named_sets(config.eval_dataset)}: {error.where}"
        raise UsageError(error.what, where=where, fix=error.fix) from None


def column_notes(
    config: TrainConfig, use: str, rows: list[Row], mixture: Mixture | None, everything: bool
) -> list[str]:
    """Notes on columns that training does not read.

    everything: an environment, or a relabelling, is given whole rows.
    """
    if is_task(config.dataset):
        return []
    return columns_note(
        rows, use, columns_reaching_reward(mixture, everything) if mixture or everything else None
    )


def columns_reaching_reward(
    mixture: Mixture | None, everything: bool
) -> Callable[[Collection[str]], Collection[str]]:
    """Which of some columns reach a reward: all, where one takes the row or any column."""
    takes = [reward.accepts for reward in mixture.rewards] if mixture else []
    if everything or any(names is None for names in takes):
        return lambda columns: columns
    known = set[str]().union(*(names or () for names in takes))
    return lambda columns: set(columns) & known


def held_out_note(config: TrainConfig, rows: list[Row], eval_rows: list[Row]) -> list[str]:
    """A note where fewer rows are held out than were asked for."""
    if (
        config.eval_dataset is not None
        or "eval_size" not in config.model_fields_set
        or not config.eval_size
    ):
        return []
    every = len(rows) + len(eval_rows)
    if len(eval_rows) >= config.eval_size or config.eval_size <= every // 10:
        return []
    return [
        f"{len(eval_rows)} rows held out for evaluation, not {config.eval_size}: at most a tenth of"
        f" {every} (or name --eval_dataset)"
    ]


def in_epochs(config: TrainConfig, rows: int) -> tuple[TrainConfig, str]:
    """The configuration with the steps of num_train_epochs, and a line with its epochs.

    A step draws prompts_per_step rows, without a gap between epochs. max_steps, where it is given
    too, goes before: TRL's rule.
    """
    note, wanted, given = "", config.num_train_epochs, "max_steps" in config.model_fields_set
    if wanted and not given:
        steps = max(1, math.ceil(round(wanted * rows / config.prompts_per_step, 9)))
        config = config.model_copy(update={"max_steps": steps})
    elif wanted:
        note = f" (max_steps goes before num_train_epochs={wanted:g})"
    epochs = config.max_steps * config.prompts_per_step / rows
    more = " at least" if config.dynamic_sampling else ""
    return (
        config,
        (
            f"max_steps={config.max_steps:,} x {config.prompts_per_step:,} prompts_per_step:{more}"
            f" {epochs:.3g} epoch{'' if epochs == 1 else 's'} of {rows:,} rows{note}"
        ),
    )
