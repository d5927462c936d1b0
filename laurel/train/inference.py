"""`laurel.load`, `laurel.generate`, `laurel.evaluate`: a trained model in one line of Python.

The commands `laurel sample` and `laurel eval` walk the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from laurel.core.config import EvalConfig, build_config
from laurel.core.errors import UsageError
from laurel.core.sample import Draw, Group
from laurel.data.formats import is_messages
from laurel.data.source import Row
from laurel.eval.evaluate import Evaluation, pass_at_ks, sample_answers
from laurel.eval.evaluate import evaluate as evaluate_policy
from laurel.eval.load import load_policies, load_prompts
from laurel.eval.scorer import evaluate_scorer
from laurel.eval.verdict import Verdict
from laurel.model.classifier import trained_labels
from laurel.model.policy import Policy
from laurel.model.scorer import Scorer, load_scorer
from laurel.reward.mixture import load_rewards
from laurel.rollout.episode import load_env
from laurel.train.loop import train
from laurel.train.starter import STARTERS, build_starter


def load(model: str | Path = "starter", **options: Any) -> Policy | Scorer:
    """The model in a folder, or of the hub: a Policy, or the Scorer of a reward model.

    options: those of `laurel eval` that are about the model (device, dtype, chat_template, ...).
    """
    config = eval_config(model, options)
    if is_scorer(config.model):
        how: dict[str, Any] = {"device": config.device, "dtype": config.dtype}
        return load_scorer(config.model, chat_template=config.chat_template, **how)
    return policies_of(config)[0]


def generate(
    model: Policy | str | Path, prompts: Any, *, seed: int = 0, **options: Any
) -> list[Group]:
    """Completions of prompts: one Group a prompt, its samples with text, ids and log-probabilities.

    model: a folder, a name, or what `load` returned. prompts: a text or a list of messages, or
    several of them. options: those of `laurel sample` (num_generations, temperature, stop, ...).
    """
    name = "loaded" if isinstance(model, Policy) else model
    config = eval_config(name, {**options, "seed": seed})
    policy = model if isinstance(model, Policy) else policies_of(config)[0]
    single = isinstance(prompts, str) or is_messages(prompts)
    rows = rows_of([prompts] if single else list(prompts))
    return sample_rows(policy, rows, config)


def evaluate(model: str | Path, dataset: Any = "addition", **options: Any) -> Evaluation | Verdict:
    """How good a model is on a dataset: figures with intervals.

    Of a policy greedy accuracy, mean reward, and with num_generations > 1 pass@k and majority@k; of
    a scorer accuracy and calibration on rows with labels. options: those of `laurel eval`.
    """
    config = eval_config(model, {**options, "dataset": dataset})
    if is_scorer(config.model):
        return evaluate_scorer(config)[0]
    return evaluate_config(config)[1]


def eval_config(model: str | Path, options: Mapping[str, Any]) -> EvalConfig:
    """The configuration of an evaluation; unknown options are told with the nearest."""
    return build_config({**options, "model": str(model)}, EvalConfig, where="laurel")


def is_scorer(model: str) -> bool:
    """Does this folder hold a scorer?"""
    return model not in STARTERS and bool(trained_labels(model))


def policies_of(config: EvalConfig) -> tuple[Policy, Policy | None]:
    """The policy and the reference of a configuration; laurel's own models are built on demand."""

    def folder_of(model: str) -> str:
        if model not in STARTERS:
            return model
        return str(build_starter(model, config.dataset, config.seed, train))

    reference = folder_of(config.reference) if config.reference else None
    return load_policies(config, folder_of(config.model), reference)


def evaluate_config(
    config: EvalConfig,
    *,
    loaded: Callable[[Policy, int], None] | None = None,
    watch: Callable[[int], None] | None = None,
) -> tuple[Policy, Evaluation]:
    """Evaluate the policy of a configuration on its rows.

    loaded: called with the policy and the number of rows before the first answer; watch: with the
    number of rows of each portion done.
    """
    pass_at_ks(config)
    rows = load_prompts(config)
    mixture = load_rewards(
        config.rewards,
        config.reward_weights,
        rows,
        timeout=config.reward_timeout,
        max_failed_fraction=1.0,
    )
    policy, reference = policies_of(config)
    if loaded is not None:
        loaded(policy, len(rows))
    found = evaluate_policy(policy, rows, mixture, config, reference=reference, watch=watch)
    return policy, found


def rows_of(prompts: Sequence[Any]) -> list[Row]:
    """Prompts as rows: texts, or lists of messages."""
    for prompt in prompts:
        if not isinstance(prompt, str) and not is_messages(prompt):
            raise UsageError(
                f"`{prompt!r:.60}` is neither a text nor a list of messages.", where="prompts"
            )
    return [Row({"prompt": one}, f"prompt {i}", f"prompt-{i}") for i, one in enumerate(prompts, 1)]


def sample_rows(policy: Policy, rows: Sequence[Row], config: EvalConfig) -> list[Group]:
    """The groups of a configuration's samples of these rows."""
    make_env = load_env(config.env) if config.env else None
    return sample_answers(policy, rows, Draw.of(config, "sample", 0), make_env, config.max_turns)
