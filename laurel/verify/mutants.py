"""Deliberate mistakes: a function of the training code is made wrong, and a check must notice.

A mutant is a function and what makes a wrong one of it: nothing here quotes another file's lines.
The function itself is turned into a detour, so every caller meets the mistake, however it came by
the function.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

from laurel.verify.finding import Finding

Function = Callable[..., Any]
Mistake = Callable[[Function], Function]
"""The right function -> the wrong one."""
MISSING = object()


@dataclass(frozen=True)
class Mutant:
    """`name` says the mistake in words.

    `check` (of `laurel.verify.checks.CHECKS`) and `finding` name who must notice it.

    The finding is "method: quantity"; of a check that stops instead, "method: SomeError: how its
    message begins".
    """

    name: str
    function: Function
    mistake: Mistake
    check: str
    finding: str


@dataclass(frozen=True)
class Verdict:
    """The result of a hunt.

    killer: the finding that noticed the mutant first, empty where none did; named: does the one
    that the mutant names notice?
    """

    mutant: Mutant
    killer: str
    named: bool = True

    @property
    def killed(self) -> bool:
        return bool(self.killer)


@contextmanager
def swap_attribute(owner: Any, name: str, other: Any) -> Iterator[None]:
    """An attribute of a module, a class or an object is `other` within the context."""
    before = vars(owner).get(name, MISSING)
    setattr(owner, name, other)
    try:
        yield
    finally:
        if before is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def changed_result(change: Function) -> Mistake:
    """What the right function answers, changed."""
    return lambda right: lambda *args, **options: change(right(*args, **options))


def changed_arguments(**changes: Function) -> Mistake:
    """The right function, given changed arguments.

    name=function of the argument that was given, or of the default.
    """

    def mistake(right: Function) -> Function:
        def wrong(*args: Any, **options: Any) -> Any:
            call = inspect.signature(right).bind(*args, **options)
            call.apply_defaults()
            for name, change in changes.items():
                call.arguments[name] = change(call.arguments[name])
            return right(*call.args, **call.kwargs)

        return wrong

    return mistake


def changed_columns(**changes: Function) -> Mistake:
    """The right function, given a batch of which some columns are changed."""
    return changed_arguments(
        batch=lambda batch: batch.replace(
            **{name: change(getattr(batch, name)) for name, change in changes.items()}
        )
    )


def changed_record(record: str, **changes: Function) -> Mistake:
    """The right function, given a batch of which some columns of a record are changed."""

    def changed(batch: Any) -> Any:
        found = getattr(batch, record)
        columns = {name: change(getattr(found, name)) for name, change in changes.items()}
        return batch.replace(**{record: replace(found, **columns)})

    return changed_arguments(batch=changed)


def replaced_by(other: Function) -> Mistake:
    """Another function altogether."""
    return lambda right: other


def with_replaced(owner: Any, name: str, other: Any) -> Mistake:
    """The right function, while something that it calls by this name is `other`."""

    def mistake(right: Function) -> Function:
        def wrong(*args: Any, **options: Any) -> Any:
            with swap_attribute(owner, name, other):
                return right(*args, **options)

        return wrong

    return mistake


@contextmanager
def plant_mistake(mutant: Mutant) -> Iterator[None]:
    """The mistake, for as long as the context lasts."""
    function: Any = inspect.unwrap(mutant.function)
    was = function.__code__, function.__defaults__, function.__kwdefaults__
    right: Any = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    right.__kwdefaults__ = function.__kwdefaults__
    signature = inspect.signature(function)

    def detour(*args: Any, _wrong: Function, **options: Any) -> Any:
        return _wrong(*args, **options)

    # A wrapper or a table that holds the function sees no difference: it is the same object, with
    # the same signature.
    with swap_attribute(function, "__signature__", signature):
        function.__code__, function.__defaults__ = detour.__code__, None
        function.__kwdefaults__ = {"_wrong": mutant.mistake(right)}
        try:
            yield
        finally:
            function.__code__, function.__defaults__, function.__kwdefaults__ = was


def outcome(finding: str, checks: Callable[[], Iterable[Finding]]) -> str:
    """What becomes of this one finding: "passes", "fails", or "is not there".

    The checks are run no further than it.

    Where an error is named, checks that stop with that very error fail, and those that do not stop
    pass.
    """
    error = finding.partition(": ")[2]
    try:
        for found in checks():
            if finding_name(found) == finding:
                return "passes" if found.passed else "fails"
    except Exception as raised:  # the training code itself may be what notices
        return "fails" if error_text(raised).startswith(error) else "is not there"
    return "passes" if re.match(r"\w+Error: ", error) else "is not there"


def hunt(mutant: Mutant, checks: Callable[[], Iterable[Finding]]) -> Verdict:
    """Run the checks on broken code until one fails.

    A check that stops with an error has noticed, too.
    """
    with plant_mistake(mutant):
        try:
            for finding in checks():
                if not finding.passed:
                    return Verdict(mutant, finding_name(finding))
        except (
            Exception
        ) as error:  # whatever a mistake breaks is its discovery; an interrupt is no Exception
            return Verdict(mutant, error_text(error))
    return Verdict(mutant, "")


def finding_name(finding: Finding) -> str:
    """The finding as a mutant names it."""
    return f"{finding.method}: {finding.quantity}"


def error_text(error: Exception) -> str:
    """An error's kind and how it begins."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
