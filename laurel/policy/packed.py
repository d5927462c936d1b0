"""The body of a Llama-like model over packed tokens: no padding in its linear layers, and a prompt that rows share is encoded once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from laurel.policy.passes import Rotated, mlp, norm

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Body -> does `encode` compute what its own forward does? Found out once."""


@dataclass(frozen=True)
class Attention:
    """One call of attention: B rows of queries and of keys, as places among the packed tokens. mask [B or 1, 1, T, S]; None: causal."""

    query_BT: Tensor
    key_BS: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """M packed tokens of N rows. place_NL: where the token of a row stands among them (padding: anywhere); back_M: where the output of
    a packed token stands among the outputs of all attention calls, one after the other."""

    ids_M: Tensor
    position_M: Tensor
    place_NL: Tensor
    back_M: Tensor
    calls: tuple[Attention, ...]


def hidden_states(body: Any, ids_NL: Tensor, attention_NL: Tensor, start_N: Tensor | None = None, group_N: Tensor | None = None) -> Tensor:
    """Last hidden states [N, L, D] of rows padded on the right; of padding, any finite number.

    Rows of one group that start with the same `start_N` tokens share them: they are encoded once. A body that `packs` does not know is
    called as it is, on padded rows.
    """
    if not packs(body):
        mask = None if bool(attention_NL.all()) else attention_NL.long()
        return body(input_ids=ids_NL, attention_mask=mask, use_cache=False).last_hidden_state
    layout = arrange(ids_NL, attention_NL, start_N, group_N)
    return F.embedding(layout.place_NL, encode(bare(body), layout))


def bare(body: Any) -> Any:
    """The transformer inside a PeftModel; its adapters stay in its layers."""
    return body.get_base_model() if hasattr(body, "get_base_model") else body


def packs(body: Any) -> bool:
    """Is this a body that `encode` computes? By its family and its parts, and by a comparison with its own forward pass.

    One line is logged for a transformers model that it does not. Hooks on the body itself see its own forward pass, as they want.
    """
    body = bare(body)
    if getattr(body, "_forward_hooks", None) or getattr(body, "_forward_pre_hooks", None):
        return False
    kind = getattr(getattr(body, "config", None), "model_type", None)
    if kind is None or not isinstance(body, nn.Module):
        return False
    if body not in KNOWN:
        layers = getattr(body.config, "layer_types", None) or []
        windowed = getattr(body.config, "sliding_window", None) is not None or any(layer != "full_attention" for layer in layers)
        KNOWN[body] = kind in FAMILIES and not windowed and all(hasattr(body, part) for part in PARTS) and agrees(body)
        if not KNOWN[body]:
            logging.getLogger(__name__).warning("%s takes the general path: padded rows, every prompt by itself", type(body).__name__)
    return KNOWN[body]


