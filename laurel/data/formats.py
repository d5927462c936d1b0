"""The formats a row can have, found from its columns and checked field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from laurel.core.errors import UsageError
from laurel.data.confidence import LABEL_COLUMNS, PAIR_COLUMNS, RANGES, WEIGHT
from laurel.data.conversations import ROLES, non_text_type
from laurel.data.layouts import PREFACES, SIDES, as_messages, our_columns
from laurel.data.read import kind_of
from laurel.data.row_errors import combined_error, source_of
from laurel.data.source import Row


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of row: the fields it must have and may have.

    conversational: its texts are lists of messages.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    conversational: bool = False


# the most demanding first: the first one whose fields are all there is the row's format
FORMATS = (
    Format("K-wise ranking", ("prompt", "responses", "ranks"), (WEIGHT,)),
    Format("stepwise", ("prompt", "completions", "labels"), LABEL_COLUMNS),
    Format("preference", ("prompt", "chosen", "rejected"), PAIR_COLUMNS),
    Format("labelled completion", ("prompt", "completion", "label"), LABEL_COLUMNS),
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
WEIGHED: dict[str, tuple[str, ...]] = {
    "preference": PAIR_COLUMNS,
    "comparison": PAIR_COLUMNS,
    "label": LABEL_COLUMNS,
    "steps": LABEL_COLUMNS,
}
"""What a use reads besides, where a row has it."""
OTHER_NAMES = {
    "prompt": ("question", "query", "instruction", "input", "problem", "context", "user"),
    "completion": (
        "answer",
        "response",
        "output",
        "target",
        "solution",
        "reply",
        "assistant",
        "chosen",
    ),
    "messages": ("conversations", "conversation", "dialogue", "dialog", "turns", "chat"),
    "text": ("content", "document", "story", "body", "sentence"),
    "chosen": ("preferred", "better", "winner", "response_chosen", "output_1"),
    "rejected": ("dispreferred", "worse", "loser", "response_rejected", "output_2"),
    "reward": ("score", "return", "rating"),
}


def detect_format(columns: Mapping[str, Any]) -> Format | None:
    """The format of a row by the names of its columns (None: no format of ours).

    Columns without content count where no others do.
    """
    filled = [
        form for form in FORMATS if all(_is_filled(columns, field) for field in form.required)
    ]
    for form in filled or FORMATS:
        if all(field in columns for field in form.required):
            return replace(
                form, conversational=form.conversational or isinstance(columns.get("prompt"), list)
            )
    return None


def normalise(row: Row) -> Row:
    """The row in our columns.

    Well-known layouts are mapped (`laurel.data.layouts`), then every field is checked.

    Idempotent; `where` and `id` stay. A row that fits no format, or a field of a wrong kind, is a
    UsageError that names the place, the field, what was expected and what was found.
    """
    return _checked_row(map_layout(row), row)


def normalise_all(rows: Sequence[Row], faults: Sequence[UsageError] = ()) -> list[Row]:
    """`normalise` for every row: as many rows come out as went in.

    Else one error names those that do not fit, and the earlier `faults`.
    """
    return _apply_to_rows(
        rows, _all_conversations([map_layout(row) for row in rows]), _checked_row, faults
    )


def rows_fit_for(
    rows: Sequence[Row],
    use: str,
    columns: Sequence[str] = (),
    *,
    by: str = "",
    faults: Sequence[UsageError] = (),
) -> list[Row]:
    """The rows, normalised, each of them fit for `use` and with the extra `columns`.

    use: a key of USES (sft, rl, preference, ...).

    As many rows come out as went in. Rows that do not fit, and earlier `faults` of their source,
    are one UsageError that names each, with its columns, and which of them to rename. by: who needs
    them, in the words of the message (`dpo`); else the use.
    """
    if use not in USES:
        raise UsageError(f"unknown use `{use}`.", fix=f"Known: {', '.join(USES)}.")

    def fit(row: Row, given: Row) -> Row:
        if use == "preference":
            row = _best_and_worst(row)
        elif use == "rl":
            row = _to_be_answered(row)
        fields = fields_for(row.columns, use)
        if fields is None:
            wanted = " or ".join(
                " + ".join(f"`{field}`" for field in choice) for choice in USES[use]
            )
            what = (
                f"{by or use} needs {wanted}; this row has"
                f" {_list_columns({**row.columns, **_nulls(given.columns)})}."
            )
            raise UsageError(what, where=row.where, fix=_remedy(row.columns, USES[use]))
        also = [name for name in WEIGHED.get(use, ()) if name in row.columns]
        _check_all([*fields, *also], fields, row)
        missing = [name for name in columns if name not in row.columns]
        if missing:
            raise UsageError(
                f"column `{missing[0]}` is missing; this row has {_list_columns(row.columns)}.",
                where=row.where,
            )
        return row

    return _apply_to_rows(rows, _all_conversations([map_layout(row) for row in rows]), fit, faults)


def fields_for(columns: Mapping[str, Any], use: str) -> tuple[str, ...] | None:
    """The fields of a row that `use` reads.

    Of its choices that are all there, with content if any are, the one of most fields.
    """
    there = [choice for choice in USES[use] if all(field in columns for field in choice)]
    filled = [choice for choice in there if all(_is_filled(columns, field) for field in choice)]
    return max(filled or there, key=len, default=None)


def unused_columns(rows: Sequence[Row], use: str | None = None) -> list[str]:
    """The columns of (normalised) rows that hold something and that nothing reads.

    Reading is what `use` does, or without one the row's format.

    One that is read in some rows only comes with the number of the others: "history (3 rows)".
    """
    left: dict[str, int] = {}
    counts: dict[str, int] = {}
    for row in rows:
        form = detect_format(row.columns)
        fields = (
            fields_for(row.columns, use)
            if use
            else (*form.required, *form.optional)
            if form
            else ()
        )
        mapped_from = (
            row.read - REPLIES if use == "rl" else row.read
        )  # sampling reads prompts, and no answers
        read = {*(fields or ()), *WEIGHED.get(use or "", ()), *mapped_from}
        for name, value in row.columns.items():
            if value not in ("", None, [], {}):
                counts[name] = counts.get(name, 0) + 1
                left[name] = left.get(name, 0) + (name not in read)
    return [
        name if left[name] == counts[name] else f"{name} ({left[name]} rows)"
        for name in counts
        if left[name]
    ]


def map_layout(row: Row) -> Row:
    """The row with well-known shapes mapped, unchecked."""
    columns, read = our_columns(row.columns)
    return replace(row, columns=columns, read=row.read | read)


def _all_conversations(rows: list[Row]) -> list[Row]:
    """Make all rows of a source conversations where some of them are.

    A system text or earlier turns make a row a conversation.
    """
    prefaced = [
        row for row in rows if isinstance(row.columns.get("prompt"), list) and row.read & PREFACES
    ]
    if not prefaced:
        return rows
    return [replace(row, columns=as_messages(row.columns)) for row in rows]


def _apply_to_rows(
    given: Sequence[Row],
    rows: Sequence[Row],
    fit: Callable[[Row, Row], Row],
    faults: Sequence[UsageError],
) -> list[Row]:
    """`fit` of every row; all that fail are one error, with the faults that were found before."""
    ready, found = [], list(faults)
    for before, row in zip(given, rows, strict=True):
        try:
            ready.append(fit(row, before))
        except UsageError as error:
            found.append(error)
    if found:
        raise combined_error(found, len(given) + len(faults), source_of(found[0].where))
    return ready


def _checked_row(row: Row, given: Row) -> Row:
    """A mapped row whose format's fields are all right."""
    form = detect_format(row.columns)
    if form is None:
        listed = _list_columns({**row.columns, **_nulls(given.columns)})
        what = f"no known format: the columns are {listed}."
        fix = next(
            filter(
                None, (_renaming(row.columns, USES[use]) for use in ("sft", "preference", "label"))
            ),
            "",
        )
        raise UsageError(what, where=row.where, fix=fix or _needed(ANY))
    _check_all(
        [field for field in (*form.required, *form.optional) if field in row.columns],
        form.required,
        row,
    )
    return row


