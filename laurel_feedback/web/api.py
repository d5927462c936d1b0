"""The interface for applications, at /api: comparisons, thumbs, and a page to embed."""

from __future__ import annotations

import math
from html import escape
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI, Form, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from laurel.core.errors import LaurelError, UsageError
from laurel_feedback.exchange import product
from laurel_feedback.store import accounts
from laurel_feedback.store.assign import Refused
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import ApiKey
from laurel_feedback.web.request_checks import unclean
from laurel_feedback.web.security import POLICY, environment
from laurel_feedback.web.text import render_text

LARGEST = 1_000_000
"""Bytes of a request."""
OF_KEY, OF_USER, OF_STRANGER = 3000, 120, 60
"""Limits of requests in a minute: by application, by one of its users, by address with a wrong key.
"""
FRAMED = {
    "Content-Security-Policy": POLICY.replace("frame-ancestors 'none'", "frame-ancestors *"),
    "X-Frame-Options": "ALLOWALL",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
"""Headers of the page that applications embed: every site may frame it."""
SPEAKERS = {"user": "You", "assistant": "Answer"}
"""Whose messages a page shows, and what it calls them."""
Text = Annotated[str, Field(max_length=200_000)]
User = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        description="an id that means nothing outside your application",
    ),
]


class Turn(BaseModel):
    """A message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text


class Candidate(BaseModel):
    """A response, and which model wrote it; that is stored and never shown."""

    model_config = ConfigDict(extra="forbid")
    text: Text
    model: Annotated[str, Field(max_length=200)] = ""


Prompt = (
    Annotated[Text, Field(min_length=1)]
    | Annotated[list[Turn], Field(min_length=1, max_length=1000)]
)
Spoken = Text | Candidate


class Question(BaseModel):
    """Two responses to compare."""

    model_config = ConfigDict(extra="forbid")
    prompt: Prompt
    responses: Annotated[list[Spoken], Field(min_length=2, max_length=2)]


class ShownComparison(BaseModel):
    """What to show: slot 0 is `responses[0]`."""

    id: str
    responses: list[str]


def exact(value: Any) -> Any:
    """A slot as a whole number or a word.

    1.0 and true are equal to 1 in Python, and are a mistake of the sender: they are refused.
    """
    if type(value) not in (int, str):
        raise ValueError('a choice is 0, 1 or "tie"')
    return value


class Choice(BaseModel):
    """The slot that was preferred as shown, or "tie"."""

    model_config = ConfigDict(extra="forbid")
    choice: Annotated[Literal[0, 1, "tie"], BeforeValidator(exact)]
    user: User


class Thumb(BaseModel):
    """An answer that was liked or not."""

    model_config = ConfigDict(extra="forbid")
    prompt: Prompt
    response: Spoken
    up: StrictBool
    user: User


class LinkRequest(BaseModel):
    """For whom a page is."""

    model_config = ConfigDict(extra="forbid")
    user: User


class Stored(BaseModel):
    """The answer is on disk. again: it was before; revision: which answer of this user it is."""

    stored: bool
    revision: int
    again: bool


class Link(BaseModel):
    """A page's address under this interface, for one answer until `expires` (Unix time)."""

    url: str
    expires: int


