"""Around every request: session, token against forgery, security headers, errors as pages."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from laurel.core.errors import LaurelError
from laurel_feedback.store import accounts
from laurel_feedback.store.assign import Refused
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Admin, Annotator
from laurel_feedback.web.request_checks import clean_form, log_broken
from laurel_feedback.web.text import name_odd_characters

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On every response; one that sets a header itself keeps its own."""
LARGEST, LARGEST_ADMIN = 2_000_000, 200_000_000
"""Bytes of a form: an annotator's, a coordinator's."""


@dataclass(frozen=True)
class Limits:
    """Limits in a minute.

    Failed logins and failed invitations or codes from an address, failed logins under a name from
    browsers that are not known, and answers of a session and from an address. What succeeds counts
    only among answers.
    """

    login: int = 10
    name: int = 300
    token: int = 60
    answer: int = 120
    answer_address: int = 6000


def environment() -> jinja2.Environment:
    """Templates: everything is escaped.

    `name_odd_characters` names the characters that are not seen, for short texts of others.
    """
    loader = jinja2.FileSystemLoader(HERE / "templates")
    made = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["bare"] = lambda text: name_odd_characters(str(text))
    return made


@dataclass(frozen=True)
class Site:
    """What every handler needs: `request.app.state.site`.

    It holds nothing that changes, so that many processes may serve.
    """

    store: Store
    public_url: str
    support: str = ""
    """Text for annotators about where to find help."""
    limits: Limits = field(default_factory=Limits)
    templates: jinja2.Environment = field(default_factory=environment)

    @property
    def secure(self) -> bool:
        """Do browsers come by https?"""
        return self.public_url.startswith("https:")

    def cookie(self, name: str = "laurel") -> str:
        """A cookie's name.

        `__Host-` ties it to this very host, which browsers grant to https only.
        """
        return f"__Host-{name}" if self.secure else name


class Guard:
    """ASGI middleware.

    `request.state` gets `who` (a `accounts.CurrentLogin` or None), `csrf` and, of a POST
    that is our own, `form`.
    """

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self.app, self.site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                add_headers(MutableHeaders(scope=message))
            await send(message)

        try:
            await self._answer(scope, receive, send_with_headers)
        except (
            Exception
        ) as error:  # the server would log it with its message, which can quote what people wrote
            log_broken(error, scope["method"])
            if not begun:
                response = await run_in_threadpool(
                    internal_error_page, Request(scope, receive), error, self.site
                )
                await response(scope, receive, send_with_headers)

    async def _answer(self, scope: Scope, receive: Receive, send_with_headers: Send) -> None:
        path, request = scope["path"], Request(scope, receive)
        if "\0" in path or b"%00" in scope.get("query_string", b""):
            response = await run_in_threadpool(error_page, request, HTTPException(404), self.site)
            await response(scope, receive, send_with_headers)
            return
        if path.startswith(("/api/", "/static/")) or path == "/api":
            await self.app(scope, receive, send_with_headers)  # no cookie counts there
            return
        try:
            await self._check(request)
        except ClientDisconnect:
            return  # nobody is there to be answered
        except (LaurelError, HTTPException) as error:
            response = await run_in_threadpool(error_page, request, error, self.site)
            await response(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    async def _check(self, request: Request) -> None:
        """Find the session.

        Of a request that changes something, check where it comes from and its token.
        """
        state, cookie = request.state, request.cookies.get(self.site.cookie(), "")
        state.who = (
            await run_in_threadpool(accounts.session_of, self.site.store, cookie)
            if cookie
            else None
        )
        early = request.cookies.get(self.site.cookie("laurel-form"), "")
        state.early = early or secrets.token_urlsafe(24)
        state.csrf = state.who.csrf if state.who else accounts.secret_digest(f"form {state.early}")
        state.form = FormData()
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return
        check_origin(request, self.site)
        most = LARGEST_ADMIN if state.who and state.who.admin else LARGEST
        state.form = await read_form(request, most)
        given = str(state.form.get("csrf", ""))
        if not (state.who or early) or not hmac.compare_digest(given.encode(), state.csrf.encode()):
            fix = (
                "Go back, load the page again and send it once more. If you were logged out, log in"
                " first."
            )
            raise Refused(
                "this form is not of your present session; nothing was changed.",
                status=403,
                fix=fix,
            )


def add_headers(headers: MutableHeaders) -> None:
    """See `HEADERS`."""
    for name, value in HEADERS.items():
        headers.setdefault(name, value)


def check_origin(request: Request, site: Site) -> None:
    """Refused where the browser says that another site sent the form.

    Both headers count; "null" is what no-referrer makes of ours.
    """
    fetch, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "null")
    ours = {urlsplit(site.public_url).netloc, request.headers.get("host", "")}
    try:
        sender = urlsplit(origin).netloc
    except ValueError:  # no address at all
        sender = ""
    if fetch not in (None, "same-origin", "none") or (origin != "null" and sender not in ours):
        raise Refused(
            "this form was sent by another site; nothing was changed.",
            status=403,
            fix="Use the pages of this site.",
        )


