"""Between a batch and AI judges: its items to be judged, their verdicts, spot checks by people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session, selectinload

from laurel.core.errors import UsageError
from laurel_feedback.exchange.load import (
    ProposedItem,
    add_item,
    checked_item,
    find_or_make_batch,
)
from laurel_feedback.store.audit import record
from laurel_feedback.store.batch_settings import BatchSettings, checked_name
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Batch, Item, Response, Verdict

JUDGED = ("normal", "product", "gold")
"""Kinds of items that a judge is asked about; training and checks teach people, and are left."""


def items_to_judge(store: Store, batch: str | None = None) -> list[dict[str, Any]]:
    """The items of a batch (None: of the only one) that have two responses or more.

    Rows: id, prompt (messages), responses [{text, model}], gold, batch.
    """
    with store.read() as session:
        found = batch_named(session, store, batch)
        items = (
            select(Item)
            .where(Item.batch_id == found.id, Item.kind.in_(JUDGED))
            .options(selectinload(Item.responses))
            .order_by(Item.place)
        )
        rows = [row_of(item) for item in session.scalars(items)]
    rows = [row for row in rows if len(row["responses"]) > 1]
    if not rows:
        raise UsageError("it has no item with two responses.", where=f"batch {found.name}")
    return rows


def row_of(item: Item) -> dict[str, Any]:
    """An item as a judge's source has it."""
    prompt = list(item.prompt)
    if item.input:
        last = {**prompt[-1], "content": f"{prompt[-1]['content']}\n\n{item.input}"}
        prompt = [*prompt[:-1], last]
    responses = [{"text": one.text, "model": one.model} for one in item.responses]
    return {"id": item.id, "prompt": prompt, "responses": responses, "gold": item.gold}


def batch_named(session: Session, store: Store, name: str | None) -> Batch:
    """The batch of this name, or the only one; UsageError where it cannot be told."""
    batches = list(session.scalars(select(Batch).order_by(Batch.id)))
    chosen = [one for one in batches if name is None or one.name == name]
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(one.name for one in batches) or "none"
    what = "there is no such batch." if name else "name the batch."
    raise UsageError(what, where=f"{store.shown}, batch {name or ''}", fix=f"Its batches: {known}.")


def store_verdicts(store: Store, judge: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """Keep a judge's verdicts on items of the database, in place of its earlier ones on them.

    rows: item, order [0, 1] or [1, 0], status about the responses, raw. Of repeated questions the
    first is given. Returns how many are kept.
    """
    items = sorted({str(row["item"]) for row in rows})
    with store.write() as session:
        known = set(session.scalars(select(Item.id).where(Item.id.in_(items))))
        session.execute(delete(Verdict).where(Verdict.judge == judge, Verdict.item_id.in_(known)))
        kept = [row for row in rows if row["item"] in known]
        session.add_all(verdict_of_row(judge, row) for row in kept)
        record(session, f"judge {judge}", "judge", "items", store.now(), verdicts=len(kept))
    return len(kept)


def verdict_of_row(judge: str, row: Mapping[str, Any]) -> Verdict:
    """A verdict as the database has it: a and b are the places as shown."""
    swapped = list(row["order"]) == [1, 0]
    status = str(row["status"])
    shown = {"a": "b", "b": "a"}.get(status, status) if swapped else status
    order = [int(place) for place in row["order"]]
    raw = str(row.get("raw") or "")
    raw = raw.replace("\0", "\ufffd")  # PostgreSQL has no NUL
    return Verdict(item_id=row["item"], judge=judge, order=order, status=shown, raw=raw)


def add_spot_checks(
    store: Store, batch: str, judge: str, rows: Sequence[Mapping[str, Any]]
) -> tuple[int, list[str]]:
    """Give people pairs that a judge has judged, and keep its verdicts beside them.

    rows: prompt, first, second, models, and `verdicts` as in `store_verdicts` without the item.
    Annotators see nothing of the judge. An item that the batch has already is left out, and its
    verdicts are kept. Returns (items added, a line for each that is left out).
    """
    batch = checked_name(batch)
    verdicts = list[dict[str, Any]]()
    left_out = list[str]()
    added = 0
    with store.write() as session:
        found = find_or_make_batch(session, batch, None, store.now())
        settings = BatchSettings.model_validate(found.settings)
        known = items_by_content(session, found.id)
        for number, row in enumerate(rows, start=1):
            item, responses, fault = spot_check(row, number, settings)
            if fault:
                left_out.append(f"pair {number}: {fault}")
                continue
            name, turned = known.get(item.content_hash), False
            if name is None:
                add_item(session, found, item, responses, len(known))
                name = known[item.content_hash] = item.id
                added += 1
            else:
                turned = first_text(session, name) != responses[0].text
            verdicts += on_item(row["verdicts"], name, turned)
        record(
            session, f"judge {judge}", "spot check", f"batch {found.id}", store.now(), items=added
        )
    store_verdicts(store, judge, verdicts)
    return added, left_out


def items_by_content(session: Session, batch: int) -> dict[str, str]:
    """The content's digest -> the id, of the items of a batch."""
    held = select(Item.content_hash, Item.id).where(Item.batch_id == batch)
    return {str(digest): str(item) for digest, item in session.execute(held)}


def on_item(rows: Sequence[Mapping[str, Any]], item: str, turned: bool) -> list[dict[str, Any]]:
    """Verdicts as those on an item, which may have its responses the other way round."""
    return [{**(turned_row(row) if turned else row), "item": item} for row in rows]


def first_text(session: Session, item: str) -> str | None:
    """The text of an item's first response."""
    texts = select(Response.text).where(Response.item_id == item).order_by(Response.place)
    return session.scalar(texts.limit(1))


def turned_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same verdict on the same responses, stored the other way round."""
    status = {"a": "b", "b": "a"}.get(str(row["status"]), row["status"])
    return {**row, "order": list(row["order"])[::-1], "status": status}


def spot_check(
    row: Mapping[str, Any], number: int, settings: BatchSettings
) -> tuple[Item, list[Response], str]:
    """A pair as an item of a batch; and why it is left out, if it is."""
    models = list(row.get("models") or ("", ""))
    answers = [
        {("text" if isinstance(said, str) else "messages"): said, "model": model}
        for said, model in zip((row["first"], row["second"]), models, strict=True)
    ]
    # in the order that its verdicts are about
    proposed = ProposedItem(
        f"pair {number}",
        row["prompt"],
        answers,
        source={"spot check": row["id"]},
    )
    return checked_item(proposed, settings)
