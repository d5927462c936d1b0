"""The thread that samples: requests join and leave between two tokens.

Invariants, each of which a test holds:
- a request that was accepted ends in exactly one way: with all of its choices, or with one failure;
- the tokens of a choice depend on its prompt, options and seed, and on the weights alone;
- every token belongs to one span of one version of the weights;
- weights change between two tokens, whole or not at all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from laurel.core.errors import LaurelError
from laurel.core.sample import Completion
from laurel.fast.decode import ContinuousBatch, Job, TokenLogprobs
from laurel.model.policy import Policy
from laurel.serve.metrics import ServerMetrics
from laurel.serve.samplers import SlotSampler, make_sampler

Result = TypeVar("Result")


class Refused(LaurelError):
    """A request that the server does not take: `status` is HTTP's, `kind` OpenAI's type."""

    def __init__(
        self,
        what: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
    ) -> None:
        self.status, self.kind, self.param = status, kind, param
        super().__init__(what)


class Span(NamedTuple):
    """Tokens [start, end) of a choice were drawn under this version of the weights."""

    version: str
    start: int
    end: int


class Drawn(NamedTuple):
    """Tokens of a choice since the last event of a stream."""

    choice: int
    ids: list[int]
    logps: list[float]
    notes: list[TokenLogprobs]


class Done(NamedTuple):
    """A choice has ended."""

    choice: int
    completion: Completion
    notes: list[TokenLogprobs]
    spans: list[Span]


class Failure(NamedTuple):
    """The request has ended without its choices."""

    error: Refused


Event = Drawn | Done | Failure


@dataclass
class Served:
    """A name that can be asked for: a policy, its sampler, and the version of its weights."""

    name: str
    policy: Policy
    sampler: SlotSampler
    version: str
    folder: str

    @property
    def compact(self) -> bool:
        """Is it sampled by the trainer's own decoder, with the same bits whoever is beside it?"""
        return isinstance(self.sampler, ContinuousBatch)


@dataclass
class Choice:
    """A completion of a request while it is drawn."""

    slot: int = -1
    sent: int = 0
    spans: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    def closed(self, length: int) -> list[Span]:
        """The spans of a completion of so many tokens; an empty one is left out."""
        starts = [start for _, start in self.spans] + [length]
        found = [
            Span(version, start, end)
            for (version, start), end in zip(self.spans, starts[1:], strict=True)
        ]
        return [span for span in found if span.end > span.start]


