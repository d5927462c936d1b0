"""Samples as an annotator sees them.

What a page reads from the database, what its form sends back, and what is shown after an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from laurel_feedback.store.assign import Answer, Refused, by_slot
from laurel_feedback.store.batch_settings import HELPFULNESS, PRESENTATION, RATINGS, BatchSettings
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import (
    Assignment,
    Batch,
    Dispute,
    Draft,
    Guideline,
    Item,
    Ruling,
    Vote,
)

ANSWER_SHOWN_KINDS = ("gold", "training", "attention")
ALONE = {1: "This response is good", 4: "This response is not good"}
TIE = "Both are equally good (a tie)"
FIELDS = ("rating", "rationale", "pasted")


@dataclass(frozen=True)
class Sample:
    """An assignment: its texts by slot, the form's values, and what an answer is followed by."""

    id: str
    seq: int
    state: str
    prompt: list[tuple[str, str]]
    input: str
    responses: list[str]
    harm: list[str]
    values: dict[str, str]
    revision: int
    answer_shown: bool
    """Was the right answer shown? Then the answer stays."""
    right: bool | None
    best: int | None
    """The slot of the right response, from 1."""
    explanation: str
    ruling: str
    reason: str
    disputed: str


def settings_of(store: Store, batch: int) -> tuple[str, str, BatchSettings]:
    """Name, state and settings of a batch; Refused where annotators may know of none."""
    with store.read() as session:
        found = session.get(Batch, batch)
        if found is None or found.state == "draft":
            raise Refused("there is no such batch.", status=404, fix="Go to your list of work.")
        return found.name, found.state, BatchSettings.model_validate(found.settings)


def guidelines(store: Store) -> str:
    """The guidelines that hold; empty where there are none."""
    with store.read() as session:
        return session.scalar(select(Guideline.text).order_by(Guideline.id.desc()).limit(1)) or ""


def messages_of(item: Item) -> list[tuple[str, str]]:
    """Who says what in the prompt: role and text, nothing else that may stand there."""
    return [
        (str(message.get("role", "user")), str(message.get("content", "")))
        for message in item.prompt
    ]


def choices(count: int, settings: BatchSettings) -> dict[int, str]:
    """The ratings that the form offers."""
    if count == 1:
        return ALONE
    return {**RATINGS, 0: TIE} if settings.allow_tie else RATINGS


def is_right(gold: int, vote: Vote) -> bool:
    """Does an answer prefer the response that is objectively right?

    >>> is_right(1, Vote(rating=3)), is_right(1, Vote(rating=2)), is_right(0, Vote(ranking=[1, 2,
    2])), is_right(0, Vote(ranking=[1, 1, 2])) (True, False, True, False)
    """
    if vote.ranking:
        return vote.ranking[gold] == 1 and vote.ranking.count(1) == 1
    return vote.rating in ((1, 2) if gold == 0 else (3, 4))


def values_of(vote: Vote, order: list[int]) -> dict[str, str]:
    """An answer as the form's fields, slot by slot."""
    values = {"rationale": vote.rationale}
    if vote.rating is not None:
        swapped = len(order) == 2 and order[0] == 1 and vote.rating
        values["rating"] = str(5 - vote.rating if swapped else vote.rating)
    lists = {"rank": vote.ranking, **vote.scales}
    for name, placed in lists.items():
        values |= {
            f"{name}_{slot}": str(level)
            for slot, level in enumerate(by_slot(placed, order) if placed else ())
        }
    return values


def _values(vote: Vote | None, draft: Draft | None, order: list[int]) -> dict[str, str]:
    """The form as it was sent last, with what was changed in it since."""
    return {**(values_of(vote, order) if vote else {}), **(draft.form if draft else {})}


def load(store: Store, assignment_id: str) -> Sample:
    """An annotator's own assignment, which the queue has checked to be theirs."""
    with store.read() as session:
        assignment = session.get_one(Assignment, assignment_id)
        item, order, votes = assignment.item, assignment.order, assignment.votes
        draft = session.get(Draft, assignment_id)
        last = votes[-1] if assignment.state == "submitted" and votes else None
        gold = item.gold if last is not None and item.kind in ANSWER_SHOWN_KINDS else None
        texts = {response.place: response.text for response in item.responses}
        dispute = session.get(Dispute, assignment_id)
        values = _values(last, draft if gold is None else None, order)
        ruling = session.get(Ruling, item.id) if last is not None else None
        return Sample(
            id=assignment.id,
            seq=assignment.seq,
            state=assignment.state,
            prompt=messages_of(item),
            input=item.input,
            responses=[texts[place] for place in order],
            harm=list(item.harm),
            values=values,
            revision=last.revision if last else 0,
            answer_shown=gold is not None,
            right=is_right(gold, last) if last and gold is not None else None,
            best=None if gold is None else order.index(gold) + 1,
            explanation="" if gold is None else item.explanation,
            **_ruled(ruling, order),
            disputed=dispute.text if dispute else "",
        )


