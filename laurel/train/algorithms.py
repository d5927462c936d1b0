"""The table: every algorithm is one row of choices for the same four stages.

It is the only place that knows what an algorithm's name means.
"""

from __future__ import annotations

from typing import Any

from laurel.core.algorithms import ABOUT
from laurel.objective import policy, preference, reward
from laurel.objective.discriminator import discriminate, discriminator_metrics
from laurel.objective.ilql import implicit_metrics, implicit_q
from laurel.objective.policy import clip, detached_ratio, likelihood, sequence_ratio
from laurel.objective.value import value_loss
from laurel.rollout.source import (
    DEMONSTRATIONS,
    LABELS,
    LOGGED,
    OUTCOMES,
    PAIRS,
    POLICY,
    POPULATION,
    RANKINGS,
    STEPS,
)
from laurel.train.adversary import ADVERSARIAL, side_targets
from laurel.train.auxiliary import load_critic, load_discriminator, load_heads
from laurel.train.relabel import HINDSIGHT
from laurel.train.row import Algorithm, Term, TrainedModel
from laurel.train.targets import labels, logged_rewards, reference_kl
from laurel.weight import group as weight
from laurel.weight.advantage import gae
from laurel.weight.population import search_gradient, shaped
from laurel.weight.token import whitened_return

REFERENCED = {"loss_aggregation": "comparison_mean", "learning_rate": 1e-6, "reference": "start"}
UNREFERENCED = {"loss_aggregation": "comparison_mean", "learning_rate": 1e-6}
SCORES: dict[str, Any] = {"loss_aggregation": "comparison_mean", "learning_rate": 1e-5}
PPO: dict[str, Any] = {
    "loss_aggregation": "token_mean",
    "num_generations": 1,
    "num_iterations": 2,
    "kl_placement": "reward",
    "beta": 0.05,
    "critic": "own",
    "critic_model": "policy",
    "critic_warmup_steps": 0,
    "missing_eos_penalty": 1.0,
    "bootstrap_truncated": False,
    "normalize_rewards": False,
    "reward_clip": 0.0,
    "kl_target": 0.0,
    "kl_horizon": 1000,
    "ptx_coef": 0.0,
    "ptx_dataset": None,
}
SCORER, STEP_SCORER = TrainedModel(head=1), TrainedModel(head=3)
WITH_CRITIC = TrainedModel(auxiliary="critic", load=load_critic)
WITH_HEADS = TrainedModel(auxiliary="heads", load=load_heads)
WITH_DISCRIMINATOR = TrainedModel(auxiliary="discriminator", load=load_discriminator)
CHOSEN = (Term(preference.chosen_nll, "comparison_mean"),)
IMITATED = (Term(reward.imitation, "comparison_mean", "imitation_coef"),)
VALUES = (Term(value_loss, "token_mean"),)

