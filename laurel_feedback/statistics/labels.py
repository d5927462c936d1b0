"""What the votes on a pair of responses say, as one label.

The export writes it, and the report scores it on votes it has not seen.

The chance of a label is that a further annotator, who decides and is like those who voted, prefers
the response (`laurel.measure.preference_shares`). A vote of "tie" decides nothing. Someone who
answers gold items wrong significantly more often than right (exact one-sided test at `DOUBT`) is
left out: their votes stand for nothing and make no majority. No label goes against a strict
majority of the votes that stand.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom
from sqlalchemy import select
from sqlalchemy.orm import Session

from laurel.measure.calibration import Bin
from laurel.measure.preference_shares import HeldOut, held_out, preference_shares
from laurel_feedback.statistics.votes import Ballot, Poll
from laurel_feedback.store.tables import Assignment, Batch, Dispute, Item, Vote

Unit = tuple[str, int, int]
"""An item and two places of responses in it, the lower one first."""
GOLD = ("gold", "attention")
"""Kinds of items that have a right answer and measure the annotator."""
DOUBT = 0.01
EVEN = 1e-6
"""A chance no farther than this from 1/2 is even."""


class PairVote(NamedTuple):
    """One vote on one pair.

    side is above 0 for the first response, below 0 for the second, 0 for a tie.
    """

    unit: Unit
    person: Hashable
    side: float


class Label(NamedTuple):
    """A pair's label: P(first preferred), belief in those who decided, and the votes counted."""

    first: float
    weight: float
    wins: int
    losses: int
    ties: int

    @property
    def lead(self) -> int:
        """1: the first response is the better one, -1: the second, 0: even.

        A majority goes before the chance.
        """
        if self.wins != self.losses:
            return 1 if self.wins > self.losses else -1
        return 0 if abs(self.first - 0.5) < EVEN else 1 if self.first > 0.5 else -1


@dataclass(frozen=True)
class Labels:
    """The labels of all pairs, the reliability of each person, and who is left out because of gold.

    reliability: 1 - the chance that the person guesses, of who decided at least once. crowd: its
    mean over votes.
    """

    by_unit: dict[Unit, Label]
    reliability: dict[Hashable, float]
    crowd: float
    left_out: frozenset[Hashable]
    rows: tuple[tuple[int, int, int], ...] = field(repr=False, default=())
    gold: tuple[tuple[int, int, int], ...] = field(repr=False, default=())

    def held_out(self, seeds: Sequence[int] = (0, 1, 2)) -> HeldOut | None:
        """How well labels made just so foretell a vote they have not seen.

        None where no pair has three votes that decide.
        """
        return held_out(self.rows, gold=self.gold, seeds=seeds) if self.rows else None


Marks = Mapping[Hashable, tuple[int, int]]
"""Of a person, the right and the wrong answers to gold; who prefers neither is neither."""


def estimate_labels(ballots: Sequence[PairVote], gold: Marks | None = None) -> Labels:
    """All labels together: who can be believed is known from all pairs, and from gold.

    Of two votes of one person on a pair the last counts.
    """
    gold, ballots = gold or {}, list({(one.unit, one.person): one for one in ballots}.values())
    out = frozenset(person for person, (right, wrong) in gold.items() if is_inverted(right, wrong))
    units = {unit: n for n, unit in enumerate(dict.fromkeys(one.unit for one in ballots))}
    people = {person: n for n, person in enumerate(dict.fromkeys(one.person for one in ballots))}
    standing = [one for one in ballots if one.person not in out]
    rows = tuple(
        (units[one.unit], people[one.person], int(one.side < 0)) for one in standing if one.side
    )
    marks = _gold_answers(gold, people, out)
    chance, reliability, crowd = _estimate_reliabilities(rows, marks, list(people))
    votes = _by_unit(standing, units)
    made = {
        unit: _label(given, chance.get(units[unit], 0.5), reliability, crowd)
        for unit, given in votes.items()
    }
    return Labels(made, reliability, crowd, out, rows, marks)


