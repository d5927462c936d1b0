"""The report card of a judge, and that of the people it is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from laurel.measure.agreement import Agreement, cohen_kappa, pair_agreement
from laurel.measure.crowd import LABELS
from laurel.measure.intervals import cluster_bootstrap_mean
from laurel.measure.judge_agreement import (
    corrected_win_rates,
    kappa_of_pairs,
    kappa_with_majority,
    share_of,
    system_correlations,
)
from laurel.measure.judge_behaviour import (
    accuracy,
    first_slot_bias,
    flips,
    identical_even,
    known,
    last_words,
    lengths_of,
    parse_rate,
    preferred,
    self_preference,
    share_of_hits,
    slots_of,
    swap_bias,
    told_consistency,
    total_cost,
)
from laurel.measure.judge_records import (
    WORTH,
    JudgeAnswer,
    Judged,
    JudgedItem,
    as_labels,
    majority,
)
from laurel.measure.judging import PPI, leave_one_out, mcnemar_exact
from laurel.measure.length_control import length_controlled

NO_LENGTHS = "no decided item with two responses of known, different lengths"
LONGER, FIRST = "the longer response", "the response stored first"


@dataclass(frozen=True, slots=True)
class WinRate:
    """A system's win rate by the judge's verdicts, ties half a win, and what people say of it.

    plain: the mean of the verdicts. controlled: at equal lengths. people: by people's votes alone
    (on `labels` items if so many were drawn). corrected: prediction-powered, from those votes and
    the verdicts on the other items; weight: its lambda. everybody: by all of people's votes.
    """

    plain: Agreement
    controlled: Agreement
    people: Agreement
    corrected: Agreement
    weight: float | None
    everybody: Agreement


@dataclass(frozen=True)
class JudgeCard:
    """What a judge's verdicts are worth; every figure is a share, or None with the reason.

    answers: of its answers by status; items: its last words by status. parse: valid answers of all
    asked. consistency: the same verdict in both orders; first_slot with the exact p of
    `clustered_slot_bias`; second_thoughts: who wins the pairs that change with the order.
    repeat_flips, swap_flips: how often two answers in one order, and in the two orders, differ.
    identical: no preference between two equal texts. accuracy: the right answer of valid ones,
    accuracy_asked of all asked. longer: P(prefers the longer). self_preference: see there. people,
    people_no_ties: agreement with a person; kappa_person, kappa: with a person, with people's
    majority. rho, tau: the order of systems. tokens and cost: None if not known.
    """

    name: str
    answers: dict[str, int]
    items: dict[str, int]
    parse: Agreement
    consistency: Agreement
    first_slot: Agreement
    first_slot_p: float | None
    second_thoughts: Agreement
    repeat_flips: Agreement
    swap_flips: Agreement
    identical: Agreement
    accuracy: Agreement
    accuracy_asked: Agreement
    longer: Agreement
    family: str
    self_preference: Agreement
    people: Agreement
    people_no_ties: Agreement
    kappa_person: Agreement
    kappa: Agreement
    rho: Agreement
    tau: Agreement
    win_rates: dict[str, WinRate]
    length_slope: Agreement
    tokens_in: int | None
    tokens_out: int | None
    cost: float | None


@dataclass(frozen=True)
class PeopleCard:
    """The same figures of people: the ceiling that a judge is read against.

    leave_one_out: how often a person agrees with the majority of the others. baselines: how often
    the truth is the longer response, and the one stored first: what a judge that only looks at that
    would score; `truth` says whether it is gold or people's votes without ties.
    """

    votes: int
    raters: int
    items: int
    ties: Agreement
    agreement: Agreement
    agreement_no_ties: Agreement
    kappa: Agreement
    leave_one_out: float | None
    longer: Agreement
    truth: str
    baselines: dict[str, Agreement]


@dataclass(frozen=True)
class PairOfJudges:
    """Two judges on the items on which both have a valid verdict.

    McNemar: on how many items only the first, and only the second, agrees with the truth; exact p.
    """

    first: str
    second: str
    agreement: Agreement
    kappa: Agreement
    only_first: int | None
    only_second: int | None
    p: float | None
    reason: str = ""


@dataclass(frozen=True)
class Card:
    """All judges of a source beside its people."""

    name: str
    items: int
    prompts: int
    people: PeopleCard
    judges: tuple[JudgeCard, ...]
    pairs: tuple[PairOfJudges, ...]
    labels: int | None
    published: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def card(
    judged: Judged,
    names: Sequence[str] | None = None,
    *,
    labels: int | None = None,
    seed: int = 0,
) -> Card:
    """The report card of the judges named (of all, if none are).

    labels: how many items' votes the prediction-powered win rates may use, drawn by `seed`; None
    for all. An inconsistent verdict counts as a tie wherever people's votes are compared, as
    MT-Bench counts it; errors and invalid answers are left out, and counted.
    """
    chosen = list(judged.judges) if names is None else list(names)
    drawn = drawn_items(judged, labels, seed)
    words = {name: as_labels(last_words(judged, name)) for name in chosen}
    return Card(
        judged.name,
        len(judged.items),
        len({item.prompt for item in judged.items.values()}),
        people_card(judged),
        tuple(judge_card(judged, name, words[name], drawn) for name in chosen),
        tuple(
            pair_of_judges(judged, (one, words[one]), (two, words[two]))
            for one, two in combinations(chosen, 2)
        ),
        None if labels is None else len(drawn),
        judged.published,
        judged.notes,
    )


def drawn_items(judged: Judged, labels: int | None, seed: int) -> list[str]:
    """The items whose votes the corrected win rates use: all that have any, or so many of them."""
    rated = sorted(judged.ballots)
    if labels is None or labels >= len(rated):
        return rated
    places = np.random.default_rng(seed).choice(len(rated), labels, replace=False)
    return [rated[place] for place in sorted(places)]


def judge_card(
    judged: Judged, name: str, labels: Mapping[str, str], drawn: Sequence[str]
) -> JudgeCard:
    """One judge; labels: its last words with inconsistent as a tie. See `JudgeCard`."""
    answers = judged.judges[name]
    rho, tau = correlations(judged, labels)
    rates, slope = win_rates(judged, labels, drawn)
    read, written, cost = total_cost(answers)
    return JudgeCard(
        name=name,
        answers=dict(Counter(answer.status for answer in answers)),
        items=dict(Counter(last_words(judged, name).values())),
        parse=parse_rate(judged, answers),
        **_by_order(judged, answers),
        repeat_flips=flips(judged, answers, swapped=False),
        swap_flips=flips(judged, answers, swapped=True),
        identical=identical_even(judged, answers),
        accuracy=accuracy(judged, answers),
        accuracy_asked=accuracy(judged, answers, of_all=True),
        longer=preferred(judged, labels.items(), lengths_of, NO_LENGTHS),
        family=judged.families.get(name, ""),
        self_preference=self_preference(judged, name, labels),
        **_with_people(judged, labels),
        rho=rho,
        tau=tau,
        win_rates=rates,
        length_slope=slope,
        tokens_in=read,
        tokens_out=written,
        cost=cost,
    )


def _by_order(judged: Judged, answers: Sequence[JudgeAnswer]) -> dict[str, Any]:
    """How far the order of showing decides: consistency, first_slot with p, second_thoughts."""
    swap = swap_bias(answers, judged_prompt(judged))
    first = first_slot_bias(answers, judged_prompt(judged))
    told = told_consistency(judged, answers)
    both = "no item has valid answers in both orders"
    changed = None if swap is None or swap.inconsistent is None else swap.inconsistent.share
    share = None if first is None else first.share
    return {
        "consistency": told if swap is None else known(swap.consistency, both),
        "first_slot": known(share, "no decided answer of known order"),
        "first_slot_p": None if first is None else first.p,
        "second_thoughts": known(changed, "no pair names two winners"),
    }


def judged_prompt(judged: Judged) -> Callable[[str], str]:
    """An item -> its prompt."""
    return lambda item: judged.items[item].prompt


def _with_people(judged: Judged, labels: Mapping[str, str]) -> dict[str, Any]:
    """A judge's agreement with people, by item."""
    verdicts = {item: [label] for item, label in labels.items()}
    cluster = judged_prompt(judged)
    return {
        "people": pair_agreement(judged.ballots, verdicts, cluster=cluster),
        "people_no_ties": pair_agreement(judged.ballots, verdicts, ties=False, cluster=cluster),
        "kappa_person": kappa_of_pairs(judged.ballots, labels, cluster=cluster),
        "kappa": kappa_with_majority(judged.ballots, labels, cluster=cluster),
    }