async def read_form(request: Request, most: int) -> FormData:
    """The form, once it is known to be no longer than `most` bytes."""
    if not request.headers.get("content-type", "").startswith(
        ("application/x-www-form-urlencoded", "multipart/form-data")
    ):
        raise Refused(
            "this is not a form.", status=415, fix="Send application/x-www-form-urlencoded."
        )
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Refused(
                f"the form is longer than {most:,} bytes; nothing was changed.",
                status=413,
                fix="Send less.",
            )

    async def receive() -> Message:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    try:
        return clean_form(await Request(request.scope, receive).form(max_part_size=most))
    except (
        LookupError,
        ValueError,
    ) as error:  # a character set that there is not, text that is not in it
        raise Refused(
            "this form cannot be read; nothing was changed.", status=400, fix="Send it as UTF-8."
        ) from error


def form_of(request: Request) -> FormData:
    """The fields of a POST.

    The guard has checked its token and its origin before any handler is called.
    """
    return request.state.form


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
    """A page of a template.

    It finds `csrf`, `who`, `pseudonym`, `admin` and `site` beside what it is given.
    """
    return _page(request, request.app.state.site, template, status, context)


def _page(
    request: Request, site: Site, template: str, status: int, context: dict[str, Any]
) -> Response:
    state = request.state
    who, csrf, name = (
        getattr(state, "who", None),
        getattr(state, "csrf", ""),
        {"pseudonym": "", "admin": ""},
    )
    if who is not None:
        with site.store.read() as session:
            if who.annotator is not None:
                name["pseudonym"] = session.get_one(Annotator, who.annotator).pseudonym
            if who.admin is not None:
                name["admin"] = session.get_one(Admin, who.admin).name
    given = {
        "csrf": csrf,
        "who": who,
        "site": site,
        "path": request.url.path,
        "script": "annotate.js" if name["pseudonym"] else "",
        **name,
        **context,
    }
    response = HTMLResponse(site.templates.get_template(template).render(given), status_code=status)
    if who is None and hasattr(state, "early"):
        set_cookie(response, site, "laurel-form", state.early)
    return response


def set_cookie(
    response: Response, site: Site, name: str, value: str, hours: float | None = None
) -> None:
    """A cookie that scripts do not see and other sites do not send. hours: how long it is kept.

    None: until the browser closes.
    """
    age = None if hours is None else round(3600 * hours)
    response.set_cookie(
        site.cookie(name),
        value,
        max_age=age,
        httponly=True,
        samesite="lax",
        secure=site.secure,
        path="/",
    )


def log_in(
    request: Request, cookie: str, to: str, hours: float = accounts.SESSION_HOURS
) -> Response:
    """Go to a page as whom the new session's cookie says, which is kept as long as the session.

    The one before it, if any, ends.
    """
    site = request.app.state.site
    log_out(request)
    response = RedirectResponse(to, 303)
    set_cookie(response, site, "laurel", cookie, hours)
    response.delete_cookie(
        site.cookie("laurel-form"), path="/", secure=site.secure, httponly=True, samesite="lax"
    )
    return response


