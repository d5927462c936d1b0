"""Callbacks and metrics that a Python program gives a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, cast

from laurel.core.bound_objects import qualified_name
from laurel.core.errors import LaurelError, UsageError, nearest
from laurel.core.metrics import Sums
from laurel.core.sample import Group
from laurel.train import parallel
from laurel.train.session import Session

METHODS = {
    "on_step": "step, metrics",
    "on_evaluation": "step, metrics",
    "on_checkpoint": "step, folder",
}
"""What a callback may have, and what each is called with."""
STOPS = ("on_step", "on_evaluation")


class CallbackFailed(LaurelError):
    """A callback or a metric of the user's own raised, or returned what means nothing."""


def check_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """The callbacks as a tuple.

    One that would never be called, or could not be, is a UsageError before anything is loaded.
    """
    every = tuple[Any, ...]()
    if isinstance(callbacks, Sequence):
        every = tuple(cast("Sequence[Any]", callbacks))
    elif callbacks is not None:
        every = (callbacks,)
    for one in every:
        where = f"callbacks: {qualified_name(one)}"
        if isinstance(one, type):
            raise UsageError(
                "this is a class.", where=where, fix=f"Give an object of it: {one.__name__}()."
            )
        there = [name for name in METHODS if hasattr(one, name)]
        if not there:
            events = [name for name in dir(one) if name.startswith("on_")]
            fix = nearest(events[0], METHODS) if events else ""
            raise UsageError(
                "it has none of on_step, on_evaluation and on_checkpoint.", where=where, fix=fix
            )
        for name in there:
            method = getattr(one, name)
            try:
                inspect.signature(method).bind(1, {})
            except (TypeError, ValueError):
                what = f"`{name}` cannot be called with ({METHODS[name]})."
                raise UsageError(
                    what, where=where, fix=f"Write def {name}(self, {METHODS[name]})."
                ) from None
    return every


def call_method(session: Session, method: str, step: int, what: Mapping[str, float] | Path) -> str:
    """Call a method of every callback, in the first process.

    Returns the name of the first that asks for the end of the run, or "". A callback asks by
    returning True or "stop". CallbackFailed, in all processes, where one raises.
    """
    asked, broken, cause = "", "", None
    for one in session.observers.callbacks if parallel.rank() == 0 else ():
        function = getattr(one, method, None)
        if function is None:
            continue
        name = f"{qualified_name(one)}.{method}"
        try:
            answer = function(step, dict(what) if isinstance(what, Mapping) else what)
        except Exception as error:
            broken, cause = f"callback `{name}` failed: {type(error).__name__}: {error}", error
            break
        if method in STOPS and wants_end(answer) is None:
            broken = (
                f"callback `{name}` returned {answer!r:.60}: True or 'stop' ends the run, None or"
                " False goes on"
            )
            break
        asked = asked or (name if method in STOPS and wants_end(answer) else "")
    asked, broken = parallel.gather((asked, broken))[0]
    if broken:
        raise CallbackFailed(f"{broken}.", where=f"step {step}") from cause
    return asked


def call_callbacks(
    session: Session, step: int, means: Mapping[str, float], evaluated: bool
) -> bool:
    """Tell the callbacks of a step that is done and of its evaluation.

    True where one asks for the end; the run then says who.
    """
    asked = call_method(session, "on_step", step, means)
    if evaluated:
        measured = {name: value for name, value in means.items() if name.startswith("eval/")}
        asked = call_method(session, "on_evaluation", step, measured) or asked
    if asked:
        session.end_notes.append(
            f"stopped at step {step}, as callback `{asked}` asked: everything is saved"
        )
        if parallel.rank() == 0:
            session.run.note({"stopped": {"step": step, "by": asked}})
    return bool(asked)


def wants_end(answer: Any) -> bool | None:
    """Does this answer end the run? None where it says neither."""
    if isinstance(answer, str):
        return True if answer == "stop" else None
    if answer is None or isinstance(answer, bool):
        return bool(answer)
    return bool(answer) if type(answer).__name__ == "bool" else None  # numpy's


def add_user_metrics(session: Session, groups: Sequence[Group], step: int, sums: Sums) -> None:
    """Add the metrics of compute_metrics over the evaluated groups of all processes.

    Each is logged as eval/NAME.
    """
    function = session.observers.compute_metrics
    if function is None:
        return
    every = [group for part in parallel.gather(list(groups)) for group in part]
    found, broken, cause = dict[str, float](), "", None
    if parallel.rank() == 0:
        try:
            found = checked_metrics(function(every), {*sums.sums, *sums.totals})
        except Exception as error:
            name, cause = qualified_name(function), error
            broken = f"compute_metrics `{name}` failed: {type(error).__name__}: {error}"
    broken = parallel.gather(broken)[0]
    if broken:
        raise CallbackFailed(
            f"{broken.rstrip('.')}.", where=f"evaluation at step {step}"
        ) from cause
    for name, value in found.items():
        sums.add(name, value, 1)


def checked_metrics(returned: Any, taken: set[str]) -> dict[str, float]:
    """What the function returned as {eval/name: number}.

    Anything else is a ValueError or TypeError that says what is wrong.
    """
    if not isinstance(returned, Mapping):
        raise TypeError(f"it returned {type(returned).__name__}, not a mapping of name: number")
    found = dict[str, float]()
    for name, value in cast("Mapping[Any, Any]", returned).items():
        value = value.item() if hasattr(value, "item") else value
        if not isinstance(name, str) or not name or not isinstance(value, Real):
            raise TypeError(f"{name!r}: {value!r:.60} is not a name and a number")
        full = f"eval/{name.removeprefix('eval/')}"
        if full in taken:
            raise ValueError(f"`{full}` is measured already: give it another name")
        found[full] = float(value)
    return found
