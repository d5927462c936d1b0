"""The gap between what samples and what is trained: measured, bounded, corrected.

For a generator that is not exact: an engine with the trainer's weights, and other kernels or
another precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laurel.core.errors import LaurelError
from laurel.core.metrics import Sums
from laurel.core.sample import Batch, Group
from laurel.fast.logprob import USUAL
from laurel.objective.correction import CORRECTIONS
from laurel.rollout.pack import pack
from laurel.train import parallel
from laurel.train.record import GROWN, percentile99, record_gap
from laurel.train.reference import drawn_logps
from laurel.train.session import Session

FINE, COARSE = 0.01, 1.0
"""Nats at the 99th percentile above which a run stops: where engine and trainer both compute in
float32, and where either does not.

In float32 vLLM on a CPU is 3e-6 off there (the starter model), larger models and sums in another
order 1e-4, and TF32 explains some 1e-3: ten times that is no rounding. In bfloat16 the same vLLM is
.05 off; larger models have 7.5 % of tokens outside a ratio of .9 to 1.1 with the same weights,
which is .2 at the 99th percentile if the tail is exponential, and logits of 30 alone explain .9 by
this process's own rule (`laurel.fast.logprob.USUAL`, for logits that have grown). At 1, one token
in a hundred is off by e, and no truncation makes that a small error; wrong weights are several nats
off.
"""
WARN = 0.5
"""The share of the limit from which a run warns, once: a gap that grows comes before a collapse,
and it is better to hear of it than to be stopped by it.
"""


def gap_limit(session: Session) -> float:
    """Nats between sampler and trainer, at the 99th percentile, above which the run stops.

    A generator whose precision is unknown counts as coarse.
    """
    if session.config.sampler_gap_limit:
        return session.config.sampler_gap_limit
    if session.generator.exact:
        return GROWN * USUAL * session.policy.slack
    fine = session.policy.dtype in (torch.float32, torch.float64)
    fine = fine and session.generator.precision == "float32"
    return FINE if fine else COARSE


def with_own_logps(
    session: Session, batch: Batch, step: int, sums: Sums
) -> tuple[Batch, Tensor | None]:
    """The batch with the trainer's own log-probabilities as pi_old, by one pass without a gradient.

    So the ratio starts at 1, and whatever is computed from log pi_old (KL in the reward, values of
    a ratio) is one arithmetic's. Returns, too, what every token's weight is to be multiplied by,
    [N, T], or None. Of answers that are compared none is multiplied: one that the correction masks
    loses its loss mask, so that it is compared with none.
    """
    drawn_NT, found_NT = batch.drawn_NT, own_logps(session, batch)
    log_ratio_NT = torch.where(drawn_NT, found_NT - batch.logp_old_NT, 0.0)
    check_gap(session, log_ratio_NT[drawn_NT], step, sums)
    batch = batch.replace(logp_old_NT=torch.where(drawn_NT, found_NT, batch.logp_old_NT))
    if session.correction == "none":
        return batch, None
    cap = session.config.importance_sampling_cap
    factor_NT = CORRECTIONS[session.correction](log_ratio_NT, cap=cap)
    record_correction(session, factor_NT, log_ratio_NT, drawn_NT, sums)
    if session.by_comparison:
        kept_N1 = factor_NT[:, :1] > 0
        return batch.replace(loss_mask_NT=batch.loss_mask_NT & kept_N1), None
    return batch, factor_NT


@torch.no_grad()
def measure_gap(session: Session, groups: Sequence[Group], step: int, sums: Sums) -> None:
    """Record and bound the gap of groups that will be revised: in a batch they have none."""
    batch = pack(groups)
    log_ratio_NT = own_logps(session, batch) - batch.logp_old_NT
    check_gap(session, log_ratio_NT[batch.drawn_NT], step, sums)


def own_logps(session: Session, batch: Batch) -> Tensor:
    """The trainer's log pi of every token that was drawn: [N, T]."""
    policy = session.policy
    return drawn_logps(session, batch, policy, lambda micro: policy.logp(micro).logp)


