"""Annotators' pages around the work.

The start, the invitation, consent, the guidelines and their check, own answers, leaving.
"""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import String, cast, delete, func, select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from laurel_feedback.store import accounts
from laurel_feedback.store.assign import DISTRESSING, Refused
from laurel_feedback.store.audit import record
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import (
    Annotator,
    Assignment,
    Batch,
    Demographic,
    Dispute,
    Event,
    Item,
    Ruling,
    Vote,
)
from laurel_feedback.web import work
from laurel_feedback.web.request_checks import attachment
from laurel_feedback.web.sample import (
    ANSWER_SHOWN_KINDS,
    guidelines,
    is_right,
    latest_votes,
    messages_of,
    settings_of,
    values_of,
    words_of,
)
from laurel_feedback.web.security import (
    Site,
    address_of,
    failing,
    form_of,
    log_in,
    page,
    require_annotator,
)
from laurel_feedback.web.text import render_markdown, render_text

SUPPORT = (
    "Take a break whenever you like. If something stays with you, talk to someone you trust or to"
    " your coordinator."
)
ATTEMPTS = 2
DAYS = round(accounts.SESSION_HOURS / 24)
RETENTION_DAYS = 365
QUESTIONS = {
    "age": ("How old are you?", ["18-24", "25-34", "35-44", "45-54", "55-64", "65 or older"]),
    "gender": ("What is your gender?", ["woman", "man", "non-binary", "another"]),
    "region": (
        "Where do you live?",
        [
            "Africa",
            "Asia",
            "Europe",
            "Latin America and the Caribbean",
            "Northern America",
            "Oceania",
        ],
    ),
    "education": (
        "What is your highest education?",
        ["no degree", "secondary school", "vocational", "bachelor", "master or higher"],
    ),
    "language": ("Is English your first language?", ["yes", "no"]),
}
"""Optional, in coarse bands; "prefer not to say" stores nothing."""


def routes(site: Site) -> list[BaseRoute]:
    """The annotators' pages."""
    return [
        Route("/", start),
        Route("/invite/{token}", invitation, methods=["GET"]),
        Route("/invite/{token}", exchange, methods=["POST"]),
        Route("/return", return_page, methods=["GET"]),
        Route("/return", come_back, methods=["POST"]),
        Route("/consent", consent_page, methods=["GET"]),
        Route("/consent", sign, methods=["POST"]),
        Route("/guidelines", guidelines_page),
        Route("/check/{batch:number}", check_page, methods=["GET"]),
        Route("/check/{batch:number}", check, methods=["POST"]),
        Route("/mine", mine),
        Route("/mine/code", new_code, methods=["POST"]),
        Route("/mine/data.json", my_data),
        Route("/mine/withdraw", withdraw_page, methods=["GET"]),
        Route("/mine/withdraw", withdraw, methods=["POST"]),
        *work.routes(),
    ]


def start(request: Request) -> Response:
    """What this is."""
    return page(request, "start.html")


def invitation(request: Request) -> Response:
    """A button.

    Looking at the page exchanges nothing, so that programs that fetch links in advance do not use
    the invitation up.
    """
    return page(request, "invite.html", token=request.path_params["token"], days=DAYS)


def exchange(request: Request) -> Response:
    """The invitation becomes a session."""
    site = request.app.state.site
    with failing(request, {f"invitation from {address_of(request)}": site.limits.token}):
        cookie = accounts.accept_invitation(site.store, request.path_params["token"][:200])
    return log_in(request, cookie, "/consent")


def return_page(request: Request, status: int = 200, wrong: str = "") -> Response:
    """A field for the code by which somebody comes back in."""
    return page(request, "return.html", status=status, wrong=wrong)


def come_back(request: Request) -> Response:
    """A code becomes a session, on any device."""
    site, given = request.app.state.site, str(form_of(request).get("code", ""))[:100]
    try:
        with failing(request, {f"code from {address_of(request)}": site.limits.token}):
            cookie = accounts.log_in_again(site.store, given)
    except Refused as error:
        if error.status != 403:
            raise
        return return_page(request, 403, f"{error.what} {error.fix}")
    return log_in(request, cookie, "/work")


def new_code(request: Request) -> Response:
    """Another code; what the old one opened is closed."""
    me, site = require_annotator(request), request.app.state.site
    return log_in(request, accounts.renew_return_code(site.store, me.id), "/mine")