def people_card(judged: Judged) -> PeopleCard:
    """People's votes by the same figures, and what follows from gold where there is any."""
    ballots, votes = judged.ballots, judged.votes
    cluster = judged_prompt(judged)
    gold = [(item.id, item.gold) for item in judged.items.values() if item.gold is not None]
    voted = [(vote.item, vote.label) for vote in votes]
    truth = gold or voted
    nobody = "nobody voted"
    return PeopleCard(
        votes=len(votes),
        raters=len({vote.rater for vote in votes}),
        items=len(ballots),
        ties=share_of_hits(
            [float(vote.label == "tie") for vote in votes],
            judged.prompts(vote.item for vote in votes),
            nobody,
        ),
        agreement=pair_agreement(ballots, cluster=cluster),
        agreement_no_ties=pair_agreement(ballots, ties=False, cluster=cluster),
        kappa=kappa_of_pairs(ballots, cluster=cluster),
        leave_one_out=leave_one_out(list(ballots.values())),
        longer=preferred(judged, voted, lengths_of, NO_LENGTHS if votes else nobody),
        truth="gold" if gold else "people" if voted else "",
        baselines={
            LONGER: preferred(judged, truth, lengths_of, NO_LENGTHS),
            FIRST: preferred(judged, truth, slots_of, "no gold and no votes"),
        },
    )


