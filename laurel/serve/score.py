"""A trained scorer behind the wire: prompt and answers in, scores out."""

from __future__ import annotations

from typing import Any

from laurel.core.errors import LaurelError
from laurel.model.scorer import Scorer
from laurel.serve.engine import Refused
from laurel.serve.schemas import ScoreRequest


def rows_to_score(body: ScoreRequest) -> list[dict[str, Any]]:
    """The rows that a request names: one for each answer."""
    ways = (
        body.rows is not None,
        body.prompt is not None or body.completions is not None,
        body.text_1 is not None or body.text_2 is not None,
    )
    if sum(ways) != 1:
        raise Refused("give `rows`, `prompt` and `completions`, or `text_1` and `text_2`.")
    if body.rows is not None:
        return [row.model_dump() for row in body.rows]
    if body.prompt is not None and body.completions is not None:
        return [{"prompt": body.prompt, "completion": one} for one in body.completions]
    if body.text_1 is None or body.text_2 is None:
        raise Refused("`prompt` and `completions` go together, and so do `text_1` and `text_2`.")
    answers = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    prompts = [body.text_1] * len(answers) if isinstance(body.text_1, str) else body.text_1
    if len(prompts) != len(answers):
        raise Refused(f"{len(prompts)} texts and {len(answers)} others do not pair.")
    return [{"prompt": a, "completion": b} for a, b in zip(prompts, answers, strict=True)]


def score_pairs(scorer: Scorer, rows: list[dict[str, Any]]) -> list[Any]:
    """The score of each row: a number, or one for each class."""
    try:
        return scorer.score(rows).tolist()
    except (LaurelError, UnicodeError, ValueError, TypeError, KeyError) as error:
        raise Refused(f"these rows cannot be scored: {error!s:.300}") from error
