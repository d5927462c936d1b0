"""Planted mistakes in the correction of what another sampler drew."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from laurel.core.sample import Batch
from laurel.objective import correction
from laurel.train import gap, loop, reference
from laurel.verify.correction import CAP
from laurel.verify.mutants import (
    Function,
    Mutant,
    changed_arguments,
    changed_result,
    replaced_by,
    swap_attribute,
)


def with_gradient(right: Function) -> Function:
    """`weigh` whose correction is a function of the policy that moves, not a number."""

    def wrong(*args: Any, **options: Any) -> Any:
        with (
            torch.enable_grad(),
            swap_attribute(Tensor, "detach", lambda x: x),
            # metrics of the gap are numbers made of tensors, which have a gradient here
            warnings.catch_warnings(action="ignore"),
        ):
            return right(*args, **options)

    return wrong


def keeps_the_sampler_s(right: Function) -> Function:
    """`with_own_logps` that measures and corrects, and leaves pi_old as it was."""

    def wrong(session: Any, batch: Batch, step: int, sums: Any) -> Any:
        found, factor_NT = right(session, batch, step, sums)
        return found.replace(logp_old_NT=batch.logp_old_NT), factor_NT

    return wrong


def mean_ratio(log_ratio_NT: Tensor, *, cap: float) -> Tensor:
    """`sequence_mask` by the geometric mean of a row's places."""
    mean_N1 = log_ratio_NT.mean(1, keepdim=True)
    return correction.token_truncate(mean_N1.expand_as(log_ratio_NT), cap=cap)


def keeps_outside(log_ratio_NT: Tensor, *, cap: float) -> Tensor:
    """`sequence_mask` that keeps the rows above the cap, and no other."""
    ratio_N1 = log_ratio_NT.sum(1, keepdim=True).exp()
    return torch.where(ratio_N1 > cap, ratio_N1, 0.0).expand_as(log_ratio_NT)


def by_position(right: Function) -> Function:
    """`drawn_logps` whose micro-batches have the keys of the batch's first rows."""

    def wrong(session: Any, batch: Batch, policy: Any, logp: Callable[..., Tensor]) -> Tensor:
        split = Batch.split

        def misnamed(self: Batch, *args: Any, **options: Any) -> Iterator[Batch]:
            for part in split(self, *args, **options):
                yield part.replace(keys=batch.keys[: len(part)])

        with swap_attribute(Batch, "split", misnamed):
            return right(session, batch, policy, logp)

    return wrong


SURROGATE = "token_truncate, C above all ratios: grad of the surrogate around mu"
CAPPED = f"token_truncate, C = {CAP:g}: grad of the surrogate around mu"

CORRECTED = (
    Mutant(
        "the importance ratio is inverted",
        correction.token_truncate,
        changed_arguments(log_ratio_NT=torch.neg),
        "corrected",
        f"reinforce: {SURROGATE}",
    ),
    Mutant(
        "the cap is on the log of the importance ratio",
        correction.token_truncate,
        replaced_by(lambda log_ratio_NT, *, cap: log_ratio_NT.clamp(max=cap).exp()),
        "corrected",
        f"reinforce: {CAPPED}",
    ),
    Mutant(
        "importance ratios have no cap",
        correction.token_truncate,
        changed_arguments(cap=lambda _: 1e9),
        "corrected",
        f"rloo: {CAPPED}",
    ),
    Mutant(
        "importance ratios are truncated from below, too",
        correction.token_truncate,
        changed_result(lambda factor_NT: factor_NT.clamp(min=1 / CAP)),
        "corrected",
        f"reinforce: {SURROGATE}",
    ),
    Mutant(
        "a gradient flows through the importance weight",
        loop.weigh,
        with_gradient,
        "corrected",
        f"reinforce: {SURROGATE}",
    ),
    Mutant(
        "the mask keeps the rows outside",
        correction.sequence_mask,
        replaced_by(keeps_outside),
        "corrected",
        "reinforce: sequence_mask: exactly the rows outside are out",
    ),
    Mutant(
        "a masked row keeps the weight of the cap",
        correction.sequence_mask,
        replaced_by(
            lambda log_ratio_NT, *, cap: (
                log_ratio_NT.sum(1, keepdim=True).exp().clamp(max=cap).expand_as(log_ratio_NT)
            )
        ),
        "corrected",
        f"reinforce: sequence_mask, C = {CAP:g}: of rows inside",
    ),
    Mutant(
        "a row's importance ratio is a geometric mean",
        correction.sequence_mask,
        replaced_by(mean_ratio),
        "corrected",
        "reinforce: sequence_mask, C above all ratios: grad J",
    ),
    Mutant(
        "pi_old is left at the sampler's",
        gap.with_own_logps,
        keeps_the_sampler_s,
        "corrected steps",
        "reinforce: LaurelError: step 1: trainer/trainer log-prob gap",
    ),
    Mutant(
        "the trainer's own log-probabilities join by position, not by key",
        reference.drawn_logps,
        by_position,
        "corrected steps",
        "reinforce: LaurelError: step 1: trainer/trainer log-prob gap",
    ),
    Mutant(
        "nothing is multiplied by the correction",
        gap.with_own_logps,
        changed_result(lambda found: (found[0], None)),
        "corrected steps",
        "ppo: another sampler, token_truncate, one step",
    ),
    Mutant(
        "answers above the cap are compared",
        gap.with_own_logps,
        lambda right: (
            lambda session, batch, step, sums: (
                right(session, batch, step, sums)[0].replace(loss_mask_NT=batch.loss_mask_NT),
                None,
            )
        ),
        "corrected steps",
        "online_dpo: another sampler, sequence_mask, one step",
    ),
)
"""In what another sampler's draws are multiplied by."""
