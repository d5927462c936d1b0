"""From a log to a choice.

The reward model that cross-validation picks, when the default is left, whether new prompts may be
used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from laurel.core.errors import UsageError
from laurel.measure.intervals import Interval
from laurel_prompts.features import Encoder, PrincipalDirections, encode_cached, encoder
from laurel_prompts.logs import Log, fold_of_query
from laurel_prompts.model_selection import (
    MARGINS,
    Trial,
    cross_fitted,
    gains_by_margin,
    mean_rewards,
    pick_model_and_margin,
    summed_losses,
    value_S,
)
from laurel_prompts.models import Logistic, Model, Rates, Trees, candidate_models
from laurel_prompts.policy_value import GAIN, auc, clustered_mean, verdict
from laurel_prompts.predictor import Predictor

STAGES = (20, 40, 80, 160)
"""Numbers of trees that are tried."""


@dataclass(frozen=True)
class Fit:
    """What `fit` found. `trials`: the one that was picked, then the others by log loss.

    gain: over the default prompt, out of fold on every training query (None: cannot be told). Each
    query's default, model and margin were picked without its fold. unseen: what adding a prompt
    that training did not see changes.
    """

    predictor: Predictor
    trials: list[Trial]
    gain: Interval | None
    unseen: Interval | None


@dataclass(frozen=True)
class CrossValidation:
    """Cross-validation of every model on some rows of a log.

    Features, folds, and what each model predicted out of fold.
    """

    log: Log
    encode: Encoder
    queries: PrincipalDirections
    prompts: PrincipalDirections
    x_SD: np.ndarray
    e_PE: np.ndarray
    fold_S: np.ndarray
    trials: list[Trial]


def fit(
    log: Log,
    *,
    features: str = "words",
    seed: int = 0,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Fit:
    """Learn r(q, p) and the choice from the rows of `log` that are not test rows.

    Everything that could be tuned is chosen by 5-fold cross-validation over questions inside them:
    the model by what its choice is worth (`picking.pick`), and the margin by which another prompt
    must be predicted to beat the default before it is sent. Where the gain of choosing so, out of
    fold, is not credible the margin is infinite: the default it is. features: see
    `features.encoder`; cache: a folder for rows of slow encoders.
    """
    got = cross_validated(log, features=features, seed=seed, cache=cache, say=say)
    train = got.log
    rate_P = mean_rewards(train, lower=True)
    best, margin, gained = _pick_trial(got, int(np.argmax(rate_P)))
    say(f"picked: {best.name}")
    unseen = _gain_of_unseen_prompts(best.model, train, got.x_SD, got.e_PE, got.fold_S)
    predictor = Predictor(
        model=best.model.fit(got.x_SD, got.e_PE, train.reward_SP),
        encode=got.encode,
        query_directions=got.queries,
        prompt_directions=got.prompts,
        names=train.names,
        prompts=train.prompts,
        rate_P=rate_P,
        margin=margin,
        cost_P=None if train.cost_SP is None else np.nanmean(train.cost_SP, 0),
        unseen=unseen is not None and verdict(unseen) == GAIN,
    )
    return Fit(
        predictor, [best, *(trial for trial in got.trials if trial is not best)], gained, unseen
    )


def _pick_trial(got: CrossValidation, default: int) -> tuple[Trial, float, Interval | None]:
    """(the trial whose choice is worth most, the margin to leave the default by, the gain)."""
    gain_TMS = gains_by_margin(got.log, got.trials, default)
    if gain_TMS is None:
        return got.trials[0], float("inf"), None
    gained = cross_fitted(got.log, got.trials, got.fold_S)
    place, number = pick_model_and_margin(gain_TMS, summed_losses(got.log, got.trials))
    credible = gained is not None and verdict(gained) == GAIN
    return got.trials[place], MARGINS[number] if credible else float("inf"), gained


def _training_part(log: Log) -> Log:
    """The rows that are not test rows, of prompts tried there; UsageError for too few."""
    train = log.rows(~log.test_S)
    train = train.columns([p for p in range(len(log.names)) if train.logged_SP[:, p].any()])
    questions, prompts = len(np.unique(train.question_S)), len(train.names)
    if prompts < 2 or questions < 10:
        raise UsageError(
            f"{questions} questions and {prompts} prompts in the training part: nothing to choose"
            " from.",
            where=log.name,
            fix="Log at least 10 questions and 2 prompts.",
        )
    return train


def cross_validated(
    log: Log,
    *,
    features: str = "words",
    seed: int = 0,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> CrossValidation:
    """What every model says out of fold on the rows that are not test rows, of prompts tried there.

    The best log loss first.
    """
    train = _training_part(log)
    encode = encoder(features)
    say(f"encoding {len(log.queries):,} queries ({features})")
    rows, prompt_rows = (
        encode_cached(encode, log.queries, cache)[~log.test_S],
        encode(train.prompts),
    )
    queries = PrincipalDirections.fit(rows, seed=seed)
    prompts = PrincipalDirections.fit(prompt_rows, count=min(8, len(train.names) - 1), seed=seed)
    x_SD, e_PE = queries(rows), prompts(prompt_rows)
    fold_S = fold_of_query(train.question_S, seed=seed)
    trials = []
    for model in candidate_models():
        found = _trials(model, train, x_SD, e_PE, fold_S)
        trials += found
        for trial in found:
            shown = "" if trial.value is None else f"  value {trial.value:.3f}"
            say(f"{trial.name:<40} log loss {trial.log_loss:.4f}  AUC {trial.auc:.3f}{shown}")
    trials.sort(key=lambda trial: (np.isnan(trial.log_loss), trial.log_loss))
    return CrossValidation(train, encode, queries, prompts, x_SD, e_PE, fold_S, trials)


def gain_on_every_query(
    log: Log, *, features: str = "words", seed: int = 0, cache: Path | None = None
) -> Interval | None:
    """The gain of choosing over the default on every query of a log, each valued out of fold.

    Test rows are included.

    Of the prompts that training queries were sent with. One held-out fifth has a fifth of the
    queries, and so a wider interval.
    """
    seen = [p for p in range(len(log.names)) if log.logged_SP[~log.test_S, p].any()]
    got = cross_validated(
        replace(log.columns(seen), test_S=np.zeros_like(log.test_S)),
        features=features,
        seed=seed,
        cache=cache,
    )
    return cross_fitted(got.log, got.trials, got.fold_S)


def value_of(
    log: Log, choice_S: np.ndarray, predicted_SP: np.ndarray, baseline_S: np.ndarray | None = None
) -> Interval | None:
    """The mean of `value_S` with its interval.

    With `baseline_S` the mean gain over another choice, paired.
    """
    value = value_S(log, choice_S, predicted_SP)
    if value is None:
        return None
    if baseline_S is not None:
        other = value_S(log, baseline_S, predicted_SP)
        assert other is not None
        value = value - other
    known = ~np.isnan(value)
    return clustered_mean(value[known], log.question_S[known])


def _trials(
    model: Model, log: Log, x_SD: np.ndarray, e_PE: np.ndarray, fold_S: np.ndarray
) -> list[Trial]:
    """Out-of-fold predictions of a model, of trees after each stage."""
    stages = STAGES if isinstance(model, Trees) else (0,)
    predicted = [np.empty(log.reward_SP.shape) for _ in stages]
    which = np.arange(len(e_PE))
    for k in np.unique(fold_S):
        inside, outside = fold_S != k, fold_S == k
        if isinstance(model, Trees):
            made = Trees(model.leaves, max(STAGES)).staged(
                x_SD[inside], e_PE, log.reward_SP[inside], STAGES
            )
        else:
            made = [model.fit(x_SD[inside], e_PE, log.reward_SP[inside])]
        for table, one in zip(predicted, made, strict=True):
            table[outside] = one.predict(x_SD[outside], e_PE, which)
    models = [Trees(model.leaves, n) if isinstance(model, Trees) else model for n in stages]
    return [_trial(one, log, table) for one, table in zip(models, predicted, strict=True)]


def _trial(model: Model, log: Log, predicted_SP: np.ndarray) -> Trial:
    """A model with its figures out of fold."""
    tried_SP = log.logged_SP
    predicted, reward = predicted_SP[tried_SP], log.reward_SP[tried_SP]
    value = value_S(log, predicted_SP.argmax(1), predicted_SP)
    return Trial(
        describe_model(model),
        model,
        log_loss(predicted, reward),
        auc(predicted, reward),
        None if value is None else float(np.nanmean(value)),
        predicted_SP,
    )


def log_loss(predicted: np.ndarray, reward: np.ndarray) -> float:
    """The mean cross-entropy of chances against rewards in [0, 1]."""
    p = np.clip(predicted, 1e-6, 1 - 1e-6)
    return float(-(reward * np.log(p) + (1 - reward) * np.log(1 - p)).mean())


def describe_model(model: Model) -> str:
    """A model in words."""
    if isinstance(model, Trees):
        return f"trees, {model.leaves} leaves, {model.rounds} rounds"
    if isinstance(model, Rates):
        return "each prompt's mean reward"
    assert isinstance(model, Logistic)
    return f"logistic, {model.kind}, own {model.own:g}"


def _gain_of_unseen_prompts(
    model: Model, log: Log, x_SD: np.ndarray, e_PE: np.ndarray, fold_S: np.ndarray
) -> Interval | None:
    """What adding a prompt that training did not use does to the choice.

    Each prompt is left out in turn, out of fold.

    The value of choosing among all prompts, one of them unseen, minus that of choosing among the
    seen ones. Needs 3 prompts, all tried.
    """
    count = len(e_PE)
    if count < 3 or not log.logged_SP.all() or isinstance(model, Rates):
        return None
    inside, outside = fold_S != 0, fold_S == 0
    reward = log.reward_SP[outside]
    gains = np.zeros(len(reward))
    for left in range(count):
        kept = [p for p in range(count) if p != left]
        which = np.full(count, -1)
        which[kept] = np.arange(count - 1)
        table = model.fit(x_SD[inside], e_PE[kept], log.reward_SP[inside][:, kept]).predict(
            x_SD[outside], e_PE, which
        )
        seen = np.array(kept)[table[:, kept].argmax(1)]
        at = np.arange(len(reward))
        gains += (reward[at, table.argmax(1)] - reward[at, seen]) / count
    return clustered_mean(gains, log.question_S[outside])
