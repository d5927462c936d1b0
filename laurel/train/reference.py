"""log ref of a batch: computed where it is new, from a cache where rows of data come again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from laurel.core.sample import Batch
from laurel.core.tensors import ints
from laurel.model.policy import Policy
from laurel.rollout.pack import pack
from laurel.train import parallel
from laurel.train.reference_cache import ReferenceCache, digest, epoch_blocks, row_digests
from laurel.train.session import Session
from laurel.train.starter import cache_folder


def with_reference(session: Session, batch: Batch, *, of_step: bool = False) -> Batch:
    """The batch with log ref of its tokens: from the cache, and the rest computed in micro-batches.

    of_step: it is this process's part of a step's batch, so every process is here, and what one has
    computed goes into the caches of all.
    """
    known: list[Tensor | None] = [None] * len(batch)
    if (cache := session.reference_cache) is not None:
        new = computed_blocks(session, cache, batch)
        for part in parallel.gather(new) if of_step else [new]:
            cache.known.update(part)
        known = [cache.known.get(digest_) for digest_ in row_digests(batch)]
    logp_ref_NT = torch.zeros_like(batch.logp_ref_NT)
    for n, logp_T in enumerate(known):
        if logp_T is not None:
            logp_ref_NT[n, : len(logp_T)] = logp_T
    missing = [n for n, logp_T in enumerate(known) if logp_T is None]
    if missing:
        logp = compute_reference(session, batch.rows(missing))
        logp_ref_NT[missing, : logp.shape[1]] = logp
    return batch.replace(logp_ref_NT=logp_ref_NT)


def compute_reference(session: Session, batch: Batch) -> Tensor:
    """log ref of every row, trained on or not: [N, T]."""
    assert session.reference is not None
    return drawn_logps(session, batch, session.reference.policy, session.reference.logp)


def drawn_logps(
    session: Session, batch: Batch, policy: Policy, logp: Callable[[Batch], Tensor]
) -> Tensor:
    """logp of every token that was drawn, trained on or not, without a gradient: [N, T].

    In micro-batches, joined by key. policy: whose passes a profile counts.
    """
    rows = {key: n for n, key in enumerate(batch.keys)}
    logp_NT = torch.zeros_like(batch.logp_old_NT)
    asked = batch.replace(loss_mask_NT=batch.drawn_NT)
    session.clock.passed(policy.causal, asked, learns=False)
    for micro in asked.split(session.config.token_budget, packed=session.packs):
        found_NT = logp(micro.to(session.policy.device)).to(logp_NT.device)
        logp_NT[[rows[key] for key in micro.keys], : found_NT.shape[1]] = found_NT
    return logp_NT


def open_cache(session: Session) -> ReferenceCache:
    """The cache of this run's rows: shared by runs with the same reference, rows and order."""
    assert session.reference is not None
    config = session.config
    ids = [row.id for row in session.rows]
    made_from = (
        session.reference.hash,
        str(session.policy.dtype),
        str(session.policy.device),
        session.row.source.name,
        config.max_length,
        config.token_budget,
        (config.seed, config.prompts_per_step, parallel.world_size()),
        ids,
    )
    file = cache_folder() / "reference" / f"{digest(made_from)}.safetensors"
    per_step = config.prompts_per_step
    return ReferenceCache(
        file, ids, epoch_blocks(len(ids), config.seed, per_step, parallel.world_size())
    )


def computed_blocks(session: Session, cache: ReferenceCache, batch: Batch) -> dict[str, Tensor]:
    """log ref, by digest, of the rows in this batch that are not known yet.

    The rows that are computed together with them are included.
    """
    cut = {"train_on": session.config.train_on, "max_length": session.config.max_length}
    read = session.row.source.read
    assert read is not None
    found: dict[str, Tensor] = {}
    for block in cache.missing_blocks(batch):
        together = [session.rows[i] for i in cache.blocks[block]]
        whole = pack(read(session.policy, together, run="", step=0, **cut))
        logp_NT = compute_reference(session, whole)
        lengths = ints(whole.length_N)
        for n, digest_ in enumerate(row_digests(whole)):
            found[digest_] = logp_NT[n, : lengths[n]].clone()
        cache.done.add(block)
    return found
