"""Evaluations of a run on its held-out rows: `laurel.eval` with what the session holds.

Every process evaluates its part of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from laurel.core.errors import LaurelError, UsageError
from laurel.core.metrics import Sums
from laurel.core.sample import Batch, Draw, Group
from laurel.data.source import Row
from laurel.eval.evaluate import sample_answers
from laurel.eval.heldout import (
    EvalSubject,
    answer_metrics,
    data_metrics,
    longest_answer,
    sets_by_prefix,
)
from laurel.eval.verdict import judge_scorer
from laurel.model.scorer import Card
from laurel.train import parallel
from laurel.train.best import check_measured
from laurel.train.callbacks import add_user_metrics
from laurel.train.record import check_failures
from laurel.train.reference import with_reference
from laurel.train.session import Session


def evaluate(session: Session, step: int) -> Sums:
    """The metrics of this rank's part of the held-out rows.

    eval/reward and eval/accuracy (share of greedy answers with a reward of at least 1; unscored
    ones count as wrong), where rows have a prompt and rewards are known; eval/nll, where the
    algorithm learns from data. Of several sets eval/NAME/... each.
    """
    whole = Sums()
    for name, rows in sets_by_prefix(session.eval_rows).items():
        part = evaluate_set(session, rows, step)
        whole.merge(
            part.renamed(lambda metric, name=name: f"eval/{name}{metric.removeprefix('eval/')}")
        )
    return whole


def check_names(session: Session) -> None:
    """Before the first step: is the metric among those that an evaluation gives?

    A few rows of each set are evaluated. Rewards that fail on these few are no reason to end here:
    the first evaluation tells of all rows.
    """
    if not session.config.metric_for_best_model:
        return
    parts = sets_by_prefix(session.eval_rows).values()
    few = [row for rows in parts for row in rows[: max(4, parallel.world_size())]]
    try:
        sums = evaluate(replace(session, eval_rows=few), 0)
    except UsageError:
        raise
    except LaurelError:
        return
    names = {
        name for part in parallel.gather(sums) for name in part.sums.keys() | part.totals.keys()
    }
    check_measured(session.config, names)


def evaluate_set(session: Session, rows: Sequence[Row], step: int) -> Sums:
    """The metrics of this rank's part of one evaluation set."""
    sums, rows = Sums(), rows[parallel.rank() :: parallel.world_size()]
    groups = list[Group]()
    if rows and session.learns_from_data:
        groups = data_metrics(subject_of(session), rows, step, sums)
    if session.mixture is not None:
        groups = greedy_answers(session, rows, step) if rows else []
        if rows:
            answer_metrics(groups, sums)
        check_failures(session, groups)
    add_user_metrics(session, groups, step, sums)
    return sums


def subject_of(session: Session) -> EvalSubject:
    """The session's policy or scorer, as it is evaluated on rows of data."""

    def with_targets(batch: Batch, groups: Sequence[Group]) -> Batch:
        targets = session.row.targets
        return targets(session, batch, groups) if targets else batch

    def log_ref(micro: Batch) -> Batch:
        return with_reference(session, micro) if session.reference else micro

    measure = session.row.measure if session.row.trained.head else None
    return EvalSubject(
        session.policy, session.row.source, session.config, with_targets, log_ref, measure
    )


def greedy_answers(session: Session, rows: Sequence[Row], step: int) -> list[Group]:
    """Greedy completions of the rows' prompts, scored by the run's own rewards."""
    config, mixture = session.config, session.mixture
    assert mixture is not None
    length = config.max_completion_length
    if not length:  # the same on all processes
        length = longest_answer(session.policy.tokenizer, session.eval_rows, config)
    draw = Draw("eval", step, config.seed, 1, length, 0.0, tuple(config.stop or ()))
    groups = sample_answers(session.policy, rows, draw, session.make_env, config.max_turns)
    return mixture.score(groups, refuse=False)


def scorer_verdict(session: Session) -> list[str]:
    """Lines on how good the trained scorer is on held-out rows.

    Its card gets the mean and spread of its scores on them. Of several evaluation sets each has its
    own lines; the card is of all.
    """
    known, source = session.rows[:2000], session.row.source
    found = judge_scorer(session.policy, session.eval_rows, source, known=known)
    if session.row.trained.head == 1:
        session.policy.card = Card.of(found.scores, session.config.max_length)
    parts = sets_by_prefix(session.eval_rows)
    if len(parts) == 1:
        return found.lines
    lines = list[str]()
    for name, rows in parts.items():
        alone = judge_scorer(session.policy, rows, source, known=known)
        lines += [f"{name.rstrip('/')}: {line}" for line in alone.lines]
    return lines
