"""Choosing one of several completions of a prompt: what a server asks of whoever chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from laurel.core.sample import Completion

Way = Literal["vote", "best_of"]
"""The answer that most agree on, or the one with the highest score."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The place of the completion that was chosen; None: none can be told from the others.

    details: what the choice rests on, as JSON. error: why there is none although there should be,
    such as a scorer that failed on all.
    """

    place: int | None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: str = ""


class Selection(Protocol):
    """One question while its answers are drawn. Its calls may take long: none in an event loop."""

    def add(self, texts: Sequence[str], completions: Sequence[Completion]) -> int:
        """More answers, or none at the start: how many are wanted next. 0: there are enough."""
        ...

    def choose(self) -> Chosen:
        """One of those that were drawn."""
        ...


class Chooser(Protocol):
    """Chooses for all questions of a server, several at once.

    default: how, where a request does not say; None: not at all. number: of answers then. names:
    what stands behind a model's name in the list of models.
    """

    @property
    def default(self) -> Way | None: ...

    @property
    def number(self) -> int: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def begin(self, way: Way, most: int, prompt: Any) -> Selection:
        """A question with at most so many answers; prompt: a text, or messages."""
        ...
