"""What a step leaves behind: metrics as (sum, count), and every sample with the reason of every
score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from laurel.core.machine import resident
from laurel.core.metrics import Sums
from laurel.core.result import Result
from laurel.core.sample import Batch, Group
from laurel.fast.logprob import TokenStats
from laurel.objective.metrics import (
    CLIPPED,
    approx_kl,
    kl_metrics,
    preference_metrics,
    ratio_max,
    ratio_metrics,
)
from laurel.objective.reward import imitation_metrics
from laurel.objective.value import value_metrics
from laurel.reward.mixture import metrics as mixture_metrics
from laurel.rollout.pack import reward_matrix
from laurel.train import parallel
from laurel.train.options import bind
from laurel.train.options import reads as read_by
from laurel.train.profile import record_profile, whole
from laurel.train.relabel import RELABELLED
from laurel.train.setup import Setup
from laurel.weight.group import informative


def reward_metrics(setup: Setup, groups: Sequence[Group], sums: Sums) -> None:
    """Rewards, lengths, ends and duplicates of freshly sampled groups."""
    for name, (total, count) in mixture_metrics(groups).items():
        sums.add(name, total, count)
    reward_PG = reward_matrix(groups)
    present = ~reward_PG.isnan()
    setup.clock.drew(whole(setup.policy), setup.policy.dtype, groups)
    sums.add("reward", float(reward_PG.nansum()), int(present.sum()))
    sums.add("failed_fraction", int((~present).sum()), present.numel())
    if reward_PG.shape[1] > 1:
        spread = [
            float(row[~row.isnan()].std()) for row in reward_PG if int((~row.isnan()).sum()) > 1
        ]
        sums.add("reward_std", sum(spread), len(spread))
        sums.add("frac_reward_zero_std", int((~informative(reward_PG)).sum()), len(reward_PG))
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
    setup: Setup,
    micro: Batch,
    seen: Mapping[str, Any],
    stats: TokenStats | None,
    step: int,
    sums: Sums,
    *,
    whole: bool = True,
) -> None:
    """Quantities of one micro-batch, weighted by what they are means of.

    whole: every token that the policy drew is looked at in this step, here or by `record_rest`.
    Else what is said of them all is left
    out: it would be said of the rows with a weight alone.
    """
    mask = micro.loss_mask_NT
    count = int(mask.sum())
    sums.add(
        "padding_share",
        0 if setup.packs else int((~micro.attention_NL).sum()),
        micro.attention_NL.numel(),
    )
    if stats is None:
        add_scores(setup, seen, micro, sums)
        sums.total("supervised_tokens", count)
        return
    logp = stats.logp.detach()
    if whole:
        record_tokens(setup, micro, stats, step, sums)
    if "value_NT" in seen:
        for name, (total, number) in value_metrics(
            seen["value_NT"], micro, cliprange_value=setup.config.cliprange_value
        ).items():
            sums.add(name, float(total), float(number))
    if setup.row.measure is not None:
        for name, (total, number) in bind(setup.row.measure, setup.config)(
            seen[read_by(setup.row.measure)], micro
        ).items():
            sums.add(name, float(total), float(number))
    if setup.by_comparison:
        for name, (total, number) in preference_metrics(logp, micro, beta=scale(setup)).items():
            sums.add(name, float(total), float(number))
    if setup.learns_from_data:
        if not setup.by_comparison:  # of pairs it would mix chosen and rejected
            sums.add("nll", float(-logp[mask].sum()), count)
        sums.total("supervised_tokens", count)


def record_tokens(setup: Setup, micro: Batch, stats: TokenStats, step: int, sums: Sums) -> None:
    """What is said of the policy at the tokens of the loss mask: entropy, and of its own samples
    the ratio, clipping and KL.
    """
    mask, logp = micro.loss_mask_NT, stats.logp.detach()
    sums.add("entropy", float(stats.entropy[mask].sum()), int(mask.sum()))
    if not setup.on_policy:
        return
    pairs = {**ratio_metrics(logp, micro), "approx_kl": approx_kl(logp, micro)}
    if setup.row.objective in CLIPPED:
        pairs |= bind(CLIPPED[setup.row.objective], setup.config)(logp, micro)
    if setup.measures_kl(step):
        pairs |= kl_metrics(logp, micro)
    for name, (total, number) in pairs.items():
        sums.add(name, float(total), float(number))
    sums.peak("ratio/max", float(ratio_max(logp, micro)))


@torch.no_grad()
def record_rest(setup: Setup, rest: Batch, step: int, sums: Sums) -> Tensor:
    """`record_tokens` of rows that no gradient is taken of, by a forward pass; the gaps |log pi -
    log pi_old| of their tokens.

    So the metrics of a step are those of all its samples, whichever of them have something to
    teach.
    """
    gaps = [torch.zeros(0)]
    for micro in rest.split(setup.config.token_budget, packed=setup.packs):
        with setup.clock("forward"):
            stats = setup.policy.logp(micro, entropy="value")
        record_tokens(setup, micro, stats, step, sums)
        gaps.append((stats.logp - micro.logp_old_NT)[micro.loss_mask_NT].abs().cpu())
    return torch.cat(gaps)


def scale(setup: Setup) -> float:
    """beta as the implied reward has it: 0 where it is 0; 1 of an objective without one."""
    return 1.0 if setup.config.beta is None else setup.config.beta


def add_scores(
    setup: Setup, seen: Mapping[str, Any], micro: Batch, sums: Sums, prefix: str = ""
) -> None:
    """The scorer's own metrics."""
    for reads, said in seen.items():
        for name, (total, number) in (
            imitation_metrics if reads == "logp_NT" else setup.row.measure
        )(said, micro).items():
            sums.add(prefix + name, float(total), float(number))


def record_samples(
    setup: Setup, step: int, groups: Sequence[Group], batch: Batch, drawn: Sequence[str]
) -> None:
    """Every sample of the step as one line: prompt, text, ids, log-probabilities, mask, weight, and
    what each reward said.

    Those of all processes, in the order in which their prompts were `drawn`: the file that one
    process would write.
    """
    if setup.learns_from_data:
        return
    weight_N = dict(zip(batch.keys, batch.weight_NT[:, 0].tolist(), strict=True))
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
        setup.run.log_samples(
            step,
            [line for _, lines in sorted(every, key=lambda pair: place[pair[0]]) for line in lines],
        )


def sample_line(group: Group, i: int, weight: float) -> dict[str, Any]:
    """Sample i of a group as one line. The row's column `relabelled` (see `laurel.train.relabel`)
    has a prompt for each sample.
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
    setup: Setup, step: int, members: Sequence[tuple[int, float, Sequence[Group]]]
) -> None:
    """The samples of a population, member by member: each line has its `member`, and as weight that
    member's.
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
        setup.run.log_samples(step, sorted(every, key=lambda line: line["member"]))


def record_time(setup: Setup, sums: Sums, step: int) -> None:
    """Seconds of the step and of its stages, tokens per second, memory; with `profile` every phase
    goes into profile.json.
    """
    phases = setup.clock.stop()
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
    sums.peak("rss_mb", resident() / 1e6)
    if setup.config.profile and parallel.rank() == 0:
        record_profile(setup, phases, sums, step)


def as_line(result: Result) -> dict[str, Any]:
    """A reward's verdict as JSON: its kind, its value if it has one, its reason."""
    return {"kind": type(result).__name__.lower(), **asdict(result)}
