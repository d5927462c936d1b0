"""The admin pages about votes.

Agreement so far, annotators, items, the votes on one item, and the ruling on it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from laurel.measure.annotators import SIGNS
from laurel_feedback.statistics.analysis import analyse, low_effort_signals, skills
from laurel_feedback.statistics.batches import summaries
from laurel_feedback.statistics.sections import (
    HEADINGS,
    number_text,
    p_value_text,
    sections,
    signal_text,
)
from laurel_feedback.statistics.votes import Poll, batch_poll, label_of
from laurel_feedback.store.assign import Refused
from laurel_feedback.store.audit import record
from laurel_feedback.store.batch_settings import HELPFULNESS, PRESENTATION, RATINGS, BatchSettings
from laurel_feedback.store.tables import Annotator, Assignment, Batch, Item, Ruling, Vote
from laurel_feedback.web.request_checks import whole_number
from laurel_feedback.web.sample import TIE
from laurel_feedback.web.security import form_of, page
from laurel_feedback.web.text import render_text

PAGE = 50
MEANINGS = {
    "speed": "median seconds at work on a sample; low stands out",
    "reading": "share of votes faster than 600 words a minute",
    "entropy": "variety of answers as displayed, in bits; always the same slot is 0",
    "slots": "first against second slot, in standard deviations",
    "alternation": "more changes of slot than by chance (above 0) or fewer (below)",
    "ties": "share of ties",
    "agreement": "agreement with the others on the same item, beyond chance",
    "echo": (
        "agreement with the model's answers, beyond chance; flagged only if people who differ from"
        " the model are not followed"
    ),
    "pasted": "share of votes with half of the reason pasted or more",
}


def routes() -> list[Route]:
    """See the module."""
    one = "/admin/batches/{batch:number}"
    return [
        Route(f"{one}/agreement", agreement),
        Route(f"{one}/annotators", annotators),
        Route(f"{one}/annotators/{{pseudonym}}", annotator),
        Route(f"{one}/items", items),
        Route(f"{one}/items/{{item}}", item, methods=["GET"]),
        Route(f"{one}/items/{{item}}", rule, methods=["POST"]),
    ]


def agreement(request: Request) -> Response:
    """What the votes say now; every load counts anew."""
    store, batch = request.app.state.site.store, request.path_params["batch"]
    found = summaries(store, batch)[0]
    return page(
        request,
        "admin_agreement.html",
        batch=found,
        parts=sections(analyse(batch_poll(store, batch), people=False)),
    )


def annotators(request: Request) -> Response:
    """Skill and signs of everyone in the batch, side by side."""
    store, batch = request.app.state.site.store, request.path_params["batch"]
    found, poll = summaries(store, batch)[0], batch_poll(store, batch)
    signs = {str(s.annotator): s for s in low_effort_signals(poll)}
    rows = []
    for skill in skills(poll):
        own = signs.get(skill.annotator)
        cells = (
            [(signal_text(name, getattr(own, name)), getattr(own, name).flag) for name in SIGNS]
            if own
            else [("-", False)] * len(SIGNS)
        )
        rows.append((skill, cells))
    return page(
        request,
        "admin_annotators.html",
        batch=found,
        rows=rows,
        headings=[(HEADINGS[n], MEANINGS[n]) for n in SIGNS],
    )


def annotator(request: Request) -> Response:
    """One annotator's signs with their tests, and their latest votes."""
    store, batch, name = (
        request.app.state.site.store,
        request.path_params["batch"],
        request.path_params["pseudonym"],
    )
    found, poll = summaries(store, batch)[0], batch_poll(store, batch)
    own = next((s for s in low_effort_signals(poll) if s.annotator == name), None)
    skill = next((s for s in skills(poll) if s.annotator == name), None)
    if skill is None:
        raise Refused(
            f"`{name}` has no votes in this batch.", status=404, fix="Go back to the list."
        )
    signs = []
    for key in SIGNS if own else ():
        value = getattr(own, key)
        signs.append(
            (
                key,
                MEANINGS[key],
                signal_text(key, value),
                number_text(value.z, 2),
                p_value_text(value.p),
                value.flag,
                value.reason,
            )
        )
    votes = [
        (
            b,
            (
                {"a": "response 1", "b": "response 2", "tie": "tie"}[label_of(b.rating)]
                if b.rating is not None
                else _ranks(b.ranking)
            ),
        )
        for b in reversed([b for b in poll.ballots if b.annotator == name][-100:])
    ]
    return page(
        request,
        "admin_annotator.html",
        batch=found,
        name=name,
        skill=skill,
        signs=signs,
        votes=votes,
    )


def _ranks(ranking: Any) -> str:
    return "ranks " + ", ".join(map(str, ranking or ()))


def _split(poll: Poll) -> tuple[dict[str, Counter[str]], dict[str, float]]:
    """item -> its votes by answer, and the share of them that are not the commonest one."""
    given: dict[str, Counter[str]] = {}
    for choice in poll.choices:
        given.setdefault(choice.unit[0], Counter())[choice.label] += 1
    return given, {name: 1 - max(count.values()) / count.total() for name, count in given.items()}


