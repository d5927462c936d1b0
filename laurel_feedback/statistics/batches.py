"""A batch as its coordinator sees it: progress, cost, exposure to harm, and whether it may open."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from laurel.core.errors import UsageError
from laurel_feedback.statistics.analysis import hourly_pay
from laurel_feedback.statistics.votes import timed_poll
from laurel_feedback.store.assign import ANSWERED, DAY, DISTRESSING, Refused
from laurel_feedback.store.audit import record
from laurel_feedback.store.batch_settings import BatchSettings, checked_name
from laurel_feedback.store.database import Store
from laurel_feedback.store.model_giveaways import HELD, flagged_items, hold_items
from laurel_feedback.store.tables import Annotator, Assignment, Batch, Event, Item, Vote

ODD_RATE, LEAST_RATE = 4.0, 30
"""An hour stands out with more than this many times the usual votes, and at least so many."""


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """A batch in figures. votes of `wanted` on normal items.

    Paid: answers and skips that cost something, repeats and gold too.

    spent: what they cost so far; expected: what all of it will cost, with the same share of gold
    and repeats as planned.
    """

    id: int
    name: str
    state: str
    settings: BatchSettings
    items: int
    finished: int
    votes: int
    wanted: int
    leased: int
    skipped: int
    expired: int
    distressing: int
    held: int
    paid: int
    annotators: int

    @property
    def spent(self) -> float:
        """Cost so far."""
        return self.paid * self.settings.pay_per_item

    @property
    def expected(self) -> float:
        """Cost in all: spent, and for missing votes with their share of gold and repeats."""
        extra = 1 - self.settings.repeat_share - self.settings.gold_share
        return self.spent + max(0, self.wanted - self.votes) / extra * self.settings.pay_per_item


def summaries(store: Store, batch_id: int | None = None) -> list[BatchSummary]:
    """Every batch, or one, the newest first."""
    with store.read() as session:
        batches = select(Batch).order_by(Batch.id.desc())
        batches = batches if batch_id is None else batches.where(Batch.id == batch_id)
        found = [_summary(session, batch) for batch in session.scalars(batches)]
    if batch_id is not None and not found:
        raise Refused(f"there is no batch {batch_id}.", status=404, fix="The overview lists them.")
    return found


def _summary(session: Session, batch: Batch) -> BatchSummary:
    in_batch = Item.batch_id == batch.id
    normal = in_batch, Item.kind == "normal"
    items, wanted = session.execute(
        select(func.count(), func.coalesce(func.sum(Item.target), 0)).where(*normal)
    ).one()
    held_items = select(func.count()).select_from(Item).where(in_batch, Item.kind == HELD)
    people = select(func.count(func.distinct(Assignment.annotator_id))).where(
        Assignment.batch_id == batch.id, Assignment.state == "submitted"
    )
    states = _assignments_by_state(session, batch)
    return BatchSummary(
        batch.id,
        batch.name,
        batch.state,
        BatchSettings.model_validate(batch.settings),
        items,
        _count_finished_items(session, batch),
        states["votes"],
        wanted,
        states["leased"],
        states["skipped"],
        states["expired"],
        states["distressing"],
        session.scalar(held_items) or 0,
        states["paid"],
        session.scalar(people) or 0,
    )


def _assignments_by_state(session: Session, batch: Batch) -> Counter[str]:
    """Assignments by state, and among them votes, paid ones, and skips as too distressing."""
    states: Counter[str] = Counter()
    columns = Assignment.state, Assignment.repeat, Assignment.skip_reason, Item.kind
    rows = session.execute(
        select(*columns, func.count())
        .join(Item)
        .where(Assignment.batch_id == batch.id)
        .group_by(*columns)
    )
    for state, repeat, reason, kind, count in rows:
        distressing = reason == DISTRESSING and state in ("skipped", "expired")
        left = reason == ANSWERED and state == "withdrawn"
        submitted = state == "submitted"
        states[state] += count
        states["distressing"] += count * distressing
        states["paid"] += count * (distressing or left or (submitted and kind != "product"))
        states["votes"] += count * (submitted and kind == "normal" and not repeat)
    return states


def _count_finished_items(session: Session, batch: Batch) -> int:
    """How many normal items have all the votes they want."""
    submitted = (
        select(Assignment.item_id, func.count().label("n"))
        .where(
            Assignment.batch_id == batch.id, Assignment.state == "submitted", Assignment.repeat == 0
        )
        .group_by(Assignment.item_id)
        .subquery()
    )
    finished = (
        select(func.count())
        .select_from(Item)
        .join(submitted, submitted.c.item_id == Item.id)
        .where(Item.batch_id == batch.id, Item.kind == "normal", submitted.c.n >= Item.target)
    )
    return session.scalar(finished) or 0


def reason_not_to_open(store: Store, batch_id: int) -> str:
    """Why the batch may not open and what to do; empty: it may.

    Pay per hour counts: the one expected, and the measured one of a pilot.
    """
    batch = summaries(store, batch_id)[0]
    settings, fix = batch.settings, "Raise the pay per item; the slowest tenth earns less still."
    with store.read() as session:
        if unanswerable := _no_questions(session, batch_id, settings):
            return unanswerable
    if settings.hourly < settings.pay_floor:
        return (
            f"at {settings.expected_seconds:g} seconds an item the pay is {settings.hourly:.2f}"
            f" {settings.currency} an hour, the floor is {settings.pay_floor:.2f}. {fix}"
        )
    measured = hourly_pay(timed_poll(store, batch_id))
    if measured is not None and measured.below:
        return (
            f"{measured.below} (measured on {measured.hourly.n if measured.hourly else 0} votes)."
            f" {fix}"
        )
    return ""


def _no_questions(session: Session, batch_id: int, settings: BatchSettings) -> str:
    """What is wrong where annotators must pass questions that are not there."""
    if not settings.needs_check or _items_by_kind(session, batch_id)["check"]:
        return ""
    return (
        "annotators pass questions about the guidelines first (needs_check), and it has no item of"
        " kind check, so that nobody could begin. Bring some in (laurel feedback import FILE --kind"
        " check), or turn needs_check off."
    )


def _items_by_kind(session: Session, batch_id: int) -> Counter[str]:
    """Items by kind."""
    rows = session.execute(
        select(Item.kind, func.count()).where(Item.batch_id == batch_id).group_by(Item.kind)
    )
    return Counter({row.kind: row[1] for row in rows})


def never_shown(store: Store, batch_id: int) -> str:
    """Which items the settings keep from everybody; empty if there are none.

    Gold and attention items at gold_share 0, check items without needs_check.
    """
    with store.read() as session:
        settings, counts = (
            BatchSettings.model_validate(session.get_one(Batch, batch_id).settings),
            _items_by_kind(session, batch_id),
        )
    idle = [(kind, "gold_share is 0") for kind in ("gold", "attention") if not settings.gold_share]
    idle += [] if settings.needs_check else [("check", "needs_check is off")]
    return ", ".join(f"{counts[kind]} {kind} ({why})" for kind, why in idle if counts[kind])


def open_batch(store: Store, batch_id: int, *, actor: str) -> int:
    """Open a batch; how many items were held for words that tell who wrote them.

    Refused as `reason_not_to_open` says.
    """
    why = reason_not_to_open(store, batch_id)
    if why:
        raise Refused(f"this batch is not opened: {why}", status=409)
    count = select(func.count()).select_from(Item).where(Item.batch_id == batch_id)
    with store.read() as session:
        read, found = session.scalar(count), flagged_items(session, batch_id)
    with store.write() as session:
        batch = session.get_one(Batch, batch_id)
        if not (items := session.scalar(count)):
            raise Refused(
                "this batch has no items.",
                status=409,
                fix="Bring items in first: laurel feedback import.",
            )
        held_items = hold_items(
            session, found if items == read else flagged_items(session, batch_id)
        )
        if why := _no_questions(session, batch_id, BatchSettings(**batch.settings)):
            raise Refused(
                f"this batch is not opened: {why} Every one has words that tell who wrote it.",
                status=409,
            )
        batch.state = "open"
        record(
            session,
            actor,
            "open",
            f"batch {batch.name}",
            store.now(),
            held=held_items,
            hourly=BatchSettings(**batch.settings).hourly,
        )
        return held_items


def close_batch(store: Store, batch_id: int, *, actor: str) -> None:
    """Close a batch: nothing of it is given out or taken any more. It can be opened again."""
    with store.write() as session:
        batch = session.get(Batch, batch_id)
        if batch is None:
            raise Refused(f"there is no batch {batch_id}.", status=404)
        batch.state = "closed"
        record(session, actor, "close", f"batch {batch.name}", store.now())


def create_batch(store: Store, name: str, settings: BatchSettings, *, actor: str) -> int:
    """A batch in draft, without items; its id."""
    name = checked_name(name)
    with store.write() as session:
        if session.scalar(select(Batch).where(Batch.name == name)) is not None:
            raise UsageError(
                f"there is a batch `{name}` already.", where="name", fix="Choose another name."
            )
        batch = Batch(name=name, settings=settings.model_dump(), made_at=store.now())
        session.add(batch)
        session.flush()
        record(
            session,
            actor,
            "new",
            f"batch {batch.name}",
            store.now(),
            settings=settings.model_dump(),
        )
        return batch.id


def _refuse_form_change(
    session: Session, batch_id: int, old: BatchSettings, new: BatchSettings
) -> None:
    """Refused where the form changes and there are votes."""
    if (old.form, old.allow_tie) == (new.form, new.allow_tie):
        return
    count = select(func.count()).select_from(Vote).join(Assignment)
    votes = session.scalar(count.where(Assignment.batch_id == batch_id)) or 0
    if votes:
        raise Refused(
            f"{votes} votes were given on the old form.",
            where="form",
            fix="Make a new batch for another form.",
        )


def _change_vote_target(session: Session, batch_id: int, old: int, new: int) -> None:
    """Items that want `old` votes want `new`; Refused where one has more already."""
    in_batch = Item.batch_id == batch_id, Item.kind.in_(("normal", HELD))
    items = list(session.scalars(select(Item).where(*in_batch, Item.target == old)))
    most = max((item.live for item in items), default=0)
    if most > new:
        raise Refused(
            f"an item has {most} votes already.", where="target_votes", fix=f"Give {most} or more."
        )
    for item in items:
        item.target = new


def change_settings(store: Store, batch_id: int, settings: BatchSettings, *, actor: str) -> None:
    """Other settings for a batch that is not open.

    The form stays once there are votes, and no item wants less than it has.
    """
    with store.write() as session:
        batch = session.get(Batch, batch_id)
        if batch is None:
            raise Refused(f"there is no batch {batch_id}.", status=404)
        if batch.state == "open":
            raise Refused(
                "the batch is open: its settings stay.", where="state", fix="Close it first."
            )
        old, new = BatchSettings.model_validate(batch.settings), settings
        _refuse_form_change(session, batch_id, old, new)
        if new.target_votes != old.target_votes:
            _change_vote_target(session, batch_id, old.target_votes, new.target_votes)
        batch.settings = new.model_dump()
        after = new.model_dump()
        changed = {k: [v, after[k]] for k, v in old.model_dump().items() if after[k] != v}
        record(session, actor, "settings", f"batch {batch.name}", store.now(), changed=changed)


@dataclass(frozen=True, slots=True)
class HarmExposure:
    """What an annotator was shown that is hard to read.

    Samples by kind of harm, in all and in the last day, and skips as too distressing.
    """

    annotator: str
    samples: int
    today: int
    kinds: dict[str, int]
    distressing: int
    opted_out: tuple[str, ...]


def _harmful_assignments(batch_id: int | None) -> Select[str, list[str], float, str]:
    """The assignments of items with a kind of harm: annotator, harm, time, reason of a skip."""
    columns = Annotator.pseudonym, Item.harm, Assignment.made_at, Assignment.skip_reason
    rows = (
        select(*columns)
        .select_from(Assignment)
        .join(Annotator, Assignment.annotator_id == Annotator.id)
        .join(Item, Assignment.item_id == Item.id)
        .where(Item.harmful)
    )
    return rows if batch_id is None else rows.where(Assignment.batch_id == batch_id)


def exposure(store: Store, batch_id: int | None = None) -> list[HarmExposure]:
    """Exposure of every annotator who saw a kind of harm or opted out of one, most samples first.

    In one batch, or in all.
    """
    with store.read() as session:
        seen = session.execute(_harmful_assignments(batch_id)).all()
        columns = select(Annotator.pseudonym, Annotator.opted_out)
        opted = {name: tuple(tags) for name, tags in session.execute(columns) if tags}
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    samples, today, distress = Counter[str](), Counter[str](), Counter[str]()
    for row in seen:
        samples[row.pseudonym] += 1
        today[row.pseudonym] += row.made_at > store.now() - DAY
        distress[row.pseudonym] += row.skip_reason == DISTRESSING
        kinds[row.pseudonym].update(row.harm)
    names = sorted({*samples, *opted}, key=lambda name: (-samples[name], name))
    return [
        HarmExposure(
            n, samples[n], today[n], dict(kinds[n].most_common()), distress[n], opted.get(n, ())
        )
        for n in names
    ]


@dataclass(frozen=True, slots=True)
class Cost:
    """What somebody's work on a batch costs.

    Samples answered, and samples skipped as too distressing, which are paid alike.

    seconds: the median time from a distressing sample to its skip; None where it is not known. odd:
    far more of them than the others skip so, or skipped faster than anything is read.
    """

    annotator: str
    answered: int
    distressing: int
    seconds: float | None
    paid: float
    odd: bool


FAST_SKIP, LEAST_SKIPS, ODD_SKIPS = 2.0, 5, 4.0
"""Seconds.