class Capped:
    """ASGI middleware: a request longer than LARGEST is refused before it is read whole."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more and len(body) <= LARGEST:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > LARGEST:
            response = JSONResponse(
                {"error": f"a request has at most {LARGEST:,} bytes.", "fix": "Send less."}, 413
            )
            await response(scope, receive, send)
            return
        if unclean(bytes(body)):
            what = "a text holds NUL, or half of a surrogate pair, which no database takes."
            await JSONResponse({"error": what, "fix": "Send Unicode text without them."}, 422)(
                scope, receive, send
            )
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, again, send)


PAGES = environment()
BEARER = HTTPBearer(auto_error=False, description="A key made by `laurel feedback key NAME`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
Again = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=200,
        description="The same key again is the same answer.",
    ),
]


router = APIRouter()


def make_api(store: Store) -> FastAPI:
    """The interface on a store, to be mounted at /api.

    Its description is at openapi.json, and as a page at its root.
    """
    api = FastAPI(
        title="laurel feedback",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        servers=[{"url": "/api"}],
    )
    api.state.store = store
    api.add_middleware(Capped)
    api.add_exception_handler(LaurelError, error_response)
    api.add_exception_handler(RequestValidationError, misshapen)
    api.add_exception_handler(HTTPException, unknown)
    api.add_exception_handler(Exception, broken)
    api.include_router(router)
    return api


def caller(request: Request, given: Credentials) -> ApiKey:
    """Whose key it is, within the limits."""
    store = request.app.state.store
    try:
        key = product.api_key_of_token(store, given.credentials if given else "")
    except Refused:
        accounts.count_attempt(
            store, f"api from {request.client.host if request.client else ''}", OF_STRANGER, 60
        )
        raise
    accounts.count_attempt(store, f"api key {key.id}", OF_KEY, 60)
    return key


Caller = Annotated[ApiKey, Depends(caller)]


def of_user(store: Store, key: ApiKey, user: str) -> None:
    """Within the limits of one user?"""
    accounts.count_attempt(
        store, f"api user {accounts.secret_digest(f'{key.id}|{user}')[:24]}", OF_USER, 60
    )


@router.post("/v1/comparisons", status_code=201)
def ask(request: Request, question: Question, key: Caller) -> ShownComparison:
    """Two responses become a comparison.

    Show them in the order that comes back, which is random and kept.
    """
    identity, texts = product.ask_comparison(
        request.app.state.store,
        key,
        prompt_of(question.prompt),
        [spoken(r) for r in question.responses],
    )
    return ShownComparison(id=identity, responses=texts)


@router.post("/v1/comparisons/{comparison}/choice")
def choose(
    request: Request, comparison: str, choice: Choice, key: Caller, again: Again = ""
) -> Stored:
    """Which slot the user preferred.

    A comparison is one user's; an answer without an Idempotency-Key cannot be changed later.
    """
    store = request.app.state.store
    of_user(store, key, choice.user)
    return Stored(
        **product.record_choice(store, key, comparison, choice.user, choice.choice, again)
    )


@router.post("/v1/thumbs")
def thumb(request: Request, thumb: Thumb, key: Caller, again: Again = "") -> Stored:
    """A user likes an answer or does not. To change it later, send another Idempotency-Key."""
    store = request.app.state.store
    of_user(store, key, thumb.user)
    return Stored(
        **product.record_thumb(
            store, key, prompt_of(thumb.prompt), spoken(thumb.response), thumb.up, thumb.user, again
        )
    )


@router.post("/v1/comparisons/{comparison}/page", status_code=201)
def link(request: Request, comparison: str, body: LinkRequest, key: Caller) -> Link:
    """The address of a page to embed, on which the user chooses; it takes one answer."""
    store = request.app.state.store
    of_user(store, key, body.user)
    product.shown_comparison(store, key, comparison, "", "")
    with store.read() as session:
        user = product.pseudonym_of(session, key, body.user)
    until = math.ceil(store.now() + product.PAGE_SECONDS)
    words = urlencode(
        {"user": user, "until": until, "signature": product.sign_link(key, comparison, user, until)}
    )
    return Link(url=f"/api/v1/comparisons/{comparison}/page?{words}", expires=until)


@router.get("/v1/comparisons/{comparison}/page", response_class=HTMLResponse)
def show(request: Request, comparison: str, user: str, until: int, signature: str) -> HTMLResponse:
    """The page. Loading it uses nothing up."""
    return page(request.app.state.store, comparison, user, until, signature)


@router.post(
    "/v1/comparisons/{comparison}/chosen", response_class=HTMLResponse, include_in_schema=False
)
def chosen(
    request: Request,
    comparison: str,
    user: Annotated[str, Form()],
    until: Annotated[int, Form()],
    signature: Annotated[str, Form()],
    choice: Annotated[Literal["0", "1", "tie"], Form()],
) -> HTMLResponse:
    """The page's form.

    The signature is what allows it, and the idempotency key: it takes one answer.
    """
    store = request.app.state.store
    key = product.key_that_signed(store, comparison, user, until, signature)
    of_user(store, key, user)
    if not product.shown_comparison(store, key, comparison, user, signature)[
        -1
    ]:  # going back and choosing anew changes nothing
        product.record_choice_as(
            store, key, comparison, user, choice if choice == "tie" else int(choice), signature
        )
    return page(store, comparison, user, until, signature)


@router.get("/", include_in_schema=False)
def index(request: Request) -> HTMLResponse:
    """What there is, to read."""
    return HTMLResponse(description(request.app.openapi()))


def page(store: Store, comparison: str, user: str, until: int, signature: str) -> HTMLResponse:
    """The question in a frame, or thanks where it is answered.

    System and tool messages are the application's, not for its users.
    """
    key = product.key_that_signed(store, comparison, user, until, signature)
    prompt, texts, answered = product.shown_comparison(store, key, comparison, user, signature)
    known = {
        "prompt": [
            (turn["role"], render_text(turn["content"]))
            for turn in prompt
            if turn["role"] in SPEAKERS
        ],
        "texts": [render_text(text) for text in texts],
        "answered": answered,
        "user": user,
        "until": until,
        "signature": signature,
        "speakers": SPEAKERS,
    }
    return HTMLResponse(PAGES.get_template("embed.html").render(known), headers=FRAMED)


def prompt_of(prompt: str | list[Turn]) -> Any:
    """The prompt as plain values."""
    return prompt if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]


def spoken(response: str | Candidate) -> tuple[str, str]:
    """(text, model)."""
    return (response, "") if isinstance(response, str) else (response.text, response.model)


def error_response(request: Request, error: Exception) -> JSONResponse:
    """A refusal as JSON: what is wrong and what to do."""
    assert isinstance(error, LaurelError)
    status = getattr(error, "status", 422 if isinstance(error, UsageError) else 500)
    headers = (
        {"Retry-After": "60"}
        if status == 429
        else {"WWW-Authenticate": "Bearer"}
        if status == 401
        else None
    )
    what = f"{error.where}: {error.what}" if error.where else error.what
    return JSONResponse({"error": what, "fix": error.fix}, status, headers)


def misshapen(request: Request, error: Exception) -> JSONResponse:
    """A request of the wrong shape as JSON; what was sent is not sent back."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    for fault in faults:
        if fault["type"] == "json_invalid":
            reason, at = fault.get("ctx", {}).get("error", "it cannot be read"), fault["loc"][-1]
            what = f"the body is not JSON: {reason}, at character {at}."
            return JSONResponse({"error": what, "fix": "Send one JSON object, in UTF-8."}, 422)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if (
        any(fault["loc"] == ("body",) for fault in faults)
        and kind != "application/json"
        and not kind.endswith("+json")
    ):
        what = (
            f"Content-Type: `{kind[:100]}` is not JSON."
            if kind
            else "the header Content-Type is missing."
        )
        return JSONResponse(
            {"error": what, "fix": "Send a JSON object with `Content-Type: application/json`."}, 415
        )
    details = "; ".join(
        f"{'.'.join(map(str, fault['loc'][1:] or fault['loc']))}: {fault['msg']}"
        for fault in faults[:5]
    )
    return JSONResponse(
        {
            "error": details or "not the shape that is expected.",
            "fix": "See /api/ for what is expected.",
        },
        422,
    )