def log_out(request: Request) -> None:
    """End the request's session in the database: a copy of its cookie is worth nothing."""
    site = request.app.state.site
    old = request.cookies.get(site.cookie(), "")
    if old:
        accounts.end_session(site.store, old)


def require_annotator(request: Request) -> Annotator:
    """Who rates.

    Refused without an annotator's session; the state (invited, active, ...) is the handler's to
    look at.
    """
    who = request.state.who
    if who is None or who.annotator is None:
        fix = (
            "Come back in with your code, or open your invitation. If both are gone, ask the"
            " coordinator: your answers are kept."
        )
        raise Refused("you are not logged in.", status=403, fix=fix)
    with request.app.state.site.store.read() as session:
        return session.get_one(Annotator, who.annotator)


def require_admin(request: Request) -> Admin:
    """The coordinator.

    Without a coordinator's session a page goes to the login, and a form is refused.
    """
    who = request.state.who
    if who is None or who.admin is None:
        if request.method == "GET" and who is None:
            raise HTTPException(303, headers={"Location": "/admin/login"})
        raise Refused(
            "this page is for coordinators.", status=403, fix="Log in as one at /admin/login."
        )
    with request.app.state.site.store.read() as session:
        return session.get_one(Admin, who.admin)


def address_of(request: Request) -> str:
    """Who asks, as far as the network says; behind a proxy that is trusted, what that says."""
    return request.client.host if request.client else ""


@contextmanager
def failing(request: Request, most: dict[str, int]) -> Iterator[None]:
    """A try that counts for its keys if it fails.

    Beyond so many failures in a minute it is Refused with 429.
    """
    with accounts.failures(request.app.state.site.store, most, 60.0):
        yield


def limited(request: Request, what: str, most: int, address: int = 0) -> None:
    """Note a try.

    Refused with 429 beyond `most` a minute for the session, and beyond `address` (by default the
    same) for the address.
    """
    store = request.app.state.site.store
    keys = {f"{what} from {address_of(request)}": address or most}
    if request.state.who is not None:
        keys[f"{what} by {accounts.secret_digest(request.state.csrf)[:24]}"] = most
    accounts.count_attempts(store, keys, 60.0)


def wants_json(request: Request) -> bool:
    """Does a script ask?"""
    return "application/json" in request.headers.get("accept", "")


def error_page(request: Request, error: Exception, site: Site | None = None) -> Response:
    """What went wrong and what to do, as a page, or as JSON where a script asks."""
    served: Site = site or request.app.state.site
    if isinstance(error, HTTPException):
        if error.status_code in (301, 302, 303, 307):
            return Response(status_code=error.status_code, headers=error.headers)
        known = {
            404: ("there is no such page.", "Go to the start page."),
            405: ("this page does not take that.", "Go back."),
        }
        (what, fix), where, status = (
            known.get(error.status_code, (f"{error.detail}.", "Go back.")),
            "",
            error.status_code,
        )
    elif isinstance(error, LaurelError):
        what, where, fix, status = error.what, error.where, error.fix, getattr(error, "status", 422)
    else:
        what, where, status = "something broke on our side.", "", 500
        fix = (
            "What you sent may not be saved: go back and send it again. If this stays, tell the"
            " coordinator."
        )
    if wants_json(request):
        return JSONResponse({"error": f"{where}: {what}" if where else what, "fix": fix}, status)
    what = what[:1].upper() + what[1:]
    lost = status == 403 and getattr(request.state, "who", None) is None
    response = _page(
        request,
        served,
        "error.html",
        status,
        {"what": what, "fix": fix, "status": status, "lost": lost},
    )
    if status == 429:
        response.headers["Retry-After"] = "60"
    return response


def internal_error_page(request: Request, error: Exception, site: Site) -> Response:
    """An error of ours. The page asks the database nothing."""
    request.state.who = None
    return error_page(request, error, site)
