"""Metrics of a step as (sum, count), and its samples with the reason of every score.

The checks of them that stop a run are here, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from laurel.core.errors import LaurelError
from laurel.core.metrics import Sums, resident_bytes
from laurel.core.result import Result, Score
from laurel.core.sample import Batch, Group, Outputs
from laurel.core.tensors import floats
from laurel.fast.logprob import USUAL
from laurel.objective.kl import kl_metrics
from laurel.objective.policy import approx_kl, ratio_max, ratio_metrics
from laurel.objective.preference import preference_metrics
from laurel.objective.reward import imitation_metrics
from laurel.objective.value import value_metrics
from laurel.reward.mixture import metrics as mixture_metrics
from laurel.rollout.pack import reward_matrix
from laurel.train import parallel
from laurel.train.profile import record_profile, whole_model
from laurel.train.relabel import RELABELLED
from laurel.train.session import Session
from laurel.weight.group import informative

GROWN = 2.0
"""How much larger than at the start logits may become, for the sampler's check in every step."""


Metrics = Mapping[str, tuple[Any, Any]]


def add_all(sums: Sums, metrics: Metrics, prefix: str = "") -> None:
    """Add metrics as (sum, count), which may be tensors."""
    for name, (total, count) in metrics.items():
        sums.add(prefix + name, float(total), float(count))


def reward_metrics(session: Session, groups: Sequence[Group], sums: Sums) -> None:
    """Rewards, lengths, ends and duplicates of freshly sampled groups."""
    add_all(sums, mixture_metrics(groups))
    reward_PG = reward_matrix(groups)
    present = ~reward_PG.isnan()
    if session.clock.device is not None:
        session.clock.drew(whole_model(session.policy), session.policy.dtype, groups)
    sums.add("reward", float(reward_PG.nansum()), int(present.sum()))
    sums.add("failed_fraction", int((~present).sum()), present.numel())
    if reward_PG.shape[1] > 1:
        spread = [
            float(row[~row.isnan()].std()) for row in reward_PG if int((~row.isnan()).sum()) > 1
        ]
        sums.add("reward_std", sum(spread), len(spread))
        sums.add("frac_reward_zero_std", int((~informative(reward_PG)).sum()), len(reward_PG))
    completion_metrics(groups, sums)


def completion_metrics(groups: Sequence[Group], sums: Sums) -> None:
    """Duplicates, lengths and ends of completions."""
    for group in groups:
        distinct = {sample.completion_ids for sample in group.samples}
        sums.add("duplicates", len(group.samples) - len(distinct), len(group.samples))
        for sample in group.samples:
            own = sum(sample.loss_mask)
            sums.add("completions/mean_length", own, 1)
            sums.peak("completions/max_length", own)
            sums.add("completions/clipped_ratio", sample.finish == "length", 1)
            sums.total("tokens", own)


@torch.no_grad()
def record_update(
    session: Session,
    micro: Batch,
    outputs: Outputs,
    step: int,
    sums: Sums,
    *,
    whole: bool = True,
) -> None:
    """Quantities of one micro-batch, weighted by what they are means of.

    whole: every token that the policy drew is measured in this step, here or by `record_rest`. Else
    metrics of the policy's samples are left out: they would be of the rows with a weight alone.
    """
    padding = 0 if session.packs else int((~micro.attention_NL).sum())
    sums.add("padding_share", padding, micro.attention_NL.numel())
    count = int(micro.loss_mask_NT.sum())
    if session.row.trained.head:
        add_scores(session, outputs, micro, sums)
        sums.total("supervised_tokens", count)
        return
    if whole:
        record_tokens(session, micro, outputs, step, sums)
    if session.bound.credit == "critic":
        clip = session.config.cliprange_value
        (value_NT,) = outputs.tensors(["value_NT"])
        add_all(sums, value_metrics(value_NT, micro, cliprange_value=clip or 0.0))
    reads, measure = session.bound.measure_reads, session.bound.measure
    if measure is not None and reads != ("logp_NT",):
        add_all(sums, measure(*outputs.tensors(reads), micro))
    logp_NT = outputs.tensors(["logp_NT"])[0].detach()
    if session.by_comparison:
        add_all(sums, preference_metrics(logp_NT, micro, beta=scale(session)))
    if session.learns_from_data:
        if not session.by_comparison:  # of pairs it would mix chosen and rejected
            sums.add("nll", float(-logp_NT[micro.loss_mask_NT].sum()), count)
        sums.total("supervised_tokens", count)


