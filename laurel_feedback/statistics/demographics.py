"""Demographics: who rated, compared with a population and published groups, and how groups differ.

No cell below 5 people is shown.

Answers about oneself are read only here, and every reading is written in the audit log.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import select

from laurel.core.errors import UsageError
from laurel.measure.intervals import Interval
from laurel.measure.judging import SlotBias
from laurel.measure.population import (
    ChiSquare,
    Raking,
    Representativeness,
    chi_square,
    raking,
    representativeness,
    suppress,
    total_variation,
)
from laurel_feedback.statistics.analysis import first_slot_bias, longer_wins
from laurel_feedback.statistics.judges import verdicts_of
from laurel_feedback.statistics.votes import LEVELS, Choice, Poll
from laurel_feedback.store.audit import record
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, Demographic

SMALLEST = 5
"""People in a cell, at least; smaller ones are hidden."""
SILENT = "no answer"
"""Where somebody was not asked, did not answer or preferred not to say."""
OTHER = "other answers"
"""All hidden cells together."""
Reference = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Composition:
    """The annotators by one question.

    counts: None where hidden. shares: of those who answered, hidden cells together.

    reference: the population's shares of the same; distance: total variation; chi: Pearson's test;
    reason: why there is none.
    """

    question: str
    people: int | None
    counts: dict[str, int | None]
    shares: dict[str, float]
    reference: dict[str, float]
    distance: float | None
    chi: ChiSquare | None
    reason: str


@dataclass(frozen=True)
class Group:
    """The votes of people with one answer to a question.

    How near they are to everybody's (1 - distance), their shares of the first slot and of the
    longer response.
    """

    question: str
    answer: str
    people: int
    votes: int
    nearness: float | None
    slots: SlotBias | None
    longer: Interval | None


@dataclass(frozen=True)
class Demographics:
    """The demographics of a set of votes; see the module.

    judge: a model's verdicts against all people and each group, with people's own groups as the
    baseline.
    """

    people: int
    answered: int
    composition: tuple[Composition, ...]
    groups: tuple[Group, ...]
    judge: Representativeness | None
    raking: Raking | None


def parse_reference(text: str) -> dict[str, dict[str, float]]:
    """A population from JSON: {"question": {"answer": share, ...}, ...}.

    Shares are scaled to sum to 1.
    """
    fix = (
        'Give {"question": {"answer": share, ...}}, with shares of 0 or more, such as {"age":'
        ' {"under 35": 0.4, "35 and over": 0.6}}.'
    )
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"this is no JSON: {error}.", where="reference", fix=fix) from error
    if not isinstance(given, dict) or not all(
        isinstance(v, dict) and len(v) > 1 for v in given.values()
    ):
        raise UsageError(
            "a population has questions with two or more answers each.", where="reference", fix=fix
        )
    found = {}
    for question, shares in given.items():
        numbers = [
            x
            for x in shares.values()
            if isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < float("inf")
        ]
        if len(numbers) != len(shares) or not sum(numbers) > 0:
            raise UsageError(
                f"`{question}` has something else than shares.", where="reference", fix=fix
            )
        found[str(question)] = {
            str(answer): share / sum(numbers) for answer, share in shares.items()
        }
    return found


def demographics_of(
    store: Store, poll: Poll, reference: Reference | None = None, *, actor: str
) -> Demographics:
    """Who gave the votes of a poll. The reading is recorded under `actor`."""
    voters = list(dict.fromkeys(ballot.annotator for ballot in poll.counted))
    with store.write() as session:
        record(
            session,
            actor,
            "read demographics",
            f"batch {poll.name}",
            store.now(),
            people=len(voters),
        )
        rows = (
            select(Annotator.pseudonym, Demographic.question, Demographic.answer)
            .join(Annotator, Demographic.annotator_id == Annotator.id)
            .where(Demographic.keep_until > store.now())
            .order_by(Demographic.question, Demographic.answer)
        )
        given: dict[str, dict[str, str]] = {name: {} for name in voters}
        for name, question, answer in session.execute(rows):
            if name in given and answer.strip() and answer.strip().lower() != "prefer not to say":
                given[name][question] = answer.strip()
    return compute_demographics(poll, given, reference or {})


def compute_demographics(
    poll: Poll, answers: Mapping[str, Mapping[str, str]], reference: Reference
) -> Demographics:
    """See `Demographics`. answers: annotator -> question -> answer, of everyone who voted."""
    questions = sorted({question for own in answers.values() for question in own} | set(reference))
    kept = {question: _publishable_answers(answers, question) for question in questions}
    parts = tuple(
        _composition(answers, question, kept[question], reference.get(question))
        for question in questions
    )
    shown = {
        q: {
            name: a
            for name, own in answers.items()
            if (a := own.get(q)) in kept[q] and a is not None
        }
        for q in questions
    }
    groups = _groups(poll, shown)
    return Demographics(
        len(answers),
        sum(bool(own) for own in answers.values()),
        parts,
        groups,
        _judge_representativeness(poll, shown),
        _raking(answers, kept, reference),
    )


def _publishable_answers(given: Mapping[str, Mapping[str, str]], question: str) -> dict[str, int]:
    """The answers whose number of people may be shown."""
    names, row = _suppressed_counts(given, question)
    return {
        name: count for name, count in zip(names, row, strict=False) if count and name != SILENT
    }


def _suppressed_counts(
    given: Mapping[str, Mapping[str, str]], question: str
) -> tuple[list[str], list[int | None]]:
    """Answers, and the numbers of people with the total behind them; None: hidden."""
    count = Counter(answers.get(question, SILENT) for answers in given.values())
    names = sorted(count, key=lambda name: (name == SILENT, -count[name], name))
    return names, suppress([[count[name] for name in names]], SMALLEST)[0] if names else [0]


def _composition(
    answers: Mapping[str, Mapping[str, str]],
    question: str,
    visible: Mapping[str, int],
    population: Mapping[str, float] | None,
) -> Composition:
    names, row = _suppressed_counts(answers, question)
    counts, total = dict(zip(names, row, strict=False)), row[-1]
    composition = partial(Composition, question, total, counts)
    if total is None or (SILENT in counts and counts[SILENT] is None and not visible):
        return composition({}, {}, None, None, f"fewer than {SMALLEST} people")
    merged = _merge_hidden_cells(answers, question, visible)
    people = sum(merged.values())
    shares = {name: n / people for name, n in merged.items()} if people else {}
    if population is None or not people:
        reason = "no reference" if people else "nobody answered"
        return composition(shares, {}, None, None, reason)
    wanted = _reference_shares(merged, population)
    if OTHER in wanted:
        merged.setdefault(OTHER, 0)
        shares.setdefault(OTHER, 0.0)
    return composition(shares, wanted, *_distance_to_reference(merged, shares, wanted))


def _distance_to_reference(
    merged: Mapping[str, int], shares: Mapping[str, float], wanted: Mapping[str, float]
) -> tuple[float | None, ChiSquare | None, str]:
    """(distance to the reference, the test of it, why there is none)."""
    p, q = [shares[name] for name in wanted], list(wanted.values())
    distance = None if len(wanted) < 2 else total_variation(p, q)
    lacking = [name for name, share in wanted.items() if share == 0 and merged[name]]
    if lacking:
        return distance, None, f"the reference has no share for: {', '.join(lacking)}"
    if distance is None:
        return None, None, "one answer alone is nothing to compare"
    chi = chi_square([merged[name] for name in wanted], q)
    return distance, chi, chi.reason


def _reference_shares(
    merged: Mapping[str, int], population: Mapping[str, float]
) -> dict[str, float]:
    """The reference's shares of the answers that are shown; the rest is OTHER."""
    wanted = {name: population.get(name, 0.0) for name in merged if name != OTHER}
    rest = 1 - sum(wanted.values())
    if OTHER in merged or rest > 1e-9:
        wanted[OTHER] = max(rest, 0.0)
    return wanted


