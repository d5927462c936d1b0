"""The analysis of votes.

Agreement, skill, the models' scores, preference for the first slot, judges, signs of low effort,
pay.

Every number is about responses, not slots. What the votes leave undefined says why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import log
from operator import itemgetter

from laurel.measure.agreement import (
    Agreement,
    cohen_kappa,
    fleiss_kappa,
    gwet_ac1_units,
    krippendorff_alpha,
    pair_agreement,
)
from laurel.measure.annotators import Signals, signals
from laurel.measure.crowd import LABELS
from laurel.measure.crowd import Vote as Sign
from laurel.measure.intervals import Interval, bootstrap_mean, clustered_share, wilson
from laurel.measure.judging import Hourly, SlotBias, clustered_slot_bias, hourly, preference
from laurel.measure.ranking import Ranking, bradley_terry_slots, kendall_w
from laurel_feedback.statistics.judges import Judge, judge_card, verdicts_of
from laurel_feedback.statistics.labels import LabelQuality, Labels, label_quality, labels_of
from laurel_feedback.statistics.votes import LEVELS, Ballot, Choice, Poll, label_of

PREVAILS = 0.8
"""A label with more than this share makes kappas small whatever people do: AC1 is read beside them.
"""
LEAST_SHARED, MOST_PAIRS = 10, 20
"""Pairs of annotators are listed from this many shared items on.

And at most so many of them, those that share most.
"""
SEEDS = (0, 1, 2)
"""Each draws the votes that are held out of the labels once.

A page that is counted anew at each load draws once.
"""
MOST_SCORED = 30_000
"""Above this many votes on pairs the admin page leaves the scores of labels to the report.

