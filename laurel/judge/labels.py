"""Judgements as rows to train on: preferences with the judge's uncertainty in `soft_label`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from laurel.judge.judge import Pair, spoken
from laurel.judge.verdict import INCONSISTENT, TIE, Judgement


def preference_row(
    pair: Pair, judged: Judgement, *, ties: bool = False, **more: Any
) -> dict[str, Any] | None:
    """A preference of one judgement; None where it prefers nothing.

    soft_label = P(chosen better), chosen being the likelier. margin: of levels. ties: a tie, and
    verdicts that differ and cancel out, are rows with soft_label 1/2. A failure never is a row.
    """
    likely = judged.soft_label
    if not judged.valid or likely is None:
        return None
    if not ties and (likely == 0.5 or judged.status == TIE):
        return None
    better, worse = (pair.first, pair.second) if likely >= 0.5 else (pair.second, pair.first)
    row: dict[str, Any] = {"prompt": pair.prompt}
    conversation = not isinstance(pair.prompt, str)
    for name, said in (("chosen", better), ("rejected", worse)):
        turn = [{"role": "assistant", "content": spoken(said)}]
        row[name] = turn if conversation and isinstance(said, str) else said
    row["soft_label"] = round(max(likely, 1 - likely), 6)
    if judged.margin is not None:
        row["margin"] = round(abs(judged.margin), 6)
    return {**row, **more}


def preference_rows(
    pairs: Sequence[Pair], judged: Sequence[Judgement], *, ties: bool = False
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows of all judgements, with `judge` and `id`; and how many came out as what."""
    rows = list[dict[str, Any]]()
    count = Counter[str]()
    for pair, judgement in zip(pairs, judged, strict=True):
        names = "+".join(sorted({verdict.judge for verdict in judgement.verdicts}))
        row = preference_row(pair, judgement, ties=ties, judge=names, id=pair.id)
        count[judgement.status] += 1
        if row is not None:
            rows.append(row)
        elif judgement.status == INCONSISTENT:
            count["inconsistent, left out"] += 1
    return rows, count
