"""In-flight batching over a static decoder: every few tokens the host asks which rows ended."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laurel.core.sample import Completion, Finish
from laurel.core.tensors import bools, float_rows, int_rows, ints
from laurel.fast.autograd import from_numpy
from laurel.fast.decode import chunks, rows_with_stop, uniform_numbers
from laurel.fast.policy_protocol import LanguageModel
from laurel.fast.room import device_memory
from laurel.fast.static import SamplingParameters, StaticDecoder

CHECK = 16
"""Tokens between two questions to the device.

What is drawn for a row beyond its end is thrown away: 8 tokens in the mean.
"""
PREFILL = 8192
"""Prompt tokens that are read at once."""
SHARE = 2
"""Rows in flight take one part in so many of the memory that is free."""
LEAST_ROWS, LEAST_REACH = 8, 64


def batch_size_step(count: int, least: int, most: int) -> int:
    """The least of 2^k and 1.5 x 2^k that holds `count`, at most `most`: few sizes, few graphs."""
    size = least
    while size < count:
        # 2^k -> 1.5 x 2^k -> 2^(k + 1): a power of two has a single bit
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(size, most)


def rows_that_fit(static: StaticDecoder, reach: int, longest: int) -> int:
    """The number of rows for half of the memory that is free or already theirs; at least one."""
    memory = device_memory(static.policy.device)
    if memory is None:
        return 1 << 40
    free = memory[0] + (static.made.bytes if static.made else 0)
    return max(1, free // SHARE // static.a_row(reach, longest))


class InFlight:
    """Samples `each` completions of every prompt; completion i belongs to prompt i // each.

    `at`: the sample in each row of the buffers (-1: none). `spent`: the most tokens that the row
    can have drawn. Both are lists of the host, which reads from the device only in `collect`. See
    `laurel.rollout.sampler`.
    """

    def __init__(
        self,
        static: StaticDecoder,
        prompts: Sequence[tuple[int, ...]],
        each: int,
        seeds: Sequence[int],
        limits: Sequence[int],
        rows_at_once: int,
        check: int = CHECK,
    ) -> None:
        self.static = static
        self.prompts = prompts
        self.each = each
        self.seeds = seeds
        self.limits = limits
        self.check = check
        longest = max(limits)
        reach = batch_size_step(max(map(len, prompts)) + longest, LEAST_REACH, 1 << 40)
        fit = rows_that_fit(static, reach, longest)
        room = min(rows_at_once, len(seeds), fit)
        # the samples of one prompt that enter together
        self.group = min(each, room)
        self.size = room // self.group * self.group
        self.queue = self.waiting()
        rows = batch_size_step(self.size, LEAST_ROWS, max(self.size, fit))
        self.buffers = static.ready(rows, reach, longest)
        self.at = [-1] * self.buffers.rows
        self.spent = [0] * self.buffers.rows
        self.done: dict[int, Completion] = {}
        self.eos = static.policy.eos_ids

    def waiting(self) -> list[list[int]]:
        """Groups of samples that enter together, the next at the end: shortest prompts first."""
        prompts = range(len(self.prompts))
        order = sorted(prompts, key=lambda i: len(self.prompts[i]), reverse=True)
        parts = [list(part) for part in chunks(range(self.each), self.group)]
        groups = list[list[int]]()
        for prompt in order:
            first = prompt * self.each
            for part in reversed(parts):
                groups.append([first + g for g in part])
        return groups

    def prompt_of(self, sample: int) -> tuple[int, ...]:
        """The prompt of a sample."""
        return self.prompts[sample // self.each]

    @torch.no_grad()
    def run(self, how: SamplingParameters, stop: tuple[str, ...]) -> list[Completion]:
        """Draw until every row has ended."""
        while self.queue or self.rows():
            taken = len(self.rows())
            free = self.size - taken
            if self.queue:
                # a prefill is dearer than a step: it waits until an eighth of the places is free
                enough = max(self.size // 8, len(self.queue[-1]))
                if free >= enough or not taken:
                    self.admit(free, how)
            self.close_gaps()
            self.advance(how)
            self.collect(stop)
        return [self.done[n] for n in range(len(self.seeds))]

    def rows(self) -> list[int]:
        """Places that are taken."""
        return [row for row, sample in enumerate(self.at) if sample >= 0]

    def admit(self, free: int, how: SamplingParameters) -> None:
        """The next prompts, as many as there are places for, and the first token of each row."""
        holes = [row for row, sample in enumerate(self.at) if sample < 0]
        chosen = list[list[int]]()
        while self.queue and len(self.queue[-1]) <= free:
            chosen.append(self.queue.pop())
            free -= len(chosen[-1])
        rows = [[holes.pop(0) for _ in part] for part in chosen]
        widest = max(len(self.prompt_of(part[0])) for part in chosen)
        for some in chunks(range(len(chosen)), max(1, PREFILL // widest)):
            self.begin([chosen[i] for i in some], [rows[i] for i in some], how)

    def begin(
        self, samples: list[list[int]], rows: list[list[int]], how: SamplingParameters
    ) -> None:
        """Put samples, grouped by prompt, into rows of the buffers, and draw their first tokens."""
        prompts = [self.prompt_of(part[0]) for part in samples]
        logits = self.static.prefill(prompts, rows)
        flat_samples = [sample for part in samples for sample in part]
        flat_rows = [row for part in rows for row in part]
        device = self.buffers.every.device
        where = torch.tensor(flat_rows, device=device)
        self.reset(where, flat_samples)
        counts = torch.tensor([len(part) for part in samples], device=device)
        # the size is known here: without it the host would wait for the device
        logits = logits.repeat_interleave(counts, 0, output_size=len(flat_samples))
        self.static.note(where, logits, how)
        for row, sample in zip(flat_rows, flat_samples, strict=True):
            self.at[row] = sample
            self.spent[row] = 1

    def reset(self, where: Tensor, samples: Sequence[int]) -> None:
        """Set the columns of some rows for samples that have drawn no token yet."""
        state = self.buffers
        device = where.device
        starts = [len(self.prompt_of(sample)) for sample in samples]
        limits = [self.limits[sample] for sample in samples]
        seeds = [self.seeds[sample] for sample in samples]
        state.start[where] = torch.tensor(starts, device=device)
        state.limit[where] = torch.tensor(limits, device=device)
        state.length[where] = 0
        state.open[where] = True
        drawn = from_numpy(uniform_numbers(seeds, max(self.limits)))
        state.uniform[where, : drawn.shape[1]] = drawn.to(device)

    def close_gaps(self) -> None:
        """Move the last rows into empty places, where a step gets by with fewer places then."""
        taken = self.rows()
        if self.queue or not taken:
            return
        if self.width(len(taken)) == self.width(taken[-1] + 1):
            return
        holes = [row for row in range(len(taken)) if self.at[row] < 0]
        # as many as there are holes before the place where the rows will end
        movers = taken[len(taken) - len(holes) :]
        device = self.buffers.every.device
        source = torch.tensor(movers, device=device)
        target = torch.tensor(holes, device=device)
        self.buffers.move(source, target, self.reach(0))
        self.empty(source)
        for old, new in zip(movers, holes, strict=True):
            self.at[new] = self.at[old]
            self.spent[new] = self.spent[old]
            self.at[old] = -1

    def width(self, count: int) -> int:
        """The number of places that a step computes for so many rows."""
        return batch_size_step(count, LEAST_ROWS, self.buffers.rows)

    def reach(self, more: int) -> int:
        """The number of keys that a step reads when every row has drawn `more` tokens more."""
        longest = 0
        for row in self.rows():
            sample = self.at[row]
            drawn = min(self.spent[row] + more, self.limits[sample])
            longest = max(longest, len(self.prompt_of(sample)) + drawn)
        return batch_size_step(longest, LEAST_REACH, self.buffers.reach)

    def advance(self, how: SamplingParameters) -> None:
        """Run steps until the next `collect`, without waiting for the device."""
        taken = self.rows()
        left = max(self.limits[self.at[row]] - self.spent[row] for row in taken)
        count = min(self.check, left)
        width = self.width(taken[-1] + 1)
        reach = self.reach(count)
        for _ in range(count):
            self.static.advance(width, reach, how)
        for row in taken:
            self.spent[row] = min(self.spent[row] + count, self.limits[self.at[row]])

    def collect(self, stop: tuple[str, ...]) -> None:
        """Take out the rows that have ended or hold a stop string, with their completions."""
        taken = self.rows()
        state = self.buffers
        last = taken[-1] + 1
        lengths = ints(state.length[:last])
        still_open = bools(state.open[:last])
        ended = {row: lengths[row] for row in taken if not still_open[row]}
        stopped = self.stopped(taken, lengths, stop) if stop else {}
        ended |= stopped
        if not ended:
            return
        where = torch.tensor(list(ended), device=state.every.device)
        longest = max(ended.values())
        rows_ids = int_rows(state.out_ids[where, :longest])
        rows_logps = float_rows(state.out_logp[where, :longest])
        for row, ids, logps in zip(ended, rows_ids, rows_logps, strict=True):
            count = ended[row]
            why: Finish = "stop" if row in stopped else "length"
            # an end token is the stronger reason
            if ids[count - 1] in self.eos:
                why = "eos"
            self.done[self.at[row]] = Completion(tuple(ids[:count]), tuple(logps[:count]), why)
            self.at[row] = -1
        self.empty(where)

    def empty(self, where: Tensor) -> None:
        """Mark places as empty: what a step computes there is of one token that sees itself."""
        state = self.buffers
        state.open[where] = False
        state.token[where] = 0
        state.length[where] = 0
        state.start[where] = 1

    def stopped(
        self,
        taken: list[int],
        lengths: list[int],
        stop: tuple[str, ...],
    ) -> dict[int, int]:
        """Which rows hold a stop string now, and with how many tokens each first did."""
        tokenizer = self.static.policy.tokenizer
        # what `holding` reads, before each of the tokens since the last question
        tail = max(map(len, stop)) + 9 + self.check + 1
        rows = self.tails(taken, lengths, tail)
        texts = tokenizer.batch_decode(rows)
        found = dict[int, int]()
        for row, ids, text in zip(taken, rows, texts, strict=True):
            if not any(one in text for one in stop):
                continue
            ends = range(max(1, len(ids) - self.check), len(ids) + 1)
            holds = rows_with_stop(stop, tokenizer, [ids[:end] for end in ends])
            if bool(holds.any()):
                # the first end that holds one, counted from the row's first token
                found[row] = lengths[row] - len(ids) + ends[int(holds.int().argmax())]
        return found

    def tails(self, taken: list[int], lengths: list[int], tail: int) -> list[list[int]]:
        """The last `tail` ids of these rows; all of a row that has fewer."""
        state = self.buffers
        where = torch.tensor(taken, device=state.every.device)
        # [rows, tail]: the places of a row's last tokens
        first = state.length[where][:, None] - tail
        at = first + torch.arange(tail, device=where.device)
        # places before the first token are read as the first, and cut off again
        ids = int_rows(state.out_ids[where[:, None], at.clamp(min=0)])
        found = list[list[int]]()
        for row, some in zip(taken, ids, strict=True):
            surplus = max(0, tail - lengths[row])
            found.append(some[surplus:])
        return found


def sample_static(
    static: StaticDecoder,
    prompts: Sequence[tuple[int, ...]],
    each: int,
    seeds: Sequence[int],
    limits: Sequence[int],
    how: SamplingParameters,
    stop: tuple[str, ...],
    rows_at_once: int,
) -> list[Completion]:
    """`sample` with static buffers; what they took is given back where it is much."""
    try:
        return InFlight(static, prompts, each, seeds, limits, rows_at_once).run(how, stop)
    finally:
        static.release_if_large()


def memory_of(policy: LanguageModel, rows: int, prompt: int, completion: int) -> dict[str, int]:
    """Bytes that static buffers take for so many rows in flight, from shapes alone."""
    static = StaticDecoder(policy)
    reach = batch_size_step(prompt + completion, LEAST_REACH, 1 << 40)
    logits = 16 * static.config.vocab_size
    a_row = static.a_row(reach, completion) - logits
    return {
        "keys and values": batch_size_step(rows, LEAST_ROWS, 1 << 40) * a_row,
        "sampler's weights": static.twin.foreseen,
        "sampled logits": rows * logits,
    }
