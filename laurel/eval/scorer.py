"""How good a saved scorer is on rows of pairs, rankings, outcomes or steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from laurel.core.config import EvalConfig
from laurel.core.errors import UsageError
from laurel.data.formats import map_layout, rows_fit_for
from laurel.data.source import load_rows
from laurel.eval.verdict import Verdict, judge_scorer
from laurel.model.rows import encode_answers
from laurel.model.scorer import load_scorer
from laurel.rollout.source import OUTCOMES, RANKINGS, STEPS, Source


def evaluate_scorer(config: EvalConfig) -> tuple[Verdict, int]:
    """The verdict of the rows of `config.dataset` on the scorer in `config.model`.

    Also how many rows did not fit into its max_length.

    A scorer of three classes is held against steps, one of a single number against outcomes where
    rows have a `label`, else against pairs or rankings.
    """
    faults: list[UsageError] = []
    rows = load_rows(
        config.dataset,
        split=config.dataset_split,
        seed=config.seed,
        size=config.dataset_size,
        faults=faults,
    )
    rows = rows[: config.limit or None]
    scorer = load_scorer(
        config.model, device=config.device, dtype=config.dtype, chat_template=config.chat_template
    )
    source = label_source(scorer.num_labels, map_layout(rows[0]).columns if rows else {})
    ready = rows_fit_for(rows, source.needs, by="this scorer", faults=faults)
    fits = [
        row
        for row in ready
        if all(
            any(e.mask[1:])
            for e in encode_answers(scorer, row, train_on=None, max_length=scorer.card.max_length)
        )
    ]
    if not fits:
        raise UsageError(
            f"no row fits into the scorer's max_length={scorer.card.max_length}.",
            where=config.dataset,
        )
    return judge_scorer(scorer, fits, source), len(ready) - len(fits)


def label_source(labels: int, columns: Mapping[str, Any]) -> Source:
    """What a scorer with so many outputs is held against, where rows have these columns."""
    if labels == 3:
        return STEPS
    if labels > 1:
        raise UsageError(
            f"a scorer of {labels} classes is neither of rewards, outcomes nor steps.",
            where="model",
        )
    return OUTCOMES if "label" in columns else RANKINGS
