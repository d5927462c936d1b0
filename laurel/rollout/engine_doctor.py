"""Can a server be sampled on, and with what? What `laurel doctor --engine` asks it.

Nothing of a server is changed: no weights are sent, nothing is paused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from laurel.core.errors import LaurelError
from laurel.core.http import ServerRefusal, Wire, check_urls
from laurel.rollout.engine_answer import Choice
from laurel.rollout.engine_server import Server, fields_of

PROMPT = (5, 6, 7)
"""Ids that every vocabulary has."""
COUNT, TOKENS = 32, 4
NOBODY = "laurel-doctor-asks"
"""A name that no adapter has."""
SAME = 1e-4
"""Nats within which two log-probabilities are one."""
EMPTY = hashlib.sha256(b"").hexdigest()
"""The digest of a tensor that a server has put away."""


@dataclass(frozen=True)
class Finding:
    """One line: what was asked, whether it is well, what was found, and what to do."""

    name: str
    state: Literal["ok", "warn", "bad"]
    text: str
    fix: str = ""


def survey(urls: list[str], timeout: float) -> Iterator[Finding]:
    """Every finding about every server. One that cannot be asked is bad, never left out."""
    wire = Wire()
    try:
        for url in check_urls(urls, "engine"):
            server = Server(url, wire, timeout)
            try:
                about = wire.run(server.identify())
            except LaurelError as error:
                yield Finding("server", "bad", str(error))
                continue
            positions = f", {about.positions} positions" if about.positions else ""
            yield Finding("server", "ok", f"{url}: {about}, model {about.models[0]}{positions}")
            for name, question in QUESTIONS.items():
                try:
                    yield wire.run(question(server))
                except LaurelError as error:
                    yield Finding(name, "bad", error.what, error.fix)
    finally:
        wire.close()


async def sample(
    server: Server, temperature: float, seed: int, prompt: tuple[int, ...] = PROMPT
) -> list[Choice]:
    """COUNT completions of a short prompt."""
    body: dict[str, Any] = {
        "model": server.known.models[0],
        "prompt": list(prompt),
        "n": COUNT,
        "max_tokens": TOKENS,
        "temperature": temperature,
        "logprobs": 0,
        "return_token_ids": True,
        "seed": seed,
    }
    where = f"{server.url}/v1/completions"
    found = fields_of(await server.call("/v1/completions", body), where)
    try:
        return [Choice.model_validate(one) for one in found.get("choices") or ()]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        what = f"an answer has no usable `{place}`: {first['msg']}."
        fix = "Token ids and log-probabilities are asked for with return_token_ids and logprobs."
        raise LaurelError(what, where=where, fix=fix) from None


async def ask_ids(server: Server) -> Finding:
    """Token ids in, token ids with log-probabilities out."""
    choices = await sample(server, 1.0, 1)
    short = [one for one in choices if len(one.token_ids) != len(one.logprobs.token_logprobs)]
    if len(choices) != COUNT or short:
        text = f"{len(choices)} of {COUNT} completions, {len(short)} of them without log-probs"
        return Finding("token ids", "bad", text, "Not every completion can be trained on.")
    tokens = sum(len(one.token_ids) for one in choices)
    return Finding(
        "token ids", "ok", f"{tokens} ids of {COUNT} completions, each with its log-prob"
    )


async def ask_logps(server: Server) -> Finding:
    """Are log-probabilities those at the sampling temperature?"""
    warm, cold = [first_logps(await sample(server, at, 2)) for at in (1.0, 0.5)]
    both = warm.keys() & cold.keys()
    apart = max((abs(warm[token] - cold[token]) for token in both), default=0.0)
    unsure = all(warm[token] > -0.01 for token in both)
    if apart > SAME:
        return Finding("log-probs", "ok", "processed: those at the sampling temperature")
    if unsure:
        text = "raw or processed? The model is too sure of its first token to tell"
        return Finding("log-probs", "warn", text, "A run tells at its start.")
    fix = "Start vLLM with --logprobs-mode processed_logprobs."
    return Finding("log-probs", "bad", "raw: those before the temperature", fix)


def first_logps(choices: list[Choice]) -> dict[int, float]:
    """token: its log-probability, of the first tokens of completions."""
    return {
        one.token_ids[0]: logp
        for one in choices
        if one.token_ids and (logp := one.logprobs.token_logprobs[0]) is not None
    }


async def ask_seeds(server: Server) -> Finding:
    """The same seed gives the same ids, and another gives others."""
    first, again, other = [
        [one.token_ids for one in await sample(server, 2.0, seed)] for seed in (3, 3, 4_000)
    ]
    if first != again:
        text = "the same seed gave other ids"
        return Finding("seeds", "warn", text, "A run on it cannot be repeated.")
    if first == other:
        text = "another seed gave the same ids"
        return Finding("seeds", "bad", text, "Does it sample at all, or is the model certain?")
    return Finding("seeds", "ok", "the same seed gives the same ids, another others")


async def ask_version(server: Server) -> Finding:
    """Does it name the version of its weights, and can it be paused?"""
    version = await server.version()
    paused = fields_of(await server.call("/is_paused", seconds=20.0), server.url).get("is_paused")
    if paused:
        fix = f"curl -X POST {server.url}/resume"
        return Finding("weights", "bad", f"version `{version}`, and it is paused", fix)
    if server.known.kind == "laurel" and await opens_nothing(server):
        fix = "For training start it with --allow_folder and the folder of the run."
        return Finding("weights", "bad", f"version `{version}`, and it reads no new ones", fix)
    return Finding("weights", "ok", f"version `{version}`; new ones by folder (reload_weights)")


async def opens_nothing(server: Server) -> bool:
    """Does laurel's server refuse every folder? Asked with one that there is not."""
    body = {"method": "reload_weights", "kwargs": {"weights_path": f"/{NOBODY}"}}
    try:
        await server.call("/collective_rpc", body, seconds=20.0)
    except ServerRefusal as error:
        return error.status == 403
    return False


async def ask_sums(server: Server) -> Finding:
    """Does it tell checksums of its weights?"""
    sums = await server.checksums(server.known.models[0])
    away = sum(digest == EMPTY for digest in sums.values())
    text = f"{len(sums)} tensors"
    if away:
        text = f"{text}, {away} of them put away in another form, which no digest covers"
        return Finding("checksums", "warn", text, "Weights are checked by log-probs all the same.")
    return Finding("checksums", "ok", text)


async def ask_adapters(server: Server) -> Finding:
    """Can adapters be loaded while it runs? Asked by unloading one that there is not."""
    try:
        await server.call("/v1/unload_lora_adapter", {"lora_name": NOBODY}, seconds=20.0)
    except ServerRefusal as error:
        if NOBODY in error.what:
            return Finding("adapters", "ok", "loaded and unloaded while it runs")
    fix = "For use_peft: --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."
    return Finding("adapters", "warn", "cannot be loaded: full weights only", fix)


QUESTIONS: Mapping[str, Callable[[Server], Coroutine[Any, Any, Finding]]] = {
    "token ids": ask_ids,
    "log-probs": ask_logps,
    "seeds": ask_seeds,
    "weights": ask_version,
    "checksums": ask_sums,
    "adapters": ask_adapters,
}
"""What is asked of every server, in this order."""