def record_tokens(session: Session, micro: Batch, outputs: Outputs, step: int, sums: Sums) -> None:
    """Metrics of the policy at the tokens of the loss mask.

    These are entropy, and of its own samples the ratio, clipping and KL.
    """
    logp, entropy = (x.detach() for x in outputs.tensors(["logp_NT", "entropy_NT"]))
    mask = micro.loss_mask_NT
    sums.add("entropy", float(entropy[mask].sum()), int(mask.sum()))
    if not session.on_policy:
        return
    pairs = {**ratio_metrics(logp, micro), "approx_kl": approx_kl(logp, micro)}
    if session.bound.measure is not None and session.bound.measure_reads == ("logp_NT",):
        pairs |= session.bound.measure(logp, micro)
    if session.measures_kl(step):
        pairs |= kl_metrics(logp, micro)
    add_all(sums, pairs)
    sums.peak("ratio/max", float(ratio_max(logp, micro)))


@torch.no_grad()
def record_rest(session: Session, rest: Batch, step: int, sums: Sums) -> Tensor:
    """`record_tokens` of rows that no gradient is taken of, by a forward pass.

    Returns |log pi - log pi_old| of their tokens. So the metrics of a step are those of all its
    samples, whichever of them have something to teach.
    """
    gaps = [torch.zeros(0)]
    for micro in rest.split(session.config.token_budget, packed=session.packs):
        with session.clock("forward"):
            outputs = session.policy.forward(micro, ("logp_NT", "entropy_NT"))
        record_tokens(session, micro, outputs, step, sums)
        (logp_NT,) = outputs.tensors(["logp_NT"])
        gaps.append((logp_NT - micro.logp_old_NT)[micro.loss_mask_NT].abs().cpu())
    return torch.cat(gaps)


def scale(session: Session) -> float:
    """beta as the implied reward has it: 0 where it is 0; 1 of an objective without one."""
    return 1.0 if session.config.beta is None else session.config.beta


def add_scores(session: Session, outputs: Outputs, micro: Batch, sums: Sums) -> None:
    """The scorer's own metrics, and those of imitation where its language model is trained, too."""
    if session.bound.measure is not None:
        scores = outputs.tensors(session.bound.measure_reads)
        add_all(sums, session.bound.measure(*scores, micro))
    if outputs.logp_NT is not None:
        add_all(sums, imitation_metrics(outputs.logp_NT, micro))


def record_samples(
    session: Session, step: int, groups: Sequence[Group], batch: Batch, drawn: Sequence[str]
) -> None:
    """Write every sample of the step as one line.

    A line has prompt, text, ids, log-probabilities, mask, weight, and the result of each reward.
    The samples of all processes are written in the order in which their prompts were `drawn`: the
    file is the one that one process would write.
    """
    # of comparisons the grade, else the weight of the first token
    found = batch.weight_NT[:, 0] if batch.comparison is None else batch.comparison.grade_N
    weight_N = dict(zip(batch.keys, floats(found), strict=True))
    mine = [
        (
            group.prompt,
            [sample_line(group, i, weight_N[s.key]) for i, s in enumerate(group.samples)],
        )
        for group in groups
    ]
    every = [pair for part in parallel.gather(mine) for pair in part]
    place = {prompt: at for at, prompt in enumerate(drawn)}
    if parallel.rank() == 0:
        session.run.log_samples(
            step,
            [line for _, lines in sorted(every, key=lambda pair: place[pair[0]]) for line in lines],
        )


def sample_line(group: Group, i: int, weight: float) -> dict[str, Any]:
    """Sample i of a group as one line.

    The row's column `relabelled` (see `laurel.train.relabel`) has a prompt for each sample.
    """
    sample = group.samples[i]
    return {
        "prompt_id": group.prompt,
        "sample": sample.key.sample,
        "version": sample.key.version,
        "prompt": group.row["prompt"],
        **({"relabelled": group.row[RELABELLED][i]} if RELABELLED in group.row else {}),
        "completion": sample.text,
        "finish": sample.finish,
        "length": len(sample.completion_ids),
        "reward": group.rewards[i],
        "results": {name: as_line(column[i]) for name, column in group.results.items()},
        "weight": weight,
        "ids": sample.completion_ids,
        "logps": [round(x, 6) for x in sample.logps],
        "mask": [int(on) for on in sample.loss_mask],
    }


def record_population(
    session: Session, step: int, members: Sequence[tuple[int, float, Sequence[Group]]]
) -> None:
    """Write the samples of a population, member by member.

    Each line has its `member`, and that member's weight.
    """
    flat = [
        (member, weight, group, i)
        for member, weight, groups in members
        for group in groups
        for i in range(len(group.samples))
    ]
    mine = [sample_line(group, i, weight) | {"member": member} for member, weight, group, i in flat]
    every = [line for part in parallel.gather(mine) for line in part]
    if parallel.rank() == 0:
        session.run.log_samples(step, sorted(every, key=lambda line: line["member"]))


