"""The critic's values of a batch, before the update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laurel.core.sample import Batch
from laurel.train.session import Session


@torch.no_grad()
def critic_values(session: Session, batch: Batch) -> tuple[Tensor, Tensor]:
    """The critic's values before the update: of every trained token's state, and behind each row.

    They are [N, T] and [N].
    """
    row = {key: n for n, key in enumerate(batch.keys)}
    value_NT = torch.zeros_like(batch.weight_NT)
    after_N = torch.zeros_like(batch.weight_NT[:, 0])
    if session.clock.device is not None:  # a profile counts what the critic's body reads
        critic: Any = session.auxiliary
        body = session.policy.causal if critic.shares_body else critic.model["body"]
        unread = batch.replace(loss_mask_NT=torch.zeros_like(batch.loss_mask_NT))
        session.clock.passed(body, unread, learns=False)
    names = ("value_NT", "value_after_N") if session.config.bootstrap_truncated else ("value_NT",)
    for micro in batch.split(session.config.token_budget or 0, packed=session.packs):
        outputs = session.model.forward(micro.to(session.policy.device), names)
        (found_NT,) = outputs.tensors(["value_NT"])
        # micro-batches are in another order than the batch, and trimmed: rows join by key
        rows = [row[key] for key in micro.keys]
        value_NT[rows, : found_NT.shape[1]] = found_NT.to(value_NT)
        if outputs.value_after_N is not None:
            after_N[rows] = outputs.value_after_N.to(after_N)
    return value_NT, after_N
