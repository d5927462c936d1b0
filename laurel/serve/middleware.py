"""What stands before every route: whose request it is, how large, and how errors are told."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from laurel.serve.engine import Refused

Body = TypeVar("Body", bound=BaseModel)
OPEN = ("/health", "/ping")
"""Routes that ask for no key: who looks whether a server lives has none."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Refuses requests without the key, from pages of other sites, and bodies over the limit.

    key: "" where none is asked for. hosts: names that the Host header may have; empty: any.
    seconds: that a body may take to arrive.
    """

    def __init__(
        self, app: ASGIApp, *, key: str, hosts: tuple[str, ...], most: int, seconds: float = 60.0
    ) -> None:
        self.app = app
        self.key = key.encode()
        self.hosts = hosts
        self.most = most
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self.refusal(scope["path"], headers)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        await self.app(scope, self.bounded(receive), send)

    def refusal(self, path: str, headers: dict[bytes, bytes]) -> Refused | None:
        """Why a request is not let in, from its headers alone."""
        host = host_name(headers.get(b"host", b""))
        if self.hosts and host not in self.hosts:
            # a page of another site that has its name point here would come with that name
            return Refused("this server has another name.", status=421)
        origin = headers.get(b"origin")
        if origin is not None and host_name(origin.partition(b"://")[2]) != host:
            what = "pages of other sites may not ask this server."
            return Refused(what, status=403, kind="permission_error")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.most:
            return too_large(self.most)
        given = headers.get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        known = hmac.compare_digest(token.strip(), self.key) and scheme.lower() == b"bearer"
        if self.key and not known and path not in OPEN:
            what = "the API key is missing or wrong (Authorization: Bearer KEY)."
            return Refused(what, status=401, kind="authentication_error")
        return None

    def bounded(self, receive: Receive) -> Receive:
        """The same messages; Refused where a body is longer than it may be, or never comes."""
        seen, complete = 0, False

        async def receive_some() -> Message:
            nonlocal seen, complete
            # behind its body a connection is silent for as long as the answer takes
            limit = None if complete else self.seconds
            try:
                message = await asyncio.wait_for(receive(), limit)
            except TimeoutError:
                what = f"the body did not arrive within {self.seconds:g} s."
                raise Refused(what, status=408, kind="timeout_error") from None
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if seen > self.most:
                    raise too_large(self.most)
            return message

        return receive_some


def too_large(most: int) -> Refused:
    """The refusal of a body over the limit."""
    return Refused(f"the body is larger than {most} bytes.", status=413)


def host_name(value: bytes) -> str:
    """The name in a Host header or an origin, without its port and brackets."""
    text = value.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The body of a request as a `kind`; Refused with the name of the field that is wrong.

    Parsed outside of Python: neither depth nor bytes that are no UTF-8 can break it.
    """
    raw = await request.body()
    try:
        return kind.model_validate_json(raw or b"{}")
    except ValidationError as error:
        raise refused_field(error) from None


def refused_field(error: ValidationError) -> Refused:
    """The first thing that is wrong with a body."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = min(errors, key=lambda one: -len(one["loc"])) if errors else {"loc": (), "msg": ""}
    field = ".".join(str(part) for part in first["loc"][:3])
    if first.get("type") == "extra_forbidden":
        return Refused(f"`{field}` is not a field that this server knows.", param=field)
    what = f"{first['msg']}"[:300]
    return Refused(f"`{field}`: {what}." if field else f"{what}.", param=field or None)


def error_response(error: Refused) -> Response:
    """An error in OpenAI's shape."""
    headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_object(error), error.status, headers)


def error_object(error: Refused) -> dict[str, Any]:
    """What OpenAI's clients read of an error."""
    told = {
        "message": error.what,
        "type": error.kind,
        "param": error.param,
        "code": error.status,
    }
    # a text from a request may hold half a character, which is no UTF-8
    json.dumps(told, ensure_ascii=True)
    told["message"] = error.what.encode("utf-8", "replace").decode()
    return {"error": told}


async def exception_response(request: Request, error: Exception) -> Response:
    """The answer to a request that failed."""
    request.app.state.server.engine.metrics.refused += 1
    if isinstance(error, Refused):
        return error_response(error)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return error_response(
        Refused("the server failed; its log says how.", status=500, kind="server_error")
    )


async def http_error_response(request: Request, error: Any) -> Response:
    """A route or method that is not there."""
    request.app.state.server.engine.metrics.refused += 1
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    what = f"{request.method} {request.url.path[:200]}: {error.detail}."
    return error_response(Refused(what, status=error.status_code, kind=kind))
