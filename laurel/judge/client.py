"""Questions to one server: bounded in number, paced, asked again where that may help, and kept.

A question ends in an answer or in an `error` with its reason; nothing waits without an end. A
server that is down is waited for, once for all questions, for `patience` seconds; then the run ends
with an error, and what was answered is in the cache. So does it where one refuses whoever asks.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from laurel.core.errors import LaurelError
from laurel.core.http import ServerDown, ServerRefusal, Wire
from laurel.judge.cache import Cache, cache_key
from laurel.judge.options import JudgeConfig
from laurel.judge.reading import without_halves

PROBE = 5.0
"""Seconds in which a server that lives says so."""
OWN_FAULT = (400, 413, 422)
"""Statuses that are about one question, not about who asks."""
HOPELESS = 16
"""Questions in vain, and none that was answered, after which no more are asked."""
LONGER = "Give it more time with `timeout`, or ask less at once with `concurrency`."
Watch = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Request:
    """One call: the body without model and seed, and what else its answer depends on."""

    body: Mapping[str, Any]
    seed: int = 0
    repeat: int = 0
    prompt_version: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The first choice of an answer; or `error`, why there is none.

    tokens: read and written. cached: it was known before. refused: the server will not answer this
    question, however often it is asked.
    """

    choice: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokens: tuple[int, int] = (0, 0)
    error: str = ""
    cached: bool = False
    refused: bool = False

    @property
    def text(self) -> str:
        """What was said; empty where nothing was."""
        message: Any = self.choice.get("message")
        found: Any = (
            cast("dict[str, Any]", message).get("content")
            if isinstance(message, dict)
            else self.choice.get("text")
        )
        return without_halves(found) if isinstance(found, str) else ""

    @property
    def finish(self) -> str:
        """`stop`, `length`, or another word of the server's."""
        return str(self.choice.get("finish_reason") or "")


@dataclass
class Spending:
    """Tokens of the answers that were asked for now, and how many were known before."""

    asked: int = 0
    cached: int = 0
    read: int = 0
    written: int = 0

    def add(self, reply: Reply) -> None:
        """Count one answer."""
        if reply.cached:
            self.cached += 1
            return
        self.asked += 1
        self.read += reply.tokens[0]
        self.written += reply.tokens[1]

    def money(self, price: Sequence[float] | None) -> float | None:
        """What they cost; None without a price."""
        if price is None:
            return None
        return (self.read * price[0] + self.written * price[1]) / 1e6


