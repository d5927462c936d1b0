"""Lists -> tensors, in one place: samples become a Batch, rewards a matrix, grades comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from laurel.core.sample import NOT_SAMPLED, Batch, Comparisons, Group, Sample
from laurel.weight.token import place_reward


def pack(groups: Sequence[Group], *, mask_truncated: bool = False) -> Batch:
    """Groups -> Batch of N rows, group after group, padded on the right.

    Weights and log ref are still zero. Rows that no reward could judge (reward None), and with
    `mask_truncated` rows cut off at the length limit, keep their place but lose their loss mask:
    they are neither trained on nor counted. The policy drew them all the same (`sampled_NT`).
    """
    samples = [sample for group in groups for sample in group.samples]
    tokens = token_columns(samples)
    long = max(len(sample.completion_ids) for sample in samples)
    logp_old_NT = pad_rows([sample.logps for sample in samples], long)
    loss_mask_NT = pad_rows([sample.loss_mask for sample in samples], long, torch.bool)
    counted_N = torch.tensor(is_trained_on(groups, mask_truncated))
    which = [g for g, group in enumerate(groups) for _ in group.samples]
    return Batch(
        **tokens,
        loss_mask_NT=loss_mask_NT & counted_N[:, None],
        logp_old_NT=logp_old_NT,
        logp_ref_NT=torch.zeros_like(logp_old_NT),
        weight_NT=torch.zeros_like(logp_old_NT),
        temperature_N=torch.tensor([sample.temperature for sample in samples]),
        group_N=torch.tensor(which),
        keys=tuple(sample.key for sample in samples),
        sampled_NT=pad_rows([sampled_mask(sample) for sample in samples], long, torch.bool),
    )


def token_columns(samples: Sequence[Sample]) -> dict[str, Any]:
    """The tokens of prompts and completions, which of them exist, and where completions lie."""
    rows = [sample.prompt_ids + sample.completion_ids for sample in samples]
    wide = max(len(row) for row in rows)
    start_N = torch.tensor([len(sample.prompt_ids) for sample in samples])
    length_N = torch.tensor([len(sample.completion_ids) for sample in samples])
    end_N1 = (start_N + length_N)[:, None]
    return {
        "ids_NL": pad_rows(rows, wide, torch.long),
        "attention_NL": torch.arange(wide)[None] < end_N1,
        "start_N": start_N,
        "length_N": length_N,
    }


def is_trained_on(groups: Sequence[Group], mask_truncated: bool) -> list[bool]:
    """Is each sample trained on: judged by a reward, and with `mask_truncated` not cut off?"""
    found: list[bool] = []
    for group in groups:
        rewards = group.rewards or (0.0,) * len(group.samples)
        for sample, reward in zip(group.samples, rewards, strict=True):
            cut = mask_truncated and sample.finish == "length"
            found.append(reward is not None and not cut)
    return found


def sampled_mask(sample: Sample) -> tuple[bool, ...]:
    """The tokens that the policy chose: none of a demonstration."""
    if sample.key.version == NOT_SAMPLED:
        return (False,) * len(sample.loss_mask)
    return sample.loss_mask


def pad_rows(
    rows: Sequence[Sequence[float]], wide: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Rows of numbers, zeros behind them: [N, wide]."""
    length_N = torch.tensor([len(row) for row in rows])
    numbers = [number for row in rows for number in row]
    there_NT = torch.arange(wide) < length_N[:, None]
    made_NT = torch.zeros(len(rows), wide, dtype=dtype)
    # one tensor of all numbers, laid out by the mask: one for each row would cost more than a step
    made_NT[there_NT] = torch.tensor(numbers, dtype=dtype)
    return made_NT


