"""The loop: sample x, score R(x), weigh A(x), maximise A(x) log pi(x).

Every algorithm runs through these few functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError
from laurel.core.metrics import Sums, merge_metrics
from laurel.core.run import Run
from laurel.core.sample import Batch, Draw, Group, Outputs, Values, sample_seed
from laurel.core.tensors import bools, ints
from laurel.data.source import Row
from laurel.objective.kl import kl_loss
from laurel.objective.unit import reduce_loss
from laurel.rollout.episode import play
from laurel.rollout.pack import (
    comparisons,
    pack,
    reward_matrix,
    sample_rewards,
    sampled_comparisons,
    token_rewards,
    truncated,
)
from laurel.rollout.sampler import rollout
from laurel.train import best, callbacks, checks, parallel
from laurel.train.alarms import collapse_alarms, return_to_checkpoint
from laurel.train.callbacks import CallbackFailed
from laurel.train.evaluate import check_names, evaluate, scorer_verdict
from laurel.train.evolve import evolve
from laurel.train.gap import gap_warning, measure_gap, with_own_logps
from laurel.train.interrupt import Interrupted, StopFlag
from laurel.train.masters import NARROW
from laurel.train.pretrain import add_pretraining_gradient
from laurel.train.profile import count_learning
from laurel.train.progress import Progress
from laurel.train.record import (
    check_finite,
    check_same_policy,
    check_scored,
    record_population,
    record_rest,
    record_samples,
    record_time,
    record_update,
    reward_metrics,
)
from laurel.train.reference import with_reference
from laurel.train.rewards import adjust_rewards
from laurel.train.saving import save, save_and_wrap
from laurel.train.session import Observers, Session, State, learning_rate, phase
from laurel.train.setup import prepare_session, versions
from laurel.train.values import critic_values
from laurel.weight.advantage import bootstrapped
from laurel.weight.group import informative, update_running_mean
from laurel.weight.shape import overlong
from laurel.weight.token import whiten


def train(
    algorithm: str,
    config: TrainConfig | None = None,
    *,
    quiet: bool = False,
    observers: Observers | None = None,
) -> Run:
    """Train one algorithm of the table to the end and return its run directory.

    The command line walks this same path. observers: callbacks and metrics of a Python program
    (`laurel.train.python`).
    """
    session, state = prepare_session(algorithm, config or TrainConfig(), observers, train=train)
    try:
        carry_on(session, state, quiet)
    except BaseException:
        session.run.withdraw()
        raise
    finally:
        session.generator.close()
    session.run.close()
    return session.run


def carry_on(session: Session, state: State, quiet: bool) -> None:
    """Steps until the end, then the model."""
    stop = StopFlag()
    with Progress(session, quiet=quiet or parallel.rank() > 0) as progress, stop:
        checks.show_and_check_start(session, state.step, progress)
        check_names(session)
        if parallel.rank() == 0:
            session.run.note(versions())
            session.run.connect(state.step)
        while state.step < session.config.max_steps and not best.out_of_patience(
            session.config, state
        ):
            if one_step(session, state, progress):
                break
            signal = max(parallel.gather(stop.asked))
            if signal and state.step < session.config.max_steps:
                save(session, state)
                what = f"stopped at step {state.step}: everything is saved."
                raise Interrupted(what, fix="Continue with --resume true.", by=signal)
        save(session, state)
        for line in [*session.end_notes, *best.end_lines(session, state)]:
            progress.say(line)
        if parallel.rank() == 0:
            save_result(session, progress)


def one_step(session: Session, state: State, progress: Progress) -> bool:
    """One step and what is due after it; the steps before it are saved if it fails.

    True when the run is to end here.
    """
    sums, before = Sums(), replace(state)
    session.clock.start()
    try:
        step(session, state, sums)
    except Exception as error:
        raise save_and_wrap(session, before, sums, error) from error
    try:
        return finish_step(session, state, sums, progress)
    except CallbackFailed as error:
        raise save_and_wrap(session, state, Sums(), error) from error.__cause__


def save_result(session: Session, progress: Progress) -> None:
    """The trained model in the run's folder, and of a scorer its evaluation on held-out rows."""
    if session.row.trained.head and session.eval_rows:
        verdict = scorer_verdict(session)
        progress.say("\n".join(verdict))
        session.run.note({"held_out": verdict})
    for line in session.save_model():
        progress.say(line)


