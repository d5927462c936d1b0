"""log ref of a batch: computed where it is new, remembered where rows of data come again; and the
terms of the loss that hold to it.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from laurel.core.files import writing
from laurel.core.sample import Batch
from laurel.data.split import take
from laurel.model.outputs import Outputs
from laurel.objective.kl import kl_loss
from laurel.rollout.given import GIVEN
from laurel.rollout.pack import pack
from laurel.train import parallel
from laurel.train.starter import cache_folder

if TYPE_CHECKING:
    from laurel.train.setup import Setup


def with_reference(setup: Setup, batch: Batch, *, of_step: bool = False) -> Batch:
    """The batch with log ref of its tokens: what is remembered by content, and the rest computed in
    micro-batches.

    of_step: it is this process's part of a step's batch, so every process is here, and what one has
    computed all remember.
    """
    if setup.remembered is not None:
        learnt = setup.remembered.learn(setup, batch)
        for part in parallel.gather(learnt) if of_step else [learnt]:
            setup.remembered.known.update(part)
    known = [
        setup.remembered.known.get(text) if setup.remembered else None for text in contents(batch)
    ]
    logp_ref_NT = torch.zeros_like(batch.logp_ref_NT)
    for n, logp_T in enumerate(known):
        if logp_T is not None:
            logp_ref_NT[n, : len(logp_T)] = logp_T
    missing = [n for n, logp_T in enumerate(known) if logp_T is None]
    if missing:
        logp = computed(setup, batch.rows(missing))
        logp_ref_NT[missing, : logp.shape[1]] = logp
    return batch.replace(logp_ref_NT=logp_ref_NT)


def computed(setup: Setup, batch: Batch) -> Tensor:
    """log ref of every row, trained on or not, in micro-batches, joined by key: [N, T]."""
    rows = {key: n for n, key in enumerate(batch.keys)}
    logp_ref_NT = torch.zeros_like(batch.logp_ref_NT)
    setup.clock.passed(
        setup.reference.policy.causal, batch.replace(loss_mask_NT=batch.drawn_NT), learns=False
    )
    for micro in batch.split(setup.config.token_budget, packed=setup.packs):
        asked = micro.replace(loss_mask_NT=micro.drawn_NT).to(setup.policy.device)
        logp = setup.reference.logp(asked).to(logp_ref_NT.device)
        logp_ref_NT[[rows[key] for key in micro.keys], : logp.shape[1]] = logp
    return logp_ref_NT


def penalties(setup: Setup, micro: Batch, outputs: Outputs) -> torch.Tensor | float:
    """beta * KL(pi || ref) - entropy_coef * H, per token, where they belong to the loss."""
    config, terms = setup.config, 0.0
    if setup.learns_from_data:
        return terms
    if config.beta and config.kl_placement == "loss":
        exact = config.kl_estimator == "exact"
        kl_NT = (
            setup.policy.kl(micro, setup.reference, outputs.hidden_NLD)
            if exact
            else kl_loss(*outputs.tensors(["logp_NT"]), micro, kl_estimator=config.kl_estimator)
        )
        terms = terms + config.beta * kl_NT
    if config.entropy_coef:
        (entropy_NT,) = outputs.tensors(["entropy_NT"])
        terms = terms - config.entropy_coef * entropy_NT
    return terms


def contents(batch: Batch) -> list[str]:
    """A digest of what a row's log ref depends on besides the reference: its tokens, where its
    answer begins, which are trained.
    """
    ends_N = batch.start_N + batch.length_N
    rows = zip(
        batch.ids_NL.tolist(),
        batch.start_N.tolist(),
        ends_N.tolist(),
        batch.loss_mask_NT.tolist(),
        strict=True,
    )
    return [digest((ids[:end], start, mask[: end - start])) for ids, start, end, mask in rows]


def digest(value: object) -> str:
    """96 bits of a value's text."""
    return hashlib.blake2b(repr(value).encode(), digest_size=12).hexdigest()


class Remembered:
    """log ref of the run's rows of data, by content; on disk between runs with the same reference,
    the same rows and the same order.

    Rows are computed as the first epoch draws them: those of a step together, on the process that
    draws them. Which rows these are follows from the seed, so the last bits of a row do not depend
    on when, or in which of these runs, it was first needed.
    """

    def __init__(self, setup: Setup) -> None:
        config = setup.config
        made_from = (
            setup.reference.hash,
            str(setup.policy.dtype),
            str(setup.policy.device),
            setup.row.source,
            config.max_length,
            config.token_budget,
            (config.seed, config.prompts_per_step, parallel.world_size()),
            [row.id for row in setup.rows],
        )
        self.file = cache_folder() / "reference" / f"{digest(made_from)}.safetensors"
        self.blocks = blocks(
            len(setup.rows), config.seed, config.prompts_per_step, parallel.world_size()
        )
        self.block = {setup.rows[i].id: n for n, block in enumerate(self.blocks) for i in block}
        self.known: dict[str, Tensor] = load_file(self.file) if self.file.is_file() else {}
        self.done, self.saved = set[int](), len(self.known)

    def learn(self, setup: Setup, batch: Batch) -> dict[str, Tensor]:
        """log ref of the rows of data in this batch that are not known yet, and of those they are
        computed with.
        """
        rows = zip(batch.keys, contents(batch), strict=True)
        wanted = {
            self.block.get(key.prompt.rpartition("~")[0])
            for key, text in rows
            if text not in self.known
        }
        cut = {"train_on": setup.config.train_on, "max_length": setup.config.max_length}
        found: dict[str, Tensor] = {}
        for block in sorted(number for number in wanted - self.done if number is not None):
            together = [setup.rows[i] for i in self.blocks[block]]
            whole = pack(GIVEN[setup.row.source](setup.policy, together, run="", step=0, **cut))
            logp_NT = computed(setup, whole)
            lengths = whole.length_N.tolist()
            found.update(
                {text: logp_NT[n, : lengths[n]].clone() for n, text in enumerate(contents(whole))}
            )
            self.done.add(block)
        return found

    def save(self) -> None:
        """Write what was learned since the last time, whole or not at all."""
        if len(self.known) > self.saved and parallel.rank() == 0:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_suffix(f".{os.getpid()}.tmp")
            with writing(self.file):
                save_file(self.known, temporary)
                temporary.replace(self.file)
            self.saved = len(self.known)


def blocks(count: int, seed: int, per_step: int, processes: int) -> list[list[int]]:
    """Rows 0 .. count - 1 as the first epoch draws them, cut where a step or a process ends. Every
    row is in one block.
    """
    order, found = take(0, count, count, seed), list[list[int]]()
    for start in range(0, count, per_step):
        of_step = order[start : start + per_step]
        share, more = divmod(
            per_step, processes
        )  # as `laurel.train.loop.collect` shares a step out
        for rank in range(processes):
            first = rank * share + min(rank, more)
            found.append(of_step[first : first + share + (rank < more)])
    return [block for block in found if block]
