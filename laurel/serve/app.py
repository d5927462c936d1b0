"""The routes: OpenAI's, and those of vLLM's that trainers use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from laurel import __version__
from laurel.model.policy import Policy
from laurel.serve import admin
from laurel.serve.admin import Server, server_of
from laurel.serve.engine import (
    Done,
    Drawn,
    Event,
    Failure,
    GenerationRequest,
    Limits,
    Refused,
    Served,
)
from laurel.serve.middleware import (
    Guard,
    error_object,
    exception_response,
    http_error_response,
    read_body,
)
from laurel.serve.prepare import (
    PreparedRequest,
    check_vocabulary,
    encode_ids,
    prepare_chat,
    prepare_completions,
    score_prompt,
)
from laurel.serve.responses import ResponseBuilder, TextStream
from laurel.serve.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    SamplingRequest,
    ScoreRequest,
    TokenizeRequest,
)
from laurel.serve.score import rows_to_score, score_pairs

Result = TypeVar("Result")
Body = TypeVar("Body", bound=SamplingRequest)
END = b"data: [DONE]\n\n"


def make_app(
    server: Server, *, key: str = "", hosts: tuple[str, ...] = (), most: int = 16 << 20
) -> Starlette:
    """The application on a server whose engine has not started yet.

    key: what clients must show, "" for nothing; hosts: names that it may be called by; most: bytes
    of a body.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        server.engine.start()
        yield
        await asyncio.to_thread(server.engine.drain, server.engine.limits.seconds)

    routes = [
        *(Route(path, answer, methods=["GET"]) for path, answer in QUESTIONS.items()),
        *(Route(path, answer, methods=["POST"]) for path, answer in REQUESTS.items()),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, key=key, hosts=hosts, most=most)],
        exception_handlers={
            Exception: exception_response,
            Refused: exception_response,
            HTTPException: http_error_response,
        },
        lifespan=lifespan,
    )
    app.state.server = server
    return app


async def health(request: Request) -> Response:
    """Does the server live?"""
    alive = server_of(request).engine.thread.is_alive()
    return Response(status_code=200 if alive else 503)


async def version(request: Request) -> Response:
    """Whose wire this is, and whether its log-probabilities are the trainer's to the bit."""
    server = server_of(request)
    return JSONResponse(
        {
            "version": __version__,
            "engine": "laurel",
            "exact": server.exact,
            "precision": server.precision,
        }
    )


async def metrics(request: Request) -> Response:
    """The counters, as Prometheus reads them."""
    engine = server_of(request).engine
    waiting = sum(one.count for one in list(engine.waiting))
    running = sum(one.left for one in list(engine.running))
    text = engine.metrics.text(waiting, running)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def models(request: Request) -> Response:
    """The names that can be asked for."""
    server = server_of(request)
    rows = [
        {
            "id": name,
            "object": "model",
            "created": server.created,
            "owned_by": "laurel",
            "root": server.base,
            "parent": None if name == server.base else server.base,
            "max_model_len": server.engine.limits.length,
        }
        for name in server.names
    ]
    return JSONResponse({"object": "list", "data": rows})


async def completions(request: Request) -> Response:
    """`/v1/completions`."""
    return await generate(request, CompletionRequest, prepare_completions)


async def chat_completions(request: Request) -> Response:
    """`/v1/chat/completions`."""
    return await generate(request, ChatRequest, prepare_chat)


async def generate(
    request: Request, kind: type[Body], prepare: Callable[[Body, Policy, Limits], PreparedRequest]
) -> Response:
    """The answer to a body of this kind, which `prepare` makes ready to be sampled."""
    body, server = await read_body(request, kind), server_of(request)
    served = server.served(body.model)
    asked = prepare(body, served.policy, server.engine.limits)
    name = body.model or server.base
    answer = ResponseBuilder(asked, served.policy.tokenizer, name, chat=kind is ChatRequest)
    return await respond(request, served, answer)


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


async def respond(request: Request, served: Served, answer: ResponseBuilder) -> Response:
    """Sample what is asked for, and answer whole or as a stream."""
    server, asked = server_of(request), answer.asked
    prompt_logps = await logprobs_of_prompts(server, served.policy, asked)
    if not asked.jobs:
        return JSONResponse(answer.whole([], prompt_logps))
    events = EventQueue(asyncio.get_running_loop())
    limits = server.engine.limits
    deadline = events.loop.time() + limits.seconds
    generation = GenerationRequest(
        served, asked.jobs, bool(asked.body.stream), events.put, deadline
    )
    server.engine.submit(generation)
    if asked.body.stream:
        chunks = stream_of(server, generation, events, answer)
        return StreamingResponse(chunks, media_type="text/event-stream")
    try:
        done = await until_disconnected(request, all_choices(events, asked.count))
    except BaseException:
        server.engine.cancel(generation)
        raise
    if done is None:
        server.engine.cancel(generation)
        return Response(status_code=499)
    return JSONResponse(answer.whole(done, prompt_logps))


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