def unknown(request: Request, error: Exception) -> JSONResponse:
    """An address or a method that is not there, as JSON."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow", "")
    details = {
        404: ("there is nothing at this address.", "See /api/ for what there is."),
        405: (
            f"this address does not take {request.method}.",
            f"Use {allowed}." if allowed else "See /api/ for what it takes.",
        ),
    }
    what, fix = details.get(
        error.status_code, (f"{error.detail}.", "See /api/ for what is expected.")
    )
    return JSONResponse({"error": what, "fix": fix}, error.status_code, error.headers)


def broken(request: Request, error: Exception) -> JSONResponse:
    """An error of ours, as JSON; the server's log has it."""
    what = "something broke on our side; what you sent may not be stored."
    return JSONResponse({"error": what, "fix": "Send it again with the same Idempotency-Key."}, 500)


def description(schema: dict[str, Any]) -> str:
    """The description of the interface as a plain page, without a script."""
    parts = []
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            body = (
                about.get("requestBody", {})
                .get("content", {})
                .get("application/json", {})
                .get("schema", {})
            )
            fields = _fields(schema, body.get("$ref", "").rpartition("/")[2])
            parts.append(
                f"<h2>{method.upper()} <code>/api{escape(path)}</code></h2>"
                f"<p>{escape(about.get('description', ''))}</p>{fields}"
            )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width">'
        '<title>The interface for applications</title><link rel="stylesheet"'
        ' href="/static/style.css"></head><body><main>'
        "<h1>The interface for applications</h1><p>Every request but a page carries"
        " <code>Authorization: Bearer KEY</code>; keys are made "
        "by <code>laurel feedback key NAME</code>. Answers are stored when a request has succeeded;"
        " after a failure send it again with "
        "the same <code>Idempotency-Key</code>. For programs: <a"
        ' href="/api/openapi.json">openapi.json</a>.</p>'
        f"{''.join(parts)}</main></body></html>"
    )


def _fields(schema: dict[str, Any], name: str) -> str:
    """A table of the fields of a body."""
    about = schema.get("components", {}).get("schemas", {}).get(name)
    if not about:
        return ""
    needed = about.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{'needed' if field in needed else ''}</td>"
        f"<td>{escape(_kind(value))}</td></tr>"
        for field, value in about.get("properties", {}).items()
    )
    head = "<tr><th>field</th><th></th><th>kind</th></tr>"
    return f"<p>{escape(about.get('description', ''))}</p><table>{head}{rows}</table>"


def _kind(value: dict[str, Any]) -> str:
    """A field's type in words."""
    if "anyOf" in value:
        return " or ".join(_kind(one) for one in value["anyOf"])
    if "enum" in value:
        return " or ".join(map(str, value["enum"]))
    if value.get("type") == "array":
        return f"list of {_kind(value.get('items', {}))}"
    names = {"string": "text", "boolean": "true or false"}
    reference = str(value.get("$ref", "")).rpartition("/")[2].lower()
    return names.get(str(value.get("type", "")), reference)
