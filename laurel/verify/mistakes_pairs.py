"""Planted mistakes in comparisons: preferences and reward models."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.sample import Batch
from laurel.objective import preference, reward
from laurel.objective.unit import by_group
from laurel.reward import process
from laurel.train import binding
from laurel.verify.mutants import (
    Function,
    Mutant,
    changed_arguments,
    changed_columns,
    changed_record,
    changed_result,
    replaced_by,
    with_replaced,
)


def length_of_one(batch: Batch) -> Tensor:
    """In `length`'s place: 1 of every row."""
    return torch.ones(len(batch))


def count_ordered_pairs(score_NT: Tensor, batch: Batch) -> Tensor:
    """How many ordered pairs each group has: [P]."""
    return by_group(reward.better(batch).sum(1).to(score_NT.dtype), batch)


def smoothed_up(right: Function) -> Function:
    """`dpo` with (1 + eps) before the right side."""

    def wrong(logp_NT: Tensor, batch: Batch, *, label_smoothing: float = 0.0, **own: Any) -> Tensor:
        own_P, hard_P = (
            right(logp_NT, batch, label_smoothing=e, **own) for e in (label_smoothing, 0.0)
        )
        return own_P + 2 * label_smoothing * hard_P

    return wrong


def flips_added(right: Function) -> Function:
    """`robust_dpo` with a plus between its sides."""
    plain = inspect.unwrap(preference.dpo)
    return lambda logp_NT, batch, *, label_smoothing=0.1, **own: (
        plain(logp_NT, batch, label_smoothing=label_smoothing, **own) / (1 - 2 * label_smoothing)
    )


def hinge_on_the_right(right: Function) -> Function:
    """`rrhf` whose hinge is on pairs in the right order; the best is imitated as before."""

    def wrong(logp_NT: Tensor, batch: Batch, *, nll_weight: float = 1.0) -> Tensor:
        found: Any = batch.comparison
        upside_down = batch.replace(comparison=replace(found, grade_N=-found.grade_N))
        hinge_P = right(logp_NT, upside_down, nll_weight=0.0)
        return (
            hinge_P
            + right(logp_NT, batch, nll_weight=nll_weight)
            - right(logp_NT, batch, nll_weight=0.0)
        )

    return wrong


def over_all_pairs(right: Function) -> Function:
    """`k_wise` whose drawn pairs are divided by all there are."""

    def wrong(score_NT: Tensor, batch: Batch, *, pairs_per_prompt: int = 0, **own: Any) -> Tensor:
        all_P = count_ordered_pairs(score_NT, batch)
        share_P = (all_P.clamp(max=pairs_per_prompt) if pairs_per_prompt else all_P) / all_P.clamp(
            min=1
        )
        return right(score_NT, batch, pairs_per_prompt=pairs_per_prompt, **own) * share_P

    return wrong


def summed_pairs(right: Function) -> Function:
    """`k_wise` that divides by nothing."""
    return lambda score_NT, batch, **own: (
        right(score_NT, batch, **own) * count_ordered_pairs(score_NT, batch).clamp(min=1)
    )


def every_term(right: Function) -> Function:
    """`bind_row` with each further term where its option is 0, and only there."""

    def wrong(row: Any, config: Any, **more: Any) -> Any:
        off = {term.option: not getattr(config, term.option) for term in row.terms if term.option}
        turned = tuple(replace(term, option="") for term in row.terms if off.get(term.option))
        return right(replace(row, terms=turned), config, **more)

    return wrong


