"""An item with its votes as rows of a file: pairs, single answers, rankings, or the votes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from laurel.data.confidence import MARGIN, PAIR_COLUMNS, SOFT_LABEL, WEIGHT
from laurel_feedback.statistics.labels import (
    EVEN,
    Label,
    Labels,
    Marks,
    PairVote,
    estimate_labels,
    is_inverted,
)
from laurel_feedback.store.tables import Assignment, Item, Ruling, Vote

SLIGHTLY = 0.33
SIGN = {1: 1.0, 2: SLIGHTLY, 0: 0.0, 3: -SLIGHTLY, 4: -1.0}
"""What a rating says for the first response against the second."""


class CastVote(NamedTuple):
    """A vote that holds, with who gave it and the sample it belongs to."""

    vote: Vote
    assignment: Assignment
    pseudonym: str
    person: int


@dataclass
class RatedItem:
    """An item with its votes (of every revision: `every`), and what the coordinator ruled."""

    item: Item
    batch: str
    votes: list[CastVote] = field(default_factory=list)
    every: list[CastVote] = field(default_factory=list)
    ruling: Ruling | None = None

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The messages; what the annotator saw as input stands behind the last one."""
        turns = [dict(turn) for turn in self.item.prompt]
        if self.item.input:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{self.item.input}"
        return turns

    def messages(self, place: int) -> list[dict[str, str]]:
        """A response as messages."""
        response = self.item.responses[place]
        return response.source.get("messages") or [{"role": "assistant", "content": response.text}]

    def provenance(self, places: Sequence[int]) -> dict[str, Any]:
        """Where a row comes from: ids, models, people and what they were told."""
        shown = [self.item.responses[place] for place in places]
        return {
            "batch": self.batch,
            "item": self.item.id,
            "kind": self.item.kind,
            "candidates": [r.source.get("candidate", r.id) for r in shown],
            "models": [r.model for r in shown],
            "annotators": sorted({cast.pseudonym for cast in self.votes}),
            "votes": len(self.votes),
            "ruled": self.ruling is not None,
            "guidelines": sorted(
                {number for cast in self.votes if (number := cast.vote.guideline_id) is not None}
            ),
            "source": self.item.source,
        }


class PairOpinion(NamedTuple):
    """The label of two responses of an item.

    P(first better), belief in the voters, margin for the first, the votes, and the better one.

    lead: 1 the first, -1 the second, 0 neither.
    """

    first: float
    weight: float
    margin: float
    wins: int = 0
    losses: int = 0
    ties: int = 0
    lead: int = 0

    def turned(self) -> PairOpinion:
        """The same, with the second response as the first."""
        return PairOpinion(
            1 - self.first, self.weight, -self.margin, self.losses, self.wins, self.ties, -self.lead
        )

    def counted(self) -> dict[str, int]:
        """The votes as columns: for the first, against it, and ties."""
        return {"votes_for": self.wins, "votes_against": self.losses, "ties": self.ties}


def signed_preference(vote: Vote, a: int, b: int) -> float:
    """What a vote says for place a against place b.

    1 better, .33 slightly, 0 tie, negative the other way round. Ranks: 1 or -1.
    """
    if vote.ranking is not None:
        return float(np.sign(vote.ranking[b] - vote.ranking[a]))
    return SIGN[vote.rating or 0]


def pair_votes(rated: Sequence[RatedItem]) -> list[PairVote]:
    """Every vote on every pair of responses; of a ranking each of its pairs."""
    return [
        PairVote((one.item.id, a, b), cast.person, signed_preference(cast.vote, a, b))
        for one in rated
        for a, b in combinations(range(len(one.item.responses)), 2)
        for cast in one.votes
    ]


def distrusted_voters(rated: Sequence[RatedItem], gold: Marks) -> frozenset[int]:
    """The voters whom gold speaks against."""
    return frozenset(
        cast.person
        for one in rated
        for cast in one.votes
        if is_inverted(*gold.get(cast.person, (0, 0)))
    )


