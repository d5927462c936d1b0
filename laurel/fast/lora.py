"""LoRA as sampling sees it: the weight of a linear layer with its adapters merged in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

AT_ONCE = 1 << 20
"""Numbers of a matrix that adapters are merged into at once."""


def plain_lora(model: Any) -> bool:
    """Are all adapters on a model such that `merged_weight` knows what they do? So it is without
    any.
    """
    extras = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")
    adapters = getattr(model, "peft_config", {}).values()
    return all(
        lora.peft_type == "LORA" and not any(getattr(lora, name, None) for name in extras)
        for lora in adapters
    )


def lora_terms(linear: Any) -> list[tuple[Tensor, Tensor, float]]:
    """What adapters add to a linear layer now: factors A [r, D] and B [E, r] of each, and the scale
    of B A.
    """
    if not hasattr(linear, "base_layer") or linear.merged or linear.disable_adapters:
        return []
    active = [name for name in linear.active_adapters if name in linear.lora_A]
    return [
        (
            linear.lora_A[name].weight.detach(),
            linear.lora_B[name].weight.detach(),
            linear.scaling[name],
        )
        for name in active
    ]


def merge_into(out: Tensor, linear: Any) -> None:
    """out [E, D] = the weight of a linear layer with its active adapters in it, added up in float32
    at least. No gradient.

    A few rows at a time: temporaries as large as a whole matrix, beside small tensors that stay,
    make the heap grow and grow.
    """
    weight, terms = getattr(linear, "base_layer", linear).weight.detach(), lora_terms(linear)
    if not terms:
        out.copy_(weight)
        return
    fine, rows = (
        torch.promote_types(weight.dtype, torch.float32),
        max(1, AT_ONCE // weight.shape[1]),
    )
    for start in range(0, len(weight), rows):
        piece = slice(start, start + rows)
        whole = weight[piece].to(fine, copy=True)
        for above, below, scaling in terms:
            whole += (below[piece] @ above) * scaling
        out[piece] = whole


def merged_weight(linear: Any) -> Tensor:
    """The weight of a linear layer with its active adapters in it, in its precision; the weight
    itself where there are none.
    """
    weight = getattr(linear, "base_layer", linear).weight.detach()
    if not lora_terms(linear):
        return weight
    out = torch.empty_like(weight)
    merge_into(out, linear)
    return out