COMPARISONS = (
    Mutant(
        "the margin adds both sides",
        preference.margin,
        replaced_by(
            lambda logp_NT, batch: by_group(
                preference.grade(batch).abs() * preference.log_ratios(logp_NT, batch), batch
            )
        ),
        "steps",
        "dpo: one step, defaults",
    ),
    Mutant(
        "the margin forgets the reference",
        preference.log_ratios,
        changed_columns(logp_ref_NT=torch.zeros_like),
        "steps",
        "dpo: one step, defaults",
    ),
    Mutant(
        "the margin is a mean over tokens",
        preference.log_ratios,
        lambda right: lambda logp_NT, batch: right(logp_NT, batch) / logp_NT.shape[1],
        "steps",
        "dpo: one step, defaults",
    ),
    Mutant(
        "smoothing is not taken from the right side",
        preference.dpo,
        smoothed_up,
        "steps",
        "cdpo: one step, defaults",
    ),
    Mutant(
        "flips are added, not taken away",
        preference.robust_dpo,
        flips_added,
        "steps",
        "robust_dpo: one step, defaults",
    ),
    Mutant(
        "IPO's target is 1 / beta",
        preference.ipo,
        changed_arguments(beta=lambda beta: beta / 2),
        "steps",
        "ipo: one step, defaults",
    ),
    Mutant(
        "SimPO sums over tokens",
        preference.simpo,
        with_replaced(preference, "length", length_of_one),
        "steps",
        "simpo: one step, defaults",
    ),
    Mutant(
        "ORPO compares log-probabilities, not odds",
        preference.orpo,
        with_replaced(preference, "log1mexp", torch.zeros_like),
        "steps",
        "orpo: one step, defaults",
    ),
    Mutant(
        "DPOP rewards the fall",
        preference.dpop,
        changed_arguments(dpop_lambda=lambda lam: -lam),
        "steps",
        "dpop: one step, beta=0.7, dpop_lambda=2.0",
    ),
    Mutant(
        "KTO's reference point is 0",
        preference.kto,
        changed_record("comparison", reference_kl_N=torch.zeros_like),
        "steps",
        "kto: one step, defaults",
    ),
    Mutant(
        "KTO's weights are exchanged",
        preference.kto,
        lambda right: (
            lambda *a, desirable_weight=1.0, undesirable_weight=1.0, **own: right(
                *a, desirable_weight=undesirable_weight, undesirable_weight=desirable_weight, **own
            )
        ),
        "steps",
        "kto: one step, beta=0.7, desirable_weight=1.3",
    ),
    Mutant(
        "the ranking hinge is on the right order",
        preference.rrhf,
        hinge_on_the_right,
        "steps",
        "rrhf: one step, defaults",
    ),
    Mutant(
        "every equal best is imitated",
        preference.rrhf,
        with_replaced(torch, "arange", lambda n, **how: torch.zeros(n, **how)),
        "steps",
        "rrhf: one step, defaults",
    ),
    Mutant(
        "the chosen answer's likelihood is a sum",
        preference.chosen_nll,
        with_replaced(preference, "length", length_of_one),
        "steps",
        "dpo: one step, beta=0.7, rpo_alpha=0.4",
    ),
    Mutant(
        "the score is read one token early",
        reward.last_score,
        changed_columns(length_N=lambda n: n - 1),
        "steps",
        "reward: one step, defaults",
    ),
    Mutant(
        "the margin is added to the gap",
        reward.bradley_terry,
        changed_record("comparison", margin_N=torch.neg),
        "steps",
        "reward: one step, defaults",
    ),
    Mutant(
        "centring forgets the square",
        reward.bradley_terry,
        with_replaced(Tensor, "square", Tensor.abs),
        "steps",
        "reward: one step, label_smoothing=0.1, center_rewards_coefficient=0.2",
    ),
    Mutant(
        "a ranking counts all its pairs",
        reward.k_wise,
        summed_pairs,
        "steps",
        "reward_kwise: one step, defaults",
    ),
    Mutant(
        "a sample of pairs is divided by all of them",
        reward.k_wise,
        over_all_pairs,
        "steps",
        "reward_kwise: one step, pairs_per_prompt=1",
    ),
    Mutant(
        "lambda is forgotten",
        reward.k_wise,
        changed_arguments(reward_coef=lambda _: 1.0),
        "steps",
        "reward_kwise: one step, pairs_per_prompt=2, imitation_coef=0.4, reward_coef=2.0",
    ),
    Mutant(
        "the first pairs are taken, not a sample",
        reward.some_pairs,
        with_replaced(reward, "sorted", list),
        "steps",
        "reward_kwise: one step, pairs_per_prompt=2, imitation_coef=0.4, reward_coef=2.0",
    ),
    Mutant(
        "the best is chosen among all, again and again",
        reward.plackett_luce,
        with_replaced(
            reward, "better", lambda batch, better=reward.better: better(batch) | better(batch).T
        ),
        "steps",
        "reward_pl: one step, defaults",
    ),
    Mutant(
        "the outcome is said the wrong way round",
        reward.outcome,
        changed_columns(label_NT=lambda y: 1 - y),
        "steps",
        "orm: one step, defaults",
    ),
    Mutant(
        "step labels are shifted by one class",
        reward.step_class,
        changed_result(lambda i: (i + 1).clamp(max=2)),
        "steps",
        "prm: one step, defaults",
    ),
    Mutant(
        "the worst answer is imitated",
        reward.best,
        replaced_by(lambda batch: reward.better(batch).any(0) & ~reward.better(batch).any(1)),
        "steps",
        "reward: one step, imitation_coef=0.7, reward_coef=0.5",
    ),
    Mutant(
        "imitation is a sum over tokens",
        reward.imitation,
        lambda right: (
            lambda logp_NT, batch, **own: right(
                logp_NT * batch.loss_mask_NT.sum(1, keepdim=True), batch, **own
            )
        ),
        "steps",
        "reward: one step, imitation_coef=0.7, reward_coef=0.5",
    ),
    Mutant(
        "a term is used where its option is 0",
        binding.bind_row,
        every_term,
        "steps",
        "reward: one step, imitation_coef=0.7, reward_coef=0.5",
    ),
    Mutant(
        "reliability is ignored",
        reward.reliability,
        changed_result(torch.ones_like),
        "steps",
        "reward: one step, defaults",
    ),
    Mutant(
        "a right step counts as a wrong one",
        process.step_soundness,
        changed_arguments(score_SC=lambda s: s.flip(1)),
        "process",
        "prm: as a reward: the product is P(no step is wrong)",
    ),
    Mutant(
        "steps are added, not multiplied",
        process.product,
        replaced_by(torch.sum),
        "process",
        "prm: as a reward: the product is P(no step is wrong)",
    ),
)
"""In preferences and reward models."""
