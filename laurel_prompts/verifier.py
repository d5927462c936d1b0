"""The other reward, r(q, a): is this answer right?

It needs the answer, so it ranks answers at test time and cannot save a call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laurel.measure.intervals import Interval, cluster_bootstrap_mean
from laurel_prompts.features import Directions, Words
from laurel_prompts.logs import Log, folds
from laurel_prompts.models import Logistic
from laurel_prompts.worth import auc


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
    words = Words()
    rows, query_rows = (
        words([log.responses[cell] for cell in cells]),
        words(log.queries),
    )  # directions are found without any label
    x = np.hstack(
        [
            Directions.fit(rows, count=32, seed=seed)(rows),
            Directions.fit(query_rows, count=16, seed=seed)(query_rows)[s],
        ]
    )
    fold, none = folds(log.question_S, seed=seed)[s], np.zeros((1, 0))
    score = np.empty(len(cells))
    for k in range(5):
        inside, outside = fold != k, fold == k
        model = Logistic("features", shared=30.0).fit(x[inside], none, right[inside, None])
        score[outside] = model.predict(x[outside], none, np.array([0]))[:, 0]
    table = np.full(log.reward_SP.shape, np.nan)
    table[s, p] = score
    whole = ~np.isnan(table).any(1) & log.logged_SP.all(1)
    kept = log.reward_SP[whole, np.where(np.isnan(table), -1, table).argmax(1)[whole]]
    value = (
        cluster_bootstrap_mean(kept.tolist(), log.question_S[whole].tolist())
        if whole.any()
        else None
    )
    hit = ((score > 0.5) == (right > 0.5)).mean()
    return Verifier(
        len(cells), auc(score, right), float(hit), float((right <= 0.5).mean()), value, table
    )