def step(session: Session, state: State, sums: Sums) -> None:
    """One step of any algorithm: groups, batch, weights, update."""
    seed = sample_seed(session.config.seed, "dropout", parallel.rank(), state.step)
    cast("Any", torch).manual_seed(seed % 2**63)
    if session.row.source.population:
        return population_step(session, state, sums)
    first = state.cursor
    groups = collect(session, state, sums)  # x ~ pi or data, R(x)
    batch = weigh(session, state, groups, sums)  # R -> A, lists -> tensors
    state.step += 1
    update(session, state, batch, sums)  # maximise A log pi
    if not session.learns_from_data:
        reward_PG = torch.cat(parallel.gather(reward_matrix(groups)))
        state.running_mean = update_running_mean(state.running_mean, reward_PG)
        prompts = [row.id for row in session.drawn_rows(first, state.cursor - first)]
        record_samples(session, state.step, groups, batch, prompts)


def population_step(session: Session, state: State, sums: Sums) -> None:
    """One step of evolution strategies: every member answers the same rows, on any process."""
    count = 0 if parallel.rank() else session.config.prompts_per_step
    rows = parallel.gather(next_rows(session, state, count))[0]
    answer = partial(sample_and_score, session, state, rows, sums)
    record_population(session, state.step + 1, evolve(session, state, answer, sums))


def next_rows(session: Session, state: State, count: int) -> list[Row]:
    """The next `count` rows for this rank.

    The cursor moves by what all ranks take, so no row is drawn twice in an epoch.
    """
    counts = parallel.gather(count)
    start = state.cursor + sum(counts[: parallel.rank()])
    state.cursor += sum(counts)
    return session.drawn_rows(start, count)


def collect(session: Session, state: State, sums: Sums) -> list[Group]:
    """This rank's groups of the step, scored.

    With dynamic_sampling, groups without signal make room for new prompts, at most max_resamples
    times. A group whose every sample is masked has no signal, whatever its rewards.
    """
    config = session.config
    rank, size = parallel.rank(), parallel.world_size()
    count = config.prompts_per_step // size + (rank < config.prompts_per_step % size)
    groups = sample_and_score(session, state, next_rows(session, state, count), sums)
    if session.learns_from_data:
        return groups
    every, resampled = list(groups), 0
    for _ in range(config.max_resamples or 0 if config.dynamic_sampling else 0):
        useful = groups_with_signal(session, groups)
        missing = count - len(useful)
        if sum(parallel.gather(missing)) == 0:
            break
        resampled += missing
        fresh = sample_and_score(session, state, next_rows(session, state, missing), sums)
        groups, every = useful + fresh, every + fresh
    check_scored(session, every)
    if config.dynamic_sampling:
        sums.total("resampled_groups", resampled)
    return groups


def groups_with_signal(session: Session, groups: list[Group]) -> list[Group]:
    """The groups whose rewards differ and of which some sample is trained on."""
    signal_P = informative(reward_matrix(groups)) if groups else torch.zeros(0)
    masked = bool(session.config.mask_truncated_completions)
    return [
        group
        for group, differs in zip(groups, bools(signal_P), strict=True)
        if differs and bool(pack([group], mask_truncated=masked).loss_mask_NT.any())
    ]


def sample_and_score(
    session: Session, state: State, rows: Sequence[Row], sums: Sums
) -> list[Group]:
    """x ~ data, or x ~ pi in one turn or many, then R(x)."""
    if not rows:
        return []
    config, policy, run = session.config, session.policy, session.run.id
    source = session.row.source
    if source.read is not None:
        how: dict[str, Any] = {
            "train_on": config.train_on,
            "max_length": config.max_length,
            **session.partner_rows(rows, state.cursor),
        }
        return source.read(policy, rows, run=run, step=state.step, **how)
    draw = Draw.of(config, run, state.step)
    with session.clock("sample"):
        session.generator.sync(state.step)
        if session.make_env:
            make_env, turns = session.make_env, config.max_turns or 1
            groups = play(session.generator, rows, draw, make_env, turns)
        else:
            groups = rollout(session.generator, rows, draw)
    groups = session.clock.run("score", session.score, groups)
    reward_metrics(session, groups, sums)
    if source.off_policy and not session.generator.exact:
        measure_gap(session, groups, state.step + 1, sums)
    return source.revise(session, rows, groups, sums) if source.revise else groups


