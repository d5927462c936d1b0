"""The routes: OpenAI's, and those of vLLM's that trainers use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import TypeVar

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
from laurel.serve.choose import ChoiceRun, choice_stream, rule_of, several, whole_choice
from laurel.serve.delivery import (
    END,
    EventQueue,
    all_choices,
    event_line,
    last_of,
    logprobs_of_prompts,
    until_disconnected,
)
from laurel.serve.engine import Done, Drawn, GenerationRequest, Limits, Refused, Served
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

Body = TypeVar("Body", bound=SamplingRequest)


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
        server.choosing.shutdown(wait=False, cancel_futures=True)

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
    rows += [
        {**row, "id": f"{row['id']}:{suffix}", "parent": row["id"]}
        for suffix in (server.chooser.names if server.chooser is not None else ())
        for row in rows
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
    model, rule = rule_of(server, body)
    served = server.served(model)
    asked = prepare(several(body, rule), served.policy, server.engine.limits)
    name = body.model or server.base
    if rule is not None:
        return await respond_chosen(request, ChoiceRun.of(server, served, asked, rule, name))
    answer = ResponseBuilder(asked, served.policy.tokenizer, name, chat=kind is ChatRequest)
    return await respond(request, served, answer)


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


async def respond_chosen(request: Request, run: ChoiceRun) -> Response:
    """Draw several answers and give one, whole or as a stream that says how far it is."""
    if run.asked.body.stream:
        await run.start()
        return StreamingResponse(choice_stream(run), media_type="text/event-stream")
    prompt_logps = await logprobs_of_prompts(run.server, run.served.policy, run.asked)
    answer = await until_disconnected(request, whole_choice(run, prompt_logps))
    return Response(status_code=499) if answer is None else JSONResponse(answer)


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