ROWS: dict[str, Algorithm] = {
    "sft": Algorithm(
        DEMONSTRATIONS,
        weight.raw,
        likelihood,
        {
            "loss_aggregation": "token_mean",
            "learning_rate": 2e-05,
            "max_length": 1024,
            "train_on": None,
        },
    ),
    "reinforce": Algorithm(
        POLICY,
        weight.raw,
        likelihood,
        {"loss_aggregation": "seq_mean_token_sum", "num_generations": 1, "kl_placement": "reward"},
    ),
    "reinforce_baseline": Algorithm(
        POLICY,
        weight.minus_baseline,
        likelihood,
        {"loss_aggregation": "seq_mean_token_sum", "num_generations": 1, "kl_placement": "reward"},
    ),
    "rloo": Algorithm(
        POLICY,
        weight.leave_one_out,
        likelihood,
        {"loss_aggregation": "seq_mean_token_sum", "kl_placement": "reward"},
        compares=True,
    ),
    "grpo": Algorithm(
        POLICY,
        weight.standardised,
        clip,
        {"loss_aggregation": "seq_mean_token_mean"},
        measure=policy.clip_fractions,
        compares=True,
    ),
    "dr_grpo": Algorithm(
        POLICY,
        weight.centred,
        clip,
        {"loss_aggregation": "token_sum_over_const"},
        measure=policy.clip_fractions,
        compares=True,
    ),
    "dapo": Algorithm(
        POLICY,
        weight.standardised,
        clip,
        {
            "loss_aggregation": "token_mean",
            "epsilon_high": 0.28,
            "dynamic_sampling": True,
            "mask_truncated_completions": True,
        },
        measure=policy.clip_fractions,
        compares=True,
    ),
    "gspo": Algorithm(
        POLICY,
        weight.standardised,
        sequence_ratio,
        {"loss_aggregation": "seq_mean_token_mean"},
        measure=policy.sequence_clip_fractions,
        compares=True,
    ),
    "cispo": Algorithm(
        POLICY,
        weight.standardised,
        detached_ratio,
        {"loss_aggregation": "token_mean", "scale_rewards": "batch"},
        measure=policy.cap_fractions,
        compares=True,
    ),
    "reinforce_pp": Algorithm(
        POLICY,
        whitened_return,
        clip,
        {"loss_aggregation": "token_mean", "num_generations": 1, "kl_placement": "reward"},
        measure=policy.clip_fractions,
    ),
    "raft": Algorithm(POLICY, weight.selected, likelihood, {"loss_aggregation": "token_mean"}),
    "hindsight": Algorithm(HINDSIGHT, weight.raw, likelihood, {"loss_aggregation": "token_mean"}),
    "es": Algorithm(POPULATION, shaped, search_gradient, {"loss_aggregation": "comparison_mean"}),
    "dpo": Algorithm(PAIRS, weight.raw, preference.dpo, REFERENCED, terms=CHOSEN),
    "cdpo": Algorithm(
        PAIRS,
        weight.raw,
        preference.dpo,
        {**REFERENCED, "label_smoothing": 0.1},
        terms=CHOSEN,
    ),
    "robust_dpo": Algorithm(PAIRS, weight.raw, preference.robust_dpo, REFERENCED, terms=CHOSEN),
    "ipo": Algorithm(PAIRS, weight.raw, preference.ipo, REFERENCED, terms=CHOSEN),
    "simpo": Algorithm(PAIRS, weight.raw, preference.simpo, UNREFERENCED, terms=CHOSEN),
    "orpo": Algorithm(PAIRS, weight.raw, preference.orpo, UNREFERENCED),
    "dpop": Algorithm(PAIRS, weight.raw, preference.dpop, REFERENCED, terms=CHOSEN),
    "kto": Algorithm(LABELS, weight.raw, preference.kto, REFERENCED, targets=reference_kl),
    "online_dpo": Algorithm(
        POLICY.without("kl_placement", "kl_estimator", "entropy_coef"),
        weight.best_and_worst,
        preference.dpo,
        {**REFERENCED, "num_generations": 2},
        terms=CHOSEN,
        compares=True,
    ),
    "rrhf": Algorithm(
        POLICY.without("beta", "reference", "kl_placement", "kl_estimator", "entropy_coef"),
        weight.raw,
        preference.rrhf,
        {"loss_aggregation": "comparison_mean", "num_generations": 4},
        compares=True,
    ),
    "ppo": Algorithm(
        POLICY, gae, clip, PPO, terms=VALUES, measure=policy.clip_fractions, trained=WITH_CRITIC
    ),
    "ppo_max": Algorithm(
        POLICY,
        gae,
        clip,
        {
            **PPO,
            "num_iterations": 1,
            "critic_model": "auto",
            "critic_warmup_steps": 10,
            "normalize_rewards": True,
            "reward_clip": 0.8,
        },
        terms=VALUES,
        measure=policy.clip_fractions,
        trained=WITH_CRITIC,
    ),
    "ilql": Algorithm(
        LOGGED,
        weight.raw,
        implicit_q,
        {
            "loss_aggregation": "token_mean",
            "learning_rate": 5e-05,
            "target_update": 0.005,
            "decode_beta": 1.0,
        },
        targets=logged_rewards,
        measure=implicit_metrics,
        trained=WITH_HEADS,
    ),
    "gail": Algorithm(
        ADVERSARIAL,
        weight.leave_one_out,
        likelihood,
        {
            "loss_aggregation": "seq_mean_token_sum",
            "kl_placement": "reward",
            "imitation_reward": "airl",
            "discriminator_rate": 1.0,
        },
        terms=(Term(discriminate, "row_mean"),),
        targets=side_targets,
        measure=discriminator_metrics,
        trained=WITH_DISCRIMINATOR,
        compares=True,
    ),
    "reward": Algorithm(
        RANKINGS,
        weight.raw,
        reward.bradley_terry,
        SCORES,
        terms=IMITATED,
        measure=reward.comparison_metrics,
        trained=SCORER,
    ),
    "reward_kwise": Algorithm(
        RANKINGS,
        weight.raw,
        reward.k_wise,
        SCORES,
        terms=IMITATED,
        measure=reward.comparison_metrics,
        trained=SCORER,
    ),
    "reward_pl": Algorithm(
        RANKINGS,
        weight.raw,
        reward.plackett_luce,
        SCORES,
        terms=IMITATED,
        measure=reward.comparison_metrics,
        trained=SCORER,
    ),
    "orm": Algorithm(
        OUTCOMES,
        weight.raw,
        reward.outcome,
        {**SCORES, "loss_aggregation": "token_mean"},
        targets=labels,
        measure=reward.outcome_metrics,
        trained=SCORER,
    ),
    "prm": Algorithm(
        STEPS,
        weight.raw,
        reward.process,
        {**SCORES, "loss_aggregation": "token_mean"},
        targets=labels,
        measure=reward.process_metrics,
        trained=STEP_SCORER,
    ),
}

ALGORITHMS: dict[str, Algorithm] = {name: ROWS[name] for name in ABOUT}
"""Every algorithm, in the order in which they are listed (`laurel.core.algorithms`)."""
