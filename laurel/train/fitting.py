"""Which rows can be trained on as they are, and notes on the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.progress import track

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.data.source import Row
from laurel.model.chat import Supervised, encode_prompt
from laurel.model.policy import least_limit, max_positions
from laurel.model.rows import encode_answers
from laurel.model.shown import messages_for_template
from laurel.model.turns import as_tools
from laurel.model.weights import check_ids
from laurel.rollout.source import Source

NAMED = 20  # rows that an error names
MANY = 2000  # rows whose reading takes about a second


@dataclass
class RowTally:
    """Counts of rows that were left out and why, were cut, or lose text in the chat template.

    `remedies` has for each reason to leave rows out what can be done about it.
    """

    total: int
    out: Counter[str] = field(default_factory=Counter[str])
    remedies: dict[str, str] = field(default_factory=dict[str, str])
    cut: int = 0
    even: int = 0
    hidden: Counter[str] = field(default_factory=Counter[str])
    unfit: list[str] = field(default_factory=list[str])

    def leave_out(self, why: str, fix: str) -> bool:
        """Count a row that is left out; always False."""
        self.out[why] += 1
        self.remedies[why] = fix
        return False

    def notes(self, limit: str) -> list[str]:
        """The same as lines to read. limit: where rows are cut, in words."""
        lines = [f"{count} of {self.total} rows left out: {why}" for why, count in self.out.items()]
        if self.cut:
            lines.append(
                f"{self.cut} of {self.total} rows cut at {limit}: what lies behind is not trained"
                " on, nor their end"
            )
        if self.even:
            lines.append(
                f"{self.even} of {self.total} rows have equal answers of different rank: between"
                " those nothing is learnt"
            )
        lost = ", ".join(
            f"{what} ({count} of {self.total} rows)" for what, count in self.hidden.items()
        )
        return [
            *lines,
            *([f"not in the text that the chat template makes: {lost}"] if lost else []),
        ]


def with_position_limits(config: TrainConfig, source: Source, *models: Any) -> TrainConfig:
    """The configuration with the limits that the models' positions allow.

    Rows of data are limited by max_length, prompts to sample from by max_prompt_length.
    """
    positions = least_limit(
        *(max_positions(model.config) for model in models if hasattr(model, "config"))
    )
    if positions is None:
        return config
    if not source.prompts:
        return config.model_copy(update={"max_length": least_limit(config.max_length, positions)})
    room = positions - (config.max_completion_length or 0)
    if room < 1:
        what = (
            f"max_completion_length={config.max_completion_length} leaves a prompt no room: the"
            f" model has {positions} positions."
        )
        raise UsageError(
            what,
            where="max_completion_length",
            fix="Lower it, or take a model with more positions.",
        )
    return config.model_copy(update={"max_prompt_length": min(config.max_prompt_length, room)})


def select_fitting_rows(
    policy: Any, rows: Sequence[Row], config: TrainConfig, source: Source, where: str = ""
) -> tuple[list[Row], list[str]]:
    """Rows that can be trained on, and notes on what was left out, cut or lost, and why.

    It is an error if nothing is left. Rows that the chat template refuses, or of which it leaves
    out what would be trained on, are an error that names them. The configuration's limits are those
    that the model has positions for (see `with_position_limits`).
    """
    where = where or config.dataset
    tally, kept = RowTally(len(rows)), list[Row]()
    for row in with_bar(rows):
        try:
            fits = (
                prompt_fits(policy, row, config, tally)
                if source.prompts
                else row_fits(policy, row, config, tally)
            )
        except UsageError as error:
            tally.unfit.append(f"{row.where}: {error}")
            continue
        if fits:
            kept.append(row)
    if tally.unfit:
        raise unfit_rows_error(tally, where)
    if not kept and tally.out:
        why, fix = "; or ".join(tally.out), " ".join(dict.fromkeys(tally.remedies.values()))
        raise UsageError(
            f"every row has {why}.",
            where=where,
            fix=f"{fix} `laurel data show --tokens` shows rows as they are trained on.",
        )
    positions = max_positions(getattr(policy, "causal", policy.model).config)
    by_model = not source.prompts and positions == config.max_length
    return kept, tally.notes(
        f"{positions} tokens, the model's positions"
        if by_model
        else f"max_length={config.max_length}"
    )


def with_bar(rows: Sequence[Row]) -> Iterable[Row]:
    """The rows, with a bar on a terminal that goes when it is done.

    Reading takes half a millisecond a row.
    """
    console = Console(stderr=True)
    shown = console.is_terminal and len(rows) >= MANY
    return track(rows, "tokenizing rows", console=console, transient=True, disable=not shown)


def unfit_rows_error(tally: RowTally, where: str) -> UsageError:
    """The error that names the rows which cannot be trained on as they are, the first of them."""
    count = len(tally.unfit)
    if count == 1:
        return UsageError(tally.unfit[0], where=where if where not in tally.unfit[0] else "")
    more = f"\n  ... and {count - NAMED} more" if count > NAMED else ""
    listed = "\n  ".join(tally.unfit[:NAMED])
    return UsageError(
        f"{count} of {tally.total} rows cannot be trained on as they are.\n  {listed}{more}",
        where=where,
    )


def prompt_fits(policy: Any, row: Row, config: TrainConfig, tally: RowTally) -> bool:
    """Can the row's prompt be sampled from?"""
    prompt, tools = row.columns["prompt"], as_tools(row.columns.get("tools"))
    ids = encode_prompt(policy.tokenizer, prompt, tools=tools)
    check_ids(policy, ids, "")
    if len(ids) > config.max_prompt_length:
        positions, fix = max_positions(policy.causal.config), "Raise max_prompt_length."
        why = f"a prompt of more than max_prompt_length={config.max_prompt_length} tokens"
        if (
            positions is not None
            and config.max_prompt_length + (config.max_completion_length or 0) >= positions
        ):
            why = (
                f"a prompt of more than {config.max_prompt_length} tokens, which the model's"
                f" {positions} positions leave it"
            )
            why += f" beside max_completion_length={config.max_completion_length}"
            fix = "Lower max_completion_length, or take a model with more positions."
        return tally.leave_out(why, fix)
    if not isinstance(prompt, str):
        tally.hidden.update(
            set(messages_for_template(policy.tokenizer, prompt, tools=tools).left_out)
        )
    return True


