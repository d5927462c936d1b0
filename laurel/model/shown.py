"""What a chat template shows of a conversation, and what it leaves out: nothing of a row is lost
without a word.

A text is shown if it stands in what the template renders, and if a mark in its place would: short
texts stand in other places, too. So every text of a conversation is exchanged for a mark at once,
and the marks that are missing name what is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from laurel.core.errors import UsageError
from laurel.model.render import Messages, Tools, attempt, named, opened, render, template_of
from laurel.model.turns import CALL, TEXT, THOUGHT, over, spoken

MARK = re.compile(r"laurelmark\d+x")
REMEDY = "Give a template that shows it with --chat_template FILE, or take it out of the rows."
ALIKE = "Give a template that writes both alike with --chat_template FILE."


class Piece(NamedTuple):
    """A text of a turn (counted from 0), what it is, and the mark that stands for it."""

    turn: int
    kind: str
    text: str
    mark: str


class Written(NamedTuple):
    """A conversation in the form that the template shows best, and what it leaves out though it can
    be borne.
    """

    messages: list[dict[str, Any]]
    left_out: tuple[str, ...]


def written(
    tokenizer: Any,
    messages: Messages,
    *,
    targets: Sequence[int] = (),
    tools: Tools = None,
    tools_needed: bool = False,
) -> Written:
    """`messages` in the form that the template shows, and what it leaves out; UsageError where that
    cannot be borne.

    It cannot where a turn's content or tool call is lost, or the thought of a target turn behind
    the last question; nor where the template opens a target turn otherwise in sampling than in
    training. It can where thoughts of earlier turns are lost (many templates do so by design), or
    fields such as `name`. Tools that are not shown are refused where `tools_needed`.
    """
    if not messages:
        return Written([], ())
    said = [spoken(message) for message in messages]
    problem: UsageError | None = None  # of the first form that the template renders at all
    every = forms(said)
    for number, form in enumerate(every):
        if attempt(render, tokenizer, form, tools=tools) is None:
            continue
        refused, borne, apart = losses(tokenizer, said, number, targets, tools, tools_needed)
        if not refused and apart is None:
            return Written(form, borne)
        problem = problem or (lost(tokenizer, refused) if refused else apart)
    if problem is None:
        render(tokenizer, said, tools=tools)  # says why it does not
    assert problem is not None
    raise problem


def lost(tokenizer: Any, refused: Sequence[str]) -> UsageError:
    """The error that names what is lost."""
    call = "Call the role `system`, or g" if any("(developer)" in what for what in refused) else "G"
    what = f"the template leaves out {', '.join(dict.fromkeys(refused))}."
    return UsageError(what, where=named(tokenizer), fix=call + REMEDY[1:])


def forms(said: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The conversation in the forms that templates ask for: arguments of calls as objects or as
    text, no content beside a call.
    """
    if not any(message.get("tool_calls") for message in said):
        return [said]

    def each(change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            change(message) if isinstance(message.get("tool_calls"), list) else message
            for message in said
        ]

    return [said, each(_in_text), each(_bare), each(lambda message: _bare(_in_text(message)))]


def _bare(message: dict[str, Any]) -> dict[str, Any]:
    return message if message.get("content") else {**message, "content": None}


def _in_text(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "tool_calls": [_call_in_text(call) for call in message["tool_calls"]]}


def _call_in_text(call: Any) -> Any:
    inner = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or isinstance(inner.get("arguments"), str):
        return call
    return {
        **call,
        "function": {**inner, "arguments": json.dumps(inner.get("arguments"), ensure_ascii=False)},
    }


def losses(
    tokenizer: Any,
    said: list[dict[str, Any]],
    number: int,
    targets: Sequence[int],
    tools: Tools,
    tools_needed: bool,
) -> tuple[list[str], tuple[str, ...], UsageError | None]:
    """What a form of the conversation (see `forms`) loses: what cannot be borne, and what can; and
    a target turn opened in two ways.
    """
    text = render(tokenizer, forms(said)[number], tools=tools)
    pieces, marked = exchanged(said)
    hidden, apart = in_marks(
        tokenizer, template_of(tokenizer), _key(forms(marked)[number]), _key(tools), tuple(targets)
    )
    question = max((i for i, message in enumerate(said) if message["role"] == "user"), default=-1)
    refused, borne = list[str](), list[str]()
    for piece in pieces:
        if piece.mark not in hidden and stands_in(piece.text, text):
            continue
        turn = f"turn {piece.turn + 1} ({said[piece.turn]['role']})"
        if piece.kind in (TEXT, CALL):
            refused.append(f"the {piece.kind} of {turn}")
        elif piece.kind != THOUGHT:
            borne.append(f"{piece.kind} of {said[piece.turn]['role']} turns")
        elif piece.turn in targets and piece.turn > question:
            refused.append(f"the thought of {turn}, which would be trained on")
        else:
            borne.append("thoughts of earlier turns")
    if tools and text == attempt(render, tokenizer, forms(said)[number]):
        (refused if tools_needed else borne).append("`tools`")
    return (
        refused,
        tuple(dict.fromkeys(borne)),
        unlike(tokenizer, *apart[0], question) if apart else None,
    )


