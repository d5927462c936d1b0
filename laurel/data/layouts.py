"""A row's columns as ours: well-known shapes are read, conversations become messages, and what
belongs to the prompt joins it.

Columns are added and renamed; what a row holds is not thrown away. The names of the columns that
were read come with the result, so that those which nobody reads can be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from laurel.data.answer_layouts import ANSWERED, SINGLE, Layout
from laurel.data.comparison_layouts import COMPARED
from laurel.data.conversations import (
    Columns,
    alternate_turns,
    as_conversation,
    as_dialogue,
    as_message,
    content_of,
    history_messages,
    same_texts,
)

LAYOUTS: Sequence[Layout] = (*SINGLE, *COMPARED, *ANSWERED)
"""The shapes by name; the first one that a row has is the one it is read by."""
CONVERSATIONS = ("conversations", "conversation")
SYSTEM = ("system", "system_prompt", "system_message")
PREFACES = frozenset((*SYSTEM, "history"))
SIDES = ("completion", "chosen", "rejected")
SPOKEN = ("messages", "prompt", *SIDES)


def our_columns(columns: Columns) -> tuple[Columns, frozenset[str]]:
    """(the columns in our names, the names of the source's columns that went into them, and of
    those that it does not have).

    Nulls go: the row does not have them.
    """
    source = {name: value for name, value in columns.items() if value is not None}
    columns, read = source, set()
    for step in (
        sharegpt,
        map_known_layout,
        turns,
        split_shared_prompt,
        with_system_and_history,
        answers_as_turns,
        with_tools,
        label_as_boolean,
    ):
        columns, names = step(columns)
        read.update(names)
    return columns, frozenset(read | (columns.keys() - source.keys()))


def sharegpt(columns: Columns) -> tuple[Columns, Sequence[str]]:
    """`conversations` or `conversation` -> `messages`, unless two whole dialogues stand beside it.
    Unknown speakers stay, to be refused.
    """
    name = next(
        (
            name
            for name in CONVERSATIONS
            if name in columns and isinstance(as_conversation(columns[name]), list)
        ),
        None,
    )
    if (
        name is None
        or "messages" in columns
        or both_whole_dialogues(columns)
        or {"prompt", "chosen", "rejected"} <= columns.keys()
    ):
        return columns, ()
    value = as_conversation(columns[name])
    if value and all(isinstance(turn, str) for turn in value):  # LIMA's lists of texts
        value = alternate_turns(value)
    return {
        ("messages" if key == name else key): (value if key == name else held)
        for key, held in columns.items()
    }, (name,)


def map_known_layout(columns: Columns) -> tuple[Columns, Sequence[str]]:
    """What the first shape that fits reads.

    Its columns stand in front, so that ours are seen first.
    """
    for shape in candidate_layouts(frozenset(columns)):
        if found := shape.make(columns):
            return {**found[0], **columns, **found[0]}, found[1]
    return columns, ()


@lru_cache(maxsize=256)
def candidate_layouts(names: frozenset[str]) -> tuple[Layout, ...]:
    """The shapes that a row with these columns may have, in order: the same for all rows of most
    files.
    """
    return tuple(shape for shape in LAYOUTS if shape.fits(names))


def turns(columns: Columns) -> tuple[Columns, Sequence[str]]:
    """Every list of turns as messages: speakers in our words, contents in parts joined, nulls (as
    Parquet fills them in) gone.
    """
    changed = {name: as_conversation(columns[name]) for name in SPOKEN if name in columns}
    if isinstance(columns.get("responses"), list):
        changed["responses"] = [
            as_conversation(item) if isinstance(item, list) else item
            for item in columns["responses"]
        ]
    return {**columns, **changed}, ()


def split_shared_prompt(columns: Columns) -> tuple[Columns, Sequence[str]]:
    """Two whole dialogues -> the `prompt` they share and the two ways on.

    A prompt that an answer repeats is cut from its front.

    Message lists, or HH-RLHF's text "\\n\\nHuman: ...\\n\\nAssistant: ..." (arXiv:2204.05862). The
    prompt is the longest common beginning that ends before a turn of the assistant; each of the two
    keeps at least its last turn. A `prompt` that is there already, as text or messages, must be
    what they begin with.
    """
    if {"chosen", "rejected"} <= columns.keys():
        chosen, rejected = as_dialogue(columns["chosen"]), as_dialogue(columns["rejected"])
        common = shared_turns(chosen, rejected, columns.get("prompt")) if chosen and rejected else 0
        if (
            chosen
            and rejected
            and common
            and prompt_matches(columns.get("prompt"), chosen[:common])
        ):
            ways = {
                "prompt": chosen[:common],
                "chosen": chosen[common:],
                "rejected": rejected[common:],
            }
            return {**ways, **columns, **ways}, ("prompt", "chosen", "rejected")
    completion = columns.get("completion")
    if isinstance(completion, list) and len(completion) > 1 and "prompt" in columns:
        asked = next(
            (completion[:i] for i, turn in enumerate(completion) if _role(turn) == "assistant"), []
        )
        if asked and prompt_matches(columns["prompt"], asked):
            return {**columns, "prompt": asked, "completion": completion[len(asked) :]}, (
                "prompt",
                "completion",
            )
    return columns, ()


def shared_turns(chosen: list[Any], rejected: list[Any], prompt: Any) -> int:
    """How many turns are the prompt of two dialogues; 0 where they share none that the assistant's
    turns follow.
    """
    if isinstance(prompt, list) and all(len(side) > len(prompt) for side in (chosen, rejected)):
        return (
            len(prompt)
            if all(same_texts(prompt, side[: len(prompt)]) for side in (chosen, rejected))
            else 0
        )
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    while common and not all(_role(side[common]) == "assistant" for side in (chosen, rejected)):
        common -= 1
    return common


def prompt_matches(prompt: Any, asked: list[Any]) -> bool:
    """Is the row's own prompt, if it has one, what the turns `asked` say?"""
    if prompt is None:
        return True
    if isinstance(prompt, list):
        return same_texts(prompt, asked)
    users = [turn.get("content") for turn in asked if _role(turn) == "user"]
    return (
        isinstance(prompt, str)
        and bool(users)
        and prompt.strip() in (str(users[0]).strip(), str(users[-1]).strip())
    )