Scoring them would take seconds.
"""
PILOT = 10
"""Votes with a known time before measured pay is believed."""


@dataclass(frozen=True, slots=True)
class AnnotatorSkill:
    """An annotator's votes and what is known of their quality.

    Right answers to gold, the same answer to a repeat, and

    reliability: 1 - the chance that a decisive vote is a guess
    (`laurel.measure.preference_shares`), None without any; ties: their share, which says nothing of
    quality; left_out: gold speaks against the annotator, and no label counts the votes.
    """

    annotator: str
    votes: int
    reliability: float | None
    ties: float | None
    gold: Interval | None
    repeats: Interval | None
    slots: SlotBias | None
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class ModelScore:
    """A model's Bradley-Terry score in Elo points around 1000, its interval, wins, ties and losses.

    low, high: None where all votes are about one item, which cannot say how far items differ.
    """

    model: str
    score: float
    low: float | None
    high: float | None
    wins: float
    ties: float
    losses: float


@dataclass(frozen=True, slots=True)
class ModelScores:
    """Scores, best first, and the first slot's pull in Elo points.

    Where there are none, the reason.
    """

    scores: tuple[ModelScore, ...]
    slot: Interval | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HourlyPay:
    """Pay per hour at work, of votes with a known time and of each annotator.

    `unknown` votes have none. `below`: why it is too little.
    """

    hourly: Hourly | None
    unknown: int
    by_annotator: dict[str, float]
    floor: float
    currency: str
    below: str = ""


@dataclass(frozen=True)
class Analysis:
    """Everything about one poll."""

    name: str
    votes: int
    items: int
    annotators: int
    labels: dict[str, int]
    thumbs: Interval | None
    agreement: dict[str, Agreement]
    pairs: tuple[tuple[str, str, Agreement], ...]
    skills: tuple[AnnotatorSkill, ...]
    models: ModelScores
    slots: SlotBias | None
    longer: Interval | None
    judges: tuple[Judge, ...]
    panel: tuple[Signals, ...]
    pay: HourlyPay | None
    notes: tuple[str, ...]
    worth: LabelQuality | None = None


def analyse(poll: Poll, *, people: bool = True) -> Analysis:
    """Analyse a set of votes; see `Analysis`.

    people: with skills, signs and pay of each annotator, and labels scored three times; without,
    half the time.
    """
    scored = people or len(poll.choices) <= MOST_SCORED
    made = labels_of(poll) if scored else None
    return Analysis(
        name=poll.name,
        votes=len(poll.counted),
        items=len({b.item for b in poll.counted}),
        annotators=len({b.annotator for b in poll.counted}),
        labels=dict(Counter(choice.label for choice in poll.choices)),
        thumbs=thumbs_up(poll),
        agreement=agreements(poll),
        pairs=rater_pairs(poll),
        skills=skills(poll, made) if people else (),
        models=model_scores(poll.choices),
        slots=first_slot_bias(poll.choices),
        longer=longer_wins(poll.choices),
        judges=tuple(judge_card(poll, name) for name in poll.judges),
        panel=low_effort_signals(poll) if people else (),
        pay=hourly_pay(poll) if people else None,
        notes=(
            poll.notes
            if scored
            else (
                *poll.notes,
                "Labels are scored by `laurel feedback report`: here are too many votes.",
            )
        ),
        worth=None
        if made is None
        else label_quality(poll, made, seeds=SEEDS if people else SEEDS[:1]),
    )


def thumbs_up(poll: Poll) -> Interval | None:
    """The share of thumbs up over items with one response; None without such votes."""
    thumbs = [b for b in poll.counted if len(b.order) == 1 and b.rating is not None]
    if not thumbs:
        return None
    return clustered_share([float(b.rating == 1) for b in thumbs], [b.item for b in thumbs])


def agreements(poll: Poll) -> dict[str, Agreement]:
    """Each coefficient of agreement by name, with its interval over items, or why it has none."""
    units, choices = poll.labels, poll.choices
    if not choices:
        reason = "there is no vote between two responses yet"
        return {"agreement": Agreement(None, None, None, 0, reason)}
    items = [unit[0] for unit in units]  # of a ranking all pairs
    found = {
        "two votes on a pair are equal": pair_agreement(units, cluster=itemgetter(0)),
        "the same, without ties": pair_agreement(units, ties=False, cluster=itemgetter(0)),
        "Krippendorff's alpha, which response": krippendorff_alpha(
            list(units.values()), clusters=items
        ),
    }
    levels = _levels_by_pair(choices)
    if any(level not in (1.0, 2.5, 4.0) for unit in levels.values() for level in unit):
        found["Krippendorff's alpha, ordinal, all levels"] = krippendorff_alpha(
            list(levels.values()), "ordinal", clusters=[unit[0] for unit in levels]
        )
    found |= _fleiss(units) | _cohens_kappa(choices)
    scale = [k for k in LABELS if k != "tie" or _has_ties(choices)]
    name = _gwet_name(choices)
    found[name] = gwet_ac1_units(list(units.values()), categories=scale, clusters=items)
    if any(ballot.ranking for ballot in poll.counted):
        found["Kendall's W of rankings, mean over items"] = _concordance(poll.counted)
    return found


def _levels_by_pair(choices: Iterable[Choice]) -> dict[tuple[str, int, int], list[float]]:
    found: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for choice in choices:
        if choice.level is not None:
            found[choice.unit].append(choice.level)
    return found


def _has_ties(choices: Iterable[Choice]) -> bool:
    return any(choice.label == "tie" for choice in choices)


def _fleiss(units: dict[tuple[str, int, int], list[str]]) -> dict[str, Agreement]:
    """Fleiss' kappa over the items with the commonest number of votes above one.

    It needs the same number for all items.
    """
    sizes = Counter(len(unit) for unit in units.values() if len(unit) > 1)
    if not sizes:
        return {"Fleiss' kappa": Agreement(None, None, None, 0, "no item has two votes")}
    size = max(sizes, key=lambda n: (sizes[n], n))
    counts = [
        [votes.count(label) for label in LABELS] for votes in units.values() if len(votes) == size
    ]
    items = [unit[0] for unit, votes in units.items() if len(votes) == size]
    return {f"Fleiss' kappa, items with {size} votes": fleiss_kappa(counts, clusters=items)}


def _cohen_between(choices: Sequence[Choice], one: str, two: str) -> Agreement:
    given: dict[str, dict[tuple[str, int, int], float]] = {one: {}, two: {}}
    middle = LEVELS[0]
    for choice in choices:
        if choice.annotator in given:
            level = (
                choice.level
                if choice.level is not None
                else {"a": 1.0, "tie": middle, "b": 4.0}[choice.label]
            )
            given[choice.annotator][choice.unit] = level
    shared = [unit for unit in given[one] if unit in given[two]]
    if not shared:
        return Agreement(None, None, None, 0, f"{one} and {two} share no item")
    scale = sorted({*LEVELS.values()} if _has_ties(choices) else {*LEVELS.values()} - {middle})
    return cohen_kappa(
        [given[one][u] for u in shared],
        [given[two][u] for u in shared],
        categories=scale,
        weights="linear",
    )


def rater_pairs(poll: Poll) -> tuple[tuple[str, str, Agreement], ...]:
    """Cohen's kappa with linear weights of the pairs of annotators that share most items.

    See `LEAST_SHARED`.
    """
    raters: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    for choice in poll.choices:
        raters[choice.unit].append(choice.annotator)
    shared = Counter(
        pair for names in raters.values() for pair in combinations(sorted(set(names)), 2)
    )
    most = sorted(
        (pair for pair, n in shared.items() if n >= LEAST_SHARED),
        key=lambda pair: (-shared[pair], pair),
    )[:MOST_PAIRS]
    return tuple(
        (one, two, _cohen_between([c for c in poll.choices if c.annotator in (one, two)], one, two))
        for one, two in most
    )


def _concordance(ballots: Iterable[Ballot]) -> Agreement:
    rankings: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for ballot in ballots:
        if ballot.ranking:
            rankings[ballot.item].append(ballot.ranking)
    values = [kendall_w(ranks).value for ranks in rankings.values() if len(ranks) > 1]
    defined = [value for value in values if value is not None]
    if not defined:
        return Agreement(
            None, None, None, len(values), "no item was ranked by two people, or all tie"
        )
    found = bootstrap_mean(defined)
    return Agreement(found.value, found.low, found.high, found.n)


def skills(poll: Poll, found: Labels | None = None) -> tuple[AnnotatorSkill, ...]:
    """One row for each annotator, most votes first.

    Who can be believed is known from all votes together, and from gold.

    found: the poll's `labels_of`, where they are made already.
    """
    names = list(dict.fromkeys(b.annotator for b in poll.ballots))
    found = labels_of(poll) if found is None else found
    votes = Counter(b.annotator for b in poll.counted)
    compared = Counter(c.annotator for c in poll.choices)
    tied = Counter(c.annotator for c in poll.choices if c.label == "tie")
    gold, again, slots = (
        _gold_accuracy(poll.ballots),
        _repeat_consistency(poll.ballots),
        _slots_by_annotator(poll.choices),
    )
    made = [
        AnnotatorSkill(
            name,
            votes[name],
            found.reliability.get(name),
            tied[name] / compared[name] if compared[name] else None,
            gold.get(name),
            again.get(name),
            slots.get(name),
            name in found.left_out,
        )
        for name in names
    ]
    return tuple(sorted(made, key=lambda skill: -skill.votes))


def _gold_accuracy(ballots: Iterable[Ballot]) -> dict[str, Interval]:
    """Right answers among the gold and attention items of each annotator."""
    right: dict[str, list[bool]] = defaultdict(list)
    for ballot in ballots:
        if ballot.gold is not None and ballot.kind in ("gold", "attention"):
            right[ballot.annotator].append(is_right(ballot))
    return {name: wilson(sum(marks), len(marks)) for name, marks in right.items()}


def is_right(ballot: Ballot) -> bool:
    """Is the answer that of the item's gold? A tie is not."""
    if ballot.rating is not None:
        return (
            label_of(ballot.rating) == ("a", "b")[ballot.gold] if ballot.gold in (0, 1) else False
        )
    return (
        bool(ballot.ranking)
        and ballot.gold is not None
        and ballot.ranking[ballot.gold] == 1
        and ballot.ranking.count(1) == 1
    )


