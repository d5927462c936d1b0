"""Weights stored in bfloat16: half the memory, and the same numbers as autocast over float32."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NARROW = torch.bfloat16


def cast_weights(model: Any, dtype: torch.dtype) -> Any:
    """The same model with its weights in this precision.

    bfloat16 is for matrices. Vectors (norms, biases) stay float32: they are few, and sums want them
    so. With adapters on it, whatever is trained stays float32, and only the frozen base is narrow.
    """
    if dtype != NARROW:
        return model.to(dtype)
    adapters = hasattr(model, "peft_config")
    for parameter in model.parameters():
        if torch.is_floating_point(parameter):
            wide = parameter.ndim < 2 or (adapters and parameter.requires_grad)
            parameter.data = parameter.data.to(torch.float32 if wide else dtype)
    base = model.get_base_model() if adapters else model
    for buffer in model.buffers():
        if torch.is_floating_point(buffer):
            buffer.data = buffer.data.float()
    embedding = base.get_input_embeddings()
    embedding = getattr(embedding, "base_layer", embedding)
    if embeddings_to_float32 not in embedding._forward_hooks.values():
        embedding.register_forward_hook(embeddings_to_float32)
    return model


def embeddings_to_float32(embedding: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
    """Forward hook: embeddings as float32, so that the residual stream is float32, too.

    It is so over float32 weights. A family that scales them does so in float32, not by a factor
    rounded to bfloat16.
    """
    if not torch.is_autocast_enabled(out.device.type):
        return out
    scale = getattr(embedding, "scalar_embed_scale", getattr(embedding, "embed_scale", None))
    if scale is None or embedding.__class__.forward is nn.Embedding.forward:
        return out.float()
    return F.embedding(args[0], embedding.weight, embedding.padding_idx).float() * scale


def weight_dtype_of(model: Any) -> torch.dtype:
    """The precision in which a model's matrices are stored."""
    return model.get_input_embeddings().weight.dtype


def autocast_for(model: Any) -> Any:
    """A context to call a model in, so that bfloat16 weights are multiplied in bfloat16."""
    weight = model.get_input_embeddings().weight
    return torch.autocast(weight.device.type, NARROW) if weight.dtype == NARROW else nullcontext()
