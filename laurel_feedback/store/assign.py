"""Who rates what: leases, answers, skips.

Each function is one transaction, and each of them leaves `live` equal to what it counts.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sqlalchemy import Select, delete, exists, func, select, true, update
from sqlalchemy.orm import Session

from laurel.core.errors import LaurelError
from laurel_feedback.store.audit import record_vote
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.database import Store, changed_rows
from laurel_feedback.store.progress import Progress, totals
from laurel_feedback.store.tables import (
    Annotator,
    Assignment,
    Batch,
    Draft,
    Event,
    Guideline,
    Item,
    Plan,
    Response,
    Vote,
)

READING_WPM, LEAST_GAP = 100.0, 60.0
"""The reading speed, in words a minute, up to which a pause counts as work; a minute at least."""
DAY = 86400.0
LONGEST = 20_000
"""Characters of a rationale."""
UNMARKED = ("leased", "skipped", "expired")
DISTRESSING = "too distressing"
"""The reason of a skip that is paid: the sample counts as done and does not come back by itself."""
HANDFUL = 20
ANSWERED = "answered"
"""The reason of a withdrawn sample that is to be paid all the same."""
REPEAT_AFTER = 3
"""Samples between an item and its repetition, at least."""


class Refused(LaurelError):
    """The answer or the wish was not taken; `status` is its HTTP status. Nothing was changed."""

    def __init__(self, what: str, *, status: int = 409, where: str = "", fix: str = "") -> None:
        self.status = status
        super().__init__(what, where=where, fix=fix)


@dataclass(frozen=True)
class Answer:
    """What an annotator filled in, slot by slot as shown; `vote_columns` turns it into places."""

    rating: int | None = None
    """1..4 of the form, or 0: a tie."""
    ranking: Sequence[int] | None = None
    helpfulness: Sequence[int] | None = None
    presentation: Sequence[int] | None = None
    rationale: str = ""
    pasted: float | None = None


@dataclass(frozen=True)
class TaskQueue:
    """An annotator at work on a batch."""

    store: Store
    annotator: int
    batch: int
    actor: str = field(default="", compare=False)

    def next(self, after: int = 0) -> Assignment | None:
        """The sample to mark now: the one that is leased.

        Else the next unmarked one after sample `after`, or a new one; None: no more.

        With `after` the leased sample itself is left behind, as skipped, when it is not the one
        that comes.
        """
        with self.store.write() as session:
            settings = self._enter(session)
            lease = session.scalar(self._own().where(Assignment.state == "leased"))
            if lease is not None and lease.seq > after:
                return self._extend(lease, settings)
            fresh = self._fresh(session, settings)
            if fresh is not None:
                self._leave(session, lease)
                return fresh
            unmarked = Assignment.state.in_(UNMARKED), Assignment.skip_reason != DISTRESSING
            waiting = list(session.scalars(self._own().where(*unmarked).order_by(Assignment.seq)))
            for assignment in (
                *(a for a in waiting if a.seq > after),
                *(a for a in waiting if a.seq <= after),
            ):
                if assignment is lease:
                    return self._extend(assignment, settings)
                if self._take(session, assignment, settings):
                    self._leave(session, lease)
                    return assignment
            return None

    def open(self, seq: int) -> Assignment:
        """Sample `seq` of this annotator's own, to mark it or to change an answer.

        Refused where others have finished it meanwhile.
        """
        with self.store.write() as session:
            settings = self._enter(session)
            wanted = session.scalar(self._own().where(Assignment.seq == seq))
            if wanted is None:
                raise Refused(f"you have no sample {seq}.", status=404)
            leased = session.scalar(self._own().where(Assignment.state == "leased"))
            if wanted.state in UNMARKED and not self._take(session, wanted, settings):
                raise Refused(
                    "others have finished this sample meanwhile; it needs no more answers.",
                    fix="Go to the next one.",
                )
            if leased is not None and leased is not wanted and wanted.state == "leased":
                self._leave(session, leased)
            return wanted

    def submit(self, assignment_id: str, answer: Answer, key: str) -> Vote:
        """Store an answer; the same key again gives the same vote back.

        An answer that comes late is taken while it is still wanted.
        """
        with self.store.write() as session:
            known = session.scalar(select(Vote).where(Vote.key == key))
            assignment = self._mine(session, assignment_id)
            if known is not None:
                if known.assignment_id != assignment_id:
                    raise Refused(
                        "this key belongs to another answer.",
                        where="Idempotency-Key",
                        fix="Make a new one for every answer.",
                    )
                return known
            settings = self._enter(session)
            if assignment.state != "submitted" and not self._take(session, assignment, settings):
                raise Refused(
                    "your time for this sample ran out and others have answered it; your draft is"
                    " kept.",
                    fix="Go to the next one.",
                )
            taken = vote_columns(answer, assignment.order, settings)
            latest = (
                session.scalar(
                    select(func.max(Vote.revision)).where(Vote.assignment_id == assignment_id)
                )
                or 0
            )
            vote = Vote(
                assignment_id=assignment_id,
                revision=latest + 1,
                key=key,
                **taken,
                made_at=self.store.now(),
                active_ms=active_ms(session, assignment, self.store.now()),
                guideline_id=session.scalar(select(func.max(Guideline.id))),
            )
            assignment.state = "submitted"
            session.add(vote)
            session.execute(delete(Draft).where(Draft.assignment_id == assignment_id))
            session.flush()
            record_vote(session, vote, self.store.now())
            return vote

    def skip(self, assignment_id: str, reason: str = "") -> None:
        """Leave a sample unmarked: others may have it, and it stays in this annotator's list.

        An answered one stays answered.
        """
        with self.store.write() as session:
            self._enter(session)
            assignment = self._mine(session, assignment_id)
            session.add(
                Event(assignment_id=assignment_id, kind="skip", size=0, made_at=self.store.now())
            )
            if assignment.state == "leased":
                self._leave(session, assignment, reason)
            elif assignment.state == "expired":
                assignment.state, assignment.skip_reason = "skipped", reason[:200]

    def alive(self, assignment_id: str, kind: str = "ping", size: int = 0) -> bool:
        """A sign of life: it is noted and the lease begins anew. False where the lease is gone."""
        with self.store.write() as session:
            settings = self._enter(session)
            assignment = self._mine(session, assignment_id)
            session.add(
                Event(
                    assignment_id=assignment_id,
                    kind=kind[:20],
                    size=max(0, min(size, 10**6)),
                    made_at=self.store.now(),
                )
            )
            if assignment.state == "leased":
                self._extend(assignment, settings)
            return assignment.state in ("leased", "submitted")

    def draft(self, assignment_id: str, form: dict[str, Any]) -> None:
        """Keep what is filled in so far."""
        with self.store.write() as session:
            self._mine(session, assignment_id)
            session.merge(Draft(assignment_id=assignment_id, form=form, made_at=self.store.now()))

    def progress(self) -> Progress:
        """See `Progress`."""
        with self.store.read() as session:
            batch = session.get_one(Batch, self.batch)
            settings = BatchSettings.model_validate(batch.settings)
            columns = Assignment.seq, Assignment.state, Assignment.skip_reason
            rows = session.execute(
                select(*columns).where(*self._where()).order_by(Assignment.seq)
            ).all()
            states = {row.seq: row.state for row in rows}
            done = sum(
                row.state == "submitted"
                or (row.state in UNMARKED and row.skip_reason == DISTRESSING)
                for row in rows
            )
            size = settings.hit_size
            if len(states) < size:
                kinds = [
                    self._open_items(session, kind, settings).order_by(None).limit(size).subquery()
                    for kind in ("normal", "training")
                ]
                size = min(
                    size,
                    len(states)
                    + sum(
                        session.scalar(select(func.count()).select_from(left)) or 0
                        for left in kinds
                    ),
                )
            return Progress(done, size, states, *totals(self.store, session, self.batch))

    def _where(self) -> tuple[Any, ...]:
        return Assignment.annotator_id == self.annotator, Assignment.batch_id == self.batch

    def _own(self) -> Any:
        return select(Assignment).where(*self._where())

    def _enter(self, session: Session) -> BatchSettings:
        """The batch's settings; expired leases are taken back first.

        Refused for a closed batch or someone who left.
        """
        batch, annotator = session.get(Batch, self.batch), session.get(Annotator, self.annotator)
        if batch is None or batch.state != "open":
            raise Refused("this batch is not open.", status=403)
        if annotator is None or annotator.state != "active":
            raise Refused("you do not take part (any more).", status=403)
        settings = BatchSettings.model_validate(batch.settings)
        if settings.needs_check and not annotator.qualified:
            raise Refused("the questions about the guidelines come first.", status=403)
        expire_leases(session, self.store.now())
        return settings

    def _mine(self, session: Session, assignment_id: str) -> Assignment:
        assignment = session.get(Assignment, assignment_id)
        if assignment is None or (assignment.annotator_id, assignment.batch_id) != (
            self.annotator,
            self.batch,
        ):
            raise Refused("there is no such sample of yours.", status=404)
        if assignment.state == "withdrawn":
            raise Refused("this sample was withdrawn.", status=403)
        return assignment

    def _extend(self, assignment: Assignment, settings: BatchSettings) -> Assignment:
        assignment.lease_until = self.store.now() + 60 * settings.lease_minutes
        return assignment

    def _take(self, session: Session, assignment: Assignment, settings: BatchSettings) -> bool:
        """Lease a sample that is in the list already.

        False where its item has all the votes it wants.
        """
        if assignment.state != "leased":
            if not assignment.repeat and not reserve_answer(session, assignment.item_id):
                return False
            assignment.state = "leased"
        self._extend(assignment, settings)
        return True

    def _leave(self, session: Session, leased: Assignment | None, reason: str = "") -> None:
        if leased is not None:
            release_reservation(session, leased)
            leased.state, leased.skip_reason = "skipped", reason[:200] or leased.skip_reason

    def _fresh(self, session: Session, settings: BatchSettings) -> Assignment | None:
        """A sample that was never given to this annotator, leased.

        None where the list is full or nothing is left.
        """
        begun = (
            session.scalar(select(func.count()).select_from(Assignment).where(*self._where())) or 0
        )
        if begun >= settings.hit_size:
            return None
        annotator = session.get_one(Annotator, self.annotator)
        rng = random.Random(f"{self.batch}:{self.annotator}:{begun}")
        lot = rng.random()
        if lot < settings.repeat_share and (again := self._again(session, begun)) is not None:
            return self._give(session, settings, again.item_id, again.order[::-1], begun, repeat=1)
        kinds = (
            ("gold", "attention")
            if settings.repeat_share <= lot < settings.repeat_share + settings.gold_share
            else ()
        )
        for kind in ("training", *rng.sample(kinds, len(kinds)), "normal"):
            for item_id, harm in self._shuffled(
                session, self._open_items(session, kind, settings), rng
            ):
                if not set(harm) & set(annotator.opted_out):
                    count = (
                        session.scalar(
                            select(func.count())
                            .select_from(Response)
                            .where(Response.item_id == item_id)
                        )
                        or 0
                    )
                    reserve_answer(session, item_id)
                    return self._give(
                        session, settings, item_id, rng.sample(range(count), count), begun
                    )
        return None

    def _again(self, session: Session, begun: int) -> Assignment | None:
        """An answered normal sample, some samples back, that was not repeated yet."""
        twice = select(Assignment.item_id).where(*self._where(), Assignment.repeat == 1)
        old = (
            self._own()
            .join(Item)
            .where(
                Assignment.state == "submitted",
                Assignment.repeat == 0,
                Item.kind == "normal",
                Assignment.seq <= begun - REPEAT_AFTER,
                Assignment.item_id.not_in(twice),
            )
        )
        return session.scalar(old.order_by(Assignment.seq).limit(1))

    def _open_items(
        self, session: Session, kind: str, settings: BatchSettings
    ) -> Select[str, list[str]]:
        """Ids and kinds of harm of items that want answers and were never given to this annotator.

        Those that others have begun come first.
        """
        seen = exists().where(
            Assignment.item_id == Item.id, Assignment.annotator_id == self.annotator
        )
        here = exists().where(
            Item.id == Plan.item_id, Item.batch_id == self.batch
        )  # a join would be read from the items' side
        mine = select(Plan.item_id).where(Plan.annotator_id == self.annotator, here)
        planned = session.scalar(mine.limit(1)) is not None
        allowed = Item.id.in_(mine) if planned else ~exists().where(Plan.item_id == Item.id)
        wanted = (
            Item.batch_id == self.batch,
            Item.kind == kind,
            Item.live < Item.target,
            ~seen,
            allowed if kind == "normal" else true(),
        )
        items = (
            select(Item.id, Item.harm).where(*wanted).order_by(Item.live.desc(), Item.id.desc())
        )  # as the index has them
        return items if self._harm_room(session, settings) else items.where(~Item.harmful)

    def _shuffled(
        self, session: Session, items: Select[str, list[str]], rng: random.Random
    ) -> Iterator[tuple[str, list[str]]]:
        """The items, a few at a time, in an order of this annotator's own.

        No more is read than the caller looks at.
        """
        read = 0
        while handful := session.execute(items.limit(HANDFUL).offset(read)).all():
            read += len(handful)
            for row in rng.sample(handful, len(handful)):
                yield row.id, row.harm

    def _harm_room(self, session: Session, settings: BatchSettings) -> bool:
        """May this annotator see one more item with a kind of harm today?"""
        if not settings.daily_harm_cap:
            return True
        now = self.store.now()
        last_day = Assignment.made_at.between(
            now - DAY, now
        )  # what lies in the future is of before the clock was set back
        today = Assignment.annotator_id == self.annotator, last_day, Item.harmful
        seen = (
            session.scalar(select(func.count()).select_from(Assignment).join(Item).where(*today))
            or 0
        )
        return seen < settings.daily_harm_cap

    def _give(
        self,
        session: Session,
        settings: BatchSettings,
        item_id: str,
        order: list[int],
        begun: int,
        repeat: int = 0,
    ) -> Assignment:
        now = self.store.now()
        assignment = Assignment(
            id=str(uuid.uuid4()),
            item_id=item_id,
            annotator_id=self.annotator,
            batch_id=self.batch,
            repeat=repeat,
            seq=begun + 1,
            state="leased",
            lease_until=now + 60 * settings.lease_minutes,
            order=order,
            made_at=now,
        )
        session.add(assignment)
        session.flush()
        return assignment


def reserve_answer(session: Session, item_id: str) -> bool:
    """Count one more answer that is coming; False where the item has all it wants."""
    one_more = update(Item).where(Item.id == item_id, Item.live < Item.target)
    return changed_rows(session, one_more.values(live=Item.live + 1)) == 1


def release_reservation(session: Session, assignment: Assignment) -> None:
    """A lease, or an answer that is taken away, makes room for another."""
    if not assignment.repeat and assignment.state in ("leased", "submitted"):
        session.execute(
            update(Item).where(Item.id == assignment.item_id).values(live=Item.live - 1)
        )


def expire_leases(session: Session, now: float) -> int:
    """Take back leases that ran out, in all batches; how many.

    Where the clock was set back, leases begin anew: nobody waits for it.
    """
    leased = Assignment.state == "leased"
    longest = select(Assignment.batch_id, func.max(Assignment.lease_until)).where(
        leased, Assignment.lease_until > now
    )
    for batch_id, until in session.execute(longest.group_by(Assignment.batch_id)).all():
        full = (
            now
            + 60
            * BatchSettings.model_validate(session.get_one(Batch, batch_id).settings).lease_minutes
        )
        if until > full:
            beyond = leased, Assignment.batch_id == batch_id, Assignment.lease_until > full
            session.execute(update(Assignment).where(*beyond).values(lease_until=full))
    late = list(
        session.scalars(
            select(Assignment).where(Assignment.state == "leased", Assignment.lease_until < now)
        )
    )
    for assignment in late:
        release_reservation(session, assignment)
        assignment.state = "expired"
    return len(late)


def vote_columns(answer: Answer, order: list[int], settings: BatchSettings) -> dict[str, Any]:
    """The columns of a vote: checked against the batch's form, by place instead of by slot."""
    count, rating, ranking = len(order), answer.rating, answer.ranking
    if settings.form == "ranking":
        if not _is_ranking(ranking, count):
            raise Refused(
                f"give each of the {count} responses a rank, from 1 on without gaps.",
                status=422,
                where="ranking",
            )
        rating = None
    else:
        allowed = (0, 1, 2, 3, 4) if settings.allow_tie else (1, 2, 3, 4)
        if rating not in ((1, 4) if count == 1 else allowed):
            raise Refused("choose one of the ratings.", status=422, where="rating")
        ranking = None
    scales = _scales(answer, order, settings)
    rationale = _rationale(answer, settings)
    swapped = count == 2 and order[0] == 1
    return {
        "rating": 5 - rating if swapped and rating else rating,
        "ranking": by_place(ranking, order) if ranking else None,
        "scales": scales,
        "rationale": rationale,
        "pasted": answer.pasted if rationale else None,
    }