Skips from which on somebody stands out, and how many times the others' share they must be.
"""


def _dearest_first(costs: list[Cost]) -> list[Cost]:
    """Those with something to pay."""
    paid = (cost for cost in costs if cost.answered or cost.distressing)
    return sorted(paid, key=lambda cost: -cost.paid)


def _skips(batch_id: int) -> Select[str, str, str, float, Any]:
    """A batch's assignments, with the time of the first skip of each."""
    skipped = (
        select(Event.assignment_id, func.min(Event.made_at).label("at"))
        .where(Event.kind == "skip")
        .group_by(Event.assignment_id)
    )
    first = skipped.subquery()
    columns = Annotator.pseudonym, Assignment.state, Assignment.skip_reason, Assignment.made_at
    return (
        select(*columns, first.c.at)
        .select_from(Assignment)
        .join(Annotator, Assignment.annotator_id == Annotator.id)
        .outerjoin(first, first.c.assignment_id == Assignment.id)
        .where(Assignment.batch_id == batch_id)
    )


def _stands_out(skips: int, own: int, others: float, seconds: float | None) -> bool:
    """Skips that are too many or too fast: `others` is the others' share, `seconds` the median."""
    fast = seconds is not None and seconds < FAST_SKIP
    return skips >= LEAST_SKIPS and (fast or skips > ODD_SKIPS * max(others, 0.01) * own)


