"""Annotators and coordinators: invitations, sessions, consent, withdrawal and erasure."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session

from laurel.core.errors import UsageError
from laurel_feedback.store.assign import ANSWERED, DISTRESSING, Refused, release_reservation
from laurel_feedback.store.audit import record
from laurel_feedback.store.database import Store, changed_rows
from laurel_feedback.store.tables import (
    Admin,
    Annotator,
    Assignment,
    Attempt,
    Base,
    Batch,
    Demographic,
    Dispute,
    Draft,
    Event,
    Invite,
    Login,
    Plan,
    Release,
    Vote,
)

INVITE_DAYS, SESSION_HOURS, ADMIN_HOURS = 14.0, 24.0 * 7, 12.0
LEAST_PASSWORD = 12
OF_APPLICATION = "keep product"
"""The consent of an application's user.

They agreed to what the application told them, and have no login here.
"""
HASHER = PasswordHasher()


class CurrentLogin(NamedTuple):
    """A login as a request needs it."""

    annotator: int | None
    admin: int | None
    csrf: str


def secret_digest(token: str) -> str:
    """What is stored of a secret: its SHA-256.

    Tokens have 256 random bits, so nothing slower is needed.
    """
    return hashlib.sha256(token.encode()).hexdigest()


def invite_annotator(
    store: Store,
    person: str = "",
    *,
    actor: str = "operator",
    pseudonym: str = "",
    days: float = INVITE_DAYS,
) -> tuple[str, str]:
    """A new annotator: (pseudonym, token of the invitation), the token is shown only now."""
    token = secrets.token_urlsafe(32)
    with store.write() as session:
        pseudonym = pseudonym or f"annotator-{secrets.token_hex(4)}"
        if session.scalar(select(Annotator).where(Annotator.pseudonym == pseudonym)) is not None:
            raise UsageError(
                f"there is an annotator `{pseudonym}` already.",
                where="pseudonym",
                fix="Choose another name.",
            )
        annotator = Annotator(pseudonym=pseudonym, person=person, made_at=store.now())
        session.add(annotator)
        session.flush()
        session.add(
            Invite(
                digest=secret_digest(token),
                annotator_id=annotator.id,
                expires=store.now() + days * 86400,
            )
        )
        record(session, actor, "invite", pseudonym, store.now())
    return pseudonym, token


def accept_invitation(store: Store, token: str) -> str:
    """Exchange an invitation for a session's cookie.

    It works once; used, expired and unknown ones are refused alike.
    """
    with store.write() as session:
        found = session.get(Invite, secret_digest(token))
        if found is None or found.used_at is not None or found.expires < store.now():
            raise Refused(
                "this invitation is unknown, used or expired.", status=403, fix="Ask for a new one."
            )
        found.used_at = store.now()
        annotator = session.get_one(Annotator, found.annotator_id)
        if annotator.state in ("withdrawn", "erased"):
            raise Refused(
                "this invitation is unknown, used or expired.", status=403, fix="Ask for a new one."
            )
        return login_with_code(session, annotator, store.now())


def code_of(cookie: str) -> str:
    """The code that belongs to a session's cookie: 80 random bits as four groups of four.

    It is computed from the cookie, so the browser that has that session can be shown it again, and
    nothing stores it.
    """
    letters = base64.b32encode(hashlib.sha256(f"code {cookie}".encode()).digest()[:10]).decode()
    return "-".join(letters[i : i + 4] for i in range(0, 16, 4))


def shown_code(store: Store, annotator_id: int, cookie: str) -> str:
    """The annotator's code, where this session is the one it was made with; else ""."""
    code = code_of(cookie)
    with store.read() as session:
        stored_digest = session.get_one(Annotator, annotator_id).code
    return code if stored_digest == secret_digest(code) else ""


def log_in_again(store: Store, given: str) -> str:
    """A session's cookie for a code, however it was written.

    It works as often as wanted, on every device, until there is a new one.
    """
    plain = "".join(c for c in given.upper() if c.isalnum()).translate(str.maketrans("018", "OIB"))
    code = "-".join(plain[i : i + 4] for i in range(0, len(plain), 4))
    with store.write() as session:
        annotator = session.scalar(select(Annotator).where(Annotator.code == secret_digest(code)))
        if annotator is None or annotator.state in ("withdrawn", "erased"):
            fix = (
                "Check it letter by letter, or ask the coordinator for a new invitation: your"
                " answers are kept."
            )
            raise Refused("this code is not known.", status=403, fix=fix)
        return log_in_as(session, store.now(), SESSION_HOURS, annotator_id=annotator.id)


def renew_return_code(store: Store, annotator_id: int) -> str:
    """A new session with a code of its own.

    The old code and all other sessions of the annotator end.
    """
    with store.write() as session:
        annotator = session.get_one(Annotator, annotator_id)
        session.execute(delete(Login).where(Login.annotator_id == annotator_id))
        record(session, annotator.pseudonym, "code", annotator.pseudonym, store.now())
        return login_with_code(session, annotator, store.now())