def _ruled(ruling: Ruling | None, order: list[int]) -> dict[str, str]:
    """A ruling in the annotator's slots, where the coordinator shows it."""
    if ruling is None or not ruling.pinned:
        return {"ruling": "", "reason": ""}
    swapped = len(order) == 2 and order[0] == 1 and ruling.rating
    words = {0: TIE, **(ALONE if len(order) == 1 else RATINGS)}
    return {
        "ruling": words.get(5 - ruling.rating if swapped else ruling.rating, ""),
        "reason": ruling.reason,
    }


def answer_of(form: Mapping[str, Any]) -> Answer:
    """What of a form is the answer.

    Wrong and missing numbers are left to `assign.vote_columns`, which says what it misses.
    """
    pasted = _number(form.get("pasted"), float)
    return Answer(
        rating=_number(form.get("rating")),
        ranking=_series(form, "rank"),
        helpfulness=_series(form, "helpfulness"),
        presentation=_series(form, "presentation"),
        rationale=str(form.get("rationale", "")).replace("\r\n", "\n"),
        pasted=None if pasted is None else min(1.0, max(0.0, pasted)),
    )


def _number(text: Any, kind: Any = int) -> Any:
    """A number of a field; None where it is none."""
    try:
        number = kind(str(text)[:20])
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e6 else None  # also turns away nan and infinity


def _series(form: Mapping[str, Any], name: str) -> list[int] | None:
    """name_0, name_1, ...; an empty one among them is 0, which no form allows.

    None where there is none at all.
    """
    found = []
    while f"{name}_{len(found)}" in form and len(found) < 1000:
        found.append(_number(form[f"{name}_{len(found)}"]) or 0)
    return found or None


def draft_of(form: Mapping[str, Any]) -> dict[str, str]:
    """The fields worth keeping that are filled in."""
    series = ("rank_", "helpfulness_", "presentation_")
    kept = {
        k: str(v)[:20_000] for k, v in form.items() if v and (k in FIELDS or k.startswith(series))
    }
    return dict(list(kept.items())[:200]) if set(kept) - {"pasted"} else {}


def first_faulty_field(error: Refused, values: Mapping[str, str], count: int) -> str:
    """The id of the first field that an error is about, to go to it."""
    names = {"ranking": "rank", "helpfulness": "helpfulness", "presentation": "presentation"}
    if error.where in names:
        first = next(
            (slot for slot in range(count) if not values.get(f"{names[error.where]}_{slot}")), 0
        )
        return f"{names[error.where]}_{first}"
    return error.where if error.where in ("rating", "rationale", "opened") else "answer"


def words_of(vote: Vote, order: list[int]) -> str:
    """An answer in words, as it was given."""
    values = values_of(vote, order)
    if vote.ranking:
        return "ranks " + ", ".join(values[f"rank_{slot}"] for slot in range(len(order)))
    return {0: TIE, **(ALONE if len(order) == 1 else RATINGS)}[int(values["rating"])].split(
        " (only"
    )[0]


def latest_votes(session: Session, annotator: int) -> list[tuple[Assignment, Vote | None]]:
    """All of someone's assignments with the answer that holds, by batch and sample."""
    last = (
        select(Vote.assignment_id, func.max(Vote.revision).label("top"))
        .group_by(Vote.assignment_id)
        .subquery()
    )
    rows = (
        select(Assignment, Vote)
        .outerjoin(last, last.c.assignment_id == Assignment.id)
        .outerjoin(Vote, (Vote.assignment_id == Assignment.id) & (Vote.revision == last.c.top))
        .where(Assignment.annotator_id == annotator)
        .options(joinedload(Assignment.item))
        .order_by(Assignment.batch_id, Assignment.seq)
    )
    return [(assignment, vote) for assignment, vote in session.execute(rows)]


SCALES = {
    "helpfulness": ("How helpful is it?", HELPFULNESS),
    "presentation": ("How well is it presented?", PRESENTATION),
}
