"""Names of TRL and transformers as options of laurel: the kinds of rows, and the translation.

A row is of one of three kinds. `same`: the name is an option here and means the same. `translated`:
it becomes options of ours, and one line is printed. `absent`: there is nothing like it, and the row
says what to do instead; `harmless` where results do not depend on it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from laurel.core.errors import UsageError

Rule = Callable[[Any, "Request"], dict[str, Any]]
"""(their value, what else was asked) -> options of ours; nothing where their value asks for
nothing.
"""


@dataclass(frozen=True)
class TrlName:
    """One name of theirs: its kind, our options, a line to print, its default, and its rule."""

    kind: Literal["same", "translated", "absent"]
    say: str
    ours: tuple[str, ...] = ()
    default: Any = None
    rule: Rule | None = None
    harmless: bool = True


def same_options(say: str, rule: Rule | None = None, **defaults: Any) -> dict[str, TrlName]:
    """Names that are options here, with TRL's defaults."""
    return {
        name: TrlName("same", say, (name,), default, rule) for name, default in defaults.items()
    }


def renamed_option(
    ours: str, say: str, rule: Rule | None = None, **defaults: Any
) -> dict[str, TrlName]:
    """Names that become options of ours ("" for none: what they ask for is what is done anyway)."""
    options = tuple(ours.split())
    return {
        name: TrlName("translated", say, options, default, rule or rename_rule(options[0]))
        for name, default in defaults.items()
    }


def harmless_names(say: str, **defaults: Any) -> dict[str, TrlName]:
    """Names that there are not, and on which no result depends."""
    return {name: TrlName("absent", say, (), default) for name, default in defaults.items()}


def unsupported_names(say: str, **defaults: Any) -> dict[str, TrlName]:
    """Names that there are not, and that change results: any value but the default stops a port."""
    return {
        name: TrlName("absent", say, (), default, harmless=False)
        for name, default in defaults.items()
    }


def rename_rule(option: str) -> Rule:
    """The same value under another name; no value is none."""
    return lambda value, ask: {} if value is None else {option: value}


@dataclass
class Request:
    """What somebody asked for, by both kinds of names.

    algorithm: "" where it is not known. own: this algorithm's defaults, looked up only where a rule
    needs one. defaults: what a trainer of TRL takes where nothing is given; in a port
    (`--from-trl`) they count as asked for. where: the file or command line it comes from, for
    errors. lines: what a rule has to say.
    """

    algorithm: str = ""
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])
    own: Callable[[], Mapping[str, Any]] = dict
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    port: bool = False
    where: str = "configuration"
    lines: list[str] = field(default_factory=list[str])

    def of(self, name: str) -> Any:
        """The value of a name: as given, else the default of TRL in a port, of laurel elsewhere."""
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
    given: Mapping[str, Any], table: Mapping[str, TrlName], ask: Request, where: str
) -> tuple[dict[str, Any], list[Translation]]:
    """Options of ours for what was given by any name, and a line for each name that was not ours.

    Names that stand in no table are left as they are: whoever validates them says what they lack.
    Two names that ask for different values of one option are an error, and so is a name that is
    absent.
    """
    foreign = [name for name in given if is_foreign(name, table)]
    values = {name: value for name, value in given.items() if name not in foreign}
    giver = dict.fromkeys(values, "")
    lines: list[Translation] = []
    first_with: dict[str, str] = {}
    for name in foreign:
        ask.lines = []
        made = translate_value(name, table[name], given[name], ask, where)
        add_translated(name, given[name], made, values, giver, where)
        about = [table[name].say] if (made or ask.lines) and not ask.port else []
        said = " ".join([*ask.lines, *about])
        # one text for several names is printed with the first of them
        earlier = first_with.setdefault(said, name) if said else name
        why = said if earlier == name else f"with {earlier}"
        lines.append(Translation(name, given[name], tuple(made.items()), why))
    return {name: normalize(name, value, table, ask) for name, value in values.items()}, lines


def is_foreign(name: str, table: Mapping[str, TrlName]) -> bool:
    """Is this a name that only they have?"""
    return name in table and table[name].kind != "same"


def translate_value(
    name: str, row: TrlName, value: Any, ask: Request, where: str
) -> dict[str, Any]:
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


def normalize(name: str, value: Any, table: Mapping[str, TrlName], ask: Request) -> Any:
    """A value of an option that both have, in our spelling.

    `scale_rewards: true` is `group`, a warm-up of .1 a tenth of the steps.
    """
    row = table.get(name)
    if row is None or row.kind != "same" or row.rule is None:
        return value
    return row.rule(value, ask).get(name, value)


def add_translated(
    name: str,
    value: Any,
    made: Mapping[str, Any],
    values: dict[str, Any],
    giver: dict[str, str],
    where: str,
) -> None:
    """Add what a name of theirs was made into; UsageError where another value was given already.

    giver: of each option in `values`, the name of theirs that gave it, "" for its own name.
    """
    for option, new in made.items():
        by, old = giver.setdefault(option, name), values.setdefault(option, new)
        if comparable(old) != comparable(new):
            what = f"`{name}` = {format_value(value)} is {option} = {format_value(new)} here, and "
            if by:
                what += f"`{by}` makes it {format_value(old)}."
            else:
                what += f"{option} = {format_value(old)} is given, too."
            raise UsageError(what, where=where, fix="Give one of the two.")


def comparable(value: Any) -> Any:
    """A value for comparison: text of a command line equals a file's number or boolean."""
    if isinstance(value, list | tuple):
        return [comparable(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, bool) or value is None:
        return value
    number = as_number(value)
    if number is not None:
        return number
    return as_bool(value) if is_bool_word(value) else str(value)


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
        return f"[{', '.join(map(format_value, cast('Sequence[Any]', value)))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_notes(lines: Iterable[Translation]) -> None:
    """Print one line for each translated name on standard error."""
    for line in lines:
        print(f"note: {line}", file=sys.stderr)