@phase("weigh")
@torch.no_grad()
def weigh(session: Session, state: State, groups: list[Group], sums: Sums) -> Batch:
    """Groups -> Batch with reference log-probabilities and weights.

    A = weigh(R + overlong shaping - beta * KL), times the correction of another sampler's draws
    """
    config, row, factor_NT = session.config, session.row, None
    batch = pack(groups, mask_truncated=bool(config.mask_truncated_completions))
    if session.recomputes:
        batch, factor_NT = with_own_logps(session, batch, state.step + 1, sums)
    reward_PG = shaped_rewards(session, batch, reward_matrix(groups))
    if session.measures_kl(state.step + 1):
        batch = with_reference(session, batch, of_step=True)
    if session.adjusts_rewards:
        reward_PG = adjust_rewards(session, state, groups, batch, reward_PG)
    batch = with_weights(session, state, batch, reward_PG, truncated(groups))
    if factor_NT is not None:
        batch = batch.replace(weight_NT=batch.weight_NT * factor_NT)
    if session.by_comparison and session.learns_from_data:
        batch = batch.replace(comparison=comparisons(groups))
    if session.on_policy:
        useful_P = informative(reward_PG)
        sums.add("informative_fraction", int(useful_P.sum()), len(useful_P))
    if row.targets:
        batch = row.targets(session, batch, groups)
    return batch.to(session.policy.device)


def shaped_rewards(session: Session, batch: Batch, reward_PG: Tensor) -> Tensor:
    """Rewards with the penalty for overlong answers: [P, G].

    NaN where an answer takes part in no comparison.
    """
    config = session.config
    if config.overlong_buffer:
        penalty_N = overlong(
            batch.length_N,
            max_completion_length=config.max_completion_length or 0,
            overlong_buffer=config.overlong_buffer,
        )
        reward_PG = reward_PG + penalty_N.view_as(reward_PG)
    if session.by_comparison:  # an answer that is not trained on is compared with none
        masked_N = ~batch.loss_mask_NT.any(1)
        reward_PG = reward_PG.masked_fill(masked_N.view_as(reward_PG), float("nan"))
    return reward_PG


def with_weights(
    session: Session, state: State, batch: Batch, reward_PG: Tensor, truncated_PG: Tensor
) -> Batch:
    """The batch with the weight of every token, [P, G] -> [N, T], or the grades of comparisons.

    Where a critic assigns credit, the batch has its values and returns, too.
    """
    credit, kl_coef = session.bound.credit, reward_kl_coef(session, state)
    chosen = session.bound.weigh
    if session.bound.running_mean:
        chosen = partial(chosen, running_mean=state.running_mean)
    if credit == "critic":
        return with_advantages(session, batch, chosen, kl_coef, reward_PG, truncated_PG)
    if credit == "token":
        reward_NT = token_rewards(batch, reward_PG, kl_coef)
        weight_NT = parallel.over_all_ranks(chosen, reward_NT, batch.loss_mask_NT)
    else:
        weight_PG = parallel.over_all_ranks(chosen, sample_rewards(batch, reward_PG, kl_coef))
        if session.by_comparison:
            chance_PG = reward_PG if session.rewards_are_chances else None
            return batch.replace(comparison=sampled_comparisons(weight_PG, chance_PG))
        weight_NT = weight_PG.reshape(-1, 1).expand_as(batch.weight_NT)
    return batch.replace(weight_NT=weight_NT.to(batch.weight_NT.dtype).contiguous())


