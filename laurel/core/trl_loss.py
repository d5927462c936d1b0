"""TRL's `loss_type`: which row of our table and which options it is, or the command that has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.trl import Request, as_number, format_value
from laurel.core.trl_rules import TRAINERS, as_name_list

GROUPED: dict[str, dict[str, dict[str, Any]]] = {
    "grpo": {
        "grpo": {"loss_aggregation": "seq_mean_token_mean"},
        "dapo": {"loss_aggregation": "token_mean"},
        "bnpo": {"loss_aggregation": "token_mean"},
        "dr_grpo": {"loss_aggregation": "token_sum_over_const"},
    },
    "cispo": {"cispo": {}},
    "gspo": {"grpo": {}},
    "dr_grpo": {"dr_grpo": {}},
    "dapo": {"dapo": {}},
}
"""A row of our table -> the losses of TRL's GRPO that it has, and the options that they are."""
PAIRED = {"dpo": "sigmoid", "cdpo": "sigmoid", "robust_dpo": "robust", "ipo": "ipo"}
"""A row of our table -> the loss of TRL's DPO that it is."""
SINGLE = {
    "sft": ("nll", "chunked_nll"),
    "kto": ("kto",),
    "online_dpo": ("sigmoid",),
    "cpo": ("simpo",),
}
"""A trainer of TRL -> the losses that our one row for it is."""
NOTES = {
    "bnpo": (
        "TRL's bnpo divides by the tokens of each micro-batch, so its result depends on their size."
    ),
    "dapo": "The rest of DAPO (clip-higher, dynamic sampling) is `laurel train dapo`.",
    "sft": (
        "TRL's sft is a mean over all chosen tokens of the batch, rpo_alpha's term one over pairs."
    ),
}
LEVELS = {"gspo": "sequence"}
"""A row whose ratio is not one per token."""
ELSEWHERE = {"sequence": "gspo", "token": "grpo"}


def translate_loss_type(value: Any, ask: Request) -> dict[str, Any]:
    """By the trainer whose loss it is."""
    trainer = TRAINERS.get(ask.algorithm, "")
    by_trainer: dict[str, Callable[[Any, Request], dict[str, Any]]] = {
        "grpo": translate_token_denominator,
        "dpo": translate_pair_loss,
    }
    return by_trainer.get(trainer, translate_single_loss)(value, ask)


def translate_single_loss(value: Any, ask: Request) -> dict[str, Any]:
    """Of a row with one loss: its name, or nothing."""
    if not ask.algorithm:
        what = "which loss it is depends on the algorithm."
        raise UsageError(
            what, fix="Leave it out: the algorithm is the loss, with loss_aggregation."
        )
    if value is not None and str(value) not in SINGLE.get(TRAINERS.get(ask.algorithm, ""), ()):
        fix = "Leave it out, or take another algorithm."
        raise UsageError(f"`{value}` is not the loss of {ask.algorithm}.", fix=fix)
    return {}


def translate_token_denominator(value: Any, ask: Request) -> dict[str, Any]:
    """What a token's loss is divided by; or another row of the table."""
    made = GROUPED[ask.algorithm].get(str(value))
    if made is None:
        rows = [row for row, losses in GROUPED.items() if str(value) in losses]
        known = ", ".join(GROUPED["grpo"] | GROUPED["cispo"])
        fix = f"Run: laurel train {rows[0]}." if rows else f"Choose from: {known}."
        raise UsageError(f"`{value}` is not the loss of {ask.algorithm}.", fix=fix)
    ask.lines += [NOTES[str(value)]] if made and str(value) in NOTES else []
    return dict(made)


def translate_ratio_level(value: Any, ask: Request) -> dict[str, Any]:
    """A ratio per token, or one per sequence, which is the row gspo."""
    level = LEVELS.get(ask.algorithm, "token")
    if str(value) != level:
        other = ELSEWHERE.get(str(value), "gspo")
        what = f"{ask.algorithm or 'the algorithm'} has one ratio per {level}."
        raise UsageError(what, fix=f"Run: laurel train {other}.")
    return {}


def translate_pair_loss(value: Any, ask: Request) -> dict[str, Any]:
    """One loss is one row; with `sft` beside sigmoid it is rpo_alpha."""
    names = as_name_list(value)
    weights = [as_number(weight) for weight in ask.given.get("loss_weights") or [1.0] * len(names)]
    if len(weights) != len(names) or None in weights:
        raise UsageError("loss_weights and loss_type differ in length.")
    terms: dict[str, Any] = dict(zip(names, weights, strict=True))
    sft_weight = terms.pop("sft", None)
    rows = {loss: row for row, loss in reversed(PAIRED.items())}
    (loss, weight), *more = terms.items() or [("", 1.0)]
    if more or loss not in rows:
        raise UsageError(
            f"{format_value(names)} is not to be had here.",
            fix="Near it: dpo, robust_dpo, ipo, simpo, dpop, orpo.",
        )
    if loss != PAIRED[ask.algorithm]:
        raise UsageError(
            f"`{loss}` is not the loss of {ask.algorithm}.", fix=f"Run: laurel train {rows[loss]}."
        )
    if weight != 1:
        raise UsageError(
            "the preference loss has the weight 1 here.",
            fix="Divide all loss_weights by its weight.",
        )
    if sft_weight is None:
        return {}
    ask.lines.append(NOTES["sft"])
    return {"rpo_alpha": sft_weight}


def translate_loss_weights(value: Any, ask: Request) -> dict[str, Any]:
    """Weights of several losses: read with loss_type."""
    if value is not None and not ask.has("loss_type"):
        raise UsageError("weights of what?", fix="Give loss_type, too, or rpo_alpha.")
    return {}
