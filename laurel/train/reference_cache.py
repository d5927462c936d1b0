"""A cache of reference log-probabilities for rows of data that come again every epoch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from laurel.core.files import disk_errors
from laurel.core.sample import Batch, take
from laurel.core.tensors import bool_rows, int_rows, ints

TENSOR_FILES: Any = safetensors.torch
"""The library of tensor files, whose arguments are typed in part."""


class ReferenceCache:
    """log ref of rows of data, by a digest of their tokens; kept in a file between runs.

    `blocks` lists the rows (by position) that are computed together: those that one process draws
    in one step of the first epoch. So the last bits of a row do not depend on when, or in which
    of several runs with the same file, it was first needed. `known`: digest -> log ref, [T].
    """

    def __init__(self, file: Path, row_ids: Sequence[str], blocks: Sequence[Sequence[int]]) -> None:
        self.file = file
        self.blocks = blocks
        self.block_of = {row_ids[i]: n for n, block in enumerate(blocks) for i in block}
        self.known: dict[str, Tensor] = TENSOR_FILES.load_file(file) if file.is_file() else {}
        self.done = set[int]()
        self.saved = len(self.known)

    def missing_blocks(self, batch: Batch) -> list[int]:
        """The blocks of the batch's rows that are not known and were not computed yet, sorted."""
        rows = zip(batch.keys, row_digests(batch), strict=True)
        wanted = {
            self.block_of.get(key.prompt.rpartition("~")[0])
            for key, digest_ in rows
            if digest_ not in self.known
        }
        return sorted(number for number in wanted - self.done if number is not None)

    def save(self) -> None:
        """Write what was computed since the last time, whole or not at all."""
        if len(self.known) <= self.saved:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(f".{os.getpid()}.tmp")
        with disk_errors(self.file):
            TENSOR_FILES.save_file(self.known, temporary)
            temporary.replace(self.file)
        self.saved = len(self.known)


def row_digests(batch: Batch) -> list[str]:
    """A digest of what a row's log ref depends on besides the reference.

    These are its tokens, where its answer begins, and which of them are trained on.
    """
    ends_N = batch.start_N + batch.length_N
    rows = zip(
        int_rows(batch.ids_NL),
        ints(batch.start_N),
        ints(ends_N),
        bool_rows(batch.loss_mask_NT),
        strict=True,
    )
    return [digest((ids[:end], start, mask[: end - start])) for ids, start, end, mask in rows]


def digest(value: object) -> str:
    """96 bits of a value's text."""
    return hashlib.blake2b(repr(value).encode(), digest_size=12).hexdigest()


def epoch_blocks(count: int, seed: int, per_step: int, processes: int) -> list[list[int]]:
    """Rows 0 .. count - 1 as the first epoch draws them, cut where a step or a process ends.

    Every row is in one block.
    """
    order, found = take(0, count, count, seed), list[list[int]]()
    for start in range(0, count, per_step):
        of_step = order[start : start + per_step]
        # as `laurel.train.loop.collect` shares a step out
        share, more = divmod(per_step, processes)
        for rank in range(processes):
            first = rank * share + min(rank, more)
            found.append(of_step[first : first + share + (rank < more)])
    return [block for block in found if block]
