"""Rows that are not trained: which those are, and which of them are to be measured all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from laurel.core.sample import Batch, Group
from laurel.rollout.pack import pack
from laurel.train import parallel

if TYPE_CHECKING:
    from laurel.train.setup import Setup


def trains(setup: Setup, group: Group) -> bool:
    """Is any sample of the group trained on?"""
    return bool(
        pack(
            [group], mask_truncated=bool(setup.config.mask_truncated_completions)
        ).loss_mask_NT.any()
    )


def with_signal(setup: Setup, batch: Batch) -> Batch:
    """The rows that can move anything. A row whose weights are all zero adds exactly nothing,
    unless KL, entropy or a companion's
    error is in the loss; one that no term of the loss counts adds nothing then, either; a
    comparison without two sides adds nothing.

    They were counted in the denominator before; leaving them out of the forward and backward pass
    changes no gradient.
    """
    config = setup.config
    if setup.by_comparison:
        moves_N = setup.unit(batch).weight[batch.group_N.unique(return_inverse=True)[1]] != 0
        return batch.rows(moves_N.nonzero()[:, 0].tolist())
    if (
        setup.companion is not None
        or (config.beta and config.kl_placement == "loss")
        or config.entropy_coef
    ):
        counts = [
            (unit(batch).weight != 0).reshape(len(batch), -1).any(1) for _, _, unit in setup.terms()
        ]
        return batch.rows(torch.stack(counts).any(0).nonzero()[:, 0].tolist())
    moves_N = (torch.where(batch.loss_mask_NT, batch.weight_NT, 0.0) != 0).any(1)
    return batch.rows(moves_N.nonzero()[:, 0].tolist())


def unseen(setup: Setup, batch: Batch, moving: Batch, step: int) -> tuple[Batch, bool]:
    """The policy's own samples of which no token is trained on, to be measured beside the others;
    and are then all of them measured?

    Measuring costs their forward pass, which is why it is done where metrics are written, and else
    not. Their mask is what was
    sampled, their weight is 0: nothing of them is clipped.
    """
    trained = {
        key for key, on in zip(moving.keys, moving.loss_mask_NT.any(1).tolist(), strict=True) if on
    }
    drawn_N = (batch.drawn_NT.any(1) & setup.on_policy).tolist()
    rest = batch.rows([n for n, key in enumerate(batch.keys) if drawn_N[n] and key not in trained])
    whole = setup.logs(step) or not any(parallel.gather(len(rest)))
    rest = rest if whole else rest.rows([])
    return rest.replace(
        loss_mask_NT=rest.drawn_NT, weight_NT=torch.zeros_like(rest.weight_NT)
    ), whole
