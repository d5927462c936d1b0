"""The web application: static files, the coordinators' login, and the routers of all pages."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from laurel.core.errors import LaurelError, UsageError
from laurel_feedback.store import accounts, admin_login
from laurel_feedback.store.database import Store
from laurel_feedback.web import admin_batches, annotate, security
from laurel_feedback.web.api import make_api
from laurel_feedback.web.security import (
    HERE,
    Guard,
    Limits,
    Site,
    error_page,
    failing,
    form_of,
    log_in,
    log_out,
    page,
    set_cookie,
)


def create_app(
    store: Store,
    *,
    public_url: str = "http://127.0.0.1:8000",
    support: str = "",
    limits: Limits | None = None,
) -> Starlette:
    """The application on a store; as many processes as wanted may serve it at once.

    public_url: the address that browsers use; with https cookies are Secure. support: a line for
    annotators about where to find help.
    """
    site = Site(store, address_of(public_url), support, limits or Limits())
    routes: list[BaseRoute] = [
        Mount("/static", StaticFiles(directory=HERE / "static"), name="static"),
        Route("/admin/login", login_page, methods=["GET"]),
        Route("/admin/login", login, methods=["POST"]),
        Route("/enter/{token}", enter_page, methods=["GET"]),
        Route("/enter/{token}", enter, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
        *annotate.routes(site),
        *admin_batches.routes(site),
        Mount("/api", make_api(store)),
    ]
    handlers = {LaurelError: error_page, HTTPException: error_page}
    app = Starlette(
        routes=routes, middleware=[Middleware(Guard, site=site)], exception_handlers=handlers
    )  # type: ignore[arg-type]
    app.state.site = site
    return app


def address_of(url: str) -> str:
    """An address as browsers use it, without the slash at its end; refused where it is none."""
    try:
        parts = urlsplit(url)
        whole = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and (parts.port or True)
            and not {*url} & set(" ?#\n\t")
        )
    except ValueError:
        whole = False
    if not whole:
        raise UsageError(
            f"`{url}` is not an address.",
            where="public_url",
            fix="Give http://HOST:PORT or https://HOST.",
        )
    return url.rstrip("/")


def login_page(request: Request) -> Response:
    """Name and password."""
    if request.state.who and request.state.who.admin:
        return RedirectResponse("/admin", 303)
    return page(request, "login.html", wrong="")


def login(request: Request) -> Response:
    """A coordinator comes in.

    Failures are limited: of a browser that was in before by itself, so that nobody else can keep it
    out.
    """
    site, form = request.app.state.site, form_of(request)
    name = str(form.get("name", ""))[:200]
    known = admin_login.known_device(
        site.store, name, request.cookies.get(site.cookie("laurel-device"), "")
    )
    if known:
        most = {f"login by {known}": site.limits.login}
    else:
        from_here = f"login from {security.address_of(request)}"
        most = {
            from_here: site.limits.login,
            f"login as {accounts.secret_digest(name)[:24]}": site.limits.name,
        }
    try:
        with failing(request, most):
            cookie = accounts.log_in_admin(site.store, name, str(form.get("password", ""))[:1000])
    except accounts.Refused as error:
        if error.status != 403:
            raise
        return page(request, "login.html", status=error.status, wrong=error.what)
    return let_in(request, name, cookie)


def let_in(request: Request, name: str, cookie: str) -> Response:
    """To the coordinators' pages, and the browser is known from now on."""
    site = request.app.state.site
    response = log_in(request, cookie, "/admin", accounts.ADMIN_HOURS)
    set_cookie(
        response,
        site,
        "laurel-device",
        admin_login.device_token(site.store, name),
        24 * admin_login.DEVICE_DAYS,
    )
    return response


def enter_page(request: Request) -> Response:
    """A button; looking at the page uses nothing up."""
    return page(
        request,
        "enter.html",
        token=request.path_params["token"],
        minutes=round(admin_login.LINK_MINUTES),
    )


def enter(request: Request) -> Response:
    """A link that was made on the server becomes a session."""
    site = request.app.state.site
    with failing(request, {f"link from {security.address_of(request)}": site.limits.token}):
        name, cookie = admin_login.redeem_login_link(site.store, request.path_params["token"][:200])
    return let_in(request, name, cookie)


def logout(request: Request) -> Response:
    """The session ends in the database, and what the browser keeps of it goes."""
    log_out(request)
    response = RedirectResponse("/", 303)
    site = request.app.state.site
    response.delete_cookie(
        site.cookie(), path="/", secure=site.secure, httponly=True, samesite="lax"
    )
    response.headers["Clear-Site-Data"] = '"storage"'
    return response
