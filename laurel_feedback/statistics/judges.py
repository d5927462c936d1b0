"""A model's verdicts compared with people's votes.

How often they agree, which slot the model favours, and what it is worth as a judge.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from laurel.measure.agreement import Agreement, cohen_kappa, pair_agreement
from laurel.measure.crowd import LABELS
from laurel.measure.intervals import Interval
from laurel.measure.judging import (
    PPI,
    JudgeMetrics,
    PositionBias,
    SlotBias,
    clustered_slot_bias,
    judge_metrics,
    leave_one_out,
    position_bias,
    ppi,
    preference,
)
from laurel.measure.ranking import bradley_terry, kendall_tau_b, spearman
from laurel_feedback.statistics.votes import Choice, JudgeAnswer, Poll

Unit = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Judge:
    """A model's verdicts beside people's votes.

    statuses: its items by status. people: agreement of its verdicts with each person's vote, with
    and without ties. kappa: with people's strict majority. both: asked in both orders; first: how
    often the first slot won where it was asked. rho, tau: of Bradley-Terry scores with people's.
    rates: people's win rates with the judge's help, where it judged items that nobody rated.
    ceiling: how often a person agrees with the majority of the others.
    """

    name: str
    statuses: dict[str, int]
    people: Agreement
    people_no_ties: Agreement
    kappa: Agreement
    metrics: JudgeMetrics
    both: PositionBias | None
    first: SlotBias | None
    longer: Interval | None
    rho: Agreement | None
    tau: Agreement | None
    rates: dict[str, PPI]
    ceiling: float | None


def judge_card(poll: Poll, name: str) -> Judge:
    """See `Judge`.

    Invalid answers and errors are counted and left out, never ties; answers that differ between the
    orders are.
    """
    final = verdicts_of(poll.judges[name])
    labels = _as_labels(final)
    verdicts = {unit: [label] for unit, label in labels.items()}
    humans = {unit: votes for unit, votes in poll.labels.items() if unit[1:] == (0, 1)}
    both = [unit for unit in labels if unit in humans]
    rho, tau = rank_correlations(poll.choices, labels)
    return Judge(
        name,
        dict(Counter(final.values())),
        pair_agreement(humans, verdicts),
        pair_agreement(humans, verdicts, ties=False),
        _agreement_with_majority(humans, labels),
        judge_metrics([verdicts[unit] for unit in both], [humans[unit] for unit in both]),
        _position_bias(poll.judges[name]),
        _first_slot_bias(poll.judges[name]),
        _longer_preferred(poll, labels, both),
        rho,
        tau,
        win_rates(poll, labels),
        leave_one_out([votes for votes in poll.labels.values() if len(votes) > 1]),
    )


def _as_labels(final: Mapping[str, str]) -> dict[Unit, str]:
    """A judge's last words as labels of pairs: inconsistent is a tie, failures are left out."""
    labels = {
        (item, 0, 1): "tie" if status == "inconsistent" else status
        for item, status in final.items()
    }
    return {unit: label for unit, label in labels.items() if label in LABELS}


def _longer_preferred(
    poll: Poll, labels: Mapping[Unit, str], units: Sequence[Unit]
) -> Interval | None:
    """How often the judge preferred the response with more words."""
    choices = {c.unit: c for c in poll.choices}
    first, second = ([choices[unit].lengths[side] for unit in units] for side in (0, 1))
    return preference([labels[unit] for unit in units], first, second)


def status_by_response(judged: JudgeAnswer) -> str:
    """The status as one about responses: a and b are slots as shown, and `order` tells whose."""
    if judged.status not in ("a", "b") or judged.order[:1] != (1,):
        return judged.status
    return "b" if judged.status == "a" else "a"


def verdicts_of(answers: Iterable[JudgeAnswer]) -> dict[str, str]:
    """A judge's last word on each item."""
    return {item: verdict_of(given) for item, given in _by_item(answers).items()}


def _by_item(answers: Iterable[JudgeAnswer]) -> dict[str, list[JudgeAnswer]]:
    asked: dict[str, list[JudgeAnswer]] = defaultdict(list)
    for judged in answers:
        asked[judged.item].append(judged)
    return asked


def verdict_of(answers: Sequence[JudgeAnswer]) -> str:
    """A judge's last word on an item: its valid answers if they agree, else inconsistent.

    With none, its failure.
    """
    statuses = {status_by_response(judged) for judged in answers}
    valid = statuses & {"a", "b", "tie", "inconsistent"}
    return (
        (valid.pop() if len(valid) == 1 else "inconsistent")
        if valid
        else ("invalid" if "invalid" in statuses else "error")
    )