class Client:
    """Asks one server.

    start: gives its address, once there is something to ask: a model that is served for this judge
    alone is not loaded for answers that are known. identity: what tells the model from any other,
    for the cache.
    """

    def __init__(
        self, config: JudgeConfig, start: Callable[[], str], identity: str, cache: Cache
    ) -> None:
        self.config, self.start, self.identity, self.cache = config, start, identity, cache
        self.url = ""
        self.wire = Wire(LONGER, config.api_key)
        self.spending = Spending()
        self.path = "/v1/chat/completions" if config.api == "chat" else "/v1/completions"
        self.next_start = 0.0
        self.answered = self.failed = 0
        # of the client, not of a call: several threads may ask
        self.places = asyncio.Semaphore(config.concurrency)
        self.waiting = asyncio.Lock()
        self.starting = asyncio.Lock()

    def close(self) -> None:
        """End the connections."""
        self.wire.close()

    def ask(self, requests: Sequence[Request], watch: Watch | None = None) -> list[Reply]:
        """An answer to each, in their order. watch: called with how many more are there."""
        return self.wire.run(self._ask_all(requests, watch or (lambda _: None)))

    def fetch(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the server says to something else than a question; None where it does not say.

        It is waited for as for a question.
        """
        self.url = self.url or self.start()
        return self.wire.run(self._fetch(path, body))

    async def _fetch(self, path: str, body: Mapping[str, Any] | None) -> Any:
        for _ in range(2):
            try:
                return await self.wire.call(self.url, path, body, seconds=self.config.timeout)
            except ServerRefusal:
                return None
            except ServerDown as error:
                await self._until_alive(error)
        return None

    async def _ask_all(self, requests: Sequence[Request], watch: Watch) -> list[Reply]:
        keys = [self.key(request) for request in requests]
        # the same question twice is asked once: the second waits for the first
        first = dict(zip(keys, requests, strict=True))
        counts = Counter(keys)
        tasks = {
            key: asyncio.ensure_future(self._answer(key, request, watch, counts[key]))
            for key, request in first.items()
        }
        try:
            found = dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        except BaseException:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            raise
        return [found[key] for key in keys]

    def key(self, request: Request) -> str:
        """The cache's key of a question."""
        return cache_key(
            model=self.identity,
            path=self.path,
            prompt=request.prompt_version,
            body={**request.body, **self.config.extra_body},
            seed=request.seed,
            repeat=request.repeat,
        )

    async def _answer(self, key: str, request: Request, watch: Watch, count: int) -> Reply:
        known = self.cache.get(key)
        if known is not None:
            reply = Reply(known["choice"], (known["tokens"][0], known["tokens"][1]), cached=True)
        else:
            async with self.places:
                reply = await self._until_answered(request)
            self._count(reply)
            if not reply.error:
                self.cache.put(key, {"choice": reply.choice, "tokens": list(reply.tokens)})
        self.spending.add(reply)
        watch(count)
        return reply

    def _count(self, reply: Reply) -> None:
        """LaurelError where this server has answered nothing of much that it was asked."""
        self.answered += not reply.error
        self.failed += bool(reply.error)
        if self.answered == 0 and self.failed >= HOPELESS:
            what = f"it answered none of {self.failed} questions. The last: {reply.error}"
            fix = f"Does it know the model `{self.config.model}`, and take such requests?"
            raise LaurelError(what, where=self.url, fix=fix)

    async def _until_answered(self, request: Request) -> Reply:
        """One question, asked again up to `retries` times."""
        seed = request.seed + 1_000_003 * request.repeat
        body = {"model": self.config.model, "seed": seed, **request.body, **self.config.extra_body}
        body = body if self.config.url is not None else {**body, "model": ""}
        tries = 0
        async with self.starting:
            # it may load a model: in a thread, so that the loop goes on
            self.url = self.url or await asyncio.to_thread(self.start)
        while True:
            await self._pace()
            try:
                found = await self.wire.call(self.url, self.path, body, seconds=self.config.timeout)
                return reply_of(found)
            except ServerRefusal as error:
                if error.status not in OWN_FAULT:
                    raise
                return Reply(error=error.what, refused=True)
            except ServerDown as error:
                # one that is silent to everything hangs: no need to learn it from each question
                await self._until_alive(error)
                reason = error.what
            except Unreadable as error:
                reason = str(error)
            tries += 1
            if tries > self.config.retries:
                return Reply(error=reason)

    async def _pace(self) -> None:
        """Wait for this question's turn, where there is a limit of questions in a minute."""
        if self.config.requests_per_minute is None:
            return
        now = time.monotonic()
        start = max(now, self.next_start)
        self.next_start = start + 60.0 / self.config.requests_per_minute
        await asyncio.sleep(start - now)

    async def _until_alive(self, error: LaurelError) -> None:
        """Return once the server answers at all; raise where it does not for `patience` seconds."""
        async with self.waiting:
            end = time.monotonic() + self.config.patience
            pause = 0.25
            while not await self._alive():
                if time.monotonic() + pause > end:
                    fix = "Start it again: what was answered is kept, and is not asked twice."
                    raise LaurelError(
                        f"the server is down. {error.what}", where=self.url, fix=fix
                    ) from None
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)

    async def _alive(self) -> bool:
        """Does the server answer anything?"""
        try:
            await self.wire.call(self.url, "/v1/models", seconds=PROBE, plain=True)
        except ServerDown as error:
            # some cannot list their models, and answer all the same
            return error.lives
        except LaurelError:
            return True
        return True


class Unreadable(Exception):
    """An answer of a server that is not the shape of one."""


def reply_of(answer: Any) -> Reply:
    """The first choice of an answer of OpenAI's shape; Unreadable where it is none."""
    body = cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
    choices: Any = body.get("choices")
    first: Any = cast("list[Any]", choices)[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        raise Unreadable("the server's answer has no choice.")
    choice = cast("dict[str, Any]", first)
    if not isinstance(choice.get("message", choice.get("text")), dict | str):
        raise Unreadable("the server's answer has no text.")
    usage: Any = body.get("usage")
    counts = cast("dict[str, Any]", usage) if isinstance(usage, dict) else {}
    kept = {
        name: choice[name]
        for name in ("message", "text", "finish_reason", "logprobs")
        if name in choice
    }
    read = count_of(counts.get("prompt_tokens"))
    return Reply(kept, (read, count_of(counts.get("completion_tokens"))))


def count_of(value: Any) -> int:
    """A number of tokens; 0 where the server says none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
