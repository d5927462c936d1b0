"""One server that samples: what it is, and its calls."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from laurel.core.errors import LaurelError, UsageError
from laurel.core.http import ROOM, ServerDown, ServerRefusal, ServerTimeout, Wire
from laurel.core.sample import Completion, Draw
from laurel.rollout.engine_answer import ExpectedAnswer, read_choices, wrong_answer

QUICK = 20.0
"""Seconds for a question that costs a server nothing."""
TOKEN_BYTES = 1000
"""Bytes of an answer per token at most, where nothing strange is sent."""
TOGETHER = 1024
"""Completions that one request asks laurel's server for at most."""
AT_ONCE = 64
"""Requests that wait for a server at the same time; it queues more than it can batch anyway."""
SIGNED = 1 << 62
"""Seeds of vLLM are signed, and child i of n gets seed + i: half of them leaves room for that."""
FINE = 1e-4
"""Nats that the mean distance of two computations in float32 is below; bfloat16 makes .001."""
PROMPT_TOKENS = 100_000
"""Tokens of prompts in one request to laurel's server at most."""


@dataclass(frozen=True)
class Known:
    """Versions of a server that are known to work: those of a major number, from `oldest` on.

    untouched: what it calls the weights that it was started with.
    """

    name: str
    oldest: tuple[int, int]
    tried: str
    untouched: str


KNOWN = {
    "laurel": Known("laurel", (0, 1), "0.1", "0"),
    "vllm": Known("vLLM", (0, 32), "0.32.0", "default"),
}
"""The servers that are known, by what `/version` says."""


@dataclass(frozen=True)
class About:
    """What a server says of itself.

    exact: it samples as the trainer would, bit by bit. precision: of its products, "" where it does
    not say. models: the names that it answers to, its own first. positions: tokens of prompt and
    completion together; None where it does not say.
    """

    kind: str
    version: str
    exact: bool = False
    precision: str = ""
    models: tuple[str, ...] = ()
    positions: int | None = None

    def __str__(self) -> str:
        return f"{KNOWN[self.kind].name} {self.version}"


@dataclass(frozen=True)
class PromptJob:
    """Completions of one prompt with one limit: their places among all, and their seeds."""

    prompt: tuple[int, ...]
    rows: tuple[int, ...]
    seeds: tuple[int, ...]
    limit: int


