"""Planted mistakes in the loop, its units and its batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.sample import Batch
from laurel.fast import logprob
from laurel.model import policy as model
from laurel.objective import kl, unit
from laurel.rollout import pack
from laurel.train import loop, reference
from laurel.verify.mutants import (
    Function,
    Mutant,
    changed_arguments,
    changed_result,
    replaced_by,
    swap_attribute,
    with_replaced,
)
from laurel.verify.world import Recorder


def by_position(right: Function) -> Function:
    """`reference.compute_reference` whose micro-batches have the keys of the batch's first rows."""

    def wrong(setup: Any, batch: Batch) -> Tensor:
        split = batch.split

        def misnamed(self: Batch, *args: Any, **options: Any) -> Iterator[Batch]:
            for part in split(*args, **options):
                yield part.replace(keys=batch.keys[: len(part)])

        with swap_attribute(Batch, "split", misnamed):
            return right(setup, batch)

    return wrong


def keep_positive_weights(right: Function) -> Function:
    """`with_signal` that keeps rows with a positive weight."""

    def wrong(setup: Any, batch: Batch) -> Batch:
        kept = right(setup, batch)
        return (
            kept
            if setup.by_comparison
            else kept.rows((kept.weight_NT.amax(1) > 0).nonzero()[:, 0].tolist())
        )

    return wrong


def reverse_weights(batch: Batch) -> Batch:
    """Weights of the rows of each group in reverse order."""
    order = torch.arange(len(batch))
    for which in batch.group_N.unique():
        own = (batch.group_N == which).nonzero()[:, 0]
        order[own] = own.flip(0)
    return batch.replace(weight_NT=batch.weight_NT[order])


def positions_one_late(right: Function) -> Function:
    """`trained_positions` one to the right, where there is a token to predict."""

    def wrong(batch: Batch) -> tuple[Tensor, ...]:
        rows, times, at = right(batch)
        return rows, times, (at + 1).clamp(max=batch.ids_NL.shape[1] - 2)

    return wrong


def divide_by_batch_width(right: Function) -> Function:
    """`token_sum_over_const` over the batch's width."""
    return lambda batch, max_completion_length: right(
        batch, max_completion_length=batch.loss_mask_NT.shape[1]
    )