def _check_all(fields: Sequence[str], required: Sequence[str], row: Row) -> None:
    for field in fields:
        _check(field, row.columns[field], row.where)
    _check_together(required, row.columns, row.where)


def _to_be_answered(row: Row) -> Row:
    """A conversation that ends before the assistant's turn, as the prompt that it is."""
    turns = row.columns.get("messages")
    if "prompt" in row.columns or not is_messages(turns) or turns[-1]["role"] == "assistant":
        return row
    return replace(row, columns={"prompt": turns, **row.columns}, read=row.read | {"messages"})


def _best_and_worst(row: Row) -> Row:
    """A ranking as the pair of its best and its worst answer, if it is no pair yet.

    All ranks equal: a pair of weight 0.
    """
    columns = row.columns
    if "chosen" in columns or not all(
        _is_filled(columns, field) for field in ("prompt", "responses", "ranks")
    ):
        return row
    for field in ("responses", "ranks"):
        _check(field, columns[field], row.where)
    _check_together(("responses", "ranks"), columns, row.where)
    answers, ranks = columns["responses"], columns["ranks"]
    if len(answers) < 2:
        raise UsageError("a preference needs two answers, and this row has one.", where=row.where)
    best, worst = ranks.index(min(ranks)), ranks.index(max(ranks))
    sides = {"chosen": answers[best], "rejected": answers[worst if worst != best else 1]}
    tie = {"weight": 0.0} if best == worst else {}
    rest = {name: value for name, value in columns.items() if name not in ("responses", "ranks")}
    return replace(
        row,
        columns={"prompt": columns["prompt"], **sides, **rest, **tie},
        read=row.read | {"responses", "ranks"},
    )