def with_system_and_history(columns: Columns) -> tuple[Columns, Sequence[str]]:
    """A `system` text and earlier turns (`history`) as the first messages of the row.

    They open the prompt and `messages`.
    """
    if not columns.keys() & PREFACES:
        return columns, ()
    name = next((name for name in SYSTEM if isinstance(content_of(columns.get(name)), str)), None)
    system = content_of(columns[name]) if name else ""
    front = [{"role": "system", "content": system}] if system.strip() else []
    past = history_messages(columns["history"]) if "history" in columns else None
    changed: Columns = {}
    read: set[str] = set()
    for field in ("prompt", "messages"):
        value = columns.get(field)
        if not isinstance(value, str | list) or not value:
            continue
        turns = [{"role": "user", "content": value}] if isinstance(value, str) else value
        own = turns[:1] if _role(turns[0]) in ("system", "developer") else []
        if name and (not own or not front or same_texts(own, front)):
            read.add(name)
        if past is not None:
            read.add("history")
        with_front = _with_front(turns, own, front, past or [])
        if with_front is not None:
            changed[field] = with_front
    return {**columns, **changed}, tuple(read)


def _with_front(
    turns: list[Any], own: list[Any], front: list[Any], past: list[Any]
) -> list[Any] | None:
    """The turns behind the system text and the earlier turns, where they lack any of these.

    own: the system turn that they open with themselves, which is kept. None: nothing to add.
    """
    rest = turns[len(own) :]
    before = [] if not past or same_texts(rest[: len(past)], past) else past
    if before or (front and not own):
        return [*(own or front), *before, *rest]
    return None


def answers_as_turns(columns: Columns) -> tuple[Columns, Sequence[str]]:
    """Answers as turns of the assistant where the prompt is messages, and a prompt as the user's
    turn where two answers are messages.
    """
    if isinstance(columns.get("prompt"), str) and all(
        isinstance(columns.get(side), list) for side in ("chosen", "rejected")
    ):
        if all(
            _role(turn) == "assistant"
            for side in ("chosen", "rejected")
            for turn in columns[side][:1]
        ):
            return {**columns, "prompt": [{"role": "user", "content": columns["prompt"]}]}, ()
        return columns, ()
    if not isinstance(columns.get("prompt"), list):
        return columns, ()
    changed: Columns = {
        side: _reply(columns[side]) for side in SIDES if isinstance(columns.get(side), str)
    }
    if isinstance(columns.get("responses"), list):
        changed["responses"] = [
            _reply(item) if isinstance(item, str) else item for item in columns["responses"]
        ]
    return {**columns, **changed}, ()


def with_tools(columns: Columns) -> tuple[Columns, Sequence[str]]:
    """The `tools` of a conversation: the chat template shows them.

    A plain text has no place for them.
    """
    asked = columns.get("prompt", columns.get("messages"))
    return columns, ("tools",) if "tools" in columns and isinstance(asked, list) else ()


def as_messages(columns: Columns) -> Columns:
    """The same row as a conversation: its prompt is what the user says."""
    if not isinstance(columns.get("prompt"), str) or not columns["prompt"]:
        return columns
    return answers_as_turns(
        {**columns, "prompt": [as_message({"role": "user", "content": columns["prompt"]})]}
    )[0]


def label_as_boolean(columns: Columns) -> tuple[Columns, Sequence[str]]:
    """A `label` of 0 or 1 of one answer as false or true."""
    label = columns.get("label")
    if (
        {"prompt", "completion"} <= columns.keys()
        and isinstance(label, int | float)
        and label in (0, 1)
    ):
        return {**columns, "label": bool(label)}, ()
    return columns, ()


def both_whole_dialogues(columns: Columns) -> bool:
    """Do `chosen` and `rejected` both hold a dialogue from its beginning?"""
    sides = [as_conversation(columns.get(name)) for name in ("chosen", "rejected")]
    return all(
        isinstance(side, list) and side and _role(side[0]) not in ("assistant", "")
        for side in sides
    )


def _role(turn: Any) -> str:
    return str(turn.get("role", "")) if isinstance(turn, dict) else ""


def _reply(text: str) -> list[Columns]:
    return [{"role": "assistant", "content": text}]
