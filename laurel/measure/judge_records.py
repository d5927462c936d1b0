"""What a judge's report card is computed from: items, a judge's answers, people's votes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

from laurel.measure.crowd import LABELS

VALID = frozenset({"a", "b", "tie", "inconsistent"})
"""Statuses that say something; `invalid` cannot be read, `error` is no answer."""
STATUSES = VALID | {"invalid", "error"}
WORTH = {"a": 1.0, "tie": 0.5, "b": 0.0}
"""A label as the share of a win that the first response has."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class JudgedItem:
    """A pair of responses to one prompt, in the order in which it is stored: a, then b.

    cluster: the prompt, which several items may share; "" is a prompt of its own. models: who wrote
    them, "" if not known. families: of which maker those are. lengths: in words or characters, None
    if not known. gold: the right answer, "a" or "b". identical: both responses are one text.
    """

    id: str
    cluster: str = ""
    models: tuple[str, str] = ("", "")
    lengths: tuple[int, int] | None = None
    families: tuple[str, str] = ("", "")
    gold: str | None = None
    identical: bool = False

    @property
    def prompt(self) -> str:
        """What items of one prompt have in common."""
        return self.cluster or self.id


@dataclass(frozen=True, slots=True)
class JudgeAnswer:
    """A judge's answer to one question about an item.

    status is about the responses as stored: a, b, tie, inconsistent (an answer that stands for
    several which differ), invalid or error. order: (0, 1) if a was shown first, (1, 0) if b was,
    None if not known. repeat counts the same question asked again. chance: P(a is better). tokens:
    read and written; cost: in money.
    """

    item: str
    status: str
    order: tuple[int, ...] | None = None
    repeat: int = 0
    chance: float | None = None
    tokens: tuple[int, int] | None = None
    cost: float | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"a status is one of {sorted(STATUSES)}, got {self.status!r}")

    @property
    def first_won(self) -> bool | None:
        """Did the response that was shown first win? None: nothing decided, or order unknown."""
        if self.order is None or not self.order or self.status not in ("a", "b"):
            return None
        return (self.status == "a") == (self.order[0] == 0)


@dataclass(frozen=True, slots=True)
class PersonVote:
    """One person's label of an item, a, tie or b."""

    item: str
    rater: str
    label: str

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(f"a vote is one of {LABELS}, got {self.label!r}")


@dataclass(frozen=True)
class Judged:
    """Items with what judges and people said of them.

    families: of which maker a judge is, for self-preference. published: figures of the source's
    authors, name of a row of the card -> share; notes: what a reader should know of the source.
    """

    name: str
    items: Mapping[str, JudgedItem]
    judges: Mapping[str, Sequence[JudgeAnswer]]
    votes: Sequence[PersonVote] = ()
    families: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        answers = (answer.item for given in self.judges.values() for answer in given)
        strange = {*answers, *(vote.item for vote in self.votes)} - self.items.keys()
        if strange:
            raise ValueError(f"answers or votes about unknown items: {sorted(strange)[:3]}")

    @cached_property
    def ballots(self) -> dict[str, list[str]]:
        """item -> the label of each person who voted on it."""
        found: dict[str, list[str]] = defaultdict(list)
        for vote in self.votes:
            found[vote.item].append(vote.label)
        return dict(found)

    def prompts(self, items: Iterable[str]) -> list[str]:
        """The prompt of each item."""
        return [self.items[item].prompt for item in items]


class Answer(Protocol):
    """Anything with an item and a status about responses."""

    @property
    def item(self) -> str:
        """Which item."""
        ...

    @property
    def status(self) -> str:
        """What was said of its responses."""
        ...


def final_status(statuses: Iterable[str]) -> str:
    """A judge's last word on an item: its valid answers if they agree, else inconsistent.

    With none, its failure.
    """
    given = set(statuses)
    valid = given & VALID
    if not valid:
        return "invalid" if "invalid" in given else "error"
    return next(iter(valid)) if len(valid) == 1 else "inconsistent"


def final_statuses(answers: Iterable[Answer]) -> dict[str, str]:
    """A judge's last word on each item."""
    asked: dict[str, list[str]] = defaultdict(list)
    for answer in answers:
        asked[answer.item].append(answer.status)
    return {item: final_status(statuses) for item, statuses in asked.items()}


def as_labels(final: Mapping[Key, str], *, inconsistent: str | None = "tie") -> dict[Key, str]:
    """Last words as labels of pairs; failures are left out.

    inconsistent: the label of an item whose answers differ, a tie as in MT-Bench; None leaves it
    out as well.
    """
    labels = {
        item: inconsistent if status == "inconsistent" else status for item, status in final.items()
    }
    return {item: label for item, label in labels.items() if label is not None and label in LABELS}


def majority(votes: Sequence[str]) -> str | None:
    """The label with more votes than any other; None where two share the lead."""
    ranked = Counter(votes).most_common(2)
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else None
