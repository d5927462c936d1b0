"""A model's verdicts compared with people's votes.

How often they agree, which slot the model favours, and what it is worth as a judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from laurel.measure.agreement import Agreement, pair_agreement
from laurel.measure.intervals import Interval
from laurel.measure.judge_agreement import (
    corrected_win_rates,
    kappa_with_majority,
    system_correlations,
)
from laurel.measure.judge_behaviour import first_slot_bias, swap_bias
from laurel.measure.judge_records import JudgeAnswer as Record
from laurel.measure.judge_records import (
    Judged,
    JudgedItem,
    PersonVote,
    as_labels,
    final_statuses,
)
from laurel.measure.judging import (
    PPI,
    JudgeMetrics,
    PositionBias,
    SlotBias,
    judge_metrics,
    leave_one_out,
    preference,
)
from laurel_feedback.statistics.votes import MTBENCH_NOTES, JudgeAnswer, Poll, choices_of

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
    answers = [as_record(judged) for judged in poll.judges[name]]
    final = final_statuses(answers)
    labels = as_labels({(item, 0, 1): status for item, status in final.items()})
    verdicts = {unit: [label] for unit, label in labels.items()}
    humans = {unit: votes for unit, votes in poll.labels.items() if unit[1:] == (0, 1)}
    both = [unit for unit in labels if unit in humans]
    rho, tau = rank_correlations(poll, labels)
    return Judge(
        name,
        dict(Counter(final.values())),
        pair_agreement(humans, verdicts),
        pair_agreement(humans, verdicts, ties=False),
        kappa_with_majority(humans, labels),
        judge_metrics([verdicts[unit] for unit in both], [humans[unit] for unit in both]),
        swap_bias(answers),
        first_slot_bias(answers),
        _longer_preferred(poll, labels, both),
        rho,
        tau,
        win_rates(poll, labels),
        leave_one_out([votes for votes in poll.labels.values() if len(votes) > 1]),
    )


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


def as_record(judged: JudgeAnswer) -> Record:
    """An answer as the report card of a judge takes it: about responses, not slots."""
    return Record(judged.item, status_by_response(judged), judged.order or None)


def verdicts_of(answers: Iterable[JudgeAnswer]) -> dict[str, str]:
    """A judge's last word on each item."""
    return final_statuses(map(as_record, answers))


def rank_correlations(
    poll: Poll, labels: Mapping[Unit, str]
) -> tuple[Agreement | None, Agreement | None]:
    """Rank correlation of the models' scores by people and by a judge: rho and tau-b."""
    models = {c.unit: c.models for c in poll.choices}
    return system_correlations(
        ((c.models, c.label) for c in poll.choices),
        ((models[unit], label) for unit, label in labels.items() if unit in models),
    )


def win_rates(poll: Poll, labels: Mapping[Unit, str]) -> dict[str, PPI]:
    """Each model's win rate among people, sharpened by a judge's verdicts on unrated items.

    Ties are half a win. Empty without such verdicts.
    """
    rated = {c.unit: c.models for c in poll.choices}
    rest = {
        unit: (pair[0], pair[1])
        for unit in labels
        if unit not in rated and len(pair := poll.models.get(unit[0], ())) > 1
    }
    return corrected_win_rates(rated, rest, poll.labels, labels)


def judged_of(poll: Poll) -> Judged:
    """Votes and verdicts as a judge's report card takes them: pairs of responses, by response.

    A ranking of K responses is K(K-1)/2 pairs. Items with a right answer keep it as gold.
    """
    items: dict[str, JudgedItem] = {}
    votes: list[PersonVote] = []
    for ballot in poll.ballots:
        if ballot.repeat:
            continue
        for choice in choices_of(ballot):
            item = pair_item(poll, choice.unit, choice.models, choice.lengths, ballot.gold)
            items.setdefault(item.id, item)
            votes.append(PersonVote(item.id, choice.annotator, choice.label))
    judges: dict[str, list[Record]] = {}
    for name, answers in poll.judges.items():
        judges[name] = [as_record(answer) for answer in answers]
        for answer in answers:
            if answer.item not in items:
                models = (*poll.models.get(answer.item, ()), "", "")
                lengths = poll.lengths.get(answer.item, ())
                words = (lengths[0], lengths[1]) if len(lengths) == 2 else (0, 0)
                unit = (answer.item, 0, 1)
                items[answer.item] = pair_item(poll, unit, (models[0], models[1]), words, None)
    return Judged(
        poll.name,
        items,
        judges,
        votes,
        notes=tuple(note for note in poll.notes if note not in MTBENCH_NOTES),
    )


def pair_item(
    poll: Poll,
    unit: Unit,
    models: tuple[str, str],
    lengths: tuple[int, int],
    gold: int | None,
) -> JudgedItem:
    """One pair of responses; the first pair of an item has the item's own name."""
    item, i, j = unit
    return JudgedItem(
        item if (i, j) == (0, 1) else f"{item}:{i}:{j}",
        poll.prompts.get(item, item),
        models,
        lengths if any(lengths) else None,
        gold=None if gold not in (i, j) else "a" if gold == i else "b",
    )