def items(request: Request) -> Response:
    """The items with votes, those on which people split most first."""
    store, batch = request.app.state.site.store, request.path_params["batch"]
    found, poll = summaries(store, batch)[0], batch_poll(store, batch)
    given, split = _split(poll)
    ranked = sorted(split, key=lambda name: (-split[name], -given[name].total(), name))
    start = whole_number(request.query_params.get("from", "0"))
    names = ranked[start : start + PAGE]
    with store.read() as session:
        prompts = {i.id: _asked(i) for i in session.scalars(select(Item).where(Item.id.in_(names)))}
        ruled = set(session.scalars(select(Ruling.item_id).where(Ruling.item_id.in_(names))))
    rows = [(name, prompts[name][:160], given[name], split[name], name in ruled) for name in names]
    return page(
        request,
        "admin_items.html",
        batch=found,
        rows=rows,
        start=start,
        total=len(ranked),
        size=PAGE,
    )


def _asked(item: Item) -> str:
    return str(item.prompt[-1].get("content", "")) if item.prompt else ""


def _words(vote: Vote, settings: BatchSettings, count: int) -> str:
    if vote.ranking is not None:
        return _ranks(vote.ranking)
    if count == 1:
        return {1: "thumb up", 4: "thumb down"}.get(vote.rating or 0, "")
    return {0: TIE, **RATINGS}[vote.rating or 0].split(" (only")[0]


def item(request: Request) -> Response:
    """An item with its responses by their place, every vote and reason, and the ruling."""
    store, name = request.app.state.site.store, request.path_params["item"]
    with store.read() as session:
        found = _item(session, request)
        settings = BatchSettings.model_validate(session.get_one(Batch, found.batch_id).settings)
        count = len(found.responses)
        ratings = ({**RATINGS, 0: TIE} if count == 2 else {}) if settings.form == "rating" else {}
        return page(
            request,
            "admin_item.html",
            item=found,
            input=render_text(found.input) if found.input else "",
            prompt=[
                (str(m.get("role", "")), render_text(str(m.get("content", ""))))
                for m in found.prompt
            ],
            responses=[
                (r.place + 1, r.model, render_text(r.text, settings.markdown), len(r.text.split()))
                for r in found.responses
            ],
            votes=_votes(session, name, settings, count),
            ruling=session.get(Ruling, name),
            ratings=ratings,
            batch=summaries(store, found.batch_id)[0],
        )


def _votes(
    session: Session, item: str, settings: BatchSettings, count: int
) -> list[dict[str, Any]]:
    """Every vote on an item in words; `holds` is the last revision of an assignment."""
    rows = session.execute(
        select(Vote, Assignment, Annotator.pseudonym)
        .join(Assignment, Vote.assignment_id == Assignment.id)
        .join(Annotator, Assignment.annotator_id == Annotator.id)
        .where(Assignment.item_id == item)
        .order_by(Assignment.made_at, Vote.revision)
    ).all()
    last = {
        vote.assignment_id: vote.revision
        for vote in sorted((vote for vote, _, _ in rows), key=lambda vote: vote.revision)
    }
    return [
        {
            "annotator": who,
            "answer": _words(vote, settings, count),
            "order": ", ".join(str(p + 1) for p in assignment.order),
            "seconds": f"{vote.active_ms / 1000:.0f}" if vote.active_ms else "-",
            "rationale": vote.rationale,
            "scales": _scales(vote.scales),
            "holds": vote.revision == last[vote.assignment_id],
            "revision": vote.revision,
            "repeat": assignment.repeat,
            "guideline": vote.guideline_id,
            "state": assignment.state,
        }
        for vote, assignment, who in rows
    ]


def _item(session: Any, request: Request) -> Item:
    found = session.get(Item, request.path_params["item"])
    if found is None or found.batch_id != request.path_params["batch"]:
        raise Refused(
            "there is no such item in this batch.", status=404, fix="Go back to the list."
        )
    return found


def _scales(scales: dict[str, Any]) -> str:
    words = {"helpfulness": HELPFULNESS, "presentation": PRESENTATION}
    return "; ".join(
        f"{name}: {', '.join(words[name][level] for level in given)}"
        for name, given in scales.items()
        if name in words
    )


REASON = "Annotators learn from the reason: write it in 5,000 characters at most."


def rule(request: Request) -> Response:
    """Decide about an item: its answer, why, and whether annotators see it after answering."""
    store, form = request.app.state.site.store, form_of(request)
    given, reason = str(form.get("rating", "")), str(form.get("reason", "")).strip()
    if given not in {"0", *map(str, RATINGS)}:
        raise Refused(
            "choose one of the answers.", status=422, where="rating", fix="Go back and choose one."
        )
    if not reason or len(reason) > 5000:
        raise Refused("a ruling needs a reason.", status=422, where="reason", fix=REASON)
    with store.write() as session:
        found = _item(session, request)
        if len(found.responses) != 2:
            raise Refused(
                "only an item with two responses can be ruled.",
                status=422,
                where="item",
                fix="Go back to the list.",
            )
        who, before = request.state.coordinator, session.get(Ruling, found.id)
        new = {"rating": int(given), "reason": reason, "pinned": "pinned" in form}
        change = {
            "before": {name: getattr(before, name) for name in new} if before else None,
            "after": new,
        }
        session.merge(Ruling(item_id=found.id, admin_id=who.id, made_at=store.now(), **new))
        coordinator = f"coordinator {who.name}"
        record(session, coordinator, "ruling", found.id, store.now(), **change)
    return RedirectResponse(request.url.path, 303)
