"""Sampling: a decoder that knows the model where there is one, else the general sampler, for any
causal LM of transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laurel.core.errors import UsageError
from laurel.core.sample import Finish
from laurel.model.logprob import wide
from laurel.model.policy import Policy
from laurel.model.weights import check_ids


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled ids with the log-probability of each at the sampling temperature, and why sampling
    ended.
    """

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Finish

    @property
    def spoken(self) -> tuple[int, ...]:
        """The ids without the one that ended it: an end token need not be one that decoding
        skips.
        """
        return self.ids[:-1] if self.finish == "eos" else self.ids


def sample_seed(run_seed: int, prompt: str, sample: int, step: int) -> int:
    """The seed of one sample: 64 bits that depend on (run, prompt, sample, step) and on nothing
    else.
    """
    return int.from_bytes(
        hashlib.blake2b(f"{run_seed}|{prompt}|{sample}|{step}".encode(), digest_size=8).digest(),
        "little",
    )


def uniforms(seeds: Sequence[int], count: int) -> np.ndarray:
    """[N, count] numbers in [0, 1): row n is a stream of its own, splitmix64 (Steele et al. 2014)
    from seeds[n].

    Counter-based, so a sample's numbers do not depend on its neighbours, and nothing has to be
    saved to resume.
    """
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        z = (
            np.asarray(seeds, dtype=np.uint64)[:, None]
            + np.arange(1, count + 1, dtype=np.uint64)[None] * golden
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


WORDS = 256
"""Words that are added up together before the one that a uniform number points at is looked for
among them.
"""


def draw(
    logits_NV: Tensor, uniform_N: Tensor, temperature: float, *, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF: ids [N], and their log-probabilities [N] under the
    distribution drawn from.

    temperature 0 is greedy (log-probabilities at temperature 1). top_k keeps the k likeliest
    tokens, top_p the smallest set of likeliest tokens that holds that much probability. Nothing is
    asked of the device, so a CUDA graph can hold it.
    """
    scaled_NV = logits_NV if temperature in (0, 1) else wide(logits_NV) / temperature
    p_NV = scaled_NV.softmax(1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
    if temperature == 0:
        ids = logits_NV.argmax(1)
        return ids, p_NV.gather(1, ids[:, None])[:, 0].log()
    if top_k or top_p < 1:
        likeliest, order = p_NV.sort(dim=1, descending=True, stable=True)
        drop = likeliest.cumsum(1) - likeliest >= top_p
        if top_k:
            drop[:, top_k:] = True
        p_NV = p_NV.masked_fill(drop.scatter(1, order, drop), 0.0)
        p_NV = p_NV / p_NV.sum(1, keepdim=True)
    ids = inverse(p_NV, uniform_N)
    return ids, p_NV.gather(1, ids[:, None])[:, 0].log()


def inverse(p_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The first token of each row whose probability and all before it make more than the uniform
    number: [N]. Never one of probability 0.

    Sums of WORDS words first, then the words of one sum: a matrix as wide as the vocabulary is read
    once, and no second one made.
    """
    whole, rest = divmod(p_NV.shape[1], WORDS)
    blocks = p_NV[:, : whole * WORDS].unflatten(1, (whole, WORDS)).sum(2) if whole else p_NV[:, :0]
    part_NB = (
        torch.cat([blocks, p_NV[:, whole * WORDS :].sum(1, keepdim=True)], 1) if rest else blocks
    )
    block_N, left_N = beyond(part_NB.double(), uniform_N.double() * part_NB.double().sum(1))
    at_NW = block_N[:, None] * WORDS + torch.arange(WORDS, device=p_NV.device)
    p_NW = p_NV.gather(1, at_NW.clamp(max=p_NV.shape[1] - 1)) * (at_NW < p_NV.shape[1])
    return block_N * WORDS + beyond(p_NW.double(), left_N)[0]


def beyond(part_NB: Tensor, point_N: Tensor) -> tuple[Tensor, Tensor]:
    """The first part with which the sum is more than a point, and what of the point is left before
    it: [N] each. Parts are float64.
    """
    total_NB = part_NB.cumsum(1)
    point_N = point_N.minimum(total_NB[:, -1] * (1 - 2.0**-50)).clamp(
        min=0
    )  # rounding may have taken it to the end
    which_N = (total_NB <= point_N[:, None]).sum(1)
    return which_N, point_N - (total_NB - part_NB).gather(1, which_N[:, None])[:, 0]


def holding(stop: Sequence[str], tokenizer: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Which rows of ids end in text that holds a stop string: [N]. Only the tail that could hold
    one is decoded.
    """
    texts = tokenizer.batch_decode([row[-max(map(len, stop)) - 9 :] for row in rows])
    return torch.tensor([any(s in text for s in stop) for text in texts], dtype=torch.bool)


@torch.no_grad()
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
    rows_at_once: int = 1024,
) -> list[Completion]:
    """Sample len(seeds) / len(prompts) completions of each prompt, in order: completion i belongs
    to prompt i // G.

    A completion ends at an end-of-sequence id (which it keeps), when its text holds a `stop` string
    (which it keeps), or at its length limit (one for all, or one per completion; never more than
    the model has positions left). Llama-like models take the compact decoder
    (laurel/model/compact.py) on a CPU and static buffers (laurel/model/static.py) on CUDA, all
    others the general sampler; all three draw the same tokens.
    """
    from laurel.model.decode import Decoder
    from laurel.model.inflight import sample_static
    from laurel.model.static import How, Static
    from laurel.model.ways import decoder_of

    each, rest = divmod(len(seeds), max(len(prompts), 1))
    assert rest == 0, f"{len(seeds)} seeds for {len(prompts)} prompts"
    if not all(prompts):
        raise UsageError(
            "a prompt without a token has nothing to go on from.",
            where=f"prompt {[*map(len, prompts)].index(0)}",
        )
    for i, ids in enumerate(prompts, 1):
        check_ids(policy, ids, f"prompt {i}")
    limits = (
        [max_completion_length] * len(seeds)
        if isinstance(max_completion_length, int)
        else list(max_completion_length)
    )
    limits = within_positions(policy.positions, prompts, each, limits)
    was = policy.model.training
    policy.model.eval()
    try:
        model = decoder_of(policy) if seeds else None
        if isinstance(model, Static):
            return sample_static(
                model,
                prompts,
                each,
                seeds,
                limits,
                How(temperature, top_k, top_p),
                tuple(stop),
                rows_at_once,
            )
        if model is not None:
            return Decoder(model, prompts, each, seeds, limits, rows_at_once).run(
                temperature, top_k, top_p, tuple(stop)
            )
        return sample_general(
            policy,
            prompts,
            each,
            seeds,
            limits,
            temperature,
            top_k,
            top_p,
            tuple(stop),
            rows_at_once,
        )
    finally:
        policy.model.train(was)


def within_positions(
    positions: int | None, prompts: Sequence[tuple[int, ...]], each: int, limits: list[int]
) -> list[int]:
    """The limits, cut to the positions that a model has left behind each prompt. A prompt that
    leaves none is a UsageError.
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


@torch.no_grad()
def sample_general(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    each: int,
    seeds: Sequence[int],
    limits: Sequence[int],
    temperature: float,
    top_k: int,
    top_p: float,
    stop: tuple[str, ...],
    rows_at_once: int,
) -> list[Completion]:
    """`sample` for any causal LM of transformers, in evaluation mode; without a usable cache it
    reads the whole row again at each token.
    """
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    done: dict[int, list[Completion]] = {}
    for chunk in chunks(by_length, max(1, rows_at_once // max(each, 1))):
        members = [i * each + g for i in chunk for g in range(each)]
        state = _Rows(policy, [prompts[i] for i in chunk], each, [limits[n] for n in members])
        uniform = torch.from_numpy(uniforms([seeds[n] for n in members], state.longest))
        found = state.run(uniform, temperature, top_k, top_p, stop)
        done.update({i: found[k * each : (k + 1) * each] for k, i in enumerate(chunk)})
    return [completion for i in range(len(prompts)) for completion in done[i]]


def chunks(items: Sequence[int], size: int) -> list[Sequence[int]]:
    """Consecutive slices of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]


class _Rows:
    """The rows being sampled: their cache, their attention mask, and what they have said so far.

    `alive` lists the rows still in the batch; `open_N` says which rows still speak (a closed row
    may linger in the batch).
    """

    def __init__(
        self, policy: Policy, prompts: list[tuple[int, ...]], each: int, limits: list[int]
    ) -> None:
        self.policy, self.cache = policy, None
        self.limits, self.longest = torch.tensor(limits), max(limits)
        count, width = len(prompts), max(map(len, prompts))
        ids, mask = (
            torch.zeros(count, width, dtype=torch.long),
            torch.zeros(count, width, dtype=torch.long),
        )
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        self.ids, self.mask = ids.to(policy.device), mask.to(policy.device)
        self.logits = self.forward(self.ids)
        if each > 1:
            self.logits, self.mask = (
                self.logits.repeat_interleave(each, 0),
                self.mask.repeat_interleave(each, 0),
            )
            if self.cache is None:
                self.ids = self.ids.repeat_interleave(each, 0)
            else:
                self.cache.batch_repeat_interleave(each)
        rows = count * each
        self.alive, self.open_N = torch.arange(rows), torch.ones(rows, dtype=torch.bool)
        self.out_ids = torch.zeros(rows, self.longest, dtype=torch.long)
        self.out_logp = torch.zeros(rows, self.longest, dtype=self.logits.dtype)
        self.length, self.finish = limits, ["length"] * rows

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [rows, V] after the last token, extending the cache where the model has one that
        rows can leave.
        """
        mask = self.mask if bool((self.mask == 0).any()) else None
        keywords = {"attention_mask": mask, "past_key_values": self.cache, "use_cache": True}
        if self.policy.takes_positions:
            keywords["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if self.policy.whole_logits:
            with self.policy.autocast():
                out = self.policy.causal(input_ids=ids, **keywords)
            logits = wide(out.logits[:, -1])
        else:
            out = self.policy.body(ids, **keywords)
            logits = self.policy.head(out.last_hidden_state[:, -1])
        cache = getattr(out, "past_key_values", None)
        self.cache = cache if can_lose_rows(cache) else None
        return logits

    def run(
        self,
        uniform_NT: Tensor,
        temperature: float,
        top_k: int,
        top_p: float,
        stop: tuple[str, ...],
    ) -> list[Completion]:
        """Draw token after token until every row has ended."""
        eos, uniform_NT = (
            torch.tensor(sorted(self.policy.eos_ids), dtype=torch.long),
            uniform_NT.to(self.logits.device),
        )
        for t in range(self.longest):
            point = uniform_NT[self.alive.to(uniform_NT.device), t]
            ids, logp = (
                column.cpu()
                for column in draw(self.logits, point, temperature, top_k=top_k, top_p=top_p)
            )
            self.out_ids[self.alive, t], self.out_logp[self.alive, t] = ids, logp
            self.close(self.alive[torch.isin(ids, eos)], t, "eos")
            if stop:
                self.close(self.stopped(stop, t), t, "stop")
            self.close(self.alive[self.limits[self.alive] == t + 1], t, "length")
            if not self.open_N.any():
                break
            ids = self.leave(ids)
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
            column = ids.to(self.mask.device)[:, None]
            if self.cache is None:
                self.ids = column = torch.cat([self.ids, column], 1)
            self.logits = self.forward(column)
        ids, logps = self.out_ids.tolist(), self.out_logp.tolist()
        return [
            Completion(tuple(ids[n][:k]), tuple(logps[n][:k]), self.finish[n])
            for n, k in enumerate(self.length)
        ]

    def close(self, rows: Tensor, t: int, why: Finish) -> None:
        """These rows end with token t, if they have not ended before."""
        for n in rows[self.open_N[rows]].tolist():
            self.finish[n], self.length[n], self.open_N[n] = why, t + 1, False

    def stopped(self, stop: tuple[str, ...], t: int) -> Tensor:
        """Rows whose text now holds a stop string."""
        return self.alive[
            holding(stop, self.policy.tokenizer, self.out_ids[self.alive, : t + 1].tolist())
        ]

    def leave(self, ids: Tensor) -> Tensor:
        """Take closed rows out once they are an eighth of the batch (leaving copies the cache); the
        ids of those that stay.
        """
        keep = self.open_N[self.alive]
        if int(keep.sum()) > 0.875 * len(keep):
            return ids
        self.alive, index = self.alive[keep], keep.nonzero()[:, 0].to(self.mask.device)
        self.mask = self.mask[index]
        if self.cache is None:
            self.ids = self.ids[index]
        else:
            self.cache.batch_select_indices(index)
        return ids[keep]


def can_lose_rows(cache: Any) -> bool:
    """Dynamic key-value layers can repeat and drop rows; for recurrent and static states every
    token reads the row again.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(cache, "layers", None)
    return bool(layers) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers
    )