def _position_bias(answers: Iterable[JudgeAnswer]) -> PositionBias | None:
    straight, swapped = [], []
    for given in _by_item(answers).values():
        by_order = {judged.order[:1]: status_by_response(judged) for judged in given}
        if (0,) in by_order and (1,) in by_order:
            for column, order in ((straight, (0,)), (swapped, (1,))):
                column.append(by_order[order] if by_order[order] in LABELS else None)
    return position_bias(straight, swapped) if straight else None


def _first_slot_bias(answers: Iterable[JudgeAnswer]) -> SlotBias | None:
    decided = [judged for judged in answers if judged.order and judged.status in ("a", "b")]
    return clustered_slot_bias(
        [judged.status == "a" for judged in decided], [judged.item for judged in decided]
    )


def _agreement_with_majority(humans: dict[Unit, list[str]], labels: dict[Unit, str]) -> Agreement:
    rows = [
        (most, labels[unit])
        for unit, votes in humans.items()
        if unit in labels and (most := majority(votes)) is not None
    ]
    if not rows:
        return Agreement(None, None, None, 0, "no item has a majority of people and a verdict")
    return cohen_kappa([a for a, _ in rows], [b for _, b in rows], categories=list(LABELS))


def majority(votes: Sequence[str]) -> str | None:
    """The label with more votes than any other; None where two share the lead."""
    ranked = Counter(votes).most_common(2)
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else None


def rank_correlations(
    choices: Sequence[Choice], labels: dict[Unit, str]
) -> tuple[Agreement | None, Agreement | None]:
    """Rank correlation of the models' scores by people and by a judge: rho and tau-b.

    Spearman's and Kendall's. The scores are Bradley-Terry, ties half a win, without a slot term.
    """
    models = {c.unit: c.models for c in choices}
    people = _model_abilities((c.models, c.label) for c in choices)
    judge = _model_abilities(
        (models[unit], label) for unit, label in labels.items() if unit in models
    )
    names = [] if people is None or judge is None else [name for name in people if name in judge]
    if people is None or judge is None or len(names) < 3:
        return None, None
    x, y = [people[n] for n in names], [judge[n] for n in names]
    return spearman(x, y), kendall_tau_b(x, y)


def _model_abilities(results: Iterable[tuple[tuple[str, str], str]]) -> dict[str, float] | None:
    rows = [(pair, label) for pair, label in results if all(pair) and pair[0] != pair[1]]
    names = {
        name: k for k, name in enumerate(dict.fromkeys(name for pair, _ in rows for name in pair))
    }
    if len(names) < 2:
        return None
    wins, tied = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    for (one, two), label in rows:
        i, j = names[one], names[two]
        if label == "tie":
            tied[i, j] += 1
            tied[j, i] += 1
        else:
            wins[(i, j) if label == "a" else (j, i)] += 1
    found = bradley_terry(wins, tied, ties="half", names=list(names))
    return (
        None
        if found.log_ability is None
        else dict(zip(names, found.log_ability.tolist(), strict=True))
    )


def win_rates(poll: Poll, labels: dict[Unit, str]) -> dict[str, PPI]:
    """Each model's win rate among people, sharpened by a judge's verdicts on unrated items.

    Ties are half a win. Empty without such verdicts.
    """
    rated = {c.unit: c.models for c in poll.choices}
    rest = {
        unit: poll.models[unit[0]]
        for unit in labels
        if unit not in rated and unit[0] in poll.models
    }
    worth = {"a": 1.0, "tie": 0.5, "b": 0.0}
    found: dict[str, PPI] = {}
    for name in sorted({model for pair in rest.values() for model in pair if model}):
        y, f, g = [], [], []
        for unit, pair in [*rated.items(), *rest.items()]:
            if unit not in labels or pair.count(name) != 1:
                continue
            turn: Callable[[float], float] = (lambda w: w) if pair[0] == name else (lambda w: 1 - w)
            judged = turn(worth[labels[unit]])
            if unit in rated:
                y.append(turn(float(np.mean([worth[vote] for vote in poll.labels[unit]]))))
                f.append(judged)
            else:
                g.append(judged)
        if len(y) > 1 and g:
            found[name] = ppi(y, f, g)
    return found
