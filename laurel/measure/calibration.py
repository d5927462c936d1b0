"""How far scores can be trusted: accuracy with its interval, calibration of the confidence in it,
and what length alone would get.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from laurel.measure.intervals import Interval, cluster_bootstrap_mean, paired_difference, wilson

Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class Bin:
    """One row of a reliability table: forecasts in (low, high], their number and mean, and how
    often they came true.
    """

    low: float
    high: float
    count: int
    confidence: float
    frequency: Interval

    def __str__(self) -> str:
        return (
            f"{self.low:.2f}-{self.high:.2f}  {self.count:6}  said {self.confidence:.3f}  was"
            f" {self.frequency}"
        )


def reliability_table(
    probability: Numbers,
    happened: Numbers,
    *,
    bins: int = 10,
    low: float = 0.0,
    level: float = 0.95,
) -> list[Bin]:
    """Forecasts by equal bins of (low, 1]: what was said against what happened, with Wilson
    intervals. Empty bins are left out.

    `happened` is 1 or 0, or .5 for a draw. `low` itself belongs to the first bin. Of a calibrated
    forecaster the mean of what was said lies in the interval of what happened, in about `level` of
    the bins. DeGroot and Fienberg 1983.
    """
    predicted, came = _columns(probability, happened)
    if not (bins >= 1 and 0 <= low < 1 and bool(((predicted >= low) & (predicted <= 1)).all())):
        raise ValueError(f"forecasts lie between {low:g} and 1, in at least one bin")
    edges = np.linspace(low, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, predicted, side="left") - 1, 0, bins - 1)
    table = []
    for k in range(bins):
        here = place == k
        if here.any():
            frequency = wilson(float(came[here].sum()), int(here.sum()), level=level)
            table.append(
                Bin(
                    float(edges[k]),
                    float(edges[k + 1]),
                    int(here.sum()),
                    float(predicted[here].mean()),
                    frequency,
                )
            )
    return table


def expected_calibration_error(
    probability: Numbers, happened: Numbers, *, bins: int = 10, low: float = 0.0
) -> float:
    """sum over bins of n_b / n * |mean said - mean happened|.

    Said (.9, .9, .9, .9), three came true: |.9 - .75| = .15. With few forecasts per bin noise alone
    makes it positive: read it beside `reliability_table`. Naeini et al. 2015; Guo et al. 2017,
    arXiv:1706.04599.
    """
    table = reliability_table(probability, happened, bins=bins, low=low)
    return sum(row.count * abs(row.confidence - row.frequency.value) for row in table) / sum(
        row.count for row in table
    )


def pair_forecasts(margin: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Pairs as forecasts: how sure the scores are of the answer they prefer, and whether that was
    the chosen one.

        confidence = sigmoid(|r_chosen - r_rejected|) in [.5, 1],    right = 1, 0, or .5 where the
        scores are equal

    The two orders of a pair are one forecast, so chosen-first data is no easier than shuffled data.
    2, -1, 0: (.8808, 1), (.7311, 0), (.5, .5).
    """
    gap = np.asarray(margin, dtype=float)
    if not np.isfinite(gap).all():
        raise ValueError("scores must be finite")
    return 1 / (1 + np.exp(-np.abs(gap))), pair_hits(gap)


def pair_hits(margin: Numbers) -> np.ndarray:
    """Per pair: 1 if the chosen answer is ahead, 0 if behind, .5 if level.

    What carries no information gets .5, not 0 or 1.
    """
    return (np.sign(np.asarray(margin, dtype=float)) + 1) / 2


def length_direction(chosen_length: Numbers, rejected_length: Numbers) -> int:
    """Which length to prefer, learnt from training pairs: 1 the longer answer, -1 the shorter."""
    longer = pair_hits(_difference(chosen_length, rejected_length)).mean()
    return 1 if longer >= 0.5 else -1