LOOP = (
    Mutant(
        "a row is divided by the padded width",
        unit.seq_mean_token_mean,
        replaced_by(
            lambda batch: unit.Unit(
                batch.loss_mask_NT / batch.loss_mask_NT.shape[1], unit.rows(batch)
            )
        ),
        "steps",
        "sft: one step, loss_aggregation=seq_mean_token_mean",
    ),
    Mutant(
        "the token mean counts padding",
        unit.token_mean,
        changed_result(lambda found: unit.Unit(found.weight, torch.tensor(found.weight.numel()))),
        "steps",
        "sft: one step, defaults",
    ),
    Mutant(
        "rows without a trained token are counted",
        unit.rows,
        replaced_by(lambda batch: torch.tensor(len(batch))),
        "steps",
        "rloo: one step, defaults",
    ),
    Mutant(
        "the constant length is the padded width",
        unit.token_sum_over_const,
        divide_by_batch_width,
        "steps",
        "dr_grpo: one step, max_completion_length=5",
    ),
    Mutant(
        "comparisons of nothing are counted",
        unit.comparison_mean,
        changed_result(lambda found: unit.Unit(found.weight, torch.tensor(len(found.weight)))),
        "invariances",
        "dpo: a long row that nobody judged: more padding",
    ),
    Mutant(
        "whole rows are counted twice",
        unit.row_mean,
        changed_result(lambda found: unit.Unit(found.weight, 2 * found.count)),
        "told",
        "gail: elsewhere it is pulled by (pi_E (1 - D) - pi D) / 2",
    ),
    Mutant(
        "each micro-batch divides by its own count",
        unit.reduce_loss,
        lambda right: lambda values, own, total: right(values, own, own.count),
        "invariances",
        "sft: micro-batches of 9 tokens instead of one",
    ),
    Mutant(
        "silent rows leave before they are counted",
        loop.update,
        lambda right: (
            lambda setup, state, batch, sums: right(
                setup, state, loop.with_signal(setup, batch), sums
            )
        ),
        "steps",
        "raft: one step, defaults",
    ),
    Mutant(
        "rows with a negative weight are left out",
        loop.with_signal,
        keep_positive_weights,
        "steps",
        "reinforce: one step, defaults",
    ),
    Mutant(
        "rows of no advantage teach the critic nothing",
        loop.with_signal,
        changed_arguments(session=lambda setup: replace(setup, auxiliary=None)),
        "critic",
        "ppo: the critic is pulled to V of the policy: visits (V - V_now)",
    ),
    Mutant(
        "the reference joins by position, not by key",
        reference.compute_reference,
        by_position,
        "steps",
        "reinforce: one step, beta=0.3",
    ),
    Mutant(
        "the last micro-batch is lost",
        Batch.split,
        lambda right: lambda *args, **how: list(right(*args, **how))[:-1],
        "steps",
        "sft: one step, defaults",
    ),
    Mutant(
        "micro-batches part a pair",
        Batch.split,
        changed_arguments(whole_groups=lambda _: False),
        "invariances",
        "rrhf: micro-batches of 9 tokens instead of one",
    ),
    Mutant(
        "gradients of one pass stay for the next",
        loop.optimizer_step,
        with_replaced(Recorder, "zero_grad", lambda *args, **how: None),
        "steps",
        "reinforce: one step off, defaults",
    ),
    Mutant(
        "the temperature is forgotten",
        logprob.token_logprobs,
        changed_arguments(temperature_M=torch.ones_like),
        "steps",
        "reinforce: LaurelError: step 1: sampler/trainer log-prob gap",
    ),
    Mutant(
        "the prediction is read one position late",
        model.trained_positions,
        positions_one_late,
        "steps",
        "sft: one step, defaults",
    ),
    Mutant(
        "KL is added to the loss with a minus",
        loop.penalty_terms,
        with_replaced(loop, "kl_loss", lambda *args, **how: -kl.kl_loss(*args, **how)),
        "steps",
        "grpo: one step, beta=0.3",
    ),
    Mutant(
        "entropy is punished, not rewarded",
        loop.penalty_terms,
        changed_arguments(outputs=lambda outputs: replace(outputs, entropy_NT=-outputs.entropy_NT)),
        "steps",
        "rloo: one step, entropy_coef=0.2",
    ),
    Mutant(
        "KL in the reward is a bonus",
        pack.sample_rewards,
        changed_arguments(kl_coef=lambda beta: -beta),
        "steps",
        "reinforce: one step, beta=0.3",
    ),
    Mutant(
        "KL in the reward is averaged over tokens",
        pack.sample_rewards,
        replaced_by(
            lambda batch, reward_PG, kl_coef=0.0: (
                reward_PG - kl_coef * pack.k1_of(batch).mean(1).view_as(reward_PG)
            )
        ),
        "steps",
        "reinforce: one step, beta=0.3",
    ),
    Mutant(
        "k1 is measured on padding, too",
        pack.k1_of,
        lambda right: lambda batch, *mask: right(batch, *mask) + (~batch.loss_mask_NT).double(),
        "steps",
        "reinforce: one step, beta=0.3",
    ),
    Mutant(
        "truncated rows are trained on",
        pack.pack,
        changed_arguments(mask_truncated=lambda _: False),
        "steps",
        "dapo: one step, defaults",
    ),
    Mutant(
        "rewards of a group are read backwards",
        pack.reward_matrix,
        changed_result(lambda r: r.flip(1)),
        "steps",
        "rloo: one step, defaults",
    ),
    Mutant(
        "weights of a group's samples are exchanged",
        loop.weigh,
        changed_result(reverse_weights),
        "steps",
        "rloo: one step, defaults",
    ),
    Mutant(
        "advantages are not whitened",
        loop.weigh,
        with_replaced(loop, "whiten", lambda x_NT, mask_NT: x_NT),
        "steps",
        "ppo: one step, defaults",
    ),
)
"""In the loop, its units and its batches."""
