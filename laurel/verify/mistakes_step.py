"""Planted mistakes in what becomes of rewards, and in the objectives of a policy."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from laurel.core.sample import Batch
from laurel.objective import kl, policy, unit
from laurel.verify.mutants import (
    Function,
    Mutant,
    changed_arguments,
    changed_result,
    replaced_by,
    with_replaced,
)
from laurel.weight import advantage, control, group, shape, token


def same(x: Tensor) -> Tensor:
    """The identity."""
    return x


def mean_of_all(reward_PG: Tensor) -> Tensor:
    """`centred` by the batch's mean."""
    useful_PG = ~reward_PG.isnan() & group.informative(reward_PG)[:, None]
    return torch.where(useful_PG, reward_PG - reward_PG.nanmean(), 0.0)


def mean_with_zeros(reward_PG: Tensor) -> Tensor:
    """`centred` by a mean in which who was not judged has 0."""
    useful_PG = ~reward_PG.isnan() & group.informative(reward_PG)[:, None]
    return torch.where(useful_PG, reward_PG - reward_PG.nan_to_num(0.0).mean(1, keepdim=True), 0.0)


def spread_over_n(right: Function) -> Function:
    """`spread` over n, not n - 1."""

    def wrong(reward_PG: Tensor) -> Tensor:
        n_P1 = (~reward_PG.isnan()).sum(1, keepdim=True)
        return right(reward_PG) * ((n_P1 - 1).clamp(min=1) / n_P1.clamp(min=1)).sqrt()

    return wrong


def product_of_ratios(logp_NT: Tensor, batch: Batch) -> Tensor:
    """`sequence_log_ratio` as a sum."""
    total_N1 = policy.log_ratio(logp_NT, batch).sum(1, keepdim=True)
    return unit.trained(total_N1.expand_as(logp_NT), batch)


def whiten_with_padding(right: Function) -> Function:
    """`whiten` by mean and spread of every slot."""
    return lambda x_NT, mask_NT, **how: torch.where(
        mask_NT, right(x_NT, torch.ones_like(mask_NT), **how), 0.0
    )


CUT = "ppo: cut off after one token, bootstrapped: the critic is pulled to V"

WEIGHTS = (
    Mutant(
        "the mean is the batch's, not the group's",
        group.centred,
        replaced_by(mean_of_all),
        "steps",
        "rloo: one step, defaults",
    ),
    Mutant(
        "leave-one-out forgets n/(n-1)",
        group.leave_one_out,
        replaced_by(group.centred),
        "steps",
        "rloo: one step, defaults",
    ),
    Mutant(
        "the spread divides by n", group.spread, spread_over_n, "steps", "grpo: one step, defaults"
    ),
    Mutant(
        "the batch's spread is used for the group's",
        group.standardised,
        changed_arguments(scale_rewards=lambda how: "batch" if how == "group" else how),
        "steps",
        "grpo: one step, defaults",
    ),
    Mutant(
        "the baseline is added",
        group.minus_baseline,
        changed_arguments(running_mean=lambda b: -b),
        "steps",
        "reinforce_baseline: one step, defaults",
    ),
    Mutant(
        "the worst is selected, not the best",
        group.selected,
        lambda right: (
            lambda r, keep="best", bar=1.0: right(-r if keep == "best" else r, keep=keep, bar=bar)
        ),
        "steps",
        "raft: one step, defaults",
    ),
    Mutant(
        "an unjudged sample counts as a zero",
        group.centred,
        replaced_by(mean_with_zeros),
        "steps",
        "rloo: one step, defaults",
    ),
    Mutant(
        "the pair is turned round",
        group.best_and_worst,
        changed_result(torch.neg),
        "steps",
        "online_dpo: one step, defaults",
    ),
    Mutant(
        "equal rewards are not recognised",
        group.informative,
        replaced_by(lambda reward_PG: torch.ones(len(reward_PG), dtype=torch.bool)),
        "identities",
        "dr_grpo: thirty equal rewards: weights exactly 0",
    ),
    Mutant(
        "the overlong penalty is a bonus",
        shape.overlong,
        changed_result(torch.abs),
        "steps",
        "dapo: one step, epsilon_high=0.5, overlong_buffer=1",
    ),
    Mutant(
        "the reward stands on the first padding",
        token.place_reward,
        changed_arguments(length_N=lambda n: n + 1),
        "steps",
        "ppo: one step, defaults",
    ),
    Mutant(
        "rewards are not carried back to earlier tokens",
        token.return_to_go,
        changed_arguments(gamma=lambda _: 0.0),
        "identities",
        "gae: B2: lambda = 1 is R - V(state)",
    ),
    Mutant(
        "a row that was cut off is worth nothing behind its end",
        advantage.bootstrapped,
        changed_result(lambda found: (found[0], 0 * found[1])),
        "critic",
        CUT,
    ),
    Mutant(
        "a row that was cut off is paid its reward, too",
        advantage.bootstrapped,
        lambda right: lambda R, V, cut: (R, right(R, V, cut)[1]),
        "critic",
        CUT,
    ),
    Mutant(
        "a finished row is bootstrapped",
        advantage.bootstrapped,
        lambda right: lambda R, V, cut: (right(R, V, cut)[0], V),
        "critic",
        CUT,
    ),
    Mutant(
        "whitening looks at padding",
        token.whiten,
        whiten_with_padding,
        "steps",
        "reinforce_pp: one step, defaults",
    ),
    Mutant(
        "whitening keeps the mean",
        token.whiten,
        changed_arguments(shift_mean=lambda _: False),
        "steps",
        "reinforce_pp: one step, defaults",
    ),
    Mutant(
        "the value after the last token is not 0",
        advantage.gae,
        lambda right: lambda r, v, mask, **o: right(r, v, mask, torch.ones_like(v[:, 0]), **o),
        "steps",
        "ppo: one step, defaults",
    ),
    Mutant(
        "the advantage forgets the value of now",
        advantage.gae,
        changed_result(lambda found: (found[1], found[1])),
        "steps",
        "ppo: one step, defaults",
    ),
    Mutant(
        "lambda discounts the rewards",
        advantage.gae,
        lambda right: lambda *a, gamma=1.0, lam=0.95: right(*a, gamma=gamma * lam, lam=1.0),
        "steps",
        "ppo: one step, defaults",
    ),
    Mutant(
        "returns are advantages",
        advantage.gae,
        changed_result(lambda found: (found[0], found[0])),
        "critic",
        "ppo: the critic is pulled to V of the policy: visits (V - V_now)",
    ),
    Mutant(
        "normalised scores are not clipped",
        control.Moments.normalise,
        changed_arguments(clip=lambda _: 0.0),
        "steps",
        "ppo_max: one step, defaults",
    ),
    Mutant(
        "scores are normalised by their sum of squares",
        control.Moments.normalise,
        changed_arguments(
            self=lambda seen: replace(seen, square=seen.square**2 * (seen.count - 1))
        ),
        "steps",
        "ppo_max: one step, defaults",
    ),
    Mutant(
        "the missing end is rewarded",
        control.missing_eos,
        replaced_by(
            lambda reward_N, truncated_N, missing_eos_penalty=1.0: torch.where(
                truncated_N, reward_N + missing_eos_penalty, reward_N
            )
        ),
        "steps",
        "ppo: one step, defaults",
    ),
)
"""In what becomes of rewards."""

