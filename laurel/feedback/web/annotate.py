"""What annotators see."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from laurel.feedback.web.security import Site, page


def routes(site: Site) -> list[BaseRoute]:
    """The annotators' pages."""
    return [Route("/", start)]


def start(request: Request) -> Response:
    """What this is."""
    return page(request, "start.html")