@torch.no_grad()
def agrees(body: Any) -> bool:
    """Does `encode` say what the body's own forward says, on two rows that share a prompt, without dropout or autocast?"""
    weight = body.embed_tokens.weight
    ids_NL = torch.arange(16, device=weight.device).view(2, 8) * max(len(weight) // 16, 1) % len(weight)
    ids_NL[1, :3] = ids_NL[0, :3]
    start_N, modes = torch.full((2,), 3, device=weight.device), [(module, module.training) for module in body.modules()]
    body.eval()
    with torch.autocast(weight.device.type, enabled=False):
        layout = arrange(ids_NL, torch.ones_like(ids_NL, dtype=torch.bool), start_N, torch.zeros_like(start_N))
        ours_NLD = F.embedding(layout.place_NL, encode(body, layout)).double()
        gap = ours_NLD - body(input_ids=ids_NL, use_cache=False).last_hidden_state.double()
    for module, mode in modes:
        module.training = mode
    return float(gap.abs().max() / ours_NLD.abs().max()) < (1e-5 if weight.dtype in (torch.float32, torch.float64) else 5e-2)


def arrange(ids_NL: Tensor, attention_NL: Tensor, start_N: Tensor | None = None, group_N: Tensor | None = None) -> Layout:
    """Which tokens are computed, in row order, and which of them attend to which."""
    at_L, every_N = torch.arange(ids_NL.shape[1], device=ids_NL.device), torch.arange(len(ids_NL), device=ids_NL.device)
    if start_N is None or group_N is None or torch.equal(lead_N := leaders(ids_NL, start_N, group_N), every_N):
        place_NL = (attention_NL.flatten().cumsum(0) - 1).view_as(ids_NL).clamp(min=0)
        rows, at = attention_NL.nonzero(as_tuple=True)
        return Layout(ids_NL[rows, at], at, place_NL, rows * len(at_L) + at, (Attention(place_NL, place_NL),))
    prompt_NL = at_L < start_N[:, None]
    own_NL = attention_NL & (~prompt_NL | (lead_N == every_N)[:, None])
    own_place_NL = (own_NL.flatten().cumsum(0) - 1).view_as(ids_NL)
    place_NL = torch.where(prompt_NL, own_place_NL[lead_N], own_place_NL)
    rows, at = own_NL.nonzero(as_tuple=True)
    lead_P = (lead_N == every_N).nonzero()[:, 0]
    wide, long = int(start_N.max()), int((attention_NL.sum(1) - start_N).max())
    head_PT = own_place_NL[lead_P, :wide]
    at_NT = start_N[:, None] + at_L[:long]
    mask = at_L <= (at_NT if bool((start_N != start_N[0]).any()) else at_NT[:1])[:, None, :, None]
    calls = (Attention(head_PT, head_PT), Attention(place_NL.gather(1, at_NT.clamp(max=len(at_L) - 1)), place_NL, mask))
    head_N = torch.zeros_like(every_N).index_put((lead_P,), torch.arange(len(lead_P), device=lead_P.device))
    back_M = torch.where(at < start_N[rows], head_N[rows] * wide + at, head_PT.numel() + rows * long + at - start_N[rows])
    return Layout(ids_NL[rows, at], at, place_NL, back_M, calls)


def leaders(ids_NL: Tensor, start_N: Tensor, group_N: Tensor) -> Tensor:
    """For each row the row that its prompt is encoded in: the first of its group if that begins with the same prompt, else itself: [N]."""
    every_N = torch.arange(len(ids_NL), device=ids_NL.device)
    which_N = group_N.unique(return_inverse=True)[1]
    first_N = torch.full_like(every_N, len(every_N)).scatter_reduce(0, which_N, every_N, "amin")[which_N]
    behind_NL = torch.arange(ids_NL.shape[1], device=ids_NL.device) >= start_N[:, None]
    same_N = (start_N == start_N[first_N]) & ((ids_NL == ids_NL[first_N]) | behind_NL).all(1)
    return torch.where(same_N, first_N, every_N)


def encode(body: Any, layout: Layout) -> Tensor:
    """Last hidden states of the packed tokens: [M, D]. The model's own modules are called, so adapters and hooks on them work."""
    x_MD = body.embed_tokens(layout.ids_M)
    cos, sin = (x[0, :, None, : x.shape[-1] // 2].contiguous() for x in body.rotary_emb(x_MD[None], layout.position_M[None]))
    for layer in body.layers:
        again = getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled()
        x_MD = checkpoint(block, layer, x_MD, cos, sin, layout, use_reentrant=False) if again else block(layer, x_MD, cos, sin, layout)
    return norm(body.norm, x_MD)


def block(layer: Any, x_MD: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)): [M, D] -> [M, D]."""
    x_MD = x_MD + attend(layer.self_attn, norm(layer.input_layernorm, x_MD), cos, sin, layout)
    return x_MD + mlp(layer.mlp, norm(layer.post_attention_layernorm, x_MD))


def attend(own: Any, x_MD: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Self-attention of packed tokens, a call after the other: [M, D] -> [M, D]. A shared prompt's keys are read by every row."""
    q, k, v = (project(x_MD).view(len(x_MD), -1, own.head_dim) for project in (own.q_proj, own.k_proj, own.v_proj))
    if hasattr(own, "q_norm"):
        q, k = norm(own.q_norm, q), norm(own.k_norm, k)
    q, k = Rotated.apply(q, cos, sin), Rotated.apply(k, cos, sin)
    said = []
    for call in layout.calls:
        out_BHTD = F.scaled_dot_product_attention(
            padded(q, call.query_BT), padded(k, call.key_BS), padded(v, call.key_BS), call.mask, scale=own.scaling,
            is_causal=call.mask is None, dropout_p=own.attention_dropout if own.training else 0.0, enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        said.append(out_BHTD.transpose(1, 2).flatten(0, 1).flatten(1))
    return own.o_proj(F.embedding(layout.back_M, torch.cat(said)))


def padded(x: Tensor, place_BT: Tensor) -> Tensor:
    """Packed heads as rows: [M, H, D], [B, T] -> [B, H, T, D]."""
    return F.embedding(place_BT, x.flatten(1)).unflatten(-1, x.shape[1:]).transpose(1, 2)