OBJECTIVES = (
    Mutant(
        "the likelihood's sign is flipped",
        policy.likelihood,
        changed_result(torch.neg),
        "steps",
        "sft: one step, defaults",
    ),
    Mutant(
        "the loss mask is dropped",
        unit.trained,
        replaced_by(lambda x_NT, batch: x_NT),
        "invariances",
        "online_dpo: rubbish in the padding",
    ),
    Mutant(
        "the pessimistic minimum becomes a maximum",
        policy.surrogate,
        with_replaced(torch, "minimum", torch.maximum),
        "steps",
        "grpo: one step off, defaults",
    ),
    Mutant(
        "clip bounds are exchanged",
        policy.surrogate,
        lambda right: lambda ratio_NT, weight_NT, low, high: right(ratio_NT, weight_NT, high, low),
        "steps",
        "dapo: one step off, defaults",
    ),
    Mutant(
        "nothing is clipped",
        policy.surrogate,
        replaced_by(lambda ratio_NT, weight_NT, low, high: ratio_NT * weight_NT),
        "steps",
        "grpo: one step off, defaults",
    ),
    Mutant(
        "the ratio is inverted",
        policy.log_ratio,
        changed_result(torch.neg),
        "steps",
        "grpo: one step, defaults",
    ),
    Mutant(
        "the dual clip hits positive weights",
        policy.clip,
        with_replaced(Tensor, "__lt__", Tensor.__gt__),
        "steps",
        "grpo: one step, delta=1.5",
    ),
    Mutant(
        "the sequence ratio is a product, not a geometric mean",
        policy.sequence_log_ratio,
        replaced_by(product_of_ratios),
        "steps",
        "gspo: one step, defaults",
    ),
    Mutant(
        "the detached ratio is not detached",
        policy.detached_ratio,
        with_replaced(Tensor, "detach", same),
        "steps",
        "cispo: one step, defaults",
    ),
    Mutant(
        "the ratio's cap is missing",
        policy.detached_ratio,
        changed_arguments(epsilon_high=lambda _: math.inf),
        "steps",
        "cispo: one step off, epsilon_high=1.1, scale_rewards=group",
    ),
    Mutant(
        "k3 in the loss has no ratio",
        kl.kl_loss,
        with_replaced(kl, "log_ratio", lambda logp_NT, batch: torch.zeros_like(logp_NT)),
        "steps",
        "grpo: one step, beta=0.3",
    ),
    Mutant(
        "k2 in the loss differentiates the ratio",
        kl.kl_loss,
        with_replaced(Tensor, "detach", same),
        "steps",
        "grpo: one step, beta=0.3, kl_estimator=k2",
    ),
    Mutant(
        "the exact KL is the forward one",
        kl.exact_kl,
        lambda right: lambda logp, logp_ref: right(logp_ref, logp),
        "steps",
        "grpo: one step, beta=0.3, kl_estimator=exact",
    ),
)
"""In objectives of the policy."""
