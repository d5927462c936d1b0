"""Self-checks that can stop a run: better no training than silent wrong training."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from laurel.core.errors import LaurelError
from laurel.core.metrics import Sums
from laurel.core.result import Score
from laurel.core.sample import Batch, Draw, Group
from laurel.fast.logprob import USUAL, WORST
from laurel.objective.metrics import CLIPPED
from laurel.rollout.episode import play
from laurel.rollout.given import encodings
from laurel.rollout.pack import pack, reward_matrix
from laurel.rollout.sampler import Sampler
from laurel.rollout.single import rollout
from laurel.train import parallel
from laurel.train.memory import memory
from laurel.train.options import bind
from laurel.weight.group import predicted_uninformative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laurel.core.config import TrainConfig
    from laurel.train.progress import Progress
    from laurel.train.setup import Setup

GROWN = 2.0
"""How much larger than at the start logits may have become in training, for the sampler's check in
every step.
"""
PROMPTS, SAMPLES, TRIED = 8, 4, 512
"""What the start is checked with at most: prompts, samples of each; and tokens that such a check
may cost whatever a step costs.
"""


def before(setup: Setup, step: int, progress: Progress) -> None:
    """Show what will be trained on; then prove on a few prompts that ratio = 1 and reference =
    policy before the first step.
    """
    for note in setup.notes:
        progress.say(note)
    progress.say(memory(setup))
    if setup.learns_from_data:
        progress.say(supervised_view(setup))
        return
    config = setup.config
    prompts, each = tried(config)
    draw = Draw(
        "check",
        0,
        config.seed,
        each,
        config.max_completion_length,
        config.temperature,
        tuple(config.stop),
    )
    few = setup.rows[:prompts]
    groups = (
        play(Sampler(setup.policy), few, draw, setup.make_env, config.max_turns)
        if setup.make_env
        else rollout(Sampler(setup.policy), few, draw)
    )
    told = setup.score(groups)
    if setup.mixture is not None and not setup.row.judge:
        setup.mixture.refuse(*setup.mixture.failures(told))
        setup.judged = any(scored(group) for group in told)
    progress.say(forecast(setup, reward_matrix(told)))
    if setup.row.source == "parameters":  # nothing is differentiated: there is no ratio to be 1
        return
    batch = next(pack(groups).split(config.token_budget)).to(setup.policy.device)
    setup.policy.model.train(not setup.config.disable_dropout)
    with torch.no_grad():
        logp_NT = setup.policy.logp(batch).logp
        gap_M = (logp_NT - batch.logp_old_NT)[batch.loss_mask_NT].abs().float().cpu()
        p99, worst, unit = high(gap_M), float(gap_M.max()), setup.policy.slack
        if not (p99 < USUAL * unit and worst < WORST * unit):
            raise LaurelError(
                "the trainer's log-probabilities are not the sampler's: before any training, the"
                f" ratio is e^{p99:.2g} at the 99th percentile and e^{worst:.2g} at the worst"
                f" token, where {setup.config.dtype} and logits of {setup.policy.logit_size:.3g}"
                f" explain e^{USUAL * unit:.2g} and e^{WORST * unit:.2g}.",
                where="start-up check",
                fix=(
                    "Dropout in the model code, or an architecture that treats padding differently?"
                ),
            )
        if lost := silenced(setup, logp_NT, batch):
            progress.say(lost)
        if setup.reference is not None and config.reference == "start" and step == 0:
            apart = float((setup.reference.logp(batch) - logp_NT)[batch.loss_mask_NT].abs().max())
            if not apart < USUAL * unit:
                raise LaurelError(
                    f"the reference differs from the policy by {apart:.2g} nats at step 0.",
                    where="start-up check",
                )


def tried(config: TrainConfig) -> tuple[int, int]:
    """Prompts, and samples of each, that the start is checked with: 8 and 4, or fewer, so that they
    cost little beside a step.

    At most a tenth of a step's tokens, or TRIED tokens where that is more; at least one prompt with
    two samples.
    """
    longest = (config.max_completion_length or 1) * (config.max_turns or 1)
    step = (config.prompts_per_step or 1) * (config.num_generations or 1) * (config.population or 1)
    samples = max(2, min(PROMPTS * SAMPLES, max(step // 10, TRIED // longest)))
    return max(1, samples // SAMPLES), min(SAMPLES, samples)


def silenced(setup: Setup, logp_NT: Tensor, batch: Batch) -> str:
    """A warning where rounding alone takes a ratio, which is 1 before any training, beyond the
    bounds of clipping; else nothing.
    """
    measure = CLIPPED.get(setup.row.objective)
    if measure is None:
        return ""
    shares = []
    for sign in (1.0, -1.0):
        found = bind(measure, setup.config)(
            logp_NT, batch.replace(weight_NT=torch.full_like(batch.weight_NT, sign))
        )
        total, count = found.get("clip_ratio/region", found["clip_ratio/high"])
        shares.append(float(total) / float(count))
    lost = sum(shares) / 2
    return (
        f"warning: clipping silences {lost:.0%} of the tokens before any training: its bounds are"
        f" narrower than the rounding of {setup.config.dtype}. Raise epsilon and epsilon_high, or"
        " set dtype to float32."
        if lost > 0.01
        else ""
    )


def forecast(setup: Setup, reward_PG: Tensor) -> str:
    """The plan of a step, and for yes-or-no rewards how many groups will carry a signal: 1 - p^G -
    (1-p)^G at success rate p.
    """
    config = setup.config
    plan = f"each step: {config.prompts_per_step} prompts x {config.num_generations} samples, "
    if config.population:
        return f"{plan}the same for each of {config.population} members"
    plan += f"{config.num_iterations} optimiser step(s)"
    known = reward_PG[~reward_PG.isnan()]
    if (
        setup.row.judge
        or not setup.row.compares
        or not len(known)
        or not bool(((known == 0) | (known == 1)).all())
    ):
        return plan
    p = float(known.mean())
    return (
        f"{plan}; success rate about {p:.2f}: at most"
        f" {1 - predicted_uninformative(p, config.num_generations):.0%} of groups informative"
    )


def supervised_view(setup: Setup) -> str:
    """The first row as the model sees it, supervised spans between « and »."""
    tokenizer, row = setup.policy.tokenizer, setup.rows[0]
    shown = []
    for encoded in encodings(
        setup.policy, row, train_on=setup.config.train_on, max_length=setup.config.max_length
    ):
        runs = groupby(zip(encoded.ids, encoded.mask, strict=True), key=lambda pair: pair[1])
        parts = [(on, tokenizer.decode([token for token, _ in pairs])) for on, pairs in runs]
        shown.append("".join(f"«{text}»" if on else text for on, text in parts))
    return "supervised between « »: " + " against ".join(shown)


def scored(group: Group) -> bool:
    """Did a reward judge any sample of the group?"""
    return any(isinstance(result, Score) for column in group.results.values() for result in column)


def few_failed(setup: Setup, groups: Sequence[Group]) -> int:
    """How many samples rewards failed on, over all processes; more than the run allows stop it, on
    all of them.
    """
    parts = parallel.gather(setup.mixture.failures(groups))
    failed, total = (sum(part[i] for part in parts) for i in (0, 1))
    where, first = next((part[2:] for part in parts if part[0]), ("", ""))
    setup.mixture.refuse(failed, total, where, first)
    return failed


def judged(setup: Setup, groups: Sequence[Group]) -> None:
    """Stop where rewards failed on too many samples of the step, or where no sample of the run was
    judged yet: over all processes.

    Where rewards have judged before, a step of which they have nothing to say has nothing to train
    on, and passes.
    """
    if setup.mixture is None or setup.row.judge:
        return
    failed = few_failed(setup, groups)
    setup.judged |= any(parallel.gather(any(scored(group) for group in groups)))
    if not failed and not setup.judged:
        names = ", ".join(setup.mixture.names)
        raise LaurelError(
            f"no reward judged any sample of this step ({names}).", fix="Did they all abstain?"
        )


def same_policy(gap_M: Tensor, beside_M: Tensor, slack: float, step: int, sums: Sums) -> None:
    """The policy that is trained must be the one that sampled: record |log-prob gap| over the
    tokens, and stop when it opens.

    gap_M: of the tokens trained on, which are what counts; beside_M: of those that are only
    measured. Both of all processes, so that
    all stop together. slack: the policy's; 99 % of tokens must stay below USUAL times that.
    """
    gap_M, all_M = (
        torch.cat(parallel.gather(gap_M)).float(),
        torch.cat(parallel.gather(torch.cat([gap_M, beside_M]))).float(),
    )
    if len(all_M) == 0:
        return
    sums.add("sampler_gap/mean", float(all_M.sum()), len(all_M))
    sums.peak("sampler_gap/p99", high(all_M))
    sums.peak("sampler_gap/max", float(all_M.max()))
    if len(gap_M) and not (p99 := high(gap_M)) < GROWN * USUAL * slack:
        raise LaurelError(
            f"sampler/trainer log-prob gap: p99 {p99:.3g} nats (limit"
            f" {GROWN * USUAL * slack:.2g}).",
            where=f"step {step}",
            fix="The samples do not come from these weights: stale or perturbed sampler?",
        )


def high(gap_M: Tensor) -> float:
    """The 99th percentile; of more numbers than torch sorts for one, the largest."""
    return float(gap_M.quantile(0.99)) if len(gap_M) < 1 << 24 else float(gap_M.max())


def finite(loss: Tensor, micro: Batch, step: int) -> None:
    """A loss that is not finite stops the run and names the samples it came from."""
    if not bool(loss.isfinite()):
        keys = ", ".join(f"{key.prompt}#{key.sample}" for key in micro.keys[:4])
        raise LaurelError(
            f"the loss is {float(loss.detach())}.",
            where=f"step {step}, samples {keys}",
            fix="Lower learning_rate; look at samples.jsonl.",
        )