def reward_kl_coef(session: Session, state: State) -> float:
    """beta of a KL penalty that is part of the reward; 0 where it is part of the loss, or absent.

    With `kl_target` it is the adapted one.
    """
    config = session.config
    if config.kl_placement != "reward":
        return 0.0
    return state.beta if config.kl_target else config.beta or 0.0


def with_advantages(
    session: Session,
    batch: Batch,
    advantages: Callable[..., tuple[Tensor, Tensor]],
    kl_coef: float,
    reward_PG: Tensor,
    truncated_PG: Tensor,
) -> Batch:
    """The batch with a critic's values and returns, and whitened advantages as weights: [N, T].

    advantages: (rewards, values, mask) -> advantages and returns. With `bootstrap_truncated` a
    completion that was cut off goes on with the critic's value after its last token.
    """
    mask_NT = batch.loss_mask_NT
    value_NT, after_N = critic_values(session, batch)
    ends = list[Tensor]()
    if session.config.bootstrap_truncated:
        flat = reward_PG.flatten(), after_N.double(), truncated_PG.flatten()
        reward_PG, *ends = bootstrapped(*flat)
    reward_NT = token_rewards(batch, reward_PG, kl_coef)
    advantage_NT, return_NT = advantages(reward_NT, value_NT.double(), mask_NT, *ends)
    weight_NT = parallel.over_all_ranks(whiten, advantage_NT, mask_NT)
    return batch.replace(
        values=Values(value_NT, return_NT.to(value_NT.dtype)),
        weight_NT=weight_NT.to(batch.weight_NT.dtype).contiguous(),
    )


@dataclass(frozen=True)
class Update:
    """What the optimiser steps of one batch have in common.

    counts: the denominator of each term, over all ranks, before the split into micro-batches.
    learning: the rows that have a gradient. measured: the policy's other samples, for metrics.
    complete: every token that the policy drew is in one of the two.
    """

    counts: list[Tensor]
    learning: Batch
    measured: Batch
    complete: bool


@phase("update")
def update(session: Session, state: State, batch: Batch, sums: Sums) -> None:
    """`num_iterations` optimiser steps on one batch.

    Every term has one denominator, counted over all ranks before the split into micro-batches; a
    term of which nothing counts is left out. A step in which nothing counts moves nothing, and
    says so (`zero_signal`).
    """
    config = session.config
    session.policy.model.train(not config.disable_dropout)
    learning = with_signal(session, batch)
    counts = [parallel.sum_over_ranks(term.unit(batch).count) for term in session.terms]
    plan = Update(counts, learning, *measured_rows(session, batch, learning, state.step))
    ptx = bool(session.pretraining) and state.step > (config.critic_warmup_steps or 0)
    idle = not ptx and not any(parallel.gather(len(learning)))
    if idle:
        sums.total("zero_signal", parallel.rank() == 0)
    for iteration in range(1 if idle else config.num_iterations or 1):
        gap_M = accumulate(session, state, plan, sums)
        rest_M = record_rest(session, plan.measured, state.step, sums)
        if iteration == 0 and session.on_policy:
            check_same_policy(session, gap_M, rest_M, state.step, sums)
        if idle:
            return
        if ptx:
            add_pretraining_gradient(session, session.pretraining, state.step, sums)
        take_step(session, state, sums)


def accumulate(session: Session, state: State, plan: Update, sums: Sums) -> Tensor:
    """Add the gradient of the loss over all micro-batches to the parameters.

    Returns |log pi - log pi_old| of the tokens trained on.
    """
    gaps = [torch.zeros(0)]
    if session.clock.device is not None:
        count_learning(session, plan.learning)
    for micro in plan.learning.split(
        session.config.token_budget, whole_groups=session.by_comparison, packed=session.packs
    ):
        outputs = forward(session, micro)
        loss = loss_of(session, state, micro, outputs, plan.counts)
        check_finite(loss, micro, state.step)
        session.clock.run("backward", cast("Any", loss).backward)
        sums.add("loss", float(loss.detach()), 0)
        record_update(session, micro, outputs, state.step, sums, whole=plan.complete)
        if session.on_policy:
            (logp_NT,) = outputs.tensors(["logp_NT"])
            gap_NT = logp_NT.detach() - micro.logp_old_NT
            gaps.append(gap_NT[micro.loss_mask_NT].abs().cpu())
    return torch.cat(gaps)


