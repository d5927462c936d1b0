"""The work itself: the list of batches, the sample's page, and what is sent from it."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import ColumnElement, exists, select
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from laurel_feedback.store.assign import (
    DISTRESSING,
    LEAST_GAP,
    LONGEST,
    READING_WPM,
    Refused,
    TaskQueue,
    vote_columns,
)
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.tables import Annotator, Assignment, Batch, Dispute, Item
from laurel_feedback.web import sample as samples
from laurel_feedback.web.request_checks import whole_number
from laurel_feedback.web.sample import Sample, answer_of, draft_of, settings_of
from laurel_feedback.web.security import form_of, limited, page, require_annotator, wants_json
from laurel_feedback.web.text import render_markdown, render_text

REASONS = (
    "",
    "the instruction is unclear",
    "I do not know enough about it",
    "I know who wrote it",
    "something else",
)


def routes() -> list[BaseRoute]:
    """Everything under /work."""
    one = "/work/{batch:number}/samples/{assignment}"
    return [
        Route("/work", batches),
        Route("/work/{batch:number}", next_page),
        Route("/work/{batch:number}/next.json", next_json),
        Route("/work/{batch:number}/finished", finished),
        Route("/work/{batch:number}/{seq:number}", sample_page, methods=["GET"]),
        *(
            Route(f"{one}/{what.__name__}", what, methods=["POST"])
            for what in (answer, skip, draft, alive, dispute)
        ),
    ]


def require_active_annotator(request: Request, *, checking: bool = False) -> Annotator:
    """Who takes part.

    The invited go to the consent; those who left or did not pass the check are told.
    """
    me = require_annotator(request)
    if me.state == "invited":
        if request.method == "GET" and not wants_json(request):
            raise HTTPException(303, headers={"Location": "/consent"})
        raise Refused("your consent comes first.", status=403, fix="Open /consent.")
    if me.state == "failed" and checking:
        raise HTTPException(303, headers={"Location": "/work"})
    return me


def queue_of(request: Request) -> TaskQueue:
    """The annotator's queue for the batch of the address.

    What users of applications are asked is not for annotators.
    """
    store, me, batch = (
        request.app.state.site.store,
        require_active_annotator(request),
        request.path_params["batch"],
    )
    with store.read() as session:
        if session.scalar(select(Batch.id).where(Batch.id == batch, _of_application())) is not None:
            raise Refused(
                "there is no such batch for annotators.", status=404, fix="Go to your list of work."
            )
    return TaskQueue(store, me.id, batch)


def _of_application() -> ColumnElement[bool]:
    """Of a batch: are all its items ones that an application asks its users?"""
    items = exists().where(Item.batch_id == Batch.id)
    return items.where(Item.kind == "product") & ~items.where(Item.kind != "product")


def batches(request: Request) -> Response:
    """The open batches: how far one is, what they earn, how long they take."""
    me, store = require_active_annotator(request), request.app.state.site.store
    found = []
    with store.read() as session:
        offered = select(Batch).where(Batch.state == "open", ~_of_application()).order_by(Batch.id)
        rows = list(session.scalars(offered)) if me.state == "active" else []
        harm = {
            batch.id: sorted({k for kinds in session.scalars(_harmful(batch.id)) for k in kinds})
            for batch in rows
        }
    for batch in rows:
        settings, progress = (
            BatchSettings.model_validate(batch.settings),
            TaskQueue(store, me.id, batch.id).progress(),
        )
        pay, minutes = (
            settings.pay_per_item * progress.size,
            settings.expected_seconds * progress.size / 60,
        )
        check = settings.needs_check and not me.qualified
        found.append(
            {
                "id": batch.id,
                "name": batch.name,
                "progress": progress,
                "pay": pay,
                "minutes": minutes,
                "settings": settings,
                "check": check,
                "harm": harm[batch.id],
            }
        )
    return page(request, "work.html", me=me, batches=found)


def _harmful(batch: int) -> Any:
    return select(Item.harm).where(Item.batch_id == batch, Item.harmful).limit(2000)


def next_page(request: Request) -> Response:
    """To the sample to mark now; with ?after=N to the next unmarked one after sample N."""
    queue = queue_of(request)
    _, _, settings = settings_of(queue.store, queue.batch)
    with queue.store.read() as session:
        if settings.needs_check and not session.get_one(Annotator, queue.annotator).qualified:
            return RedirectResponse(f"/check/{queue.batch}", 303)
    after, left = (whole_number(request.query_params.get(name, "")) for name in ("after", "left"))
    found = queue.next(after)
    back = f"?left={left}" if left and found else ""
    return RedirectResponse(f"/work/{queue.batch}/{found.seq if found else 'finished'}{back}", 303)


def next_json(request: Request) -> Response:
    """The sample page as JSON for a script: its texts, and nothing the page would not show."""
    queue = queue_of(request)
    found = queue.next()
    if found is None:
        return JSONResponse({"done": True})
    sample = samples.load(queue.store, found.id)
    prompt = [{"role": role, "content": text} for role, text in sample.prompt]
    texts = {"prompt": prompt, "input": sample.input, "responses": sample.responses}
    return JSONResponse(
        {"assignment": sample.id, "seq": sample.seq, **texts, "csrf": request.state.csrf}
    )


def finished(request: Request) -> Response:
    """Nothing is left to mark, or the rest is with others for now."""
    queue = queue_of(request)
    name, _, settings = settings_of(queue.store, queue.batch)
    progress = queue.progress()
    return page(
        request, "finished.html", name=name, batch=queue.batch, progress=progress, settings=settings
    )


def sample_page(request: Request) -> Response:
    """Sample i of n."""
    queue = queue_of(request)
    if request.path_params["seq"] >= 10**9:
        raise Refused("you have no such sample.", status=404, fix="Go to your list of work.")
    return shown_sample(request, queue, queue.open(request.path_params["seq"]).id)


def _texts(queue: TaskQueue, sample: Sample, settings: BatchSettings) -> dict[str, Any]:
    """The texts of a sample's page, as HTML."""
    guidelines = samples.guidelines(queue.store)
    return {
        "prompt": [(role, render_text(text, settings.markdown)) for role, text in sample.prompt],
        "input": render_text(sample.input) if sample.input.strip() else "",
        "responses": [render_text(text, settings.markdown) for text in sample.responses],
        "guidelines": render_markdown(guidelines) if guidelines else "",
        "explanation": render_text(sample.explanation) if sample.explanation else "",
    }