def correlations(judged: Judged, labels: Mapping[str, str]) -> tuple[Agreement, Agreement]:
    """Spearman's rho and Kendall's tau-b of systems' scores by people and by the judge."""
    rho, tau = system_correlations(
        ((judged.items[vote.item].models, vote.label) for vote in judged.votes),
        ((judged.items[item].models, label) for item, label in labels.items()),
    )
    reason = "fewer than three systems have scores from people and from the judge"
    nothing = Agreement(None, None, None, 0, reason)
    return rho or nothing, tau or nothing


def win_rates(
    judged: Judged, labels: Mapping[str, str], drawn: Sequence[str]
) -> tuple[dict[str, WinRate], Agreement]:
    """Each system's win rates, best first by the judge, and the weight of length in logits."""
    pairs = {item: one.models for item, one in judged.items.items() if all(one.models)}
    names = sorted({name for item in labels if item in pairs for name in pairs[item]})
    corrected = _corrected_rates(judged, labels, pairs, drawn)
    controlled, slope = equal_lengths(judged, labels)
    single = {item: [label] for item, label in labels.items()}
    rates = {
        name: WinRate(
            mean_share(judged, name, single, labels),
            controlled.get(name, slope if slope.value is None else _unknown("no known length")),
            *_corrected(
                corrected.get(name),
                mean_share(judged, name, judged.ballots, drawn),
                bool(judged.votes),
            ),
            mean_share(judged, name, judged.ballots, judged.ballots),
        )
        for name in names
    }
    order = sorted(rates, key=lambda name: (-(rates[name].plain.value or 0.0), name))
    return {name: rates[name] for name in order}, slope


def _corrected_rates(
    judged: Judged,
    labels: Mapping[str, str],
    pairs: Mapping[str, tuple[str, str]],
    drawn: Sequence[str],
) -> dict[str, PPI]:
    """Prediction-powered win rates from the votes on the drawn items."""
    rated = {item: pairs[item] for item in drawn if item in pairs}
    rest = {item: pairs[item] for item in labels if item in pairs and item not in rated}
    return corrected_win_rates(rated, rest, judged.ballots, labels)


def _unknown(reason: str) -> Agreement:
    return Agreement(None, None, None, 0, reason)


def _corrected(
    found: PPI | None, people: Agreement, voted: bool
) -> tuple[Agreement, Agreement, float | None]:
    """The rate by people's votes, the corrected one, and its lambda."""
    if found is None:
        reason = "people rated every item that was judged" if voted else "nobody voted"
        return people, _unknown(reason), None
    return known(found.human, ""), known(found.estimate, ""), found.weight


