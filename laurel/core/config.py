"""The configuration of a run: one flat, typed list of names. TRL's name wherever TRL has one.

An option whose default is None here belongs to some algorithms only: its default, and whether it
applies at all, is written in the signature of the function that uses it (see
`laurel.train.algorithms`). Unknown, misspelt, mistyped and inapplicable options are errors before
any weight is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from pydantic import field_validator

from laurel.core.algorithms import ABOUT
from laurel.core.named_datasets import check_set_names, parse_named_sets
from laurel.core.options import Config, Options, check_options, option, translate_names
from laurel.core.trl import Request

Aggregation = Literal[
    "token_mean",
    "seq_mean_token_mean",
    "seq_mean_token_sum",
    "token_sum_over_const",
    "comparison_mean",
]
ALGORITHM_NAMES = tuple(ABOUT)
"""The rows of the table, for checks that must not wait for torch."""
UNIVERSAL_OPTIONS = (
    "eval_dataset",
    "report_to",
    "stop_at",
    "learning_rate",
    "lora_target_modules",
    "chat_template",
    "loss_aggregation",
    "num_train_epochs",
    "metric_for_best_model",
    "greater_is_better",
    "early_stopping_patience",
)
"""Options without one default for all which every algorithm has, for the same checks. A test holds
this equal to the table, too.
"""


def _between_commas(value: Any) -> Any:
    """A list of names, as YAML may hold one, as the text `a.jsonl,b.jsonl`; other values stay."""
    names = cast("list[Any]", value) if isinstance(value, list) else list[Any]()
    named = bool(names) and all(isinstance(name, str) for name in names)
    return ",".join(names) if named else cast(Any, value)


def _split_at_commas(value: Any) -> Any:
    """A list in which one text may name several between commas, as the command line has them."""
    if not isinstance(value, list):
        return value
    items = cast("list[Any]", value)
    split = [part.strip() for one in items if isinstance(one, str) for part in one.split(",")]
    return split if all(isinstance(one, str) for one in items) else items


def _by_name(value: Any) -> Any:
    """Evaluation rows: the text `name=FILE,name2=FILE2` and mappings become a dict."""
    if isinstance(value, dict):
        sets = cast("dict[Any, Any]", value)
        return check_set_names({name: _between_commas(source) for name, source in sets.items()})
    value = _between_commas(value)
    return parse_named_sets(value) if isinstance(value, str) else value


class TrainConfig(Options):
    """The options of `laurel train`. `laurel train ALGORITHM --help` prints those that apply."""

    universal = UNIVERSAL_OPTIONS
    _names_of_rows = field_validator("dataset", "ptx_dataset", mode="before")(_between_commas)
    _sets = field_validator("eval_dataset", mode="before")(_by_name)
    _urls = field_validator("engine", mode="before")(_split_at_commas)

    model: str = option(
        "starter",
        "a folder or hub name of a causal LM; `starter`: laurel's own small arithmetic model;"
        " `scratch`: the same, untrained",
        group="what",
    )
    dataset: str = option(
        "addition",
        "files (JSONL, JSON, CSV, TSV, Parquet; several between commas, a pattern, a folder), a hub"
        " name, or a generated task: addition, countdown, reasoning_gym:TASK, ...",
    )
    dataset_split: str = option("train", "the split of a hub dataset or of a folder")
    dataset_size: int = option(20_000, "rows to generate, for a generated task", ge=1)
    eval_dataset: str | dict[str, str] | None = option(
        None,
        "rows to evaluate on while training, or several sets by name (name=FILE,name2=FILE2);"
        " default: held-out rows of `dataset`",
    )
    eval_size: int = option(
        200,
        "rows held out of `dataset` for evaluation (by prompt; 0: none), or evaluated of each"
        " eval_dataset (0: all)",
        ge=0,
    )
    output_dir: str = option(
        "runs/train",
        "where the run is written; `{n}` in it counts up: runs/grpo-{n} is the next free one",
    )
    resume: bool | Literal["anyway"] = option(
        False,
        "continue the newest complete checkpoint of `output_dir`; anyway: also where data or reward"
        " files have changed since, or options of the optimiser (learning_rate, ...), whose moments"
        " are kept",
    )
    seed: int = option(0, "the seed of everything random", ge=0)

    max_steps: int = option(
        100,
        "optimiser steps (with num_iterations, steps over fresh samples)",
        ge=1,
        group="how long, how much",
    )
    num_train_epochs: float | None = option(
        None,
        "instead of max_steps: how often every row is drawn; max_steps, if it is given too, goes"
        " before",
        gt=0,
        allow_inf_nan=False,
    )
    prompts_per_step: int = option(16, "prompts (rows of data) per step", ge=1)
    token_budget: int = option(
        0,
        "computed tokens per micro-batch (0: 2048 on a CPU, else 16384): memory, never mathematics",
        ge=0,
    )
    max_prompt_length: int = option(
        1_024, "rows with a longer prompt, in tokens, are left out and counted", ge=1
    )
    save_steps: int = option(0, "write a checkpoint every so many steps; 0: only at the end", ge=0)
    save_total_limit: int = option(2, "complete checkpoints kept", ge=1)
    save_merged: bool = option(
        False, "with adapters: write the merged model into `model`, not the adapters (PEFT)"
    )
    save_dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "precision of the files in `model`; auto: that of the files of the model that training"
        " began with",
    )
    logging_steps: int = option(1, "write metrics every so many steps", ge=1)
    eval_steps: int = option(0, "evaluate every so many steps; 0: never during training", ge=0)
    metric_for_best_model: str | None = option(
        None,
        "with eval_steps: keep the checkpoint that is best by this metric of the evaluations, such"
        " as eval/accuracy",
    )
    greater_is_better: bool | None = option(
        None,
        "which way that metric is better; default: down for a loss, up for a share or a reward",
    )
    load_best_model_at_end: bool = option(
        False, "the saved model is the best checkpoint's, not the last step's"
    )
    early_stopping_patience: int | None = option(
        None, "evaluations in a row without a better metric after which the run ends", ge=1
    )
    report_to: list[str] | None = option(
        None,
        "also send metrics to: tensorboard, wandb, trackio (the files of the run are always"
        " written)",
    )
    profile: bool = option(
        False, "write where the time of a step goes, by phase, into profile.json and the report"
    )
    stop_at: float | None = option(
        None, "with eval_steps: stop early once eval/accuracy has reached this", gt=0, le=1
    )

    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = option(
        "adamw_torch",
        "AdamW: torch's, or bitsandbytes' (pip install 'laurel-rl[optim]') with moments of 8 bits"
        " (2 bytes a weight, not 8), or paged out of a GPU that is full",
        group="optimiser",
    )
    learning_rate: float | None = option(None, "peak learning rate", gt=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option(
        "constant", "the shape after warm-up"
    )
    warmup_steps: int = option(0, "steps of linear warm-up", ge=0)
    weight_decay: float = option(0.0, "AdamW's decoupled decay", ge=0)
    adam_beta1: float = option(0.9, "AdamW", ge=0, lt=1)
    adam_beta2: float = option(0.999, "AdamW", ge=0, lt=1)
    adam_epsilon: float = option(1e-8, "AdamW", gt=0)
    max_grad_norm: float = option(1.0, "clip the global gradient norm; 0 switches it off", ge=0)

    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "precision of products; auto: bfloat16 on a GPU that has it, and wherever weights are"
        " bfloat16; else float32",
        group="model",
    )
    param_dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "precision that weights are held in; auto: float32. bfloat16: under adapters, which stay"
        " float32, half the memory of the base; without, each weight keeps the rest of a float32"
        " master for the optimiser, so small steps are not lost",
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    num_threads: int = option(
        0,
        "CPU threads; 0: 1 below 5 M parameters, else OMP_NUM_THREADS, at most the cores that"
        " affinity and cgroups allow; recorded",
        ge=0,
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass")
    disable_dropout: bool = option(
        True,
        "dropout off in training; reinforcement learning requires it (the ratio must start at 1)",
    )
    use_peft: bool = option(False, "train LoRA adapters instead of the weights")
    lora_r: int = option(16, "LoRA rank", ge=1)
    lora_alpha: int = option(32, "LoRA scale numerator", ge=1)
    lora_dropout: float = option(0.0, "LoRA dropout", ge=0, lt=1)
    lora_target_modules: list[str] | None = option(
        None, "modules LoRA adapts (ends of names); default: all-linear, all but the head"
    )
    reference: Literal["start", "base", "none"] | None = option(
        None,
        "what KL is measured to: the weights at step 0, the base under a loaded adapter, nothing;"
        " default: start if beta > 0",
    )
    chat_template: str | None = option(
        None, "a file with a Jinja chat template, where the tokenizer has none or the wrong one"
    )

    train_on: Literal["assistant", "last", "completion", "all", "no_tags"] | None = option(
        None,
        "which tokens are supervised: assistant turns, the last one, the completion column,"
        " everything, everything but role tags",
        group="supervised data (sft)",
    )
    max_length: int | None = option(
        None, "tokens of a supervised row; longer rows are cut on the right", ge=2
    )

    num_generations: int | None = option(None, "samples per prompt (G)", ge=1, group="sampling")
    max_completion_length: int | None = option(None, "tokens sampled per completion", ge=1)
    temperature: float | None = option(
        None, "sampling temperature; log-probabilities are taken at the same one"
    )
    top_p: float = option(
        1.0,
        "refused below 1 in training: truncated sampling makes importance ratios wrong",
        gt=0,
        le=1,
    )
    top_k: int = option(0, "refused above 0 in training, for the same reason", ge=0)
    stop: list[str] | None = option(None, "strings that end a completion")
    env: str | None = option(None, "a multi-turn environment: a name (calculator) or file.py:Class")
    max_turns: int | None = option(None, "turns of the policy in one episode", ge=1)
    engine: list[str] | None = option(
        None,
        "sample on servers, by their addresses (several between commas): `laurel serve`, or vLLM;"
        " they get the weights of every step",
    )
    engine_timeout: float | None = option(
        None, "seconds that a call to a server may take before its rows go to another", gt=0
    )
    engine_weights: Literal["auto", "folder", "lora", "nccl"] | None = option(
        None,
        "how weights get to the servers: a folder they read; a folder of adapters; vLLM's own"
        " sender over NCCL; auto: adapters as adapters, all else by folder",
    )
    num_iterations: int | None = option(None, "optimiser passes over each batch of samples", ge=1)
    importance_sampling_correction: (
        Literal["auto", "none", "token_truncate", "sequence_mask"] | None
    ) = option(
        None,
        "what samples weigh that an engine drew with other log-probabilities than the trainer's:"
        " token_truncate: a token's weight times its ratio pi/sampler, at most the cap;"
        " sequence_mask: a row's weights times its whole ratio, 0 above the cap; auto:"
        " token_truncate with such an engine, none in this process. online_dpo and rrhf compare"
        " whole answers: auto is none, sequence_mask leaves answers above the cap out",
    )
    importance_sampling_cap: float | None = option(
        None, "the cap on those ratios", ge=1, allow_inf_nan=False
    )
    sampler_gap_limit: float | None = option(
        None,
        "nats between the sampler's and the trainer's log-probabilities, at the 99th percentile of"
        " a step's tokens, above which the run stops; 0: by rounding in this process, .01 for an"
        " engine where both compute in float32, else 1",
        ge=0,
    )
    relabel: str | None = option(
        None,
        "which instruction a completion achieved: file.py:function or module.function, a prompt (or"
        " None) for each completion",
    )

    rewards: list[str] | None = option(
        None,
        "rewards: names, module.function or file.py:function; default: the dataset's own verifier",
        group="rewards",
    )
    reward_weights: list[float] | None = option(None, "one weight per reward; default: all 1")
    reward_timeout: float | None = option(
        None, "seconds one reward call may take before its samples count as failed", gt=0
    )
    max_failed_fraction: float | None = option(
        None, "stop the run when a step has more failed rewards than this", ge=0, le=1
    )

    scale_rewards: Literal["group", "batch", "none"] | None = option(
        None,
        "divide advantages by the group's or the batch's standard deviation",
        group="weights",
    )
    baseline: Literal["running", "batch"] | None = option(
        None, "what is subtracted from the reward"
    )
    keep: Literal["best", "above", "over_mean"] | None = option(
        None, "which samples of a group are imitated"
    )
    bar: float | None = option(None, "the reward a sample must reach with keep=above")
    dynamic_sampling: bool | None = option(
        None, "replace groups whose rewards are all equal by new prompts"
    )
    max_resamples: int | None = option(None, "rounds of replacement per step at most", ge=0)
    mask_truncated_completions: bool | None = option(
        None, "leave samples that hit max_completion_length out of the loss and its count"
    )
    overlong_buffer: int | None = option(
        None, "tokens before the limit over which a penalty grows from 0 to -1; 0: none", ge=0
    )

    population: int | None = option(
        None,
        "members per step, in pairs: one adds noise to the parameters, the other takes it away",
        ge=2,
        group="samples of the parameters (es)",
    )
    sigma: float | None = option(None, "standard deviation of the noise on every parameter", gt=0)
    shape_returns: Literal["ranks", "zscore", "raw"] | None = option(
        None,
        "what of a member's mean reward is its weight: its rank among the members, its z-score, or"
        " itself",
    )

    loss_aggregation: Aggregation | None = option(
        None,
        "what one unit of the loss is, and what it is divided by",
        group="objective",
    )
    epsilon: float | None = option(None, "clip: the ratio's lower bound is 1 - epsilon", gt=0)
    epsilon_high: float | None = option(
        None, "clip: the upper bound is 1 + epsilon_high; cispo: the absolute cap", gt=0
    )
    delta: float | None = option(
        None,
        "dual clip: the loss of a negative advantage is at most delta times its size; 0: off",
        ge=0,
    )
    beta: float | None = option(
        None, "coefficient of the KL to the reference; of preferences: the scale of a margin", ge=0
    )
    label_smoothing: float | None = option(
        None,
        "share of labels taken to be wrong: of preferences; in gail, of who is a demonstration",
        ge=0,
        lt=0.5,
    )
    gamma: float | None = option(
        None, "discount of later rewards; 1: none", gt=0, le=1, group="critic"
    )
    lam: float | None = option(
        None,
        "GAE: how far an advantage looks beyond the critic's next word; 1: to the end",
        ge=0,
        le=1,
    )
    vf_coef: float | None = option(None, "coefficient of the critic's squared error", ge=0)
    cliprange_value: float | None = option(
        None, "how far the critic may move from what it said when the row was sampled; 0: any", ge=0
    )
    critic: Literal["own", "shared"] | None = option(
        None, "a body of its own, or a second head on the policy's"
    )
    critic_model: str | None = option(
        None,
        "where the critic starts: policy (a head of 0), reward (the run's model: reward), auto"
        " (that or policy), or a scorer's folder",
    )
    critic_warmup_steps: int | None = option(None, "first steps that train the critic alone", ge=0)
    missing_eos_penalty: float | None = option(
        None, "taken from the reward of a completion that was cut off at its limit", ge=0
    )
    bootstrap_truncated: bool | None = option(
        None,
        "a completion cut off at its limit is not over: instead of its reward, the critic's"
        " value behind its last token",
    )
    normalize_rewards: bool | None = option(
        None, "rewards minus their historical mean, over their historical spread"
    )
    reward_clip: float | None = option(
        None, "with normalize_rewards: bounds of the result; 0: none", ge=0
    )
    kl_target: float | None = option(
        None, "KL in nats per completion that beta is steered to; 0: beta is fixed", ge=0
    )
    ptx_coef: float | None = option(
        None, "coefficient of the likelihood of ptx_dataset, mixed into every update; 0: none", ge=0
    )
    ptx_dataset: str | None = option(
        None, "text to mix in, so that what the reward does not ask for is not forgotten"
    )
    on_alarm: Literal["warn", "return"] | None = option(
        None,
        "at a sign of collapse: warn, or end the run with the newest checkpoint's weights (return)",
    )
    kl_horizon: int | None = option(None, "samples over which the steering of beta works", ge=1)

    expectile: float | None = option(
        None,
        "which expectile of Q the value is: .5 the mean under whoever wrote the log, towards 1 the"
        " best in it",
        gt=0,
        lt=1,
        group="logged rows",
    )
    cql_coef: float | None = option(
        None, "how much Q of tokens that the log does not show is held down", ge=0
    )
    awac_coef: float | None = option(
        None, "coefficient of the policy's own, weighted likelihood", ge=0
    )
    awac_beta: float | None = option(
        None, "that weight is exp(awac_beta (Q - V)); 0: every token counts the same", ge=0
    )
    target_update: float | None = option(
        None, "how far the slow copies of Q follow it at every optimiser step", gt=0, le=1
    )
    decode_beta: float | None = option(
        None, "the saved model says log pi + decode_beta (Q - V); 0: the policy alone", ge=0
    )

    imitation_reward: Literal["airl", "gail", "log_d"] | None = option(
        None,
        "what the discriminator pays for a sample: log D/(1-D), -log(1-D) or log D, with D ="
        " P(demonstration)",
        group="imitation",
    )
    discriminator_rate: float | None = option(
        None, "learning rate of the discriminator, as a multiple of learning_rate", gt=0
    )

    center_rewards_coefficient: float | None = option(
        None,
        "reward: pulls the two scores of a pair towards opposite signs",
        ge=0,
        group="preferences",
    )
    reward_coef: float | None = option(
        None, "rewards by comparison: coefficient of the comparison, lambda", ge=0
    )
    imitation_coef: float | None = option(
        None,
        "rewards by comparison: coefficient of the best answer's likelihood per token under the"
        " same body; 0: none",
        ge=0,
    )
    pairs_per_prompt: int | None = option(
        None,
        "reward_kwise: compare only so many pairs of each prompt, drawn by its key; 0: all",
        ge=0,
    )
    use_margin: bool | None = option(
        None, "pairs: ask for at least the row's `margin`, where it has one"
    )
    rpo_alpha: float | None = option(
        None,
        "coefficient of the chosen answer's likelihood per token, beside a preference objective",
        ge=0,
    )
    simpo_gamma: float | None = option(
        None,
        "the margin, in units of beta times a log-probability per token, that must be exceeded",
        ge=0,
    )
    dpop_lambda: float | None = option(
        None, "how much a chosen answer that became less likely counts against the margin", ge=0
    )
    desirable_weight: float | None = option(None, "weight of answers labelled good", ge=0)
    undesirable_weight: float | None = option(None, "weight of answers labelled bad", ge=0)
    nll_weight: float | None = option(None, "rrhf: weight of the best response's likelihood", ge=0)
    kl_placement: Literal["reward", "loss"] | None = option(
        None, "KL as part of the reward, or as a term of the loss"
    )
    kl_estimator: Literal["k1", "k2", "k3", "exact"] | None = option(
        None,
        "in the reward: k1; in the loss: k2, k3 (both weighted by the ratio) or exact over the"
        " vocabulary",
    )
    entropy_coef: float | None = option(None, "coefficient of an entropy bonus", ge=0)


class EvalConfig(Options):
    """Everything `laurel eval` and `laurel sample` can be told."""

    _names_of_rows = field_validator("dataset", mode="before")(_between_commas)

    model: str = option(
        "starter",
        "a folder or hub name of a causal LM; `starter`: laurel's own small arithmetic model",
    )
    dataset: str = option("addition", "files, a folder, a hub name, or a generated task")
    dataset_split: str = option("test", "the split of a hub dataset or of a folder")
    dataset_size: int = option(500, "rows to generate, for a generated task", ge=1)
    limit: int = option(0, "evaluate the first so many rows; 0: all", ge=0)
    seed: int = option(
        1_000_000,
        "the seed of generated rows and of sampling (training seeds are small, so rows differ)",
        ge=0,
    )
    num_generations: int = option(
        1, "samples per prompt beside the greedy answer; 1: greedy only", ge=1
    )
    k: list[int] = option([], "the k of pass@k and majority@k; default: 1 and num_generations")
    max_completion_length: int = option(256, "tokens per completion", ge=1)
    temperature: float = option(1.0, "of the samples; the greedy answer has none", gt=0)
    top_p: float = option(
        1.0,
        "keep the smallest set of likeliest tokens that holds this much probability",
        gt=0,
        le=1,
    )
    top_k: int = option(0, "keep the k likeliest tokens; 0: all", ge=0)
    stop: list[str] = option([], "strings that end a completion")
    env: str | None = option(None, "a multi-turn environment: a name (calculator) or file.py:Class")
    max_turns: int = option(4, "turns of the policy in one episode", ge=1)
    rewards: list[str] | None = option(
        None,
        "rewards: names, module.function or file.py:function; default: the dataset's own verifier",
    )
    reward_weights: list[float] | None = option(None, "one weight per reward; default: all 1")
    reward_timeout: float = option(
        60.0, "seconds one reward call may take before its samples count as failed", gt=0
    )
    reference: str | None = option(
        None, "a folder or hub name: report the samples' KL to this model"
    )
    output: str | None = option(None, "write the result as JSON to this file")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "compute precision")
    num_threads: int = option(0, "CPU threads; 0: by rule", ge=0)
    chat_template: str | None = option(None, "a file with a Jinja chat template")


def build_config(
    values: Mapping[str, Any],
    kind: type[Config] = TrainConfig,
    *,
    where: str = "configuration",
    ask: Request | None = None,
) -> Config:
    """Validate `values` as a `kind`. All problems become one UsageError that names each option.

    TRL's names are translated for training, with a printed note each; `ask` names the algorithm.
    """
    request = replace(ask or Request(), where=where)
    return check_options(translate_names(values, kind, request), kind, request)