def _by_unit(votes: Iterable[PairVote], units: Iterable[Unit]) -> dict[Unit, list[PairVote]]:
    found: dict[Unit, list[PairVote]] = {unit: [] for unit in units}
    for vote in votes:
        found[vote.unit].append(vote)
    return found


def _gold_answers(
    gold: Marks, people: Mapping[Hashable, int], out: frozenset[Hashable]
) -> tuple[tuple[int, int, int], ...]:
    """(0, person, right) for every answer to gold, of people who are not left out."""
    return tuple(
        (0, people[person], mark)
        for person, counts in gold.items()
        if person in people and person not in out
        for mark, count in zip((1, 0), counts, strict=True)
        for _ in range(count)
    )


def _estimate_reliabilities(
    rows: tuple[tuple[int, int, int], ...],
    marks: tuple[tuple[int, int, int], ...],
    names: list[Hashable],
) -> tuple[dict[int, float], dict[Hashable, float], float]:
    """(P(first preferred) of each pair, reliability of each person, that of the crowd)."""
    if not rows:
        return {}, {}, 0.0
    found = preference_shares(rows, gold=marks)
    chance = dict(zip(found.items.tolist(), found.first.tolist(), strict=True))
    guesses = zip(found.annotators.tolist(), found.guess.tolist(), strict=True)
    return chance, {names[k]: 1 - guess for k, guess in guesses}, 1 - found.crowd


def _label(
    given: Sequence[PairVote], first: float, reliability: Mapping[Hashable, float], crowd: float
) -> Label:
    """Belief in those who decided; where all said tie it is they who did."""
    sides = Counter(int(np.sign(one.side)) for one in given)
    decided = [one.person for one in given if one.side] or [one.person for one in given]
    weight = (
        float(np.mean([reliability.get(person, crowd) for person in decided])) if decided else 0.0
    )
    return Label(first, weight, sides[1], sides[-1], sides[0])


def is_inverted(right: int, wrong: int) -> bool:
    """Are there more wrong answers to gold than a guesser gives once in a hundred times?"""
    return right + wrong > 0 and float(binom.sf(wrong - 1, right + wrong, 0.5)) < DOUBT


def gold_side(rating: int | None, ranking: Sequence[int] | None, gold: int | None) -> int:
    """1 for the right answer, -1 for a wrong one, 0 for neither.

    Neither is a tie, or a right response in the middle of a ranking.
    """
    if gold is None:
        return 0
    if ranking is not None:
        others = [rank for place, rank in enumerate(ranking) if place != gold]
        return int(np.sign(np.mean(others) - ranking[gold])) if others else 0
    return 0 if not rating else 1 if (rating <= 2) == (gold == 0) else -1


def count_gold_sides(sides: Iterable[tuple[Hashable, int]]) -> dict[Hashable, tuple[int, int]]:
    """(person, `gold_side`) of each answer -> `Marks`."""
    counts: dict[Hashable, Counter[int]] = defaultdict(Counter)
    for person, side in sides:
        counts[person][side] += 1
    return {person: (count[1], count[-1]) for person, count in counts.items()}


def gold_answers_in_batches(
    session: Session, batches: Sequence[str]
) -> dict[Hashable, tuple[int, int]]:
    """Everybody's answers to the gold of these batches, by the annotator's id.

    One that was objected to with success counts as nothing.
    """
    upheld = select(Dispute.assignment_id).where(Dispute.state == "upheld")
    given = (
        select(Assignment.id, Assignment.annotator_id, Vote.rating, Vote.ranking, Item.gold)
        .join(Vote, Vote.assignment_id == Assignment.id)
        .join(Item, Assignment.item_id == Item.id)
        .join(Batch, Item.batch_id == Batch.id)
        .where(
            Batch.name.in_(batches),
            Item.kind.in_(GOLD),
            Assignment.state == "submitted",
            Assignment.id.not_in(upheld),
        )
        .order_by(Assignment.id, Vote.revision)
    )
    last = {
        name: (person, gold_side(rating, ranking, gold))
        for name, person, rating, ranking, gold in session.execute(given)
    }
    return count_gold_sides(last.values())


