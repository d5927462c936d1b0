"""The sampler of this process.

It is a decoder that knows the model where there is one, else the general sampler.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from laurel.core.errors import UsageError
from laurel.core.protocols import Generator
from laurel.core.sample import Completion, Draw, Group, Key, Message, Sample
from laurel.data.source import Row
from laurel.fast.decode import (
    CompactDecoder,
    PromptBatch,
    SamplingOptions,
    compact_because,
    compact_of,
    has_hooks,
    sample_compact,
)
from laurel.fast.inflight import sample_static
from laurel.fast.static import SamplingParameters, StaticDecoder, static_because, static_decoder_of
from laurel.model.chat import encode_prompt
from laurel.model.policy import Policy
from laurel.model.weights import check_ids
from laurel.rollout.general import sample_general

ROWS_AT_ONCE = 1024


class SamplingWay(NamedTuple):
    """name: `compact`, `static` or `general`. why: why it is not what is fastest on this device."""

    name: str
    why: str


def choose_sampling_way(policy: Policy) -> SamplingWay:
    """How a policy is sampled where it is.

    On a CPU compact, static, general: the first that can; elsewhere static or general.
    """
    on_cpu = policy.device.type == "cpu"
    faster = compact_because(policy) if on_cpu else ""
    if on_cpu and not faster:
        return SamplingWay("compact", "")
    why = static_because(policy)
    return SamplingWay("general", why) if why else SamplingWay("static", faster)


def decoder_of(policy: Policy) -> CompactDecoder | StaticDecoder | None:
    """The decoder that samples a policy, with its weights now; None: the general path does."""
    found = compact_of(policy) if policy.device.type == "cpu" else None
    found = static_decoder_of(policy) if found is None else found
    if not isinstance(found, CompactDecoder) and policy.packs and not has_hooks(policy):
        warn_slow_sampler(policy)
    return found


def warn_slow_sampler(policy: Policy) -> None:
    """Log, once and in one line, why a policy is not sampled in its device's fastest way."""
    if policy.decoders.get("warned"):
        return
    policy.decoders["warned"] = True
    name, why = choose_sampling_way(policy)
    how = "with static buffers" if name == "static" else "by the general path"
    if why:
        kind = type(policy.causal).__name__
        logging.getLogger(__name__).warning("%s is sampled %s: %s", kind, how, why)


class Sampler:
    """A `laurel.core.protocols.Generator` over a policy of this process.

    Llama-like models take the compact decoder (laurel/fast/decode.py) on a CPU and static buffers
    (laurel/fast/static.py) on CUDA, all others the general sampler (laurel/rollout/general.py); all
    three draw the same tokens.
    """

    def __init__(self, policy: Policy, rows_at_once: int = ROWS_AT_ONCE) -> None:
        self.policy = policy
        self.rows_at_once = rows_at_once

    @property
    def tokenizer(self) -> Any:
        return self.policy.tokenizer

    @property
    def exact(self) -> bool:
        return True

    @property
    def precision(self) -> str:
        return str(self.policy.dtype).removeprefix("torch.")

    def sync(self, version: int) -> None:
        """Nothing: a decoder reads the weights anew in each `generate`."""

    def close(self) -> None:
        """Nothing: there are no connections."""

    @torch.no_grad()
    def generate(self, prompts: Sequence[tuple[int, ...]], draw: Draw) -> list[Completion]:
        """G = len(draw.seeds) / len(prompts) completions of each prompt, in order.

        Completion i belongs to prompt i // G. It ends at an end-of-sequence id (which it keeps),
        when its text holds a `stop` string (which it keeps), or at its length limit (never more
        than the model has positions left).
        """
        each, rest = divmod(len(draw.seeds), max(len(prompts), 1))
        assert rest == 0, f"{len(draw.seeds)} seeds for {len(prompts)} prompts"
        check_prompts(self.policy, prompts)
        limits = list(draw.limits) or [draw.max_completion_length] * len(draw.seeds)
        limits = clip_to_positions(self.policy.positions, prompts, each, limits)
        was = self.policy.model.training
        self.policy.model.eval()
        try:
            return self._decode(prompts, each, limits, draw)
        finally:
            self.policy.model.train(was)

    def _decode(
        self, prompts: Sequence[tuple[int, ...]], each: int, limits: list[int], draw: Draw
    ) -> list[Completion]:
        policy, rows_at_once = self.policy, self.rows_at_once
        model = decoder_of(policy) if draw.seeds else None
        if isinstance(model, StaticDecoder):
            how = SamplingParameters(draw.temperature, draw.top_k, draw.top_p)
            return sample_static(
                model, prompts, each, draw.seeds, limits, how, draw.stop, rows_at_once
            )
        if model is not None:
            options = SamplingOptions(draw.temperature, draw.top_k, draw.top_p, tuple(draw.stop))
            prompt_batch = PromptBatch(prompts, each, draw.seeds, limits, options)
            return sample_compact(model, prompt_batch, rows_at_once)
        how = (draw.temperature, draw.top_k, draw.top_p, draw.stop)
        return sample_general(policy, prompts, each, draw.seeds, limits, *how, rows_at_once)


