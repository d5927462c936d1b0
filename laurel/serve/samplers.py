"""What samples many requests at once, by the kind of model.

Llama-like models on a CPU take `laurel.fast.decode.ContinuousBatch`, all others `GeneralBatch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from laurel.core.sample import Completion
from laurel.core.tensors import float_rows, int_rows, ints
from laurel.fast.autograd import from_numpy
from laurel.fast.decode import (
    ContinuousBatch,
    Job,
    TokenLogprobs,
    compact_of,
    listed_logprobs,
    scaled_probabilities,
    uniform_numbers,
)
from laurel.model.policy import Policy
from laurel.rollout.general import GeneralRows

Ended = dict[int, tuple[Completion, list[TokenLogprobs]]]
"""Slot -> the completion that ended there, and what was noted of its tokens."""


class SlotSampler(Protocol):
    """Completions in slots: `admit` takes jobs in, `advance` draws a token of each, `collect` takes
    out what has ended, `drop` what nobody wants any more, `drawn` reads what is there so far.

    There must be a free slot for every completion that is admitted.
    """

    free: list[int]

    @property
    def running(self) -> int: ...

    def admit(self, jobs: Sequence[Job]) -> list[list[int]]: ...

    def advance(self) -> None: ...

    def collect(self) -> Ended: ...

    def drop(self, slots: Sequence[int]) -> None: ...

    def drawn(
        self, slot: int, start: int
    ) -> tuple[list[int], list[float], list[TokenLogprobs]]: ...


class JobRows:
    """The completions of one job on the general path, as rows of their own.

    No row stands beside those of another request, so nothing of it depends on them.
    """

    def __init__(self, policy: Policy, job: Job, slots: list[int]) -> None:
        self.rows = GeneralRows(policy, [job.prompt], len(job.seeds), list(job.limits))
        self.options = job.options
        self.slots = slots
        self.t = 0
        uniform = from_numpy(uniform_numbers(job.seeds, max(job.limits)))
        self.uniform: Tensor = uniform.to(self.rows.logits.device)
        self.notes: dict[int, list[TokenLogprobs]] = {slot: [] for slot in slots}

    def draw(self) -> list[int]:
        """Token t of every open row; the slots of the rows that end with it."""
        rows = self.rows
        options = self.options
        before = rows.open_N.clone()
        cut = {"top_k": options.top_k, "top_p": options.top_p}
        if options.lists_logprobs:
            p_NV = scaled_probabilities(rows.logits, options.temperature, **cut)
            found = listed_logprobs(p_NV.log(), options)
            for row, note in zip(ints(rows.alive), found, strict=True):
                self.notes[self.slots[row]].append(note)
        rows.draw(self.uniform, self.t, options.temperature, **cut)
        rows.close_ended(self.t, options.stop)
        # open before, and closed by this token
        ended = before & ~rows.open_N
        return [self.slots[row] for row in ints(ended.nonzero()[:, 0])]

    def advance(self) -> list[int]:
        """One token more of every open row; the slots of the rows that end with it."""
        self.rows.advance()
        self.t += 1
        return self.draw()

    def length(self, slot: int) -> int:
        """The number of tokens drawn of a completion."""
        row = self.slots.index(slot)
        return self.t + 1 if bool(self.rows.open_N[row]) else self.rows.length[row]

    def drawn(self, slot: int, start: int) -> tuple[list[int], list[float], list[TokenLogprobs]]:
        """Ids, log-probabilities and notes of a completion from token `start` on."""
        row = self.slots.index(slot)
        end = self.length(slot)
        (ids,) = int_rows(self.rows.out_ids[row : row + 1, start:end])
        (logps,) = float_rows(self.rows.out_logp[row : row + 1, start:end])
        return ids, logps, self.notes[slot][start:end]

    def completion(self, slot: int) -> tuple[Completion, list[TokenLogprobs]]:
        """A completion that has ended."""
        ids, logps, notes = self.drawn(slot, 0)
        finish = self.rows.finish[self.slots.index(slot)]
        return Completion(tuple(ids), tuple(logps), finish), notes


class GeneralBatch:
    """Any causal LM of transformers: the rows of each job are a batch of their own, which take
    turns.
    """

    def __init__(self, policy: Policy, places: int) -> None:
        self.policy = policy
        self.free = list(range(places))[::-1]
        self.ended: list[int] = []
        self.parts: dict[int, JobRows] = {}

    @property
    def running(self) -> int:
        """Completions in flight."""
        return len(self.parts) - len(self.ended)

    @torch.no_grad()
    def admit(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Read each prompt, and draw the first token of its completions: the slots of each job."""
        found = list[list[int]]()
        for job in jobs:
            slots = [self.free.pop() for _ in job.seeds]
            part = JobRows(self.policy, job, slots)
            self.parts |= dict.fromkeys(slots, part)
            self.ended += part.draw()
            found.append(slots)
        return found

    @torch.no_grad()
    def advance(self) -> None:
        """One token more of every completion in flight."""
        for part in dict.fromkeys(self.parts.values()):
            if bool(part.rows.open_N.any()):
                self.ended += part.advance()

    def collect(self) -> Ended:
        """The completions that have ended since, by slot; their slots are free again."""
        found = {slot: self.parts[slot].completion(slot) for slot in self.ended}
        self.release(self.ended)
        self.ended = []
        return found

    def drop(self, slots: Sequence[int]) -> None:
        """Take completions out that have not been collected; nothing of them is kept."""
        for slot in slots:
            part = self.parts[slot]
            row = torch.tensor([part.slots.index(slot)])
            part.rows.close(row, part.t, "length")
        self.ended = [one for one in self.ended if one not in slots]
        self.release(slots)

    def release(self, slots: Sequence[int]) -> None:
        """Slots are free again."""
        for slot in slots:
            del self.parts[slot]
        self.free += list(slots)

    def drawn(self, slot: int, start: int) -> tuple[list[int], list[float], list[TokenLogprobs]]:
        """What was drawn of a completion, from token `start` on."""
        return self.parts[slot].drawn(slot, start)


def make_sampler(policy: Policy, places: int, longest: int) -> SlotSampler:
    """The way in which a policy is served; its model is in evaluation mode from now on."""
    policy.model.eval()
    model = compact_of(policy) if policy.device.type == "cpu" else None
    if model is None:
        return GeneralBatch(policy, places)
    # a request's tokens depend on its seed and the weights alone, whoever is sampled beside it
    model.invariant = not model.few_are_as_many()
    return ContinuousBatch(model, places, groups=1, width=16, longest=longest)