@dataclass(eq=False)
class GenerationRequest:
    """A request for completions: one job a prompt, choices numbered through all of them.

    deliver: called in the sampling thread with the events of one token; it must not wait.
    deadline: seconds of `time.monotonic`.
    """

    model: Served
    jobs: Sequence[Job]
    stream: bool
    deliver: Callable[[list[Event]], None]
    deadline: float
    asked: float = field(default_factory=time.monotonic)
    first: float = 0.0
    choices: list[Choice] = field(default_factory=list[Choice])
    left: int = 0
    ended: bool = False

    @property
    def count(self) -> int:
        """The number of its choices."""
        return sum(len(job.seeds) for job in self.jobs)


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    places: completions drawn at once, of each name. queue: completions that may wait. seconds: of
    a request from its arrival to its end. length: tokens of a prompt and its completion.
    """

    places: int = 64
    queue: int = 4096
    seconds: float = 600.0
    length: int = 2048


class Engine:
    """Samples for all requests in one thread of its own."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.metrics = ServerMetrics()
        self.served: dict[str, Served] = {}
        self.waiting: deque[GenerationRequest] = deque()
        self.running: list[GenerationRequest] = []
        self.paused = False
        self.draining = False
        self.commands: deque[Callable[[], None]] = deque()
        self.condition = threading.Condition()
        self.thread = threading.Thread(target=self.run, name="laurel-engine", daemon=True)
        self.ending = False

    # called by others: they hand something over, and never wait for the sampling

    def add(self, name: str, policy: Policy, version: str, folder: str) -> Served:
        """Serve a policy under a name."""
        made = Served(name, policy, self.make_sampler(policy), version, folder)
        self.served = {**self.served, name: made}
        return made

    def make_sampler(self, policy: Policy) -> SlotSampler:
        """What samples a policy, with all of its places free."""
        return make_sampler(policy, self.limits.places, self.limits.length)

    def start(self) -> None:
        """Begin to sample."""
        self.thread.start()

    def submit(self, generation: GenerationRequest) -> None:
        """Take a request on; Refused where too many wait, or the server is about to end."""
        with self.condition:
            if self.ending or self.draining:
                raise Refused("the server is shutting down.", status=503, kind="server_error")
            queued = sum(one.count for one in self.waiting)
            if queued + generation.count > self.limits.queue and queued:
                raise Refused(
                    f"{queued} completions wait already, and {self.limits.queue} may:"
                    " try again later.",
                    status=429,
                    kind="rate_limit_error",
                )
            self.waiting.append(generation)
            self.condition.notify()

    def cancel(self, generation: GenerationRequest) -> None:
        """Nobody wants the answer any more."""
        self.call_between_tokens(lambda: self.remove(generation))

    def call_between_tokens(self, work: Callable[[], Result]) -> Future[Result]:
        """Have something done between two tokens, by the thread that samples."""
        future = Future[Any]()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        with self.condition:
            if self.ending:
                raise Refused("the server is shutting down.", status=503, kind="server_error")
            self.commands.append(do)
            self.condition.notify()
        return future

    def drain(self, seconds: float) -> None:
        """Take nothing on any more, wait until all requests have ended, and stop the thread."""
        with self.condition:
            self.draining = True
            self.paused = False
            self.condition.notify()
        until = time.monotonic() + seconds
        while self.busy and time.monotonic() < until and self.thread.is_alive():
            time.sleep(0.01)
        with self.condition:
            self.ending = True
            self.condition.notify()
        if self.thread.is_alive():
            self.thread.join(timeout=10)

    @property
    def busy(self) -> bool:
        """Is there a request that has not ended?"""
        return bool(self.waiting or self.running)

    # the thread

    def run(self) -> None:
        """Until the end: what was ordered, who waits, one token of everybody."""
        while not self.ending:
            with self.condition:
                if not (self.commands or (self.busy and not self.paused)):
                    # a request that waits in a pause may run out of its time
                    self.condition.wait(timeout=0.2 if self.busy else 5.0)
            while self.commands:
                self.commands.popleft()()
            self.expire_requests()
            try:
                self.step()
            except Exception as error:
                logging.getLogger(__name__).exception("sampling failed")
                self.fail_all(f"sampling failed: {type(error).__name__}.")
                # what it left half done is nobody's: all places are free again
                for served in self.served.values():
                    served.sampler = self.make_sampler(served.policy)
        self.fail_all("the server was shut down.")
        # nobody waits for what was ordered at the very end
        while self.commands:
            self.commands.popleft()()

    def step(self) -> None:
        """One token more of every completion in flight, after those that wait have joined."""
        if self.paused:
            return
        self.admit_waiting()
        for served in {id(one.model): one.model for one in self.running}.values():
            served.sampler.advance()
            self.metrics.steps += 1
            self.deliver_events(served)

    def admit_waiting(self) -> None:
        """Requests enter in the order they came, each whole, as far as there are places.

        One that is larger than all places enters job by job.
        """
        entering: list[tuple[GenerationRequest, list[Job]]] = []
        taken: dict[int, int] = {}
        with self.condition:
            while self.waiting:
                generation = self.waiting[0]
                jobs = list(generation.jobs)[self.jobs_admitted(generation) :]
                free = len(generation.model.sampler.free) - taken.get(id(generation.model), 0)
                fits = jobs_that_fit(jobs, free)
                if not fits:
                    break
                count = sum(len(job.seeds) for job in fits)
                taken[id(generation.model)] = taken.get(id(generation.model), 0) + count
                entering.append((generation, fits))
                if generation not in self.running:
                    self.running.append(generation)
                    generation.left = generation.count
                if len(fits) < len(jobs):
                    break
                self.waiting.popleft()
        for served in {id(one.model): one.model for one, _ in entering}.values():
            self.admit(served, [pair for pair in entering if pair[0].model is served])

    def jobs_admitted(self, generation: GenerationRequest) -> int:
        """The number of a request's jobs that are in flight or done."""
        jobs, seen = 0, 0
        for job in generation.jobs:
            seen += len(job.seeds)
            jobs += seen <= len(generation.choices)
        return jobs

    def admit(self, served: Served, entering: list[tuple[GenerationRequest, list[Job]]]) -> None:
        """Jobs into the sampler of their model, in one pass over all of their prompts."""
        slots = iter(served.sampler.admit([job for _, jobs in entering for job in jobs]))
        for generation, jobs in entering:
            for _ in jobs:
                for slot in next(slots):
                    generation.choices.append(Choice(slot, 0, [(served.version, 0)]))
            self.metrics.prompt_tokens += sum(len(job.prompt) for job in jobs)
        self.deliver_events(served)

    def deliver_events(self, served: Served) -> None:
        """Events to everybody of whom a token was drawn, and the end of what has ended."""
        ended = served.sampler.collect()
        now = time.monotonic()
        for generation in [one for one in self.running if one.model is served]:
            events = list[Event]()
            for index, choice in enumerate(generation.choices):
                if choice.slot in ended:
                    events.append(self.done_event(index, choice, *ended[choice.slot]))
                    generation.left -= 1
                elif generation.stream and choice.slot >= 0:
                    drawn = served.sampler.drawn(choice.slot, choice.sent)
                    choice.sent += len(drawn[0])
                    if drawn[0]:
                        events.append(Drawn(index, *drawn))
            if not generation.first and generation.choices:
                generation.first = now
                self.metrics.first_token.observe(now - generation.asked)
            if events:
                generation.deliver(events)
            if not generation.left:
                self.close(generation, now)

    def done_event(
        self, index: int, choice: Choice, completion: Completion, notes: list[TokenLogprobs]
    ) -> Done:
        """The event of a choice that has ended; its slot is another's from now on."""
        choice.slot = -1
        self.metrics.generated_tokens += len(completion.ids)
        self.metrics.finished[completion.finish] += 1
        return Done(index, completion, notes, choice.closed(len(completion.ids)))

    def close(self, generation: GenerationRequest, now: float) -> None:
        """A request has all of its choices."""
        generation.ended = True
        self.running.remove(generation)
        self.metrics.whole_request.observe(now - generation.asked)

    def remove(self, generation: GenerationRequest) -> None:
        """Take a request out, wherever it is."""
        if generation.ended:
            return
        generation.ended = True
        with self.condition:
            if generation in self.waiting:
                self.waiting.remove(generation)
        if generation in self.running:
            self.running.remove(generation)
            slots = [choice.slot for choice in generation.choices if choice.slot >= 0]
            generation.model.sampler.drop(slots)
        self.metrics.finished["abort"] += 1

    def fail(self, generation: GenerationRequest, error: Refused) -> None:
        """End a request without its choices."""
        if not generation.ended:
            self.remove(generation)
            generation.deliver([Failure(error)])

    def fail_all(self, what: str) -> None:
        """End every request: after an error nobody knows whose it was, or at the end."""
        for generation in [*self.running, *self.waiting]:
            self.fail(generation, Refused(what, status=500, kind="server_error"))

    def expire_requests(self) -> None:
        """End the requests that have had their time."""
        now = time.monotonic()
        for generation in [*self.running, *self.waiting]:
            if now > generation.deadline:
                what = f"the answer took longer than {self.limits.seconds:g} s."
                self.fail(generation, Refused(what, status=504, kind="timeout_error"))

    def set_version(self, served: Served, version: str) -> None:
        """From the next token on the weights of a name have this version."""
        served.version = version
        for generation in self.running:
            if generation.model is not served:
                continue
            for choice in generation.choices:
                if choice.slot >= 0:
                    drawn = len(served.sampler.drawn(choice.slot, 0)[0])
                    choice.spans.append((version, drawn))


def jobs_that_fit(jobs: Sequence[Job], free: int) -> list[Job]:
    """The first jobs, as far as there are places for all of their completions."""
    found = list[Job]()
    for job in jobs:
        free -= len(job.seeds)
        if free < 0:
            break
        found.append(job)
    return found