def sample(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    *,
    seeds: Sequence[int],
    max_completion_length: int | Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    rows_at_once: int = ROWS_AT_ONCE,
) -> list[Completion]:
    """`Sampler.generate` in one call; max_completion_length: one for all, or one per completion."""
    one = isinstance(max_completion_length, int)
    draw = Draw(
        "",
        0,
        0,
        len(seeds) // max(len(prompts), 1),
        max_completion_length if one else max(max_completion_length, default=0),
        temperature,
        tuple(stop),
        top_k,
        top_p,
        tuple(seeds),
        () if one else tuple(max_completion_length),
    )
    return Sampler(policy, rows_at_once).generate(prompts, draw)


def check_prompts(policy: Policy, prompts: Sequence[tuple[int, ...]]) -> None:
    """An empty prompt, or an id that the model has no embedding for, is a UsageError."""
    if not all(prompts):
        raise UsageError(
            "a prompt without a token has nothing to go on from.",
            where=f"prompt {[*map(len, prompts)].index(0)}",
        )
    model: Any = policy.model
    size: int = model.get_input_embeddings().weight.shape[0]
    for i, ids in enumerate(prompts, 1):
        if max(ids) >= size:
            check_ids(policy, ids, f"prompt {i}")


def clip_to_positions(
    positions: int | None, prompts: Sequence[tuple[int, ...]], each: int, limits: list[int]
) -> list[int]:
    """The limits, cut to the positions that a model has left behind each prompt.

    A prompt that leaves none is a UsageError.
    """
    longest = max(map(len, prompts), default=0)
    if positions is None or longest + max(limits, default=0) <= positions:
        return limits
    if longest >= positions:
        what = (
            f"a prompt of {longest} tokens, and the model has {positions} positions: there is no"
            " room for an answer."
        )
        raise UsageError(
            what, where="prompt", fix="Leave such prompts out, or take a model with more positions."
        )
    return [min(limit, positions - len(prompts[n // each])) for n, limit in enumerate(limits)]


def rollout(generator: Generator, rows: Sequence[Row], draw: Draw) -> list[Group]:
    """One group per row: `num_generations` completions of its prompt.

    Each sample has ids, log-probabilities, finish and text.
    """
    prompts = [
        encode_prompt(generator.tokenizer, row.columns["prompt"], tools=row.columns.get("tools"))
        for row in rows
    ]
    seeds = draw.seeds_of([row.id for row in rows])
    completions = generator.generate(prompts, replace(draw, seeds=seeds))
    texts = generator.tokenizer.batch_decode(
        [c.spoken for c in completions], skip_special_tokens=True
    )
    groups, count = list[Group](), draw.num_generations
    for i, (row, prompt_ids) in enumerate(zip(rows, prompts, strict=True)):
        samples = tuple(
            as_sample(draw, row, g, prompt_ids, completions[n], texts[n])
            for g, n in enumerate(range(i * count, (i + 1) * count))
        )
        groups.append(Group(row.id, row.columns, samples))
    return groups


def as_sample(
    draw: Draw, row: Row, g: int, prompt_ids: tuple[int, ...], done: Completion, text: str
) -> Sample:
    """Completion g of a row's prompt as a Sample of one turn."""
    return Sample(
        key=Key(draw.run, row.where, row.id, g, draw.step),
        prompt_ids=prompt_ids,
        completion_ids=done.ids,
        logps=done.logps,
        loss_mask=(True,) * len(done.ids),
        temperature=draw.temperature,
        finish=done.finish,
        text=text,
        turns=(Message(role="assistant", content=text),),
    )
