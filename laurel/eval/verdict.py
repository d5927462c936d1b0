"""How good a trained scorer is on held-out rows.

Its figures stand beside chance and trivial baselines, with intervals and calibration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from laurel.data.source import Row
from laurel.measure.calibration import (
    expected_calibration_error,
    length_direction,
    reliability_table,
    report_pairs,
    share_interval,
)
from laurel.model.chat import Supervised
from laurel.model.rows import encode_answers, encode_steps
from laurel.model.scorer import Scorer
from laurel.rollout.source import OUTCOMES, RANKINGS, STEPS, Source


@dataclass(frozen=True, slots=True)
class Verdict:
    """An evaluation of a scorer: lines to read, figures by name, and the scores of the answers."""

    lines: list[str]
    figures: Mapping[str, Any]
    scores: list[float]

    def as_json(self) -> dict[str, Any]:
        """The figures as plain numbers: an interval is {"value", "low", "high", "n", "level"}."""
        return {name: to_plain_values(value) for name, value in self.figures.items()}


def to_plain_values(value: Any) -> Any:
    """Dataclasses as mappings, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [to_plain_values(item) for item in cast(Sequence[Any], value)]
    return value


def judge_scorer(
    scorer: Scorer, rows: Sequence[Row], source: Source, *, known: Sequence[Row] = ()
) -> Verdict:
    """Evaluate a scorer on rows of a source.

    Every row must fit into the `max_length` of the scorer's card.

    Every row must fit into the `max_length` of the scorer's card.

    known: training rows, from which preferring by length learns its direction. Without them it
    takes the direction that is better on the rows themselves, which errs on the baseline's side.
    """
    verdicts = {RANKINGS: comparison_verdict, OUTCOMES: outcome_verdict, STEPS: step_verdict}
    return verdicts[source](scorer, rows, known)


def comparison_verdict(scorer: Scorer, rows: Sequence[Row], known: Sequence[Row]) -> Verdict:
    """Pairs, all of a ranking: accuracy, calibration, and what preferring by length would get."""
    limit = scorer.card.max_length
    encoded = [encode_answers(scorer, row, train_on=None, max_length=limit) for row in rows]
    found: Any = scorer.score([one.ids for several in encoded for one in several])
    scores: list[float] = found.tolist()
    pairs = list(scored_pairs(rows, encoded, scores))
    lengths = lengths_of(scorer, known) or [pair.lengths for pair in pairs]
    direction = length_direction([a for a, _ in lengths], [b for _, b in lengths])
    report = report_pairs(
        [pair.scores[0] for pair in pairs],
        [pair.scores[1] for pair in pairs],
        [pair.lengths[0] for pair in pairs],
        [pair.lengths[1] for pair in pairs],
        direction=direction,
        clusters=[pair.prompt for pair in pairs],
    )
    figures = {name: getattr(report, name) for name in report.__dataclass_fields__}
    return Verdict(
        [f"held-out pairs: {len(pairs)}; chance .500", *str(report).splitlines()],
        {"pairs": len(pairs), **figures},
        scores,
    )


class ScoredPair(NamedTuple):
    """A better and a worse answer to a prompt: their scores, and their lengths in tokens."""

    prompt: str
    scores: tuple[float, float]
    lengths: tuple[int, int]


def scored_pairs(
    rows: Sequence[Row], encoded: Sequence[Sequence[Supervised]], scores: Sequence[float]
) -> Iterator[ScoredPair]:
    """Every pair of every row; scores: of all answers, row after row."""
    at = 0
    for row, answers in zip(rows, encoded, strict=True):
        own = scores[at : at + len(answers)]
        at += len(answers)
        for better, worse in ordered_pairs(row.columns):
            lengths = (answers[better].supervised, answers[worse].supervised)
            yield ScoredPair(str(row.columns["prompt"]), (own[better], own[worse]), lengths)