def pair_opinions(
    rated: Sequence[RatedItem], found: Labels | None = None
) -> dict[tuple[str, int, int], PairOpinion]:
    """(item, a, b), a < b -> `PairOpinion`, from `estimate_labels` of all of them.

    Without a vote that decides it is at 1/2.
    """
    found = found or estimate_labels(pair_votes(rated))
    none = Label(0.5, 0.0, 0, 0, 0)
    made = {}
    for one in rated:
        for a, b in combinations(range(len(one.item.responses)), 2):
            label = found.by_unit.get((one.item.id, a, b), none)
            if one.ruling is not None:
                side = SIGN[one.ruling.rating]
                lead = int(np.sign(side))
                made[one.item.id, a, b] = PairOpinion(
                    0.5 + 0.5 * lead, 1.0, side, label.wins, label.losses, label.ties, lead
                )
                continue
            says = [
                signed_preference(cast.vote, a, b)
                for cast in one.votes
                if cast.person not in found.left_out
            ]
            mean = float(np.mean(says)) if says else 0.0
            made[one.item.id, a, b] = PairOpinion(
                label.first, label.weight, mean, label.wins, label.losses, label.ties, label.lead
            )
    return made


@dataclass
class RowSettings:
    """What rows are made with, and the ties met on the way."""

    opinions: dict[tuple[str, int, int], PairOpinion]
    columns: tuple[str, ...]
    ties: str
    revisions: bool
    left_out: frozenset[int] = frozenset()
    tied: int = 0

    def of(self, one: RatedItem, a: int, b: int) -> PairOpinion:
        """What is known of a against b."""
        return (
            self.opinions[one.item.id, a, b] if a < b else self.opinions[one.item.id, b, a].turned()
        )

    def pair(self, one: RatedItem, a: int, b: int) -> tuple[int, int, PairOpinion] | None:
        """(chosen, rejected, what is known of them in this order); None for a tie."""
        found = self.of(one, a, b)
        if not found.lead:
            self.tied += 1
            return (a, b, found._replace(first=0.5, margin=0.0)) if self.ties == "half" else None
        chosen, rejected, found = (a, b, found) if found.lead > 0 else (b, a, found.turned())
        return chosen, rejected, found._replace(margin=max(0.0, found.margin))

    def levels(self, one: RatedItem) -> list[list[int]]:
        """The places best first, equal ones together.

        Next is whoever loses to nobody left; of several, those with the largest sum of P(better).

        So no order goes against a strict majority, but where majorities go round in a circle: there
        the sums decide.
        """
        left = list(range(len(one.item.responses)))
        sums = {a: sum(self.of(one, a, b).first for b in left if b != a) for a in left}
        found = []
        while left:
            unbeaten = [
                a for a in left if not any(self.of(one, b, a).lead > 0 for b in left if b != a)
            ] or left
            most = max(sums[a] for a in unbeaten)
            level = [a for a in unbeaten if sums[a] > most - EVEN]
            found.append(level)
            left = [a for a in left if a not in level]
        return found

    def provenance(self, one: RatedItem, places: Sequence[int]) -> dict[str, Any]:
        """Where a row comes from, and who of its voters is left out."""
        found = one.provenance(places)
        out = sorted({cast.pseudonym for cast in one.votes if cast.person in self.left_out})
        return {**found, "left_out": out} if out else found


def preference_rows(one: RatedItem, made: RowSettings) -> list[dict[str, Any]]:
    """prompt, chosen, rejected as messages: a row for each pair.

    The C(K, 2) pairs of a ranking weigh 1/C(K, 2) each.
    """
    pairs = list(combinations(range(len(one.item.responses)), 2))
    rows = []
    for a, b in pairs:
        if (found := made.pair(one, a, b)) is not None:
            chosen, rejected, known = found
            values = {
                MARGIN: _rounded(known.margin),
                WEIGHT: _rounded(known.weight / len(pairs)),
                SOFT_LABEL: _rounded(known.first),
            }
            rows.append(
                {
                    "prompt": one.prompt,
                    "chosen": one.messages(chosen),
                    "rejected": one.messages(rejected),
                    **{name: values[name] for name in PAIR_COLUMNS if name in made.columns},
                    **known.counted(),
                    "provenance": made.provenance(one, (chosen, rejected)),
                }
            )
    return rows