@dataclass
class Server:
    """A server, and what this run knows of it.

    about: None until it has said. down: why it is not asked any more. left: the version of the
    weights that this run left there, "" if none. usual: the distance of its log-probabilities from
    the trainer's when the run first looked.
    """

    url: str
    wire: Wire
    timeout: float
    about: About | None = None
    down: ServerDown | None = None
    pushed: str = ""
    baseline_gap: float | None = None
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    @property
    def known(self) -> About:
        """What it says of itself, after `identify`."""
        assert self.about is not None
        return self.about

    @property
    def untouched(self) -> str:
        """What it calls the weights that it was started with."""
        return KNOWN[self.known.kind].untouched

    @property
    def precision(self) -> str:
        """What it computes in: as it says, or as its distance from a trainer in float32 tells."""
        if self.known.precision or self.baseline_gap is None:
            return self.known.precision
        return "float32" if self.baseline_gap < FINE else ""

    async def call(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float | None = None,
        room: int = ROOM,
        plain: bool = False,
    ) -> Any:
        """`Wire.call` of this server."""
        within = self.timeout if seconds is None else min(seconds, self.timeout)
        how: dict[str, Any] = {"seconds": within, "room": room, "plain": plain}
        return await self.wire.call(self.url, path, body, **how)

    async def identify(self) -> About:
        """Ask what it is; UsageError for what is not known to work."""
        said = fields_of(await self.call("/version", seconds=QUICK), f"{self.url}/version")
        version, kind = str(said.get("version", "")), str(said.get("engine", "vllm"))
        check_version(kind, version, self.url)
        listed = fields_of(await self.call("/v1/models", seconds=QUICK), f"{self.url}/v1/models")
        entries = [fields_of(one, f"{self.url}/v1/models") for one in listed.get("data") or ()]
        if not entries:
            raise wrong_answer("it serves no model", f"{self.url}/v1/models")
        positions = entries[0].get("max_model_len")
        self.about = About(
            kind,
            version,
            bool(said.get("exact", False)),
            str(said.get("precision", "")),
            tuple(str(one.get("id", "")) for one in entries),
            positions if isinstance(positions, int) else None,
        )
        return self.about

    async def version(self) -> str:
        """The version of its weights, as whoever put them there named it."""
        where = f"{self.url}/weight_info"
        found = await developer_call(self.call("/weight_info", seconds=QUICK), self.url)
        return str(fields_of(found, where).get("weight_version", ""))

    async def set_version(self, name: str) -> None:
        """Name the version of its weights."""
        body = {"new_version": name}
        await developer_call(self.call("/update_weight_version", body, seconds=QUICK), self.url)

    async def checksums(self, model: str) -> dict[str, str]:
        """A digest of each of its tensors, by the name that the tensor has there.

        model: a name that it serves. vLLM's are those of the model under all adapters.
        """
        where = f"{self.url}/weight_checker"
        body = {"action": "checksum", **({"model": model} if self.known.kind == "laurel" else {})}
        found = await developer_call(self.call("/weight_checker", body), self.url)
        sums: Any = fields_of(found, where).get("checksums")
        if not isinstance(sums, dict) or not sums:
            raise wrong_answer("it sent no checksums", where)
        named = cast("dict[Any, Any]", sums)
        return {str(name): str(digest) for name, digest in named.items()}

    async def complete(
        self,
        model: str,
        jobs: Sequence[PromptJob],
        draw: Draw,
        asked: ExpectedAnswer,
        salt: str,
        tokenizer: Any,
    ) -> dict[int, Completion]:
        """The completions of these jobs, by their places; of vLLM it is one job.

        salt: what parts a cache of prompts from that of other weights.
        """
        body = self._request(model, jobs, draw, asked, salt)
        tokens = asked.count * (asked.limit + max(len(job.prompt) for job in jobs))
        async with self.turn:
            if self.down is not None:
                raise self.down
            try:
                found = await self.call("/v1/completions", body, room=ROOM + TOKEN_BYTES * tokens)
            except ServerTimeout as error:
                raise await self.timeout_reason(error) from None
        done = read_choices(found, asked, tokenizer, f"{self.url}/v1/completions")
        rows = [row for job in jobs for row in job.rows]
        return dict(zip(rows, done, strict=True))

    def _request(
        self, model: str, jobs: Sequence[PromptJob], draw: Draw, asked: ExpectedAnswer, salt: str
    ) -> dict[str, Any]:
        """The body of a request, in the dialect of this server."""
        body: dict[str, Any] = {
            "model": model,
            "n": len(jobs[0].rows),
            "max_tokens": asked.limit,
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            "top_k": draw.top_k,
            "stop": list(draw.stop),
            "logprobs": 0,
            "return_token_ids": True,
        }
        if self.known.kind == "laurel":
            seeds = [seed for job in jobs for seed in job.seeds]
            return {**body, "prompt": [list(job.prompt) for job in jobs], "seeds": seeds}
        (job,) = jobs
        return {
            **body,
            "prompt": list(job.prompt),
            "seed": job.seeds[0] % SIGNED,
            "stop_token_ids": sorted(asked.ends),
            "cache_salt": salt,
        }

    async def timeout_reason(self, error: ServerTimeout) -> ServerTimeout:
        """The same error, with the reason where the server says that it is paused."""
        try:
            found = fields_of(await self.call("/is_paused", seconds=2.0), self.url)
        except LaurelError:
            return error
        if not found.get("is_paused"):
            return error
        fix = f"Somebody paused it: curl -X POST {self.url}/resume goes on."
        return ServerTimeout(error.what, where=error.where, fix=fix)

    def split_requests(self, jobs: Sequence[PromptJob]) -> list[list[PromptJob]]:
        """The requests for these jobs: laurel's server takes many prompts at once."""
        if self.known.kind != "laurel":
            return [[job] for job in jobs]
        requests: list[list[PromptJob]] = []
        tokens = 0
        alike = sorted(jobs, key=lambda job: (job.limit, len(job.rows)))
        for job in alike:
            last = requests[-1] if requests else []
            same = bool(last) and (last[0].limit, len(last[0].rows)) == (job.limit, len(job.rows))
            tokens += len(job.prompt)
            few = (len(last) + 1) * len(job.rows) <= TOGETHER and tokens <= PROMPT_TOKENS
            if same and few:
                last.append(job)
            else:
                requests.append([job])
                tokens = len(job.prompt)
        return requests


def check_version(kind: str, version: str, url: str) -> None:
    """UsageError for a server, or a version of one, that is not known to work."""
    works = ", ".join(
        f"{one.name} {one.oldest[0]}.{one.oldest[1]} and later {one.oldest[0]}.x"
        f" (tried with {one.tried})"
        for one in KNOWN.values()
    )
    fix = f"Known to work: {works}."
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if kind not in KNOWN or numbers is None:
        what = f"it says that it is {kind} {version}, which is not known here."
        raise UsageError(what, where=url, fix=fix)
    known, found = KNOWN[kind], (int(numbers[1]), int(numbers[2]))
    if found[0] != known.oldest[0] or found < known.oldest:
        what = f"{known.name} {version} is not known to work."
        raise UsageError(what, where=url, fix=fix)


async def developer_call(call: Any, url: str) -> Any:
    """What a call answers that vLLM knows in its developer mode only."""
    try:
        return await call
    except ServerRefusal as error:
        if error.status != 404:
            raise
        fix = f"Start vLLM with VLLM_SERVER_DEV_MODE=1. `laurel doctor --engine {url}` checks all."
        raise LaurelError("it does not know this call.", where=error.where, fix=fix) from None


def fields_of(found: Any, where: str) -> dict[str, Any]:
    """The fields of a JSON object; LaurelError for anything else."""
    if not isinstance(found, dict):
        raise wrong_answer(f"no object with fields, but {str(found)[:60]}", where)
    return cast("dict[str, Any]", found)