def _merge_hidden_cells(
    given: Mapping[str, Mapping[str, str]], question: str, visible: Mapping[str, int]
) -> dict[str, int]:
    """People by answer, those in hidden cells together.

    What is computed from it tells no more than the table shows.
    """
    silent = _suppressed_counts(given, question)
    hidden_silence = SILENT in silent[0] and silent[1][silent[0].index(SILENT)] is None
    answered = [answers[question] for answers in given.values() if question in answers]
    rest = sum(answer not in visible for answer in answered)
    return {**visible, **({OTHER: rest} if rest and not hidden_silence else {})}


def _levels(choices: Sequence[Choice]) -> dict[tuple[str, int, int], list[int]]:
    """How often each level was given, for each pair of responses."""
    scale = sorted(LEVELS.values())
    found: dict[tuple[str, int, int], list[int]] = defaultdict(lambda: [0] * len(scale))
    for c in choices:
        if c.level is not None:
            found[c.unit][scale.index(c.level)] += 1
    return dict(found)


def _groups(poll: Poll, shown: Mapping[str, Mapping[str, str]]) -> tuple[Group, ...]:
    everybody, scale = _levels(poll.choices), sorted(LEVELS.values())
    found = []
    for question, answers in shown.items():
        sizes = Counter(answers.values())
        for answer, people in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0])):
            own = [c for c in poll.choices if answers.get(c.annotator) == answer]
            levels = _levels(own)
            near = (
                representativeness(
                    levels, everybody, positions=dict.fromkeys(levels, scale)
                ).overall
                if levels
                else None
            )
            found.append(
                Group(
                    question, answer, people, len(own), near, first_slot_bias(own), longer_wins(own)
                )
            )
    return tuple(found)


