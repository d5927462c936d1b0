"""Log-probabilities of chosen tokens, in at least float32, in chunks: the whole [tokens,
vocabulary] matrix never exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from laurel.model.fused import FrozenLogprobs, FusedLogprobs, wide
from laurel.objective.kl import entropy as full_entropy
from laurel.objective.kl import exact_kl

Entropy = Literal["none", "value", "grad"]  # not computed, computed, differentiable
CHUNK: int | None = None
"""Logits alive at once, where a check wants a few rows of them; None: as many bytes as there is
room for. Read at every call.
"""
TILE, TILE_ON_GPU = 8 << 20, 256 << 20
"""Bytes of logits that a linear head makes at once, in float32: on a CPU what its caches hold, else
what keeps a GPU busy.
"""
ROOM = 32 << 20
"""Bytes for logits where no run has chosen them (`laurel.model.room`)."""
COPIES = 4
"""What another head's chunk takes, in multiples of its logits: softmax, its gradient, and copies
that autograd keeps.
"""


EVEN = 64
"""Products in bfloat16 on a CPU are of so many tokens, or a multiple: oneDNN compiles a kernel for
each number that it meets.

That takes 2 ms, as long as the product of a few hundred tokens, and it keeps a thousand of them."""


class TokenStats(NamedTuple):
    """Per token, float32: log pi(token), and the entropy of the whole distribution (None unless
    asked for).
    """

    logp: Tensor
    entropy: Tensor | None


def token_logprobs(
    logits_MV: Tensor, ids_M: Tensor, temperature_M: Tensor, *, entropy: Entropy = "none"
) -> TokenStats:
    """log softmax(logits / temperature)[id] for M tokens: [M, V], [M], [M] -> [M] float32.

        log pi(x) = z_x - log sum_v exp(z_v),   z = logits / temperature,   H = -sum_v pi(v) log
        pi(v)

    The one function behind actor, reference, sampler and evaluation. logits [2, 0] at temperature
    .5: -0.0181500.
    """
    assert logits_MV.shape[:1] == ids_M.shape == temperature_M.shape, (
        logits_MV.shape,
        ids_M.shape,
        temperature_M.shape,
    )
    z_MV = wide(logits_MV) / temperature_M[:, None]
    if entropy == "none":
        return TokenStats(z_MV.gather(1, ids_M[:, None])[:, 0] - z_MV.logsumexp(1), None)
    logp_MV = z_MV.log_softmax(1)
    return TokenStats(
        logp_MV.gather(1, ids_M[:, None])[:, 0],
        full_entropy(logp_MV if entropy == "grad" else logp_MV.detach()),
    )


def chunked_logprobs(
    head: Callable[[Tensor], Tensor],
    hidden_MD: Tensor,
    ids_M: Tensor,
    temperature_M: Tensor,
    *,
    entropy: Entropy = "none",
    chunk: int | None = None,
    room: int = ROOM,
) -> TokenStats:
    """`token_logprobs` of head(hidden), a part of the logits at a time, recomputed in the backward
    pass.

    hidden_MD [M, D]; head maps [m, D] to logits [m, V]. Extra memory: about `room` bytes, whatever
    M and V are. The gradient of a linear layer without bias is written out (`FusedLogprobs`),
    unless the entropy is to be differentiated: its logits come in tiles of TILE bytes, and `room`
    holds those that need not be computed again. chunk: so many logits at once instead.
    """
    if type(head) is nn.Linear and head.bias is None and entropy != "grad":
        kind = hidden_MD.device.type
        dtype = (
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
        )
        tile = (TILE if kind == "cpu" else TILE_ON_GPU) // (8 if dtype == torch.float64 else 4)
        count, spare = (
            len(ids_M),
            -len(ids_M) % EVEN if kind == "cpu" and dtype == torch.bfloat16 else 0,
        )
        if spare:
            hidden_MD, ids_M = (
                nn.functional.pad(hidden_MD, (0, 0, 0, spare)),
                nn.functional.pad(ids_M, (0, spare)),
            )
            temperature_M = nn.functional.pad(temperature_M, (0, spare), value=1.0)
        few = chunk or CHUNK  # who wants few logits at once wants them computed again, too
        given = (
            hidden_MD,
            head.weight,
            ids_M,
            temperature_M,
            entropy == "value",
            dtype,
            few or tile,
        )
        learns = torch.is_grad_enabled() and head.weight.requires_grad
        if torch.is_grad_enabled() and hidden_MD.requires_grad and not learns:
            logp_M, entropy_M = FrozenLogprobs.apply(*given)
        else:
            logp_M, entropy_M = FusedLogprobs.apply(
                *given, room // dtype.itemsize if learns and not few else 0
            )
        return TokenStats(logp_M[:count], entropy_M[:count] if entropy == "value" else None)

    def stats(hidden: Tensor, ids: Tensor, temperature: Tensor) -> TokenStats:
        return token_logprobs(head(hidden), ids, temperature, entropy=entropy)

    parts = in_chunks(stats, head, (hidden_MD, ids_M, temperature_M), chunk, room)
    return TokenStats(
        torch.cat([part.logp for part in parts]),
        torch.cat([part.entropy for part in parts]) if entropy != "none" else None,
    )


def chunked_kl(
    head: Callable[[Tensor], Tensor],
    hidden_MD: Tensor,
    head_ref: Callable[[Tensor], Tensor],
    hidden_ref_MD: Tensor,
    temperature_M: Tensor,
    *,
    chunk: int | None = None,
    room: int = ROOM,
) -> Tensor:
    """KL(pi || ref) of each token's whole distribution, [M] float32, differentiable in the policy:
    the Rao-Blackwellised k1.

    sum_v pi(v) (log pi(v) - log ref(v)); its gradient is the exact reverse-KL gradient of that
    state.
    """

    def divergence(hidden: Tensor, hidden_ref: Tensor, temperature: Tensor) -> Tensor:
        logp = (wide(head(hidden)) / temperature[:, None]).log_softmax(1)
        logp_ref = (wide(head_ref(hidden_ref)) / temperature[:, None]).log_softmax(1)
        return exact_kl(logp, logp_ref)

    return torch.cat(
        in_chunks(divergence, head, (hidden_MD, hidden_ref_MD, temperature_M), chunk, room)
    )


def in_chunks(
    function: Callable,
    head: Callable[[Tensor], Tensor],
    columns: tuple[Tensor, ...],
    chunk: int | None,
    room: int = ROOM,
) -> list:
    """Apply `function` to slices of the columns, in order, small enough for `chunk` (CHUNK) logits,
    or for `room` bytes.
    """
    rows = columns[0].shape[0]
    with torch.no_grad():
        one = head(columns[0][:1]) if rows else columns[0].new_zeros(1, 1)
    vocabulary, width = one.shape[-1], wide(one).element_size()
    step = max(1, (chunk or CHUNK or room // (COPIES * width)) // vocabulary)
    if rows <= step or not torch.is_grad_enabled():
        return [
            function(*(column[i : i + step] for column in columns))
            for i in range(0, max(rows, 1), step)
        ]
    return [
        checkpoint(
            function,
            *(column[i : i + step] for column in columns),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for i in range(0, rows, step)
    ]
