"""The formats a row can have, found from its columns and checked field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from laurel.core.errors import UsageError
from laurel.data.read import kind_of
from laurel.data.shapes import ROLES, SHAPES
from laurel.data.source import Row


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of row: the fields it must have, the ones it may have, and whether its texts are lists of messages."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    conversational: bool = False


FORMATS = (  # the most demanding first: the first one whose fields are all there is the row's format
    Format("K-wise ranking", ("prompt", "responses", "ranks"), ("weight",)),
    Format("stepwise", ("prompt", "completions", "labels"), ("weight",)),
    Format("preference", ("prompt", "chosen", "rejected"), ("margin", "weight", "soft_label")),
    Format("labelled completion", ("prompt", "completion", "label"), ("weight",)),
    Format("prompt and completion", ("prompt", "completion")),
    Format("messages", ("messages",), conversational=True),
    Format("prompt", ("prompt",)),
    Format("text", ("text",)),
)
USES: dict[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("messages",), ("prompt", "completion"), ("text",)),
    "rl": (("prompt",),),
    "imitation": (("prompt", "completion"),),
    "preference": (("prompt", "chosen", "rejected"),),
    "label": (("prompt", "completion", "label"),),
    "steps": (("prompt", "completions", "labels"),),
    "logged": (("prompt", "completion", "reward"),),
    "comparison": (("prompt", "chosen", "rejected"), ("prompt", "responses", "ranks")),
}
OTHER_NAMES = {
    "prompt": ("question", "query", "instruction", "input", "problem", "context", "user"),
    "completion": ("answer", "response", "output", "target", "solution", "reply", "assistant"),
    "messages": ("conversations", "conversation", "dialogue", "dialog", "turns", "chat"),
    "text": ("content", "document", "story", "body", "sentence"),
    "chosen": ("preferred", "better", "winner", "response_chosen", "output_1"),
    "rejected": ("dispreferred", "worse", "loser", "response_rejected", "output_2"),
    "reward": ("score", "return", "rating"),
}


def detect(columns: Mapping[str, Any]) -> Format | None:
    """The format of a row by the names of its columns (None: no format of ours). Values are not checked here."""
    for form in FORMATS:
        if all(field in columns for field in form.required):
            return replace(form, conversational=form.conversational or isinstance(columns.get("prompt"), list))
    return None


def normalise(row: Row) -> Row:
    """The row in our columns: well-known shapes are mapped (`laurel.data.shapes`), then every field is checked.

    Idempotent; `where` and `id` stay. A row that fits no format, or a field of a wrong kind, is a UsageError that names the
    place, the field, what was expected and what was found.
    """
    columns = row.columns
    for shape in SHAPES:
        columns = shape(columns) or columns
    form = detect(columns)
    if form is None:
        raise UsageError(f"no known format: the columns are {_listed(columns)}.", where=row.where, fix=_remedy(columns, USES["sft"]))
    for field in (*form.required, *form.optional):
        if field in columns:
            _check(field, columns[field], row.where)
    _check_together(form, columns, row.where)
    return replace(row, columns=columns)


def normalise_all(rows: Sequence[Row]) -> list[Row]:
    """`normalise` for every row: as many rows come out as went in, or the first ill-fitting one is the error."""
    return [normalise(row) for row in rows]


def needs(rows: Sequence[Row], use: str, columns: Sequence[str] = ()) -> list[Row]:
    """The rows, normalised, each of them fit for `use` (a key of USES: sft, rl, preference, ...) and with the extra `columns`.

    As many rows come out as went in. The first row that does not fit is a UsageError that lists its columns, and which of them
    to rename.
    """
    if use not in USES:
        raise UsageError(f"unknown use `{use}`.", fix=f"Known: {', '.join(USES)}.")
    choices = USES[use]
    ready = normalise_all(rows)
    for row in ready:
        fields = next((choice for choice in choices if all(field in row.columns for field in choice)), None)
        if fields is None:
            wanted = " or ".join(" + ".join(f"`{field}`" for field in choice) for choice in choices)
            what = f"{use} needs {wanted}; this row has {_listed(row.columns)}."
            raise UsageError(what, where=row.where, fix=_remedy(row.columns, choices))
        for field in fields:  # some belong to no format: only who uses a `reward` minds what stands in it
            _check(field, row.columns[field], row.where)
        missing = [name for name in columns if name not in row.columns]
        if missing:
            raise UsageError(f"column `{missing[0]}` is missing; this row has {_listed(row.columns)}.", where=row.where)
    return ready


def is_messages(value: Any) -> bool:
    """True for a list of messages with known roles and text contents."""
    return isinstance(value, list) and bool(value) and not any(_message_trouble(turn) for turn in value)


def gold_answer(columns: Mapping[str, Any]) -> str | None:
    """The answer that a row itself holds: its completion, else its last assistant message, else its `answer`; as text."""
    for value in (columns.get("completion"), columns.get("messages"), columns.get("answer")):
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            said = [turn["content"] for turn in value if isinstance(turn, Mapping) and turn.get("role") == "assistant"]
            if said:
                return said[-1]
    return None


def _check(field: str, value: Any, where: str) -> None:
    expected, fits = KINDS[field]
    if fits(value):
        return
    inside = ""
    if isinstance(value, list) and field in (*SPOKEN, "messages"):
        inside = next((f": message {number} {trouble}" for number, turn in enumerate(value, 1) if (trouble := _message_trouble(turn))), "")
    raise UsageError(f"field `{field}`: expected {expected}, found {kind_of(value)}{inside}.", where=where)


def _check_together(form: Format, columns: Mapping[str, Any], where: str) -> None:
    """What no field shows alone: strings and message lists do not mix, replies begin with the assistant, lists match in length."""
    if form.name == "messages":
        return
    spoken = [field for field in form.required if field in SPOKEN]
    kinds = {isinstance(columns[field], list) for field in spoken}
    if len(kinds) > 1:
        found = ", ".join(f"`{field}` is {kind_of(columns[field])}" for field in spoken)
        raise UsageError(f"all of {', '.join(spoken)} are text, or all are messages; here {found}.", where=where)
    for field in spoken[1:]:
        if isinstance(columns[field], list) and columns[field][0]["role"] != "assistant":
            raise UsageError(f"field `{field}`: its first message must be the assistant's, not {columns[field][0]['role']}'s.", where=where)
    for left, right in (("completions", "labels"), ("responses", "ranks")):
        if left in form.required and len(columns[left]) != len(columns[right]):
            raise UsageError(f"`{left}` has {len(columns[left])} items and `{right}` {len(columns[right])}.", where=where)


def _message_trouble(turn: Any) -> str:
    if not isinstance(turn, Mapping):
        return f"is {kind_of(turn)}, not an object with role and content"
    missing = [key for key in ("role", "content") if key not in turn]
    if missing:
        return f"has no `{missing[0]}`"
    if turn["role"] not in ROLES:
        return f"has the role {turn['role']!r}; known: {', '.join(ROLES)}"
    return "" if _text(turn["content"]) else f"has as content {kind_of(turn['content'])}, not text"


def _text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _some_text(value: Any) -> bool:
    return _text(value) and bool(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(fits(item) for item in value)


def _spoken(value: Any) -> bool:
    return _text(value) or is_messages(value)


SPOKEN = ("prompt", "completion", "chosen", "rejected")
_SPOKEN = ("text or a list of messages", _spoken)
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("text", _some_text),
    "messages": ("a list of messages {role, content}", is_messages),
    "prompt": ("text or a list of messages, not empty", lambda value: _some_text(value) or is_messages(value)),
    "completion": _SPOKEN,
    "chosen": _SPOKEN,
    "rejected": _SPOKEN,
    "margin": ("a number", _number),
    "weight": ("a finite number, 0 or above", lambda value: _number(value) and 0 <= value < float("inf")),
    "soft_label": ("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1),
    "reward": ("a finite number", lambda value: _number(value) and abs(value) != float("inf")),
    "label": ("true or false", lambda value: isinstance(value, bool)),
    "completions": ("a list of texts", _list_of(_text)),
    "labels": ("a list of true, false, -1, 0 or 1", _list_of(lambda value: value in (-1, 0, 1))),
    "responses": ("a list of texts or of lists of messages", _list_of(_spoken)),
    "ranks": ("a list of numbers", _list_of(_number)),
}


def _listed(columns: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in columns)


def _remedy(columns: Mapping[str, Any], choices: tuple[tuple[str, ...], ...]) -> str:
    """Which columns to rename, for the choice of fields that the fewest renamings reach."""
    best: list[str] | None = None
    for choice in choices:
        missing = [field for field in choice if field not in columns]
        others = [next((other for other in OTHER_NAMES.get(field, ()) if other in columns), None) for field in missing]
        renamings = [f"`{other}` to `{field}`" for other, field in zip(others, missing, strict=True) if other is not None]
        if missing and len(renamings) == len(missing) and (best is None or len(renamings) < len(best)):
            best = renamings
    if best:
        return f"Rename {' and '.join(best)}."
    return f"Needed: {' or '.join(' + '.join(choice) for choice in choices)}."
