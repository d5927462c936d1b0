"""Rows in flight over a static decoder: every few tokens the host looks who has ended."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from laurel.core.sample import Completion, Finish
from laurel.fast.decode import chunks, holding, uniforms
from laurel.fast.protocol import LanguageModel
from laurel.fast.room import device_memory
from laurel.fast.static import How, Static

CHECK = 16
"""Tokens between two looks. What a row says beyond its end is thrown away, 8 tokens in the mean."""
PREFILL = 8192  # prompt tokens read at once
SHARE = 2  # of the memory that is free, rows in flight take a part in so many
LEAST_ROWS, LEAST_REACH = 8, 64


def rung(count: int, least: int, most: int) -> int:
    """The least of 2^k and 1.5 x 2^k that holds `count`, at most `most`: few sizes, few graphs."""
    size = least
    while size < count:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(size, most)


def rows_that_fit(static: Static, reach: int, longest: int) -> int:
    """Rows that take half of the memory that is free, or theirs already; one at least."""
    memory = device_memory(static.policy.device)
    if memory is None:
        return 1 << 40
    free = memory[0] + (static.buffers.bytes if static.buffers else 0)
    return max(1, free // SHARE // static.a_row(reach, longest))


class InFlight:
    """Samples `each` completions of every prompt; completion i belongs to prompt i // each.

    `at` says which sample is at each place (-1: none); `spent` how many tokens its row may have
    said. Both are the host's, which asks the device only in `look`. See `sampler.sample`.
    """

    def __init__(
        self,
        static: Static,
        prompts: Sequence[tuple[int, ...]],
        each: int,
        seeds: Sequence[int],
        limits: Sequence[int],
        rows_at_once: int,
        check: int = CHECK,
    ) -> None:
        self.static, self.prompts, self.each = static, prompts, each
        self.seeds, self.limits, self.check = seeds, limits, check
        longest = max(limits)
        whole = rung(max(map(len, prompts)) + longest, LEAST_REACH, 1 << 40)
        fit = rows_that_fit(static, whole, longest)
        room = min(rows_at_once, len(seeds), fit)
        self.group = min(each, room)  # samples of one prompt that enter together
        self.size = room // self.group * self.group
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        parts = [list(part) for part in chunks(range(each), self.group)]
        self.queue = [[i * each + g for g in part] for i in order for part in reversed(parts)]
        rows = rung(self.size, LEAST_ROWS, max(self.size, fit))
        self.buffers = static.ready(rows, whole, longest)
        self.at, self.spent = [-1] * self.buffers.rows, [0] * self.buffers.rows
        self.done: dict[int, Completion] = {}
        self.eos = static.policy.eos_ids

    @torch.no_grad()
    def run(self, how: How, stop: tuple[str, ...]) -> list[Completion]:
        """Draw until every row has ended."""
        while self.queue or self.rows():
            free = self.size - len(self.rows())
            if self.queue and (free >= max(self.size // 8, len(self.queue[-1])) or not self.rows()):
                self.admit(free, how)
            self.close_up()
            self.go_on(how)
            self.look(stop)
        return [self.done[n] for n in range(len(self.seeds))]

    def rows(self) -> list[int]:
        """Places that are taken."""
        return [row for row, sample in enumerate(self.at) if sample >= 0]

    def admit(self, free: int, how: How) -> None:
        """The next prompts, as many as there are places for, and the first token of each row."""
        holes = [row for row, sample in enumerate(self.at) if sample < 0]
        chosen = list[list[int]]()
        while self.queue and len(self.queue[-1]) <= free:
            chosen.append(self.queue.pop())
            free -= len(chosen[-1])
        rows = [[holes.pop(0) for _ in part] for part in chosen]
        widest = max(len(self.prompts[part[0] // self.each]) for part in chosen)
        for some in chunks(range(len(chosen)), max(1, PREFILL // widest)):
            self.begin([chosen[i] for i in some], [rows[i] for i in some], how)

    def begin(self, samples: list[list[int]], rows: list[list[int]], how: How) -> None:
        """These samples, by prompt, at these places, with their first token."""
        every, device = self.buffers, self.buffers.every.device
        prompts = [self.prompts[part[0] // self.each] for part in samples]
        logits = self.static.prefill(prompts, rows)
        flat, places = [n for part in samples for n in part], [row for part in rows for row in part]
        where = torch.tensor(places, device=device)
        starts = [len(prompt) for prompt, part in zip(prompts, samples, strict=True) for _ in part]
        for said, values in ((every.start, starts), (every.limit, [self.limits[n] for n in flat])):
            said[where] = torch.tensor(values, device=device)
        every.length[where], every.open[where] = 0, True
        drawn = torch.from_numpy(uniforms([self.seeds[n] for n in flat], max(self.limits)))
        every.uniform[where, : drawn.shape[1]] = drawn.to(device)
        counts = torch.tensor([len(part) for part in samples], device=device)
        self.static.note(where, logits.repeat_interleave(counts, 0, output_size=len(flat)), how)
        for row, sample in zip(places, flat, strict=True):
            self.at[row], self.spent[row] = sample, 1

    def close_up(self) -> None:
        """Where a step could do with fewer places, the last rows take the empty ones."""
        taken = self.rows()
        if self.queue or not taken or self.width(len(taken)) == self.width(taken[-1] + 1):
            return
        holes = [row for row in range(len(taken)) if self.at[row] < 0]
        movers = taken[len(taken) - len(holes) :]
        device = self.buffers.every.device
        source, target = (torch.tensor(rows, device=device) for rows in (movers, holes))
        self.buffers.move(source, target, self.reach(0))
        self.rest(source)
        for old, new in zip(movers, holes, strict=True):
            self.at[new], self.spent[new], self.at[old] = self.at[old], self.spent[old], -1

    def width(self, count: int) -> int:
        """Places that a step computes for so many rows."""
        return rung(count, LEAST_ROWS, self.buffers.rows)

    def reach(self, more: int) -> int:
        """Keys that a step reads when every row has said `more` tokens more."""
        longest = 0
        for row in self.rows():
            sample = self.at[row]
            said = min(self.spent[row] + more, self.limits[sample])
            longest = max(longest, len(self.prompts[sample // self.each]) + said)
        return rung(longest, LEAST_REACH, self.buffers.reach)

    def go_on(self, how: How) -> None:
        """Steps until the next look, without a question to the device."""
        taken = self.rows()
        count = min(self.check, max(self.limits[self.at[row]] - self.spent[row] for row in taken))
        width, reach = self.width(taken[-1] + 1), self.reach(count)
        for _ in range(count):
            self.static.advance(width, reach, how)
        for row in taken:
            self.spent[row] = min(self.spent[row] + count, self.limits[self.at[row]])

    def look(self, stop: tuple[str, ...]) -> None:
        """Who has ended, or holds a stop string, leaves."""
        taken, every = self.rows(), self.buffers
        last = taken[-1] + 1
        lengths, open_ = every.length[:last].tolist(), every.open[:last].tolist()
        ended = {row: lengths[row] for row in taken if not open_[row]}
        stopped = self.stopped(taken, lengths, stop) if stop else {}
        ended |= stopped
        if not ended:
            return
        where = torch.tensor(list(ended), device=every.every.device)
        longest = max(ended.values())
        ids = every.out_ids[where, :longest].tolist()
        logps = every.out_logp[where, :longest].tolist()
        for (row, count), said, logp in zip(ended.items(), ids, logps, strict=True):
            why: Finish = "stop" if row in stopped else "length"
            why = "eos" if said[count - 1] in self.eos else why
            self.done[self.at[row]] = Completion(tuple(said[:count]), tuple(logp[:count]), why)
            self.at[row] = -1
        self.rest(where)

    def rest(self, where: torch.Tensor) -> None:
        """These places are empty: what is computed there is of one token that sees itself."""
        every = self.buffers
        every.open[where], every.token[where] = False, 0
        every.length[where], every.start[where] = 0, 1

    def stopped(
        self,
        taken: list[int],
        lengths: list[int],
        stop: tuple[str, ...],
    ) -> dict[int, int]:
        """Which rows hold a stop string now, and with how many tokens each first did."""
        every, tokenizer = self.buffers, self.static.policy.tokenizer
        tail = max(map(len, stop)) + 9  # what `holding` reads
        wide = tail + self.check + 1
        where = torch.tensor(taken, device=every.every.device)
        last = every.length[where][:, None] - wide + torch.arange(wide, device=where.device)
        ids = every.out_ids[where[:, None], last.clamp(min=0)].tolist()
        rows = [said[max(0, wide - lengths[row]) :] for row, said in zip(taken, ids, strict=True)]
        texts = tokenizer.batch_decode(rows)
        found = dict[int, int]()
        for row, said, text in zip(taken, rows, texts, strict=True):
            if any(one in text for one in stop):
                ends = range(max(1, len(said) - self.check), len(said) + 1)
                holds = holding(stop, tokenizer, [said[:end] for end in ends])
                if bool(holds.any()):
                    found[row] = lengths[row] - len(said) + ends[int(holds.int().argmax())]
        return found


def sample_static(
    static: Static,
    prompts: Sequence[tuple[int, ...]],
    each: int,
    seeds: Sequence[int],
    limits: Sequence[int],
    how: How,
    stop: tuple[str, ...],
    rows_at_once: int,
) -> list[Completion]:
    """`sample` with static buffers; what they took is given back where it is much."""
    try:
        return InFlight(static, prompts, each, seeds, limits, rows_at_once).run(how, stop)
    finally:
        static.rest()


def memory_of(policy: LanguageModel, rows: int, prompt: int, completion: int) -> dict[str, int]:
    """Bytes that static buffers take for so many rows in flight, from shapes alone."""
    static = Static(policy)
    whole = rung(prompt + completion, LEAST_REACH, 1 << 40)
    logits = 16 * static.config.vocab_size
    a_row = static.a_row(whole, completion) - logits
    return {
        "keys and values": rung(rows, LEAST_ROWS, 1 << 40) * a_row,
        "sampler's weights": static.twin.foreseen,
        "sampled logits": rows * logits,
    }