def login_with_code(session: Session, annotator: Annotator, now: float) -> str:
    """A new session of an annotator, whose code is this session's from now on; its cookie."""
    cookie = log_in_as(session, now, SESSION_HOURS, annotator_id=annotator.id)
    annotator.code = secret_digest(code_of(cookie))
    return cookie


def renew_invitation(store: Store, pseudonym: str, *, actor: str, days: float = INVITE_DAYS) -> str:
    """A new invitation for someone who lost session and code; the old ones end."""
    token = secrets.token_urlsafe(32)
    with store.write() as session:
        annotator = session.scalar(select(Annotator).where(Annotator.pseudonym == pseudonym))
        if annotator is None or annotator.state in ("withdrawn", "erased"):
            raise Refused(f"there is no annotator `{pseudonym}` who takes part.", status=404)
        if annotator.consent == OF_APPLICATION:
            raise Refused(
                f"`{pseudonym}` is a user of an application, not an annotator.",
                fix="Invite annotators under other pseudonyms.",
            )
        for table in (Invite, Login):
            session.execute(delete(table).where(table.annotator_id == annotator.id))
        annotator.code = ""
        session.add(
            Invite(
                digest=secret_digest(token),
                annotator_id=annotator.id,
                expires=store.now() + days * 86400,
            )
        )
        record(session, actor, "renew", pseudonym, store.now())
    return token


def consent(store: Store, annotator_id: int, version: str) -> None:
    """Sign a version of the consent text, "keep ..." or "delete ...", and take part from now on."""
    if version.split()[:1] not in (["keep"], ["delete"]):
        raise UsageError(
            f"`{version}` does not say what happens to votes.",
            where="consent",
            fix="Begin the version with keep or delete.",
        )
    with store.write() as session:
        annotator = session.get_one(Annotator, annotator_id)
        if annotator.state not in ("invited", "active"):
            raise Refused("you do not take part (any more).", status=403)
        annotator.consent, annotator.consent_at, annotator.state = version, store.now(), "active"
        record(session, annotator.pseudonym, "consent", version, store.now())


def add_admin(store: Store, name: str, password: str) -> None:
    """A coordinator, or a new password for one; sessions of the old one end.

    There is no default password.
    """
    if len(password) < LEAST_PASSWORD:
        raise UsageError(
            f"a password has at least {LEAST_PASSWORD} characters.",
            where="password",
            fix="Take a longer one.",
        )
    hashed = HASHER.hash(password)
    with store.write() as session:
        admin = session.scalar(select(Admin).where(Admin.name == name))
        if admin is None:
            admin = Admin(name=name, password=hashed)
            session.add(admin)
            session.flush()
        admin.password = hashed
        session.execute(delete(Login).where(Login.admin_id == admin.id))
        record(session, "operator", "password", f"coordinator {name}", store.now())


def log_in_admin(store: Store, name: str, password: str) -> str:
    """A coordinator's session for a name and its password.

    Unknown names take as long as wrong passwords.
    """
    with store.read() as session:
        admin = session.scalar(select(Admin).where(Admin.name == name))
    try:
        HASHER.verify(admin.password if admin else unmatched_hash(), password)
    except (VerifyMismatchError, InvalidHashError) as error:
        raise Refused("name and password do not belong together.", status=403) from error
    if admin is None:
        raise Refused("name and password do not belong together.", status=403)
    with store.write() as session:
        record(session, f"coordinator {name}", "login", name, store.now())
        return log_in_as(session, store.now(), ADMIN_HOURS, admin_id=admin.id)


@cache
def unmatched_hash() -> str:
    """The hash of a password that nobody has."""
    return HASHER.hash(secrets.token_hex(16))


def log_in_as(session: Session, now: float, hours: float, **owner: Any) -> str:
    """A new session; its cookie's value."""
    cookie = secrets.token_urlsafe(32)
    session.add(
        Login(
            digest=secret_digest(cookie),
            csrf=secrets.token_urlsafe(24),
            made_at=now,
            expires=now + hours * 3600,
            **owner,
        )
    )
    return cookie


def session_of(store: Store, cookie: str) -> CurrentLogin | None:
    """Whose session a cookie is; None: nobody's, or it has expired."""
    with store.read() as session:
        login = session.get(Login, secret_digest(cookie))
        if login is None or login.expires < store.now():
            return None
        return CurrentLogin(login.annotator_id, login.admin_id, login.csrf)


def end_session(store: Store, cookie: str) -> None:
    """Log out."""
    with store.write() as session:
        session.execute(delete(Login).where(Login.digest == secret_digest(cookie)))