def _repeat_consistency(ballots: Iterable[Ballot]) -> dict[str, Interval]:
    """How often the same annotator prefers the same response when the slots are swapped."""
    first: dict[tuple[str, str], Ballot] = {}
    same: dict[str, list[bool]] = defaultdict(list)
    ballots = list(ballots)
    for ballot in ballots:
        if not ballot.repeat:
            first[ballot.item, ballot.annotator] = ballot
    for ballot in ballots:
        if ballot.repeat and (before := first.get((ballot.item, ballot.annotator))) is not None:
            same[ballot.annotator].append(_answer_of(before) == _answer_of(ballot))
    return {name: wilson(sum(marks), len(marks)) for name, marks in same.items()}


def _answer_of(ballot: Ballot) -> object:
    return ballot.ranking if ballot.rating is None else label_of(ballot.rating)


def _slots_by_annotator(choices: Iterable[Choice]) -> dict[str, SlotBias]:
    own: dict[str, list[Choice]] = defaultdict(list)
    for choice in choices:
        own[choice.annotator].append(choice)
    made = {name: first_slot_bias(given) for name, given in own.items()}
    return {name: bias for name, bias in made.items() if bias is not None}


def first_slot_bias(choices: Iterable[Choice]) -> SlotBias | None:
    """How often the response shown first won, ties left out.

    Votes on one item are not independent.
    """
    decided = [choice for choice in choices if choice.slot != "tie"]
    return clustered_slot_bias([c.slot == "left" for c in decided], [c.unit[0] for c in decided])


