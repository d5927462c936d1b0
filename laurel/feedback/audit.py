"""The audit log: each row's hash covers what it says and the hash of the row before, so that a change shows."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from laurel.feedback.tables import Audit

FIRST = "0" * 64


def record(session: Session, actor: str, action: str, subject: str, now: float, **detail: Any) -> Audit:
    """Add a row. The session must be one that writes: rows are chained one after the other."""
    last = session.scalar(select(Audit).order_by(Audit.id.desc()).limit(1))
    row = Audit(
        id=last.id + 1 if last else 1, actor=actor, action=action, subject=subject, detail=detail, made_at=round(now, 3),
        previous=last.hash if last else FIRST, hash="",
    )  # fmt: skip
    row.hash = digest_of(row)
    session.add(row)
    session.flush()
    return row


def digest_of(row: Audit) -> str:
    """SHA-256 of everything in the row but its own hash."""
    said = [row.id, row.actor, row.action, row.subject, row.detail, row.made_at, row.previous]
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def verify(session: Session, head: str = "") -> list[str]:
    """What is wrong with the log, a line for each row that is; empty: nothing. head: the last hash noted elsewhere, which must be there.

    Rows cut off at the end leave a chain that is whole: note the last hash outside (`laurel feedback verify-audit` prints it).
    """
    wrong, previous, place, seen = [], FIRST, 0, set[str]()
    for row in session.scalars(select(Audit).order_by(Audit.id)):
        place += 1
        if row.id != place:
            wrong.append(f"row {place} is missing: the next one is {row.id}")
            place = row.id
        if row.previous != previous:
            wrong.append(f"row {row.id} does not follow the row before it")
        if row.hash != digest_of(row):
            wrong.append(f"row {row.id} ({row.action} of {row.subject}) was changed")
        previous = row.hash
        seen.add(row.hash)
    if head and head not in seen:
        wrong.append(f"the hash {head[:12]}... noted before is not in the log: rows are missing at its end")
    return wrong
