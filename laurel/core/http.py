"""JSON over HTTP to servers, with a deadline on every call as a whole.

A limit on each read alone would not do: a server that sends a byte now and then never trips it. So
all calls run in one event loop, in a thread of its own, where a deadline ends a call wherever it
stands: in connecting, in writing, between two bytes of an answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from laurel.core.errors import LaurelError, UsageError

Answer = TypeVar("Answer")
KEY = "LAUREL_API_KEY"
"""The environment variable with the servers' API key: a key in an option would be saved."""
CONNECT = 10.0
"""Seconds that a connection may take at most."""
TRIES = 3
"""How often a call is made of which the connection breaks, or the answer is no JSON."""
PAUSES = (0.25, 1.0)
"""Seconds before the second try and the third; one who says it is busy is asked as often again."""
ROOM = 8 << 20
"""Bytes that an answer may have, beside those of the tokens that it was asked for."""
BUSY = (429, 503)
BROKEN = (500, 502, 504)


class ServerDown(LaurelError):
    """A server does not answer, or not in JSON: another one may take its place.

    lives: it answered, if with a failure of its own.
    """

    lives = False


class ServerTimeout(ServerDown):
    """A server that did not answer before the deadline: it is not asked once more."""


class ServerBusy(ServerDown):
    """A server that asks to be asked later. `after`: in so many seconds, if it says."""

    after = 0.0


class ServerRefusal(LaurelError):
    """A server answers that it will not do what it was asked for. `status`: as HTTP has it."""

    status = 400


def refusal(status: int, what: str, where: str) -> ServerRefusal:
    """The refusal with this status."""
    error = ServerRefusal(what, where=where)
    error.status = status
    return error


def check_urls(urls: list[str], option: str) -> tuple[str, ...]:
    """The addresses of servers, without a slash or `/v1` at their ends; else a UsageError.

    option: what they are the value of, for errors.
    """
    found: list[str] = []
    for url in urls:
        parts = urlsplit(url.strip())
        where = f"{option}={url}"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            fix = "Give the whole of it, such as http://127.0.0.1:8000."
            raise UsageError("this is no address of a server.", where=where, fix=fix)
        if parts.username or parts.password or parts.query or parts.fragment:
            what = "an address has a host, a port and perhaps a path."
            fix = f"A key stands in the environment variable {KEY}: options are saved."
            raise UsageError(what, where=f"{option}={parts.hostname}", fix=fix)
        found.append(url.strip().rstrip("/").removesuffix("/v1"))
    if twice := sorted({url for url in found if found.count(url) > 1}):
        raise UsageError("this server is named twice.", where=f"{option}={twice[0]}")
    return tuple(found)


