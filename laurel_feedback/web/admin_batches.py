"""The admin pages about batches: settings, opening and closing, words that give away a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from laurel.core.errors import LaurelError
from laurel_feedback.statistics.analysis import hourly_pay
from laurel_feedback.statistics.batches import (
    change_settings,
    close_batch,
    costs,
    create_batch,
    exposure,
    never_shown,
    open_batch,
    reason_not_to_open,
    summaries,
)
from laurel_feedback.statistics.sections import (
    cost_section,
    harm_section,
    pay_section,
    progress_section,
)
from laurel_feedback.statistics.votes import timed_poll
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.model_giveaways import decide_held_item, flagged_items, read_and_hold
from laurel_feedback.web import admin_people, admin_votes
from laurel_feedback.web.security import Site, form_of, page, require_admin
from laurel_feedback.web.text import escape_plain

FIELDS = {
    "target_votes": ("Votes for each item", "No item gets more."),
    "hit_size": ("Samples for each annotator", "The progress that annotators see counts to it."),
    "form": ("Form", "Two responses and four levels, or up to 12 responses in order."),
    "allow_tie": ("Allow a tie", ""),
    "helpfulness": ("Ask how helpful each response is", "Five levels."),
    "presentation": ("Ask how well each response is presented", "Three levels."),
    "rationale": ("Ask for a reason", ""),
    "markdown": ("Show responses as Markdown", "Cleaned. Off: plain text."),
    "lease_minutes": (
        "Minutes that a sample is kept for an annotator",
        "Each sign of life begins them anew.",
    ),
    "repeat_share": (
        "Share of samples shown once more",
        "0 to 0.4, with the slots swapped; 0.03 to 0.05 is usual.",
    ),
    "gold_share": ("Share of gold and attention items", "0 to 0.5, while there are any."),
    "needs_check": ("Questions about the guidelines come first", "All right within two attempts."),
    "pay_per_item": (
        "Pay for each sample",
        "In the currency below; training, gold and repeats are paid too.",
    ),
    "currency": ("Currency", ""),
    "expected_seconds": ("Seconds that a sample is expected to take", ""),
    "pay_floor": ("Least pay per hour", "Below it the batch is not opened."),
    "daily_harm_cap": (
        "Samples with a kind of harm, at most a day",
        "For each annotator; 0: no cap.",
    ),
}
"""What the form calls the settings, and a hint."""


def routes(site: Site) -> list[BaseRoute]:
    """All of the coordinators' pages."""
    one = "/admin/batches/{batch:number}"
    return [
        *map(
            behind_login,
            [
                Route("/admin", overview),
                Route("/admin/batches/new", new_page, methods=["GET"]),
                Route("/admin/batches/new", new, methods=["POST"]),
                Route(one, batch_page),
                Route(f"{one}/settings", settings_page, methods=["GET"]),
                Route(f"{one}/settings", save_settings, methods=["POST"]),
                Route(f"{one}/open", open_, methods=["POST"]),
                Route(f"{one}/close", close, methods=["POST"]),
                Route(f"{one}/words", words_page, methods=["GET"]),
                Route(f"{one}/words", words_again, methods=["POST"]),
                Route(f"{one}/words/{{item}}", words_decide, methods=["POST"]),
                *admin_votes.routes(),
                *admin_people.routes(),
            ],
        )
    ]


class _Checked:
    """An endpoint that only a coordinator's session reaches, whatever the handler does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["coordinator"] = await run_in_threadpool(
                require_admin, Request(scope, receive)
            )
        await self.app(scope, receive, send)


def behind_login(route: Route) -> BaseRoute:
    """The same route; it asks for a coordinator's session before the handler is called."""
    route.app = _Checked(route.app)
    return route


def actor(request: Request) -> str:
    """Who acts, as the audit log names them."""
    return f"coordinator {request.state.coordinator.name}"


def overview(request: Request) -> Response:
    """Every batch: state, votes, cost, pay."""
    store = request.app.state.site.store
    return page(
        request,
        "admin_batches.html",
        batches=[(batch, hourly_pay(timed_poll(store, batch.id))) for batch in summaries(store)],
    )


def batch_page(request: Request) -> Response:
    """One batch in figures, with what can be done about it."""
    store, batch = request.app.state.site.store, request.path_params["batch"]
    found = summaries(store, batch)[0]
    paid, exposed = hourly_pay(timed_poll(store, batch)), exposure(store, batch)
    spent = costs(store, batch) if found.settings.pay_per_item else []
    parts = [
        progress_section(found),
        *([pay_section(paid)] if paid else []),
        *([cost_section(spent, found.settings.currency)] if spent else []),
    ]
    parts += [harm_section(exposed)] if exposed else []
    why = reason_not_to_open(store, batch) if found.state != "open" else ""
    idle, held = never_shown(store, batch), request.query_params.get("held", "")
    return page(
        request, "admin_batch.html", batch=found, parts=parts, why=why, idle=idle, held=held
    )


