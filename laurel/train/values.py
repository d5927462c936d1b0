"""The critic's values of a batch, before the update."""

from __future__ import annotations

from typing import Any

import torch

from laurel.core.sample import Batch
from laurel.train.session import Session


@torch.no_grad()
def with_values(session: Session, batch: Batch) -> Batch:
    """The batch with the critic's value of every trained token's state, as it is before the
    update.
    """
    rows, value_NT = {key: n for n, key in enumerate(batch.keys)}, torch.zeros_like(batch.value_NT)
    if session.clock.device is not None:  # somebody watches
        critic: Any = session.companion
        body = session.policy.causal if critic.shares_body else critic.model["body"]
        session.clock.passed(
            body, batch.replace(loss_mask_NT=torch.zeros_like(batch.loss_mask_NT)), learns=False
        )
    for micro in batch.split(session.config.token_budget, packed=session.packs):
        outputs = session.model.forward(micro.to(session.policy.device), ("value_NT",))
        value = outputs.tensors(["value_NT"])[0].to(value_NT)
        value_NT[[rows[key] for key in micro.keys], : value.shape[1]] = value
    return batch.replace(value_NT=value_NT)
