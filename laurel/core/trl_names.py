"""The table: every name of TRL 1.16 and of transformers' TrainingArguments, and what it is here."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from laurel.core.trl import (
    Request,
    TrlName,
    print_notes,
    rename_rule,
    renamed_option,
    same_options,
    translate,
)
from laurel.core.trl_loss import translate_loss_type, translate_loss_weights, translate_ratio_level
from laurel.core.trl_rules import (
    of_engine,
    one_update,
    only_values,
    single_item_rule,
    steps_or_fraction_rule,
    strategy_interval,
    switch_rule,
    translate_correction,
    translate_correction_switch,
    translate_dataset,
    translate_engine,
    translate_init_kwargs,
    translate_logging_strategy,
    translate_max_steps,
    translate_mixture,
    translate_num_iterations,
    translate_optimiser,
    translate_precision,
    translate_report_to,
    translate_resume,
    translate_reward_scale,
    translate_rewards,
    translate_schedule,
    translate_step_size,
    translate_train_on,
    weights,
)
from laurel.core.trl_unsupported import DIFFERENT, HARMLESS

SAME: dict[str, TrlName] = {
    **same_options("Each algorithm has its own default.", learning_rate=5e-05),
    **same_options(
        "constant, linear and cosine are the same shapes.",
        translate_schedule,
        lr_scheduler_type="linear",
    ),
    **same_options(
        "A share below 1 is of max_steps. TRL's first warm-up step has a rate of 0, ours "
        "1/warmup_steps.",
        steps_or_fraction_rule("warmup_steps"),
        warmup_steps=0,
    ),
    **same_options(
        "AdamW, as there.",
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-08,
        max_grad_norm=1.0,
    ),
    **same_options(
        "Optimiser steps; with num_iterations, steps over fresh samples.",
        translate_max_steps,
        max_steps=-1,
    ),
    **same_options(
        "Passes over the rows: max_steps = epochs x rows / prompts_per_step.",
        num_train_epochs=3.0,
    ),
    **same_options(
        "A metric of ours, such as eval/accuracy or eval/nll.",
        metric_for_best_model=None,
        greater_is_better=None,
        load_best_model_at_end=False,
    ),
    **same_options(
        "A share below 1 is of max_steps.",
        steps_or_fraction_rule("logging_steps"),
        logging_steps=10,
    ),
    **same_options(
        "0 is only at the end. A share below 1 is of max_steps.",
        steps_or_fraction_rule("save_steps"),
        save_steps=500,
    ),
    **same_options(
        "0 is never. A share below 1 is of max_steps.",
        steps_or_fraction_rule("eval_steps"),
        eval_steps=None,
    ),
    **same_options("null keeps all there, two here.", save_total_limit=None),
    **same_options(
        "tensorboard, wandb, trackio; the files of the run are always written.",
        translate_report_to,
        report_to="none",
    ),
    **same_options("", output_dir=None, seed=42),
    **same_options("Memory only; scorers are trained without it.", gradient_checkpointing=True),
    **same_options("Reinforcement learning requires it here.", disable_dropout=True),
    **same_options(
        "The precision of the products; that of the weights, which TRL's dtype is, is param_dtype "
        "here, and a configuration of TRL's is read so.",
        translate_precision,
        dtype="float32",
    ),
    **same_options(
        "AdamW, of torch or of bitsandbytes, by any of transformers' names for it.",
        translate_optimiser,
        optim="adamw_torch_fused",
    ),
    **same_options("", use_peft=False, lora_r=16, lora_alpha=32),
    **same_options("Without effect where dropout is off.", lora_dropout=0.05),
    **same_options(
        "Where it is not given, TRL takes peft's choice for the model, laurel all linear layers.",
        lora_target_modules=None,
    ),
    **same_options("", num_generations=8, temperature=1.0, reward_weights=None),
    **same_options(
        "Coefficient of the chosen answer's likelihood, beside the margin.", rpo_alpha=None
    ),
    **same_options(
        "Rows with a longer prompt are left out; TRL 1.16 has no such limit.",
        max_prompt_length=None,
    ),
    **same_options(
        "Masked rows are in no count here; TRL's mean over rows counts them as zeros.",
        mask_truncated_completions=False,
    ),
    **same_options("Passes over one batch of samples.", translate_num_iterations, num_iterations=1),
    **same_options("", max_completion_length=512),
    **same_options("Refused in training where it truncates.", top_p=1.0, top_k=0),
    **same_options(
        "The KL's coefficient, of preferences the margin's scale.",
        single_item_rule("beta"),
        beta=0.0,
    ),
    **same_options("", epsilon=0.2, epsilon_high=None, delta=None),
    **same_options("true is group, false none.", translate_reward_scale, scale_rewards="group"),
    **same_options("The mean entropy of a token, in the loss's own aggregation.", entropy_coef=0.0),
    **same_options(
        "Longer rows are cut on the right; of reward models, left out.", max_length=1024
    ),
    **same_options(
        "In TRL's DPO it acts in robust only; here it makes dpo cDPO.", label_smoothing=0.0
    ),
    **same_options(
        "",
        center_rewards_coefficient=None,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        simpo_gamma=0.5,
    ),
    **same_options(
        "", missing_eos_penalty=None, vf_coef=0.1, cliprange_value=0.2, gamma=1.0, lam=0.95
    ),
}

TRANSLATED: dict[str, TrlName] = {
    **renamed_option(
        "model",
        "model_name_or_path is model here.",
        model_name_or_path=None,
        sft_model_path=None,
    ),
    **renamed_option(
        "prompts_per_step",
        "A step's size is prompts_per_step here; token_budget splits it for the memory.",
        translate_step_size,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
    ),
    **renamed_option(
        "dataset",
        "dataset_name is dataset here, NAME:CONFIGURATION where it has one.",
        translate_dataset,
        dataset_name=None,
        dataset_config=None,
    ),
    **renamed_option(
        "dataset dataset_split",
        "Several files stand between commas in dataset here.",
        translate_mixture,
        datasets=[],
    ),
    **renamed_option(
        "dataset_split",
        "dataset_train_split is dataset_split here.",
        dataset_train_split="train",
    ),
    **renamed_option(
        "rewards", "reward_funcs is rewards here.", translate_rewards, reward_funcs=None
    ),
    **renamed_option(
        "rewards",
        "A learned reward is rewards: model:FOLDER here.",
        translate_rewards,
        reward_model_name_or_path=None,
        reward_model_path=None,
    ),
    **renamed_option(
        "resume",
        "resume_from_checkpoint is resume here: the newest sound checkpoint of output_dir.",
        translate_resume,
        resume_from_checkpoint=None,
    ),
    **renamed_option(
        "dtype",
        "bf16 is dtype: bfloat16 here; weights stay float32.",
        translate_precision,
        bf16=None,
    ),
    **renamed_option(
        "param_dtype dtype",
        "torch_dtype is param_dtype here, the precision that weights are held in.",
        weights,
        torch_dtype=None,
    ),
    **renamed_option(
        "param_dtype dtype",
        "dtype of model_init_kwargs is param_dtype here, the precision that weights are held in.",
        translate_init_kwargs,
        model_init_kwargs=None,
    ),
    **renamed_option(
        "loss_aggregation",
        "loss_type is a row of the table here, or loss_aggregation.",
        translate_loss_type,
        loss_type=None,
    ),
    **renamed_option("", "Read with loss_type.", translate_loss_weights, loss_weights=None),
    **renamed_option(
        "",
        "token is what grpo does; sequence is `laurel train gspo`.",
        translate_ratio_level,
        importance_sampling_level="token",
    ),
    **renamed_option(
        "importance_sampling_correction",
        "false is importance_sampling_correction: none here.",
        translate_correction_switch,
        vllm_importance_sampling_correction=True,
    ),
    **renamed_option(
        "importance_sampling_correction",
        "It is importance_sampling_correction here, with two of the four modes.",
        translate_correction,
        vllm_importance_sampling_mode="sequence_mask",
    ),
    **renamed_option(
        "importance_sampling_cap",
        "It is importance_sampling_cap here.",
        of_engine(rename_rule("importance_sampling_cap")),
        vllm_importance_sampling_clip_max=3.0,
        vllm_importance_sampling_cap=None,
    ),
    **renamed_option(
        "",
        "A ratio below 1 is a smaller weight here, and stays one.",
        of_engine(only_values(None, fix="Leave it out: importance_sampling_cap is the bound.")),
        vllm_importance_sampling_clip_min=None,
    ),
    **renamed_option(
        "warmup_steps",
        "warmup_ratio is warmup_steps here, as a share of max_steps.",
        steps_or_fraction_rule("warmup_steps"),
        warmup_ratio=None,
    ),
    **renamed_option(
        "eval_steps",
        "eval_strategy is eval_steps here: 0 is never.",
        strategy_interval("eval_steps", "logging_steps", 10),
        eval_strategy="no",
        evaluation_strategy="no",
    ),
    **renamed_option(
        "save_steps",
        "save_strategy is save_steps here: 0 is only at the end.",
        strategy_interval("save_steps", "", 500),
        save_strategy="steps",
    ),
    **renamed_option(
        "engine",
        "vLLM's server is engine: URL here.",
        translate_engine,
        use_vllm=False,
        vllm_mode="colocate",
        vllm_server_base_url=None,
        vllm_server_host="0.0.0.0",
        vllm_server_port=8000,
    ),
    **renamed_option(
        "",
        "logging_steps says how often metrics are written.",
        translate_logging_strategy,
        logging_strategy="steps",
    ),
    **renamed_option(
        "train_on",
        "assistant_only_loss is train_on: assistant here.",
        translate_train_on,
        assistant_only_loss=False,
    ),
    **renamed_option(
        "train_on",
        "completion_only_loss is train_on here: completion, or all.",
        translate_train_on,
        completion_only_loss=None,
    ),
    **renamed_option(
        "gradient_checkpointing",
        "activation_checkpointing is gradient_checkpointing here.",
        activation_checkpointing=None,
    ),
    **renamed_option(
        "device",
        "use_cpu is device: cpu here.",
        switch_rule("device", lambda _: "cpu"),
        use_cpu=False,
        no_cuda=False,
    ),
    **renamed_option(
        "chat_template",
        "chat_template_path is chat_template here, a file.",
        chat_template_path=None,
    ),
    **renamed_option(
        "max_completion_length",
        "It is max_completion_length here.",
        max_new_tokens=64,
        response_length=53,
    ),
    **renamed_option("beta", "kl_coef is beta here.", kl_coef=0.05, init_kl_coef=0.2),
    **renamed_option(
        "rpo_alpha",
        "cpo_alpha is rpo_alpha here: a mean over pairs of each one's mean, there over all tokens.",
        cpo_alpha=1.0,
    ),
    **renamed_option(
        "num_iterations",
        "Passes over one batch of samples are num_iterations here.",
        num_ppo_epochs=4,
    ),
    **renamed_option("epsilon", "cliprange is epsilon here.", cliprange=0.2),
    **renamed_option("entropy_coef", "ent_coef is entropy_coef here.", ent_coef=0.0),
    **renamed_option("learning_rate", "lr is learning_rate here.", lr=None),
    **renamed_option("lora_r", "It is lora_r here.", lora_rank=16),
    **renamed_option("max_length", "max_seq_length is max_length here.", max_seq_length=1024),
    **renamed_option("max_steps", "It is max_steps here.", max_train_steps=None),
    **renamed_option(
        "num_train_epochs",
        "Passes over the rows are num_train_epochs.",
        num_epochs=None,
        epochs=None,
    ),
    **renamed_option("epsilon", "epsilon_low is epsilon here.", epsilon_low=None),
    **renamed_option(
        "",
        "One batch of samples is one step here.",
        one_update(whole_batch=False),
        steps_per_generation=None,
    ),
    **renamed_option(
        "",
        "One batch of samples is one step here.",
        one_update(whole_batch=True),
        generation_batch_size=None,
    ),
    **renamed_option(
        "",
        "Longer rows are cut on the right.",
        only_values("keep_start", None, fix="Shorten rows before, or raise max_length."),
        truncation_mode="keep_start",
    ),
    **renamed_option(
        "",
        "reverse_kl is what there is.",
        only_values(
            "reverse_kl", None, fix="laurel train dpo, ipo, simpo and orpo are other margins."
        ),
        f_divergence_type="reverse_kl",
    ),
    **renamed_option(
        "",
        "Weighted rewards are summed, then standardised.",
        only_values("sum_then_normalize", None, fix="Leave it out: rewards are summed."),
        multi_objective_aggregation="sum_then_normalize",
    ),
    **renamed_option(
        "",
        "The KL in the loss is weighted by the ratio, as with true.",
        only_values(True, None, fix="Leave it out: the other is biased off the policy."),
        use_bias_correction_kl=True,
    ),
    **renamed_option(
        "",
        "The main branch is what is read.",
        only_values("main", None, fix="Download the revision, and give its folder as model."),
        model_revision="main",
    ),
}

TABLE: dict[str, TrlName] = {**SAME, **TRANSLATED, **HARMLESS, **DIFFERENT}
"""Every name, once."""

COMMON = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "seed",
    "bf16",
    "per_device_train_batch_size",
    "num_train_epochs",
)
ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout")
SAMPLED = ("num_generations", "max_completion_length", "temperature", "beta", "num_iterations")
OWN: dict[str, tuple[str, ...]] = {
    "sft": ("max_length",),
    "grpo": (
        *SAMPLED,
        "epsilon",
        "scale_rewards",
        "loss_type",
        "importance_sampling_level",
        "vllm_importance_sampling_mode",
        "mask_truncated_completions",
        "entropy_coef",
    ),
    "rloo": SAMPLED,
    "dpo": ("beta", "max_length", "label_smoothing", "loss_type"),
    "kto": ("beta", "max_length", "desirable_weight", "undesirable_weight"),
    "orpo": ("beta", "max_length"),
    "cpo": ("beta", "max_length", "simpo_gamma", "loss_type", "cpo_alpha"),
    "online_dpo": ("beta", "max_new_tokens", "temperature"),
    "reward": ("max_length", "center_rewards_coefficient"),
}
"""A trainer's names whose defaults change results: a port takes them where the file is silent, as
TRL does.
"""
RATE = 1e-6
OF_TRAINER: dict[str, dict[str, Any]] = {
    "sft": {"learning_rate": 2e-5, "loss_type": "nll", "shuffle_dataset": False},
    "grpo": {
        "learning_rate": RATE,
        "loss_type": "dapo",
        "disable_dropout": False,
        "remove_unused_columns": False,
    },
    "rloo": {
        "learning_rate": RATE,
        "num_generations": 2,
        "beta": 0.05,
        "disable_dropout": False,
        "remove_unused_columns": False,
    },
    "dpo": {"learning_rate": RATE, "loss_type": ["sigmoid"], "beta": 0.1},
    "kto": {
        "learning_rate": RATE,
        "loss_type": "kto",
        "beta": 0.1,
        "train_sampling_strategy": "sequential",
    },
    "orpo": {"learning_rate": RATE, "beta": 0.1, "max_completion_length": None},
    "cpo": {
        "learning_rate": RATE,
        "beta": 0.1,
        "loss_type": "sigmoid",
        "max_completion_length": None,
    },
    "online_dpo": {
        "learning_rate": 5e-7,
        "beta": [0.1],
        "temperature": 0.9,
        "max_length": 512,
        "loss_type": "sigmoid",
        "remove_unused_columns": False,
        "vllm_gpu_memory_utilization": 0.55,
    },
    "reward": {"learning_rate": 1e-4},
}
"""Where a trainer's default is not the one in the table."""
DUMPED: dict[str, Any] = {
    "activation_checkpointing": True,
    "disable_tqdm": False,
    "hub_token": "<HUB_TOKEN>",
    "eos_token": "<EOS_TOKEN>",
    "pad_token": "<PAD_TOKEN>",
    "pad_to_multiple_of": None,
    "debug": [],
    "report_to": [],
    "bf16": True,
    "dataloader_pin_memory": False,
}
"""What a saved configuration holds where nobody gave a value, besides the defaults."""


def default_of(name: str, trainer: str) -> Any:
    """What a trainer of TRL takes where nothing is given."""
    return OF_TRAINER[trainer].get(name, TABLE[name].default)


def defaults_of(trainer: str) -> dict[str, Any]:
    """Every name's default for a trainer."""
    return {name: default_of(name, trainer) for name in TABLE}


def translate_options(
    values: Mapping[str, Any], fields: Container[str], request: Request
) -> dict[str, Any]:
    """The values by laurel's names, with a printed note for each name that was TRL's.

    Names that are absent here stay: whoever checks the names says what to do instead.
    """
    table = {
        name: row
        for name, row in TABLE.items()
        if row.kind == "same" or (row.kind == "translated" and name not in fields)
    }
    defaults = {name: row.default for name, row in TABLE.items()}
    request = replace(request, given={**request.given, **values}, defaults=defaults)
    found, notes = translate(values, table, request, request.where)
    print_notes(notes)
    return found