def is_messages(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    """True for a list of messages with known roles and text contents."""
    return (
        isinstance(value, list)
        and bool(value)
        and not any(_message_trouble(turn) for turn in value)
    )


def gold_answer(columns: Mapping[str, Any]) -> str | None:
    """The answer that a row itself holds, as text.

    It is its completion, else its last assistant message, else its `answer`.
    """
    for value in (columns.get("completion"), columns.get("messages"), columns.get("answer")):
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            answers = [
                turn["content"]
                for turn in value
                if isinstance(turn, Mapping) and turn.get("role") == "assistant"
            ]
            if answers:
                return answers[-1]
    return None


def _check(field: str, value: Any, where: str) -> None:
    expected, fits = KINDS[field]
    if fits(value):
        return
    inside = ""
    if isinstance(value, list) and field in (*SPOKEN, "messages"):
        inside = next(
            (
                f": message {number} {trouble}"
                for number, turn in enumerate(value, 1)
                if (trouble := _message_trouble(turn))
            ),
            "",
        )
    raise UsageError(
        f"field `{field}`: expected {expected}, found {kind_of(value)}{inside}.", where=where
    )


def _check_together(required: Sequence[str], columns: Mapping[str, Any], where: str) -> None:
    """What no field shows alone.

    Strings and message lists do not mix, replies begin with the assistant, lists match in length.
    """
    spoken = [field for field in required if field in SPOKEN]
    kinds = {isinstance(columns[field], list) for field in spoken}
    if len(kinds) > 1:
        found = ", ".join(f"`{field}` is {kind_of(columns[field])}" for field in spoken)
        fix = (
            "Dialogues from their beginning must begin with what `prompt` says."
            if "chosen" in spoken
            else ""
        )
        raise UsageError(
            f"all of {', '.join(spoken)} are text, or all are messages; here {found}.",
            where=where,
            fix=fix,
        )
    for field in spoken[1:]:
        if isinstance(columns[field], list) and columns[field][0]["role"] != "assistant":
            raise UsageError(
                f"field `{field}`: its first message must be the assistant's, not"
                f" {columns[field][0]['role']}'s.",
                where=where,
            )
    for left, right in (("completions", "labels"), ("responses", "ranks")):
        if left in required and len(columns[left]) != len(columns[right]):
            raise UsageError(
                f"`{left}` has {len(columns[left])} items and `{right}` {len(columns[right])}.",
                where=where,
            )


def _message_trouble(turn: Any) -> str:
    if not isinstance(turn, Mapping):
        return f"is {kind_of(turn)}, not an object with role and content"
    missing = [key for key in ("role", "content") if key not in turn]
    if missing:
        return f"has no `{missing[0]}`"
    if turn["role"] not in ROLES:
        return f"has the role {turn['role']!r}; known: {', '.join(ROLES)}"
    content = turn["content"]
    other = next(filter(None, map(non_text_type, content)), "") if isinstance(content, list) else ""
    if other:
        return f"has a part of type `{other}` in its content; only text is read"
    return "" if _text(content) else f"has as content {kind_of(content)}, not text"


def _text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _some_text(value: Any) -> bool:
    return _text(value) and bool(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and bool(value) and all(fits(item) for item in value)
    )


def _spoken(value: Any) -> bool:
    return _text(value) or is_messages(value)


SPOKEN = ("prompt", *SIDES)
_SPOKEN = ("text or a list of messages", _spoken)
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("text", _some_text),
    "messages": ("a list of messages {role, content}", is_messages),
    "prompt": (
        "text or a list of messages, not empty",
        lambda value: _some_text(value) or is_messages(value),
    ),
    "completion": _SPOKEN,
    "chosen": _SPOKEN,
    "rejected": _SPOKEN,
    **RANGES,
    "reward": ("a finite number", lambda value: _number(value) and abs(value) != float("inf")),
    "label": ("true or false", lambda value: isinstance(value, bool)),
    "completions": ("a list of texts", _list_of(_text)),
    "labels": ("a list of true, false, -1, 0 or 1", _list_of(lambda value: value in (-1, 0, 1))),
    "responses": ("a list of texts or of lists of messages", _list_of(_spoken)),
    "ranks": ("a list of numbers", _list_of(_number)),
}


