"""The web application: its frame, the static files, the coordinators' login, and the pages and interfaces that hang in it."""

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
from laurel.feedback import people
from laurel.feedback.store import Store
from laurel.feedback.web import annotate, coordinate
from laurel.feedback.web.api import make_api
from laurel.feedback.web.security import HERE, Guard, Limits, Site, broken, error_page, form_of, limited, log_in, log_out, page


def create_app(store: Store, *, public_url: str = "http://127.0.0.1:8000", support: str = "", limits: Limits | None = None) -> Starlette:
    """The application on a store; as many processes as wanted may serve it at once.

    public_url: the address that browsers use; with https cookies are Secure. support: a line for annotators about where to find help.
    """
    site = Site(store, address_of(public_url), support, limits or Limits())
    routes: list[BaseRoute] = [
        Mount("/static", StaticFiles(directory=HERE / "static"), name="static"),
        Route("/admin/login", login_page, methods=["GET"]),
        Route("/admin/login", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
        *annotate.routes(site),
        *coordinate.routes(site),
        Mount("/api", make_api(store)),
    ]
    handlers = {LaurelError: error_page, HTTPException: error_page, Exception: broken}
    app = Starlette(routes=routes, middleware=[Middleware(Guard, site=site)], exception_handlers=handlers)  # type: ignore[arg-type]
    app.state.site = site
    return app


def address_of(url: str) -> str:
    """An address as browsers use it, without the slash at its end; refused where it is none."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True) and not {*url} & set(" ?#\n\t")
    except ValueError:
        whole = False
    if not whole:
        raise UsageError(f"`{url}` is not an address.", where="public_url", fix="Give http://HOST:PORT or https://HOST.")
    return url.rstrip("/")


def login_page(request: Request) -> Response:
    """Name and password."""
    if request.state.who and request.state.who.admin:
        return RedirectResponse("/admin", 303)
    return page(request, "login.html", wrong="")


def login(request: Request) -> Response:
    """A coordinator comes in; the tries are limited."""
    site, form = request.app.state.site, form_of(request)
    name = str(form.get("name", ""))[:200]
    limited(request, "login", site.limits.login)
    people.limit(site.store, f"login as {people.digest_of(name)[:24]}", 3 * site.limits.login, 60.0)
    try:
        cookie = people.admit(site.store, name, str(form.get("password", ""))[:1000])
    except people.Refused as error:
        return page(request, "login.html", status=error.status, wrong=error.what)
    return log_in(request, cookie, "/admin")


def logout(request: Request) -> Response:
    """The session ends in the database, and what the browser keeps of it goes."""
    log_out(request)
    response = RedirectResponse("/", 303)
    site = request.app.state.site
    response.delete_cookie(site.cookie(), path="/", secure=site.secure, httponly=True, samesite="lax")
    response.headers["Clear-Site-Data"] = '"storage"'
    return response
