"""One answer out of several: who asks for it, how it is drawn, and what is told of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from laurel.core.choosing import Chosen, Selection, Way
from laurel.core.sample import Completion
from laurel.serve.admin import Server
from laurel.serve.delivery import END, EventQueue, event_line, last_of
from laurel.serve.engine import Done, Drawn, GenerationRequest, Refused, Served
from laurel.serve.middleware import error_object
from laurel.serve.prepare import Ids, PreparedRequest, split_jobs
from laurel.serve.responses import Json, ResponseBuilder, TextStream
from laurel.serve.schemas import MOST_CHOICES, ChatRequest, SamplingRequest

Result = TypeVar("Result")
Body = TypeVar("Body", bound=SamplingRequest)
NAME = re.compile(r"(.+):(vote|best-of)-([0-9]{1,9})", re.DOTALL)
WAYS: dict[str, Way] = {"vote": "vote", "best-of": "best_of"}
PIECE = 16
"""Tokens of the chosen answer in one chunk of a stream."""
PAUSE = 0.02
"""Seconds after which a later round asks again for places."""


class ChoiceRule(NamedTuple):
    """So many answers at most are drawn, and one is chosen. budget: tokens that may be drawn."""

    way: Way
    most: int
    budget: int | None


def rule_of(server: Server, body: SamplingRequest) -> tuple[str, ChoiceRule | None]:
    """The served name that a request means, and the choice that it asks for, if any.

    The name of a model that is served wins over its reading as NAME:vote-16.
    """
    model, named = split_name(server, body.model)
    given: list[tuple[Way, int | None]] = [("vote", body.vote), ("best_of", body.best_of)]
    asked: list[tuple[Way, int]] = [(way, count) for way, count in given if count is not None]
    if len(asked) > 1:
        raise Refused("give `vote` or `best_of`.", param="vote")
    if named and asked and asked != [named]:
        what = f"`{body.model:.100}` and `{asked[0][0]}`: {asked[0][1]} are two choices: give one."
        raise Refused(what, param=asked[0][0])
    way, count = named or next(iter(asked), None) or default_choice(server)
    # one vote is none, and the n best of n are all
    if count == (1 if way == "vote" else body.n):
        if body.budget is not None:
            raise Refused("`budget` is for `vote` and `best_of`.", param="budget")
        return model, None
    check_rule(server, body, way, count)
    return model, ChoiceRule(way, count, body.budget)


def split_name(server: Server, name: str) -> tuple[str, tuple[Way, int] | None]:
    """NAME:vote-16 as NAME and the choice."""
    found = NAME.fullmatch(name)
    if name in server.engine.served or found is None or found[1] not in server.engine.served:
        return name, None
    count = int(found[3])
    if not 1 <= count <= MOST_CHOICES:
        raise Refused(f"1 to {MOST_CHOICES} answers can be drawn, not {count}.", param="model")
    return found[1], (WAYS[found[2]], count)


def default_choice(server: Server) -> tuple[Way, int]:
    """What a server does with requests that do not say."""
    chooser = server.chooser
    if chooser is None or chooser.default is None:
        return "vote", 1
    return chooser.default, chooser.number


def check_rule(server: Server, body: SamplingRequest, way: Way, count: int) -> None:
    """Refused where a choice cannot be made of what is asked for."""
    plain = "`vote`: 1 asks for plain completions."
    if server.chooser is None:
        raise Refused("this server chooses between no answers.", param=way)
    if way == "best_of" and count < body.n:
        raise Refused(f"`best_of` {count} is less than `n` {body.n}.", param="best_of")
    if body.n > 1:
        raise Refused(f"a choice is one answer: leave `n` out. {plain}", param="n")
    if body.temperature == 0 or body.top_k == 1:
        name, value = ("temperature", "above 0") if body.temperature == 0 else ("top_k", "above 1")
        what = f"all {count} answers would be the same: give a `{name}` {value}, or none. {plain}"
        raise Refused(what, param=name)


def several(body: Body, rule: ChoiceRule | None) -> Body:
    """The request with as many completions as may be drawn."""
    return body if rule is None else body.model_copy(update={"n": rule.most})


def check_drawn(asked: PreparedRequest, rule: ChoiceRule) -> None:
    """Refused where there is not one prompt, or nothing to draw within the budget."""
    if len(asked.prompts) > 1:
        what = f"a choice is made for one prompt, not for {len(asked.prompts)}."
        raise Refused(what, param="prompt")
    if not asked.jobs:
        raise Refused("there is nothing to choose from with max_tokens 0.", param="max_tokens")
    if rule.budget is not None and rule.budget < asked.max_tokens:
        what = (
            f"one answer may take {asked.max_tokens} tokens, and the budget is {rule.budget}:"
            " give a lower `max_tokens`, or more."
        )
        raise Refused(what, param="budget")


class Round(NamedTuple):
    """Answers that are being drawn."""

    generation: GenerationRequest
    events: EventQueue
    count: int


@dataclass(eq=False)
class ChoiceRun:
    """A question while its answers are drawn, in one round or more.

    asked: with all completions that may be drawn; builder: of the answer, which is one.
    """

    server: Server
    served: Served
    asked: PreparedRequest
    rule: ChoiceRule
    builder: ResponseBuilder
    selection: Selection
    deadline: float
    done: list[Done] = field(default_factory=list[Done])
    round: Round | None = None
    stopped: str = ""

    @classmethod
    def of(
        cls, server: Server, served: Served, asked: PreparedRequest, rule: ChoiceRule, name: str
    ) -> ChoiceRun:
        """The run of a request; Refused where it asks for what cannot be."""
        check_drawn(asked, rule)
        assert server.chooser is not None
        one = replace(asked, body=asked.body.model_copy(update={"n": 1}))
        chat = isinstance(asked.body, ChatRequest)
        builder = ResponseBuilder(one, served.policy.tokenizer, name, chat=chat)
        selection = server.chooser.begin(rule.way, rule.most, shown_prompt(asked, served))
        deadline = asyncio.get_running_loop().time() + server.engine.limits.seconds
        return cls(server, served, asked, rule, builder, selection, deadline)

    @property
    def tokens(self) -> int:
        """Drawn so far."""
        return sum(len(one.completion.ids) for one in self.done)

    async def start(self) -> None:
        """Begin to draw; Refused where too many wait."""
        await self.next_round([])

    async def progress(self) -> AsyncGenerator[int]:
        """Draw until there is enough: the number of answers as they end."""
        while self.round is not None:
            before = len(self.done)
            async with aclosing(self.answers(self.round)) as steps:
                async for drawn in steps:
                    yield drawn
            await self.next_round([one.completion for one in self.done[before:]])

    async def next_round(self, fresh: Sequence[Completion]) -> None:
        """Hand answers over, and have as many drawn as are wanted then, if any."""
        texts = [self.builder.text_of(one)[0] for one in fresh]
        wanted = await self.apart(lambda: self.selection.add(texts, fresh))
        count = self.affordable(wanted)
        self.round = await self.submit(count) if count else None

    def affordable(self, wanted: int) -> int:
        """So many that even the longest answers stay within the budget."""
        if self.rule.budget is None:
            return wanted
        fits = (self.rule.budget - self.tokens) // self.asked.max_tokens
        if wanted and not fits:
            self.stopped = "budget"
        return min(wanted, fits)

    async def submit(self, count: int) -> Round:
        """The next answers into the queue, with the seeds that `n` would give them.

        A question that has begun waits where the queue is full.
        """
        seeds = [seed for job in self.asked.jobs for seed in job.seeds]
        some = seeds[len(self.done) : len(self.done) + count]
        prompt: Ids = self.asked.prompts[0]
        options, places = self.asked.jobs[0].options, self.server.engine.limits.places
        jobs = split_jobs(prompt, some, self.asked.max_tokens, options, places)
        events = EventQueue(asyncio.get_running_loop())
        generation = GenerationRequest(self.served, jobs, False, events.put, self.deadline)
        while True:
            try:
                self.server.engine.submit(generation)
                return Round(generation, events, count)
            except Refused as error:
                if error.status != 429 or not self.done or self.left() <= PAUSE:
                    raise
            await asyncio.sleep(PAUSE)

    async def answers(self, some: Round) -> AsyncGenerator[int]:
        """The answers of a round: the number of all that have ended, as they do."""
        found: dict[int, Done] = {}
        try:
            while len(found) < some.count:
                ended = [event for event in await some.events.next() if isinstance(event, Done)]
                found |= {event.choice: event for event in ended}
                yield len(self.done) + len(found)
        except BaseException:
            with suppress(Refused):
                self.server.engine.cancel(some.generation)
            raise
        self.done += [found[index] for index in range(some.count)]

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - asyncio.get_running_loop().time()

    async def apart(self, work: Callable[[], Result]) -> Result:
        """What may take long, in a thread; Refused where it takes longer than the request may."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self.server.choosing, work)
        try:
            return await asyncio.wait_for(future, max(self.left(), 0.001))
        except TimeoutError:
            what = f"choosing took longer than {self.server.engine.limits.seconds:g} s."
            raise Refused(what, status=504, kind="timeout_error") from None

    async def choose(self) -> tuple[Done, Json]:
        """The chosen answer, and what is told of the choice; Refused where none could be scored.

        The first where none can be told from the others; `chosen` is null then.
        """
        found: Chosen = await self.apart(self.selection.choose)
        if found.error:
            what = f"none of {len(self.done)} answers ({self.tokens} tokens) can be chosen: "
            raise Refused(f"{what}{found.error}", status=422, kind="choice_error")
        details = {
            "way": self.rule.way,
            "chosen": found.place,
            **self.counts(len(self.done)),
            **found.details,
        }
        if self.stopped:
            details["stopped"] = self.stopped
        return self.done[found.place or 0]._replace(choice=0), details

    def counts(self, drawn: int) -> Json:
        """How far the drawing has come."""
        return {"drawn": drawn, "of": self.rule.most, "tokens": self.tokens}


