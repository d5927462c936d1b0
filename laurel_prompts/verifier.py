"""The other reward, r(q, a): is this answer right?

It needs the answer, so it ranks answers at test time and cannot save a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laurel.measure.intervals import Interval, cluster_bootstrap_mean
from laurel_prompts.features import HashedWords, PrincipalDirections
from laurel_prompts.logs import Log, fold_of_query
from laurel_prompts.models import Logistic
from laurel_prompts.policy_value import auc


@dataclass(frozen=True)
class Verifier:
    """A verifier's figures, out of fold.

    AUC and accuracy over `answers` logged answers, always-no's accuracy, and the value of the
    answers it likes best.
    """

    answers: int
    auc: float
    accuracy: float
    always_no: float
    value: Interval | None
    score_SP: np.ndarray


def verify(log: Log, *, seed: int = 0) -> Verifier | None:
    """r(q, a) = sigmoid(w . features(q, a)), cross-fitted over questions.

    None where fewer than 50 answers of either kind were logged.

    value: every prompt is sent, which costs as many calls, and the best-scored answer is kept; of
    queries with every answer logged.
    """
    cells = sorted(cell for cell in log.responses if not np.isnan(log.reward_SP[cell]))
    if not cells:
        return None
    s, p = np.array(cells).T
    right = log.reward_SP[s, p]
    if min((right > 0.5).sum(), (right <= 0.5).sum()) < 50:
        return None
    answers = [log.responses[cell] for cell in cells]
    # directions are found without any label
    x_answers, x_queries = _directions(answers, 32, seed), _directions(log.queries, 16, seed)
    x = np.hstack([x_answers, x_queries[s]])
    score = _out_of_fold(x, right, fold_of_query(log.question_S, seed=seed)[s])
    score_SP = np.full(log.reward_SP.shape, np.nan)
    score_SP[s, p] = score
    hit = ((score > 0.5) == (right > 0.5)).mean()
    always_no = float((right <= 0.5).mean())
    value = _best_answers(log, score_SP)
    return Verifier(len(cells), auc(score, right), float(hit), always_no, value, score_SP)


def _directions(texts: Sequence[str], count: int, seed: int) -> np.ndarray:
    rows = HashedWords()(texts)
    return PrincipalDirections.fit(rows, count=count, seed=seed)(rows)


def _out_of_fold(x: np.ndarray, right: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """The chance that each answer is right, by a model of the other folds."""
    no_prompt = np.zeros((1, 0))
    score = np.empty(len(x))
    for k in range(5):
        inside = fold != k
        outside = ~inside
        model = Logistic("features", shared=30.0).fit(x[inside], no_prompt, right[inside, None])
        score[outside] = model.predict(x[outside], no_prompt, np.array([0]))[:, 0]
    return score


def _best_answers(log: Log, score_SP: np.ndarray) -> Interval | None:
    """The mean reward of the answers it likes best, over queries with every answer logged."""
    whole_S = ~np.isnan(score_SP).any(1) & log.logged_SP.all(1)
    if not whole_S.any():
        return None
    best_S = score_SP[whole_S].argmax(1)
    kept = log.reward_SP[whole_S, best_S]
    return cluster_bootstrap_mean(kept.tolist(), log.question_S[whole_S].tolist())