def longer_wins(choices: Sequence[Choice]) -> Interval | None:
    """How often the response with more words won, ties left out.

    It is the accuracy of a judge that only counts words.
    """
    items = [c.unit[0] for c in choices]
    return preference(
        [c.label for c in choices],
        [c.lengths[0] for c in choices],
        [c.lengths[1] for c in choices],
        items,
    )


def _cohens_kappa(choices: Sequence[Choice]) -> dict[str, Agreement]:
    """Cohen's kappa where there are two annotators, else why not."""
    raters = list(dict.fromkeys(choice.annotator for choice in choices))
    if len(raters) == 2:
        return {"Cohen's kappa, linear weights": _cohen_between(choices, *raters)}
    reason = f"it is for two annotators, here are {len(raters)}; their pairs are listed apart"
    return {"Cohen's kappa": Agreement(None, None, None, 0, reason)}


def _gwet_name(choices: Sequence[Choice]) -> str:
    """AC1's name, with a warning where one answer prevails."""
    most = max(Counter(choice.label for choice in choices).values()) / len(choices)
    warning = f" (one answer has {most:.0%}: read it beside alpha)" if most > PREVAILS else ""
    return f"Gwet's AC1{warning}"


def model_scores(choices: Sequence[Choice]) -> ModelScores:
    """Bradley-Terry scores of named models, with a term for the first slot.

    Pairs are used whose two responses come from two named models. Ties are half wins.

    Votes on one item are not independent: intervals come from leaving out items.
    """
    rows = [c for c in choices if all(c.models) and c.models[0] != c.models[1]]
    if not rows:
        return ModelScores((), None, "no pair has responses of two named models")
    found = _slot_ranking(rows)
    points = found.elo()
    if points is None or found.error is None:
        return ModelScores((), None, found.reason)
    known = found.clusters != 1
    half = found.reach() * 400 / log(10) if known else 0.0
    counts, made = _outcomes_by_model(rows), []
    for k, name in enumerate(map(str, found.names)):
        value, reach = float(points[k]), float(half * found.error[k])
        bounds = (value - reach, value + reach) if known else (None, None)
        won, tied, lost = (counts[name][outcome] for outcome in ("won", "tied", "lost"))
        made.append(ModelScore(name, value, *bounds, won, tied, lost))
    ranked = tuple(sorted(made, key=lambda score: -score.score))
    return ModelScores(ranked, _slot_advantage(found, half, len(rows)) if known else None)


