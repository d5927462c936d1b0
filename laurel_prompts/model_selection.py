"""Which reward model, and when the default is left: by what the choice is worth out of fold.

And what all of that is worth itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laurel.measure.intervals import Interval, wilson
from laurel_prompts.logs import Log
from laurel_prompts.models import Model
from laurel_prompts.policy_value import FEWEST, clustered_mean, doubly_robust_S, one_hot
from laurel_prompts.policy_value import value_S as exact_S
from laurel_prompts.predictor import choose_over_default

MARGINS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
"""Predicted gains over the default prompt that may be asked for before it is left."""


@dataclass(frozen=True)
class Trial:
    """One model in cross-validation: its mean log loss, AUC, and the value of its choice per query.

    None: the log cannot tell.
    """

    name: str
    model: Model
    log_loss: float
    auc: float
    value: float | None
    predicted_SP: np.ndarray


def value_S(log: Log, choice_S: np.ndarray, predicted_SP: np.ndarray) -> np.ndarray | None:
    """What a choice is worth on each query of a log.

    Exact where every prompt was tried, nan elsewhere; None if that is nowhere.

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


def mean_rewards(log: Log, *, lower: bool = False) -> np.ndarray:
    """The value of sending each prompt always: its mean reward.

    Weighed by propensities where they are known (SNIPS); 0 if never tried.

    lower: the lower end of its Wilson interval at the effective number of rows, so that a prompt
    that was lucky twice does not lead. Without propensities only queries count on which every
    prompt was tried, if there are enough of them.
    """
    whole = np.all(log.logged_SP, axis=1)
    if log.propensity_SP is None and whole.sum() >= FEWEST:
        log = log.rows(whole)
    tried = log.logged_SP
    weight = np.where(
        tried,
        1.0 if log.propensity_SP is None else 1 / np.where(tried, log.propensity_SP, 1.0),
        0.0,
    )
    total = np.maximum(weight.sum(0), 1e-12)
    mean_P = (weight * np.where(tried, log.reward_SP, 0.0)).sum(0) / total
    if not lower:
        return mean_P
    count_P = np.maximum(1, np.round(total**2 / np.maximum((weight**2).sum(0), 1e-12))).astype(int)
    return np.array(
        [
            wilson(mean * count, count).low
            for mean, count in zip(mean_P.tolist(), count_P.tolist(), strict=True)
        ]
    )


def gains_by_margin(log: Log, trials: Sequence[Trial], default: int) -> np.ndarray | None:
    """Gains over the default of each model's choice with each margin: [trials, margins, S].

    nan where unknown.
    """
    made = []
    for trial in trials:
        always = value_S(log, np.full(len(log.queries), default), trial.predicted_SP)
        if always is None:
            return None
        for margin in MARGINS:
            sent = value_S(
                log, choose_over_default(trial.predicted_SP, default, margin), trial.predicted_SP
            )
            assert sent is not None
            made.append(sent - always)
    return np.array(made).reshape(len(trials), len(MARGINS), -1)


def summed_losses(log: Log, trials: Sequence[Trial]) -> np.ndarray:
    """[trials, S]: each query's summed cross-entropy over the prompts that were tried."""
    tried, reward = log.logged_SP, np.where(log.logged_SP, log.reward_SP, 0.0)
    made = []
    for trial in trials:
        p = np.clip(trial.predicted_SP, 1e-6, 1 - 1e-6)
        made.append(
            np.where(tried, -(reward * np.log(p) + (1 - reward) * np.log(1 - p)), 0.0).sum(1)
        )
    return np.array(made)


def pick_model_and_margin(gain_TMS: np.ndarray, loss_TS: np.ndarray) -> tuple[int, int]:
    """(model, margin): the highest mean gain.

    Of models whose gain is within one standard error of it, the best by log loss.

    Log loss alone may take a model that knows which queries are hard and nothing of the prompts;
    gains alone are noisy. A model that never leaves the default, such as each prompt's mean reward,
    is within that error only where no choice gains anything.
    """
    known = gain_TMS[:, :, ~np.isnan(gain_TMS[0, 0])]
    if not known.shape[2]:
        return int(loss_TS.sum(1).argmin()), 0
    margin_T = known.mean(2).argmax(1)
    own_TS = known[np.arange(len(known)), margin_T]
    behind_TS = own_TS[own_TS.mean(1).argmax()] - own_TS
    near = behind_TS.mean(1) <= behind_TS.std(1) / known.shape[2] ** 0.5
    best = int(np.where(near, loss_TS.sum(1), np.inf).argmin())
    return best, int(margin_T[best])


def cross_fitted(log: Log, trials: Sequence[Trial], fold_S: np.ndarray) -> Interval | None:
    """The gain of the whole procedure over the default, on every query.

    Default, model and margin are picked on the other folds.

    Nothing was picked by the rewards that it is valued on, so the best of many does not flatter
    itself. None: cannot be told.
    """
    found, loss_TS = np.full(len(log.queries), np.nan), summed_losses(log, trials)
    known: dict[int, np.ndarray | None] = {}
    for fold in np.unique(fold_S):
        inside = fold_S != fold
        default = int(mean_rewards(log.rows(inside), lower=True).argmax())
        if default not in known:
            known[default] = gains_by_margin(log, trials, default)
        gain_TMS = known[default]
        if gain_TMS is None:
            return None
        trial, margin = pick_model_and_margin(gain_TMS[:, :, inside], loss_TS[:, inside])
        found[~inside] = gain_TMS[trial, margin, ~inside]
    predicted = ~np.isnan(found)
    return clustered_mean(found[predicted], log.question_S[predicted]) if predicted.any() else None
