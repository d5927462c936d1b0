"""Signs of collapse while a reward is exploited, and the way back to a checkpoint from before."""

from __future__ import annotations

from collections.abc import Mapping

from laurel.measure.collapse import alarms
from laurel.train import parallel
from laurel.train.checkpoint import load_checkpoint, newest_checkpoint
from laurel.train.session import Session, State


def collapse_alarms(session: Session, means: Mapping[str, float]) -> list[str]:
    """Signs of collapse that are new after this step, as warnings."""
    session.history.append(dict(means))
    found = alarms(
        session.history,
        max_completion_length=session.config.max_completion_length or 0,
        held_out="" if session.learned_reward else "eval/accuracy",
    )
    new = [line for line in found if line.partition(":")[0] not in session.alarmed]
    session.alarmed.update(line.partition(":")[0] for line in new)
    return [f"warning: {line}" for line in new]


def return_to_checkpoint(session: Session, state: State) -> str:
    """Load weights, optimiser and state of the newest checkpoint; returns a line for the user.

    The checkpoint was written before the alarm. The run ends there: going on from it would draw the
    same samples and collapse again.
    """
    checkpoint, _ = newest_checkpoint(session.run.checkpoints)
    step = state.step
    if checkpoint is None:
        return f"no checkpoint to return to at step {step}: the run ends with the weights it has"
    reference = session.reference.hash if session.reference else ""
    good = load_checkpoint(
        checkpoint,
        session.run.id,
        session.policy.template,
        session.saved_parameters(),
        session.optimizer,
        reference,
    )
    vars(state).update(vars(good))
    if parallel.rank() == 0:
        session.run.note({"returned": {"from": step, "to": state.step}})
    return (
        f"returned from step {step} to the checkpoint of step {state.step}, before the alarm; the"
        " run ends there"
    )
