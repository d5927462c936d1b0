"""Self-checks that can stop a run: better no training than silent wrong training."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError
from laurel.core.sample import Batch, Draw, Group
from laurel.fast.logprob import USUAL, WORST
from laurel.model.rows import encode_answers
from laurel.rollout.episode import play
from laurel.rollout.pack import pack, reward_matrix
from laurel.rollout.sampler import rollout
from laurel.train.gap import describe_start
from laurel.train.memory import memory
from laurel.train.progress import Progress
from laurel.train.record import has_score, percentile99
from laurel.train.session import Session
from laurel.weight.group import predicted_uninformative

PROMPTS, SAMPLES = 8, 4
"""What the start is checked with at most: prompts, and samples of each."""
TRIED = 512
"""Tokens that such a check may cost whatever a step costs."""


def show_and_check_start(session: Session, step: int, progress: Progress) -> None:
    """Show what will be trained on, and check a few prompts before the first step.

    The ratio must be 1, and the reference must be the policy.
    """
    for note in session.notes:
        progress.say(note)
    progress.say(memory(session))
    if session.learns_from_data:
        progress.say(supervised_view(session))
        return
    groups = first_samples(session, step)
    scored = session.score(groups)
    if session.mixture is not None and not session.row.source.judge:
        session.mixture.refuse(*session.mixture.failures(scored))
        session.scored = any(has_score(group) for group in scored)
    progress.say(forecast_signal(session, reward_matrix(scored)))
    if session.row.source.population:  # nothing is differentiated: there is no ratio to be 1
        return
    session.policy.model.train(not session.config.disable_dropout)
    budget = session.config.token_budget or 0
    # before they are scored: a sample without a reward has log-probabilities, too
    check_start(session, next(pack(groups).split(budget)), step, progress)


def first_samples(session: Session, step: int) -> list[Group]:
    """Samples of a few prompts, as a step would draw them."""
    config = session.config
    prompts, each = probe_sizes(config)
    draw = Draw.of(config, "check", 0, num_generations=each)
    few = session.rows[:prompts]
    session.generator.sync(step)
    if session.make_env is None:
        return rollout(session.generator, few, draw)
    return play(session.generator, few, draw, session.make_env, config.max_turns or 1)


@torch.no_grad()
def check_start(session: Session, batch: Batch, step: int, progress: Progress) -> None:
    """LaurelError where the trainer's log-probabilities are not the sampler's.

    It is also raised where the reference's are not the policy's. A warning is shown where clipping
    silences tokens by rounding alone.
    """
    batch = batch.to(session.policy.device)
    logp_NT = session.policy.logp(batch).logp
    gap_M = (logp_NT - batch.logp_old_NT)[batch.loss_mask_NT].abs().float().cpu()
    if session.generator.exact:
        check_rounding(session, gap_M)
        if lost := clipped_by_rounding(session, logp_NT, batch):
            progress.say(lost)
    else:  # the ratio is to the trainer's own log-probabilities: nothing of it is clipped
        progress.say(describe_start(session, gap_M))
    if session.reference is not None and session.config.reference == "start" and step == 0:
        apart = float((session.reference.logp(batch) - logp_NT)[batch.loss_mask_NT].abs().max())
        if not apart < USUAL * session.policy.slack:
            raise LaurelError(
                f"the reference differs from the policy by {apart:.2g} nats at step 0.",
                where="start-up check",
            )


def check_rounding(session: Session, gap_M: Tensor) -> None:
    """LaurelError where the sampler of this process differs from the trainer by more than rounding.

    gap_M: |log pi - log pi_old| of its tokens. `sampler_gap_limit`, where it is given, is the bound
    of 99 % of them, in the place of what rounding explains.
    """
    p99, worst = percentile99(gap_M), float(gap_M.max())
    unit, size = session.policy.slack, session.policy.logit_size
    usual = session.config.sampler_gap_limit or USUAL * unit
    most = max(WORST * unit, WORST / USUAL * usual)
    if not (p99 < usual and worst < most):
        raise LaurelError(
            "the trainer's log-probabilities are not the sampler's: before any training, the"
            f" ratio is e^{p99:.2g} at the 99th percentile and e^{worst:.2g} at the worst"
            f" token, where {session.config.dtype} and logits of {size:.3g}"
            f" explain e^{USUAL * unit:.2g} and e^{WORST * unit:.2g}.",
            where="start-up check",
            fix="Dropout in the model code, or an architecture that treats padding differently?",
        )


def probe_sizes(config: TrainConfig) -> tuple[int, int]:
    """Prompts, and samples of each, that the start is checked with.

    8 and 4, or fewer, so that they cost little compared to a step: at most a tenth of a step's
    tokens, or TRIED tokens where that is more; at least one prompt with two samples.
    """
    longest = (config.max_completion_length or 1) * (config.max_turns or 1)
    step = (config.prompts_per_step or 1) * (config.num_generations or 1) * (config.population or 1)
    samples = max(2, min(PROMPTS * SAMPLES, max(step // 10, TRIED // longest)))
    return max(1, samples // SAMPLES), min(SAMPLES, samples)


def clipped_by_rounding(session: Session, logp_NT: Tensor, batch: Batch) -> str:
    """A warning where rounding alone takes a ratio of 1 beyond the bounds of clipping; else ""."""
    measure = session.bound.measure
    if measure is None or session.bound.measure_reads != ("logp_NT",):
        return ""
    shares = list[float]()
    for sign in (1.0, -1.0):
        found = measure(logp_NT, batch.replace(weight_NT=torch.full_like(batch.weight_NT, sign)))
        total, count = found.get("clip_ratio/region", found["clip_ratio/high"])
        shares.append(float(total) / float(count))
    lost = sum(shares) / 2
    return (
        f"warning: clipping silences {lost:.0%} of the tokens before any training: its bounds are"
        f" narrower than the rounding of {session.config.dtype}. Raise epsilon and epsilon_high, or"
        " set dtype to float32."
        if lost > 0.01
        else ""
    )


def forecast_signal(session: Session, reward_PG: Tensor) -> str:
    """The plan of a step, and how many groups will have a signal.

    For yes-or-no rewards: 1 - p^G - (1-p)^G at success rate p.
    """
    config = session.config
    plan = f"each step: {config.prompts_per_step} prompts x {config.num_generations} samples, "
    if config.population:
        return f"{plan}the same for each of {config.population} members"
    plan += f"{config.num_iterations} optimiser step(s)"
    known = reward_PG[~reward_PG.isnan()]
    if (
        session.row.source.judge
        or not session.row.compares
        or not len(known)
        or not bool(((known == 0) | (known == 1)).all())
    ):
        return plan
    p = float(known.mean())
    return (
        f"{plan}; success rate about {p:.2f}: at most"
        f" {1 - predicted_uninformative(p, config.num_generations or 1):.0%} of groups informative"
    )


def supervised_view(session: Session) -> str:
    """The first row as the model sees it, supervised spans between « and »."""
    tokenizer, row = session.policy.tokenizer, session.rows[0]
    shown = list[str]()
    for encoded in encode_answers(
        session.policy, row, train_on=session.config.train_on, max_length=session.config.max_length
    ):
        runs = groupby(zip(encoded.ids, encoded.mask, strict=True), key=lambda pair: pair[1])
        parts = [(on, tokenizer.decode([token for token, _ in pairs])) for on, pairs in runs]
        shown.append("".join(f"«{text}»" if on else text for on, text in parts))
    return "supervised between « »: " + " against ".join(shown)