def own_code(request: Request, me: Annotator) -> dict[str, Any]:
    """What code.html shows: the code, where this browser's session is the one it was made with."""
    site = request.app.state.site
    cookie = request.cookies.get(site.cookie(), "")
    return {"code": accounts.shown_code(site.store, me.id, cookie), "days": DAYS}


def harms(session: Session) -> dict[str, int]:
    """Kinds of harm in the open batches and how many items have them."""
    column = cast(Item.harm, String)
    rows = (
        select(func.min(Item.id), func.count())
        .join(Batch)
        .where(Batch.state == "open", Item.harmful)
        .group_by(column)
    )
    counts: dict[str, int] = {}
    for item_id, count in session.execute(rows):
        for kind in session.get_one(Item, item_id).harm:
            counts[kind] = counts.get(kind, 0) + count
    return dict(sorted(counts.items()))


def consent_page(request: Request, status: int = 200, wrong: str = "") -> Response:
    """What is asked, what is kept, what may be shown, and what is optional."""
    me, site = require_annotator(request), request.app.state.site
    if me.state not in ("invited", "active"):
        return RedirectResponse("/work", 303)
    with site.store.read() as session:
        kinds = harms(session)
        texts = {
            d.question: d.answer
            for d in session.scalars(select(Demographic).where(Demographic.annotator_id == me.id))
        }
    context = {
        "me": me,
        "harms": kinds,
        "said": texts,
        "questions": QUESTIONS,
        "support": site.support or SUPPORT,
        "wrong": wrong,
    }
    return page(
        request,
        "consent.html",
        status=status,
        kept_days=RETENTION_DAYS,
        **context,
        **own_code(request, me),
    )


def sign(request: Request) -> Response:
    """Sign the consent, with its choices.

    What happens to the votes on withdrawal, kinds of harm to leave out, and the optional questions
    about the person.
    """
    me, site, form = require_annotator(request), request.app.state.site, form_of(request)
    choice = str(form.get("votes", ""))
    missing = "" if form.get("agree") else "tick that you agree"
    if choice not in ("keep", "delete"):
        missing = "say what happens to your answers if you leave"
    if missing:
        return consent_page(request, 422, f"Please {missing}; nothing was saved yet.")
    accounts.consent(site.store, me.id, f"{choice} 1")
    with site.store.write() as session:
        shown_kinds = {str(kind) for kind in form.getlist("asked")}
        row = session.get_one(Annotator, me.id)
        kept = [kind for kind in row.opted_out if kind not in shown_kinds]
        row.opted_out = sorted({*kept, *(str(kind)[:100] for kind in form.getlist("opt_out"))})
        _save_demographics(session, me.id, form, site.store.now())
    return RedirectResponse("/work", 303)


def _save_demographics(session: Session, annotator: int, form: Any, now: float) -> None:
    """Replace the answers about a person, and delete everybody's that were kept long enough."""
    session.execute(delete(Demographic).where(Demographic.keep_until < now))
    keep_until = now + RETENTION_DAYS * 86400
    for question, (_, answers) in QUESTIONS.items():
        old = Demographic.annotator_id == annotator, Demographic.question == question
        session.execute(delete(Demographic).where(*old))
        if (answer := str(form.get(f"about_{question}", ""))) in answers:
            session.add(
                Demographic(
                    annotator_id=annotator, question=question, answer=answer, keep_until=keep_until
                )
            )


def guidelines_page(request: Request) -> Response:
    """The guidelines, and the decided cases that this annotator has answered."""
    store = request.app.state.site.store
    me, cases = work.require_active_annotator(request), list[dict[str, Any]]()
    with store.read() as session:
        mine = (
            Assignment.annotator_id == me.id,
            Assignment.state == "submitted",
            Assignment.repeat == 0,
            Ruling.pinned,
        )
        rows = (
            select(Assignment, Ruling)
            .join(Ruling, Ruling.item_id == Assignment.item_id)
            .where(*mine)
        )
        for assignment, ruling in session.execute(
            rows.order_by(Assignment.batch_id, Assignment.seq)
        ):
            cases.append(
                {"batch": assignment.batch_id, "seq": assignment.seq, "reason": ruling.reason}
            )
    text = guidelines(store)
    return page(request, "guidelines.html", text=render_markdown(text) if text else "", cases=cases)


def questions_of(session: Session, batch: int, me: Annotator) -> list[tuple[Item, list[int]]]:
    """The items of the guidelines check with the order of their responses.

    Each annotator has an order of their own, and another one at the second attempt.
    """
    items = session.scalars(
        select(Item)
        .where(Item.batch_id == batch, Item.kind == "check", Item.gold.is_not(None))
        .order_by(Item.place)
    )
    found = []
    for item in items:
        order = [response.place for response in item.responses]
        random.Random(f"{item.id}:{me.id}:{me.checks}").shuffle(order)
        found.append((item, order))
    return found


