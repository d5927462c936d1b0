"""Targets of a batch that depend on the policy as it is now: filled in before the update, over the
whole batch and all processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from laurel.core.sample import Batch, Group
from laurel.objective.preference import grade, log_ratios
from laurel.train import parallel
from laurel.train.session import Session


@torch.no_grad()
def kl_point(session: Session, batch: Batch, groups: Sequence[Group]) -> Batch:
    """KTO's reference point in every target: max(0, mean of log pi - log ref) over the ungraded
    rows, which answer other prompts.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    others = batch.rows((grade(batch) == 0).nonzero()[:, 0].tolist())
    for micro in others.split(session.config.token_budget, packed=session.packs):
        moved = micro.to(session.policy.device)
        total, count = (
            total + log_ratios(session.policy.logp(moved).logp, moved).sum().cpu().double(),
            count + len(micro),
        )
    point = parallel.everywhere(total) / parallel.everywhere(torch.tensor(count)).clamp(min=1)
    return batch.replace(target_NT=torch.full_like(batch.target_NT, max(0.0, float(point))))


def told(session: Session, batch: Batch, groups: Sequence[Group]) -> Batch:
    """What rows of data say of their pairs: the margin is the chosen row's target, 1 - soft_label
    the rejected row's value; else 0.
    """
    said = [(group.row, reward or 0.0) for group in groups for reward in group.rewards]
    target = [float(row.get("margin", 0.0)) if reward > 0 else 0.0 for row, reward in said]
    value = [1 - float(row.get("soft_label", 1.0)) if reward < 0 else 0.0 for row, reward in said]
    columns = {
        name: torch.tensor(x_N, dtype=x_NT.dtype)[:, None].expand_as(x_NT).contiguous()
        for name, x_N, x_NT in (
            ("target_NT", target, batch.target_NT),
            ("value_NT", value, batch.value_NT),
        )
    }
    return batch.replace(**columns)


def labels(session: Session, batch: Batch, groups: Sequence[Group]) -> Batch:
    """The row's label at every trained token; of a row of steps, each step's at its last token
    (true 1, false -1).
    """
    target_NT = torch.zeros_like(batch.target_NT)
    for n, group in enumerate(groups):
        at_T = batch.loss_mask_NT[n]
        if "labels" in group.row:
            graded = [
                (1.0 if label else -1.0) if isinstance(label, bool) else float(label)
                for label in group.row["labels"]
            ]
            target_NT[n, at_T] = torch.tensor(graded[: int(at_T.sum())], dtype=target_NT.dtype)
        else:
            target_NT[n, at_T] = float(group.row["label"])
    return batch.replace(target_NT=target_NT)
