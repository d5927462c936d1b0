"""Continuous batching over the compact decoder: a bounded number of rows in flight; who ends leaves, and the queue fills the places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laurel.core.sample import Finish
from laurel.policy.compact import Cache, Compact
from laurel.policy.sampler import Completion, chunks, draw, uniforms

SAMPLE, GROUP, START, TIME, TOKEN = range(5)  # what `rows` says of each row in flight
PREFILL = 8192  # prompt tokens read at once
DRAWN = 1 << 19  # logits drawn from at once: they stay in a core's cache


class Decoder:
    """Samples `each` completions of every prompt; completion i belongs to prompt i // each. See `sampler.sample`.

    Places 0 .. `live` of the cache hold rows in flight. A prompt's completions enter together, shortest prompts first.
    """

    def __init__(
        self, model: Compact, prompts: Sequence[tuple[int, ...]], each: int, seeds: Sequence[int], limits: Sequence[int], rows_at_once: int
    ) -> None:
        self.model, self.prompts, self.each, self.tokenizer = model, prompts, each, model.policy.tokenizer
        self.queue = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        self.size, longest = min(max(rows_at_once // each, 1), len(prompts)) * each, max(limits)
        width = max(map(len, prompts))
        self.cache, self.free, self.left = Cache(model, self.size, self.size // each, width, longest), [], []
        self.live, self.rows = 0, torch.zeros(5, self.size, dtype=torch.long)
        self.limits, self.finish = torch.tensor(limits), ["length"] * len(limits)
        self.uniforms = torch.from_numpy(uniforms(seeds, longest))
        self.out_ids = torch.zeros(len(limits), longest, dtype=torch.long)
        self.out_logp, self.length = torch.zeros(len(limits), longest), torch.zeros(len(limits), dtype=torch.long)
        self.eos = torch.tensor(sorted(model.policy.eos_ids), dtype=torch.long)

    @torch.no_grad()
    def run(self, temperature: float, top_k: int, top_p: float, stop: tuple[str, ...]) -> list[Completion]:
        """Draw token after token until every row has ended."""
        how = (temperature, top_k, top_p, stop)
        while self.queue or self.live:
            room = self.size - self.live
            if self.queue and (room >= max(self.size // 8, self.each) or not self.live):
                self.admit(min(room // self.each, len(self.queue)), how)
            if self.live:
                rows = self.rows[:, : self.live]
                self.cache.reserve(0, int(rows[TIME].max()) + 1)
                logits = self.model.step(rows[TOKEN], rows[GROUP], rows[START], rows[TIME], self.cache)
                rows[TIME] += 1
                self.take(0, logits, how)
        ids, logps = self.out_ids.tolist(), self.out_logp.tolist()
        return [Completion(tuple(ids[n][:k]), tuple(logps[n][:k]), self.finish[n]) for n, k in enumerate(self.length.tolist())]

    def admit(self, count: int, how: tuple) -> None:
        """The next `count` prompts: read, and the first token of each of their completions drawn."""
        chosen = [self.queue.pop() for _ in range(count)]
        longest = len(self.prompts[chosen[-1]])
        for part in chunks(chosen, max(1, PREFILL // longest)):
            while len(self.free) < len(part):
                self.free.append(len(self.left))
                self.left.append(0)
            self.cache.reserve(len(self.left), 0)
            groups = torch.tensor([self.free.pop() for _ in part])
            for group in groups.tolist():
                self.left[group] = self.each
            logits = self.model.prefill([self.prompts[i] for i in part], groups, self.cache)
            first, self.live = self.live, self.live + len(part) * self.each
            rows = self.rows[:, first : self.live]
            rows[SAMPLE] = (torch.tensor(part)[:, None] * self.each + torch.arange(self.each)).flatten()
            rows[GROUP] = groups.repeat_interleave(self.each)
            rows[START] = torch.tensor([len(self.prompts[i]) for i in part]).repeat_interleave(self.each)
            rows[TIME] = 0
            self.take(first, logits.repeat_interleave(self.each, 0), how)

    def take(self, first: int, logits: Tensor, how: tuple) -> None:
        """Draw a token for rows first .. live from their logits, note it, and let rows that end with it leave."""
        temperature, top_k, top_p, stop = how
        rows = self.rows[:, first : self.live]
        sample, time = rows[SAMPLE], self.length[rows[SAMPLE]]
        point, size = self.uniforms[sample, time], max(1, DRAWN // logits.shape[1])
        if not top_k and top_p == 1:
            ids, logp = self.model.draw(logits, point, temperature)
        else:
            drawn = [draw(a, b, temperature, top_k=top_k, top_p=top_p) for a, b in zip(logits.split(size), point.split(size), strict=True)]
            ids, logp = (torch.cat(column) for column in zip(*drawn, strict=True))
        self.out_ids[sample, time], self.out_logp[sample, time], rows[TOKEN] = ids, logp, ids
        self.length[sample] = time + 1
        ended = self.limits[sample] == time + 1
        for why, which in (("stop", self.stopped(sample, stop)), ("eos", torch.isin(ids, self.eos))):
            ended |= which
            self.mark(sample[which], why)
        if ended.any():
            self.leave(first, ended)

    def mark(self, samples: Tensor, why: Finish) -> None:
        """Note why these completions ended; the last reason noted counts."""
        for n in samples.tolist():
            self.finish[n] = why

    def stopped(self, sample: Tensor, stop: tuple[str, ...]) -> Tensor:
        """Which of these completions now hold a stop string. Only the tail that could hold one is decoded."""
        if not stop:
            return torch.zeros(len(sample), dtype=torch.bool)
        back, ids, ends = max(map(len, stop)) + 8, self.out_ids[sample].tolist(), self.length[sample].tolist()
        texts = self.tokenizer.batch_decode([row[max(0, end - back) : end] for row, end in zip(ids, ends, strict=True)])
        return torch.tensor([any(s in text for s in stop) for text in texts], dtype=torch.bool)

    def leave(self, first: int, ended: Tensor) -> None:
        """Rows first + n with ended[n] leave; the last rows take their places, and a prompt without rows frees its entry."""
        gone = first + ended.nonzero()[:, 0]
        for group in self.rows[GROUP, gone].tolist():
            self.left[group] -= 1
            if not self.left[group]:
                self.free.append(group)
        keep = torch.ones(self.live, dtype=torch.bool)
        keep[gone] = False
        self.live = int(keep.sum())
        source, target = self.live + keep[self.live :].nonzero()[:, 0], (~keep[: self.live]).nonzero()[:, 0]
        if len(source):
            self.cache.move(source, target, int(self.rows[TIME, source].max()))
            self.rows[:, target] = self.rows[:, source]