def unpaired_rows(one: RatedItem, made: RowSettings) -> list[dict[str, Any]]:
    """Rows prompt, completion, label (KTO).

    Of one response what most voted, of a pair both sides, of a ranking the best and the worst.

    The votes of a pair's rows are those for and against the best one.
    """
    count = len(one.item.responses)
    if count == 1:
        label, counted = _majority_thumb(one, made)
        labels = {} if label is None else {0: label}
    else:
        levels = made.levels(one)
        labels = {} if len(levels) == 1 else {levels[0][0]: True, levels[-1][0]: False}
        counted = made.of(one, levels[0][0], levels[-1][0]).counted() if labels else {}
    made.tied += not labels
    return [
        {
            "prompt": one.prompt,
            "completion": one.messages(place),
            "label": label,
            **counted,
            "provenance": made.provenance(one, (place,)),
        }
        for place, label in labels.items()
    ]


def _majority_thumb(one: RatedItem, made: RowSettings) -> tuple[bool | None, dict[str, int]]:
    """What most said of a single response, and the votes for and against that."""
    says = [SIGN[cast.vote.rating or 0] for cast in one.votes if cast.person not in made.left_out]
    up, down = sum(side > 0 for side in says), sum(side < 0 for side in says)
    label = None if up == down else up > down
    return label, {
        "votes_for": max(up, down),
        "votes_against": min(up, down),
        "ties": len(says) - up - down,
    }


def _ordered_pairs(ranks: list[int], pairs: list[tuple[int, int]]) -> list[list[int]]:
    """(better, worse) of the pairs whose ranks differ."""
    return [[a, b] if ranks[a] < ranks[b] else [b, a] for a, b in pairs if ranks[a] != ranks[b]]


def rank_rows(one: RatedItem, made: RowSettings) -> list[dict[str, Any]]:
    """prompt, responses, ranks: as `Made.levels` orders them.

    The pairs stay together and weigh 1/C(K, 2) each.

    `weight` is how far the voters can be believed; `pairs` lists (better, worse), which
    `reward_kwise` makes by itself, and `votes_for`, `votes_against` and `ties` the votes on each of
    them.
    """
    count = len(one.item.responses)
    every = list(combinations(range(count), 2))
    if not every:
        return []
    levels = made.levels(one)
    if len(levels) == 1:
        made.tied += 1
        return []
    placed = [
        next(n for n, level in enumerate(levels, 1) if place in level) for place in range(count)
    ]
    better = _ordered_pairs(placed, every)
    weight = _rounded(float(np.mean([made.opinions[one.item.id, a, b].weight for a, b in every])))
    counted = [made.of(one, a, b).counted() for a, b in better]
    return [
        {
            "prompt": one.prompt,
            "responses": [one.messages(place) for place in range(count)],
            "ranks": placed,
            **({WEIGHT: weight} if WEIGHT in made.columns else {}),
            "pairs": better,
            "pair_weight": 1 / len(every),
            **{name: [votes[name] for votes in counted] for name in counted[0]},
            "provenance": made.provenance(one, range(count)),
        }
    ]


def vote_rows(one: RatedItem, made: RowSettings) -> list[dict[str, Any]]:
    """The votes as they were given, by place, with the order of the slots.

    What trainers do not need and researchers do.
    """
    rows = []
    for vote, assignment, pseudonym, _ in one.every if made.revisions else one.votes:
        rows.append(
            {
                "prompt": one.prompt,
                "responses": [one.messages(place) for place in range(len(one.item.responses))],
                "rating": vote.rating,
                "ranking": vote.ranking,
                "scales": vote.scales,
                "rationale": vote.rationale,
                "annotator": pseudonym,
                "order": assignment.order,
                "revision": vote.revision,
                "active_ms": vote.active_ms,
                "pasted": vote.pasted,
                "given_at": vote.made_at,
                "guideline": vote.guideline_id,
                "sample": assignment.seq,
                "harm": one.item.harm,
                "provenance": one.provenance(range(len(one.item.responses))),
            }
        )
    return rows


KINDS: dict[str, Callable[[RatedItem, RowSettings], list[dict[str, Any]]]] = {
    "preferences": preference_rows,
    "unpaired": unpaired_rows,
    "ranks": rank_rows,
    "votes": vote_rows,
}


def _rounded(value: float) -> float:
    return round(value, 9)
