"""The admin pages about people and the installation.

Invitations, disputes, demographics, busy hours, guidelines, keys, the audit log.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from itertools import compress
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from laurel.core.errors import LaurelError, UsageError
from laurel_feedback.statistics.batches import exposure, votes_by_hour
from laurel_feedback.statistics.demographics import demographics_of, parse_reference
from laurel_feedback.statistics.sections import demographics_sections as people_sections
from laurel_feedback.statistics.votes import Poll, batch_poll
from laurel_feedback.store import accounts
from laurel_feedback.store.accounts import secret_digest
from laurel_feedback.store.assign import Refused
from laurel_feedback.store.audit import VOTE, record, verify
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import (
    Annotator,
    ApiKey,
    Assignment,
    Audit,
    Batch,
    Dispute,
    Guideline,
    Invite,
    Item,
    Vote,
)
from laurel_feedback.web.request_checks import whole_number
from laurel_feedback.web.security import form_of, page
from laurel_feedback.web.text import render_markdown

LINES = 200
"""Rows of the audit log on a page."""
HOURS = 100
WATCHED_DAYS = 14
LONGEST = 200_000
"""Characters of the guidelines."""


def routes() -> list[Route]:
    """See the module."""
    return [
        Route("/admin/people", people_page, methods=["GET"]),
        Route("/admin/people/invite", invite, methods=["POST"]),
        Route("/admin/people/{pseudonym}/renew", renew, methods=["POST"]),
        Route("/admin/people/{pseudonym}/withdraw", withdraw, methods=["POST"]),
        Route("/admin/disputes", disputes, methods=["GET"]),
        Route("/admin/disputes/{assignment}", close_dispute, methods=["POST"]),
        Route("/admin/guidelines", guidelines, methods=["GET"]),
        Route("/admin/guidelines", save_guidelines, methods=["POST"]),
        Route("/admin/keys", keys, methods=["GET"]),
        Route("/admin/keys", new_key, methods=["POST"]),
        Route("/admin/keys/{key:number}/revoke", revoke, methods=["POST"]),
        Route("/admin/demographics", demographics, methods=["GET"]),
        Route("/admin/demographics", compare, methods=["POST"]),
        Route("/admin/activity", busy),
        Route("/admin/audit", audit),
    ]


def moment(at: float | None) -> str:
    """2026-11-21 23:05 UTC"""
    return "-" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _store(request: Request) -> Store:
    return request.app.state.site.store


def _actor(request: Request) -> str:
    return f"coordinator {request.state.coordinator.name}"


def people_page(request: Request) -> Response:
    """Everyone who was invited; folded, those who came with imported data only.

    Of applications' users the number.
    """
    return _people(request)


def _people(
    request: Request, *, link: str = "", who: str = "", wrong: str = "", status: int = 200
) -> Response:
    store = _store(request)
    exposed = {e.annotator: e for e in exposure(store)}
    with store.read() as session:
        votes, last = _votes_and_last(session)
        pending = Invite.used_at.is_(None), Invite.expires > store.now()
        open_ = set(session.scalars(select(Invite.annotator_id).where(*pending)))
        of_application = Annotator.consent == accounts.OF_APPLICATION
        annotators = select(Annotator).where(~of_application).order_by(Annotator.id.desc())
        rows = [
            (a, votes.get(a.id, 0), moment(last.get(a.id)), exposed.get(a.pseudonym), a.id in open_)
            for a in session.scalars(annotators)
        ]
        came = _came(session, rows)
        return page(
            request,
            "admin_people.html",
            status=status,
            link=link,
            invited=who,
            wrong=wrong,
            days=accounts.INVITE_DAYS,
            rows=list(compress(rows, came)),
            strangers=[row for row, c in zip(rows, came, strict=True) if not c],
            users=session.scalar(select(func.count()).where(of_application)) or 0,
        )


def _came(session: Session, rows: list[tuple[Any, ...]]) -> list[bool]:
    """Of each row: was the annotator invited here, or have they done something?"""
    known = set(session.scalars(select(Invite.annotator_id)))
    return [row[0].id in known or row[0].state != "invited" or row[1] > 0 for row in rows]


def _votes_and_last(session: Session) -> tuple[dict[int, int], dict[int, float]]:
    """annotator -> the number of samples answered, and the time of the last answer."""
    votes = (
        select(Assignment.annotator_id, func.count())
        .where(Assignment.state == "submitted")
        .group_by(Assignment.annotator_id)
    )
    last = (
        select(Assignment.annotator_id, func.max(Vote.made_at))
        .join(Vote)
        .group_by(Assignment.annotator_id)
    )
    counts, times = session.execute(votes).all(), session.execute(last).all()
    return {row[0]: row[1] for row in counts}, {row[0]: row[1] for row in times}


def _link(request: Request, token: str) -> str:
    return f"{request.app.state.site.public_url}/invite/{token}"


def invite(request: Request) -> Response:
    """A new annotator; the link is shown on this page and never again."""
    form = form_of(request)
    person, name = str(form.get("person", "")).strip()[:500], str(form.get("pseudonym", "")).strip()
    if name and not (len(name) <= 60 and all(c.isalnum() or c in "-_." for c in name)):
        return _people(
            request,
            wrong="A pseudonym has letters, digits, - _ and . only, 60 at most.",
            status=422,
        )
    try:
        pseudonym, token = accounts.invite_annotator(
            _store(request), person, actor=_actor(request), pseudonym=name
        )
    except UsageError as error:
        return _people(request, wrong=f"{error.what} {error.fix}", status=422)
    return _people(request, link=_link(request, token), who=pseudonym)


def renew(request: Request) -> Response:
    """A new link for someone who lost their session."""
    name = request.path_params["pseudonym"]
    token = accounts.renew_invitation(_store(request), name, actor=_actor(request))
    return _people(request, link=_link(request, token), who=name)


def withdraw(request: Request) -> Response:
    """Someone asked to leave: what their consent says happens to their votes."""
    store, name, form = _store(request), request.path_params["pseudonym"], form_of(request)
    if "asked" not in form:
        raise Refused(
            "tick that this person asked for it.",
            status=422,
            fix="Go back. Nobody is withdrawn as a penalty.",
        )
    with store.read() as session:
        found = session.scalar(select(Annotator).where(Annotator.pseudonym == name))
    if found is None or found.state in ("withdrawn", "erased"):
        raise Refused(
            f"there is no annotator `{name}` who takes part.",
            status=404,
            fix="Go back to the list.",
        )
    done = accounts.withdraw(store, found.id, actor=_actor(request), erase="erase" in form)
    return page(request, "admin_withdrawn.html", done=done)


def disputes(request: Request) -> Response:
    """Objections of annotators to the answers of gold items, open ones first."""
    with _store(request).read() as session:
        found = session.execute(
            select(Dispute, Annotator.pseudonym, Item.id, Item.batch_id, Item.gold)
            .join(Assignment, Dispute.assignment_id == Assignment.id)
            .join(Annotator, Assignment.annotator_id == Annotator.id)
            .join(Item, Assignment.item_id == Item.id)
            .order_by(Dispute.state.desc(), Dispute.made_at)
        ).all()
        rows = [
            (d, who, item, batch, gold, moment(d.made_at)) for d, who, item, batch, gold in found
        ]
    return page(
        request, "admin_disputes.html", rows=sorted(rows, key=lambda row: row[0].state != "open")
    )


def close_dispute(request: Request) -> Response:
    """Say what became of an objection."""
    store, outcome = _store(request), str(form_of(request).get("outcome", ""))
    if outcome not in ("upheld", "declined"):
        raise Refused(
            "choose upheld or declined.", status=422, where="outcome", fix="Go back and choose one."
        )
    with store.write() as session:
        found = session.get(Dispute, request.path_params["assignment"])
        if found is None:
            raise Refused("there is no such dispute.", status=404, fix="Go back to the list.")
        found.state = outcome
        record(
            session, _actor(request), "dispute", found.assignment_id, store.now(), outcome=outcome
        )
    return RedirectResponse("/admin/disputes", 303)


def guidelines(request: Request) -> Response:
    """The guidelines that hold, their older versions, and a form for the next."""
    with _store(request).read() as session:
        versions = list(session.scalars(select(Guideline).order_by(Guideline.id.desc())))
    now = versions[0] if versions else None
    shown = [(version, moment(version.made_at)) for version in versions]
    return page(
        request,
        "admin_guidelines.html",
        now=now,
        text=render_markdown(now.text) if now else "",
        versions=shown,
    )


def save_guidelines(request: Request) -> Response:
    """A new version; votes given from now on remember it."""
    store, text = (
        _store(request),
        str(form_of(request).get("text", "")).replace("\r\n", "\n").strip(),
    )
    if not text or len(text) > LONGEST:
        raise Refused(
            f"guidelines have 1 to {LONGEST:,} characters.",
            status=422,
            where="text",
            fix="Go back and write them.",
        )
    with store.write() as session:
        now = session.scalar(select(Guideline).order_by(Guideline.id.desc()).limit(1))
        if now is None or now.text != text:
            new = Guideline(text=text, made_at=store.now())
            session.add(new)
            session.flush()
            record(
                session,
                _actor(request),
                "guidelines",
                f"version {new.id}",
                store.now(),
                characters=len(text),
            )
    return RedirectResponse("/admin/guidelines", 303)


def keys(request: Request) -> Response:
    """Applications that may ask their users."""
    return _keys(request)


def _keys(request: Request, key: str = "", name: str = "") -> Response:
    with _store(request).read() as session:
        rows = [
            (k, moment(k.made_at))
            for k in session.scalars(select(ApiKey).order_by(ApiKey.id.desc()))
        ]
    return page(request, "admin_keys.html", rows=rows, key=key, made_for=name)


def new_key(request: Request) -> Response:
    """A new key, shown on this page and never again."""
    store, name, key = (
        _store(request),
        str(form_of(request).get("name", "")).strip(),
        secrets.token_urlsafe(32),
    )
    if not name or len(name) > 100:
        raise Refused(
            "name the application, in 100 characters at most.",
            status=422,
            where="name",
            fix="Go back and give a name.",
        )
    with store.write() as session:
        session.add(ApiKey(digest=secret_digest(key), name=name, made_at=store.now()))
        record(session, _actor(request), "new key", name, store.now())
    return _keys(request, key, name)


def revoke(request: Request) -> Response:
    """A key that is worth nothing from now on."""
    store = _store(request)
    with store.write() as session:
        found = session.get(ApiKey, request.path_params["key"])
        if found is None:
            raise Refused("there is no such key.", status=404, fix="Go back to the list.")
        if not found.revoked:
            found.revoked = True
            record(session, _actor(request), "revoke key", found.name, store.now())
    return RedirectResponse("/admin/keys", 303)


def demographics(request: Request) -> Response:
    """Whose opinions the votes are; the reading is recorded."""
    return _demographics(request, request.query_params.get("batch", ""), "")


def compare(request: Request) -> Response:
    """The same beside a reference population."""
    form = form_of(request)
    return _demographics(
        request, str(form.get("batch", "")), str(form.get("reference", "")).strip()
    )


def _demographics(request: Request, chosen: str, text: str) -> Response:
    store, wrong, reference = _store(request), "", None
    with store.read() as session:
        batches = [(b.id, b.name) for b in session.scalars(select(Batch).order_by(Batch.id.desc()))]
    if chosen and chosen not in {str(number) for number, _ in batches}:
        raise Refused(
            f"there is no batch `{chosen[:20]}`.", status=404, fix="Choose one of the list."
        )
    try:
        reference = parse_reference(text) if text else None
    except LaurelError as error:
        wrong = f"{error.what} {error.fix}"
    poll = (
        batch_poll(store, int(chosen))
        if chosen
        else _everything(store, [number for number, _ in batches])
    )
    found = demographics_of(store, poll, reference, actor=_actor(request))
    shown = {
        "parts": people_sections(found),
        "found": found,
        "batches": batches,
        "chosen": chosen,
        "reference": text,
        "wrong": wrong,
    }
    return page(request, "admin_demographics.html", status=422 if wrong else 200, **shown)


def _everything(store: Store, batches: list[int]) -> Poll:
    polls = [batch_poll(store, number) for number in batches]
    judges = (
        {name: judged for poll in polls for name, judged in poll.judges.items()}
        if len(polls) == 1
        else {}
    )
    return Poll("all batches", [ballot for poll in polls for ballot in poll.ballots], judges)


def busy(request: Request) -> Response:
    """Votes per hour and account of the last two weeks, hours that stand out first."""
    hours = votes_by_hour(_store(request), WATCHED_DAYS)
    rows = [(hour, moment(hour.hour)) for hour in hours[:HOURS]]
    more, odd = max(0, len(hours) - HOURS), sum(hour.odd for hour in hours)
    return page(request, "admin_activity.html", rows=rows, more=more, odd=odd, days=WATCHED_DAYS)


def audit(request: Request) -> Response:
    """The log, the latest first, and whether its chain is whole.

    The rows of votes are checked and not listed.
    """
    before = whole_number(request.query_params.get("before", "0"))
    with _store(request).read() as session:
        wrong = verify(session)
        rows = select(Audit).where(Audit.action != VOTE).order_by(Audit.id.desc()).limit(LINES)
        rows = rows.where(Audit.id < before) if before > 0 else rows
        lines = [(row, moment(row.made_at)) for row in session.scalars(rows)]
        head = session.scalar(select(Audit.hash).order_by(Audit.id.desc()).limit(1)) or ""
        count = session.scalar(select(func.count()).select_from(Audit)) or 0
    return page(request, "admin_audit.html", lines=lines, wrong=wrong, head=head, count=count)