def gold_answers_in_ballots(ballots: Iterable[Ballot]) -> dict[Hashable, tuple[int, int]]:
    """The same of ballots, by pseudonym."""
    return count_gold_sides(
        (b.annotator, gold_side(b.rating, b.ranking, b.gold)) for b in ballots if b.kind in GOLD
    )


SIDES = {"a": 1.0, "tie": 0.0, "b": -1.0}


def labels_of(poll: Poll) -> Labels:
    """The labels that an export of these votes writes."""
    return estimate_labels(
        [PairVote(c.unit, c.annotator, SIDES[c.label]) for c in poll.choices],
        gold_answers_in_ballots(poll.ballots),
    )


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """What the labels of a poll are worth.

    pairs: with a strict majority of all decisive votes. against_majority: labels for the other
    response, though nobody was left out; by_gold: the same where somebody was. even: as many votes
    for either side. undecided: every vote is a tie. left_out: people whom gold speaks against.
    held_out: see `HeldOut`; None where no pair has three decisive votes.
    """

    pairs: int
    against_majority: int
    by_gold: int
    even: int
    undecided: int
    left_out: tuple[str, ...]
    held_out: HeldOut | None

    def as_json(self) -> dict[str, Any]:
        """As JSON."""
        made: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("pairs", "against_majority", "by_gold", "even", "undecided")
        }
        made["left_out"] = list(self.left_out)
        made["soft_label"] = "the chance that a further annotator, who decides, prefers chosen"
        return made | held_out_figures(self.held_out)


def held_out_figures(found: HeldOut | None) -> dict[str, Any]:
    """Held-out log loss and the reliability table as JSON.

    Both None where nothing could be held out.
    """
    if found is None:
        return {"held_out_log_loss": None, "reliability": None}
    draws = [
        {"seed": seed, "product": product, "share": share} for seed, product, share in found.draws
    ]
    loss = {
        "product": found.product,
        "share": found.share,
        "coin": found.coin,
        "pairs": found.n,
        "draws": draws,
    }
    return {"held_out_log_loss": loss, "reliability": [_bin(row) for row in found.table]}


def _bin(row: Bin) -> dict[str, float]:
    came = row.frequency
    bounds = {"from": row.low, "to": row.high, "pairs": row.count, "said": row.confidence}
    return {**bounds, "found": came.value, "low": came.low, "high": came.high}


def label_quality(
    poll: Poll, made: Labels, *, seeds: Sequence[int] = (0, 1, 2)
) -> LabelQuality | None:
    """See `LabelQuality`, of the poll's `labels_of`.

    None where no pair was voted on. seeds: of the draws of votes to hold out.
    """
    if not poll.choices:
        return None
    every: dict[Unit, Counter[int]] = defaultdict(Counter)
    touched = set[Unit]()
    for c in poll.choices:
        every[c.unit][int(SIDES[c.label])] += 1
        if c.annotator in made.left_out and c.label != "tie":
            touched.add(c.unit)
    gap = {unit: count[1] - count[-1] for unit, count in every.items()}
    against = [
        unit
        for unit, lead in gap.items()
        if lead * (made.by_unit[unit].first - 0.5) < 0 or lead * made.by_unit[unit].lead < 0
    ]
    overruled = sum(unit in touched for unit in against)
    undecided = sum(not (count[1] or count[-1]) for count in every.values())
    pairs = sum(lead != 0 for lead in gap.values())
    left_out = tuple(sorted(map(str, made.left_out)))
    return LabelQuality(
        pairs,
        len(against) - overruled,
        overruled,
        len(gap) - pairs - undecided,
        undecided,
        left_out,
        made.held_out(seeds),
    )
