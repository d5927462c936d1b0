"""A table of words under a title, and how numbers are written in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from laurel.measure.agreement import Agreement
from laurel.measure.intervals import Interval
from laurel.measure.judging import SlotBias

NONE = "-"


@dataclass(frozen=True, slots=True)
class Section:
    """A table under a title.

    `words`: the columns that hold text, all others hold numbers. note: a sentence or two under it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    words: frozenset[str] = field(default_factory=frozenset)

    @property
    def key(self) -> str:
        """A name for links."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def number_text(value: float | None, digits: int = 3) -> str:
    """0.533, or a dash for what is not known."""
    return NONE if value is None else f"{value:.{digits}f}"


def percent_text(value: float | None) -> str:
    """53.3 %"""
    return NONE if value is None else f"{100 * value:.1f} %"


def bounds_text(
    found: Interval | Agreement | None, show: Callable[[float | None], str] = number_text
) -> str:
    """The bounds of an interval."""
    return (
        NONE if found is None or found.low is None else f"{show(found.low)} to {show(found.high)}"
    )


def p_value_text(p: float | None) -> str:
    """A p-value."""
    return NONE if p is None else f"{p:.0e}" if p < 0.001 else f"{p:.3f}"


def slot_bias_text(bias: SlotBias | None) -> str:
    """53.3 % (52.0 % to 54.6 %, n = 5460, p = 1e-06)"""
    return (
        NONE if bias is None else f"{interval_text(bias.share)[:-1]}, p = {p_value_text(bias.p)})"
    )


def interval_text(found: Interval | None) -> str:
    """53.3 % (52.0 % to 54.6 %, n = 5460)"""
    return (
        NONE
        if found is None
        else f"{percent_text(found.value)} ({bounds_text(found, percent_text)}, n = {found.n})"
    )


def make_section(
    title: str, columns: str, rows: Iterable[Iterable[str]], note: str = "", words: str = ""
) -> Section:
    """A section of columns "a|b|c"; `words`: those that hold text, the first if none is named."""
    names = tuple(columns.split("|"))
    return Section(
        title,
        names,
        tuple(tuple(row) for row in rows),
        note,
        frozenset(words.split("|") if words else names[:1]),
    )
