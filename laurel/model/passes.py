"""RMS norm, rotary position and the gated unit in one compiled pass each way, where the kernels are
at hand: on a CPU.

Under autocast the residual stream is float32, what goes into a product is bfloat16, and each pass
computes in float32 and rounds once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from laurel.model.kernels import call, library, on_cpu

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
