"""The rows of a run: read, split, fit for the algorithm and its rewards; and what is said of columns that nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.data.rows import columns_note, read_rows
from laurel.data.source import Row
from laurel.data.split import split_rows
from laurel.data.tasks import is_task
from laurel.reward.load import is_verifier
from laurel.reward.mixture import Mixture, load_rewards

SCORERS = ("model:", "prm:")
"""How rewards begin that load weights."""


def load_data(config: TrainConfig, use: str, algorithm: str = "") -> tuple[list[Row], list[Row]]:
    """The training rows, and those held out for evaluation: from eval_dataset, else split off by prompt, at most a tenth."""
    how: dict[str, Any] = {"split": config.dataset_split, "seed": config.seed, "size": config.dataset_size, "by": algorithm}
    rows = read_rows(config.dataset, use, **how)
    if config.eval_dataset is not None:
        return rows, read_rows(config.eval_dataset, use, option="eval_dataset", **how)[: config.eval_size or None]
    most = len(rows) // 10
    held = min(config.eval_size, most)
    return split_rows(rows, held, config.seed, most=most) if held else (rows, [])


def load_mixture(config: TrainConfig, source: str, rows: list[Row], held: list[Row]) -> Mixture | None:
    """The rewards of the run. Supervised rows that name a verifiable task have their answers checked in evaluation, too.

    The rewards must fit the rows of eval_dataset as well: what these lack is found now, not in the first evaluation.
    """
    how: dict[str, Any] = {"timeout": config.reward_timeout, "max_failed_fraction": config.max_failed_fraction}
    if source not in ("policy", "parameters"):
        every = [*rows, *held]
        verifiable = source == "data" and all(is_verifier(row.columns.get("task")) and "prompt" in row.columns for row in every)
        return load_rewards(None, None, every) if verifiable and config.eval_steps else None
    mixture = load_rewards(config.rewards, config.reward_weights, rows, **how)
    if config.eval_dataset is None or not held:
        return mixture
    names = None if config.rewards is None else [name for name in config.rewards if not str(name).startswith(SCORERS)]
    try:
        if names != []:
            load_rewards(names, None, held)
        # rows of another task than the training rows' are judged by their own verifier
        return load_rewards(None, None, [*rows, *held], **how) if names is None else mixture
    except UsageError as error:
        raise UsageError(error.what, where=f"eval_dataset={config.eval_dataset}: {error.where}", fix=error.fix) from None


def told_columns(config: TrainConfig, use: str, rows: list[Row], mixture: Mixture | None, everything: bool) -> list[str]:
    """The run's notes on columns that training does not read. everything: an environment, or a relabelling, is given whole rows."""
    if is_task(config.dataset):
        return []
    return columns_note(rows, use, accepted(mixture, everything) if mixture or everything else None)


def accepted(mixture: Mixture | None, everything: bool) -> Callable[[Collection[str]], Collection[str]]:
    """Which of some columns reach a reward: all, where one takes the row or any column."""
    takes = [reward.accepts for reward in mixture.rewards] if mixture else []
    if everything or any(names is None for names in takes):
        return lambda columns: columns
    known = set().union(*(names or () for names in takes))
    return lambda columns: set(columns) & known


def held_note(config: TrainConfig, rows: list[Row], held: list[Row]) -> list[str]:
    """Said where fewer rows are held out than were asked for."""
    if config.eval_dataset is not None or "eval_size" not in config.model_fields_set or not config.eval_size:
        return []
    every = len(rows) + len(held)
    if len(held) >= config.eval_size or config.eval_size <= every // 10:
        return []
    return [f"{len(held)} rows held out for evaluation, not {config.eval_size}: at most a tenth of {every} (or name --eval_dataset)"]
