"""The table: every algorithm is one row of choices for the same four stages. The only place that
knows an algorithm's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from laurel.objective import preference, reward
from laurel.objective.discriminator import discriminate, discriminator_metrics
from laurel.objective.implicit import implicit_metrics, implicit_q
from laurel.objective.policy import clip, detached_ratio, likelihood, sequence_ratio
from laurel.objective.value import value_loss
from laurel.train.adversary import judged, told_apart, with_demonstrations
from laurel.train.aim import kl_point, labels, told
from laurel.train.relabel import hindsight
from laurel.weight import group as weight
from laurel.weight.advantage import gae
from laurel.weight.population import search_gradient, shaped
from laurel.weight.token import whitened_return


@dataclass(frozen=True)
class Term:
    """One more term of the loss: `objective`, which brings its own coefficient, reduced over
    `unit`; left out where `option` is 0.
    """

    objective: Callable[..., Any]
    unit: str
    option: str = ""


@dataclass(frozen=True)
class Algorithm:
    """x from `source`, R -> A by `weigh` (one weight per sample, or per token with credit="token"
    or "critic"), L = `objective`.

    `defaults` are this row's values of options; every other default stands in the signature of the
    function that uses it. `compares` says that the weights of a group's samples depend on each
    other, so a group needs two. `aim` fills the batch's targets from the policy as it is now;
    `terms` are added to the loss; `without` are options of its source that make no sense here.
    source: rows of data as they are (data), as preference pairs, as answers labelled good or bad,
    as rankings, outcomes or steps to be scored, logged with their reward, samples of the policy, or
    of its parameters (`laurel.train.evolve`). `head`: how many numbers a scorer's head gives (0: a
    language model is trained); `measure` are its metrics. `beside` names what is trained beside the
    policy (`laurel.train.auxiliary`). `judge` scores sampled groups in place of the
    configuration's rewards; `revise` changes scored groups before they are packed; `off_policy`
    says that they then no longer are what the policy drew, so no ratio is looked at.
    `use`: what its rows of data must hold (USES in `laurel.data.formats`), where its source does
    not say it.
    """

    about: str
    source: Literal[
        "data", "pairs", "labels", "rankings", "outcomes", "steps", "logged", "policy", "parameters"
    ]
    weigh: Callable[..., Any]
    objective: Callable[..., Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    credit: Literal["sample", "token", "critic"] = "sample"
    compares: bool = False
    terms: tuple[Term, ...] = ()
    without: tuple[str, ...] = ()
    aim: Callable[..., Any] | None = None
    head: int = 0
    measure: Callable[..., Any] | None = None
    beside: str = ""
    judge: Callable[..., Any] | None = None
    revise: Callable[..., Any] | None = None
    off_policy: bool = False
    use: str = ""


PAIRS = {"loss_aggregation": "comparison_mean", "learning_rate": 1e-6, "reference": "start"}
UNREFERENCED = {"loss_aggregation": "comparison_mean", "learning_rate": 1e-6}
SCORES: dict[str, Any] = {"loss_aggregation": "comparison_mean", "learning_rate": 1e-5}
ANCHORED = ("beta", "reference", "kl_placement", "kl_estimator")
REWARDED = (
    "rewards",
    "reward_weights",
    "reward_timeout",
    "max_failed_fraction",
    "dynamic_sampling",
    "max_resamples",
)
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
    "normalize_rewards": False,
    "reward_clip": 0.0,
    "kl_target": 0.0,
    "kl_horizon": 1000,
    "ptx_coef": 0.0,
    "ptx_dataset": None,
}
TOLD: dict[str, Any] = {"terms": (Term(preference.chosen_nll, "comparison_mean"),), "aim": told}
IMITATED = (Term(reward.imitation, "comparison_mean", "imitation_coef"),)

ALGORITHMS: dict[str, Algorithm] = {
    "sft": Algorithm(
        "likelihood of demonstrations (behaviour cloning)",
        "data",
        weight.raw,
        likelihood,
        {
            "loss_aggregation": "token_mean",
            "learning_rate": 2e-5,
            "max_length": 1024,
            "train_on": None,
        },
    ),
    "reinforce": Algorithm(
        "the score-function gradient, no baseline",
        "policy",
        weight.raw,
        likelihood,
        {"loss_aggregation": "seq_mean_token_sum", "num_generations": 1, "kl_placement": "reward"},
    ),
    "reinforce_baseline": Algorithm(
        "REINFORCE minus a running or batch-mean baseline",
        "policy",
        weight.minus_baseline,
        likelihood,
        {"loss_aggregation": "seq_mean_token_sum", "num_generations": 1, "kl_placement": "reward"},
    ),
    "rloo": Algorithm(
        "REINFORCE with the leave-one-out baseline: unbiased",
        "policy",
        weight.leave_one_out,
        likelihood,
        {"loss_aggregation": "seq_mean_token_sum", "kl_placement": "reward"},
        compares=True,
    ),
    "grpo": Algorithm(
        "group-standardised advantages, clipped ratio",
        "policy",
        weight.standardised,
        clip,
        {"loss_aggregation": "seq_mean_token_mean"},
        compares=True,
    ),
    "dr_grpo": Algorithm(
        "GRPO without the length and difficulty biases",
        "policy",
        weight.centred,
        clip,
        {"loss_aggregation": "token_sum_over_const"},
        compares=True,
    ),
    "dapo": Algorithm(
        "GRPO with clip-higher, token mean, dynamic sampling, overlong shaping",
        "policy",
        weight.standardised,
        clip,
        {
            "loss_aggregation": "token_mean",
            "epsilon_high": 0.28,
            "dynamic_sampling": True,
            "mask_truncated_completions": True,
        },
        compares=True,
    ),
    "gspo": Algorithm(
        "GRPO with one ratio per sequence",
        "policy",
        weight.standardised,
        sequence_ratio,
        {"loss_aggregation": "seq_mean_token_mean"},
        compares=True,
    ),
    "cispo": Algorithm(
        "detached, capped ratio: no token is ever dropped",
        "policy",
        weight.standardised,
        detached_ratio,
        {"loss_aggregation": "token_mean", "scale_rewards": "batch"},
        compares=True,
    ),
    "reinforce_pp": Algorithm(
        "token-level returns whitened over the batch, clipped ratio",
        "policy",
        whitened_return,
        clip,
        {"loss_aggregation": "token_mean", "num_generations": 1, "kl_placement": "reward"},
        credit="token",
    ),
    "raft": Algorithm(
        "rejection sampling: imitate the best of each group",
        "policy",
        weight.selected,
        likelihood,
        {"loss_aggregation": "token_mean"},
    ),
    "hindsight": Algorithm(
        "every sample imitated under the instruction that it achieved",
        "policy",
        weight.raw,
        likelihood,
        {"loss_aggregation": "token_mean", "relabel": None},
        revise=hindsight,
        off_policy=True,
        without=(
            *ANCHORED,
            "env",
            "max_turns",
            "dynamic_sampling",
            "max_resamples",
            "overlong_buffer",
        ),
    ),
    "es": Algorithm(
        "evolution strategies: perturbed parameters, scored and moved, no gradient",
        "parameters",
        shaped,
        search_gradient,
        {"loss_aggregation": "comparison_mean"},
    ),
    "dpo": Algorithm(
        "the margin between chosen and rejected, through a sigmoid",
        "pairs",
        weight.raw,
        preference.dpo,
        PAIRS,
        **TOLD,
    ),
    "cdpo": Algorithm(
        "DPO for labels that may be wrong",
        "pairs",
        weight.raw,
        preference.dpo,
        {**PAIRS, "label_smoothing": 0.1},
        **TOLD,
    ),
    "robust_dpo": Algorithm(
        "DPO that undoes label flips", "pairs", weight.raw, preference.robust_dpo, PAIRS, **TOLD
    ),
    "ipo": Algorithm(
        "a margin with a target: bounded even for certain preferences",
        "pairs",
        weight.raw,
        preference.ipo,
        PAIRS,
        **TOLD,
    ),
    "simpo": Algorithm(
        "per-token margin without a reference",
        "pairs",
        weight.raw,
        preference.simpo,
        UNREFERENCED,
        **TOLD,
    ),
    "orpo": Algorithm(
        "likelihood plus an odds ratio, without a reference",
        "pairs",
        weight.raw,
        preference.orpo,
        UNREFERENCED,
        aim=told,
    ),
    "dpop": Algorithm(
        "DPO that pays when the chosen answer falls",
        "pairs",
        weight.raw,
        preference.dpop,
        PAIRS,
        **TOLD,
    ),
    "kto": Algorithm(
        "answers labelled good or bad, no pairs",
        "labels",
        weight.raw,
        preference.kto,
        PAIRS,
        aim=kl_point,
    ),
    "online_dpo": Algorithm(
        "DPO on the policy's own best and worst, judged by a reward",
        "policy",
        weight.best_and_worst,
        preference.dpo,
        {**PAIRS, "num_generations": 2},
        compares=True,
        terms=TOLD["terms"],
        without=("kl_placement", "kl_estimator", "entropy_coef"),
    ),
    "rrhf": Algorithm(
        "rank responses by length-normalised log-probability",
        "policy",
        weight.raw,
        preference.rrhf,
        {"loss_aggregation": "comparison_mean", "num_generations": 4},
        compares=True,
        without=(*ANCHORED, "entropy_coef"),
    ),
    "ppo": Algorithm(
        "a critic says what each token was worth (GAE); clipped ratio, clipped values",
        "policy",
        gae,
        clip,
        PPO,
        credit="critic",
        beside="critic",
        terms=(Term(value_loss, "token_mean"),),
    ),
    "ppo_max": Algorithm(
        "PPO with what keeps it stable: rewards normalised and clipped, a critic from the reward"
        " model, warmed up",
        "policy",
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
        credit="critic",
        beside="critic",
        terms=(Term(value_loss, "token_mean"),),
    ),
    "ilql": Algorithm(
        "implicit Q-learning from logged rewards: Q and V beside the policy, and inside the head"
        " that is saved",
        "logged",
        weight.raw,
        implicit_q,
        {
            "loss_aggregation": "token_mean",
            "learning_rate": 5e-5,
            "target_update": 0.005,
            "decode_beta": 1.0,
        },
        beside="heads",
        measure=implicit_metrics,
    ),
    "gail": Algorithm(
        "adversarial imitation: a discriminator of demonstrations and samples is the reward",
        "policy",
        weight.leave_one_out,
        likelihood,
        {
            "loss_aggregation": "seq_mean_token_sum",
            "kl_placement": "reward",
            "imitation_reward": "airl",
            "discriminator_rate": 1.0,
        },
        compares=True,
        beside="discriminator",
        terms=(Term(discriminate, "row_mean"),),
        use="imitation",
        judge=judged,
        revise=with_demonstrations,
        aim=told_apart,
        measure=discriminator_metrics,
        without=(*REWARDED, "env", "max_turns"),
    ),
    "reward": Algorithm(
        "a reward model from preference pairs (Bradley-Terry)",
        "rankings",
        weight.raw,
        reward.bradley_terry,
        SCORES,
        aim=told,
        head=1,
        measure=reward.comparison_metrics,
        terms=IMITATED,
    ),
    "reward_kwise": Algorithm(
        "a reward model from rankings of K answers, each prompt counting once",
        "rankings",
        weight.raw,
        reward.k_wise,
        SCORES,
        aim=told,
        head=1,
        measure=reward.comparison_metrics,
        terms=IMITATED,
    ),
    "reward_pl": Algorithm(
        "a reward model from rankings, best first (Plackett-Luce)",
        "rankings",
        weight.raw,
        reward.plackett_luce,
        SCORES,
        aim=told,
        head=1,
        measure=reward.comparison_metrics,
        terms=IMITATED,
    ),
    "orm": Algorithm(
        "outcome reward model: will this answer end well, at every token",
        "outcomes",
        weight.raw,
        reward.outcome,
        {**SCORES, "loss_aggregation": "token_mean"},
        aim=labels,
        head=1,
        measure=reward.outcome_metrics,
    ),
    "prm": Algorithm(
        "process reward model: each step wrong, neutral or right",
        "steps",
        weight.raw,
        reward.process,
        {**SCORES, "loss_aggregation": "token_mean"},
        aim=labels,
        head=3,
        measure=reward.process_metrics,
    ),
}
