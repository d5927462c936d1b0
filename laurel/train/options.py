"""Which options belong to a row of the table, with their defaults; what contradicts is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError, nearest
from laurel.objective.constraint import check_of
from laurel.objective.kl import check_kl
from laurel.train.algorithms import ALGORITHMS
from laurel.train.binding import option_defaults
from laurel.train.row import Algorithm

ADAMW = ("optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")


def defaults(name: str) -> dict[str, Any]:
    """Every option that belongs to this algorithm and not to all, with its default."""
    row = ALGORITHMS[name]
    objectives = [row.objective, *(term.objective for term in row.terms)]
    own = {
        **row.source.options,
        **option_defaults(row.weigh),
        **{k: v for f in objectives for k, v in option_defaults(f).items()},
        **row.defaults,
    }
    if (
        own.get("kl_placement") is not None
        and own.get("kl_estimator") is None
        and row.source.sampled
    ):
        own["kl_estimator"] = "k1" if own["kl_placement"] == "reward" else "k3"
    return own


def applicable_options(name: str) -> dict[str, Any]:
    """Every option that this algorithm has, also those that all have, with its default here."""
    own = defaults(name)
    elsewhere = set[str]().union(*(defaults(other) for other in ALGORITHMS)) - set(own)
    fields = TrainConfig.model_fields.items()
    return {
        option: own.get(option, field.default)
        for option, field in fields
        if option not in elsewhere
    }


def resolve(name: str, config: TrainConfig) -> TrainConfig:
    """The configuration with this algorithm's defaults filled in.

    Options that do not apply, or contradict, are refused.
    """
    if name not in ALGORITHMS:
        raise UsageError(f"unknown algorithm `{name}`.", fix=nearest(name, ALGORITHMS))
    row, own = ALGORITHMS[name], defaults(name)
    refuse_foreign(name, config, own)
    given = {option: value for option in own if (value := getattr(config, option)) is not None}
    if "kl_placement" in given and "kl_estimator" not in given:
        given["kl_estimator"] = "k1" if given["kl_placement"] == "reward" else "k3"
    resolved = config.model_copy(update={**own, **given})
    resolved = resolved.model_copy(update=by_others(row, resolved))
    check_unit(name, resolved)
    check_given(config)
    check_precision(name, resolved)
    if row.source.partners and resolved.prompts_per_step < 2:
        what = "answers to other prompts are needed, and there is one prompt."
        raise UsageError(what, where="prompts_per_step", fix="At least 2.")
    for objective in (row.objective, *(term.objective for term in row.terms)):
        if check := check_of(objective):
            check(name, **options_of(check, resolved))
    if row.source.sampled:
        check_sampling(name, resolved)
    if row.source.population:
        check_population(name, resolved)
    return resolved


def by_others(row: Algorithm, config: TrainConfig) -> dict[str, Any]:
    """The options whose defaults depend on other options.

    Turns without an environment, and how to reach servers where none is named, are nothing.
    """
    found = dict[str, Any]()
    if row.source.prompts and config.env is None:
        found["max_turns"] = None
    if row.source.sampled and not config.engine:
        found |= dict.fromkeys(("engine", "engine_timeout", "engine_weights"))
    if row.source.sampled and config.reference is None:
        found["reference"] = "start" if config.beta else "none"
    return found


def refuse_foreign(name: str, config: TrainConfig, own: dict[str, Any]) -> None:
    """UsageError for an option that is set and belongs to other algorithms."""
    somewhere = set[str]().union(*(defaults(other) for other in ALGORITHMS))
    for option in sorted(somewhere - set(own)):
        if getattr(config, option) is not None:
            users = [other for other in ALGORITHMS if option in defaults(other)]
            raise UsageError(
                f"option `{option}` does not apply to `{name}`.",
                fix=f"It belongs to: {', '.join(users)}.",
            )


def check_unit(name: str, config: TrainConfig) -> None:
    """UsageError for an aggregation that the row's objective has no unit for."""
    row = ALGORITHMS[name]
    own = row.defaults["loss_aggregation"]
    compares = own == "comparison_mean"
    if (config.loss_aggregation == "comparison_mean") != compares:
        what = (
            f"`{name}` compares answers: its unit is a comparison."
            if compares
            else f"`{name}` compares no answers."
        )
        raise UsageError(what, where="loss_aggregation", fix=f"Leave it at {own}.")
    if not row.source.prompts and config.loss_aggregation == "token_sum_over_const":
        what = (
            "`token_sum_over_const` divides by max_completion_length, which supervised data has"
            " not."
        )
        raise UsageError(what, where="loss_aggregation")


