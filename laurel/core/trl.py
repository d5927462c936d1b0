"""Names of TRL and transformers as options of laurel: one table, and what its rows make of a value.

A row is of one of three kinds. `same`: the name is an option here and means the same. `translated`:
it is turned into options of ours, and one line says so. `absent`: there is nothing like it, and the
row says what to do instead; `harmless` where results do not depend on it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from laurel.core.errors import UsageError

Rule = Callable[[Any, "Request"], dict[str, Any]]
"""(their value, what else was asked) -> options of ours; nothing where their value asks for
nothing.
"""


@dataclass(frozen=True)
class Name:
    """One name of theirs: its kind, our options, what to say, the value it has where nobody gives
    one, and the rule for a value.
    """

    kind: Literal["same", "translated", "absent"]
    say: str
    ours: tuple[str, ...] = ()
    default: Any = None
    rule: Rule | None = None
    harmless: bool = True


def same(say: str, rule: Rule | None = None, **defaults: Any) -> dict[str, Name]:
    """Names that are options here, with TRL's defaults."""
    return {name: Name("same", say, (name,), default, rule) for name, default in defaults.items()}


def renamed(ours: str, say: str, rule: Rule | None = None, **defaults: Any) -> dict[str, Name]:
    """Names that become options of ours ("" for none: what they ask for is what is done anyway)."""
    options = tuple(ours.split())
    return {
        name: Name("translated", say, options, default, rule or under_name(options[0]))
        for name, default in defaults.items()
    }


def harmless(say: str, **defaults: Any) -> dict[str, Name]:
    """Names that there are not, and on which no result depends."""
    return {name: Name("absent", say, (), default) for name, default in defaults.items()}


def unsupported(say: str, **defaults: Any) -> dict[str, Name]:
    """Names that there are not, and that change results: any value but the default stops a port."""
    return {
        name: Name("absent", say, (), default, harmless=False) for name, default in defaults.items()
    }


def under_name(option: str) -> Rule:
    """The same value under another name; no value is none."""
    return lambda value, ask: {} if value is None else {option: value}


@dataclass
class Request:
    """What somebody asked for, by both kinds of names.

    algorithm: "" where it is not known. own: this algorithm's defaults, looked at only where a rule
    needs one. defaults: what a trainer of TRL takes where nothing is given; in a port
    (`--from-trl`) they count as asked for. lines: what a rule has to say.
    """

    algorithm: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    own: Callable[[], Mapping[str, Any]] = dict
    defaults: Mapping[str, Any] = field(default_factory=dict)
    port: bool = False
    lines: list[str] = field(default_factory=list)

    def of(self, name: str) -> Any:
        """The value of a name: as given, else the default of whoever is asked: in a port TRL, here
        laurel.
        """
        if self.given.get(name) is not None:
            return self.given[name]
        if not self.port and (ours := self.own().get(name)) is not None:
            return ours
        return self.defaults.get(name)

    def has(self, name: str) -> bool:
        """Was it given, and not left open?"""
        return self.given.get(name) not in (None, "")


@dataclass(frozen=True)
class Translation:
    """One line of a translation: their name and value, and what became of it."""

    theirs: str
    value: Any
    ours: tuple[tuple[str, Any], ...] = ()
    said: str = ""

    def __str__(self) -> str:
        there = ", ".join(f"{name}: {format_value(value)}" for name, value in self.ours)
        what = there or ("left out" if self.said else "as here")
        why = f" ({self.said})" if self.said else ""
        return f"{self.theirs}: {format_value(self.value)} -> {what}{why}"


def translate(
    given: Mapping[str, Any], table: Mapping[str, Name], ask: Request, where: str
) -> tuple[dict[str, Any], list[Translation]]:
    """Options of ours for what was given by any name, and a line for each name that was not ours.

    Names that stand in no table are left as they are: whoever validates them says what they lack.
    Two names that ask for different values of one option are an error, and so is a name that is
    absent.
    """
    values = {name: value for name, value in given.items() if not is_foreign(name, table)}
    lines: list[Translation] = []
    said_by, first = dict.fromkeys(values, ""), dict[str, str]()
    for name in [name for name in given if is_foreign(name, table)]:
        row, ask.lines = table[name], []
        made = translate_value(name, row, given[name], ask, where)
        for option, value in made.items():
            check_conflict(name, given[name], option, value, said_by.get(option), values, where)
            said_by.setdefault(option, name)
            values.setdefault(option, value)
        said = " ".join([*ask.lines, *([] if ask.port or not (made or ask.lines) else [row.say])])
        with_ = first.setdefault(said, name) if said else name
        lines.append(
            Translation(
                name, given[name], tuple(made.items()), said if with_ == name else f"with {with_}"
            )
        )
    return {name: normalize(name, value, table, ask) for name, value in values.items()}, lines


def is_foreign(name: str, table: Mapping[str, Name]) -> bool:
    """Is this a name that only they have?"""
    return name in table and table[name].kind != "same"


def translate_value(name: str, row: Name, value: Any, ask: Request, where: str) -> dict[str, Any]:
    """What a row makes of a value. A name that is absent is an error."""
    if row.kind == "absent":
        raise UsageError(f"unknown option `{name}`.", where=where, fix=row.say)
    if row.rule is None:
        return {} if value is None else {row.ours[0]: value}
    try:
        return row.rule(value, ask)
    except UsageError as error:
        raise UsageError(
            error.what, where=f"{where}: {name}" if where else name, fix=error.fix
        ) from None


def normalize(name: str, value: Any, table: Mapping[str, Name], ask: Request) -> Any:
    """A value of an option that both have, in our spelling: `scale_rewards: true` is `group`, a
    warm-up of .1 a tenth of the steps.
    """
    row = table.get(name)
    if row is None or row.kind != "same" or row.rule is None:
        return value
    return row.rule(value, ask).get(name, value)


def check_conflict(
    name: str,
    value: Any,
    option: str,
    made: Any,
    by: str | None,
    values: Mapping[str, Any],
    where: str,
) -> None:
    """UsageError where somebody already asked for another value of the option."""
    if by is None or comparable(values[option]) == comparable(made):
        return
    what = f"`{name}` = {format_value(value)} is {option} = {format_value(made)} here, and "
    what += (
        f"`{by}` makes it {format_value(values[option])}."
        if by
        else f"{option} = {format_value(values[option])} is given, too."
    )
    raise UsageError(what, where=where, fix="Give one of the two.")


def comparable(value: Any) -> Any:
    """A value for comparison: what a command line wrote as text is equal to what a file holds as a
    number or a truth.
    """
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    return (
        as_number(value)
        if as_number(value) is not None
        else as_bool(value)
        if is_bool_word(value)
        else str(value)
    )


def as_number(value: Any) -> float | None:
    """A number, also one written as text (`5e-6` is text to YAML); None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def is_bool_word(value: Any) -> bool:
    """Is it true or false, or a word for one of them?"""
    return isinstance(value, bool) or str(value).lower() in (
        "true",
        "false",
        "yes",
        "no",
        "on",
        "off",
    )


def as_bool(value: Any) -> bool:
    """True for true and for the words that mean it."""
    return value is True or str(value).lower() in ("true", "yes", "on", "1", "1.0")


def format_value(value: Any) -> str:
    """A value as a line shows it: as YAML would, on one line."""
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, list | tuple):
        return f"[{', '.join(format_value(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_notes(lines: Iterable[Translation]) -> None:
    """One line for each translated name, on standard error: what was written, and what it is
    here.
    """
    for line in lines:
        print(f"note: {line}", file=sys.stderr)
