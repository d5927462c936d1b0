"""Limits on connections that keep the server waiting.

Half a request has a time limit, the number of connections is bounded, and the log mentions it a few
times only.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""For a request's line and headers, from its first byte or from the connection's beginning."""
BODY_SECONDS, LEAST_RATE = 20.0, 10_000.0
"""For its body: so long, and a second more for so many bytes."""
BACKLOG = 64
SPARE = 96
"""Handles kept free for other uses than connections.

The database, files, sockets that were accepted and have no protocol yet.
"""
PER_SECOND = 2.0
"""Lines of the log of one kind, at most."""


def most_connections() -> int:
    """The number of connections that there are handles for.

    The process's limit is raised first, as far as the system allows it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    handles = 4096 if soft == resource.RLIM_INFINITY else min(soft, 4096)
    return max(16, handles - BACKLOG - SPARE)


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol with limits.

    Where all places are taken, the connection that has waited longest with half a request goes.
    """

    most: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A place is made if need be."""
        super().connection_made(transport)
        LimitedProtocol.most = LimitedProtocol.most or most_connections()
        self.timer: asyncio.TimerHandle | None = None
        self.part, self.since, self.received = "", 0.0, 0
        self._watch()
        if len(self.connections) > LimitedProtocol.most:
            waiting = [
                one
                for one in self.connections
                if isinstance(one, LimitedProtocol) and one.part and one is not self
            ]
            (min(waiting, key=lambda one: one.since) if waiting else self).drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        self.received += len(data)
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """A next request may come; uvicorn's own limit holds until its first byte."""
        super().on_response_complete()
        self._stop()

    def drop(self) -> None:
        """Close, without an answer: nobody asked a whole question."""
        self._stop()
        self.transport.abort()

    def _awaited(self) -> str:
        """The part of a request that the other side owes."""
        if self.cycle is None or self.cycle.response_complete:
            return "head"
        return "body" if self.cycle.more_body else ""

    def _watch(self) -> None:
        awaited, now = self._awaited(), self.loop.time()
        if awaited != self.part:
            self._stop()
            self.part, self.since, self.received = awaited, now, 0
        if awaited == "head" and self.timer is None:
            self.timer = self.loop.call_at(self.since + HEAD_SECONDS, self.drop)
        elif awaited == "body":
            if self.timer is not None:
                self.timer.cancel()
            self.timer = self.loop.call_at(
                self.since + BODY_SECONDS + self.received / LEAST_RATE, self.drop
            )

    def _stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer, self.part = None, ""


class RateLimit(logging.Filter):
    """Passes a few lines of each message a second, so that clients cannot fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Any, tuple[float, float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Is the line let through? A bucket of PER_SECOND lines for each message's form."""
        now = time.monotonic()
        key = (record.name, record.levelno, str(record.msg)[:100])
        left, at = self.seen.get(key, (PER_SECOND, now))
        left = min(PER_SECOND, left + (now - at) * PER_SECOND)
        fine = left >= 1
        if len(self.seen) > 1000:
            self.seen.clear()
        self.seen[key] = (left - fine, now)
        return fine


def limit_logs() -> None:
    """See `RateLimit`.

    Errors of accept() are asyncio's to say, bad requests uvicorn's, what breaks ours.
    """
    for name in ("uvicorn.error", "asyncio", "laurel_feedback"):
        logging.getLogger(name).addFilter(RateLimit())
