"""Continuous batching over the compact decoder: a bounded number of rows in flight; who ends
leaves, and the queue fills the places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laurel.model.compact import Cache, Compact
from laurel.model.sampler import Completion, chunks, draw, holding, uniforms

SAMPLE, GROUP, START, SLOT, TIME, TOKEN = range(6)  # what `rows` says of each row in flight
PREFILL = 8192  # prompt tokens read at once


class Decoder:
    """Samples `each` completions of every prompt; completion i belongs to prompt i // each. See
    `sampler.sample`.

    A prompt's completions enter together, shortest prompts first, when an eighth of the places is
    free.
    """

    def __init__(
        self,
        model: Compact,
        prompts: Sequence[tuple[int, ...]],
        each: int,
        seeds: Sequence[int],
        limits: Sequence[int],
        rows_at_once: int,
    ) -> None:
        self.model, self.prompts, self.each, self.tokenizer = (
            model,
            prompts,
            each,
            model.policy.tokenizer,
        )
        self.queue = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        self.size, longest = min(max(rows_at_once // each, 1), len(prompts)) * each, max(limits)
        self.cache = Cache(model, self.size, self.size // each, max(map(len, prompts)), longest)
        self.rows = torch.zeros(6, 0, dtype=torch.long)
        self.limits, self.finish, self.uniforms = (
            torch.tensor(limits),
            ["length"] * len(limits),
            torch.from_numpy(uniforms(seeds, longest)),
        )
        self.out_ids = torch.zeros(len(limits), longest, dtype=torch.long)
        self.out_logp, self.length = (
            torch.zeros(len(limits), longest),
            torch.zeros(len(limits), dtype=torch.long),
        )
        self.eos = torch.tensor(sorted(model.policy.eos_ids), dtype=torch.long)

    @torch.no_grad()
    def run(
        self, temperature: float, top_k: int, top_p: float, stop: tuple[str, ...]
    ) -> list[Completion]:
        """Draw token after token until every row has ended."""
        how = (temperature, top_k, top_p, stop)
        while self.queue or self.rows.shape[1]:
            room = self.size - self.rows.shape[1]
            if self.queue and room >= max(self.size // 8, self.each):
                self.admit(min(room // self.each, len(self.queue)), how)
            if self.rows.shape[1]:
                self.cache.reserve(0, int(self.rows[TIME].max()) + 1)
                logits = self.model.step(
                    *(self.rows[what] for what in (TOKEN, GROUP, START, SLOT, TIME)), self.cache
                )
                self.rows[TIME] += 1
                self.take(0, logits, how)
        self.model.rooms.clear()
        ids, logps = self.out_ids.tolist(), self.out_logp.tolist()
        return [
            Completion(tuple(ids[n][:k]), tuple(logps[n][:k]), self.finish[n])
            for n, k in enumerate(self.length.tolist())
        ]

    def admit(self, count: int, how: tuple) -> None:
        """The next `count` prompts: read, and the first token of each of their completions
        drawn.
        """
        chosen, each = [self.queue.pop() for _ in range(count)], self.each
        for part in chunks(chosen, max(1, PREFILL // len(self.prompts[chosen[-1]]))):
            groups, prompts = self.unused(GROUP, len(part)), [self.prompts[i] for i in part]
            self.cache.reserve(int(groups.max()) + 1, 0)
            logits = self.model.prefill(prompts, groups, self.cache)
            new = torch.zeros(6, len(part) * each, dtype=torch.long)
            new[SAMPLE] = (torch.tensor(part)[:, None] * each + torch.arange(each)).flatten()
            new[GROUP], new[SLOT] = groups.repeat_interleave(each), self.unused(SLOT, new.shape[1])
            new[START] = torch.tensor([len(prompt) for prompt in prompts]).repeat_interleave(each)
            first, self.rows = self.rows.shape[1], torch.cat([self.rows, new], 1)
            self.take(first, logits.repeat_interleave(each, 0), how)

    def unused(self, what: int, count: int) -> Tensor:
        """The lowest numbers that no row in flight has as its `what`: [count]."""
        used = set(self.rows[what].tolist())
        return torch.tensor([n for n in range(count + len(used)) if n not in used][:count])

    def take(self, first: int, logits: Tensor, how: tuple) -> None:
        """Draw a token for the rows from `first` on from their logits, note it, and let rows that
        end with it leave.
        """
        temperature, top_k, top_p, stop = how
        rows = self.rows[:, first:]
        sample, time = rows[SAMPLE], self.length[rows[SAMPLE]]
        point = self.uniforms[sample, time]
        if top_k or top_p < 1:
            ids, logp = draw(logits, point, temperature, top_k=top_k, top_p=top_p)
        else:
            ids, logp = self.model.draw(logits, point, temperature)
        self.out_ids[sample, time], self.out_logp[sample, time], rows[TOKEN] = ids, logp, ids
        self.length[sample] = time + 1
        ended = self.limits[sample] == time + 1
        for why, which in (
            ("stop", self.stopped(sample, stop)),
            ("eos", torch.isin(ids, self.eos)),
        ):
            ended |= which
            for n in sample[which].tolist():
                self.finish[n] = why
        if ended.any():
            self.rows = self.rows[:, torch.cat([torch.ones(first, dtype=torch.bool), ~ended])]

    def stopped(self, sample: Tensor, stop: tuple[str, ...]) -> Tensor:
        """Which of these completions now hold a stop string."""
        if not stop:
            return torch.zeros(len(sample), dtype=torch.bool)
        rows = zip(self.out_ids[sample].tolist(), self.length[sample].tolist(), strict=True)
        return holding(stop, self.tokenizer, [ids[:length] for ids, length in rows])
