"""The best checkpoint by a metric of the evaluations; and patience.

With patience, the run ends when the metric has stopped getting better.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError, UsageError, nearest
from laurel.core.metrics import explain
from laurel.core.named_datasets import format_named_sets
from laurel.data.source import Row
from laurel.train import parallel
from laurel.train.checkpoint import is_sound, load_checkpoint
from laurel.train.session import Session, State

UP = (
    "accuracy",
    "accuracies",
    "reward",
    "chosen",
    "margin",
    "margins",
    "right",
    "neutral",
    "wrong",
    "tokens",
)
DOWN = ("nll", "loss", "error", "perplexity")
"""Last words of names of metrics of which more, and of which less, is better."""
OPTIONS = ("greater_is_better", "load_best_model_at_end", "early_stopping_patience")


def metric_of(config: TrainConfig) -> str:
    """The metric by which a checkpoint is best, as it is logged; "" where none is asked for.

    `eval_x` and `x` mean `eval/x`.
    """
    name = config.metric_for_best_model or ""
    name = name.removeprefix("eval_")
    return name if not name or name.startswith("eval/") else f"eval/{name}"


def is_greater_better(config: TrainConfig) -> bool:
    """Is more of that metric better?

    `greater_is_better` decides, else the last word of the metric's name; UsageError where neither
    does.
    """
    if config.greater_is_better is not None:
        return config.greater_is_better
    last = metric_of(config).split("/")[-1].rpartition("_")[2]
    if last not in (*UP, *DOWN):
        what = f"whether more or less of `{metric_of(config)}` is better, its name does not say."
        raise UsageError(what, where="metric_for_best_model", fix="Say it with greater_is_better.")
    return last in UP


def check_best(config: TrainConfig, eval_rows: Collection[Row], *, own: bool = False) -> None:
    """UsageError for options of the best checkpoint that contradict each other, or cannot be met.

    It is raised before any weight is loaded. own: the user measures metrics of their own, too.
    """
    if not config.metric_for_best_model:
        used = [
            name
            for name in OPTIONS
            if getattr(config, name) != TrainConfig.model_fields[name].default
        ]
        if used:
            fix = "Set metric_for_best_model, such as eval/accuracy, eval/reward or eval/nll."
            raise UsageError(
                f"`{used[0]}` needs a metric to compare checkpoints by.", where=used[0], fix=fix
            )
        return
    if not config.eval_steps:
        raise UsageError(
            "a best checkpoint needs evaluations to compare.",
            where="metric_for_best_model",
            fix="Set eval_steps.",
        )
    if not eval_rows:
        fix = "Set eval_size, or name eval_dataset."
        raise UsageError(
            "a best checkpoint needs held-out rows, and there are none.",
            where="metric_for_best_model",
            fix=fix,
        )
    name = metric_of(config)
    try:
        explain(name)
    except UsageError as error:
        if not own:
            raise UsageError(
                f"no metric is called `{name}`.", where="metric_for_best_model", fix=error.fix
            ) from None
    is_greater_better(config)
    sets = {row.part for row in eval_rows} - {""}
    if sets and name.split("/")[1] not in sets and not own:
        named = format_named_sets(config.eval_dataset or "")
        what = f"there are several evaluation sets ({named}), so `{name}` is of none of them."
        raise UsageError(
            what,
            where="metric_for_best_model",
            fix=f"Say of which: eval/{min(sets)}/{name.partition('/')[2]}.",
        )


def check_evaluated(config: TrainConfig) -> None:
    """A run that ends before its first evaluation has no best checkpoint."""
    if config.metric_for_best_model and config.eval_steps > config.max_steps:
        what = f"the run ends at step {config.max_steps}, before its first evaluation."
        raise UsageError(
            what,
            where="eval_steps",
            fix=f"Set eval_steps to {config.max_steps} at most, or raise max_steps.",
        )


def check_measured(config: TrainConfig, names: Collection[str]) -> None:
    """The metric must be among the names that an evaluation gives."""
    known = sorted(name for name in names if name.startswith("eval/"))
    if metric_of(config) not in known:
        what = f"the evaluations of this run do not measure `{metric_of(config)}`."
        fix = f"{nearest(metric_of(config), known)} They measure: {', '.join(known)}."
        raise UsageError(what, where="metric_for_best_model", fix=fix)


def is_best(session: Session, state: State, means: Mapping[str, float]) -> bool:
    """Is this evaluation the best so far?

    If so the state records it; else it counts one more evaluation without improvement.
    """
    name = metric_of(session.config)
    if not name:
        return False
    check_measured(session.config, means)
    value, sign = float(means[name]), 1 if is_greater_better(session.config) else -1
    better = math.isfinite(value) and (state.best is None or sign * value > sign * state.best)
    if not better:
        state.waited += 1
        return False
    state.best, state.best_step, state.waited = value, state.step, 0
    return True


def out_of_patience(config: TrainConfig, state: State) -> bool:
    """Have the evaluations gone without improvement for as long as the run is to wait?"""
    return (
        config.early_stopping_patience is not None
        and state.waited >= config.early_stopping_patience
    )


def reached_goal(config: TrainConfig, means: Mapping[str, float]) -> bool:
    """Has the accuracy, of several evaluation sets the accuracy of each, reached stop_at?"""
    found = [
        value for name, value in means.items() if re.fullmatch(r"eval/([^/]+/)?accuracy", name)
    ]
    return config.stop_at is not None and bool(found) and min(found) >= config.stop_at


def end_lines(session: Session, state: State) -> list[str]:
    """Lines at the end of a run: why it ended early, and which checkpoint is best (`keep_best`)."""
    early = (
        [no_improvement_line(session.config, state)]
        if out_of_patience(session.config, state)
        else []
    )
    kept = keep_best(session, state)
    return [*early, kept] if kept else early


def no_improvement_line(config: TrainConfig, state: State) -> str:
    """Why the run ends early, in a line."""
    best = (
        "never a finite number"
        if state.best is None
        else f"{state.best:.4g} at step {state.best_step}"
    )
    return (
        f"{state.waited} evaluations without a better {metric_of(config)} (best: {best}): the run"
        f" ends at step {state.step}"
    )


def keep_best(session: Session, state: State) -> str:
    """At the end: which checkpoint is best, in run.json and in a line ("" where nobody asked).

    With load_best_model_at_end its weights come back.
    """
    config, run, name = session.config, session.run, metric_of(session.config)
    if not name:
        return ""
    if state.best is None:
        what = f"{name} was never a finite number, so no checkpoint is the best."
        if config.load_best_model_at_end:
            raise LaurelError(
                what,
                where="load_best_model_at_end",
                fix="The last checkpoint is kept: --load_best_model_at_end false.",
            )
        return what
    folder = run.checkpoints / f"step-{state.best_step}"
    if config.load_best_model_at_end and state.best_step != state.step:
        if not is_sound(folder):
            fix = (
                "Take an earlier checkpoint, or --load_best_model_at_end false for the last step's"
                " weights."
            )
            raise LaurelError("the best checkpoint is damaged or gone.", where=str(folder), fix=fix)
        reference = session.reference.hash if session.reference else ""
        load_checkpoint(
            folder,
            run.id,
            session.policy.template,
            session.saved_parameters(),
            session.optimizer,
            reference,
        )
    saved = state.best_step if config.load_best_model_at_end else state.step
    if parallel.rank() == 0:
        best = {
            "metric": name,
            "value": state.best,
            "step": state.best_step,
            "checkpoint": f"checkpoints/{folder.name}",
        }
        run.note({"best": best, "model_step": saved})
    return (
        f"best {name} {state.best:.4g} at step {state.best_step} (checkpoints/{folder.name});"
        f" model/ is that of step {saved}"
    )