def check_page(request: Request, status: int = 200, wrong: str = "") -> Response:
    """The questions about the guidelines."""
    me, store, batch = (
        work.require_active_annotator(request, checking=True),
        request.app.state.site.store,
        request.path_params["batch"],
    )
    name, _, settings = settings_of(store, batch)
    if me.qualified or not settings.needs_check:
        return RedirectResponse(f"/work/{batch}", 303)
    with store.read() as session:
        asked = []
        for item, order in questions_of(session, batch, me):
            texts = {
                response.place: render_text(response.text, settings.markdown)
                for response in item.responses
            }
            prompt = [
                (role, render_text(text, settings.markdown)) for role, text in messages_of(item)
            ]
            more = render_text(item.input) if item.input.strip() else ""
            asked.append(
                {"prompt": prompt, "input": more, "responses": [texts[place] for place in order]}
            )
    if not asked:
        raise Refused(
            "this batch asks for a check of the guidelines and has no questions for it.",
            fix="Tell the coordinator.",
        )
    text, left = guidelines(store), ATTEMPTS - me.checks
    context = {
        "batch": batch,
        "name": name,
        "asked": asked,
        "left": left,
        "attempt": me.checks,
        "wrong": wrong,
    }
    return page(
        request,
        "check.html",
        status=status,
        guidelines=render_markdown(text) if text else "",
        **context,
    )


def check(request: Request) -> Response:
    """All right: qualified. Else once more; after the second time it ends, politely."""
    me, store = work.require_active_annotator(request, checking=True), request.app.state.site.store
    form, batch = form_of(request), request.path_params["batch"]
    settings_of(store, batch)
    with store.write() as session:
        me = session.get_one(Annotator, me.id)
        asked = questions_of(session, batch, me)
        given = [str(form.get(f"q{number}", "")) for number in range(len(asked))]
        # a form that is sent twice: the first one counted
        if me.qualified or not asked or str(form.get("attempt")) != str(me.checks):
            return RedirectResponse(f"/check/{batch}", 303)
        right = _right_answers(given, asked)
        if right is not None:
            _count_attempt(me, right == len(asked))
            counts = {"right": right, "asked": len(asked), "attempt": me.checks}
            record(session, me.pseudonym, "check", f"batch {batch}", store.now(), **counts)
    if right is None:
        return check_page(
            request, 422, "Please answer every question; this was not counted as an attempt."
        )
    if me.qualified or me.state == "failed":
        return RedirectResponse(f"/work/{batch}" if me.qualified else "/work", 303)
    return check_page(
        request,
        200,
        f"{right} of {len(asked)} were right. Please read the guidelines once more; you have one"
        " more attempt.",
    )


def _right_answers(given: list[str], asked: list[tuple[Item, list[int]]]) -> int | None:
    """How many answers by slot are right; None where one is missing."""
    pairs = list(zip(given, asked, strict=True))
    if not all(answer.isdecimal() and int(answer) < len(order) for answer, (_, order) in pairs):
        return None
    return sum(order[int(answer)] == item.gold for answer, (item, order) in pairs)


def _count_attempt(annotator: Annotator, passed: bool) -> None:
    annotator.checks += 1
    annotator.qualified = passed
    if not passed and annotator.checks >= ATTEMPTS:
        annotator.state = "failed"


def earnings(session: Session, me: int) -> list[dict[str, Any]]:
    """Of each batch: its samples, what they earn, and the time at work."""
    batches: dict[int, dict[str, Any]] = {}
    for assignment, vote in latest_votes(session, me):
        batch = session.get_one(Batch, assignment.batch_id)
        settings = BatchSettings.model_validate(batch.settings)
        total = batches.setdefault(batch.id, _no_earnings(batch, settings))
        answered = vote if assignment.state == "submitted" else None
        distressing = assignment.skip_reason == DISTRESSING and answered is None
        words = "too distressing" if distressing else assignment.state
        if answered is not None:
            words = words_of(answered, assignment.order)
            total["minutes"] += answered.active_ms / 60_000
            _count_gold(total, assignment.item, answered)
        marked = answered is not None
        total["samples"].append({"seq": assignment.seq, "words": words, "marked": marked})
        total["done"] += marked
        total["paid"] += settings.pay_per_item * (marked or distressing)
    for total in batches.values():
        total["hour"] = total["paid"] * 60 / total["minutes"] if total["minutes"] >= 1 else None
    return list(batches.values())


