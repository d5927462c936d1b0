"""What a batch is to learn besides its weights, filled in before the update.

These are labels of scorers, logged rewards, KTO's reference point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from laurel.core.sample import Batch, Group
from laurel.core.tensors import ints
from laurel.objective.preference import log_ratios
from laurel.objective.unit import required
from laurel.train import parallel
from laurel.train.session import Session


@torch.no_grad()
def reference_kl(session: Session, batch: Batch, groups: Sequence[Group]) -> Batch:
    """KTO's reference point, under the policy as it is now.

        max(0, mean of log pi - log ref)

    The mean is over the rows that are not compared, which answer other prompts, of all processes.
    """
    found = required(batch.comparison)
    others = batch.rows(ints((~found.compared_N).nonzero()[:, 0]))
    budget = session.config.token_budget or 0
    total = torch.zeros((), dtype=torch.float64)
    for part in others.split(budget, packed=session.packs):
        micro = part.to(session.policy.device)
        logp_NT = session.policy.logp(micro).logp
        ratio_N = log_ratios(logp_NT, micro)
        total = total + ratio_N.sum().cpu().double()
    total = parallel.sum_over_ranks(total)
    count = parallel.sum_over_ranks(torch.tensor(len(others)))
    point = max(0.0, float(total / count.clamp(min=1)))
    point_N = torch.full_like(found.grade_N, point)
    comparison = replace(found, reference_kl_N=point_N)
    return batch.replace(comparison=comparison)


def labels(session: Session, batch: Batch, groups: Sequence[Group]) -> Batch:
    """The row's label at every trained token (true 1, false -1).

    Of a row of steps, each step's label is at its last token.
    """
    label_NT = torch.zeros_like(batch.weight_NT)
    for n, group in enumerate(groups):
        at_T = batch.loss_mask_NT[n]
        if "labels" in group.row:
            steps = [step_label(label) for label in group.row["labels"]]
            # the trained tokens of such a row are the ends of its steps, in order
            there = steps[: int(at_T.sum())]
            label_NT[n, at_T] = torch.tensor(there, dtype=label_NT.dtype)
        else:
            label_NT[n, at_T] = float(group.row["label"])
    return batch.replace(label_NT=label_NT)


def step_label(label: bool | float) -> float:
    """A step's label as a number: true 1, false -1."""
    if isinstance(label, bool):
        return 1.0 if label else -1.0
    return float(label)


def logged_rewards(session: Session, batch: Batch, groups: Sequence[Group]) -> Batch:
    """The reward that was logged with each row; NaN where a row has none and is not trained on."""
    logged = [reward for group in groups for reward in group.rewards]
    rewards = [math.nan if reward is None else reward for reward in logged]
    return batch.replace(reward_N=torch.tensor(rewards, dtype=batch.weight_NT.dtype))
