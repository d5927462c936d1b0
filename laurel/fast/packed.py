"""The body of a Llama-like model over packed tokens: no padding in its linear layers, and a prompt
that rows share is encoded once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from laurel.fast.kernels import call, library, on_cpu
from laurel.fast.logprob import EVEN

NORMS = (
    "LlamaRMSNorm",
    "MistralRMSNorm",
    "Qwen2RMSNorm",
    "Qwen3RMSNorm",
    "Phi3RMSNorm",
    "Olmo2RMSNorm",
    "SmolLM3RMSNorm",
)
"""Modules that compute x / rms(x) * w and nothing else."""
FROM_ONE = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")
"""Modules that compute x / rms(x) * (1 + w)."""


class Normed(torch.autograd.Function):
    """x / rms(x) * w of rows x [..., D], in `dtype`; dx = (w g - x mean(w g x) / rms^2) / rms, dw =
    sum g x / rms. Only x is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x := x.contiguous(), weight)
        ctx.eps, width = eps, len(weight)
        call(
            "norm",
            dtype,
            x,
            weight,
            h := torch.empty_like(x, dtype=dtype),
            int(x.dtype == torch.float32),
            x.numel() // width,
            width,
            eps,
        )
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x, weight), (g,) = ctx.saved_tensors, gradients
        threads, width = torch.get_num_threads(), len(weight)
        parts, dx = weight.new_zeros(threads, width), torch.empty_like(x)
        sizes = (int(x.dtype == torch.float32), x.numel() // width, width, threads)
        call("norm_back", g.dtype, g.contiguous(), x, weight, dx, parts, *sizes, ctx.eps)
        return dx, parts.sum(0), None, None


class Gated(torch.autograd.Function):
    """silu(gate) * up, [M, F]; recomputed from both in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate := gate.contiguous(), up := up.contiguous())
        call(
            "silu_times",
            gate.dtype,
            gate,
            up,
            h := torch.empty_like(gate),
            *gate.shape,
            gate.shape[1],
        )
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        into = torch.empty_like(gate), torch.empty_like(up)
        call("silu_back", gate.dtype, gradients[0].contiguous(), gate, up, *into, gate.numel())
        return into


class Rotated(torch.autograd.Function):
    """Rotary position: (a, b) -> (a cos - b sin, b cos + a sin) of the halves of x [M, H, D], cos
    and sin [M, 1, D/2].

    Its gradient is the rotation back; nothing but cos and sin is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return rotate(gradients[0], *ctx.saved_tensors, -1.0), None, None


class Attended(torch.autograd.Function):
    """Softmax attention of packed tokens q [M, H, d], k and v [M, K, d], float32: [M, H, d]. No
    token is padded, no prompt is repeated.

    jobs [J, 4]: where the tokens that all queries of a job see begin and how many they are, then
    the same of its own, which see themselves and those before them. groups [G + 1]: jobs groups[i]
    .. groups[i + 1] - 1 share what they all see, and no others do.
    near: how many tokens a query sees, 0 for all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        jobs: Tensor,
        groups: Tensor,
        near: int,
        scale: float,
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, lse = torch.zeros_like(q), q.new_zeros(q.shape[:2])  # of tokens in no job, too
        ctx.sizes = (len(groups) - 1, q.shape[1], k.shape[1], q.shape[2], near, scale)
        call("attention", q.dtype, q, k, v, jobs, groups, out, lse, *ctx.sizes)
        ctx.save_for_backward(q, k, v, jobs, groups, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, jobs, groups, out, lse = ctx.saved_tensors
        into = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        call(
            "attention_back",
            q.dtype,
            q,
            k,
            v,
            jobs,
            groups,
            gradients[0].contiguous(),
            out,
            lse,
            *into,
            *ctx.sizes,
        )
        return *into, None, None, None, None


def attends(q: Tensor, cap: float | None, dropout: float) -> bool:
    """Does `Attended` compute this attention?"""
    return (
        q.dtype == torch.float32 and q.shape[2] % 16 == 0 and not cap and not dropout and usual(q)
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """See `Rotated`; sign -1 turns back."""
    turned = torch.empty_like(x, memory_format=torch.contiguous_format)
    if usual(x) and cos.dtype == torch.float32:
        call(
            "rotate",
            x.dtype,
            x.contiguous(),
            cos.contiguous(),
            sin.contiguous(),
            turned,
            *x.shape,
            sign,
        )
        return turned
    (a, b), (first, second) = x.chunk(2, -1), turned.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=second).addcmul_(a, sin, value=sign)
    return turned


def norm(module: Any, x: Tensor, *, wide: bool = False) -> Tensor:
    """module(x), an RMS norm: for a product, so in the precision that products are in, or `wide`,
    float32 (as the module's own is).
    """
    kind = type(module).__name__
    if (
        kind not in (*NORMS, *FROM_ONE)
        or not simple(module, x)
        or module.weight.dtype != torch.float32
    ):
        return module(x)
    dtype = (
        torch.get_autocast_dtype("cpu")
        if torch.is_autocast_enabled("cpu") and not wide
        else torch.float32
    )
    if kind in NORMS:
        return Normed.apply(x, module.weight, module.variance_epsilon, dtype)
    return Normed.apply(x, 1.0 + module.weight, module.eps, dtype)


def mlp(module: Any, x: Tensor) -> Tensor:
    """module(x), an MLP with a gate."""
    plain = (
        type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
        and simple(module, x)
        and simple(module.act_fn, x)
    )
    return (
        module.down_proj(Gated.apply(module.gate_proj(x), module.up_proj(x)))
        if plain
        else module(x)
    )


def simple(module: nn.Module, x: Tensor) -> bool:
    """Does a kernel do what this module does to x: nobody listens, nothing was replaced?"""
    listened = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or "forward" in vars(module)
    )
    return not listened and usual(x)


def usual(x: Tensor) -> bool:
    """Are these numbers the kernels': float32 on a CPU, or what autocast to bfloat16 makes there of
    float32?
    """
    if not on_cpu(x) or library() is None:
        return False
    if not torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.float32
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "smollm3",
)
PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Body -> does `encode` compute what its own forward does? Found out once."""


@dataclass(frozen=True)
class Attention:
    """One call of attention: B rows of queries and of keys, as places among the packed tokens. mask
    [B or 1, 1, T, S]; None: causal.

    at_BT: the positions of the queries [B or 1, T]; key s is at position s.
    """

    query_BT: Tensor
    key_BS: Tensor
    at_BT: Tensor
    mask: Tensor | None = None

    def within(self, window: int | None) -> Tensor | None:
        """The mask, where a query sees no key that lies `window` tokens or more behind it. None:
        causal.
        """
        keys = self.key_BS.shape[1]
        if window is None or keys <= window:
            return self.mask
        at_S = torch.arange(keys, device=self.at_BT.device)
        near = at_S > self.at_BT[:, None, :, None] - window
        return near & (at_S <= self.at_BT[:, None, :, None] if self.mask is None else self.mask)


@dataclass(frozen=True)
class Layout:
    """M packed tokens of N rows. place_NL: where the token of a row stands among them (padding:
    anywhere); back_M: where the output of
    a packed token stands among the outputs of all attention calls, one after the other. jobs,
    groups: as of `passes.Attended`.
    """

    ids_M: Tensor
    position_M: Tensor
    place_NL: Tensor
    back_M: Tensor
    calls: tuple[Attention, ...]
    jobs: Tensor
    groups: Tensor

    def even(self) -> Layout:
        """With tokens behind the others that nobody sees or reads, so that their number is one of
        few.
        """
        more = (0, -len(self.ids_M) % EVEN)
        return replace(
            self,
            **{
                name: F.pad(getattr(self, name), more) for name in ("ids_M", "position_M", "back_M")
            },
        )

    def read(self, own: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What attention reads for queries, keys and values of the packed tokens, [M, heads, h]
        each, a call after the other: [M, H h].
        """
        cap, dropout, said = (
            getattr(own, "attn_logit_softcapping", None),
            own.attention_dropout if own.training else 0.0,
            [],
        )
        if attends(q, cap, dropout):
            near = window_of(own) or 0
            return Attended.apply(
                q, k, v, self.jobs, self.groups, near, float(own.scaling)
            ).flatten(1)
        for one in self.calls:
            mask = one.within(window_of(own))
            qkv = padded(q, one.query_BT), padded(k, one.key_BS), padded(v, one.key_BS)
            with torch.autocast("cpu", enabled=False):
                out_BHTD = attention(*qkv, mask, own.scaling, cap, dropout)
            said.append(out_BHTD.transpose(1, 2).flatten(0, 1).flatten(1))
        return F.embedding(self.back_M, torch.cat(said))


def hidden_states(
    body: Any,
    ids_NL: Tensor,
    attention_NL: Tensor,
    start_N: Tensor | None = None,
    group_N: Tensor | None = None,
) -> Tensor:
    """Last hidden states [N, L, D] of rows padded on the right; of padding, any finite number.

    Rows of one group that start with the same `start_N` tokens share them: they are encoded once. A
    body that `packs` does not know is called as it is, on padded rows.
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
    """Is this a body that `encode` computes? By its family and its parts, and by a comparison with
    its own forward pass.

    One line is logged for a transformers model that it does not. Hooks on the body itself see its
    own forward pass, as they want.
    """
    body = bare(body)
    if getattr(body, "_forward_hooks", None) or getattr(body, "_forward_pre_hooks", None):
        return False
    if getattr(getattr(body, "config", None), "model_type", None) is None or not isinstance(
        body, nn.Module
    ):
        return False
    if body not in KNOWN:
        KNOWN[body] = looks_packed(body) and agrees(body)
        if not KNOWN[body]:
            logging.getLogger(__name__).warning(
                "%s takes the general path: padded rows, every prompt by itself",
                type(body).__name__,
            )
    return KNOWN[body]


def looks_packed(body: Any) -> bool:
    """Is this a body that `encode` computes, by its family and its parts?"""
    return body.config.model_type in FAMILIES and all(hasattr(body, part) for part in PARTS)


@torch.no_grad()
def agrees(body: Any) -> bool:
    """Does `encode` say what the body's own forward says, on two rows that share a prompt, without
    dropout?

    In the precision of its weights.
    """
    weight = body.embed_tokens.weight
    ids_NL = (
        torch.arange(16, device=weight.device).view(2, 8) * max(len(weight) // 16, 1) % len(weight)
    )
    ids_NL[1, :3] = ids_NL[0, :3]
    start_N, modes = (
        torch.full((2,), 3, device=weight.device),
        [(module, module.training) for module in body.modules()],
    )
    body.eval()
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
        layout = arrange(
            ids_NL, torch.ones_like(ids_NL, dtype=torch.bool), start_N, torch.zeros_like(start_N)
        )
        ours_NLD = F.embedding(layout.place_NL, encode(body, layout)).double()
        gap = ours_NLD - body(input_ids=ids_NL, use_cache=False).last_hidden_state.double()
    for module, mode in modes:
        module.training = mode
    return float(gap.abs().max() / ours_NLD.abs().max()) < (
        1e-5 if weight.dtype in (torch.float32, torch.float64) else 5e-2
    )


def arrange(
    ids_NL: Tensor,
    attention_NL: Tensor,
    start_N: Tensor | None = None,
    group_N: Tensor | None = None,
) -> Layout:
    """Which tokens are computed, in row order, and which of them attend to which."""
    at_L, every_N = (
        torch.arange(ids_NL.shape[1], device=ids_NL.device),
        torch.arange(len(ids_NL), device=ids_NL.device),
    )
    if (
        start_N is None
        or group_N is None
        or torch.equal(lead_N := leaders(ids_NL, start_N, group_N), every_N)
    ):
        place_NL = (attention_NL.flatten().cumsum(0) - 1).view_as(ids_NL).clamp(min=0)
        rows, at = attention_NL.nonzero(as_tuple=True)
        calls, none_N = (Attention(place_NL, place_NL, at_L[None]),), torch.zeros_like(every_N)
        jobs, groups = (
            torch.stack([none_N, none_N, place_NL[:, 0], attention_NL.sum(1)], 1),
            F.pad(every_N + 1, (1, 0)),
        )
        return Layout(ids_NL[rows, at], at, place_NL, rows * len(at_L) + at, calls, jobs, groups)
    prompt_NL = at_L < start_N[:, None]
    own_NL = attention_NL & (~prompt_NL | (lead_N == every_N)[:, None])
    own_place_NL = (own_NL.flatten().cumsum(0) - 1).view_as(ids_NL)
    place_NL = torch.where(prompt_NL, own_place_NL[lead_N], own_place_NL)
    rows, at = own_NL.nonzero(as_tuple=True)
    lead_P = (lead_N == every_N).nonzero()[:, 0]
    wide, long = int(start_N.max()), int((attention_NL.sum(1) - start_N).max())
    head_PT = own_place_NL[lead_P, :wide]
    at_NT = start_N[:, None] + at_L[:long]
    at_BT = at_NT if bool((start_N != start_N[0]).any()) else at_NT[:1]
    shared = Attention(
        place_NL.gather(1, at_NT.clamp(max=len(at_L) - 1)),
        place_NL,
        at_BT,
        at_L <= at_BT[:, None, :, None],
    )
    calls = (Attention(head_PT, head_PT, at_L[None, :wide]), shared)
    head_N = torch.zeros_like(every_N).index_put(
        (lead_P,), torch.arange(len(lead_P), device=lead_P.device)
    )
    back_M = torch.where(
        at < start_N[rows],
        head_N[rows] * wide + at,
        head_PT.numel() + rows * long + at - start_N[rows],
    )
    own_N = place_NL.gather(1, start_N[:, None].clamp(max=len(at_L) - 1))[:, 0]
    none_P, first_N = torch.zeros_like(lead_P), place_NL[:, 0]
    prompts = (none_P, none_P, first_N[lead_P], start_N[lead_P])
    answers = (first_N, start_N, own_N, attention_NL.sum(1) - start_N)
    jobs = torch.stack([torch.cat(both) for both in zip(prompts, answers, strict=True)], 1)
    whose = torch.cat([lead_P, lead_N])
    jobs, sizes = (
        jobs[whose.argsort(stable=True)],
        whose.sort().values.unique_consecutive(return_counts=True)[1],
    )
    return Layout(
        ids_NL[rows, at],
        at,
        place_NL,
        back_M,
        calls,
        jobs.contiguous(),
        F.pad(sizes.cumsum(0), (1, 0)),
    )


def leaders(ids_NL: Tensor, start_N: Tensor, group_N: Tensor) -> Tensor:
    """For each row the row that its prompt is encoded in: the first of its group if that begins
    with the same prompt, else itself: [N].
    """
    every_N = torch.arange(len(ids_NL), device=ids_NL.device)
    which_N = group_N.unique(return_inverse=True)[1]
    first_N = torch.full_like(every_N, len(every_N)).scatter_reduce(0, which_N, every_N, "amin")[
        which_N
    ]
    behind_NL = torch.arange(ids_NL.shape[1], device=ids_NL.device) >= start_N[:, None]
    same_N = (start_N == start_N[first_N]) & ((ids_NL == ids_NL[first_N]) | behind_NL).all(1)
    return torch.where(same_N, first_N, every_N)


def encode(body: Any, layout: Any) -> Tensor:
    """Last hidden states of the packed tokens: [M, D]. The model's own modules are called, so
    adapters and hooks on them work.

    layout: a `Layout`, or whatever has `ids_M`, `position_M` and a `read` of its own
    (`laurel.fast.static`). Under a CPU's autocast some more tokens stand behind a Layout's: see
    EVEN.
    """
    if isinstance(layout, Layout) and on_cpu(layout.ids_M) and torch.is_autocast_enabled("cpu"):
        layout = layout.even()
    x_MD = body.embed_tokens(layout.ids_M)
    turns = rotations(body, x_MD, layout.position_M)
    for layer in body.layers:
        turn = turns[getattr(layer.self_attn, "layer_type", None) if None not in turns else None]
        again = getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled()
        x_MD = (
            checkpoint(block, layer, x_MD, turn, layout, use_reentrant=False)
            if again
            else block(layer, x_MD, turn, layout)
        )
    return norm(body.norm, x_MD, wide=True)


def rotations(
    body: Any, x_MD: Tensor, position_M: Tensor
) -> dict[str | None, tuple[Tensor, Tensor]]:
    """cos and sin [M, 1, R / 2] of the rotary embedding, by kind of layer where it has several
    (Gemma 3), else under None.
    """
    kinds = getattr(body.rotary_emb, "layer_types", None)

    def of(*kind: str) -> tuple[Tensor, Tensor]:
        cos, sin = body.rotary_emb(x_MD[None], position_M[None], *kind)
        half = cos.shape[-1] // 2
        return cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()

    return {kind: of(kind) for kind in kinds} if kinds else {None: of()}


def block(layer: Any, x_MD: Tensor, turn: tuple[Tensor, Tensor], layout: Any) -> Tensor:
    """One layer, [M, D] -> [M, D]: x + attention(norm(x)), then x + mlp(norm(x)); Gemma 2 and 3 and
    OLMo 2 norm what is added, too.
    """
    before = getattr(layer, "input_layernorm", None)
    said_MD = attend(layer.self_attn, x_MD if before is None else norm(before, x_MD), turn, layout)
    if hasattr(layer, "post_feedforward_layernorm"):
        x_MD = x_MD + norm(layer.post_attention_layernorm, said_MD)
        between = getattr(layer, "pre_feedforward_layernorm", None)
        said_MD = mlp(layer.mlp, x_MD if between is None else norm(between, x_MD))
        return x_MD + norm(layer.post_feedforward_layernorm, said_MD)
    x_MD = x_MD + (
        layer.resid_attn_dropout(said_MD) if hasattr(layer, "resid_attn_dropout") else said_MD
    )
    said_MD = mlp(layer.mlp, norm(layer.post_attention_layernorm, x_MD))
    return x_MD + (
        layer.resid_mlp_dropout(said_MD) if hasattr(layer, "resid_mlp_dropout") else said_MD
    )


def attend(own: Any, x_MD: Tensor, turn: tuple[Tensor, Tensor], layout: Any) -> Tensor:
    """Self-attention of packed tokens, [M, D] -> [M, D]: the layout says what they read. A shared
    prompt's keys are read by every row.
    """
    q, k, v = heads(own, x_MD)
    if on_cpu(x_MD) and torch.is_autocast_enabled("cpu"):
        q, k, v = (
            q.float(),
            k.float(),
            v.float(),
        )  # finer, and attention's backward pass is two to four times as fast there
    if getattr(own, "use_rope", True):
        q, k = turned(q, *turn), turned(k, *turn)
    return own.o_proj(layout.read(own, q, k, v))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float,
    cap: float | None,
    dropout: float,
) -> Tensor:
    """One call of attention, in the precision of its inputs: [B, H, T, h]."""
    if cap is not None:
        return capped(q, k, v, mask, scaling, cap, dropout)
    how = {"is_causal": mask is None, "dropout_p": dropout, "enable_gqa": q.shape[1] != k.shape[1]}
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scaling, **how)


def heads(own: Any, x_MD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of packed tokens, [M, heads, h] each, normed where the family norms
    them: each head, or all as one.
    """
    if hasattr(own, "qkv_proj"):
        width, all_three = own.o_proj.in_features, own.qkv_proj(x_MD)
        rest = (all_three.shape[1] - width) // 2
        q, k, v = all_three.split([width, rest, rest], 1)
    else:
        q, k, v = own.q_proj(x_MD), own.k_proj(x_MD), own.v_proj(x_MD)
    normed = hasattr(own, "q_norm")
    by_head = normed and own.q_norm.weight.numel() == own.head_dim
    if normed and not by_head:
        q, k = norm(own.q_norm, q), norm(own.k_norm, k)
    q, k, v = (y.unflatten(1, (-1, own.head_dim)) for y in (q, k, v))
    return (
        (norm(own.q_norm, q, wide=True), norm(own.k_norm, k, wide=True), v)
        if by_head
        else (q, k, v)
    )


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position of the first 2 R of a head's h numbers, which are all of them in most
    families: [M, H, h].
    """
    wide = 2 * cos.shape[-1]
    if wide == x.shape[-1]:
        return Rotated.apply(x, cos, sin)
    return torch.cat([Rotated.apply(x[..., :wide].contiguous(), cos, sin), x[..., wide:]], -1)


def window_of(own: Any) -> int | None:
    """How many tokens a query of this layer sees, itself among them; None: all before it."""
    return (
        own.sliding_window
        if hasattr(own, "sliding_window")
        else getattr(own.config, "sliding_window", None)
    )


def capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, cap: float, dropout: float
) -> Tensor:
    """Attention whose scores are cap * tanh(score / cap) (Gemma 2), [B, H, T, h]; mask as of
    `Attention`.
    """
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    score = cap * torch.tanh(q @ k.mT * scaling / cap)
    if mask is None:
        mask = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).tril()
    weight = score.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weight, dropout, training=dropout > 0) @ v


def padded(x: Tensor, place_BT: Tensor) -> Tensor:
    """Packed heads as rows: [M, H, D], [B, T] -> [B, H, T, D]."""
    return F.embedding(place_BT, x.flatten(1)).unflatten(-1, x.shape[1:]).transpose(1, 2)
