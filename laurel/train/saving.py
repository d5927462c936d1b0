"""Saving: a checkpoint where one is due, and the steps before one that fails."""

from __future__ import annotations

from laurel.core.errors import LaurelError
from laurel.core.metrics import Sums
from laurel.train import parallel
from laurel.train.callbacks import call_method
from laurel.train.checkpoint import save_checkpoint
from laurel.train.session import Session, State


def save(session: Session, state: State, *, notify: bool = True) -> None:
    """Write a checkpoint of this moment; callbacks are called unless `notify` is False.

    Rank 0 writes; all processes hold the same weights.
    """
    if parallel.rank() == 0:
        if session.reference_cache is not None:
            session.reference_cache.save()
        run, what = (
            session.run,
            (session.policy.template, session.saved_parameters(), session.optimizer, state),
        )
        save_checkpoint(run.checkpoints, run.id, *what, keep=session.config.save_total_limit)
    if notify and session.observers.callbacks:
        call_method(
            session, "on_checkpoint", state.step, session.run.checkpoints / f"step-{state.step}"
        )


def save_and_wrap(session: Session, before: State, sums: Sums, error: Exception) -> Exception:
    """The error that ends a run in the middle of a step, with what is saved of the steps before.

    They are saved if no optimiser has moved the weights in this step yet: else there is no whole
    step to save.
    """
    moved = sums.sums.keys() & {"grad_norm", "es/step_norm"}
    if parallel.rank() or moved or not before.step:
        return error
    try:
        save(session, before, notify=False)
    except (OSError, LaurelError):  # a full disk, say: the first error is the one to tell
        return error
    saved = f"The {before.step} steps before it are saved: --resume true goes on from there."
    if isinstance(error, LaurelError):
        return type(error)(error.what, where=error.where, fix=f"{error.fix} {saved}".strip())
    error.add_note(saved)
    return error