def loss_of(
    session: Session,
    state: State,
    micro: Batch,
    outputs: Outputs,
    counts: Sequence[Tensor],
) -> Tensor:
    """The loss of a micro-batch: every term reduced by its own unit and global count."""
    config, terms = session.config, session.terms
    values = [term.objective(*outputs.tensors(term.reads), micro) for term in terms]
    if config.beta or config.entropy_coef:
        values[0] = values[0] + penalty_terms(session, micro, outputs)
    if state.step <= (config.critic_warmup_steps or 0):
        values[0] = values[0].detach()
    parts = [
        reduce_loss(value, term.unit(micro), count)
        for term, value, count in zip(terms, values, counts, strict=True)
        if bool(count)
    ]
    return torch.stack(parts).sum()


def penalty_terms(session: Session, micro: Batch, outputs: Outputs) -> Tensor | float:
    """beta * KL(pi || ref) - entropy_coef * H, per token, where they belong to the loss."""
    config, terms = session.config, 0.0
    if session.learns_from_data:
        return terms
    if config.beta and config.kl_placement == "loss":
        if config.kl_estimator == "exact":
            kl_NT = session.policy.kl(micro, session.reference, outputs.hidden_NLD)
        else:
            (logp_NT,) = outputs.tensors(["logp_NT"])
            kl_NT = kl_loss(logp_NT, micro, kl_estimator=str(config.kl_estimator))
        terms = terms + config.beta * kl_NT
    if config.entropy_coef:
        (entropy_NT,) = outputs.tensors(["entropy_NT"])
        terms = terms - config.entropy_coef * entropy_NT
    return terms


def take_step(session: Session, state: State, sums: Sums) -> None:
    """One optimiser step with the gradients of all ranks; target networks follow."""
    parameters = session.trainable()
    parallel.sum_gradients(parameters.values())
    with session.clock("optimiser"):
        norm = optimizer_step(session.optimizer, parameters, state.step, session.config)
    sums.add("grad_norm", norm, 1)
    sums.add("loss", 0.0, parallel.rank() == 0)
    if session.auxiliary is not None:
        session.auxiliary.follow()


@phase("forward")
def forward(session: Session, micro: Batch) -> Outputs:
    """What the terms of the loss and the metrics of this row are functions of.

    It takes one pass of each body.
    """
    config = session.config
    wanted = {name for term in session.terms for name in term.reads}
    if not session.row.trained.head:
        wanted |= {"logp_NT", "entropy_NT"}
    if config.beta and config.kl_placement == "loss" and config.kl_estimator == "exact":
        wanted.add("hidden_NLD")
    return session.model.forward(micro, wanted, entropy_grad=bool(config.entropy_coef))


def with_signal(session: Session, batch: Batch) -> Batch:
    """The rows that have a gradient.

    A row whose weights are all zero adds exactly nothing, unless KL, entropy or a auxiliary's error
    is in the loss; then one that no term of the loss counts adds nothing. A comparison without two
    sides adds nothing. They were counted in the denominator before; leaving them out of the forward
    and backward pass changes no gradient.
    """
    config = session.config
    if session.by_comparison:
        # one weight a group, in the order of its number: each row takes its group's
        place_N: Tensor = cast("Any", batch.group_N).unique(return_inverse=True)[1]
        counts_N = session.terms[0].unit(batch).weight[place_N] != 0
        return batch.rows(ints(counts_N.nonzero()[:, 0]))
    kl = config.beta and config.kl_placement == "loss"
    if session.auxiliary is not None or kl or config.entropy_coef:
        counts = [
            (term.unit(batch).weight != 0).reshape(len(batch), -1).any(1) for term in session.terms
        ]
        counts_N = torch.stack(counts).any(0)
    else:
        counts_N = (torch.where(batch.loss_mask_NT, batch.weight_NT, 0.0) != 0).any(1)
    return batch.rows(ints(counts_N.nonzero()[:, 0]))


