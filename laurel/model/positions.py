"""How many tokens a model has positions for."""

from __future__ import annotations

from typing import Any

RECURRENT = ("mamba", "mamba2", "rwkv", "xlstm")
STRETCHED = (
    "linear",
    "dynamic",
    "yarn",
)  # for these a configuration may still name the length before stretching


def positions_of(config: Any) -> int | None:
    """The longest row of a model with this configuration; None where it has no such bound (ALiBi,
    recurrent models).

    With learned positions there are no more; rotary ones go on, but nobody has trained them there.
    Rotary positions that are stretched (linear, dynamic, yarn) count as far as they are stretched;
    a sliding window is no bound.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    bound = getattr(config, "max_position_embeddings", None)
    unbound = getattr(config, "alibi", False) or getattr(config, "model_type", "") in RECURRENT
    if not isinstance(bound, int) or bound < 1 or unbound:
        return None
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [kind for kind in (rotary, *rotary.values()) if isinstance(kind, dict)]
    for kind in kinds:
        factor, name = kind.get("factor"), kind.get("rope_type") or kind.get("type")
        if name in STRETCHED and isinstance(factor, int | float):
            bound = max(
                bound,
                int(
                    (kind.get("original_max_position_embeddings") or config.max_position_embeddings)
                    * factor
                ),
            )
    return bound


def shorter(*limits: int | None) -> int | None:
    """The least of several limits, of which None is none."""
    return min((limit for limit in limits if limit is not None), default=None)
