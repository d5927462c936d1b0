"""Lists -> tensors, in one place: samples become a Batch, rewards become a matrix, weights become a
column of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laurel.core.sample import NOT_SAMPLED, Batch, Comparisons, Group
from laurel.weight.token import place_reward


def pack(groups: Sequence[Group], *, mask_truncated: bool = False) -> Batch:
    """Groups -> Batch of N rows, group after group, padded on the right. Weights and log ref are
    zero yet.

    Rows that no reward could judge (reward None), and with `mask_truncated` rows cut off at the
    length limit, keep their place but lose their loss mask: they are neither trained on nor
    counted. The policy drew them all the same (`sampled_NT`).
    """
    samples = [s for group in groups for s in group.samples]
    judged = [
        r is not None for group in groups for r in (group.rewards or (0.0,) * len(group.samples))
    ]
    wide = max(len(s.prompt_ids) + len(s.completion_ids) for s in samples)
    long = max(len(s.completion_ids) for s in samples)
    start_N = torch.tensor([len(s.prompt_ids) for s in samples])
    length_N = torch.tensor([len(s.completion_ids) for s in samples])
    chosen = [
        s.loss_mask if s.key.version != NOT_SAMPLED else (False,) * len(s.loss_mask)
        for s in samples
    ]
    counted = [
        count and not (mask_truncated and s.finish == "length")
        for s, count in zip(samples, judged, strict=True)
    ]
    logp_old_NT = padded([s.logps for s in samples], long)
    loss_mask_NT = (
        padded([s.loss_mask for s in samples], long, torch.bool) & torch.tensor(counted)[:, None]
    )
    return Batch(
        ids_NL=padded([s.prompt_ids + s.completion_ids for s in samples], wide, torch.long),
        attention_NL=torch.arange(wide)[None] < (start_N + length_N)[:, None],
        start_N=start_N,
        length_N=length_N,
        loss_mask_NT=loss_mask_NT,
        logp_old_NT=logp_old_NT,
        logp_ref_NT=torch.zeros_like(logp_old_NT),
        weight_NT=torch.zeros_like(logp_old_NT),
        temperature_N=torch.tensor([s.temperature for s in samples]),
        group_N=torch.tensor([g for g, group in enumerate(groups) for _ in group.samples]),
        keys=tuple(s.key for s in samples),
        sampled_NT=padded(chosen, long, torch.bool),
    )


def padded(rows: Sequence[Sequence[float]], wide: int, dtype: torch.dtype | None = None) -> Tensor:
    """Rows of numbers, zeros behind them: [N, wide]. One tensor is made of all of them: one for
    each row would cost more than a step.
    """
    length_N = torch.tensor([len(row) for row in rows])
    made = torch.zeros(len(rows), wide, dtype=dtype)
    made[torch.arange(wide) < length_N[:, None]] = torch.tensor(
        [number for row in rows for number in row], dtype=dtype
    )
    return made


def comparisons(groups: Sequence[Group]) -> Comparisons:
    """What rows of data say of their answers, an entry per sample.

    The rewards of such a group are its grades times the reliability w of its label: (w, -w) of a
    pair, -w, -2 w, ... of a ranking, 0 of an answer that is not compared. Its row may have a
    `margin` and a `soft_label`.
    """
    grade, weight, margin, flip = list[float](), list[float](), list[float](), list[float]()
    for group in groups:
        rewards = [reward or 0.0 for reward in group.rewards]
        w = min((abs(reward) for reward in rewards if reward), default=0.0)
        pair = max(rewards) > 0 > min(rewards)
        grade += [reward / w if reward else 0.0 for reward in rewards]
        weight += [w] * len(rewards)
        margin += [float(group.row.get("margin", 0.0)) if pair else 0.0] * len(rewards)
        flip += [1 - float(group.row.get("soft_label", 1.0)) if pair else 0.0] * len(rewards)
    return Comparisons.of(
        torch.tensor(grade),
        weight_N=torch.tensor(weight),
        margin_N=torch.tensor(margin),
        flip_N=torch.tensor(flip),
    )


def sampled_comparisons(grade_PG: Tensor) -> Comparisons:
    """Comparisons of samples with these grades, in float32: [P, G]. A group whose grades are all 0
    compares nothing.
    """
    some_P1 = (grade_PG != 0).any(1, keepdim=True)
    return Comparisons.of(
        grade_PG.flatten().float(), compared_N=some_P1.expand_as(grade_PG).flatten()
    )


def truncated(groups: Sequence[Group]) -> Tensor:
    """Which samples were cut off at the length limit: [P, G] bool."""
    return torch.tensor([[s.finish == "length" for s in group.samples] for group in groups])


def reward_matrix(groups: Sequence[Group]) -> Tensor:
    """[P, G] float64 rewards; NaN where a sample is excluded. Every group must hold the same number
    of samples.
    """
    return torch.tensor(
        [[float("nan") if r is None else r for r in group.rewards] for group in groups],
        dtype=torch.float64,
    )


def sample_rewards(batch: Batch, reward_PG: Tensor, kl_coef: float = 0.0) -> Tensor:
    """[P, G] float64: R - kl_coef * sum_t k1_t. The sum over sampled tokens is an unbiased estimate
    of the sequence's KL.

    A sample that is masked counts in its group's baseline, so its KL does, too.
    """
    return reward_PG - kl_coef * k1_of(batch, batch.drawn_NT).sum(1).view_as(reward_PG)


def token_rewards(batch: Batch, reward_PG: Tensor, kl_coef: float = 0.0) -> Tensor:
    """[N, T] float64: R at the last token of the completion, minus kl_coef * k1_t at every trained
    one.
    """
    return place_reward(
        reward_PG.reshape(-1), batch.length_N, batch.loss_mask_NT.shape[1]
    ) - kl_coef * k1_of(batch)


def k1_of(batch: Batch, mask_NT: Tensor | None = None) -> Tensor:
    """k1_t = log pi_old - log ref on the trained tokens, or on those of a mask, 0 elsewhere: [N, T]
    float64.
    """
    mask_NT = batch.loss_mask_NT if mask_NT is None else mask_NT
    return torch.where(mask_NT, batch.logp_old_NT - batch.logp_ref_NT, 0.0).double()
