"""Linear head and log-probability as one function, with its gradient written out: logits live a chunk at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def wide(logits: Tensor) -> Tensor:
    """Logits in the precision that log-probabilities are computed in: float32, or float64 where the model has it."""
    return logits if logits.dtype == torch.float64 else logits.float()


class FusedLogprobs(torch.autograd.Function):
    """log softmax(h W' / temperature)[id] with its gradient, a chunk of logits at a time, nothing kept but log sum exp.

        dz = g (onehot(id) - softmax(z)),   dh = dz W / temperature,   dW = dz' h / temperature

    Logits are computed once forward and once backward, in `dtype`; everything after the product, and dW's sum, in at least float32.
    The entropy comes with the forward pass and has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, ids_M: Tensor, temperature_M: Tensor, entropy: bool, dtype: torch.dtype, chunk: int
    ) -> tuple[Tensor, Tensor]:
        cooled_MD, weight = (hidden_MD / temperature_M[:, None].to(hidden_MD.dtype)).to(dtype), weight_VD.to(dtype)
        ctx.step, ids_M1 = max(1, chunk // len(weight)), ids_M[:, None]
        logp_M1, lse_M1, entropy_M = (wide(weight.new_zeros(len(ids_M), *more)) for more in ((1,), (1,), ()))
        for i in range(0, len(ids_M), ctx.step):
            at = slice(i, i + ctx.step)
            z_mV = wide(cooled_MD[at] @ weight.t())
            logp_mV = z_mV.log_softmax(1)
            logp_M1[at] = logp_mV.gather(1, ids_M1[at])
            lse_M1[at] = z_mV.gather(1, ids_M1[at]) - logp_M1[at]
            if entropy:
                entropy_M[at] = -torch.linalg.vecdot(torch.exp(logp_mV, out=z_mV), logp_mV)
        ctx.save_for_backward(cooled_MD, weight, ids_M1, temperature_M, lse_M1)
        ctx.like = hidden_MD.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(entropy_M)
        return logp_M1[:, 0], entropy_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cooled_MD, weight, ids_M1, temperature_M, lse_M1 = ctx.saved_tensors
        hidden_like, weight_like = ctx.like
        g_M1, grad_MD = gradients[0][:, None], torch.empty_like(cooled_MD)
        grad_VD = torch.zeros_like(weight, dtype=lse_M1.dtype) if ctx.needs_input_grad[1] else None
        for i in range(0, len(ids_M1), ctx.step):
            at = slice(i, i + ctx.step)
            z_mV = wide(cooled_MD[at] @ weight.t()).sub_(lse_M1[at]).exp_().mul_(-g_M1[at]).scatter_add_(1, ids_M1[at], g_M1[at])
            dz_mV = z_mV.to(weight.dtype)
            torch.mm(dz_mV, weight, out=grad_MD[at])
            if grad_VD is not None and weight.dtype == grad_VD.dtype:
                grad_VD.addmm_(dz_mV.t(), cooled_MD[at])
            elif grad_VD is not None:
                grad_VD += dz_mV.t() @ cooled_MD[at]
        grad_MD = grad_MD.to(hidden_like) / temperature_M[:, None].to(hidden_like)
        return grad_MD, None if grad_VD is None else grad_VD.to(weight_like), None, None, None, None, None