@contextmanager
def failures(store: Store, most: dict[str, int], seconds: float) -> Iterator[None]:
    """A context in which failures are counted against some keys.

    Raises Refused with 429 where a key had `most` failures in a window of so many seconds.

    It counts while it lasts, so that many at once cannot all slip through, and is taken back where
    no error leaves the block.
    """
    count_attempts(store, most, seconds)
    yield
    with store.write() as session:
        for row in session.scalars(select(Attempt).where(Attempt.key.in_(most))):
            row.count = max(0, row.count - 1)


def count_attempt(store: Store, key: str, most: int, seconds: float) -> None:
    """Note a try; Refused with 429 when `key` had `most` already in a window of this many seconds.
    Shared by all server processes.
    """
    count_attempts(store, {key: most}, seconds)


def count_attempts(store: Store, most: dict[str, int], seconds: float) -> None:
    """`count_attempt` for several keys at once; a refused try counts for none of them."""
    now = store.now()
    with store.write() as session:
        rows = {
            row.key: row for row in session.scalars(select(Attempt).where(Attempt.key.in_(most)))
        }
        for key, count in most.items():
            row = rows.get(key)
            if row is not None and _window_lasts(row, now, seconds) and row.count >= count:
                raise Refused(
                    "too many tries.",
                    status=429,
                    fix=f"Wait {row.began + seconds - now:.0f} seconds, then try again.",
                )
        for key in most:
            row = rows.get(key)
            if row is None:
                session.add(Attempt(key=key, began=now, count=1))
            elif _window_lasts(row, now, seconds):
                row.count += 1
            else:
                row.began, row.count = now, 1
        if len(rows) < len(most):
            session.execute(delete(Attempt).where(Attempt.began < now - 86400))


def _window_lasts(row: Attempt, now: float, seconds: float) -> bool:
    """Has the row's window begun and not ended?

    One that begins in the future is of before the clock was set back: it is over.
    """
    return 0 <= now - row.began < seconds


def _delete_annotator_data(session: Session, annotator_id: int, *, votes: bool) -> dict[str, int]:
    """Delete what belongs to an annotator; table -> how many rows."""
    own = select(Assignment.id).where(Assignment.annotator_id == annotator_id)
    tables: dict[type[Base], ColumnElement[bool]] = {
        table: table.assignment_id.in_(own) for table in (Event, Draft, Dispute)
    }
    if votes:
        tables[Vote] = Vote.assignment_id.in_(own)
    for table in (Demographic, Invite, Login, Plan):
        tables[table] = table.annotator_id == annotator_id
    return {
        table.__tablename__: changed_rows(session, delete(table).where(which))
        for table, which in tables.items()
    }


def _give_back_all(session: Session, annotator_id: int, *, keep: bool) -> Counter[str]:
    """End an annotator's assignments, but those whose votes are kept; batch -> samples to pay."""
    owed = Counter[str]()
    own = select(Assignment).where(Assignment.annotator_id == annotator_id)
    for assignment in session.scalars(own):
        submitted = assignment.state == "submitted"
        paid = submitted or assignment.skip_reason in (DISTRESSING, ANSWERED)
        if assignment.item.kind != "product":
            owed[session.get_one(Batch, assignment.batch_id).name] += paid
        if submitted and keep:
            continue
        release_reservation(session, assignment)
        assignment.state, assignment.skip_reason = "withdrawn", ANSWERED if paid else ""
    return owed


def withdraw(
    store: Store, annotator_id: int, *, actor: str = "", erase: bool = False
) -> dict[str, Any]:
    """Someone leaves.

    Who they are, demographics, drafts and events go; votes stay without a name if their consent
    says so, else go too.

    erase: votes go whatever the consent says. Returns what was removed, and the releases that hold
    their votes already. A tombstone stays: the pseudonym, in state withdrawn or erased, so that no
    export takes them up again. What was earned stays known: the samples that are to be paid are
    counted per batch in the result, in the audit log and in the batch's cost.
    """
    with store.write() as session:
        annotator = session.get_one(Annotator, annotator_id)
        keep = annotator.consent.startswith("keep") and not erase
        removed = _delete_annotator_data(session, annotator_id, votes=not keep)
        owed = _give_back_all(session, annotator_id, keep=keep)
        old = annotator.pseudonym
        annotator.person, annotator.opted_out, annotator.code = "", [], ""
        annotator.state = "erased" if erase or not keep else "withdrawn"
        released = [r.path for r in session.scalars(select(Release)) if old in r.pseudonyms]
        detail = {
            "removed": removed,
            "votes": "kept" if keep else "deleted",
            "paid_samples": dict(owed),
        }
        record(session, actor or old, "erase" if erase else "withdraw", old, store.now(), **detail)
        found = {
            "pseudonym": old,
            "state": annotator.state,
            "removed": removed,
            "votes_kept": keep,
            "released_in": released,
        }
    store.scrub()
    return {**found, "paid_samples": dict(owed)}