def costs(store: Store, batch_id: int) -> list[Cost]:
    """Everybody who is to be paid for something in a batch, the dearest first."""
    answered, distress, times = Counter[str](), Counter[str](), defaultdict[str, list[float]](list)
    with store.read() as session:
        settings = BatchSettings.model_validate(session.get_one(Batch, batch_id).settings)
        for name, state, reason, made_at, at in session.execute(_skips(batch_id)):
            answered[name] += state == "submitted"
            if state != "submitted" and reason == DISTRESSING:
                distress[name] += 1
                if at is not None and at >= made_at:
                    times[name].append(at - made_at)
    every, skips = answered.total() + distress.total(), distress.total()
    found = []
    for name in sorted({*answered, *distress}):
        own = answered[name] + distress[name]
        others = (skips - distress[name]) / (every - own) if every > own else 0.0
        seconds = _median(times[name]) if times[name] else None
        odd = _stands_out(distress[name], own, others, seconds)
        found.append(
            Cost(name, answered[name], distress[name], seconds, settings.pay_per_item * own, odd)
        )
    return _dearest_first(found)


@dataclass(frozen=True, slots=True)
class VotesInHour:
    """Votes of an account in one clock hour (seconds since 1970).

    `odd` where that is far above `usual`, its own or the others' median.
    """

    annotator: str
    hour: float
    votes: int
    usual: float
    odd: bool