def mean_share(
    judged: Judged, name: str, ballots: Mapping[str, Sequence[str]], items: Iterable[str]
) -> Agreement:
    """A system's mean share of wins over items, the mean of each item's ballots; by prompt."""
    values: list[float] = []
    of: list[str] = []
    for item in items:
        given = [share_of(name, judged.items[item].models, label) for label in ballots[item]]
        shares = [share for share in given if share is not None]
        if shares:
            values.append(float(np.mean(shares)))
            of.append(item)
    if not values:
        return _unknown("nobody compared it")
    found = cluster_bootstrap_mean(values, judged.prompts(of))
    single = len(set(judged.prompts(of))) < 2
    bounds = (None, None) if single else (found.low, found.high)
    return Agreement(found.value, *bounds, len(values), "one prompt only" if single else "")


def equal_lengths(
    judged: Judged, labels: Mapping[str, str]
) -> tuple[dict[str, Agreement], Agreement]:
    """`length_controlled` of the items with two named systems and known lengths.

    Where every item compares with one baseline, each system is fitted by itself, as in AlpacaEval.
    """
    known_items = [
        judged.items[item]
        for item in labels
        if judged.items[item].lengths is not None
        and all(judged.items[item].models)
        and judged.items[item].models[0] != judged.items[item].models[1]
    ]
    if not known_items:
        return {}, _unknown("no pair of two named systems with known lengths")
    common = set.intersection(*(set(item.models) for item in known_items))
    systems = {name for item in known_items for name in item.models} - common
    if len(common) != 1 or len(systems) < 2:
        found = _controlled(known_items, labels)
        return found
    rates: dict[str, Agreement] = {}
    for name in systems:
        rates[name] = _controlled([i for i in known_items if name in i.models], labels)[0][name]
    several = _unknown("each system has its own, where all are compared with one baseline")
    return {**_controlled(known_items, labels)[0], **rates}, several


def _controlled(
    items: Sequence[JudgedItem], labels: Mapping[str, str]
) -> tuple[dict[str, Agreement], Agreement]:
    """Rates at equal lengths of items whose lengths are known."""
    lengths = [item.lengths or (0, 0) for item in items]
    found = length_controlled(
        [item.models[0] for item in items],
        [item.models[1] for item in items],
        [WORTH[labels[item.id]] for item in items],
        [first - second for first, second in lengths],
        [item.prompt for item in items],
    )
    return found.rates, found.slope


def pair_of_judges(
    judged: Judged, one: tuple[str, Mapping[str, str]], two: tuple[str, Mapping[str, str]]
) -> PairOfJudges:
    """Two judges, by name and labels, on the items that both judged."""
    (first, own), (second, other) = one, two
    both = [item for item in own if item in other]
    if not both:
        nothing = _unknown("the two have no item in common")
        return PairOfJudges(first, second, nothing, nothing, None, None, None, nothing.reason)
    prompts = judged.prompts(both)
    mine, theirs = [own[i] for i in both], [other[i] for i in both]
    equal = [float(x == y) for x, y in zip(mine, theirs, strict=True)]
    same = share_of_hits(equal, prompts, "")
    kappa = cohen_kappa(mine, theirs, categories=list(LABELS), clusters=prompts)
    return PairOfJudges(first, second, same, kappa, *right_alone(judged, own, other, both))


def right_alone(
    judged: Judged, own: Mapping[str, str], other: Mapping[str, str], both: Sequence[str]
) -> tuple[int | None, int | None, float | None, str]:
    """How often each of two judges alone agrees with the truth, exact p, and why not."""
    truth = {item: best for item in both if (best := truth_of(judged, item)) is not None}
    if not truth:
        return None, None, None, "no common item has gold or a majority of people"
    first = sum(own[item] == best != other[item] for item, best in truth.items())
    second = sum(other[item] == best != own[item] for item, best in truth.items())
    p = mcnemar_exact(first, second)
    return first, second, p, "" if p is not None else "the two are never right on different items"


def truth_of(judged: Judged, item: str) -> str | None:
    """Gold, or else the strict majority of people's votes."""
    gold, votes = judged.items[item].gold, judged.ballots.get(item)
    if gold is not None or not votes:
        return gold
    return majority(votes)
