"""TRL's `loss_type`: which row of our table and which options it is, or the command that has it."""

from __future__ import annotations

from typing import Any

from laurel.core.errors import UsageError
from laurel.core.trl import Ask, number, shown
from laurel.core.trl_rules import TRAINERS, names_of

GROUPED = {
    "grpo": ("grpo", "seq_mean_token_mean"),
    "dapo": ("grpo", "token_mean"),
    "bnpo": ("grpo", "token_mean"),
    "dr_grpo": ("grpo", "token_sum_over_const"),
    "cispo": ("cispo", "token_mean"),
}
"""A loss_type of TRL's GRPO -> (our row, its loss_aggregation)."""
ROW_OF = {"dr_grpo": "dr_grpo", "dapo": "dapo", "cispo": "cispo", "gspo": "grpo"}
"""A row beside `grpo` -> the loss_type that it is."""
PAIRED = {"sigmoid": "dpo", "robust": "robust_dpo", "ipo": "ipo"}
"""A loss_type of TRL's DPO -> our row."""
NEAR = "Near it: dpo, cdpo, robust_dpo, ipo, simpo, dpop, orpo."


def loss_type(value: Any, ask: Ask) -> dict[str, Any]:
    """By the trainer whose loss it is."""
    trainer = TRAINERS.get(ask.algorithm, "")
    if trainer == "grpo":
        return grouped(str(value), ask)
    if trainer == "dpo":
        return paired(names_of(value), ask)
    known = {"sft": ("nll", "chunked_nll"), "kto": ("kto",), "online_dpo": ("sigmoid",), "cpo": ("simpo",)}.get(trainer, ())
    if value is not None and str(value) not in known:
        fix = "laurel train orpo, simpo, dpo." if trainer == "cpo" else f"`laurel train {ask.algorithm or 'ALGORITHM'}` has one loss."
        raise UsageError(f"`{value}` is no loss of {ask.algorithm or 'an algorithm that is not named'} here.", fix=fix)
    return {}


def grouped(value: str, ask: Ask) -> dict[str, Any]:
    """What a token's loss is divided by; or another row of the table."""
    if value not in GROUPED:
        raise UsageError(f"`{value}` is not to be had here.", fix=f"Choose from: {', '.join(GROUPED)}.")
    row, aggregation = GROUPED[value]
    if ask.algorithm == "grpo" and row == "grpo":
        if value == "bnpo":
            ask.lines.append("TRL's bnpo divides by the tokens of each micro-batch, so its result depends on their size.")
        if value == "dapo":
            ask.lines.append("The rest of DAPO (clip-higher, dynamic sampling) is `laurel train dapo`.")
        return {"loss_aggregation": aggregation}
    if ROW_OF.get(ask.algorithm) == value:
        return {}
    other = row if row != "grpo" or ask.algorithm == "grpo" else next((r for r, loss in ROW_OF.items() if loss == value), row)
    other = "grpo" if value in ("dapo", "bnpo", "grpo") else other
    raise UsageError(f"`{value}` is not the loss of {ask.algorithm}.", fix=f"Run: laurel train {other}.")


def ratio_level(value: Any, ask: Ask) -> dict[str, Any]:
    """A ratio per token, or one per sequence, which is the row gspo."""
    if str(value) == "sequence" and ask.algorithm != "gspo":
        raise UsageError("one ratio per sequence is another row of the table.", fix="Run: laurel train gspo.")
    if str(value) == "token" and ask.algorithm == "gspo":
        raise UsageError("gspo is one ratio per sequence.", fix="Run: laurel train grpo.")
    return {}


def paired(names: list[str], ask: Ask) -> dict[str, Any]:
    """One loss is one row; with `sft` beside sigmoid it is rpo_alpha."""
    weights = [number(w) for w in ask.given.get("loss_weights") or [1.0] * len(names)]
    if len(weights) != len(names) or None in weights:
        raise UsageError("loss_weights and loss_type differ in length.")
    terms: dict[str, Any] = dict(zip(names, weights, strict=True))
    beside = terms.pop("sft", None)
    if beside is not None and any(weight != 1 for weight in terms.values()):
        raise UsageError("the preference loss has the weight 1 here.", fix="Divide all loss_weights by its weight.")
    if len(terms) != 1 or next(iter(terms)) not in PAIRED:
        raise UsageError(f"{shown(names)} is not to be had here.", fix=NEAR)
    (name,) = terms
    if PAIRED[name] != ask.algorithm:
        raise UsageError(f"`{name}` is not the loss of {ask.algorithm}.", fix=f"Run: laurel train {PAIRED[name]}.")
    if name == "ipo":
        ask.lines.append("TRL's margin is a mean over tokens, ours a sum as in the paper: beta is on another scale.")
    if beside is None:
        return {}
    ask.lines.append("TRL's sft is a mean over all chosen tokens of the batch, rpo_alpha's term a mean over pairs of each one's mean.")
    return {"rpo_alpha": beside}


def weighted(value: Any, ask: Ask) -> dict[str, Any]:
    """Weights of several losses: read with loss_type."""
    if value is not None and not ask.has("loss_type"):
        raise UsageError("weights of what?", fix="Give loss_type, too, or rpo_alpha.")
    return {}