ANY = (*USES["sft"], *USES["rl"], *USES["preference"])
REPLIES = frozenset(
    ("output", "response", "answer", "answers", "solution", "code", "canonical_solution")
)
"""Columns that shapes make completions of."""
NEVER_EMPTY = ("prompt", "messages", "text", "completions", "labels", "responses", "ranks")


def _is_filled(columns: Mapping[str, Any], field: str) -> bool:
    """Is the field there, and not an empty text or list where nothing could be made of one?"""
    value = columns.get(field)
    if field == "label" and isinstance(value, int | float) and value not in (0, 1):
        return False  # the number of a class, which says nothing of good or bad
    return value is not None and not (field in NEVER_EMPTY and value in ("", []))


def _nulls(columns: Mapping[str, Any]) -> dict[str, None]:
    return {name: None for name, value in columns.items() if value is None}


def _list_columns(columns: Mapping[str, Any]) -> str:
    return (
        ", ".join(
            f"`{name}`{' (null)' if value is None else ''}" for name, value in columns.items()
        )
        or "none"
    )


def _remedy(columns: Mapping[str, Any], choices: tuple[tuple[str, ...], ...]) -> str:
    """What to do about a row that lacks fields.

    Rename its columns, say what comes before the answer, or give what is needed.
    """
    if choices == USES["rl"] and "messages" in columns:
        return "Give what comes before the answer as `prompt`."
    return _renaming(columns, choices) or _needed(choices)


def _needed(choices: tuple[tuple[str, ...], ...]) -> str:
    return f"Needed: {' or '.join(' + '.join(choice) for choice in choices)}."


def _renaming(columns: Mapping[str, Any], choices: tuple[tuple[str, ...], ...]) -> str:
    """Which columns to rename, for the choice of fields that the fewest renamings reach.

    Empty where no format is reached.
    """
    best: list[str] | None = None
    for choice in choices:
        missing = [field for field in choice if field not in columns]
        others = [
            next((other for other in OTHER_NAMES.get(field, ()) if other in columns), None)
            for field in missing
        ]
        renamings = [
            f"`{other}` to `{field}`"
            for other, field in zip(others, missing, strict=True)
            if other is not None
        ]
        if (
            missing
            and len(renamings) == len(missing)
            and (best is None or len(renamings) < len(best))
        ):
            best = renamings
    return f"Rename {' and '.join(best)}." if best else ""