def _idle_seconds(sample: Sample) -> int:
    """After how long without a sign of life the page says that time has stopped counting."""
    texts = (*sample.responses, *(text for _, text in sample.prompt))
    words = sum(len(text.split()) for text in texts)
    return round(max(LEAST_GAP * 3, 120 * words / READING_WPM))


def shown_sample(
    request: Request, queue: TaskQueue, assignment: str, error: Refused | None = None
) -> Response:
    """The page of a sample; with an error: what is missing, with the form as it was sent."""
    site = request.app.state.site
    name, _, settings = settings_of(queue.store, queue.batch)
    sample, progress = samples.load(queue.store, assignment), queue.progress()
    form = form_of(request)
    values = draft_of(form) if error else sample.values
    count = len(sample.responses)
    context = {
        "batch": queue.batch,
        "name": name,
        "settings": settings,
        "sample": sample,
        "progress": progress,
        "values": values,
        "count": count,
        **_texts(queue, sample, settings),
        "choices": samples.choices(count, settings),
        "scales": {k: v for k, v in samples.SCALES.items() if getattr(settings, k)},
        "error": error,
        "missing": samples.first_faulty_field(error, values, count) if error else "",
        "key": str(uuid.uuid4()),
        "reasons": REASONS,
        "longest": LONGEST,
        "idle": _idle_seconds(sample),
        "support": site.support,
        "saved": request.query_params.get("saved") == "1",
        **_left(request, queue, sample.seq),
    }
    return page(request, "sample.html", status=error.status if error else 200, **context)


def _left(request: Request, queue: TaskQueue, seq: int) -> dict[str, Any]:
    """The sample that was just skipped, to go back to: one key was enough to leave it."""
    left = whole_number(request.query_params.get("left", ""))
    with queue.store.read() as session:
        mine = (
            Assignment.annotator_id == queue.annotator,
            Assignment.batch_id == queue.batch,
            Assignment.seq == left,
        )
        found = (
            session.scalar(select(Assignment).where(*mine, Assignment.state == "skipped"))
            if left != seq
            else None
        )
    return {
        "left": left if found else 0,
        "distressing": bool(found and found.skip_reason == DISTRESSING),
    }


def answer(request: Request) -> Response:
    """Take an answer; say so only when it is on disk."""
    site, form, assignment = (
        request.app.state.site,
        form_of(request),
        request.path_params["assignment"],
    )
    limited(request, "answer", site.limits.answer, site.limits.answer_address)
    queue = queue_of(request)
    key = str(request.headers.get("idempotency-key") or form.get("key", ""))
    try:
        if not 8 <= len(key) <= 100:
            raise Refused(
                "an answer needs a key of 8 to 100 characters of its own.",
                status=422,
                where="key",
                fix="Load the page again.",
            )
        vote = _submit(queue, assignment, form, key)
    except Refused as error:
        kept = draft_of(form)
        if error.status in (409, 422) and kept:
            queue.draft(assignment, kept)
        if wants_json(request) or error.status != 422:
            raise
        return shown_sample(request, queue, assignment, error)
    number = _verdict_number(queue, assignment)
    to = f"/work/{queue.batch}/{number}#told" if number else f"/work/{queue.batch}?after={vote[1]}"
    if wants_json(request):
        return JSONResponse({"ok": True, "revision": vote[0], "next": to})
    return RedirectResponse(to, 303)