def _slot_advantage(found: Ranking, half: float, votes: int) -> Interval | None:
    """What the first slot is worth, in Elo points."""
    if found.slot is None or found.slot_error is None:
        return None
    points, error = found.slot * 400 / log(10), half * found.slot_error
    return Interval(points, points - error, points + error, votes)


def _slot_ranking(rows: Sequence[Choice]) -> Ranking:
    """Bradley-Terry of the models as shown: first slot, second slot, who won."""
    first, second, won = [], [], []
    for c in rows:
        one, two = c.models
        swapped = (c.slot == "left") != (c.label == "a") and c.label != "tie"
        first.append(two if swapped else one)
        second.append(one if swapped else two)
        won.append({"left": 1.0, "right": 0.0, "tie": 0.5}[c.slot])
    weights, items = [c.weight for c in rows], [c.unit[0] for c in rows]
    fit = partial(bradley_terry_slots, first, second, won, weights=weights, clusters=items)
    found = fit()
    # where only the slot's term has no estimate the scores have one without it
    if found.log_ability is None and len(found.components) == 1:
        found = fit(slots=False)
    return found


def _outcomes_by_model(rows: Sequence[Choice]) -> dict[str, Counter[str]]:
    """model -> how often it won, lost and tied."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for c in rows:
        one, two = c.models
        counts[one][{"a": "won", "b": "lost", "tie": "tied"}[c.label]] += 1
        counts[two][{"b": "won", "a": "lost", "tie": "tied"}[c.label]] += 1
    return counts


def low_effort_signals(poll: Poll) -> tuple[Signals, ...]:
    """The signs of low effort for each annotator.

    Evidence for a person to look at, never a verdict. See `signals`.
    """
    judge = next(iter(poll.judges), None)
    echo = (
        {}
        if judge is None
        else {
            item: label
            for item, label in verdicts_of(poll.judges[judge]).items()
            if label in LABELS
        }
    )
    votes: dict[tuple[tuple[str, int, int], str], Sign] = {}
    ballots = {(b.item, b.annotator): b for b in poll.counted}
    for c in poll.choices:
        b = ballots[c.unit[0], c.annotator]
        model = echo.get(b.item) if len(b.order) == 2 else None
        votes[c.unit, c.annotator] = Sign(
            c.unit, c.annotator, c.slot, c.label, b.seconds, b.words, model, b.pasted
        )
    return tuple(sorted(signals(list(votes.values())), key=lambda own: -own.n)) if votes else ()


def hourly_pay(poll: Poll) -> HourlyPay | None:
    """Pay per hour at the batch's price; None without a price.

    Every answered sample is paid: gold and repeats too.
    """
    settings = poll.settings
    if settings is None or not settings.pay_per_item:
        return None
    timed = [b for b in poll.ballots if b.seconds]
    times: dict[str, list[float]] = defaultdict(list)
    for b in timed:
        times[b.annotator].append(b.seconds or 0.0)
    rate = hourly(settings.pay_per_item, [b.seconds or 0.0 for b in timed]) if timed else None
    below = ""
    if rate is not None and rate.n >= PILOT and rate.median < settings.pay_floor:
        below = (
            f"the median vote pays {rate.median:.2f} {settings.currency} an hour, the floor is"
            f" {settings.pay_floor:.2f}"
        )
    each = {
        name: settings.pay_per_item * len(spent) * 3600 / sum(spent)
        for name, spent in times.items()
    }
    return HourlyPay(
        rate, len(poll.ballots) - len(timed), each, settings.pay_floor, settings.currency, below
    )