async def stream_of(
    server: Server, generation: GenerationRequest, events: EventQueue, answer: ResponseBuilder
) -> AsyncIterator[bytes]:
    """The chunks of a stream. However it ends, nothing is sampled for it any more."""
    asked, drawn = answer.asked, 0
    body = asked.body
    texts = [
        TextStream(answer.tokenizer, body.stops, body.skip_special_tokens)
        for _ in range(asked.count)
    ]
    try:
        if answer.chat:
            for index in range(asked.count):
                yield event_line(answer.opening(index))
        left = asked.count
        while left:
            for event in await events.next():
                if isinstance(event, Drawn):
                    text = texts[event.choice].add(event.ids)
                    yield event_line(answer.piece(event, text))
                elif isinstance(event, Done):
                    left -= 1
                    drawn += len(event.completion.ids)
                    yield event_line(last_of(answer, event, texts[event.choice]))
        if body.stream_options is not None and body.stream_options.include_usage:
            head = answer.head(chunk=True)
            yield event_line({**head, "choices": [], "usage": answer.usage(drawn)})
        yield END
    except Refused as error:
        yield event_line(error_object(error))
        yield END
    finally:
        if not generation.ended:
            with suppress(Refused):
                server.engine.cancel(generation)


def last_of(answer: ResponseBuilder, done: Done, stream: TextStream) -> dict[str, Any]:
    """The last chunk of a choice, with the rest of its text and its tokens."""
    text, _ = answer.text_of(done.completion)
    sent = len(stream.ids)
    return answer.last_piece(done, stream.end(text), sent)


def event_line(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


async def score(request: Request) -> Response:
    """`/v1/score`: the score of each answer, by a trained scorer."""
    body, server = await read_body(request, ScoreRequest), server_of(request)
    scorer = server.scorer
    if scorer is None:
        what = f"{server.base} is a language model, and no scorer."
        raise Refused(what, status=404, kind="not_found_error")
    if body.model not in ("", server.base):
        raise Refused(f"there is no model `{body.model:.100}`.", status=404, param="model")
    rows = rows_to_score(body)
    scores = await server.between_tokens(lambda: score_pairs(scorer, rows))
    data = [{"index": i, "object": "score", "score": one} for i, one in enumerate(scores)]
    card = asdict(scorer.card)
    return JSONResponse({"object": "list", "model": server.base, "data": data, "card": card})


async def tokenize(request: Request) -> Response:
    """`/tokenize`: the ids of a text, or of messages through the template."""
    body, server = await read_body(request, TokenizeRequest), server_of(request)
    policy = server.served(body.model).policy
    if (body.prompt is None) == (body.messages is None):
        raise Refused("give `prompt` or `messages`.")
    if body.messages is not None:
        chat = ChatRequest(messages=body.messages)
        ids: Sequence[int] = prepare_chat(chat, policy, server.engine.limits).prompts[0]
    elif body.add_special_tokens:
        ids = encode_ids(policy, body.prompt or "")
    else:
        ids = policy.tokenizer.encode(body.prompt or "", add_special_tokens=False)
    most = server.engine.limits.length
    return JSONResponse({"tokens": list(ids), "count": len(ids), "max_model_len": most})


async def detokenize(request: Request) -> Response:
    """`/detokenize`: the text of ids."""
    body, server = await read_body(request, DetokenizeRequest), server_of(request)
    policy = server.served(body.model).policy
    check_vocabulary(policy, body.tokens, "tokens")
    return JSONResponse({"prompt": policy.tokenizer.decode(body.tokens)})


QUESTIONS = {
    "/health": health,
    "/ping": health,
    "/version": version,
    "/metrics": metrics,
    "/v1/models": models,
    "/is_paused": admin.is_paused,
    "/weight_info": admin.weight_info,
}
"""GET: path -> who answers."""
REQUESTS = {
    "/v1/completions": completions,
    "/v1/chat/completions": chat_completions,
    "/v1/score": score,
    "/score": score,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
    "/pause": admin.pause,
    "/resume": admin.resume,
    "/update_weight_version": admin.update_weight_version,
    "/weight_checker": admin.weight_checker,
    "/collective_rpc": admin.collective_rpc,
    "/v1/load_lora_adapter": admin.load_adapter,
    "/v1/unload_lora_adapter": admin.unload_adapter,
}
"""POST: path -> who answers."""