def record_time(session: Session, sums: Sums, step: int) -> None:
    """Seconds of the step and of its stages, tokens per second, memory.

    With `profile` every phase goes into profile.json.
    """
    phases = session.clock.stop()
    seconds = sum(phases.values())
    stages = {
        "sample": ("sample",),
        "score": ("score",),
        "update": ("update", "forward", "backward", "optimiser"),
    }
    for stage, names in stages.items():
        if phases.keys() & set(names):
            sums.total(f"seconds/{stage}", sum(phases.get(name, 0.0) for name in names))
    sums.total("seconds/step", seconds)
    sums.total(
        "tokens_per_second",
        (sums.totals.get("tokens", 0.0) + sums.totals.get("supervised_tokens", 0.0)) / seconds,
    )
    sums.peak("rss_mb", resident_bytes() / 1e6)
    if session.config.profile and parallel.rank() == 0:
        record_profile(session, phases, sums, step)


def as_line(result: Result) -> dict[str, Any]:
    """A reward's verdict as JSON: its kind, its value if it has one, its reason."""
    return {"kind": type(result).__name__.lower(), **asdict(result)}


def has_score(group: Group) -> bool:
    """Did a reward judge any sample of the group?"""
    return any(isinstance(result, Score) for column in group.results.values() for result in column)


def check_failures(session: Session, groups: Sequence[Group]) -> int:
    """How many samples rewards failed on, over all processes.

    If they are more than the run allows, it stops, in all of them.
    """
    assert session.mixture is not None
    parts = parallel.gather(session.mixture.failures(groups))
    failed, total = (sum(part[i] for part in parts) for i in (0, 1))
    where, first = next((part[2:] for part in parts if part[0]), ("", ""))
    session.mixture.refuse(failed, total, where, first)
    return failed


def check_scored(session: Session, groups: Sequence[Group]) -> None:
    """Stop where rewards failed on too many samples of the step, over all processes.

    Stop, too, where no sample of the run was scored yet. Where rewards have judged before, a step
    of which they have nothing to say has nothing to train on, and passes.
    """
    if session.mixture is None or session.row.source.judge:
        return
    failed = check_failures(session, groups)
    session.scored |= any(parallel.gather(any(has_score(group) for group in groups)))
    if not failed and not session.scored:
        names = ", ".join(session.mixture.names)
        raise LaurelError(
            f"no reward judged any sample of this step ({names}).", fix="Did they all abstain?"
        )


def check_same_policy(
    session: Session, gap_M: Tensor, rest_M: Tensor, step: int, sums: Sums
) -> None:
    """Stop where |log pi - log pi_old| is too large in the first pass; record it.

    The policy that is trained must be the one that sampled: 99 % of tokens must stay below what
    rounding explains, or below `sampler_gap_limit`. Where the trainer has computed log pi_old
    itself its two passes must agree, and the sampler's gap is another (`laurel.train.gap`).

    gap_M: of the tokens trained on, which are what counts; rest_M: of those that are only measured.
    Both of all processes, so that all stop together.
    """
    gap_M, all_M = (
        torch.cat(parallel.gather(gap_M)).float(),
        torch.cat(parallel.gather(torch.cat([gap_M, rest_M]))).float(),
    )
    if len(all_M) == 0:
        return
    limit, who = GROWN * USUAL * session.policy.slack, "trainer/trainer"
    fix = "Dropout in the model code, or a pass that depends on the rows beside?"
    if not session.recomputes:
        record_gap(all_M, sums)
        limit, who = session.config.sampler_gap_limit or limit, "sampler/trainer"
        fix = "The samples do not come from these weights: stale or perturbed sampler?"
    if len(gap_M) and not (p99 := percentile99(gap_M)) < limit:
        raise LaurelError(
            f"{who} log-prob gap: p99 {p99:.3g} nats (limit {limit:.2g}).",
            where=f"step {step}",
            fix=fix,
        )


def record_gap(gap_M: Tensor, sums: Sums) -> None:
    """|log pi - log pi_old|, or of another sampler log mu, over the tokens of all processes."""
    sums.add("sampler_gap/mean", float(gap_M.sum()), len(gap_M))
    sums.peak("sampler_gap/p99", percentile99(gap_M))
    sums.peak("sampler_gap/max", float(gap_M.max()))


def percentile99(gap_M: Tensor) -> float:
    """The 99th percentile; of more numbers than torch sorts for one, the largest."""
    return float(gap_M.quantile(0.99)) if len(gap_M) < 1 << 24 else float(gap_M.max())


def check_finite(loss: Tensor, micro: Batch, step: int) -> None:
    """A loss that is not finite stops the run and names the samples it came from."""
    if not bool(loss.isfinite()):
        keys = ", ".join(f"{key.prompt}#{key.sample}" for key in micro.keys[:4])
        raise LaurelError(
            f"the loss is {float(loss.detach())}.",
            where=f"step {step}, samples {keys}",
            fix="Lower learning_rate; look at samples.jsonl.",
        )