def ordered_pairs(columns: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The pairs (better, worse) of a row's answers; ties are none.

    Ranks (1, 2, 2): (0, 1), (0, 2).
    """
    ranks = columns.get("ranks", (1, 2))
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


def lengths_of(scorer: Scorer, rows: Sequence[Row]) -> list[tuple[int, int]]:
    """The lengths of chosen and rejected answers, in tokens, of those rows that are pairs."""
    pairs = [
        encode_answers(scorer, row, train_on=None, max_length=None)
        for row in rows
        if "chosen" in row.columns
    ]
    return [(a.supervised, b.supervised) for a, b in pairs]


def outcome_verdict(scorer: Scorer, rows: Sequence[Row], known: Sequence[Row]) -> Verdict:
    """The sign of the last score against the outcome; calibration of sigmoid(score).

    The baseline is always to predict the commoner outcome.
    """
    encoded = [
        encode_answers(scorer, row, train_on=None, max_length=scorer.card.max_length)[0]
        for row in rows
    ]
    scores: Any = scorer.score([one.ids for one in encoded]).double()
    chance: list[float] = scores.sigmoid().tolist()
    came = [float(row.columns["label"]) for row in rows]
    prompts = [str(row.columns["prompt"]) for row in rows]
    common = sum(came) >= len(came) / 2
    figures = {
        "answers": len(rows),
        "accuracy": share_interval(
            [(p > 0.5) == (y > 0.5) for p, y in zip(chance, came, strict=True)], prompts
        ),
        "majority": share_interval([(y > 0.5) == common for y in came], prompts),
        **calibration_of(chance, came),
    }
    lines = [
        f"accuracy {figures['accuracy']}",
        f"always the commoner outcome {figures['majority']}",
    ]
    return Verdict([*lines, *calibration_lines(figures)], figures, scores.tolist())


def step_verdict(scorer: Scorer, rows: Sequence[Row], known: Sequence[Row]) -> Verdict:
    """Accuracy of steps in three classes, of the first wrong step, and calibration of 1 - P(wrong).

    The baselines are the majority class, and "no step is wrong".
    """
    limit = scorer.card.max_length
    encoded = [encode_steps(scorer.tokenizer, row.columns, max_length=limit) for row in rows]
    ends = [[i for i, on in enumerate(one.mask) if on] for one in encoded]
    asked = [(one.ids, at) for one, at in zip(encoded, ends, strict=True)]
    found: list[Any] = scorer.score_at(asked)
    guessed: list[list[int]] = [(score.argmax(1) - 1).tolist() for score in found]
    true = [step_labels(row)[: len(at)] for row, at in zip(rows, ends, strict=True)]
    sound = [float(p) for score in found for p in 1 - score.double().softmax(1)[:, 0]]
    figures = step_figures([str(row.columns["prompt"]) for row in rows], guessed, true)
    came = [float(label != -1) for labels in true for label in labels]
    figures |= calibration_of(sound, came)
    lines = [
        f"step accuracy, three classes   {figures['accuracy']}",
        f"always the commonest class     {figures['majority']}",
        f"first error found (or none)    {figures['first_error']}",
        f'always "nothing is wrong"      {figures["nothing_wrong"]}',
    ]
    return Verdict([*lines, *calibration_lines(figures)], figures, sound)


def step_labels(row: Row) -> list[int]:
    """The labels of a row's steps: right 1, neutral 0, wrong -1 (of true and false: 1, -1)."""
    return [
        2 * label - 1 if isinstance(label, bool) else int(label) for label in row.columns["labels"]
    ]


def step_figures(
    prompts: Sequence[str], guessed: Sequence[Sequence[int]], true: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Accuracies of guessed labels of steps, solution by solution, with their baselines."""
    steps = [
        (a, b, prompt)
        for prompt, ours, theirs in zip(prompts, guessed, true, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    of_step = [prompt for _, _, prompt in steps]
    common = Counter(b for _, b, _ in steps).most_common(1)[0][0]
    same = [
        first_wrong_step(ours) == first_wrong_step(theirs)
        for ours, theirs in zip(guessed, true, strict=True)
    ]
    return {
        "steps": len(steps),
        "accuracy": share_interval([a == b for a, b, _ in steps], of_step),
        "majority": share_interval([b == common for _, b, _ in steps], of_step),
        "first_error": share_interval(same, prompts),
        "nothing_wrong": share_interval(
            [first_wrong_step(theirs) is None for theirs in true], prompts
        ),
    }


def first_wrong_step(labels: Sequence[int]) -> int | None:
    """Where the first wrong step is."""
    return labels.index(-1) if -1 in labels else None


def calibration_of(chance: Sequence[float], came: Sequence[float]) -> dict[str, Any]:
    """Calibration error and reliability table of forecasts."""
    forecast, outcome = np.asarray(chance), np.asarray(came)
    return {
        "calibration_error": expected_calibration_error(forecast, outcome, bins=5),
        "table": tuple(reliability_table(forecast, outcome, bins=5)),
    }


def calibration_lines(figures: Mapping[str, Any]) -> list[str]:
    """The same to read."""
    return [f"calibration error {figures['calibration_error']:.3f}", *map(str, figures["table"])]