def _is_ranking(ranking: Sequence[int] | None, count: int) -> bool:
    """Ranks from 1 on without gaps, one for each response; equal ones are ties."""
    if ranking is None or len(ranking) != count:
        return False
    return sorted(set(ranking)) == list(range(1, len(set(ranking)) + 1))


def _scales(answer: Answer, order: list[int], settings: BatchSettings) -> dict[str, list[int]]:
    """The scales that the form asks for, by place; Refused where one is not whole."""
    count, scales = len(order), {}
    for name, asked, top in (
        ("helpfulness", settings.helpfulness, 5),
        ("presentation", settings.presentation, 3),
    ):
        given = getattr(answer, name)
        if not asked:
            continue
        if given is None or len(given) != count or not all(1 <= level <= top for level in given):
            raise Refused(f"rate the {name} of every response, 1 to {top}.", status=422, where=name)
        scales[name] = by_place(given, order)
    return scales


def _rationale(answer: Answer, settings: BatchSettings) -> str:
    """The rationale, where the form has one; Refused where it is missing or too long."""
    rationale = answer.rationale.strip() if settings.rationale != "no" else ""
    if settings.rationale == "required" and not rationale:
        raise Refused("say in a sentence why.", status=422, where="rationale")
    if len(rationale) > LONGEST:
        raise Refused(
            f"the rationale has {len(rationale):,} characters; {LONGEST:,} is the most.",
            status=422,
            where="rationale",
        )
    return rationale


def by_place(shown: Sequence[int], order: Sequence[int]) -> list[int]:
    """Numbers per slot as numbers per place: order[slot] is the place that was shown there."""
    placed = [0] * len(order)
    for slot, place in enumerate(order):
        placed[place] = int(shown[slot])
    return placed


def by_slot(placed: Sequence[int], order: Sequence[int]) -> list[int]:
    """Numbers per place as numbers per slot: `by_place` undone."""
    return [placed[place] for place in order]


def active_ms(session: Session, assignment: Assignment, now: float) -> int:
    """Milliseconds at work since the sample was last opened.

    Gaps between signs of life, each capped by the item's reading time.
    """
    read = (
        select(Item.words + func.sum(Response.words))
        .join(Response)
        .where(Item.id == assignment.item_id)
        .group_by(Item.id, Item.words)
    )
    words = session.scalar(read) or 0
    cap = max(LEAST_GAP, 60 * words / READING_WPM)
    lived = Event.assignment_id == assignment.id, Event.kind != "skip"
    signs = session.scalars(select(Event.made_at).where(*lived).order_by(Event.made_at)).all()
    times = [assignment.made_at, *signs, now]
    return round(1000 * sum(min(cap, max(0.0, b - a)) for a, b in pairwise(times)))
