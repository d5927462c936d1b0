"""Which options belong to a row of the table, with their defaults; what contradicts is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from laurel.core.config import ALGORITHM_NAMES, TrainConfig
from laurel.core.errors import UsageError, nearest
from laurel.objective.kl import check_kl
from laurel.objective.policy import detached_ratio, sequence_ratio
from laurel.objective.preference import ipo
from laurel.train.algorithms import ALGORITHMS

# What every row with this source understands, and the default where a row does not give its own.
SOURCE_OPTIONS: dict[str, dict[str, Any]] = {
    "data": {"train_on": None, "max_length": 1024},
    "pairs": {"max_length": 1024},
    "labels": {"max_length": 1024},
    "rankings": {"max_length": 1024},
    "outcomes": {"max_length": 1024},
    "steps": {"max_length": 1024},
    "logged": {"max_length": 1024},
    "policy": {
        "learning_rate": 1e-5,
        "num_generations": 8,
        "max_completion_length": 256,
        "temperature": 1.0,
        "stop": [],
        "num_iterations": 1,
        "env": None,
        "max_turns": 4,
        "rewards": None,
        "reward_weights": None,
        "reward_timeout": 60.0,
        "max_failed_fraction": 0.5,
        "beta": 0.0,
        "reference": None,
        "kl_placement": "loss",
        "kl_estimator": None,
        "entropy_coef": 0.0,
        "dynamic_sampling": False,
        "max_resamples": 3,
        "mask_truncated_completions": False,
        "overlong_buffer": 0,
        "on_alarm": "warn",
    },
    "parameters": {
        "learning_rate": 1e-6,
        "population": 30,
        "num_generations": 1,
        "max_completion_length": 256,
        "temperature": 0.0,
        "stop": [],
        "env": None,
        "max_turns": 4,
        "rewards": None,
        "reward_weights": None,
        "reward_timeout": 60.0,
        "max_failed_fraction": 0.5,
    },
}
ADAMW = ("optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
SUPPLIED = {"running_mean"}  # given to a weight by the loop, not by the configuration
MEASURED = {"rounding"}  # given to an objective by the precision of the model


@cache
def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a weight or objective: its keyword-only parameters, with their defaults. Read,
    never written.
    """
    found = inspect.signature(function).parameters.values()
    return {
        p.name: p.default
        for p in found
        if p.kind is p.KEYWORD_ONLY and p.name not in SUPPLIED | MEASURED
    }


def defaults(name: str) -> dict[str, Any]:
    """Every option that belongs to this algorithm and not to all, with its default."""
    row = ALGORITHMS[name]
    objectives = [row.objective, *(term.objective for term in row.terms)]
    own = {
        **SOURCE_OPTIONS[row.source],
        **parameters(row.weigh),
        **{k: v for f in objectives for k, v in parameters(f).items()},
        **row.defaults,
    }
    own = {option: value for option, value in own.items() if option not in row.without}
    if (
        own.get("kl_placement") is not None
        and own.get("kl_estimator") is None
        and row.source == "policy"
    ):
        own["kl_estimator"] = "k1" if own["kl_placement"] == "reward" else "k3"
    return own


def applying(name: str) -> dict[str, Any]:
    """Every option that this algorithm has, also those that all have, with its default here."""
    own = defaults(name)
    elsewhere = set().union(*(defaults(other) for other in ALGORITHMS)) - set(own)
    fields = TrainConfig.model_fields.items()
    return {
        option: own.get(option, field.default)
        for option, field in fields
        if option not in elsewhere
    }