def row_fits(policy: Any, row: Row, config: TrainConfig, tally: RowTally) -> bool:
    """Is there something to learn from a row of data?"""
    encoded = encode_answers(policy, row, train_on=config.train_on, max_length=config.max_length)
    for one in encoded:
        check_ids(policy, one.ids, "")
    cut, within, longer = (
        any(one.cut for one in encoded),
        f" within max_length={config.max_length}",
        raise_limit_advice(policy, config),
    )
    if not all(any(one.mask[1:]) for one in encoded):
        if cut:
            return tally.leave_out(f"no supervised token{within}", longer)
        return tally.leave_out(
            "no supervised token",
            "Are its answers empty, or all its turns told not to be trained on?",
        )
    answers = [(one.ids, one.mask) for one in encoded]
    if len(answers) > 1 and len(set(answers)) == 1:
        if cut:
            return tally.leave_out(f"equal answers{within}", longer)
        return tally.leave_out(
            "equal answers, as the model reads them", "Are chosen and rejected what they should be?"
        )
    tally.cut += cut
    tally.even += equal_in_rank(row, encoded)
    tally.hidden.update({what for one in encoded for what in one.left_out})
    return True


def raise_limit_advice(policy: Any, config: TrainConfig) -> str:
    """Advice for rows that are too long: raise the limit, where the model has more positions."""
    positions = max_positions(getattr(policy, "causal", policy.model).config)
    if positions is None:
        return "Raise max_length."
    if (config.max_length or 0) >= positions:
        return f"The model has {positions} positions: give shorter rows, or take another model."
    return f"Raise max_length (the model has {positions} positions)."


def equal_in_rank(row: Row, encoded: Sequence[Supervised]) -> bool:
    """Are there two answers that are equal as the model reads them, and ranked differently?"""
    ranks = row.columns.get("ranks", ())
    first: dict[Any, Any] = {}
    return any(
        first.setdefault(one.ids, rank) != rank for one, rank in zip(encoded, ranks, strict=False)
    )


def with_mean_weight_1(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows with weights of mean 1, so that equal weights change nothing; and a note.

    Rows of weight 0 are left out, which the note says.
    """
    if not any("weight" in row.columns for row in rows):
        return rows, []
    kept = [row for row in rows if row.columns.get("weight", 1.0) > 0]
    if not kept:
        raise UsageError(
            "every row has the weight 0.", where="weight", fix="Is it what you mean by reliability?"
        )
    weights = [float(row.columns.get("weight", 1.0)) for row in kept]
    mean = weights[0] if min(weights) == max(weights) else math.fsum(weights) / len(weights)
    even = [
        replace(row, columns={**row.columns, "weight": weight / mean})
        for row, weight in zip(kept, weights, strict=True)
    ]
    dropped = len(rows) - len(kept)
    return even, [f"{dropped} of {len(rows)} rows left out: weight 0"] if dropped else []