def _check_form(row: Assignment, form: Any, key: str) -> None:
    """Refused where the page that sent the form is out of date."""
    known = {vote.key for vote in row.votes}
    gold = row.item.gold if row.item.kind in samples.ANSWER_SHOWN_KINDS else None
    if row.state == "submitted" and gold is not None and key not in known:
        raise Refused(
            "the right answer was shown already, so your answer stays as it is.",
            fix="If you disagree, dispute it on its page.",
        )
    if row.item.harmful and not known and not form.get("opened"):
        raise Refused(
            "open the sample and read it first, or skip it as too distressing, with pay.",
            status=422,
            where="opened",
        )
    revision = str(form.get("revision", ""))
    if key not in known and revision and revision != str(len(known)):
        what = (
            "this sample was answered meanwhile, in another tab or on another device; that answer"
            " holds."
        )
        raise Refused(what, fix="Load the sample again: you can change the answer there.")


def _submit(queue: TaskQueue, assignment: str, form: Any, key: str) -> tuple[int, int]:
    """The revision that was stored and the sample's number.

    A key that brings another answer than before is refused, not swallowed.
    """
    with queue.store.read() as session:
        row = session.get(Assignment, assignment)
        if row is not None and (row.annotator_id, row.batch_id) == (queue.annotator, queue.batch):
            _check_form(row, form, key)
    given = answer_of(form)
    vote = queue.submit(assignment, given, key)
    assert row is not None  # the queue took it
    _, _, settings = settings_of(queue.store, queue.batch)
    taken = vote_columns(given, row.order, settings)
    if any(
        getattr(vote, name) != taken[name] for name in ("rating", "ranking", "scales", "rationale")
    ):
        raise Refused(
            "this form was sent before with another answer, which holds.",
            fix="Load the sample again and change it there.",
        )
    return vote.revision, row.seq


def _verdict_number(queue: TaskQueue, assignment: str) -> int:
    """The sample's number, where there is something to tell about it after the answer; else 0."""
    sample: Sample = samples.load(queue.store, assignment)
    return sample.seq if sample.answer_shown or sample.ruling else 0


def skip(request: Request) -> Response:
    """Leave a sample for later, or for good where it is too distressing.

    What was filled in is kept.
    """
    queue, form, assignment = queue_of(request), form_of(request), request.path_params["assignment"]
    kept = draft_of(form)
    if kept:
        queue.draft(assignment, kept)
    distress = bool(form.get("distress")) or form.get("reason") == DISTRESSING
    queue.skip(assignment, DISTRESSING if distress else str(form.get("reason", "")))
    seq = samples.load(queue.store, assignment).seq
    return _done(request, {"ok": True}, f"/work/{queue.batch}?after={seq}&left={seq}")


def draft(request: Request) -> Response:
    """Keep what is filled in so far."""
    queue, assignment = queue_of(request), request.path_params["assignment"]
    kept = draft_of(form_of(request))
    if kept:
        queue.draft(assignment, kept)
    return _done(
        request,
        {"ok": True},
        f"/work/{queue.batch}/{samples.load(queue.store, assignment).seq}?saved=1",
    )


def alive(request: Request) -> Response:
    """A sign of life: its kind and, of pasting, a size; never text."""
    queue, form, assignment = queue_of(request), form_of(request), request.path_params["assignment"]
    kind, size = str(form.get("kind", "ping")), str(form.get("size", "0"))
    if kind not in ("ping", "focus", "blur", "paste"):
        raise Refused(
            "there is no such sign of life.",
            status=422,
            where="kind",
            fix="ping, focus, blur or paste.",
        )
    held = queue.alive(assignment, kind, int(size) if size.isdecimal() and len(size) < 9 else 0)
    if not held and wants_json(request):
        raise Refused(
            "your time for this sample ran out.",
            fix="Send your answer anyway: it is taken while it is still wanted.",
        )
    return _done(
        request, {"ok": held}, f"/work/{queue.batch}/{samples.load(queue.store, assignment).seq}"
    )


def dispute(request: Request) -> Response:
    """An objection to a sample's right answer, once that was shown; the coordinator reads it."""
    queue, assignment = queue_of(request), request.path_params["assignment"]
    limited(request, "dispute", 30)
    text = str(form_of(request).get("text", "")).strip()[:5000]
    with queue.store.read() as session:
        row = session.get(Assignment, assignment)
    if row is None or (row.annotator_id, row.batch_id) != (queue.annotator, queue.batch):
        raise Refused("there is no such sample of yours.", status=404)
    sample = samples.load(queue.store, assignment)
    if not sample.answer_shown or not text:
        raise Refused(
            "a dispute needs a few words, and an answer that was shown.",
            status=422,
            where="text",
            fix="Go back to the sample.",
        )
    with queue.store.write() as session:
        found = session.get(Dispute, assignment)
        if found is not None and found.state != "open":
            raise Refused("the coordinator has decided on this already.")
        session.merge(
            Dispute(assignment_id=assignment, text=text, state="open", made_at=queue.store.now())
        )
    return _done(request, {"ok": True}, f"/work/{queue.batch}/{sample.seq}#told")


def _done(request: Request, fields: dict[str, Any], to: str) -> Response:
    return (
        JSONResponse({**fields, "next": to}) if wants_json(request) else RedirectResponse(to, 303)
    )
