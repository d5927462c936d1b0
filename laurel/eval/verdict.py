"""How good a trained scorer is on rows held out: beside chance and trivial baselines, with
intervals and calibration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np

from laurel.data.source import Row
from laurel.measure.calibration import (
    expected_calibration_error,
    length_direction,
    reliability_table,
    report_pairs,
    share_interval,
)
from laurel.model.rows import encode_steps, encodings
from laurel.model.scorer import Scorer
from laurel.rollout.source import OUTCOMES, RANKINGS, STEPS, Source


@dataclass(frozen=True, slots=True)
class Verdict:
    """What rows say of a scorer: as lines to read, as figures by name, and the scores of the
    answers themselves.
    """

    lines: list[str]
    figures: Mapping[str, Any]
    scores: list[float]

    def as_json(self) -> dict[str, Any]:
        """The figures as plain numbers: an interval is {"value", "low", "high", "n", "level"}."""
        return {name: plain(value) for name, value in self.figures.items()}


def plain(value: Any) -> Any:
    """Dataclasses as mappings, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def judge(
    scorer: Scorer, rows: Sequence[Row], source: Source, *, known: Sequence[Row] = ()
) -> Verdict:
    """What the rows say of the scorer, by their source. Every row must fit into the `max_length` of
    the scorer's card.

    known: training rows, from which preferring by length learns its direction. Without them it
    takes the direction that is better on the rows themselves, which errs on the baseline's side.
    """
    verdicts = {RANKINGS: of_comparisons, OUTCOMES: of_outcomes, STEPS: of_steps}
    return verdicts[source](scorer, rows, known)


def of_comparisons(scorer: Scorer, rows: Sequence[Row], known: Sequence[Row]) -> Verdict:
    """Pairs, all of a ranking: accuracy, calibration, and what preferring by length would get."""
    encoded = [
        encodings(scorer, row, train_on=None, max_length=scorer.card.max_length) for row in rows
    ]
    scores = scorer.score([one.ids for several in encoded for one in several]).tolist()
    gaps, lengths, prompts, at = [], [], [], 0
    for row, several in zip(rows, encoded, strict=True):
        r, at = scores[at : at + len(several)], at + len(several)
        for i, j in ordered(row.columns):
            gaps.append((r[i], r[j]))
            lengths.append((several[i].supervised, several[j].supervised))
            prompts.append(str(row.columns["prompt"]))
    seen = lengths_of(scorer, known) or lengths
    direction = length_direction([a for a, _ in seen], [b for _, b in seen])
    (ahead, behind), (long, short) = (zip(*pairs, strict=True) for pairs in (gaps, lengths))
    report = report_pairs(ahead, behind, long, short, direction=direction, clusters=prompts)
    figures = {name: getattr(report, name) for name in report.__dataclass_fields__}
    return Verdict(
        [f"held-out pairs: {len(gaps)}; chance .500", *str(report).splitlines()],
        {"pairs": len(gaps), **figures},
        scores,
    )


def ordered(columns: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The pairs (better, worse) of a row's answers; ties are none. Ranks (1, 2, 2): (0, 1),
    (0, 2).
    """
    ranks = columns.get("ranks", (1, 2))
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


def lengths_of(scorer: Scorer, rows: Sequence[Row]) -> list[tuple[int, int]]:
    """The lengths of chosen and rejected answers, in tokens, of those rows that are pairs."""
    pairs = [
        encodings(scorer, row, train_on=None, max_length=None)
        for row in rows
        if "chosen" in row.columns
    ]
    return [(a.supervised, b.supervised) for a, b in pairs]


def of_outcomes(scorer: Scorer, rows: Sequence[Row], known: Sequence[Row]) -> Verdict:
    """The sign of the last score against the outcome, beside always saying the commoner one; and
    calibration of sigmoid(score).
    """
    encoded = [
        encodings(scorer, row, train_on=None, max_length=scorer.card.max_length)[0] for row in rows
    ]
    scores = scorer.score([one.ids for one in encoded]).double()
    chance, came = scores.sigmoid().tolist(), [float(row.columns["label"]) for row in rows]
    prompts = [str(row.columns["prompt"]) for row in rows]
    common = sum(came) >= len(came) / 2
    figures = {
        "answers": len(rows),
        "accuracy": share_interval(
            [(p > 0.5) == (y > 0.5) for p, y in zip(chance, came, strict=True)], prompts
        ),
        "majority": share_interval([(y > 0.5) == common for y in came], prompts),
        **calibrated(chance, came),
    }
    lines = [
        f"accuracy {figures['accuracy']}",
        f"always the commoner outcome {figures['majority']}",
    ]
    return Verdict([*lines, *calibration_lines(figures)], figures, scores.tolist())


def of_steps(scorer: Scorer, rows: Sequence[Row], known: Sequence[Row]) -> Verdict:
    """Three-class accuracy of steps beside the majority class; whether the first wrong step was
    found, beside "none is wrong"; and
    calibration of 1 - P(wrong)."""
    encoded = [
        encode_steps(scorer.tokenizer, row.columns, max_length=scorer.card.max_length)
        for row in rows
    ]
    ends = [[i for i, on in enumerate(one.mask) if on] for one in encoded]
    found = scorer.score_at([(one.ids, at) for one, at in zip(encoded, ends, strict=True)])
    said = [(score.argmax(1) - 1).tolist() for score in found]
    true = [
        [
            int(label) if not isinstance(label, bool) else 2 * label - 1
            for label in row.columns["labels"]
        ]
        for row in rows
    ]
    true = [labels[: len(at)] for labels, at in zip(true, ends, strict=True)]
    sound = [float(p) for score in found for p in 1 - score.double().softmax(1)[:, 0]]
    flat = [
        (a, b, str(row.columns["prompt"]))
        for row, ours, theirs in zip(rows, said, true, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    prompts, whose = [str(row.columns["prompt"]) for row in rows], [prompt for *_, prompt in flat]
    common = Counter(b for _, b, _ in flat).most_common(1)[0][0]
    figures = {
        "steps": len(flat),
        "accuracy": share_interval([a == b for a, b, _ in flat], whose),
        "majority": share_interval([b == common for _, b, _ in flat], whose),
        "first_error": share_interval(
            [first(ours) == first(theirs) for ours, theirs in zip(said, true, strict=True)], prompts
        ),
        "nothing_wrong": share_interval([first(theirs) is None for theirs in true], prompts),
        **calibrated(sound, [float(b != -1) for _, b, _ in flat]),
    }
    lines = [
        f"step accuracy, three classes   {figures['accuracy']}",
        f"always the commonest class     {figures['majority']}",
        f"first error found (or none)    {figures['first_error']}",
        f'always "nothing is wrong"      {figures["nothing_wrong"]}',
    ]
    return Verdict([*lines, *calibration_lines(figures)], figures, sound)


def first(labels: Sequence[int]) -> int | None:
    """Where the first wrong step is."""
    return labels.index(-1) if -1 in labels else None


def calibrated(chance: Sequence[float], came: Sequence[float]) -> dict[str, Any]:
    """Calibration error and reliability table of forecasts."""
    said, was = np.asarray(chance), np.asarray(came)
    return {
        "calibration_error": expected_calibration_error(said, was, bins=5),
        "table": tuple(reliability_table(said, was, bins=5)),
    }


def calibration_lines(figures: Mapping[str, Any]) -> list[str]:
    """The same to read."""
    return [f"calibration error {figures['calibration_error']:.3f}", *map(str, figures["table"])]