def votes_by_hour(store: Store, days: float = 14.0) -> list[VotesInHour]:
    """Votes per hour and account in the last days: hours that stand out first, then the busiest."""
    since = store.now() - days * DAY
    counts: dict[str, Counter[float]] = defaultdict(Counter)
    with store.read() as session:
        rows = (
            select(Annotator.pseudonym, Vote.made_at)
            .select_from(Vote)
            .join(Assignment, Vote.assignment_id == Assignment.id)
        )
        for name, at in session.execute(
            rows.join(Annotator, Assignment.annotator_id == Annotator.id).where(
                Vote.made_at >= since
            )
        ):
            counts[name][at // 3600 * 3600] += 1
    found = []
    for name, hours in counts.items():
        others = [n for other, theirs in counts.items() if other != name for n in theirs.values()]
        own = _median(list(hours.values()))
        usual = min([_median(others)] * bool(others) + [own] * (len(hours) > 1), default=own)
        found += [
            VotesInHour(name, hour, n, usual, n >= LEAST_RATE and n > ODD_RATE * usual)
            for hour, n in hours.items()
        ]
    return sorted(found, key=lambda hour: (not hour.odd, -hour.votes, hour.hour, hour.annotator))


def _median(values: Sequence[float]) -> float:
    return float(median(values)) if values else 0.0
