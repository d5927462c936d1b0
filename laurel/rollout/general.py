"""The general sampler: any causal LM of transformers, by its own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from laurel.core.sample import Completion, Finish
from laurel.core.tensors import float_rows, int_rows, ints
from laurel.fast.autograd import from_numpy
from laurel.fast.decode import chunks, rows_with_stop, sample_tokens, uniform_numbers
from laurel.fast.logprob import upcast_logits
from laurel.model.policy import Policy


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
    """`sample` for any causal LM of transformers, in evaluation mode.

    Without a usable cache it reads the whole row again at each token.
    """
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    done: dict[int, list[Completion]] = {}
    for chunk in chunks(by_length, max(1, rows_at_once // max(each, 1))):
        members = [i * each + g for i in chunk for g in range(each)]
        state = GeneralRows(policy, [prompts[i] for i in chunk], each, [limits[n] for n in members])
        uniform = from_numpy(uniform_numbers([seeds[n] for n in members], state.longest))
        found = state.run(uniform, temperature, top_k, top_p, stop)
        done.update({i: found[k * each : (k + 1) * each] for k, i in enumerate(chunk)})
    return [completion for i in range(len(prompts)) for completion in done[i]]


class GeneralRows:
    """The rows being sampled: their cache, their attention mask, and their tokens so far.

    `alive` lists the rows still in the batch; `open_N` says which rows have not ended (a row that
    has ended may linger in the batch).
    """

    def __init__(
        self, policy: Policy, prompts: list[tuple[int, ...]], each: int, limits: list[int]
    ) -> None:
        self.policy = policy
        self.cache: Any = None
        self.limits = torch.tensor(limits)
        self.longest = max(limits)
        ids, mask = left_padded(prompts)
        self.ids = ids.to(policy.device)
        self.mask = mask.to(policy.device)
        self.logits = self.forward(self.ids)
        if each > 1:
            self.repeat(each)
        rows = len(prompts) * each
        self.alive = torch.arange(rows)
        self.open_N = torch.ones(rows, dtype=torch.bool)
        self.out_ids = torch.zeros(rows, self.longest, dtype=torch.long)
        self.out_logp = torch.zeros(rows, self.longest, dtype=self.logits.dtype)
        self.length = list(limits)
        self.finish: list[Finish] = ["length"] * rows
        self.last = torch.zeros(rows, dtype=torch.long)
        self.eos = torch.tensor(sorted(policy.eos_ids), dtype=torch.long)

    def repeat(self, each: int) -> None:
        """Every row so many times: a prompt is read once for all of its completions."""
        self.logits = self.logits.repeat_interleave(each, 0)
        self.mask = self.mask.repeat_interleave(each, 0)
        if self.cache is None:
            self.ids = self.ids.repeat_interleave(each, 0)
        else:
            self.cache.batch_repeat_interleave(each)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [rows, V] after the last token.

        The cache is extended where the model has one that rows can leave.
        """
        mask = self.mask if bool((self.mask == 0).any()) else None
        keywords = {"attention_mask": mask, "past_key_values": self.cache, "use_cache": True}
        if self.policy.takes_positions:
            keywords["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if self.policy.whole_logits:
            with self.policy.autocast():
                out = self.policy.causal(input_ids=ids, **keywords)
            logits = upcast_logits(out.logits[:, -1])
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
        uniform_NT = uniform_NT.to(self.logits.device)
        for t in range(self.longest):
            if t:
                self.advance()
            self.draw(uniform_NT, t, temperature, top_k, top_p)
            self.close_ended(t, stop)
            if not self.open_N.any():
                break
        return self.completions()

    def draw(
        self, uniform_NT: Tensor, t: int, temperature: float, top_k: int, top_p: float
    ) -> None:
        """Token t of the rows that are still in the batch."""
        point = uniform_NT[self.alive.to(uniform_NT.device), t]
        ids, logp = sample_tokens(self.logits, point, temperature, top_k=top_k, top_p=top_p)
        self.last = ids.cpu()
        self.out_ids[self.alive, t] = self.last
        self.out_logp[self.alive, t] = logp.cpu()

    def completions(self) -> list[Completion]:
        """The completions as they were drawn, each to its own length."""
        ids = int_rows(self.out_ids)
        logps = float_rows(self.out_logp)
        return [
            Completion(tuple(ids[n][:k]), tuple(logps[n][:k]), self.finish[n])
            for n, k in enumerate(self.length)
        ]

    def close_ended(self, t: int, stop: tuple[str, ...]) -> None:
        """Close the rows that end with token t: by an end token, else a stop string, else limit."""
        self.close(self.alive[torch.isin(self.last, self.eos)], t, "eos")
        if stop:
            self.close(self.stopped(stop, t), t, "stop")
        self.close(self.alive[self.limits[self.alive] == t + 1], t, "length")

    def advance(self) -> None:
        """Logits after the last token of every row; closed rows leave the batch before."""
        ids = self.leave(self.last)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        column = ids.to(self.mask.device)[:, None]
        if self.cache is None:
            self.ids = column = torch.cat([self.ids, column], 1)
        self.logits = self.forward(column)

    def close(self, rows: Tensor, t: int, why: Finish) -> None:
        """These rows end with token t, if they have not ended before."""
        for n in ints(rows[self.open_N[rows]]):
            self.finish[n] = why
            self.length[n] = t + 1
            self.open_N[n] = False

    def stopped(self, stop: tuple[str, ...], t: int) -> Tensor:
        """Rows whose text now holds a stop string."""
        drawn = int_rows(self.out_ids[self.alive, : t + 1])
        return self.alive[rows_with_stop(stop, self.policy.tokenizer, drawn)]

    def leave(self, ids: Tensor) -> Tensor:
        """Take closed rows out of the batch, and return the ids of those that stay.

        Only once they are an eighth of it, since the cache is copied.
        """
        keep = self.open_N[self.alive]
        if int(keep.sum()) > 0.875 * len(keep):
            return ids
        self.alive = self.alive[keep]
        index = keep.nonzero()[:, 0].to(self.mask.device)
        self.mask = self.mask[index]
        if self.cache is None:
            self.ids = self.ids[index]
        else:
            self.cache.batch_select_indices(index)
        return ids[keep]


def left_padded(prompts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [N, L], padding on the left, so that all prompts end together."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def can_lose_rows(cache: Any) -> bool:
    """Can rows of a cache be repeated and dropped?

    Those of dynamic key-value layers can. With recurrent and static states every token reads the
    whole row again.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(cache, "layers", None)
    return bool(layers) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers
    )