class Wire:
    """The event loop in its thread, and the connections, which are kept between calls.

    longer: how a user gives servers more time, for errors. key: the environment variable with
    their API key.
    """

    def __init__(self, longer: str = "", key: str = KEY) -> None:
        self.longer = longer
        self.key = key
        self.loop = asyncio.new_event_loop()
        self.client: Any = None
        self.closed = False
        # a daemon: a program that ends waits for no server
        threading.Thread(target=self.loop.run_forever, name="laurel-engine", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """What the work returns, which has its own deadlines; an interrupt here cancels it."""
        if self.closed:
            work.close()
            raise LaurelError("the connections to the servers have ended.", where="engine")
        ended = threading.Event()

        async def watched() -> Answer:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            # what was begun on a server is put right before the program goes on, or ends
            ended.wait(CONNECT)
            raise

    def close(self) -> None:
        """Close the connections and end the thread."""
        if self.closed:
            return
        if self.client is not None:
            self.run(asyncio.wait_for(self.client.aclose(), CONNECT))
        self.closed = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def call(
        self,
        url: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float,
        room: int = ROOM,
        plain: bool = False,
    ) -> Any:
        """What a server answers to GET, or to POST of `body`: read as JSON, None where it is empty.

        seconds: for all tries together. room: bytes that the answer may have. plain: it is a text
        for people, which is not read.

        Errors: ServerTimeout, ServerDown, ServerRefusal. All name the server.
        """
        where = f"{url}{path}"
        try:
            async with asyncio.timeout(seconds):
                return await self._try(url, path, body, room, plain)
        except TimeoutError:
            what = f"no answer within {seconds:g} seconds."
            fix = f"Is it overloaded, or stuck? {self.longer}".rstrip()
            raise ServerTimeout(what, where=where, fix=fix) from None

    async def _try(
        self, url: str, path: str, body: Mapping[str, Any] | None, room: int, plain: bool
    ) -> Any:
        """One call, made again where that may help; the caller's deadline bounds it."""
        broken = 0
        while True:
            try:
                status, data, after = await self._once(url + path, body, room)
                check_status(status, data, url + path, after, self.key)
                return None if plain else read_answer(data, url + path)
            except ServerDown as error:
                if isinstance(error, ServerBusy):
                    await asyncio.sleep(max(error.after, PAUSES[-1]))
                    continue
                broken += 1
                if broken >= TRIES:
                    raise
                await asyncio.sleep(PAUSES[broken - 1])

    async def _once(
        self, address: str, body: Mapping[str, Any] | None, room: int
    ) -> tuple[int, bytes, float]:
        """The status and the bytes of one answer, and in how many seconds to ask again."""
        import httpx2

        if self.client is None:
            self.client = make_client(self.key)
        content = None if body is None else json.dumps(body).encode()
        data = bytearray()
        try:
            method = "GET" if body is None else "POST"
            async with self.client.stream(method, address, content=content) as response:
                async for part in response.aiter_raw():
                    data += part
                    if len(data) > room:
                        what = f"its answer is longer than {room} bytes."
                        raise ServerDown(what, where=address)
                after = seconds_of(response.headers.get("retry-after"))
                return response.status_code, bytes(data), after
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            what = f"the connection failed: {reason}."
            raise ServerDown(what, where=address, fix="Does a server run there?") from None


def make_client(variable: str = KEY) -> Any:
    """A client that keeps connections, follows nothing, and goes straight to the server.

    variable: the environment variable with the servers' API key.
    """
    import httpx2

    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    if key := os.environ.get(variable):
        headers["authorization"] = f"Bearer {key}"
    return httpx2.AsyncClient(
        headers=headers,
        # the deadline of a whole call stands in `Wire.call`
        timeout=httpx2.Timeout(None, connect=CONNECT),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
        trust_env=False,
    )


def seconds_of(header: str | None) -> float:
    """The seconds of `Retry-After`; 0 without one, and for a date, which says less than a second
    try does.
    """
    text = (header or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


def check_status(status: int, data: bytes, where: str, after: float = 0.0, key: str = KEY) -> None:
    """The error that the status of an answer is, if it is one."""
    if status in BUSY:
        error = ServerBusy(f"it is busy (HTTP {status}): {said(data)}", where=where)
        error.after = after
        raise error
    if status in BROKEN:
        broken = ServerDown(f"it failed (HTTP {status}): {said(data)}", where=where)
        # the others are a gateway's words about a server behind it
        broken.lives = status == 500
        raise broken
    if status == 401:
        fix = f"Its API key is read from the environment variable {key}."
        raise UsageError(f"it refuses (HTTP {status}): {said(data)}", where=where, fix=fix)
    if status // 100 != 2:
        raise refusal(status, f"it refuses (HTTP {status}): {said(data)}", where)


def read_answer(data: bytes, where: str) -> Any:
    """The JSON of an answer; None of an empty one."""
    if not data.strip():
        return None
    try:
        return json.loads(data)
    # nested too deep for Python is no answer either
    except (ValueError, RecursionError):
        what = f"its answer is no JSON: {said(data)}"
        raise ServerDown(what, where=where) from None


def said(data: bytes) -> str:
    """What an answer says, on one line: an error's message where it has one."""
    text = data[:2000].decode("utf-8", "replace")
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    while isinstance(found, dict):
        fields = cast("dict[str, Any]", found)
        found = fields.get("error", fields.get("detail", fields.get("message")))
        text = str(found) if found is not None else text
    line = " ".join(text.split())
    shown = "".join(letter if letter.isprintable() else "?" for letter in line)
    return (shown[:300] or "nothing").rstrip(".") + "."
