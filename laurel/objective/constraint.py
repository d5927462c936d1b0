"""What an objective asks of its options before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Objective = TypeVar("Objective", bound=Callable[..., Any])


def constrained(check: Callable[..., None]) -> Callable[[Objective], Objective]:
    """A decorator that says which options an objective cannot work with.

    check(name, option=...) raises a UsageError; it takes options of the run by name, as the
    objective does. name: the algorithm's, for the message.
    """

    def attach(objective: Objective) -> Objective:
        vars(objective)["check"] = check
        return objective

    return attach


def check_of(objective: Callable[..., Any]) -> Callable[..., None] | None:
    """The check that `constrained` attached; None where there is none."""
    return getattr(objective, "check", None)
