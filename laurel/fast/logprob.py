"""Log-probabilities of chosen tokens in at least float32, computed in tiles of the logits.

The whole [tokens, vocabulary] matrix never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from laurel.fast.autograd import as_function, recompute_in_backward
from laurel.fast.kernels import call_kernel, load_library
from laurel.objective.kl import entropy as full_entropy
from laurel.objective.kl import exact_kl

STEPS = {torch.float64: 8.0, torch.float32: 8.0, torch.bfloat16: 0.5, torch.float16: 0.5}
"""The usual distance between two computations of one number, in steps of the precision (eps) at the
size of the numbers. Half precision accumulates in float32.
"""
USUAL, WORST = 4.0, 16.0
"""Bounds of a check, in units of `rounding_tolerance`: for 99 of 100 distances and for all."""


def rounding_tolerance(dtype: torch.dtype, size: float) -> float:
    """The usual distance between two computations of a sum of numbers of that size.

    float32, 31: 3.0e-5.

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
    """How a [rows, vocabulary] matrix of logits is cut: so many rows and columns at once."""

    rows: int
    columns: int


def tiles(count: int, vocabulary: int, at_once: int) -> Tiles:
    """Tiles of at most `at_once` logits.

    A small vocabulary is never cut; of a large one all rows are taken together, if they can. So
    every row of the head's weight, and of its gradient, is read or written once for all rows. 440
    rows of 262,144 words in 2^21 logits: 440 x 4766.
    """
    rows = max(1, min(count, at_once // min(vocabulary, NARROW)))
    return Tiles(rows, max(1, min(vocabulary, at_once // rows)))


def slices_of(length: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that cover a length."""
    return (slice(i, min(i + step, length)) for i in range(0, length, step))


def upcast_logits(logits: Tensor) -> Tensor:
    """Logits in float32, or float64 where the model has it, as log-probabilities are computed."""
    return logits if logits.dtype == torch.float64 else logits.float()


def ids_in_slice(ids_m1: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which ids are in this slice of the vocabulary, and their columns in it (0 of the others)."""
    here_m1 = (ids_m1 >= words.start) & (ids_m1 < words.stop)
    return here_m1, (ids_m1 - words.start).where(here_m1, 0)


class Stats(NamedTuple):
    """Statistics of some rows over a part of the vocabulary as if it were the whole, [m, 1] each.

    logp: log pi of the row's token; own: the log sum exp of the tile that it is in (both 0 where it
    is in none). lse: the log sum exp of the part; entropy: of its distribution; mean: the mean row
    of the head's weight under it, [m, D] ([m, 0] unless asked for).
    """

    logp: Tensor
    own: Tensor
    lse: Tensor
    entropy: Tensor
    mean: Tensor


class WantedStats(NamedTuple):
    """What a pass over the logits computes besides log-probabilities: see `Stats`."""

    entropy: bool
    mean: bool = False


def has_compiled_kernel(z_mv: Tensor) -> bool:
    """Is there a compiled kernel for these logits?"""
    known = z_mv.dtype in (torch.float32, torch.bfloat16)
    return z_mv.device.type == "cpu" and known and load_library() is not None


def tile_stats(
    z_mv: Tensor, weight_vD: Tensor, ids_m1: Tensor, words: slice, wanted: WantedStats, spare: bool
) -> Stats:
    """The statistics of one tile of logits. spare: the logits may be overwritten."""
    if has_compiled_kernel(z_mv) and not wanted.mean:
        logp_m1, own_m1, lse_m1, entropy_m1 = torch.empty(4, len(z_mv), 1)
        columns = logp_m1, own_m1, lse_m1, entropy_m1
        call_kernel(
            "say", z_mv.dtype, z_mv, ids_m1.contiguous(), *columns, *z_mv.shape, words.start
        )
        return Stats(*columns, lse_m1.new_zeros(len(z_mv), 0))
    z_mv = upcast_logits(z_mv)
    here_m1, at_m1 = ids_in_slice(ids_m1, words)
    logp_mv = z_mv.log_softmax(1)
    logp_m1 = logp_mv.gather(1, at_m1)
    # log softmax is z - lse: so lse, from any one column
    lse_m1 = z_mv.gather(1, at_m1) - logp_m1
    entropy_m1, mean_mD = torch.zeros_like(lse_m1), lse_m1.new_zeros(len(lse_m1), 0)
    if any(wanted):
        pi_mv = torch.exp(logp_mv, out=z_mv if spare else None)
        if wanted.entropy:
            # not vecdot: autocast would make it bfloat16
            entropy_m1 = -(pi_mv * logp_mv).sum(1, keepdim=True)
        if wanted.mean:
            mean_mD = upcast_logits(pi_mv.to(weight_vD.dtype) @ weight_vD)
    return Stats(logp_m1.where(here_m1, 0), lse_m1.where(here_m1, 0), lse_m1, entropy_m1, mean_mD)


def tile_gradient(
    z_mv: Tensor, ids_m1: Tensor, words: slice, lse_m1: Tensor, g_m1: Tensor, spare: bool
) -> Tensor:
    """The gradient of a tile of logits, in their precision: g (onehot(id) - pi).

    spare: the logits may be overwritten.
    """
    if has_compiled_kernel(z_mv):
        into = z_mv if spare else torch.empty_like(z_mv)
        columns = ids_m1.contiguous(), lse_m1.contiguous(), g_m1.contiguous()
        call_kernel("slope", z_mv.dtype, z_mv, into, *columns, *z_mv.shape, words.start)
        return into
    here_m1, at_m1 = ids_in_slice(ids_m1, words)
    dz_mv = (upcast_logits(z_mv) - lse_m1).exp_().mul_(-g_m1)
    # a row whose token is in another tile adds 0 to its first column
    return dz_mv.scatter_add_(1, at_m1, g_m1.where(here_m1, 0)).to(z_mv.dtype)


def merge_stats(one: Stats, other: Stats) -> Stats:
    """The statistics of two disjoint parts of the vocabulary as one part.

    By the chain rule of entropy: H = sum_i w_i (H_i - log w_i), log w_i = lse_i - lse.
    """
    lse_m1 = torch.logaddexp(one.lse, other.lse)
    logw_m1 = one.lse - lse_m1
    logv_m1 = other.lse - lse_m1
    w_m1 = logw_m1.exp()
    v_m1 = logv_m1.exp()
    entropy_m1 = w_m1 * (one.entropy - logw_m1) + v_m1 * (other.entropy - logv_m1)
    mean_mD = w_m1 * one.mean + v_m1 * other.mean
    # the row's token is in one of them, and 0 in the other
    return Stats(one.logp + other.logp, one.own + other.own, lse_m1, entropy_m1, mean_mD)


def all_stats(
    cooled_MD: Tensor,
    weight_VD: Tensor,
    ids_M1: Tensor,
    tile: Tiles,
    wanted: WantedStats,
    keep: int = 0,
) -> tuple[Stats, list[Tensor]]:
    """The statistics of every row, computed a tile at a time, and the first `keep` logits."""
    kept = list[Tensor]()
    found = list[Stats]()
    for rows in slices_of(len(ids_M1), tile.rows):
        stats = None
        for words in slices_of(len(weight_VD), tile.columns):
            weight_vD = weight_VD[words].to(cooled_MD.dtype)
            z_mv = cooled_MD[rows] @ weight_vD.t()
            stays = keep >= z_mv.numel()
            # the first ones, without a gap: the first tile that does not fit ends it
            keep = keep - z_mv.numel() if stays else 0
            if stays:
                kept.append(z_mv)
            more = tile_stats(z_mv, weight_vD, ids_M1[rows], words, wanted, spare=not stays)
            stats = more if stats is None else merge_stats(stats, more)
        assert stats is not None
        found.append(stats)
    if not found:
        none_01 = upcast_logits(cooled_MD.new_zeros(0, 1))
        found = [Stats(none_01, none_01, none_01, none_01, upcast_logits(cooled_MD[:0]))]
    return Stats(*(torch.cat(column) for column in zip(*found, strict=True))), kept


def over_temperature(hidden_MD: Tensor, temperature_M: Tensor) -> Tensor:
    """Hidden states over temperatures: one division fewer for every logit."""
    return hidden_MD / temperature_M[:, None].to(hidden_MD.dtype)


def add_product(into: Tensor, a: Tensor, b: Tensor, begun: bool) -> None:
    """into += a @ b, or into = a @ b where it is not `begun`, in the precision of `into`."""
    if into.dtype == a.dtype:
        torch.addmm(into, a, b, beta=int(begun), out=into)
    elif begun:
        into += a @ b
    else:
        into.copy_(a @ b)


def logprob_outputs(ctx: Any, stats: Stats) -> tuple[Tensor, Tensor]:
    """log pi of every row's token, and the entropy, which has no gradient."""
    entropy_M = stats.entropy[:, 0]
    ctx.mark_non_differentiable(entropy_M)
    # log pi in its own tile, carried over to the whole vocabulary
    return (stats.logp + (stats.own - stats.lse))[:, 0], entropy_M


class FusedLogprobs(torch.autograd.Function):
    """log softmax(h W' / temperature)[id] with its gradient, a tile of logits at a time.

        dz = g (onehot(id) - softmax(z)),   dh = dz W / temperature,   dW = dz' h / temperature

    Logits are computed in `dtype`; everything after the product, and the sums over tiles, in at
    least float32. They are computed once forward, and once more backward but for the first `keep`
    of them, which are kept: the same numbers, so no result depends on it. `at_once`: logits of a
    tile. The entropy comes with the forward pass and has no gradient.
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
        cooled_MD = over_temperature(hidden_MD, temperature_M).to(dtype)
        ids_M1 = ids_M[:, None]
        ctx.tile = tiles(len(ids_M), len(weight_VD), at_once)
        ctx.hidden_dtype = hidden_MD.dtype
        stats, kept = all_stats(cooled_MD, weight_VD, ids_M1, ctx.tile, WantedStats(entropy), keep)
        ctx.save_for_backward(cooled_MD, weight_VD, ids_M1, temperature_M, stats.lse, *kept)
        return logprob_outputs(ctx, stats)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cooled_MD, weight_VD, ids_M1, temperature_M, lse_M1, *kept = ctx.saved_tensors
        grad_MD = torch.empty_like(cooled_MD, dtype=lse_M1.dtype)
        grad_VD: Tensor | None = None
        if ctx.needs_input_grad[1]:
            grad_VD = torch.empty_like(weight_VD, dtype=lse_M1.dtype)
        g_M1 = gradients[0][:, None]
        dz = logit_gradients(cooled_MD, weight_VD, ids_M1, lse_M1, g_M1, ctx.tile, kept)
        for rows, words, weight_vD, dz_mv in dz:
            add_product(grad_MD[rows], dz_mv, weight_vD, begun=words.start > 0)
            # every row of grad_VD is written once, but where the logits of all rows do not fit
            # into one tile: then later rows add to it
            if grad_VD is not None:
                add_product(grad_VD[words], dz_mv.t(), cooled_MD[rows], begun=rows.start > 0)
        grad_MD = over_temperature(grad_MD.to(ctx.hidden_dtype), temperature_M)
        if grad_VD is None:
            return grad_MD, *(None,) * 7
        # of no token nothing was written
        if not len(ids_M1):
            grad_VD.zero_()
        return grad_MD, grad_VD.to(weight_VD.dtype), *(None,) * 6


apply_fused_logprobs = as_function(FusedLogprobs)


def logit_gradients(
    cooled_MD: Tensor,
    weight_VD: Tensor,
    ids_M1: Tensor,
    lse_M1: Tensor,
    g_M1: Tensor,
    tile: Tiles,
    kept: list[Tensor],
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """The rows, the columns, the head's weight and the gradient of every tile of logits.

    kept: the logits of the first tiles; those of the others are computed again.
    """
    tiles_kept = iter(kept)
    for rows in slices_of(len(ids_M1), tile.rows):
        for words in slices_of(len(weight_VD), tile.columns):
            weight_vD = weight_VD[words].to(cooled_MD.dtype)
            z_mv = next(tiles_kept, None)
            # logits that are kept may be needed by another backward pass
            spare = z_mv is None
            if z_mv is None:
                z_mv = cooled_MD[rows] @ weight_vD.t()
            dz_mv = tile_gradient(z_mv, ids_M1[rows], words, lse_M1[rows], g_M1[rows], spare)
            yield rows, words, weight_vD, dz_mv


class FrozenLogprobs(torch.autograd.Function):
    """`FusedLogprobs` under a head that does not learn: no logits are computed twice.

    The gradient is computed in the forward pass, but for the factor g that comes from behind:

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
        cooled_MD = over_temperature(hidden_MD, temperature_M).to(dtype)
        tile = tiles(len(ids_M), len(weight_VD), at_once)
        wanted = WantedStats(entropy, mean=True)
        stats, _ = all_stats(cooled_MD, weight_VD, ids_M[:, None], tile, wanted)
        slope_MD = upcast_logits(weight_VD[ids_M].to(dtype)) - stats.mean
        ctx.save_for_backward(over_temperature(slope_MD.to(hidden_MD.dtype), temperature_M))
        return logprob_outputs(ctx, stats)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope_MD,) = ctx.saved_tensors
        return gradients[0][:, None].to(slope_MD.dtype) * slope_MD, *(None,) * 6


apply_frozen_logprobs = as_function(FrozenLogprobs)


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

That takes 2 ms, as long as the product of a few hundred tokens, and it keeps a thousand of them.
"""


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

        log pi(x) = z_x - log sum_v exp(z_v),   z = logits / temperature
        H = -sum_v pi(v) log pi(v)

    The one function behind actor, reference, sampler and evaluation. logits [2, 0] at temperature
    .5: -0.0181500.
    """
    shapes = logits_MV.shape[:1], ids_M.shape, temperature_M.shape
    assert len(set(shapes)) == 1, shapes
    z_MV = upcast_logits(logits_MV) / temperature_M[:, None]
    if entropy == "none":
        return TokenStats(z_MV.gather(1, ids_M[:, None])[:, 0] - z_MV.logsumexp(1), None)
    logp_MV = z_MV.log_softmax(1)
    logp_M = logp_MV.gather(1, ids_M[:, None])[:, 0]
    return TokenStats(logp_M, full_entropy(logp_MV if entropy == "grad" else logp_MV.detach()))


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
    """`token_logprobs` of head(hidden), a part of the logits at a time.

    The logits are computed again in the backward pass. hidden_MD [M, D]; head maps [m, D] to logits
    [m, V]. Extra memory: about `room` bytes, whatever M and V are. The gradient of a linear layer
    without bias is written out (`FusedLogprobs`), unless the entropy is to be differentiated: its
    logits come in tiles of TILE bytes, and `room` holds those that need not be computed again.
    chunk: so many logits at once instead.
    """
    layer: Any = head
    if type(layer) is nn.Linear and cast("Tensor | None", layer.bias) is None and entropy != "grad":
        wants = entropy == "value"
        return linear_logprobs(
            layer.weight, hidden_MD, ids_M, temperature_M, wants, chunk or CHUNK, room
        )

    def stats(hidden: Tensor, ids: Tensor, temperature: Tensor) -> TokenStats:
        return token_logprobs(head(hidden), ids, temperature, entropy=entropy)

    found = in_chunks(stats, head, (hidden_MD, ids_M, temperature_M), chunk, room)
    logp_M = torch.cat([part.logp for part in found])
    entropies = [part.entropy for part in found if part.entropy is not None]
    return TokenStats(logp_M, torch.cat(entropies) if entropies else None)


def linear_logprobs(
    weight_VD: Tensor,
    hidden_MD: Tensor,
    ids_M: Tensor,
    temperature_M: Tensor,
    entropy: bool,
    chunk: int | None,
    room: int,
) -> TokenStats:
    """`chunked_logprobs` under a linear layer without bias, with its gradient written out."""
    kind, count = hidden_MD.device.type, len(ids_M)
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else weight_VD.dtype
    # rows up to the next multiple of EVEN
    more = -count % EVEN if kind == "cpu" and dtype == torch.bfloat16 else 0
    if more:
        # rows behind the others, whose results are thrown away
        hidden_MD = nn.functional.pad(hidden_MD, (0, 0, 0, more))
        ids_M = nn.functional.pad(ids_M, (0, more))
        temperature_M = nn.functional.pad(temperature_M, (0, more), value=1.0)
    tile = (TILE if kind == "cpu" else TILE_ON_GPU) // (8 if dtype == torch.float64 else 4)
    arguments = (hidden_MD, weight_VD, ids_M, temperature_M, entropy, dtype, chunk or tile)
    learns = torch.is_grad_enabled() and weight_VD.requires_grad
    if torch.is_grad_enabled() and hidden_MD.requires_grad and not learns:
        logp_M, entropy_M = apply_frozen_logprobs(*arguments)
    else:
        # who wants few logits at once wants them computed again, too
        keep = room // dtype.itemsize if learns and not chunk else 0
        logp_M, entropy_M = apply_fused_logprobs(*arguments, keep)
    return TokenStats(logp_M[:count], entropy_M[:count] if entropy else None)


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
    """KL(pi || ref) of each token's whole distribution, [M] float32, differentiable in the policy.

    The Rao-Blackwellised k1: sum_v pi(v) (log pi(v) - log ref(v)); its gradient is the exact
    reverse-KL gradient of that state.
    """

    def divergence(hidden: Tensor, hidden_ref: Tensor, temperature: Tensor) -> Tensor:
        logp = (upcast_logits(head(hidden)) / temperature[:, None]).log_softmax(1)
        logp_ref = (upcast_logits(head_ref(hidden_ref)) / temperature[:, None]).log_softmax(1)
        return exact_kl(logp, logp_ref)

    columns = (hidden_MD, hidden_ref_MD, temperature_M)
    return torch.cat(in_chunks(divergence, head, columns, chunk, room))


T = TypeVar("T")


def in_chunks(
    function: Callable[..., T],
    head: Callable[[Tensor], Tensor],
    columns: tuple[Tensor, ...],
    chunk: int | None,
    room: int = ROOM,
) -> list[T]:
    """Apply `function` to slices of the columns, in order.

    They are small enough for `chunk` (CHUNK) logits, or for `room` bytes.
    """
    rows = columns[0].shape[0]
    with torch.no_grad():
        one = head(columns[0][:1]) if rows else columns[0].new_zeros(1, 1)
    vocabulary = one.shape[-1]
    width = upcast_logits(one).element_size()
    logits = chunk or CHUNK or room // (COPIES * width)
    step = max(1, logits // vocabulary)
    # once for no rows, too, so that there is something to join
    slices = [slice(i, i + step) for i in range(0, max(rows, 1), step)]
    chunks = [tuple(column[part] for column in columns) for part in slices]
    if rows <= step or not torch.is_grad_enabled():
        return [function(*some) for some in chunks]
    return [recompute_in_backward(function, *some) for some in chunks]
