"""Linear head and log-probability as one function, with its gradient written out: logits live a tile at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

NARROW = 1024
"""Columns below which no tile is made narrower: a product with fewer is slower than the same work in fewer rows."""


class Tiles(NamedTuple):
    """How a [rows, vocabulary] matrix of logits is cut: so many rows at once, and of these so many columns at once."""

    rows: int
    columns: int


def tiles(count: int, vocabulary: int, at_once: int) -> Tiles:
    """Tiles of at most `at_once` logits. A small vocabulary is never cut; of a large one all rows are taken together, if they can.

    So every row of the head's weight, and of its gradient, is read or written once for all rows. 440 rows of 262,144 words in
    2^21 logits: 440 x 4766.
    """
    rows = max(1, min(count, at_once // min(vocabulary, NARROW)))
    return Tiles(rows, max(1, min(vocabulary, at_once // rows)))


def parts(length: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that cover a length."""
    return (slice(i, min(i + step, length)) for i in range(0, length, step))


def wide(logits: Tensor) -> Tensor:
    """Logits in the precision that log-probabilities are computed in: float32, or float64 where the model has it."""
    return logits if logits.dtype == torch.float64 else logits.float()


def inside(ids_m1: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which ids are among these words, and each one's column there (0 of those that are not)."""
    here_m1 = (ids_m1 >= words.start) & (ids_m1 < words.stop)
    return here_m1, (ids_m1 - words.start).where(here_m1, 0)


class Said(NamedTuple):
    """What is known of some rows after some of the words, [m, 1] each, as if there were no others.

    logp: log pi of the row's token; own: the log sum exp of the tile in which it stood. lse: of all words so far; entropy: theirs.
    """

    logp: Tensor
    own: Tensor
    lse: Tensor
    entropy: Tensor


def said_by(z_mv: Tensor, ids_m1: Tensor, words: slice, entropy: bool, spare: bool) -> Said:
    """What one tile of logits says. spare: it may be overwritten."""
    here_m1, at_m1 = inside(ids_m1, words)
    logp_mv = z_mv.log_softmax(1)
    logp_m1 = logp_mv.gather(1, at_m1)
    lse_m1 = z_mv.gather(1, at_m1) - logp_m1
    entropy_m1 = torch.zeros_like(lse_m1)
    if entropy:
        pi_mv = torch.exp(logp_mv, out=z_mv if spare else None)
        entropy_m1 = -torch.linalg.vecdot(pi_mv, logp_mv)[:, None]
    return Said(logp_m1.where(here_m1, 0), lse_m1.where(here_m1, 0), lse_m1, entropy_m1)


def joined(one: Said, other: Said) -> Said:
    """Two disjoint sets of words as one, by the chain rule of entropy: H = sum_i w_i (H_i - log w_i), log w_i = lse_i - lse."""
    lse_m1 = torch.logaddexp(one.lse, other.lse)
    logw_m1, logv_m1 = one.lse - lse_m1, other.lse - lse_m1
    entropy_m1 = logw_m1.exp() * (one.entropy - logw_m1) + logv_m1.exp() * (other.entropy - logv_m1)
    return Said(one.logp + other.logp, one.own + other.own, lse_m1, entropy_m1)


def add_product(into: Tensor, a: Tensor, b: Tensor, begun: bool) -> None:
    """into += a @ b, or into = a @ b where nothing is in it yet; the sum is in the precision of `into`."""
    if into.dtype == a.dtype:
        torch.addmm(into, a, b, beta=int(begun), out=into)
    elif begun:
        into += a @ b
    else:
        into.copy_(a @ b)


class FusedLogprobs(torch.autograd.Function):
    """log softmax(h W' / temperature)[id] with its gradient, a tile of logits at a time.

        dz = g (onehot(id) - softmax(z)),   dh = dz W / temperature,   dW = dz' h / temperature

    Logits are computed in `dtype`; everything after the product, and the sums over tiles, in at least float32. They are computed
    once forward, and once more backward but for the first `keep` of them, which are kept: the same numbers, so no result depends
    on it. `at_once`: logits of a tile. The entropy comes with the forward pass and has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, ids_M: Tensor, temperature_M: Tensor,
        entropy: bool, dtype: torch.dtype, at_once: int, keep: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        cooled_MD, ids_M1 = (hidden_MD / temperature_M[:, None].to(hidden_MD.dtype)).to(dtype), ids_M[:, None]
        tile, kept = tiles(len(ids_M), len(weight_VD), at_once), list[Tensor]()
        logp_M1, lse_M1, entropy_M = (wide(cooled_MD.new_zeros(len(ids_M), *more)) for more in ((1,), (1,), ()))
        for rows in parts(len(ids_M), tile.rows):
            said = None
            for words in parts(len(weight_VD), tile.columns):
                z_mv = cooled_MD[rows] @ weight_VD[words].to(dtype).t()
                if stays := keep >= z_mv.numel():  # as it was computed: what backward would compute again
                    kept.append(z_mv)
                keep = keep - z_mv.numel() if stays else 0  # the first ones, without a gap
                more = said_by(wide(z_mv), ids_M1[rows], words, entropy, spare=not stays)
                said = more if said is None else joined(said, more)
            assert said is not None
            logp_M1[rows], lse_M1[rows], entropy_M[rows] = said.logp + (said.own - said.lse), said.lse, said.entropy[:, 0]
        ctx.save_for_backward(cooled_MD, weight_VD, ids_M1, temperature_M, lse_M1, *kept)
        ctx.tile, ctx.like = tile, hidden_MD.dtype
        ctx.mark_non_differentiable(entropy_M)
        return logp_M1[:, 0], entropy_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cooled_MD, weight_VD, ids_M1, temperature_M, lse_M1, *kept = ctx.saved_tensors
        g_M1, again = gradients[0][:, None], iter(kept)
        grad_MD = torch.empty_like(cooled_MD, dtype=lse_M1.dtype)
        grad_VD = torch.empty_like(weight_VD, dtype=lse_M1.dtype) if ctx.needs_input_grad[1] else None
        for rows in parts(len(ids_M1), ctx.tile.rows):
            for words in parts(len(weight_VD), ctx.tile.columns):
                weight_vD = weight_VD[words].to(cooled_MD.dtype)
                z_mv = next(again, None)
                z_mv = cooled_MD[rows] @ weight_vD.t() if z_mv is None else z_mv
                here_m1, at_m1 = inside(ids_M1[rows], words)
                dz_mv = (wide(z_mv) - lse_M1[rows]).exp_().mul_(-g_M1[rows])
                dz_mv = dz_mv.scatter_add_(1, at_m1, g_M1[rows].where(here_m1, 0)).to(weight_vD.dtype)
                add_product(grad_MD[rows], dz_mv, weight_vD, begun=words.start > 0)
                if grad_VD is not None:  # every row of it once, but where there are more rows of logits than fit beside each other
                    add_product(grad_VD[words], dz_mv.t(), cooled_MD[rows], begun=rows.start > 0)
        if grad_VD is not None and not len(ids_M1):
            grad_VD.zero_()
        grad_MD = grad_MD.to(ctx.like) / temperature_M[:, None].to(ctx.like)
        return grad_MD, None if grad_VD is None else grad_VD.to(weight_VD.dtype), *(None,) * 6
