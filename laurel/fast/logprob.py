"""Log-probabilities of chosen tokens, in at least float32, in tiles: the whole [tokens, vocabulary]
matrix never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from laurel.fast.kernels import call, library
from laurel.objective.kl import entropy as full_entropy
from laurel.objective.kl import exact_kl

STEPS = {torch.float64: 8.0, torch.float32: 8.0, torch.bfloat16: 0.5, torch.float16: 0.5}
"""The usual distance, in steps of the precision (eps) at the size of the numbers. Half precision
accumulates in float32.
"""
USUAL, WORST = 4.0, 16.0
"""Bounds of a check, as multiples of it: for 99 of 100 distances, and for every one."""


def slack(dtype: torch.dtype, size: float) -> float:
    """The usual distance between two computations of one number, where numbers of that size are
    added up. float32, 31: 3.0e-5.

    Measured, sampler against trainer on a CPU, 99th percentile and worst of 384 tokens, in steps at
    the size of the logits of a probe: Gemma 3 270M (31) 3.0 and 4.7 in float32, .51 and .66 in
    bfloat16; tinystories (16) 2.4 and 2.7, .64 and 1.1.
    """
    return STEPS[dtype] * torch.finfo(dtype).eps * size


NARROW = 1024
"""Columns below which no tile is made narrower: a product with fewer is slower than the same work
in fewer rows.
"""


class Tiles(NamedTuple):
    """How a [rows, vocabulary] matrix of logits is cut: so many rows at once, and of these so many
    columns at once.
    """

    rows: int
    columns: int


def tiles(count: int, vocabulary: int, at_once: int) -> Tiles:
    """Tiles of at most `at_once` logits. A small vocabulary is never cut; of a large one all rows
    are taken together, if they can.

    So every row of the head's weight, and of its gradient, is read or written once for all rows.
    440 rows of 262,144 words in 2^21 logits: 440 x 4766.
    """
    rows = max(1, min(count, at_once // min(vocabulary, NARROW)))
    return Tiles(rows, max(1, min(vocabulary, at_once // rows)))


def parts(length: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that cover a length."""
    return (slice(i, min(i + step, length)) for i in range(0, length, step))


def wide(logits: Tensor) -> Tensor:
    """Logits in the precision that log-probabilities are computed in: float32, or float64 where the
    model has it.
    """
    return logits if logits.dtype == torch.float64 else logits.float()


