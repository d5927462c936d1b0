"""From the sampling thread to whoever asked: events, lines of a stream, clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from laurel.model.policy import Policy
from laurel.serve.admin import Server
from laurel.serve.engine import Done, Event, Failure
from laurel.serve.prepare import PreparedRequest, score_prompt
from laurel.serve.responses import ResponseBuilder, TextStream

Result = TypeVar("Result")
END = b"data: [DONE]\n\n"


@dataclass(eq=False)
class EventQueue:
    """The events of a request, on their way from the sampling thread to the loop."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[list[Event]] = field(default_factory=asyncio.Queue[list[Event]])

    def put(self, events: list[Event]) -> None:
        """Called in the sampling thread."""
        # the loop is closed once the server has ended, and nobody reads any more
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.queue.put_nowait, events)

    async def next(self) -> list[Event]:
        """The next events; a failure is raised."""
        events = await self.queue.get()
        for event in events:
            if isinstance(event, Failure):
                raise event.error
        return events


async def logprobs_of_prompts(
    server: Server, policy: Policy, asked: PreparedRequest
) -> list[Any] | None:
    """Log-probabilities of the prompts' tokens, where they are asked for."""
    body = asked.body
    if body.prompt_logprobs is None and not (body.echo and asked.logprobs is not None):
        return None
    top = max(body.prompt_logprobs or 0, asked.logprobs or 0)
    return await server.between_tokens(
        lambda: [score_prompt(policy, ids, top) for ids in asked.prompts]
    )


async def all_choices(events: EventQueue, count: int) -> list[Done]:
    """Every choice of a request, in order."""
    found: dict[int, Done] = {}
    while len(found) < count:
        for event in await events.next():
            if isinstance(event, Done):
                found[event.choice] = event
    return [found[index] for index in range(count)]


async def until_disconnected(request: Request, work: Awaitable[Result]) -> Result | None:
    """What is awaited; None as soon as the client has gone away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, gone):
            one.cancel()


async def disconnected(request: Request) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def last_of(answer: ResponseBuilder, done: Done, stream: TextStream) -> dict[str, Any]:
    """The last chunk of a choice, with the rest of its text and its tokens."""
    text, _ = answer.text_of(done.completion)
    sent = len(stream.ids)
    return answer.last_piece(done, stream.end(text), sent)


def event_line(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
