"""The body of a Llama-like model over packed tokens: no padding in its linear layers, and a prompt
that rows share is encoded once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laurel.fast.autograd import as_function, once_differentiable, recompute_in_backward, unflatten
from laurel.fast.kernels import call_kernel, load_library, on_cpu
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
GEMMA_NORMS = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")
"""Modules that compute x / rms(x) * (1 + w)."""


class RMSNormFunction(torch.autograd.Function):
    """x / rms(x) * w of rows x [..., D], in `dtype`; only x is kept.

    dx = (w g - x mean(w g x) / rms^2) / rms,   dw = sum g x / rms
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        width = len(weight)
        h = torch.empty_like(x, dtype=dtype)
        wide_x = int(x.dtype == torch.float32)
        call_kernel("norm", dtype, x, weight, h, wide_x, x.numel() // width, width, eps)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        g = gradients[0]
        threads = torch.get_num_threads()
        width = len(weight)
        # each thread adds up its rows' gradient of w by itself
        parts = weight.new_zeros(threads, width)
        dx = torch.empty_like(x)
        sizes = (int(x.dtype == torch.float32), x.numel() // width, width, threads)
        call_kernel("norm_back", g.dtype, g.contiguous(), x, weight, dx, parts, *sizes, ctx.eps)
        return dx, parts.sum(0), None, None


apply_normed = as_function(RMSNormFunction)


class GatedFunction(torch.autograd.Function):
    """silu(gate) * up, [M, F]; recomputed from both in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        h = torch.empty_like(gate)
        call_kernel("silu_times", gate.dtype, gate, up, h, *gate.shape, gate.shape[1])
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        into = torch.empty_like(gate), torch.empty_like(up)
        call_kernel(
            "silu_back", gate.dtype, gradients[0].contiguous(), gate, up, *into, gate.numel()
        )
        return into


apply_gated = as_function(GatedFunction)


class RotaryFunction(torch.autograd.Function):
    """Rotary position: (a, b) -> (a cos - b sin, b cos + a sin) of the halves of x [M, H, D].

    cos and sin: [M, 1, D/2]. Its gradient is the rotation back; nothing but cos and sin is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(gradients[0], cos, sin, -1.0), None, None


apply_rotated = as_function(RotaryFunction)


class PackedAttention(torch.autograd.Function):
    """Softmax attention of packed tokens q [M, H, d], k and v [M, K, d], float32: [M, H, d].

    No token is padded, no prompt is repeated. jobs [J, 4]: where the tokens that all queries of a
    job see begin and how many they are, then the same of its own, which see themselves and those
    before them. groups [G + 1]: jobs groups[i] .. groups[i + 1] - 1 share what they all see, and no
    others do. near: how many tokens a query sees, 0 for all.
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
        # zeros, since a token can be in no job
        out = torch.zeros_like(q)
        lse = q.new_zeros(q.shape[:2])
        ctx.sizes = (len(groups) - 1, q.shape[1], k.shape[1], q.shape[2], near, scale)
        call_kernel("attention", q.dtype, q, k, v, jobs, groups, out, lse, *ctx.sizes)
        ctx.save_for_backward(q, k, v, jobs, groups, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, jobs, groups, out, lse = ctx.saved_tensors
        into = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        call_kernel(
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


apply_attended = as_function(PackedAttention)


def can_attend(q: Tensor, cap: float | None, dropout: float) -> bool:
    """Does `PackedAttention` compute this attention?"""
    return (
        q.dtype == torch.float32
        and q.shape[2] % 16 == 0
        and not cap
        and not dropout
        and has_kernel_dtype(q)
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """See `RotaryFunction`; sign -1 turns back."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if has_kernel_dtype(x) and cos.dtype == torch.float32:
        angles = cos.contiguous(), sin.contiguous()
        call_kernel("rotate", x.dtype, x.contiguous(), *angles, out, *x.shape, sign)
        return out
    a, b = x.chunk(2, -1)
    first, second = out.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=second).addcmul_(a, sin, value=sign)
    return out


def rms_norm(module: Any, x: Tensor, *, wide: bool = False) -> Tensor:
    """module(x), an RMS norm, in the precision of the product that follows.

    wide: in float32, as the module's own output is.
    """
    kind = type(module).__name__
    known = kind in (*NORMS, *GEMMA_NORMS) and module.weight.dtype == torch.float32
    if not known or not has_kernel(module, x):
        return module(x)
    narrow = torch.is_autocast_enabled("cpu") and not wide
    dtype = torch.get_autocast_dtype("cpu") if narrow else torch.float32
    if kind in NORMS:
        return apply_normed(x, module.weight, module.variance_epsilon, dtype)
    return apply_normed(x, 1.0 + module.weight, module.eps, dtype)


def gated_mlp(module: Any, x: Tensor) -> Tensor:
    """module(x), an MLP with a gate."""
    activation = getattr(module, "act_fn", None)
    silu = type(activation).__name__ in ("SiLU", "SiLUActivation")
    if silu and has_kernel(module, x) and has_kernel(module.act_fn, x):
        return module.down_proj(apply_gated(module.gate_proj(x), module.up_proj(x)))
    return module(x)


def has_kernel(module: Any, x: Tensor) -> bool:
    """Does a kernel compute what this module does to x?

    Only if the module has no hooks and its own forward method.
    """
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return not hooks and "forward" not in vars(module) and has_kernel_dtype(x)


def has_kernel_dtype(x: Tensor) -> bool:
    """Do the kernels take these numbers: float32 on a CPU, or those of autocast to bfloat16?"""
    if not on_cpu(x) or load_library() is None:
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
    """One call of attention: B rows of queries and of keys, as indices of packed tokens.

    query_BT [B, T], key_BS [B, S]. at_BT: the positions of the queries [B or 1, T]; key s is at
    position s. mask [B or 1, 1, T, S]: which keys a query sees; None: causal.
    """

    query_BT: Tensor
    key_BS: Tensor
    at_BT: Tensor
    mask: Tensor | None = None

    def within(self, window: int | None) -> Tensor | None:
        """The mask, where a query sees no key that is `window` tokens or more behind it."""
        keys = self.key_BS.shape[1]
        if window is None or keys <= window:
            return self.mask
        at_S = torch.arange(keys, device=self.at_BT.device)
        # [B or 1, 1, T, 1]: one axis for heads, one for keys
        at_B1T1 = self.at_BT[:, None, :, None]
        near = at_S > at_B1T1 - window
        return near & (at_S <= at_B1T1 if self.mask is None else self.mask)


@dataclass(frozen=True)
class Layout:
    """M packed tokens of N rows, and which of them attend to which.

    place_NL: the index of a row's token among them (padding: any). calls: what attention computes
    where no kernel does; back_M: the index of a packed token among the outputs of all calls, one
    after the other. jobs, groups: the same for the kernel, see `PackedAttention`.
    """

    ids_M: Tensor
    position_M: Tensor
    place_NL: Tensor
    back_M: Tensor
    calls: tuple[Attention, ...]
    jobs: Tensor
    groups: Tensor

    def even(self) -> Layout:
        """With tokens behind the others that nothing reads, so that their number is a multiple of
        EVEN.
        """
        more = (0, -len(self.ids_M) % EVEN)
        return replace(
            self,
            ids_M=F.pad(self.ids_M, more),
            position_M=F.pad(self.position_M, more),
            back_M=F.pad(self.back_M, more),
        )

    def read(self, own: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a layer `own` over the packed tokens: [M, H h].

        q, k, v: queries, keys and values, [M, heads, h] each.
        """
        cap = getattr(own, "attn_logit_softcapping", None)
        dropout = own.attention_dropout if own.training else 0.0
        window = window_of(own)
        if can_attend(q, cap, dropout):
            sizes = self.jobs, self.groups, window or 0, float(own.scaling)
            out: Tensor = apply_attended(q, k, v, *sizes)
            return out.flatten(1)
        outputs = list[Tensor]()
        for one in self.calls:
            mask = one.within(window)
            rows = (
                heads_as_rows(q, one.query_BT),
                heads_as_rows(k, one.key_BS),
                heads_as_rows(v, one.key_BS),
            )
            with torch.autocast("cpu", enabled=False):
                out_BHTD = attention(*rows, mask, own.scaling, cap, dropout)
            # [B, H, T, D] -> [B T, H D]: a row for each query, one call after the other
            outputs.append(out_BHTD.transpose(1, 2).flatten(0, 1).flatten(1))
        return F.embedding(self.back_M, torch.cat(outputs))


def hidden_states(
    body: Any,
    ids_NL: Tensor,
    attention_NL: Tensor,
    start_N: Tensor | None = None,
    group_N: Tensor | None = None,
) -> Tensor:
    """Last hidden states [N, L, D] of rows padded on the right; of padding, any finite number.

    Rows of one group that start with the same `start_N` tokens share them: they are encoded once. A
    body that `can_encode` does not know is called as it is, on padded rows.
    """
    if not can_encode(body):
        mask = None if bool(attention_NL.all()) else attention_NL.long()
        return body(input_ids=ids_NL, attention_mask=mask, use_cache=False).last_hidden_state
    layout = arrange_rows(ids_NL, attention_NL, start_N, group_N)
    return F.embedding(layout.place_NL, encode(without_peft(body), layout))


def without_peft(body: Any) -> Any:
    """The transformer inside a PeftModel; its adapters stay in its layers."""
    return body.get_base_model() if hasattr(body, "get_base_model") else body


def can_encode(body: Any) -> bool:
    """Is this a body that `encode` computes? By its family and its parts, and by a comparison with
    its own forward pass.

    One line is logged for a transformers model that it does not. Hooks on the body itself see its
    own forward pass, as they want.
    """
    body = without_peft(body)
    if getattr(body, "_forward_hooks", None) or getattr(body, "_forward_pre_hooks", None):
        return False
    family = getattr(getattr(body, "config", None), "model_type", None)
    if family is None or not isinstance(body, nn.Module):
        return False
    if body not in KNOWN:
        KNOWN[body] = looks_packed(body) and encode_agrees(body)
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
def encode_agrees(body: Any) -> bool:
    """Does `encode` compute what the body's own forward does, on two rows that share a prompt,
    without dropout?

    In the precision of its weights.
    """
    weight = body.embed_tokens.weight
    size = len(weight)
    ids_NL = torch.arange(16, device=weight.device).view(2, 8) * max(size // 16, 1) % size
    ids_NL[1, :3] = ids_NL[0, :3]
    start_N = torch.full((2,), 3, device=weight.device)
    layout = arrange_rows(
        ids_NL, torch.ones_like(ids_NL).bool(), start_N, torch.zeros_like(start_N)
    )
    modes = [(module, module.training) for module in body.modules()]
    body.eval()
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
        ours_NLD = F.embedding(layout.place_NL, encode(body, layout)).double()
        theirs_NLD = body(input_ids=ids_NL, use_cache=False).last_hidden_state.double()
    for module, mode in modes:
        module.training = mode
    gap = float((ours_NLD - theirs_NLD).abs().max() / ours_NLD.abs().max())
    return gap < (1e-5 if weight.dtype in (torch.float32, torch.float64) else 5e-2)


def arrange_rows(
    ids_NL: Tensor,
    attention_NL: Tensor,
    start_N: Tensor | None = None,
    group_N: Tensor | None = None,
) -> Layout:
    """Which tokens of right-padded rows are computed, in row order, and which attend to which.

    start_N: lengths of the prompts. Rows of one group with the same prompt share it: it is computed
    once, in the first of them, its leader.
    """
    if start_N is None or group_N is None:
        return layout_of_rows(ids_NL, attention_NL)
    lead_N = prompt_rows(ids_NL, start_N, group_N)
    if torch.equal(lead_N, torch.arange(len(ids_NL), device=ids_NL.device)):
        return layout_of_rows(ids_NL, attention_NL)
    return layout_of_shared_prompts(ids_NL, attention_NL, start_N, lead_N)


def layout_of_rows(ids_NL: Tensor, attention_NL: Tensor) -> Layout:
    """The layout of rows that share nothing: every real token once, causal attention in its row."""
    place_NL = token_indices(attention_NL)
    rows_M, at_M = attention_NL.nonzero(as_tuple=True)
    width = ids_NL.shape[1]
    at_L = torch.arange(width, device=ids_NL.device)
    every_N = torch.arange(len(ids_NL), device=ids_NL.device)
    none_N = torch.zeros_like(every_N)
    # no shared tokens; a row's own begin at its first place, and all rows have a group each
    jobs = torch.stack([none_N, none_N, place_NL[:, 0], attention_NL.sum(1)], 1)
    return Layout(
        ids_NL[rows_M, at_M],
        at_M,
        place_NL,
        # one call over all rows, padding too: its outputs are [N L]
        rows_M * width + at_M,
        (Attention(place_NL, place_NL, at_L[None]),),
        jobs,
        F.pad(every_N + 1, (1, 0)),
    )


def layout_of_shared_prompts(
    ids_NL: Tensor, attention_NL: Tensor, start_N: Tensor, lead_N: Tensor
) -> Layout:
    """The layout of rows that read the prompt of row lead_N [N].

    Computed are the leaders' whole rows, and of the others what follows the prompt.
    """
    at_L = torch.arange(ids_NL.shape[1], device=ids_NL.device)
    leads_N = lead_N == torch.arange(len(ids_NL), device=ids_NL.device)
    prompt_NL = at_L < start_N[:, None]
    own_NL = attention_NL & (~prompt_NL | leads_N[:, None])
    own_place_NL = token_indices(own_NL)
    # a prompt's tokens are where its leader's are, all others where the row's own are
    place_NL = torch.where(prompt_NL, own_place_NL[lead_N], own_place_NL)
    rows_M, at_M = own_NL.nonzero(as_tuple=True)
    lead_P = leads_N.nonzero()[:, 0]
    calls = shared_calls(attention_NL, start_N, place_NL, lead_P)
    jobs, groups = shared_jobs(attention_NL, start_N, place_NL, lead_N, lead_P)
    return Layout(
        ids_NL[rows_M, at_M],
        at_M,
        place_NL,
        shared_outputs(rows_M, at_M, start_N, lead_P, calls),
        calls,
        jobs,
        groups,
    )


def token_indices(real_NL: Tensor) -> Tensor:
    """The index of each real token among all of them, in row order; of others any index."""
    return (real_NL.flatten().cumsum(0) - 1).view_as(real_NL).clamp(min=0)


def shared_calls(
    attention_NL: Tensor, start_N: Tensor, place_NL: Tensor, lead_P: Tensor
) -> tuple[Attention, Attention]:
    """Two calls of attention: the prompts over themselves, then every row's own tokens over its
    prompt and themselves.
    """
    width = attention_NL.shape[1]
    at_L = torch.arange(width, device=place_NL.device)
    longest_prompt = int(start_N.max())
    longest_answer = int((attention_NL.sum(1) - start_N).max())
    prompt_PT = place_NL[lead_P, :longest_prompt]
    prompts = Attention(prompt_PT, prompt_PT, at_L[None, :longest_prompt])
    at_NT = start_N[:, None] + at_L[:longest_answer]
    # rows of one length of prompt share one mask
    at_BT = at_NT if bool((start_N != start_N[0]).any()) else at_NT[:1]
    # a short row's queries would reach beyond the width: those are padding, any place will do
    query_NT = place_NL.gather(1, at_NT.clamp(max=width - 1))
    answers = Attention(query_NT, place_NL, at_BT, at_L <= at_BT[:, None, :, None])
    return prompts, answers


def shared_outputs(
    rows_M: Tensor,
    at_M: Tensor,
    start_N: Tensor,
    lead_P: Tensor,
    calls: tuple[Attention, Attention],
) -> Tensor:
    """Where the output of each packed token is among those of both calls: [M]."""
    prompts, answers = calls
    # the number of a leader's prompt among the prompts; of other rows never read
    prompt_N = torch.zeros_like(start_N)
    prompt_N[lead_P] = torch.arange(len(lead_P), device=lead_P.device)
    start_M = start_N[rows_M]
    in_prompts_M = prompt_N[rows_M] * prompts.query_BT.shape[1] + at_M
    in_answers_M = rows_M * answers.query_BT.shape[1] + at_M - start_M
    # the outputs of the second call stand behind all of the first
    return torch.where(at_M < start_M, in_prompts_M, prompts.query_BT.numel() + in_answers_M)


def shared_jobs(
    attention_NL: Tensor, start_N: Tensor, place_NL: Tensor, lead_N: Tensor, lead_P: Tensor
) -> tuple[Tensor, Tensor]:
    """The same two calls as jobs and groups of `PackedAttention`: a prompt's jobs are adjacent."""
    width = attention_NL.shape[1]
    first_N = place_NL[:, 0]
    # a row without an answer has no token at `start`: its job is of no token
    own_N = place_NL.gather(1, start_N[:, None].clamp(max=width - 1))[:, 0]
    none_P = torch.zeros_like(lead_P)
    prompts = (none_P, none_P, first_N[lead_P], start_N[lead_P])
    answers = (first_N, start_N, own_N, attention_NL.sum(1) - start_N)
    jobs = torch.stack([torch.cat(both) for both in zip(prompts, answers, strict=True)], 1)
    # by leader; a stable sort keeps a prompt's own job before those of its rows
    leader = torch.cat([lead_P, lead_N])
    sorted_leader: Any = leader.sort().values
    sizes: Tensor = sorted_leader.unique_consecutive(return_counts=True)[1]
    jobs = jobs[leader.argsort(stable=True)].contiguous()
    # where each group begins, and behind the last one its end
    return jobs, F.pad(sizes.cumsum(0), (1, 0))


def prompt_rows(ids_NL: Tensor, start_N: Tensor, group_N: Tensor) -> Tensor:
    """The row that each row's prompt is encoded in: [N].

    It is the first row of the group if that begins with the same prompt, else the row itself.
    """
    count, width = ids_NL.shape
    every_N = torch.arange(count, device=ids_NL.device)
    # groups numbered from 0, and the least row of each
    which_N: Tensor = cast("Any", group_N).unique(return_inverse=True)[1]
    least_N = torch.full_like(every_N, count).scatter_reduce(0, which_N, every_N, "amin")
    first_N = least_N[which_N]
    behind_NL = torch.arange(width, device=ids_NL.device) >= start_N[:, None]
    same_NL = (ids_NL == ids_NL[first_N]) | behind_NL
    same_N = (start_N == start_N[first_N]) & same_NL.all(1)
    return torch.where(same_N, first_N, every_N)


def encode(body: Any, layout: Any) -> Tensor:
    """Last hidden states of the packed tokens: [M, D].

    The model's own modules are called, so adapters and hooks on them work.

    layout: a `Layout`, or whatever has `ids_M`, `position_M` and a `read` of its own
    (`laurel.fast.static`). Under a CPU's autocast some more tokens stand behind a Layout's: see
    EVEN.
    """
    if isinstance(layout, Layout) and on_cpu(layout.ids_M) and torch.is_autocast_enabled("cpu"):
        layout = layout.even()
    x_MD = body.embed_tokens(layout.ids_M)
    angles = rotary_angles(body, x_MD, layout.position_M)
    for layer in body.layers:
        kind = None if None in angles else getattr(layer.self_attn, "layer_type", None)
        if getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
            x_MD = recompute_in_backward(
                transformer_layer, layer, x_MD, angles[kind], layout, keep_rng=True
            )
        else:
            x_MD = transformer_layer(layer, x_MD, angles[kind], layout)
    return rms_norm(body.norm, x_MD, wide=True)


def rotary_angles(
    body: Any, x_MD: Tensor, position_M: Tensor
) -> dict[str | None, tuple[Tensor, Tensor]]:
    """cos and sin [M, 1, R / 2] of the rotary embedding by kind of layer.

    Under None where all layers are alike; Gemma 3 has several kinds.
    """
    kinds = getattr(body.rotary_emb, "layer_types", None)

    def of(*kind: str) -> tuple[Tensor, Tensor]:
        cos, sin = body.rotary_emb(x_MD[None], position_M[None], *kind)
        # transformers repeats the angles for both halves of a head
        half = cos.shape[-1] // 2
        return cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()

    return {kind: of(kind) for kind in kinds} if kinds else {None: of()}


def transformer_layer(
    layer: Any, x_MD: Tensor, angles: tuple[Tensor, Tensor], layout: Any
) -> Tensor:
    """One layer, [M, D] -> [M, D]: x + attention(norm(x)), then x + mlp(norm(x)).

    Gemma 2 and 3 and OLMo 2 norm what is added, too; OLMo 2 only that.
    """
    before = getattr(layer, "input_layernorm", None)
    h_MD = x_MD if before is None else rms_norm(before, x_MD)
    out_MD = self_attention(layer.self_attn, h_MD, angles, layout)
    if hasattr(layer, "post_feedforward_layernorm"):
        x_MD = x_MD + rms_norm(layer.post_attention_layernorm, out_MD)
        between = getattr(layer, "pre_feedforward_layernorm", None)
        out_MD = gated_mlp(layer.mlp, x_MD if between is None else rms_norm(between, x_MD))
        return x_MD + rms_norm(layer.post_feedforward_layernorm, out_MD)
    if hasattr(layer, "resid_attn_dropout"):
        out_MD = layer.resid_attn_dropout(out_MD)
    x_MD = x_MD + out_MD
    out_MD = gated_mlp(layer.mlp, rms_norm(layer.post_attention_layernorm, x_MD))
    if hasattr(layer, "resid_mlp_dropout"):
        out_MD = layer.resid_mlp_dropout(out_MD)
    return x_MD + out_MD


def self_attention(own: Any, x_MD: Tensor, angles: tuple[Tensor, Tensor], layout: Any) -> Tensor:
    """Self-attention of packed tokens, [M, D] -> [M, D]: the layout says what they read. A shared
    prompt's keys are read by every row.
    """
    q, k, v = query_key_value_heads(own, x_MD)
    if on_cpu(x_MD) and torch.is_autocast_enabled("cpu"):
        # finer, and attention's backward pass is two to four times as fast there
        q, k, v = q.float(), k.float(), v.float()
    if getattr(own, "use_rope", True):
        q, k = apply_rotary(q, *angles), apply_rotary(k, *angles)
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
        return softcapped_attention(q, k, v, mask, scaling, cap, dropout)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def query_key_value_heads(own: Any, x_MD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of packed tokens, [M, heads, h] each.

    Normed where the family norms them: each head, or all as one.
    """
    q: Tensor
    k: Tensor
    v: Tensor
    if hasattr(own, "qkv_proj"):
        width = own.o_proj.in_features
        qkv = own.qkv_proj(x_MD)
        # what is not queries is keys and values, as wide as each other
        rest = (qkv.shape[1] - width) // 2
        q, k, v = qkv.split([width, rest, rest], 1)
    else:
        q = own.q_proj(x_MD)
        k = own.k_proj(x_MD)
        v = own.v_proj(x_MD)
    normed = hasattr(own, "q_norm")
    by_head = normed and own.q_norm.weight.numel() == own.head_dim
    if normed and not by_head:
        q = rms_norm(own.q_norm, q)
        k = rms_norm(own.k_norm, k)
    # [M, heads * h] -> [M, heads, h]
    q, k, v = (unflatten(y, 1, (-1, own.head_dim)) for y in (q, k, v))
    if by_head:
        q = rms_norm(own.q_norm, q, wide=True)
        k = rms_norm(own.k_norm, k, wide=True)
    return q, k, v


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position of the first 2 R of a head's h numbers: [M, H, h].

    In most families these are all of them.
    """
    width = 2 * cos.shape[-1]
    if width == x.shape[-1]:
        return apply_rotated(x, cos, sin)
    turned: Tensor = apply_rotated(x[..., :width].contiguous(), cos, sin)
    return torch.cat([turned, x[..., width:]], -1)


def window_of(own: Any) -> int | None:
    """How many tokens a query of this layer sees, itself among them; None: all before it."""
    if hasattr(own, "sliding_window"):
        return own.sliding_window
    return getattr(own.config, "sliding_window", None)


def softcapped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, cap: float, dropout: float
) -> Tensor:
    """Attention whose scores are cap * tanh(score / cap) (Gemma 2): [B, H, T, h].

    mask: as of `Attention`.
    """
    # heads of queries that share keys
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    score = cap * torch.tanh(q @ k.mT * scaling / cap)
    if mask is None:
        mask = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).tril()
    weight = score.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weight, dropout, training=dropout > 0) @ v


def heads_as_rows(x: Tensor, place_BT: Tensor) -> Tensor:
    """Packed heads as rows: [M, H, D], [B, T] -> [B, H, T, D]."""
    # a look-up of rows: its backward pass adds up the gradients of repeated ones
    rows = F.embedding(place_BT, x.flatten(1))
    return unflatten(rows, -1, x.shape[1:]).transpose(1, 2)
