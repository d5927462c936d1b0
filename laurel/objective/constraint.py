"""The checks of an objective's options that run before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Objective = TypeVar("Objective", bound=Callable[..., Any])


def constrained(check: Callable[..., None]) -> Callable[[Objective], Objective]:
    """A decorator that attaches a check of options to an objective.

    check(name, option=...) raises a UsageError for values that the objective cannot work with. It
    takes options of the run by name, as the objective does. name: the algorithm's, for the message.
    """

    def attach(objective: Objective) -> Objective:
        vars(objective)["check"] = check
        return objective

    return attach


def check_of(objective: Callable[..., Any]) -> Callable[..., None] | None:
    """The check that `constrained` attached; None where there is none."""
    return getattr(objective, "check", None)