def _no_earnings(batch: Batch, settings: BatchSettings) -> dict[str, Any]:
    return {
        "id": batch.id,
        "name": batch.name,
        "open": batch.state == "open",
        "currency": settings.currency,
        "hour": None,
        "done": 0,
        "paid": 0.0,
        "minutes": 0.0,
        "right": 0,
        "gold": 0,
        "samples": [],
    }


def _count_gold(total: dict[str, Any], item: Item, vote: Vote) -> None:
    """Count an answer to an item whose right answer is shown afterwards."""
    if item.kind in ANSWER_SHOWN_KINDS and item.gold is not None:
        total["gold"] += 1
        total["right"] += is_right(item.gold, vote)


def mine(request: Request) -> Response:
    """Own answers, own accuracy where there is a right answer, and earnings."""
    me, store = require_annotator(request), request.app.state.site.store
    with store.read() as session:
        batches = earnings(session, me.id)
    return page(request, "mine.html", me=me, batches=batches, **own_code(request, me))


def my_data(request: Request) -> Response:
    """Everything that is kept about someone, for them."""
    me, store = require_annotator(request), request.app.state.site.store
    with store.read() as session:
        asked = session.scalars(select(Demographic).where(Demographic.annotator_id == me.id))
        data = {
            "you": {name: getattr(me, name) for name in ABOUT},
            "about_you": [
                {"question": d.question, "answer": d.answer, "kept_until": d.keep_until}
                for d in asked
            ],
            "samples": [
                _sample_data(session, assignment) for assignment, _ in latest_votes(session, me.id)
            ],
        }
    return JSONResponse(data, headers={"Content-Disposition": attachment(f"{me.pseudonym}.json")})


ABOUT = (
    "pseudonym",
    "person",
    "state",
    "consent",
    "consent_at",
    "checks",
    "qualified",
    "opted_out",
    "made_at",
)


def _sample_data(session: Session, assignment: Assignment) -> dict[str, Any]:
    """Everything that is kept about an assignment."""
    texts = {response.place: response.text for response in assignment.item.responses}
    dispute = session.get(Dispute, assignment.id)
    signs = session.scalars(
        select(Event).where(Event.assignment_id == assignment.id).order_by(Event.id)
    )
    return {
        "batch": session.get_one(Batch, assignment.batch_id).name,
        "sample": assignment.seq,
        "state": assignment.state,
        "begun_at": assignment.made_at,
        "skip_reason": assignment.skip_reason,
        "prompt": [text for _, text in messages_of(assignment.item)],
        "responses": [texts[place] for place in assignment.order],
        "answers": [_vote_data(vote, assignment.order) for vote in assignment.votes],
        "dispute": dispute.text if dispute else "",
        "signs_of_life": [
            {"kind": sign.kind, "size": sign.size, "at": sign.made_at} for sign in signs
        ],
    }


def _vote_data(vote: Vote, order: list[int]) -> dict[str, Any]:
    return {
        **values_of(vote, order),
        "revision": vote.revision,
        "active_ms": vote.active_ms,
        "pasted": vote.pasted,
        "at": vote.made_at,
    }


def votes_of(store: Store, me: int) -> int:
    """How many answers someone gave."""
    with store.read() as session:
        return sum(vote is not None for _, vote in latest_votes(session, me))


def withdraw_page(request: Request, status: int = 200, wrong: str = "") -> Response:
    """What leaving does, before it is done."""
    me = require_annotator(request)
    count = votes_of(request.app.state.site.store, me.id)
    return page(
        request,
        "withdraw.html",
        status=status,
        me=me,
        count=count,
        keep=me.consent.startswith("keep"),
        wrong=wrong,
        gone=None,
    )


def withdraw(request: Request) -> Response:
    """Someone leaves; all their sessions end."""
    me, site = require_annotator(request), request.app.state.site
    if not form_of(request).get("sure"):
        return withdraw_page(
            request, 422, "Please tick the box if you are sure; nothing was changed."
        )
    gone = accounts.withdraw(site.store, me.id)
    request.state.who, request.state.csrf = None, ""
    response = page(
        request, "withdraw.html", me=me, count=0, keep=gone["votes_kept"], wrong="", gone=gone
    )
    response.delete_cookie(
        site.cookie(), path="/", secure=site.secure, httponly=True, samesite="lax"
    )
    response.headers["Clear-Site-Data"] = '"storage"'
    return response