def resolve(name: str, config: TrainConfig) -> TrainConfig:
    """The configuration with this algorithm's defaults filled in. Options that do not apply, or
    contradict, are refused.
    """
    if name not in ALGORITHMS:
        raise UsageError(f"unknown algorithm `{name}`.", fix=nearest(name, ALGORITHMS))
    row, own = ALGORITHMS[name], defaults(name)
    somewhere = set().union(*(defaults(other) for other in ALGORITHMS))
    for option in sorted(somewhere - set(own)):
        if getattr(config, option) is not None:
            users = [other for other in ALGORITHM_NAMES if option in defaults(other)]
            raise UsageError(
                f"option `{option}` does not apply to `{name}`.",
                fix=f"It belongs to: {', '.join(users)}.",
            )
    given = {option: value for option in own if (value := getattr(config, option)) is not None}
    if "kl_placement" in given and "kl_estimator" not in given:
        given["kl_estimator"] = "k1" if given["kl_placement"] == "reward" else "k3"
    resolved = config.model_copy(update={**own, **given})
    if row.source in ("policy", "parameters") and resolved.env is None:
        resolved = resolved.model_copy(update={"max_turns": None})
    if (resolved.loss_aggregation == "comparison_mean") != (
        row.defaults["loss_aggregation"] == "comparison_mean"
    ):
        compares = row.defaults["loss_aggregation"] == "comparison_mean"
        what = (
            f"`{name}` compares answers: its unit is a comparison."
            if compares
            else f"`{name}` compares no answers."
        )
        raise UsageError(
            what, where="loss_aggregation", fix=f"Leave it at {row.defaults['loss_aggregation']}."
        )
    if row.source in ("data", "logged") and resolved.loss_aggregation == "token_sum_over_const":
        what = (
            "`token_sum_over_const` divides by max_completion_length, which supervised data has"
            " not."
        )
        raise UsageError(what, where="loss_aggregation")
    if config.max_turns is not None and config.env is None:
        raise UsageError(
            "max_turns belongs to an environment.",
            where="max_turns",
            fix="Name one with env, or leave it out.",
        )
    if config.stop_at is not None and not config.eval_steps:
        raise UsageError(
            "stop_at needs an evaluation to look at.", where="stop_at", fix="Set eval_steps."
        )
    check_precision(name, resolved)
    if row.source == "labels" and resolved.prompts_per_step < 2:
        what = "answers to other prompts are needed, and there is one prompt."
        raise UsageError(what, where="prompts_per_step", fix="At least 2.")
    if row.objective is ipo and resolved.beta == 0:
        what = f"`{name}` aims at a margin of 1 / (2 beta), which is infinite."
        raise UsageError(what, where="beta", fix="Give one above 0, such as 0.1.")
    if row.source == "policy":
        if resolved.reference is None:
            resolved = resolved.model_copy(
                update={"reference": "start" if resolved.beta else "none"}
            )
        check_sampling(name, resolved)
    if row.source == "parameters":
        check_population(name, resolved)
    return resolved


def check_precision(name: str, config: TrainConfig) -> None:
    """Weights in bfloat16 are multiplied in it, and are moved by an optimiser that keeps what they
    cannot hold.
    """
    if config.param_dtype != "bfloat16":
        return
    if config.dtype == "float32":
        what = "weights held in bfloat16 are multiplied in bfloat16, not in float32."
        raise UsageError(
            what, where="dtype", fix="Leave dtype out, or hold the weights in float32."
        )
    if ALGORITHMS[name].source == "parameters" and not config.use_peft:
        what = f"`{name}` moves the weights themselves, by less than bfloat16 can tell apart."
        raise UsageError(
            what, where="param_dtype", fix="Leave it out, or set use_peft: adapters are float32."
        )


def check_population(name: str, config: TrainConfig) -> None:
    """Options of every row that mean nothing where nothing is differentiated, and populations that
    are no pairs, are errors.
    """
    for option in (
        *ADAMW,
        "gradient_checkpointing",
        "disable_dropout",
        "lora_dropout",
        "top_p",
        "top_k",
    ):
        if getattr(config, option) != TrainConfig.model_fields[option].default:
            raise UsageError(
                f"option `{option}` does not apply to `{name}`: no gradient, no AdamW.",
                where=option,
                fix="Leave it out.",
            )
    assert config.population is not None and config.temperature is not None
    if config.population % 2:
        raise UsageError(
            "members come in pairs, +sigma and -sigma: the population must be even.",
            where="population",
        )
    if config.temperature < 0:
        raise UsageError("the temperature is 0 (greedy) or above.", where="temperature")
    if config.temperature == 0 and config.num_generations != 1:
        raise UsageError(
            "greedy answers to a prompt are all the same.",
            where="num_generations",
            fix="Set temperature, or leave it at 1.",
        )


