"""From a log to a choice: the reward model that cross-validation picks, when the default is left, whether new prompts may be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laurel.core.errors import UsageError
from laurel.measure.intervals import Interval, wilson
from laurel.prompt.features import Directions, encoded, encoder
from laurel.prompt.logs import Log, folds
from laurel.prompt.models import Logistic, Model, Rates, Trees, grid
from laurel.prompt.predictor import Predictor, leaving
from laurel.prompt.worth import FEWEST, GAIN, auc, doubly_robust_S, mean_of, one_hot, verdict
from laurel.prompt.worth import value_S as exact_S

MARGINS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
"""Predicted gains over the default prompt that may be asked for before it is left."""
STAGES = (20, 40, 80, 160)
"""Numbers of trees that are tried."""


@dataclass(frozen=True)
class Trial:
    """One model in cross-validation: its mean log loss, AUC, and the value of its choice per query (None: cannot be told)."""

    name: str
    model: Model
    log_loss: float
    auc: float
    value: float | None
    predicted_SP: np.ndarray


@dataclass(frozen=True)
class Fit:
    """What `fit` found. `trials`: best first. `gain`: of the choice over the default prompt, out of fold (None: cannot be told)."""

    predictor: Predictor
    trials: list[Trial]
    gain: Interval | None
    unseen: Interval | None


def fit(
    log: Log, *, features: str = "words", seed: int = 0, cache: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Fit:
    """Learn r(q, p) and the choice from the rows of `log` that are not test rows.

    Everything that could be tuned is chosen by 5-fold cross-validation over questions inside them: the model by log loss, then the
    margin by which another prompt must be predicted to beat the default before it is sent. Where no margin's gain is credible the
    margin is infinite: the default it is. features: see `features.encoder`; cache: a folder for rows of slow encoders.
    """
    train = log.rows(~log.test_S)
    seen = [p for p in range(len(log.names)) if train.logged_SP[:, p].any()]
    train = train.columns(seen)
    if len(seen) < 2 or len(np.unique(train.question_S)) < 10:
        what = f"{len(np.unique(train.question_S))} questions and {len(seen)} prompts in the training part"
        raise UsageError(f"{what}: nothing to choose from.", where=log.name, fix="Log at least 10 questions and 2 prompts.")
    encode = encoder(features)
    say(f"encoding {len(log.queries):,} queries ({features})")
    rows, prompt_rows = encoded(encode, log.queries, cache)[~log.test_S], encode(train.prompts)
    queries, prompts = Directions.fit(rows, seed=seed), Directions.fit(prompt_rows, count=min(8, len(seen) - 1), seed=seed)
    x_SD, e_PE = queries(rows), prompts(prompt_rows)
    fold_S = folds(train.question_S, seed=seed)
    trials = []
    for model in grid():
        found = _trials(model, train, x_SD, e_PE, fold_S)
        trials += found
        for trial in found:
            shown = "" if trial.value is None else f"  value {trial.value:.3f}"
            say(f"{trial.name:<40} log loss {trial.log_loss:.4f}  AUC {trial.auc:.3f}{shown}")
    trials.sort(key=lambda trial: (np.isnan(trial.log_loss), trial.log_loss))
    best = trials[0]
    rate_P = rates(train, lower=True)
    default = int(np.argmax(rate_P))
    margin, gained = _margin(train, best.predicted_SP, default)
    unseen = _unseen(best.model, train, x_SD, e_PE, fold_S)
    predictor = Predictor(
        model=best.model.fit(x_SD, e_PE, train.reward_SP), encode=encode, query_directions=queries, prompt_directions=prompts,
        names=train.names, prompts=train.prompts, rate_P=rate_P, margin=margin,
        cost_P=None if train.cost_SP is None else np.nanmean(train.cost_SP, 0),
        unseen=unseen is not None and verdict(unseen) == GAIN,
    )  # fmt: skip
    return Fit(predictor, trials, gained, unseen)


def value_S(log: Log, choice_S: np.ndarray, predicted_SP: np.ndarray) -> np.ndarray | None:
    """What a choice is worth on each query of a log: exact where every prompt was tried, nan elsewhere; None if that is nowhere.

    With propensities doubly robust, for every query, unless everything was tried.
    """
    policy, whole = one_hot(choice_S, len(log.names)), np.all(log.logged_SP, axis=1)
    if log.propensity_SP is not None and not whole.all():
        return doubly_robust_S(log.reward_SP, log.propensity_SP, policy, predicted_SP)
    if not whole.any():
        return None
    value = np.full(len(whole), np.nan)
    value[whole] = exact_S(log.reward_SP[whole], policy[whole])
    return value


def value_of(log: Log, choice_S: np.ndarray, predicted_SP: np.ndarray, baseline_S: np.ndarray | None = None) -> Interval | None:
    """The mean of `value_S` with its interval; with `baseline_S` the mean gain over another choice, paired."""
    value = value_S(log, choice_S, predicted_SP)
    if value is None:
        return None
    if baseline_S is not None:
        other = value_S(log, baseline_S, predicted_SP)
        assert other is not None
        value = value - other
    known = ~np.isnan(value)
    return mean_of(value[known], log.question_S[known])


def rates(log: Log, *, lower: bool = False) -> np.ndarray:
    """The value of sending each prompt always: its mean reward, weighed by propensities where they are known (SNIPS); 0 if never tried.

    lower: the lower end of its Wilson interval at the effective number of rows, so that a prompt that was lucky twice does not lead.
    Without propensities only queries count on which every prompt was tried, if there are enough of them.
    """
    whole = np.all(log.logged_SP, axis=1)
    if log.propensity_SP is None and whole.sum() >= FEWEST:
        log = log.rows(whole)
    tried = log.logged_SP
    weight = np.where(tried, 1.0 if log.propensity_SP is None else 1 / np.where(tried, log.propensity_SP, 1.0), 0.0)
    total = np.maximum(weight.sum(0), 1e-12)
    mean_P = (weight * np.where(tried, log.reward_SP, 0.0)).sum(0) / total
    if not lower:
        return mean_P
    count_P = np.maximum(1, np.round(total**2 / np.maximum((weight**2).sum(0), 1e-12))).astype(int)
    return np.array([wilson(mean * count, count).low for mean, count in zip(mean_P.tolist(), count_P.tolist(), strict=True)])


def _trials(model: Model, log: Log, x_SD: np.ndarray, e_PE: np.ndarray, fold_S: np.ndarray) -> list[Trial]:
    """Out-of-fold predictions of a model, of trees after each stage."""
    stages = STAGES if isinstance(model, Trees) else (0,)
    predicted = [np.empty(log.reward_SP.shape) for _ in stages]
    which = np.arange(len(e_PE))
    for k in np.unique(fold_S):
        inside, outside = fold_S != k, fold_S == k
        if isinstance(model, Trees):
            made = Trees(model.leaves, max(STAGES)).staged(x_SD[inside], e_PE, log.reward_SP[inside], STAGES)
        else:
            made = [model.fit(x_SD[inside], e_PE, log.reward_SP[inside])]
        for table, one in zip(predicted, made, strict=True):
            table[outside] = one.predict(x_SD[outside], e_PE, which)
    found = []
    for stage, table in zip(stages, predicted, strict=True):
        told = Trees(model.leaves, stage) if isinstance(model, Trees) else model
        tried = log.logged_SP
        value = value_S(log, table.argmax(1), table)
        loss = log_loss(table[tried], log.reward_SP[tried])
        found.append(
            Trial(
                named(told), told, loss, auc(table[tried], log.reward_SP[tried]), None if value is None else float(np.nanmean(value)), table
            )
        )
    return found


def log_loss(predicted: np.ndarray, reward: np.ndarray) -> float:
    """The mean cross-entropy of chances against rewards in [0, 1]."""
    p = np.clip(predicted, 1e-6, 1 - 1e-6)
    return float(-(reward * np.log(p) + (1 - reward) * np.log(1 - p)).mean())


def named(model: Model) -> str:
    """A model in words."""
    if isinstance(model, Trees):
        return f"trees, {model.leaves} leaves, {model.rounds} rounds"
    if isinstance(model, Rates):
        return "each prompt's mean reward"
    assert isinstance(model, Logistic)
    return f"logistic, {model.kind}, own {model.own:g}"


def _margin(log: Log, predicted_SP: np.ndarray, default: int) -> tuple[float, Interval | None]:
    """The margin with the highest gain over the default, out of fold; infinite where that is not credible or cannot be told."""
    always = np.full(len(predicted_SP), default)
    found = []
    for margin in MARGINS:
        interval = value_of(log, leaving(predicted_SP, default, margin), predicted_SP, always)
        if interval is None:
            return float("inf"), None
        found.append((interval, margin))
    best, margin = max(found, key=lambda pair: pair[0].value)
    return (margin if verdict(best) == GAIN else float("inf")), best


def _unseen(model: Model, log: Log, x_SD: np.ndarray, e_PE: np.ndarray, fold_S: np.ndarray) -> Interval | None:
    """What adding a prompt that training did not see does to the choice: each prompt left out in turn, out of fold.

    The value of choosing among all prompts, one of them unseen, minus that of choosing among the seen ones. Needs 3 prompts, all tried.
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
        table = model.fit(x_SD[inside], e_PE[kept], log.reward_SP[inside][:, kept]).predict(x_SD[outside], e_PE, which)
        seen = np.array(kept)[table[:, kept].argmax(1)]
        at = np.arange(len(reward))
        gains += (reward[at, table.argmax(1)] - reward[at, seen]) / count
    return mean_of(gains, log.question_S[outside])