def check_given(config: TrainConfig) -> None:
    """UsageError for options that were given and need another that was not."""
    if config.max_turns is not None and config.env is None:
        raise UsageError(
            "max_turns belongs to an environment.",
            where="max_turns",
            fix="Name one with env, or leave it out.",
        )
    for option in ("engine_timeout", "engine_weights"):
        if getattr(config, option) is not None and not config.engine:
            what = f"{option} belongs to servers that sample, and none is named."
            raise UsageError(what, where=option, fix="Name them with engine, or leave it out.")
    if config.stop_at is not None and not config.eval_steps:
        raise UsageError(
            "stop_at needs an evaluation to look at.", where="stop_at", fix="Set eval_steps."
        )


def options_of(check: Callable[..., None], config: TrainConfig) -> dict[str, Any]:
    """The options that the check of an objective takes, by name."""
    return {option: getattr(config, option) for option in option_defaults(check)}


def check_precision(name: str, config: TrainConfig) -> None:
    """UsageError for options that weights in bfloat16 contradict.

    They are multiplied in bfloat16, and moved by an optimiser that keeps what they cannot hold.
    """
    if config.param_dtype != "bfloat16":
        return
    if config.dtype == "float32":
        what = "weights held in bfloat16 are multiplied in bfloat16, not in float32."
        raise UsageError(
            what, where="dtype", fix="Leave dtype out, or hold the weights in float32."
        )
    if ALGORITHMS[name].source.population and not config.use_peft:
        what = f"`{name}` moves the weights themselves, by less than bfloat16 can tell apart."
        raise UsageError(
            what, where="param_dtype", fix="Leave it out, or set use_peft: adapters are float32."
        )


def check_population(name: str, config: TrainConfig) -> None:
    """UsageError for options of gradients, and for populations that are no pairs."""
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
    check_draws(name, config)
    check_correction(name, config)
    check_anchor(config)
    check_reward_options(config)
    if config.on_alarm == "return" and not config.save_steps:
        raise UsageError(
            "there will be no checkpoint to return to.", where="on_alarm", fix="Set save_steps."
        )
    if (config.overlong_buffer or 0) >= (config.max_completion_length or 0):
        raise UsageError(
            "overlong_buffer must be smaller than max_completion_length.", where="overlong_buffer"
        )


def check_draws(name: str, config: TrainConfig) -> None:
    """Samples must be draws of the policy that is trained, as it is."""
    assert config.num_generations is not None and config.temperature is not None
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


def check_correction(name: str, config: TrainConfig) -> None:
    """UsageError for a weight per token where whole answers are compared."""
    compares = config.loss_aggregation == "comparison_mean"
    if compares and config.importance_sampling_correction == "token_truncate":
        raise UsageError(
            f"`{name}` compares whole answers: there is no weight of a token to multiply.",
            where="importance_sampling_correction",
            fix="Use none (a comparison's optimum does not depend on who gave the answers), or"
            " sequence_mask, which leaves answers out.",
        )


def check_anchor(config: TrainConfig) -> None:
    """What keeps the policy near a reference, or near other text, needs it."""
    if config.beta:
        if config.kl_placement is not None:
            check_kl(config.kl_placement, str(config.kl_estimator))
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


def check_bootstrap(config: TrainConfig) -> None:
    """UsageError for options that contradict bootstrapping.

    These end, penalise or leave out completions that were cut off.
    """
    for option in ("missing_eos_penalty", "mask_truncated_completions", "overlong_buffer"):
        if getattr(config, option):
            what = "bootstrapping takes a completion that was cut off as one that goes on."
            fix = f"Set {option}={'false' if option.startswith('mask') else 0}."
            raise UsageError(what, where=f"bootstrap_truncated, {option}", fix=fix)


def check_reward_options(config: TrainConfig) -> None:
    """UsageError for options of rewards that contradict each other.

    A critic from the reward model needs one; each reward has one weight; a completion that was cut
    off is over, left out, or goes on.
    """
    if config.bootstrap_truncated:
        check_bootstrap(config)
    if config.critic_model == "reward" and not any(
        str(name).startswith("model:") for name in config.rewards or ()
    ):
        fix = "Name a reward model:FOLDER, or set critic_model to policy."
        raise UsageError(
            "no learned reward to start the critic from.", where="critic_model=reward", fix=fix
        )
    if config.reward_weights is not None and len(config.reward_weights) != len(
        config.rewards or [""]
    ):
        raise UsageError("reward_weights and rewards differ in length.", where="reward_weights")