@dataclass(frozen=True, slots=True)
class PairReport:
    """A scorer on held-out pairs, beside chance (.5) and beside preferring by length alone.

    `print` it.

    gain: accuracy minus the length baseline's, pair by pair. length_correlation: of score gaps with
    length gaps, 0 if either is
    constant. calibration_error: of sigmoid(score gap). All intervals at 95 %.
    """

    accuracy: Interval
    length_baseline: Interval
    gain: Interval
    calibration_error: float
    table: tuple[Bin, ...]
    margin: float
    length_correlation: float
    direction: int

    def __str__(self) -> str:
        verdict = (
            "above"
            if self.gain.low > 0
            else "below"
            if self.gain.high < 0
            else "not told apart from"
        )
        chance = (
            "above"
            if self.accuracy.low > 0.5
            else "below"
            if self.accuracy.high < 0.5
            else "not told apart from"
        )
        return "\n".join(
            [
                f"accuracy             {self.accuracy}: {chance} chance",
                (
                    f"{'longer wins' if self.direction > 0 else 'shorter wins':<20}"
                    f" {self.length_baseline}"
                ),
                f"gain over length     {self.gain}: {verdict} the length-only baseline",
                f"calibration error    {self.calibration_error:.3f}",
                f"length correlation   {self.length_correlation:+.3f}",
                *map(str, self.table),
            ]
        )


def report_pairs(
    chosen: Numbers,
    rejected: Numbers,
    chosen_length: Numbers,
    rejected_length: Numbers,
    *,
    direction: int = 1,
    clusters: Sequence[Hashable] | None = None,
    bins: int = 5,
) -> PairReport:
    """Everything an evaluation of a reward model says of held-out pairs.

    Position i of every column is one pair.

    direction: the length baseline's, from `length_direction` on training pairs (1 if not fitted).
    clusters: the prompt of each pair; with several pairs a prompt all intervals resample prompts,
    else accuracy has Wilson's. Ties count half everywhere.
    """
    gap, length = (
        _difference(chosen, rejected),
        direction * _difference(chosen_length, rejected_length),
    )
    if len(gap) != len(length) or not len(gap):
        raise ValueError(f"{len(gap)} scored pairs and {len(length)} with lengths")
    confidence, right = pair_forecasts(gap)
    by_length = pair_hits(length)
    varies = gap.std() > 0 and length.std() > 0
    return PairReport(
        accuracy=share_interval(right, clusters),
        length_baseline=share_interval(by_length, clusters),
        gain=paired_difference(by_length.tolist(), right.tolist(), clusters),
        calibration_error=expected_calibration_error(confidence, right, bins=bins, low=0.5),
        table=tuple(reliability_table(confidence, right, bins=bins, low=0.5)),
        margin=float(gap.mean()),
        length_correlation=direction * float(np.corrcoef(gap, length)[0, 1]) if varies else 0.0,
        direction=direction,
    )


def share_interval(right: Numbers, clusters: Sequence[Hashable] | None = None) -> Interval:
    """A share of right answers: Wilson's interval, or where prompts come several times the
    bootstrap over prompts.
    """
    values = np.asarray(right, dtype=float)
    if clusters is None or len(set(clusters)) == len(values):
        return wilson(float(values.sum()), len(values))
    return cluster_bootstrap_mean(values.tolist(), clusters)


def _difference(first: Numbers, second: Numbers) -> np.ndarray:
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != two.shape or one.ndim != 1:
        raise ValueError(f"columns of {one.shape} and {two.shape} are no pairs")
    return one - two


def _columns(probability: Numbers, happened: Numbers) -> tuple[np.ndarray, np.ndarray]:
    predicted, came = np.asarray(probability, dtype=float), np.asarray(happened, dtype=float)
    if predicted.shape != came.shape or predicted.ndim != 1 or not len(predicted):
        raise ValueError(f"forecasts of shape {predicted.shape} and outcomes of {came.shape}")
    if not bool(((came >= 0) & (came <= 1)).all()):
        raise ValueError("what happened is 1, 0, or .5 for a draw")
    return predicted, came