def measured_rows(session: Session, batch: Batch, learning: Batch, step: int) -> tuple[Batch, bool]:
    """The policy's own samples of which no token is trained on, for metrics.

    Returns, too, whether then every sample is measured. Measuring costs a forward pass, so it is
    done only where metrics are written. Their mask is what was sampled, their weight is 0: nothing
    of them is clipped.
    """
    on_N = bools(learning.loss_mask_NT.any(1))
    trained = {key for key, on in zip(learning.keys, on_N, strict=True) if on}
    drawn_N = bools(batch.drawn_NT.any(1) & session.on_policy)
    rest = batch.rows([n for n, key in enumerate(batch.keys) if drawn_N[n] and key not in trained])
    complete = session.logs(step) or not any(parallel.gather(len(rest)))
    rest = rest if complete else rest.rows([])
    rest = rest.replace(loss_mask_NT=rest.drawn_NT, weight_NT=torch.zeros_like(rest.weight_NT))
    return rest, complete


def finish_step(session: Session, state: State, sums: Sums, progress: Progress) -> bool:
    """Metrics, evaluation and checkpoint that are due after this step.

    True when the run is to end here.
    """
    config = session.config
    sums.add("learning_rate", learning_rate(state.step, config), 1)
    evaluated = bool(
        config.eval_steps and session.eval_rows and state.step % config.eval_steps == 0
    )
    if evaluated:
        sums.merge(evaluate(session, state.step))
    record_time(session, sums, state.step)
    if config.kl_target:
        sums.add("beta", state.beta, 1)
    means = merge_metrics(parallel.gather(sums)).means()
    better = evaluated and best.is_best(session, state, means)
    done = evaluated and (best.reached_goal(config, means) or best.out_of_patience(config, state))
    alarms = log_step(session, state.step, means, progress, done)
    if session.observers.callbacks:
        done = callbacks.call_callbacks(session, state.step, means, evaluated) or done
    if config.on_alarm == "return" and any(parallel.gather(alarms)):
        progress.say(return_to_checkpoint(session, state))
        return True
    due = bool(config.save_steps) and state.step % config.save_steps == 0
    if (due or better) and state.step < config.max_steps and not done:
        save(session, state)
    return done


def log_step(
    session: Session, step: int, means: dict[str, float], progress: Progress, done: bool
) -> list[str]:
    """The line of metrics and the bar, on rank 0; new alarms, which are shown."""
    if parallel.rank() > 0:
        return []
    if not progress.quiet:
        progress.advance(step, means)
    alarms = collapse_alarms(session, means) if session.watches_collapse else []
    near = [] if session.generator.exact else gap_warning(session, means)
    for line in [*alarms, *near]:
        progress.say(line)
    if done or step % session.config.logging_steps == 0 or step == session.config.max_steps:
        session.run.log(step, means)
    return alarms


def total_norm(grads: list[Tensor]) -> float:
    """The norm of all gradients as one vector. Of those in bfloat16 it is added up in float32."""
    if all(grad.dtype != NARROW for grad in grads):
        return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
    linalg: Any = torch.linalg
    return math.hypot(*(float(linalg.vector_norm(grad, dtype=torch.float32)) for grad in grads))


def optimizer_step(
    optimizer: Any, parameters: Mapping[str, nn.Parameter], step: int, config: TrainConfig
) -> float:
    """Clip, step, clear; returns the gradient norm before clipping.

    A gradient that is exactly zero moves nothing: no step, so no weight decay and no momentum
    either. A gradient that is not finite stops the run.
    """
    grads = [p.grad for p in parameters.values() if p.grad is not None]
    norm = total_norm(grads)
    if not math.isfinite(norm):
        bad = next(
            name
            for name, p in parameters.items()
            if p.grad is not None and not p.grad.isfinite().all()
        )
        raise LaurelError(
            f"the gradient of {bad} is not finite.",
            where=f"step {step}",
            fix="Lower learning_rate; look at samples.jsonl.",
        )
    if norm > 0:
        if config.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(
                parameters.values(), config.max_grad_norm, torch.tensor(norm)
            )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config) * group.get("times", 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