def unlike(tokenizer: Any, turn: int, opening: str, question: int) -> UsageError:
    """The error of a turn that the template begins in two ways: in sampling with `opening`, in
    training without it.
    """
    last = "Train on the last turn alone with --train_on last, or g" if turn < question else "G"
    what = (
        f"the template begins turn {turn + 1} with {opening!r} where it is sampled, and not where"
        " it is trained on."
    )
    return UsageError(what, where=named(tokenizer), fix=last + ALIKE[1:])


def exchanged(said: Sequence[dict[str, Any]]) -> tuple[list[Piece], list[dict[str, Any]]]:
    """Every text of the conversation, and the conversation with a mark in the place of each."""
    pieces, marked = list[Piece](), list[dict[str, Any]]()

    def say(kind: str, text: str) -> str:
        mark = f"laurelmark{len(pieces)}x"
        pieces.append(Piece(len(marked), kind, text, mark))
        before, after = edges(text)
        return before + mark + after

    for message in said:
        marked.append(over(message, say))
    return pieces, marked


def edges(text: str) -> tuple[str, str]:
    """What stands around a text and may decide how a template takes it: white space, and a tag at
    its very beginning and end.
    """
    core = text.strip()
    at = text.index(core)
    first = re.match(r"<[^<>\s]{1,40}>\s*", core)
    last = re.search(r"\s*</[^<>\s]{1,40}>$", core[-48:])
    start = at + (first.end() if first else 0)
    end = at + len(core) - (len(last.group()) if last else 0)
    return (text[:start], text[end:]) if start < end else (text[:at], text[at + len(core) :])


@lru_cache(maxsize=4096)
def in_marks(
    tokenizer: Any, template: str, messages_json: str, tools_json: str, targets: tuple[int, ...]
) -> tuple[frozenset[str], tuple[tuple[int, str], ...]]:
    """Which marks of a conversation of marks the template hides, and the target turns that it opens
    in two ways, with how it
    opens them in sampling. Nothing where the template refuses marks. `template` stands for what the
    tokenizer has now.
    """
    messages, tools = json.loads(messages_json), json.loads(tools_json)
    text = attempt(render, tokenizer, messages, tools=tools)
    if text is None:
        return frozenset(), ()
    owner = {mark: i for i, message in enumerate(messages) for mark in MARK.findall(_key(message))}
    places = [
        (found.start(), found.end(), owner[found.group()])
        for found in MARK.finditer(text)
        if found.group() in owner
    ]
    apart = []
    for turn in targets:
        first = next((start for start, _, i in places if i == turn), None)
        opening = (
            opening_of(tokenizer, messages[:turn], tools)
            if messages[turn]["role"] == "assistant"
            else ""
        )
        if first is None or not opening:
            continue
        before = max((end for _, end, i in places if end <= first and i != turn), default=0)
        if opening not in text[before:first]:
            apart.append((turn, opening))
    return frozenset(owner) - set(MARK.findall(text)), tuple(apart)


def opening_of(tokenizer: Any, messages: Messages, tools: Tools) -> str:
    """What a prompt of these messages ends with, so that the assistant begins to speak; "" where it
    cannot be told.
    """
    base = attempt(render, tokenizer, messages, tools=tools) if messages else None
    head = attempt(opened, tokenizer, messages, tools=tools) if messages else None
    return (
        head[len(base) :] if base is not None and head is not None and head.startswith(base) else ""
    )


def stands_in(piece: str, text: str) -> bool:
    """Does the text hold the piece: as it is, trimmed, as part of JSON, or with other white
    space?
    """
    core = piece.strip()
    if any(
        way in text
        for way in (core, json.dumps(core, ensure_ascii=False)[1:-1], json.dumps(core)[1:-1])
    ):
        return True
    return "".join(core.split()) in "".join(text.split())


def _key(value: Any) -> str:
    return json.dumps(value, default=str)
