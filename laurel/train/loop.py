"""The loop: sample x, score R(x), weigh A(x), maximise A(x) log pi(x). Every algorithm runs through
these few functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from laurel.core.config import TrainConfig
from laurel.core.metrics import Sums, merged
from laurel.core.run import Run
from laurel.core.sample import Batch, Draw, Group, sample_seed
from laurel.data.source import Row
from laurel.objective.unit import reduce_loss
from laurel.rollout.episode import play
from laurel.rollout.given import GIVEN
from laurel.rollout.pack import pack, reward_matrix, sample_rewards, token_rewards
from laurel.rollout.sampler import Sampler
from laurel.rollout.single import rollout
from laurel.train import best, callbacks, checks, parallel
from laurel.train.callbacks import CallbackFailed, Watching
from laurel.train.checkpoint import State
from laurel.train.critic import return_to_good, steer, watch, with_values
from laurel.train.draws import beside, drawn, next_rows
from laurel.train.evaluate import check_names, evaluate
from laurel.train.evolve import evolve
from laurel.train.interrupt import Interrupted, StopFlag
from laurel.train.keep import rescued, save
from laurel.train.optimizer import learning_rate, optimizer_step
from laurel.train.options import bind
from laurel.train.pretrain import mix_in
from laurel.train.profile import learned, phase
from laurel.train.progress import Progress
from laurel.train.record import (
    record_population,
    record_rest,
    record_samples,
    record_time,
    record_update,
    reward_metrics,
)
from laurel.train.reference import penalties, with_reference
from laurel.train.scored import held_out_report
from laurel.train.setup import Setup, prepare, versions
from laurel.train.untrained import trains, unseen, with_signal
from laurel.weight.group import informative, update_running_mean
from laurel.weight.shape import overlong
from laurel.weight.token import whiten


def train(
    algorithm: str,
    config: TrainConfig | None = None,
    *,
    quiet: bool = False,
    watching: Watching | None = None,
) -> Run:
    """Train one algorithm of the table to the end and return its run directory. The command line
    walks this same path.

    watching: callbacks and metrics of a Python program (`laurel.train.python`).
    """
    setup, state = prepare(algorithm, config or TrainConfig(), watching)
    try:
        carry_on(setup, state, quiet)
    except BaseException:
        setup.run.withdraw()
        raise
    setup.run.close()
    return setup.run


def carry_on(setup: Setup, state: State, quiet: bool) -> None:
    """Steps until the end, then the model."""
    stop = StopFlag()
    with Progress(setup, quiet=quiet or parallel.rank() > 0) as progress, stop:
        checks.before(setup, state.step, progress)
        check_names(setup)
        if parallel.rank() == 0:
            setup.run.note(versions())
            setup.run.connect(state.step)
        while state.step < setup.config.max_steps and not best.exhausted(setup.config, state):
            sums, before = Sums(), replace(state)
            setup.clock.start()
            try:
                step(setup, state, sums)
            except Exception as error:
                raise rescued(setup, before, sums, error) from error
            try:
                ended = finish_step(setup, state, sums, progress)
            except CallbackFailed as error:
                raise rescued(setup, state, Sums(), error) from error.__cause__
            if ended:
                break
            if (signal := max(parallel.gather(stop.asked))) and state.step < setup.config.max_steps:
                save(setup, state)
                what = f"stopped at step {state.step}: everything is saved."
                raise Interrupted(what, fix="Continue with --resume true.", by=signal)
        save(setup, state)
        for line in [*setup.asked, *best.ends(setup, state)]:
            progress.say(line)
        if parallel.rank() == 0:
            if setup.row.head and setup.held:
                verdict = held_out_report(setup)
                progress.say("\n".join(verdict))
                setup.run.note({"held_out": verdict})
            for line in setup.save_model():
                progress.say(line)


def step(setup: Setup, state: State, sums: Sums) -> None:
    """One step of any algorithm: groups, batch, weights, update."""
    config = setup.config
    torch.manual_seed(sample_seed(config.seed, "dropout", parallel.rank(), state.step) % 2**63)
    if (
        setup.row.source == "parameters"
    ):  # every member of the population answers the same rows, on whatever process it is
        rows = parallel.gather(
            next_rows(setup, state, 0 if parallel.rank() else config.prompts_per_step)
        )[0]
        return record_population(
            setup,
            state.step + 1,
            evolve(setup, state, lambda: sample_and_score(setup, state, rows, sums), sums),
        )
    first = state.cursor
    groups = collect(setup, state, sums)  # x ~ pi or data, R(x)
    names = [row.id for row in drawn(setup, first, state.cursor - first)]
    batch = weigh(setup, state, groups, sums)  # R -> A, lists -> tensors
    state.step += 1
    update(setup, state, batch, sums)  # maximise A log pi
    if not setup.learns_from_data:
        state.running_mean = update_running_mean(
            state.running_mean, torch.cat(parallel.gather(reward_matrix(groups)))
        )
    record_samples(setup, state.step, groups, batch, names)


def collect(setup: Setup, state: State, sums: Sums) -> list[Group]:
    """This rank's groups of the step, scored. With dynamic_sampling, groups without signal make
    room for new prompts, boundedly.

    A group whose every sample is masked has no signal, whatever its rewards.
    """
    config = setup.config
    rank, size = parallel.rank(), parallel.world_size()
    count = config.prompts_per_step // size + (rank < config.prompts_per_step % size)
    groups = sample_and_score(setup, state, next_rows(setup, state, count), sums)
    if setup.learns_from_data:
        return groups
    every, resampled = list(groups), 0
    for _ in range(config.max_resamples if config.dynamic_sampling else 0):
        signal_P = informative(reward_matrix(groups)) if groups else torch.zeros(0)
        useful = [
            group
            for group, good in zip(groups, signal_P.tolist(), strict=True)
            if good and trains(setup, group)
        ]
        missing = count - len(useful)
        if sum(parallel.gather(missing)) == 0:
            break
        resampled += missing
        fresh = sample_and_score(setup, state, next_rows(setup, state, missing), sums)
        groups, every = useful + fresh, every + fresh
    checks.judged(setup, every)
    if config.dynamic_sampling:
        sums.total("resampled_groups", resampled)
    return groups


def sample_and_score(setup: Setup, state: State, rows: Sequence[Row], sums: Sums) -> list[Group]:
    """x ~ data, or x ~ pi in one turn or many, then R(x)."""
    if not rows:
        return []
    config, policy, run = setup.config, setup.policy, setup.run.id
    if setup.learns_from_data:
        how: dict[str, Any] = {
            "train_on": config.train_on,
            "max_length": config.max_length,
            **beside(setup, state, rows),
        }
        return GIVEN[setup.row.source](policy, rows, run=run, step=state.step, **how)
    draw = Draw(
        run,
        state.step,
        config.seed,
        config.num_generations,
        config.max_completion_length,
        config.temperature,
        tuple(config.stop),
    )
    with setup.clock("sample"):
        groups = (
            play(Sampler(policy), rows, draw, setup.make_env, config.max_turns)
            if setup.make_env
            else rollout(Sampler(policy), rows, draw)
        )
    groups = setup.clock.run("score", setup.score, groups)
    reward_metrics(setup, groups, sums)
    return setup.row.revise(setup, rows, groups, sums) if setup.row.revise else groups


@phase("weigh")
@torch.no_grad()
def weigh(setup: Setup, state: State, groups: list[Group], sums: Sums) -> Batch:
    """Groups -> Batch with reference log-probabilities and weights: A = weigh(R + overlong shaping
    - beta * KL).
    """
    config, row = setup.config, setup.row
    batch, reward_PG = (
        pack(groups, mask_truncated=bool(config.mask_truncated_completions)),
        reward_matrix(groups),
    )
    if config.overlong_buffer:
        shaped = overlong(
            batch.length_N,
            max_completion_length=config.max_completion_length,
            overlong_buffer=config.overlong_buffer,
        )
        reward_PG = reward_PG + shaped.view_as(reward_PG)
    if setup.by_comparison:  # an answer that is not trained on is nobody's comparison
        reward_PG = reward_PG.masked_fill(
            ~batch.loss_mask_NT.any(1).view_as(reward_PG), float("nan")
        )
    if setup.measures_kl(state.step + 1):
        batch = with_reference(setup, batch, of_step=True)
    reward_PG = steer(setup, state, groups, batch, reward_PG)
    kl_coef = (
        (state.beta if config.kl_target else config.beta)
        if config.kl_placement == "reward"
        else 0.0
    )
    chosen = bind(row.weigh, config, running_mean=state.running_mean)
    if row.credit == "critic":
        batch = with_values(setup, batch)
        advantage_NT, target_NT = chosen(
            token_rewards(batch, reward_PG, kl_coef), batch.value_NT.double(), batch.loss_mask_NT
        )
        weight_NT = parallel.jointly(whiten, advantage_NT, batch.loss_mask_NT)
        batch = batch.replace(target_NT=target_NT.to(batch.target_NT.dtype))
    elif row.credit == "token":
        weight_NT = parallel.jointly(
            chosen, token_rewards(batch, reward_PG, kl_coef), batch.loss_mask_NT
        )
    else:
        weight_PG = parallel.jointly(chosen, sample_rewards(batch, reward_PG, kl_coef))
        weight_NT = weight_PG.reshape(-1, 1).expand_as(batch.weight_NT)
    if setup.on_policy:
        good = informative(reward_PG)
        sums.add("informative_fraction", int(good.sum()), len(good))
    batch = batch.replace(weight_NT=weight_NT.to(batch.weight_NT.dtype).contiguous())
    return (setup.row.aim(setup, batch, groups) if setup.row.aim else batch).to(setup.policy.device)


@phase("update")
def update(setup: Setup, state: State, batch: Batch, sums: Sums) -> None:
    """`num_iterations` optimiser steps on one batch. One denominator, counted over all ranks before
    the split into micro-batches.

    A step in which nothing counts moves nothing, and says so. A term of which nothing counts,
    beside one of which something does, is left out.
    """
    config, policy = setup.config, setup.policy
    parameters = setup.trainable()
    policy.model.train(not config.disable_dropout)
    terms = setup.terms()
    totals = [parallel.everywhere(unit(batch).count) for _, _, unit in terms]
    counted = [bool(total) for total in totals]
    moving = with_signal(setup, batch)
    rest, whole = unseen(setup, batch, moving, state.step)
    extra = bool(setup.pretraining) and state.step > (config.critic_warmup_steps or 0)
    idle = not extra and not any(parallel.gather(len(moving)))
    if idle:
        sums.total("zero_signal", parallel.rank() == 0)
    for iteration in range(1 if idle else config.num_iterations or 1):
        gaps = [torch.zeros(0)]
        learned(setup, moving)
        for micro in moving.split(
            config.token_budget, whole_groups=setup.by_comparison, packed=setup.packs
        ):
            seen, stats = look(setup, micro)
            values = [objective(seen[reads], micro) for reads, objective, _ in terms]
            values[0] = values[0] + penalties(setup, micro, stats)
            if state.step <= (config.critic_warmup_steps or 0):
                values[0] = values[0].detach()
            parts = itertools.compress(zip(terms, values, totals, strict=True), counted)
            loss = torch.stack(
                [reduce_loss(value, unit(micro), total) for (_, _, unit), value, total in parts]
            ).sum()
            checks.finite(loss, micro, state.step)
            setup.clock.run("backward", loss.backward)
            sums.add("loss", float(loss.detach()), 0)
            record_update(setup, micro, seen, stats, state.step, sums, whole=whole)
            if setup.on_policy:
                gaps.append(
                    (stats.logp.detach() - micro.logp_old_NT)[micro.loss_mask_NT].abs().cpu()
                )
        apart = record_rest(setup, rest, state.step, sums)
        if iteration == 0 and setup.on_policy:
            checks.same_policy(torch.cat(gaps), apart, policy.slack, state.step, sums)
        if idle:
            return
        if extra:
            mix_in(setup, setup.pretraining, state.step, sums)
        parallel.sum_gradients(parameters.values())
        sums.add(
            "grad_norm",
            setup.clock.run(
                "optimiser", optimizer_step, setup.optimizer, parameters, state.step, config
            ),
            1,
        )
        sums.add("loss", 0.0, parallel.rank() == 0)
        if setup.companion is not None:
            setup.companion.follow()


@phase("forward")
def look(setup: Setup, micro: Batch) -> tuple[dict[str, torch.Tensor], Any]:
    """What the row's objectives are functions of: log-probabilities of the policy, or what a
    scorer's head says.
    """
    if setup.row.head:
        return setup.policy.seen(micro, [reads for reads, _, _ in setup.terms()]), None
    stats = setup.policy.logp(micro, entropy="grad" if setup.config.entropy_coef else "value")
    return {
        "logp_NT": stats.logp,
        **(setup.companion.seen(micro) if setup.companion else {}),
    }, stats


def finish_step(setup: Setup, state: State, sums: Sums, progress: Progress) -> bool:
    """Metrics, evaluation and checkpoint that are due after this step. True when the run is to end
    here.
    """
    config = setup.config
    sums.add("learning_rate", learning_rate(state.step, config), 1)
    evaluated = bool(config.eval_steps and setup.held and state.step % config.eval_steps == 0)
    if evaluated:
        sums.merge(evaluate(setup, state.step))
    record_time(setup, sums, state.step)
    if config.kl_target:
        sums.add("beta", state.beta, 1)
    means = merged(parallel.gather(sums)).means()
    better = evaluated and best.weighed_up(setup, state, means)
    done, alarms = best.enough(config, means) or best.exhausted(config, state), list[str]()
    if parallel.rank() == 0:
        progress.advance(state.step, means)
        alarms = watch(setup, means)
        for line in alarms:
            progress.say(line)
        if state.step % config.logging_steps == 0 or state.step == config.max_steps or done:
            setup.run.log(state.step, means)
    done = callbacks.heard(setup, state.step, means, evaluated) or done
    if config.on_alarm == "return" and any(parallel.gather(alarms)):
        progress.say(return_to_good(setup, state))
        return True
    due = bool(config.save_steps) and state.step % config.save_steps == 0
    if (due or better) and state.step < config.max_steps and not done:
        save(setup, state)
    return done
