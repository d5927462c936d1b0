"""Rewards adjusted over many steps: normalised, clipped, penalised; and an adaptive beta."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laurel.core.sample import Batch, Group
from laurel.rollout.pack import k1_of, truncated
from laurel.train import parallel
from laurel.train.session import Session, State
from laurel.weight.control import Moments, missing_eos, next_beta


def adjust_rewards(
    session: Session, state: State, groups: Sequence[Group], batch: Batch, reward_PG: Tensor
) -> Tensor:
    """Rewards normalised and clipped by their history, less the penalty for cut completions.

    Also sets beta's next value: it follows the mean KL of the rows that are trained on; where there
    is none, it stays. All processes see the same history and the same KL, so they keep the same
    state.
    """
    config = session.config
    if config.kl_target and session.reference is not None:
        # a row that is masked has no KL; its KL is not 0
        counts_N = batch.loss_mask_NT.any(1)
        k1_N = torch.cat(parallel.gather(k1_of(batch).sum(1)[counts_N]))
        state.beta = next_beta(
            state.beta,
            float(k1_N.mean()),
            target=config.kl_target,
            horizon=config.kl_horizon or 0,
            n=len(k1_N),
        )
    if config.normalize_rewards:
        moments = Moments(*state.moments).update(torch.cat(parallel.gather(reward_PG)))
        state.moments = (moments.count, moments.mean, moments.square)
        reward_PG = moments.normalise(reward_PG, config.reward_clip or 0.0)
    if config.missing_eos_penalty:
        penalty = config.missing_eos_penalty
        reward_PG = missing_eos(reward_PG, truncated(groups), missing_eos_penalty=penalty)
    return reward_PG