def check_sampling(name: str, config: TrainConfig) -> None:
    """Contradictions that would train wrongly, or not at all, are errors now."""
    if ALGORITHMS[name].compares and config.num_generations < 2:
        raise UsageError(
            f"`{name}` compares the samples of a prompt: num_generations must be at least 2.",
            where="num_generations",
        )
    if not config.temperature > 0:
        raise UsageError(
            "training samples need a temperature above 0.",
            where="temperature",
            fix="Greedy decoding belongs to `laurel eval`.",
        )
    if config.top_p < 1 or config.top_k > 0:
        raise UsageError(
            "truncated sampling is refused in training: the tokens left out make every importance"
            " ratio wrong.",
            where="top_p" if config.top_p < 1 else "top_k",
            fix="Lower the temperature, or truncate in `laurel sample` and `laurel eval`.",
        )
    if not config.disable_dropout:
        raise UsageError(
            "dropout must be off: the sampler has none, so the ratio would not start at 1.",
            where="disable_dropout",
        )
    if config.beta:
        if config.kl_placement is not None:
            check_kl(config.kl_placement, config.kl_estimator)
        if config.reference == "none":
            raise UsageError(
                "beta > 0 needs a reference.",
                where="reference",
                fix="Set reference=start, or beta=0.",
            )
    if bool(config.ptx_coef) != (config.ptx_dataset is not None):
        raise UsageError(
            "mixing in pre-training takes a coefficient and data.",
            where="ptx_coef, ptx_dataset",
            fix="Give both, or none.",
        )
    if config.critic_model == "reward" and not any(
        str(name).startswith("model:") for name in config.rewards or ()
    ):
        fix = "Name a reward model:FOLDER, or set critic_model to policy."
        raise UsageError(
            "no learned reward to start the critic from.", where="critic_model=reward", fix=fix
        )
    if config.on_alarm == "return" and not config.save_steps:
        raise UsageError(
            "there will be no checkpoint to return to.", where="on_alarm", fix="Set save_steps."
        )
    if 0 < (config.delta or 0) <= 1:
        raise UsageError("dual clip needs delta > 1 (or 0: off).", where="delta")
    if ALGORITHMS[name].objective is detached_ratio and config.epsilon_high < 1:
        raise UsageError(
            "here epsilon_high caps the ratio itself: below 1 it would shrink every token's"
            " weight.",
            where="epsilon_high",
        )
    if (
        ALGORITHMS[name].objective is sequence_ratio
        and config.loss_aggregation != "seq_mean_token_mean"
    ):
        raise UsageError(
            "one ratio per sequence is one value per sequence.",
            where="loss_aggregation",
            fix="Use seq_mean_token_mean.",
        )
    if (config.overlong_buffer or 0) >= config.max_completion_length:
        raise UsageError(
            "overlong_buffer must be smaller than max_completion_length.", where="overlong_buffer"
        )
    if config.reward_weights is not None and len(config.reward_weights) != len(
        config.rewards or [""]
    ):
        raise UsageError("reward_weights and rewards differ in length.", where="reward_weights")


def reads(objective: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters of an objective before `batch`: the fields of a model's `Outputs` that it is a
    function of.
    """
    names = list(inspect.signature(objective).parameters)
    return tuple(names[: names.index("batch")]) if "batch" in names else ()


def bind(function: Callable[..., Any], config: TrainConfig, **supplied: Any) -> Callable[..., Any]:
    """`function` with its options taken by name from the configuration, and what the loop
    supplies.
    """
    takes = inspect.signature(function).parameters
    options = {option: getattr(config, option) for option in parameters(function)}
    options.update({option: value for option, value in supplied.items() if option in takes})
    return lambda *tensors: function(*tensors, **options)
