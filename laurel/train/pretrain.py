"""Mixing in pre-training: the likelihood of other text is added to the loss.

It works against forgetting what the reward does not ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from laurel.core.metrics import Sums
from laurel.core.sample import take
from laurel.data.source import Row
from laurel.objective.policy import likelihood
from laurel.objective.unit import reduce_loss, token_mean
from laurel.rollout.data import demonstrations
from laurel.rollout.pack import pack
from laurel.train import parallel
from laurel.train.session import Session


def add_pretraining_gradient(session: Session, rows: Sequence[Row], step: int, sums: Sums) -> None:
    """Add the gradient of ptx_coef * E[-log pi(text)] to what has been accumulated.

    The mean is per token of this step's rows of ptx_dataset: as many rows as prompts per step,
    drawn in a seeded order, divided among processes. PPO-ptx, Ouyang et al. 2022, arXiv:2203.02155.
    """
    config = session.config
    every = take(
        (step - 1) * config.prompts_per_step, config.prompts_per_step, len(rows), config.seed
    )
    own = [rows[i] for i in every[parallel.rank() :: parallel.world_size()]]
    groups = demonstrations(
        session.policy,
        own,
        run="ptx",
        step=step,
        train_on=None,
        max_length=config.max_prompt_length,
    )
    batch = pack(groups).to(session.policy.device)
    batch = batch.replace(weight_NT=torch.ones_like(batch.weight_NT))
    total = parallel.sum_over_ranks(token_mean(batch).count)
    for micro in batch.split(config.token_budget, packed=session.packs):
        logp_NT = session.policy.logp(micro).logp
        loss: Any = reduce_loss(likelihood(logp_NT, micro), token_mean(micro), total)
        ((config.ptx_coef or 0.0) * loss).backward()
        sums.add(
            "ptx/nll",
            float(-logp_NT.detach()[micro.loss_mask_NT].sum()),
            int(micro.loss_mask_NT.sum()),
        )