def inside(ids_m1: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which ids are among these words, and each one's column there (0 of those that are not)."""
    here_m1 = (ids_m1 >= words.start) & (ids_m1 < words.stop)
    return here_m1, (ids_m1 - words.start).where(here_m1, 0)


class Said(NamedTuple):
    """What is known of some rows after some of the words, [m, 1] each, as if there were no others.

    logp: log pi of the row's token; own: the log sum exp of the tile in which it stood. lse: of all
    words so far; entropy: theirs;
    pull: the mean of their rows of the head's weight, [m, D] ([m, 0] unless asked for).
    """

    logp: Tensor
    own: Tensor
    lse: Tensor
    entropy: Tensor
    pull: Tensor


class Asked(NamedTuple):
    """What a pass over the logits is to find out besides log-probabilities: the entropy, the pull
    of the head's weight.
    """

    entropy: bool
    pull: bool = False


def compiled(z_mv: Tensor) -> bool:
    """Are these logits the kernels'?"""
    return (
        z_mv.device.type == "cpu"
        and z_mv.dtype in (torch.float32, torch.bfloat16)
        and library() is not None
    )


def said_by(
    z_mv: Tensor, weight_vD: Tensor, ids_m1: Tensor, words: slice, asked: Asked, spare: bool
) -> Said:
    """What one tile of logits says. spare: it may be overwritten."""
    if compiled(z_mv) and not asked.pull:
        logp_m1, own_m1, lse_m1, entropy_m1 = torch.empty(4, len(z_mv), 1)
        call(
            "say",
            z_mv.dtype,
            z_mv,
            ids_m1.contiguous(),
            logp_m1,
            own_m1,
            lse_m1,
            entropy_m1,
            *z_mv.shape,
            words.start,
        )
        return Said(logp_m1, own_m1, lse_m1, entropy_m1, lse_m1.new_zeros(len(z_mv), 0))
    z_mv = wide(z_mv)
    here_m1, at_m1 = inside(ids_m1, words)
    logp_mv = z_mv.log_softmax(1)
    logp_m1 = logp_mv.gather(1, at_m1)
    lse_m1 = z_mv.gather(1, at_m1) - logp_m1
    entropy_m1, pull_mD = torch.zeros_like(lse_m1), lse_m1.new_zeros(len(lse_m1), 0)
    if any(asked):
        pi_mv = torch.exp(logp_mv, out=z_mv if spare else None)
        if asked.entropy:
            entropy_m1 = -(pi_mv * logp_mv).sum(
                1, keepdim=True
            )  # not vecdot: autocast would make it bfloat16
        if asked.pull:
            pull_mD = wide(pi_mv.to(weight_vD.dtype) @ weight_vD)
    return Said(logp_m1.where(here_m1, 0), lse_m1.where(here_m1, 0), lse_m1, entropy_m1, pull_mD)


def slope_of(
    z_mv: Tensor, ids_m1: Tensor, words: slice, lse_m1: Tensor, g_m1: Tensor, spare: bool
) -> Tensor:
    """The gradient of a tile of logits, in their precision: g (onehot(id) - pi). spare: they may be
    overwritten.
    """
    if compiled(z_mv):
        into = z_mv if spare else torch.empty_like(z_mv)
        call(
            "slope",
            z_mv.dtype,
            z_mv,
            into,
            ids_m1.contiguous(),
            lse_m1.contiguous(),
            g_m1.contiguous(),
            *z_mv.shape,
            words.start,
        )
        return into
    here_m1, at_m1 = inside(ids_m1, words)
    dz_mv = (wide(z_mv) - lse_m1).exp_().mul_(-g_m1)
    return dz_mv.scatter_add_(1, at_m1, g_m1.where(here_m1, 0)).to(z_mv.dtype)


def joined(one: Said, other: Said) -> Said:
    """Two disjoint sets of words as one, by the chain rule of entropy: H = sum_i w_i (H_i - log
    w_i), log w_i = lse_i - lse.
    """
    lse_m1 = torch.logaddexp(one.lse, other.lse)
    logw_m1, logv_m1 = one.lse - lse_m1, other.lse - lse_m1
    w_m1, v_m1 = logw_m1.exp(), logv_m1.exp()
    entropy_m1 = w_m1 * (one.entropy - logw_m1) + v_m1 * (other.entropy - logv_m1)
    pull_mD = w_m1 * one.pull + v_m1 * other.pull
    return Said(one.logp + other.logp, one.own + other.own, lse_m1, entropy_m1, pull_mD)


def look(
    cooled_MD: Tensor, weight_VD: Tensor, ids_M1: Tensor, tile: Tiles, asked: Asked, keep: int = 0
) -> tuple[Said, list[Tensor]]:
    """All logits, a tile at a time: what they say of every row, and the first `keep` of them, as
    they were computed.
    """
    kept, found = list[Tensor](), list[Said]()
    for rows in parts(len(ids_M1), tile.rows):
        said = None
        for words in parts(len(weight_VD), tile.columns):
            weight_vD = weight_VD[words].to(cooled_MD.dtype)
            z_mv = cooled_MD[rows] @ weight_vD.t()
            if stays := keep >= z_mv.numel():
                kept.append(z_mv)
            keep = keep - z_mv.numel() if stays else 0  # the first ones, without a gap
            more = said_by(z_mv, weight_vD, ids_M1[rows], words, asked, spare=not stays)
            said = more if said is None else joined(said, more)
        assert said is not None
        found.append(said)
    if not found:
        one = wide(cooled_MD.new_zeros(0, 1))
        found = [Said(one, one, one, one, wide(cooled_MD[:0]))]
    return Said(*(torch.cat(column) for column in zip(*found, strict=True))), kept


def cooled(hidden_MD: Tensor, temperature_M: Tensor) -> Tensor:
    """Hidden states over temperatures: one division fewer for every logit."""
    return hidden_MD / temperature_M[:, None].to(hidden_MD.dtype)


def add_product(into: Tensor, a: Tensor, b: Tensor, begun: bool) -> None:
    """into += a @ b, or into = a @ b where nothing is in it yet; the sum is in the precision of
    `into`.
    """
    if into.dtype == a.dtype:
        torch.addmm(into, a, b, beta=int(begun), out=into)
    elif begun:
        into += a @ b
    else:
        into.copy_(a @ b)


def answered(ctx: Any, said: Said) -> tuple[Tensor, Tensor]:
    """log pi of every row's token, and the entropy, which has no gradient."""
    entropy_M = said.entropy[:, 0]
    ctx.mark_non_differentiable(entropy_M)
    return (said.logp + (said.own - said.lse))[:, 0], entropy_M


class FusedLogprobs(torch.autograd.Function):
    """log softmax(h W' / temperature)[id] with its gradient, a tile of logits at a time.

        dz = g (onehot(id) - softmax(z)),   dh = dz W / temperature,   dW = dz' h / temperature

    Logits are computed in `dtype`; everything after the product, and the sums over tiles, in at
    least float32. They are computed once forward, and once more backward but for the first `keep`
    of them, which are kept: the same numbers, so no result depends
    on it. `at_once`: logits of a tile. The entropy comes with the forward pass and has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        ids_M: Tensor,
        temperature_M: Tensor,
        entropy: bool,
        dtype: torch.dtype,
        at_once: int,
        keep: int = 0,
    ) -> tuple[Tensor, Tensor]:
        cooled_MD, ids_M1 = cooled(hidden_MD, temperature_M).to(dtype), ids_M[:, None]
        ctx.tile, ctx.like = tiles(len(ids_M), len(weight_VD), at_once), hidden_MD.dtype
        said, kept = look(cooled_MD, weight_VD, ids_M1, ctx.tile, Asked(entropy), keep)
        ctx.save_for_backward(cooled_MD, weight_VD, ids_M1, temperature_M, said.lse, *kept)
        return answered(ctx, said)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cooled_MD, weight_VD, ids_M1, temperature_M, lse_M1, *kept = ctx.saved_tensors
        g_M1, again = gradients[0][:, None], iter(kept)
        grad_MD = torch.empty_like(cooled_MD, dtype=lse_M1.dtype)
        grad_VD = (
            torch.empty_like(weight_VD, dtype=lse_M1.dtype) if ctx.needs_input_grad[1] else None
        )
        for rows in parts(len(ids_M1), ctx.tile.rows):
            for words in parts(len(weight_VD), ctx.tile.columns):
                weight_vD = weight_VD[words].to(cooled_MD.dtype)
                kept_mv = next(again, None)
                z_mv = cooled_MD[rows] @ weight_vD.t() if kept_mv is None else kept_mv
                dz_mv = slope_of(
                    z_mv, ids_M1[rows], words, lse_M1[rows], g_M1[rows], spare=kept_mv is None
                )
                add_product(grad_MD[rows], dz_mv, weight_vD, begun=words.start > 0)
                # every row of it once, but where more rows of logits than fit lie beside each other
                if grad_VD is not None:
                    add_product(grad_VD[words], dz_mv.t(), cooled_MD[rows], begun=rows.start > 0)
        if grad_VD is not None and not len(ids_M1):
            grad_VD.zero_()
        grad_MD = cooled(grad_MD.to(ctx.like), temperature_M)
        return grad_MD, None if grad_VD is None else grad_VD.to(weight_VD.dtype), *(None,) * 6


class FrozenLogprobs(torch.autograd.Function):
    """The same under a head that does not learn, whose logits are then never computed twice: the
    gradient is known in advance.

    dh = g (W[id] - sum_v pi(v) W[v]) / temperature
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        ids_M: Tensor,
        temperature_M: Tensor,
        entropy: bool,
        dtype: torch.dtype,
        at_once: int,
    ) -> tuple[Tensor, Tensor]:
        cooled_MD, tile = (
            cooled(hidden_MD, temperature_M).to(dtype),
            tiles(len(ids_M), len(weight_VD), at_once),
        )
        said, _ = look(cooled_MD, weight_VD, ids_M[:, None], tile, Asked(entropy, pull=True))
        slope_MD = wide(weight_VD[ids_M].to(dtype)) - said.pull
        ctx.save_for_backward(cooled(slope_MD.to(hidden_MD.dtype), temperature_M))
        return answered(ctx, said)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope_MD,) = ctx.saved_tensors
        return gradients[0][:, None].to(slope_MD.dtype) * slope_MD, *(None,) * 6


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
"""Bytes for logits where no run has chosen them (`laurel.fast.room`)."""
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