def form_rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings as fields of a form."""
    rows = []
    for name, info in BatchSettings.model_fields.items():
        label, hint = FIELDS[name]
        kind = info.annotation
        options = list(get_args(kind)) if get_origin(kind) is Literal else []
        shape = (
            "select"
            if options
            else {bool: "checkbox", int: "number", float: "number", str: "text"}[kind]
        )  # type: ignore[index]
        step = "1" if kind is int else "any"
        rows.append(
            {
                "name": name,
                "label": label,
                "hint": hint,
                "shape": shape,
                "options": options,
                "step": step,
                "value": values[name],
            }
        )
    return rows


def settings_of(form: Mapping[str, Any]) -> tuple[BatchSettings | None, dict[str, Any], str]:
    """The settings of a form, what was filled in, and what is wrong with it."""
    given: dict[str, Any] = {}
    for name, info in BatchSettings.model_fields.items():
        given[name] = name in form if info.annotation is bool else str(form.get(name, "")).strip()
    try:
        return BatchSettings.model_validate(given), given, ""
    except ValidationError as error:
        found = [
            (str(e["loc"][0]) if e["loc"] else "", e["msg"].removeprefix("Value error, "))
            for e in error.errors()
        ]
        return (
            None,
            given,
            "; ".join(
                f"{FIELDS[name][0]}: {what}" if name in FIELDS else what for name, what in found
            ),
        )


def _form(request: Request, *, status: int = 200, **context: Any) -> Response:
    return page(request, "admin_settings.html", status=status, **context)


def new_page(request: Request) -> Response:
    """The form for a new batch."""
    return _form(
        request, rows=form_rows(BatchSettings().model_dump()), name="", wrong="", batch=None
    )


def new(request: Request) -> Response:
    """A batch in draft; items come by `laurel feedback import`."""
    form, store = form_of(request), request.app.state.site.store
    settings, given, wrong = settings_of(form)
    name = str(form.get("name", ""))
    if settings is not None:
        try:
            batch = create_batch(store, name, settings, actor=actor(request))
            return RedirectResponse(f"/admin/batches/{batch}", 303)
        except LaurelError as error:
            wrong = f"{error.what} {error.fix}"
    return _form(request, status=422, rows=form_rows(given), name=name, wrong=wrong, batch=None)


def settings_page(request: Request) -> Response:
    """The form for the settings of a batch that is not open."""
    batch = summaries(request.app.state.site.store, request.path_params["batch"])[0]
    return _form(
        request, rows=form_rows(batch.settings.model_dump()), name=batch.name, wrong="", batch=batch
    )


def save_settings(request: Request) -> Response:
    """Keep other settings."""
    store, number = request.app.state.site.store, request.path_params["batch"]
    batch = summaries(store, number)[0]
    settings, given, wrong = settings_of(form_of(request))
    if settings is not None:
        try:
            change_settings(store, number, settings, actor=actor(request))
            return RedirectResponse(f"/admin/batches/{number}", 303)
        except LaurelError as error:
            wrong = f"{error.what} {error.fix}"
    return _form(
        request, status=422, rows=form_rows(given), name=batch.name, wrong=wrong, batch=batch
    )


def open_(request: Request) -> Response:
    """Open a batch, unless the pay is too low."""
    batch = request.path_params["batch"]
    held_out = open_batch(request.app.state.site.store, batch, actor=actor(request))
    return RedirectResponse(
        f"/admin/batches/{batch}" + (f"?held={held_out}" if held_out else ""), 303
    )


def close(request: Request) -> Response:
    """Close a batch."""
    batch = request.path_params["batch"]
    close_batch(request.app.state.site.store, batch, actor=actor(request))
    return RedirectResponse(f"/admin/batches/{batch}", 303)


def words_page(request: Request) -> Response:
    """Items whose responses tell who wrote them, those that wait for a decision first."""
    store, batch = request.app.state.site.store, request.path_params["batch"]
    found = summaries(store, batch)[0]
    with store.read() as session:
        flags = sorted(
            flagged_items(session, batch),
            key=lambda flag: ("held", "unread", "seen", "served", "left out").index(flag.state),
        )
    shown = [(flag, escape_plain(flag.prompt[:300])) for flag in flags]
    return page(request, "admin_words.html", batch=found, flags=shown)


def words_again(request: Request) -> Response:
    """Read every response again, and hold what nobody has seen yet."""
    batch, store = request.path_params["batch"], request.app.state.site.store
    read_and_hold(store, batch)
    return RedirectResponse(f"/admin/batches/{batch}/words", 303)


def words_decide(request: Request) -> Response:
    """Serve an item as it is, or leave it out."""
    batch = request.path_params["batch"]
    serve = form_of(request).get("decision") == "serve"
    decide_held_item(
        request.app.state.site.store, request.path_params["item"], serve, actor=actor(request)
    )
    return RedirectResponse(f"/admin/batches/{batch}/words", 303)
