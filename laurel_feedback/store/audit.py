"""The audit log, a chain of hashes: a row's hash covers the row and the hash before it.

So a change shows. The same holds for votes.

Every vote leaves a row of the action "vote" with a digest of all that it says, so a vote that is
changed, added or taken out behind the product's back is found. The digest covers the vote's key,
which is random and goes with the vote: nothing can be guessed from it after.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from laurel_feedback.store.tables import Annotator, Assignment, Audit, Vote

FIRST = "0" * 64
VOTE = "vote"
SEALED = (
    "id",
    "assignment_id",
    "revision",
    "key",
    "rating",
    "ranking",
    "scales",
    "rationale",
    "active_ms",
    "pasted",
    "guideline_id",
    "made_at",
)
"""What of a vote its digest covers: all."""


def record(
    session: Session, actor: str, action: str, subject: str, now: float, **detail: Any
) -> Audit:
    """Add a row. The session must be one that writes: rows are chained one after the other."""
    last = session.scalar(select(Audit).order_by(Audit.id.desc()).limit(1))
    row = Audit(
        id=last.id + 1 if last else 1,
        actor=actor,
        action=action,
        subject=subject,
        detail=detail,
        made_at=round(now, 3),
        previous=last.hash if last else FIRST,
        hash="",
    )
    row.hash = digest_of(row)
    session.add(row)
    session.flush()
    return row


def record_vote(session: Session, vote: Vote, now: float) -> None:
    """Add the row of a vote that was just flushed. It names the assignment, not the person."""
    record(
        session,
        "",
        VOTE,
        f"vote {vote.id}",
        now,
        assignment=vote.assignment_id,
        digest=vote_digest(vote),
    )


def vote_digest(vote: Vote) -> str:
    """SHA-256 of all that a vote says."""
    values = [getattr(vote, name) for name in SEALED]
    return hashlib.sha256(
        json.dumps(values, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def digest_of(row: Audit) -> str:
    """SHA-256 of everything in the row but its own hash."""
    values = [row.id, row.actor, row.action, row.subject, row.detail, row.made_at, row.previous]
    return hashlib.sha256(
        json.dumps(values, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def verify(session: Session, head: str = "") -> list[str]:
    """What is wrong with the log, a line for each row that is.

    Empty: nothing. head: the last hash noted elsewhere, which must be there.

    Rows cut off at the end leave a chain that is whole: note the last hash outside (`laurel
    feedback verify-audit` prints it).
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
        wrong.append(
            f"the hash {head[:12]}... noted before is not in the log: rows are missing at its end"
        )
    return wrong + verify_votes(session)


def verify_votes(session: Session) -> list[str]:
    """Votes that are not what the log says, a line each.

    Those that were given before the log covered votes are not looked at.
    """
    rows = session.execute(select(Audit.subject, Audit.detail).where(Audit.action == VOTE))
    sealed = {int(subject.split()[-1]): detail for subject, detail in rows}
    if not sealed:
        return []
    found = {vote.id: vote for vote in session.scalars(select(Vote).where(Vote.id >= min(sealed)))}
    leaving = select(Audit.subject).where(Audit.action.in_(("withdraw", "erase")))
    left = set(
        session.scalars(
            select(Assignment.id).join(Annotator).where(Annotator.pseudonym.in_(leaving))
        )
    )  # their votes may be gone
    changed = (
        number
        for number, vote in found.items()
        if number in sealed and vote_digest(vote) != sealed[number]["digest"]
    )
    wrong = [f"vote {number} was changed" for number in changed]
    wrong += [
        f"vote {number} is in no row of the log" for number in sorted(found.keys() - sealed.keys())
    ]
    missing = (
        number
        for number in sorted(sealed.keys() - found.keys())
        if sealed[number]["assignment"] not in left
    )
    return wrong + [f"vote {number} was taken out" for number in missing]