def check_gap(session: Session, log_ratio_M: Tensor, step: int, sums: Sums) -> None:
    """Record |log pi - log mu| of all tokens of the step, of all processes; stop above the limit.

    log_ratio_M: log pi - log mu of this process's tokens.
    """
    gap_M = torch.cat(parallel.gather(log_ratio_M)).abs().float()
    if not len(gap_M):
        return
    record_gap(gap_M, sums)
    sums.add("sampling/sampling_logp_difference/mean", float(gap_M.sum()), len(gap_M))
    sums.peak("sampling/sampling_logp_difference/max", float(gap_M.max()))
    stop_above(gap_limit(session), gap_M, f"step {step}")


def stop_above(limit: float, gap_M: Tensor, where: str) -> None:
    """LaurelError for a gap above the limit, or that is no number."""
    p99, worst = percentile99(gap_M), float(gap_M.max())
    if p99 < limit and bool(gap_M.isfinite().all()):
        return
    raise LaurelError(
        "the engine's log-probabilities are not the trainer's: sampler/trainer gap p99"
        f" {p99:.3g} nats (limit {limit:.2g}), at worst {worst:.3g}.",
        where=where,
        fix="Has it these weights, the same template, and log-probabilities at the sampling"
        " temperature (vLLM: --logprobs-mode processed_logprobs)? If it only computes more"
        " coarsely, raise sampler_gap_limit.",
    )


def record_correction(
    session: Session, factor_NT: Tensor, log_ratio_NT: Tensor, drawn_NT: Tensor, sums: Sums
) -> None:
    """The weights of the correction, of all processes: of tokens, or of rows.

    Beside them the share of tokens above the cap (truncated), or of rows (masked).
    """
    by_row = session.correction == "sequence_mask"
    factor_U = factor_NT[drawn_NT.any(1), 0] if by_row else factor_NT[drawn_NT]
    cap = session.config.importance_sampling_cap or 0.0
    # a masked row weighs 0, and a truncated token as much as one at the cap: told by its ratio
    beyond_U = factor_U == 0 if by_row else log_ratio_NT[drawn_NT].exp() > cap
    parts = parallel.gather((factor_U, beyond_U))
    weight_U, outside_U = (torch.cat(column) for column in zip(*parts, strict=True))
    if not len(weight_U):
        return
    name = "sampling/importance_sampling_ratio"
    sums.add(f"{name}/mean", float(weight_U.sum()), len(weight_U))
    # every process has the numbers of all, so its least is that of all
    sums.peak(f"{name}/min", float(weight_U.min()))
    sums.peak(f"{name}/max", float(weight_U.max()))
    share = "masked" if by_row else "truncated"
    sums.add(f"{name}/{share}", int(outside_U.sum()), len(outside_U))


def describe_start(session: Session, gap_M: Tensor) -> str:
    """A line on the gap before the first step; LaurelError where it is above the limit."""
    limit = gap_limit(session)
    stop_above(limit, gap_M, "start-up check")
    p99, how = percentile99(gap_M), session.correction
    if how != "none":
        how = f"{how} at {session.config.importance_sampling_cap:g}"
    return (
        f"{'warning: ' if p99 > WARN * limit else ''}the engine's log-probabilities are"
        f" {p99:.2g} nats from the trainer's at the 99th percentile (limit {limit:.2g});"
        f" correction: {how}"
    )


def gap_warning(session: Session, means: Mapping[str, float]) -> list[str]:
    """A line, once a run, where the gap of a step comes near the limit."""
    p99, limit = means.get("sampler_gap/p99", 0.0), gap_limit(session)
    if not p99 > WARN * limit or "sampler_gap" in session.alarmed:
        return []
    session.alarmed.add("sampler_gap")
    return [
        f"warning: sampler_gap/p99 is {p99:.2g} nats, and the run stops at {limit:.2g}: lower"
        " learning_rate, or let the engine compute as the trainer does"
    ]