def comparisons(groups: Sequence[Group]) -> Comparisons:
    """What rows of data say of their answers, an entry per sample.

    The rewards of such a group are its grades times the reliability w of its label: (w, -w) of a
    pair, -w, -2 w, ... of a ranking, 0 of an answer that is not compared. Its row may have a
    `margin` and a `soft_label`.
    """
    grades: list[float] = []
    weights: list[float] = []
    margins: list[float] = []
    flips: list[float] = []
    for group in groups:
        rewards = [reward or 0.0 for reward in group.rewards]
        size = len(rewards)
        # the smallest grade is +1 or -1, so the smallest reward is w
        w = min((abs(reward) for reward in rewards if reward), default=0.0)
        grades += [reward / w if reward else 0.0 for reward in rewards]
        weights += [w] * size
        pair = max(rewards) > 0 > min(rewards)
        row: Mapping[str, Any] = group.row if pair else {}
        margins += [float(row.get("margin", 0.0))] * size
        flips += [1 - float(row.get("soft_label", 1.0))] * size
    return Comparisons.of(
        torch.tensor(grades),
        weight_N=torch.tensor(weights),
        margin_N=torch.tensor(margins),
        flip_N=torch.tensor(flips),
    )


def sampled_comparisons(grade_PG: Tensor, chance_PG: Tensor | None = None) -> Comparisons:
    """Comparisons of samples with these grades, in float32: [P, G].

    A group whose grades are all 0 compares nothing. chance_PG: of each sample the mean P(better)
    against the others of its group, as a judge of pairs gives it. Then the label is soft:

        soft_label = (1 + chance of the chosen - chance of the rejected) / 2

    For G = 2 it is the judge's own P(chosen better).
    """
    some_P1 = (grade_PG != 0).any(1, keepdim=True)
    compared_PG = some_P1.expand_as(grade_PG)
    flip_N = None
    if chance_PG is not None:
        gap_P1 = (chance_PG.nan_to_num() * grade_PG).sum(1, keepdim=True)
        flip_P1 = torch.where(some_P1, (1 - gap_P1) / 2, 0.0)
        flip_N = flip_P1.expand_as(grade_PG).flatten().float()
    return Comparisons.of(
        grade_PG.flatten().float(),
        compared_N=compared_PG.flatten(),
        flip_N=flip_N,
    )


def truncated(groups: Sequence[Group]) -> Tensor:
    """Which samples were cut off at the length limit: [P, G] bool."""
    cut = [[sample.finish == "length" for sample in group.samples] for group in groups]
    return torch.tensor(cut)


def reward_matrix(groups: Sequence[Group]) -> Tensor:
    """The rewards, NaN where a sample is excluded: [P, G] float64. All groups are of one size."""
    nan = float("nan")
    rewards = [[nan if r is None else r for r in group.rewards] for group in groups]
    return torch.tensor(rewards, dtype=torch.float64)


def sample_rewards(batch: Batch, reward_PG: Tensor, kl_coef: float = 0.0) -> Tensor:
    """R - kl_coef * sum_t k1_t: [P, G] float64.

    The sum over sampled tokens is an unbiased estimate of the sequence's KL. A sample that is
    masked counts in its group's baseline, so its KL does, too.
    """
    kl_N = k1_of(batch, batch.drawn_NT).sum(1)
    return reward_PG - kl_coef * kl_N.view_as(reward_PG)


def token_rewards(batch: Batch, reward_PG: Tensor, kl_coef: float = 0.0) -> Tensor:
    """The reward of every token, R less the KL penalty: [N, T] float64.

    R counts at the last token of the completion, -kl_coef * k1_t at every trained one.
    """
    T = batch.loss_mask_NT.shape[1]
    reward_NT = place_reward(reward_PG.reshape(-1), batch.length_N, T)
    return reward_NT - kl_coef * k1_of(batch)


def k1_of(batch: Batch, mask_NT: Tensor | None = None) -> Tensor:
    """k1_t on trained tokens (or those of a mask), 0 elsewhere: [N, T] float64.

    k1_t = log pi_old - log ref
    """
    if mask_NT is None:
        mask_NT = batch.loss_mask_NT
    k1_NT = batch.logp_old_NT - batch.logp_ref_NT
    return torch.where(mask_NT, k1_NT, 0.0).double()
