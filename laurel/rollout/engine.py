"""Samples on servers: a `laurel.core.protocols.Generator` over HTTP.

laurel's own server and vLLM speak the same wire: token ids in; token ids, log-probabilities and
ends out. Rows go to servers by their prompt, so a prompt's samples stay together. What a row is
asked with depends on its key alone: asked again, there or elsewhere, it is the same row.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from laurel.core.errors import LaurelError
from laurel.core.http import ServerDown, ServerRefusal, ServerTimeout, Wire, check_urls
from laurel.core.sample import Completion, Draw
from laurel.model.policy import Policy
from laurel.rollout.engine_answer import foreign_weights
from laurel.rollout.engine_probe import (
    COLD,
    check_again,
    check_first,
    check_sums,
    expected_answer,
    probe,
)
from laurel.rollout.engine_server import KNOWN, PromptJob, Server
from laurel.rollout.engine_weights import WeightTransfer, choose_transfer, version_label
from laurel.rollout.sampler import check_prompts, clip_to_positions

Found = TypeVar("Found")
POLL = 0.2
"""Seconds between two questions whether the weights are there."""


@dataclass(frozen=True)
class EngineOptions:
    """Where to sample, and how long to wait.

    urls: of servers. timeout: seconds that one call may take. weights: how new weights get there
    (auto, folder, lora, nccl).
    """

    urls: tuple[str, ...]
    timeout: float = 600.0
    weights: str = "auto"


class Engine:
    """Samples on one or several servers, whose weights it keeps those of the policy.

    policy: the trainer's. folder: where weights are written for the servers to read. run: the
    run's id, which names its weights. leader: does this process send them? The others of a run wait
    until they are there.
    """

    def __init__(
        self,
        policy: Policy,
        options: EngineOptions,
        *,
        folder: Path,
        run: str,
        leader: bool = True,
    ) -> None:
        self.policy = policy
        self.options = options
        self.run = run
        self.leader = leader
        self.wire = Wire("--engine_timeout gives it longer.")
        urls = check_urls(list(options.urls), "engine")
        self.servers = [Server(url, self.wire, options.timeout) for url in urls]
        self.salt = secrets.token_hex(4)
        self.label = ""
        self.before = ""
        try:
            self.wire.run(gather(server.identify() for server in self.servers))
            foreign = any(server.known.kind != "laurel" for server in self.servers)
            how = (folder.resolve(), options.weights)
            self.transfer: WeightTransfer = choose_transfer(policy, *how, with_head=foreign)
            self.wire.run(self._warn_of_others())
        except BaseException:
            self.close()
            raise

    @property
    def tokenizer(self) -> Any:
        return self.policy.tokenizer

    @property
    def exact(self) -> bool:
        """Do all servers sample as the trainer would, bit by bit?"""
        return self.transfer.exact and all(server.known.exact for server in self.servers)

    @property
    def precision(self) -> str:
        """What all servers compute in, as far as that is known; else ""."""
        found = {server.precision for server in self.servers}
        return found.pop() if len(found) == 1 else ""

    @property
    def notes(self) -> list[str]:
        """Lines for the user: where samples come from, and how weights get there."""
        where = ", ".join(f"{server.url} ({server.known})" for server in self.servers)
        return [f"sampled on {where}; its weights go there by {self.transfer.means}"]

    def close(self) -> None:
        """Remove what the servers have read, and end the connections."""
        transfer = getattr(self, "transfer", None)
        if self.leader and transfer is not None:
            try:
                self.wire.run(transfer.clear(self._live(), ()))
            except LaurelError as error:
                logging.getLogger(__name__).warning("adapters stay on a server: %s", error)
            transfer.end()
        self.wire.close()

    def sync(self, version: int) -> None:
        """From now on every server samples with the policy's weights as they are.

        They are pushed once for each version, and checked. A server that does not answer is passed
        over while another does, and looked for again at the next version.

        Errors: LaurelError naming the server, and the folder where that is at fault.
        """
        label = version_label(self.run, version)
        if label == self.label:
            return
        self.wire.run(self._check_servers())
        if not self.leader:
            self.wire.run(self._wait_for_weights(label))
            self.label = label
            return
        self.transfer.write(label)
        self.wire.run(self._push(self._live(), label))
        self._check(label)
        self.label, self.before = label, self.label
        kept = {self.label, self.before} - {""}
        self.wire.run(self.transfer.clear(self._live(), kept))

    def generate(self, prompts: Sequence[tuple[int, ...]], draw: Draw) -> list[Completion]:
        """G = len(draw.seeds) / len(prompts) completions of each prompt, in order.

        As `laurel.rollout.sampler.Sampler.generate` has it. `sync` must have been called before.
        """
        each, rest = divmod(len(draw.seeds), max(len(prompts), 1))
        assert rest == 0, f"{len(draw.seeds)} seeds for {len(prompts)} prompts"
        assert self.label, "no weights were put on the servers"
        check_prompts(self.policy, prompts)
        limits = list(draw.limits) or [draw.max_completion_length] * len(draw.seeds)
        limits = clip_to_positions(self.policy.positions, prompts, each, limits)
        jobs = [
            job
            for i, prompt in enumerate(prompts)
            for job in prompt_jobs(prompt, i, each, draw, limits)
        ]
        done = self.wire.run(self._answers(jobs, draw))
        return [done[row] for row in range(len(draw.seeds))]

    async def _answers(self, jobs: Sequence[PromptJob], draw: Draw) -> dict[int, Completion]:
        """Every row's completion; those of a server that fails are asked for elsewhere.

        Where none is left, the servers are looked for once more: one that was started anew takes
        the weights, and goes on.
        """
        done: dict[int, Completion] = {}
        waiting, revived = list(jobs), False
        while waiting:
            if not self._live():
                if revived or not await self._revive():
                    raise self._none_left()
                revived = True
            requests = self._requests(waiting)
            asked = [self._ask(server, part, draw) for server, part in requests]
            answers = await gather(asked)
            found = {
                row: completion
                for (server, _), answer in zip(requests, answers, strict=True)
                for row, completion in answer.items()
                if server.down is None
            }
            found = await self._without_foreign(requests, found)
            done.update(found)
            waiting = [job for job in waiting if job.rows[0] not in done]
        return done

    def _requests(self, jobs: Sequence[PromptJob]) -> list[tuple[Server, list[PromptJob]]]:
        """Which server is asked for what."""
        mine: dict[str, list[PromptJob]] = {}
        for job in jobs:
            mine.setdefault(self._route(job).url, []).append(job)
        return [
            (server, part)
            for server in self.servers
            for part in server.split_requests(mine.get(server.url, []))
        ]

    def _route(self, job: PromptJob) -> Server:
        """The server of a prompt: always the same while it lives, then another that does."""
        data = b"".join(token.to_bytes(8, "little") for token in job.prompt)
        number = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        home, live = self.servers[number % len(self.servers)], self._live()
        return home if home.down is None else live[number % len(live)]

    async def _ask(
        self, server: Server, jobs: list[PromptJob], draw: Draw
    ) -> dict[int, Completion]:
        """The completions of one request; nothing where the server is down."""
        told = self.label if server.known.kind == "laurel" else None
        asked = expected_answer(self.policy, jobs, draw.stop, told)
        model = self.transfer.model(server, self.label)
        try:
            salt = self.salted(self.label)
            return await server.complete(model, jobs, draw, asked, salt, self.tokenizer)
        except ServerDown as error:
            mark_down(server, error)
        except ServerRefusal as error:
            if error.status != 404:
                raise
            # a server that was started anew knows no adapters
            what = f"it does not serve `{model}` any more."
            mark_down(server, ServerDown(what, where=error.where, fix=error.fix))
        return {}

    async def _without_foreign(
        self, requests: Sequence[tuple[Server, list[PromptJob]]], found: Mapping[int, Completion]
    ) -> dict[int, Completion]:
        """The completions of servers that still have our weights, after they were drawn.

        Of laurel's server each completion told. LaurelError where other weights are there.
        """
        kept = dict(found)
        silent = {
            server.url: server
            for server, _ in requests
            if server.down is None and server.known.kind != "laurel" and self.transfer.names_version
        }
        for server in silent.values():
            try:
                if await self._has_ours(server):
                    continue
                mark_down(server, ServerDown("it was started anew.", where=server.url))
            except ServerDown as error:
                mark_down(server, error)
            for other, part in requests:
                if other is server:
                    rows = [row for job in part for row in job.rows]
                    kept = {row: one for row, one in kept.items() if row not in rows}
        return kept

    async def _warn_of_others(self) -> None:
        """Tell of weights of another run on a server, before the first of ours replace them."""
        for server in self.servers:
            found = await server.version() if self.transfer.names_version else ""
            others = found not in (server.untouched, "") and not found.startswith(f"{self.run}-")
            if others:
                say = "%s has the weights `%s`: if another run still trains on it, one will stop"
                logging.getLogger(__name__).warning(say, server.url, found)

    async def _has_ours(self, server: Server) -> bool:
        """Has it the weights that this run left there? False where it was started anew.

        LaurelError where somebody else's are there.
        """
        found = await server.version()
        if found == server.pushed:
            return True
        if found in (server.untouched, ""):
            return False
        raise foreign_weights(found, server.pushed, server.url)

    async def _check_servers(self) -> None:
        """Which servers are there, and have they what this run left? Before new weights."""
        await gather(self._check_server(server) for server in self.servers)
        if not self._live():
            raise self._none_left()

    async def _check_server(self, server: Server) -> None:
        """Look at one server; it is down after that, or not."""
        try:
            if server.down is not None:
                await server.identify()
                server.down, server.pushed = None, ""
            # the others of a run may find the next version there already
            known = self.leader and self.transfer.names_version and server.pushed
            if known and not await self._has_ours(server):
                server.pushed = ""
        except ServerDown as error:
            mark_down(server, error)

    async def _push(self, servers: Sequence[Server], label: str) -> None:
        """Put the weights of a label on servers; those that do not answer are down after it.

        One that refuses ends the run, after all others have finished what they began.
        """

        async def push(server: Server) -> LaurelError | None:
            try:
                await self.transfer.push(server, label)
                server.pushed = label
            except ServerDown as error:
                server.pushed = ""
                mark_down(server, error)
            except LaurelError as error:
                return error
            return None

        for refused in await gather(push(server) for server in servers):
            if refused is not None:
                raise refused
        if not self._live():
            raise self._none_left()

    async def _revive(self) -> bool:
        """Put the weights of now on servers that are there again; are there any?

        One that did not answer in time would only be waited for once more.
        """
        gone = [one for one in self.servers if not isinstance(one.down, ServerTimeout)]
        await gather(self._check_server(server) for server in gone)
        live = self._live()
        if not live:
            return False
        if not self.leader:
            await self._wait_for_weights(self.label)
            return True
        try:
            await self._push(live, self.label)
        except ServerDown:
            return False
        return True

    async def _wait_for_weights(self, label: str) -> None:
        """Wait until every server has the weights of a label, which another process sends.

        A server that has them not in time is down; LaurelError where that is true of all.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self.options.timeout
        waiting = [server for server in self.servers if server.down is None]
        while waiting:
            waiting = [server for server in waiting if not await self._arrived(server, label)]
            if waiting and loop.time() > end:
                what = (
                    f"the weights `{label}` did not come within {self.options.timeout:g} seconds."
                )
                late = ServerTimeout(what, where=waiting[0].url, fix="Did the first process stop?")
                for server in waiting:
                    mark_down(server, late)
                if not self._live():
                    raise late
                return
            await asyncio.sleep(POLL if waiting else 0)

    async def _arrived(self, server: Server, label: str) -> bool:
        """Has a server the weights of this label? One that does not answer is down."""
        try:
            if self.transfer.names_version:
                there = await server.version() == label
            else:
                there = label in (await server.identify()).models
        except ServerDown as error:
            mark_down(server, error)
            return True
        server.pushed = label if there else server.pushed
        return there

    def _check(self, label: str) -> None:
        """Hold what the servers now have against the trainer's weights."""
        live = self._live()
        if self.transfer.names_version:
            self.wire.run(gather(self._has_ours(server) for server in live))
        self._check_sums(live, label)
        for server in live:
            model, first = self.transfer.model(server, label), server.baseline_gap is None
            if not first and self.exact:
                continue
            done = self.wire.run(
                probe(server, self.policy, model, self.salted(label), COLD if first else 1.0)
            )
            if first:
                check_first(server, self.policy, done)
            else:
                check_again(server, self.policy, done, label)

    def _check_sums(self, live: Sequence[Server], label: str) -> None:
        """Checksums: of laurel's servers like the trainer's, of vLLM's like each other."""
        for kind in KNOWN:
            alike = [server for server in live if server.known.kind == kind]
            if not alike or (kind != "laurel" and len(alike) < 2):
                continue
            asked = [server.checksums(self.transfer.model(server, label)) for server in alike]
            sums = self.wire.run(gather(asked))
            found = {server.url: one for server, one in zip(alike, sums, strict=True)}
            ours = self.transfer.digests(label) if kind == "laurel" else None
            check_sums(found, ours, label)

    def salted(self, label: str) -> str:
        """What parts a cache of prompts from those of other weights, of earlier processes too."""
        return f"{label}-{self.salt}"

    def _live(self) -> list[Server]:
        """The servers that answer."""
        return [server for server in self.servers if server.down is None]

    def _none_left(self) -> LaurelError:
        """The error for no server that answers: why of each."""
        downs = [(server.url, server.down) for server in self.servers if server.down is not None]
        first = downs[0][1]
        what = " ".join(f"{url}: {down.what}" for url, down in downs[1:])
        return ServerDown(f"{first.what} {what}".strip(), where=first.where, fix=first.fix)


def prompt_jobs(
    prompt: tuple[int, ...], place: int, each: int, draw: Draw, limits: Sequence[int]
) -> list[PromptJob]:
    """The jobs of a prompt: its completions by their limits, which turns of episodes may part."""
    rows = range(place * each, (place + 1) * each)
    found: list[PromptJob] = []
    for limit in Counter(limits[row] for row in rows):
        mine = tuple(row for row in rows if limits[row] == limit)
        found.append(PromptJob(prompt, mine, tuple(draw.seeds[row] for row in mine), limit))
    return found


def mark_down(server: Server, error: ServerDown) -> None:
    """A server is down: its rows go to another, and the user is told once."""
    if server.down is None:
        server.down = error
        logging.getLogger(__name__).warning("a server is not asked any more: %s", error)


async def gather(works: Iterable[Coroutine[Any, Any, Found]]) -> list[Found]:
    """What all of them return, side by side; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