def shown_prompt(asked: PreparedRequest, served: Served) -> Any:
    """The prompt as a scorer sees it: messages, or a text."""
    if isinstance(asked.body, ChatRequest):
        return asked.body.messages
    given: Any = getattr(asked.body, "prompt", None)
    if isinstance(given, str):
        return given
    return served.policy.tokenizer.decode(list(asked.prompts[0]), skip_special_tokens=True)


async def whole_choice(run: ChoiceRun, prompt_logps: Any) -> Json:
    """The answer with the one choice; `usage` counts all that was drawn."""
    await run.start()
    async with aclosing(run.progress()) as steps:
        async for _ in steps:
            pass
    done, details = await run.choose()
    whole = run.builder.whole([done], prompt_logps)
    return {**whole, "usage": run.builder.usage(run.tokens), "choice_details": details}


async def choice_stream(run: ChoiceRun) -> AsyncIterator[bytes]:
    """The chunks of a run that has started: how far it is, then the answer that was chosen."""
    builder, options = run.builder, run.asked.body.stream_options
    try:
        if builder.chat:
            yield event_line(builder.opening(0))
        async with aclosing(run.progress()) as steps:
            async for drawn in steps:
                yield event_line(progress_chunk(run, drawn))
        done, details = await run.choose()
        body = builder.asked.body
        text = TextStream(builder.tokenizer, body.stops, body.skip_special_tokens)
        for event in pieces(done):
            yield event_line(builder.piece(event, text.add(event.ids)))
        yield event_line({**last_of(builder, done, text), "choice_details": details})
        if options is not None and options.include_usage:
            usage = {"choices": [], "usage": builder.usage(run.tokens)}
            yield event_line({**builder.head(chunk=True), **usage})
        yield END
    except Refused as error:
        yield event_line(error_object(error))
        yield END


def pieces(done: Done) -> Iterator[Drawn]:
    """The tokens of a choice but the last, a few at a time."""
    ids, logps = list(done.completion.ids[:-1]), list(done.completion.logps[:-1])
    for start in range(0, len(ids), PIECE):
        part = slice(start, start + PIECE)
        yield Drawn(0, ids[part], logps[part], done.notes[:-1][part])


def progress_chunk(run: ChoiceRun, drawn: int) -> Json:
    """A chunk without text that says how far the drawing is."""
    part: Json = {"index": 0, "finish_reason": None, "logprobs": None}
    part |= {"delta": {}} if run.builder.chat else {"text": ""}
    return {**run.builder.chunk(part), "choice_details": run.counts(drawn)}