def _judge_representativeness(
    poll: Poll, shown: Mapping[str, Mapping[str, str]]
) -> Representativeness | None:
    """The first judge's verdicts against all people and each group."""
    if not poll.judges:
        return None
    verdicts = verdicts_of(poll.judges[next(iter(poll.judges))])
    scale, at = sorted(LEVELS.values()), {"a": 1.0, "tie": LEVELS[0], "b": 4.0}
    answers = {
        (item, 0, 1): [int(level == at[v]) for level in scale]
        for item, v in verdicts.items()
        if v in at
    }
    groups = {
        f"{question}: {answer}": _levels(
            [c for c in poll.choices if given.get(c.annotator) == answer]
        )
        for question, given in shown.items()
        for answer in dict.fromkeys(given.values())
    }
    return representativeness(
        answers, _levels(poll.choices), groups, positions=dict.fromkeys(answers, scale)
    )


def _raking(
    given: Mapping[str, Mapping[str, str]],
    kept: Mapping[str, Mapping[str, int]],
    reference: Reference,
) -> Raking | None:
    """Weights of the people who answered all of the reference's questions.

    Hidden answers count together. None without a reference.
    """
    asked = [question for question in reference if kept.get(question)]
    people = [
        {q: answers[q] if answers[q] in kept[q] else OTHER for q in asked}
        for answers in given.values()
        if asked and all(q in answers for q in asked)
    ]
    if len(people) < SMALLEST:
        return None
    margins = {}
    for q in asked:
        used = {person[q] for person in people}
        margin = {answer: share for answer, share in reference[q].items() if answer in kept[q]}
        margin |= (
            {OTHER: max(1 - sum(margin.values()), 0.0)}
            if OTHER in used or sum(margin.values()) < 1 - 1e-9
            else {}
        )
        if lacking := sorted(used - margin.keys()):
            return Raking(
                None, None, None, f"the reference has no share for {q}: {', '.join(lacking)}"
            )
        margins[q] = margin
    return raking(people, margins)
