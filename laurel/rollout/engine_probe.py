"""A few completions of a fixed prompt, by a server and by the trainer: do they agree?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from laurel.core.errors import LaurelError, UsageError
from laurel.core.sample import Completion, Draw, Group, Key, Sample
from laurel.fast.logprob import WORST
from laurel.model.policy import Policy
from laurel.rollout.engine_answer import ExpectedAnswer
from laurel.rollout.engine_server import PromptJob, Server
from laurel.rollout.pack import pack

COUNT, TOKENS = 8, 8
"""Completions of a probe, and tokens of each at most."""
COLD = 0.5
"""The temperature at which raw log-probabilities differ from those of the sampling."""
UNLIKE = 0.25
"""Nats that the mean distance may be at the start: bfloat16 on one side alone explains .05."""
NEAR = 1e-3
"""Nats that the mean distance may always be after a sync."""
GROWN = 4.0
"""How much larger than at the start the mean distance may be after a sync."""


def probe_job(policy: Policy) -> PromptJob:
    """The fixed prompt, with seeds: eight tokens from all over the vocabulary."""
    prompt: tuple[int, ...] = tuple(map(int, policy.probe()[0]))
    room = TOKENS if policy.positions is None else policy.positions - len(prompt)
    rows = tuple(range(COUNT))
    return PromptJob(prompt, rows, rows, max(1, min(TOKENS, room)))


def expected_answer(
    policy: Policy, jobs: Sequence[PromptJob], stop: tuple[str, ...], version: Any
) -> ExpectedAnswer:
    """What the answer to a request for these jobs is held against."""
    model: Any = policy.model
    vocabulary: int = model.get_input_embeddings().weight.shape[0]
    count = sum(len(job.rows) for job in jobs)
    return ExpectedAnswer(count, jobs[0].limit, vocabulary, policy.eos_ids, stop, version)


async def probe(
    server: Server, policy: Policy, model: str, salt: str, temperature: float
) -> list[Completion]:
    """What a server answers to the fixed prompt."""
    job = probe_job(policy)
    draw = Draw("probe", 0, 0, COUNT, job.limit, temperature)
    asked = expected_answer(policy, [job], (), None)
    found = await server.complete(model, [job], draw, asked, salt, policy.tokenizer)
    return [found[row] for row in job.rows]


@torch.no_grad()
def distances(policy: Policy, done: Sequence[Completion], temperature: float) -> Tensor:
    """|log pi of the server - log pi of the trainer| of each token of a probe, at a temperature."""
    prompt, key = probe_job(policy).prompt, Key("probe", "probe", "probe", 0, 0)
    samples = tuple(
        Sample(
            key,
            prompt,
            one.ids,
            one.logps,
            (True,) * len(one.ids),
            temperature,
            one.finish,
            "",
            (),
        )
        for one in done
    )
    batch = pack([Group("probe", {}, samples)]).to(policy.device)
    was = policy.model.training
    policy.model.eval()
    logp_NT = policy.logp(batch).logp
    policy.model.train(was)
    gap_NT = (logp_NT - batch.logp_old_NT).abs()
    return gap_NT[batch.loss_mask_NT].float().cpu()


def check_first(server: Server, policy: Policy, done: Sequence[Completion]) -> None:
    """Hold a server's first probe, at COLD, against the trainer; keeps how far they are apart.

    UsageError where its log-probabilities are those before the temperature, or another model's.
    """
    cold, raw = (float(distances(policy, done, at).mean()) for at in (COLD, 1.0))
    within = max(NEAR, WORST * policy.slack)
    if cold > within and raw < cold / 4:
        what = "its log-probabilities are raw: they are not those at the sampling temperature."
        fix = "Start vLLM with --logprobs-mode processed_logprobs."
        raise UsageError(what, where=server.url, fix=fix)
    if not cold < UNLIKE:
        what = (
            f"its log-probabilities are {cold:.2g} nats from the trainer's (as raw ones {raw:.2g}):"
            " it does not sample from these weights at this temperature."
        )
        fix = (
            "vLLM: --generation-config vllm, --logprobs-mode processed_logprobs. With adapters, it"
            " must serve the model that they are trained on."
        )
        raise UsageError(what, where=server.url, fix=fix)
    server.baseline_gap = cold


def check_again(server: Server, policy: Policy, done: Sequence[Completion], label: str) -> None:
    """Hold a probe after a sync, at temperature 1, against the trainer and the first one."""
    gap = float(distances(policy, done, 1.0).mean())
    limit = max(NEAR, WORST * policy.slack, GROWN * (server.baseline_gap or 0.0))
    if not gap < limit:
        what = (
            f"after the weights `{label}` were put on it, its log-probabilities are {gap:.2g} nats"
            f" from the trainer's (limit {limit:.2g})."
        )
        fix = "Does another run train on the same server, or is a cache of it stale?"
        raise LaurelError(what, where=server.url, fix=fix)


def check_sums(
    found: Mapping[str, Mapping[str, str]], ours: Mapping[str, str] | None, label: str
) -> None:
    """Hold the checksums of servers against each other, and against the trainer's own.

    found: a server's address -> name -> digest. ours: None where the names there are not ours.
    Servers that divide a model differently have other names, and cannot be compared.
    """
    known = {"the trainer": ours} if ours is not None else {}
    (first, sums), *others = [*known.items(), *found.items()]
    for url, theirs in others:
        if theirs.keys() != sums.keys() and ours is None:
            continue
        differ = sorted(
            name for name in sums.keys() | theirs.keys() if sums.get(name) != theirs.get(name)
        )
        if differ:
            what = (
                f"after the weights `{label}` were put on it, {len(differ)} tensors"
                f" are not those of {first}, such as {differ[0]}."
            )
            fix = (
                "Does another run train on the same server, or did one before? Start it anew (with"
                " adapters: from the model under them)."
            )
            raise LaurelError(what, where=url, fix=fix)
