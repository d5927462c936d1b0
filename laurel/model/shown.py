"""Finds what a chat template shows of a conversation, and what it leaves out.

A text is shown if it is in what the template renders, and if a mark in its place would be: short
texts can be in other places, too. So every text of a conversation is replaced by a mark, all at
once, and the marks that are missing in the rendered text name what is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from laurel.core.errors import UsageError
from laurel.core.json_values import is_object
from laurel.model.render import (
    Messages,
    Tools,
    render,
    template_name,
    template_of,
    text_before_turn,
    try_render,
)
from laurel.model.turns import CALL, TEXT, THOUGHT, replace_texts, spoken

MARK = re.compile(r"laurelmark\d+x")
REMEDY = "Give a template that shows it with --chat_template FILE, or take it out of the rows."
ALIKE = "Give a template that writes both alike with --chat_template FILE."


class Piece(NamedTuple):
    """A text of a turn (counted from 0), what it is, and the mark that stands for it."""

    turn: int
    kind: str
    text: str
    mark: str


class ShownConversation(NamedTuple):
    """A conversation in the form that the template shows, and what of it may be left out."""

    messages: list[dict[str, Any]]
    left_out: tuple[str, ...]


def messages_for_template(
    tokenizer: Any,
    messages: Messages,
    *,
    targets: Sequence[int] = (),
    tools: Tools = None,
    tools_needed: bool = False,
) -> ShownConversation:
    """`messages` in the form that the template shows, and what it leaves out.

    UsageError where a turn's content or tool call is left out, or the thought of a target turn
    behind the last question; and where the template begins a target turn otherwise in sampling than
    in training. Thoughts of earlier turns may be left out (many templates do so by design), and
    fields such as `name`. Tools that are not shown are refused where `tools_needed`.
    """
    if not messages:
        return ShownConversation([], ())
    conversation = [spoken(message) for message in messages]
    # of the first form that the template renders at all
    problem: UsageError | None = None
    for number, form in enumerate(conversation_forms(conversation)):
        if try_render(render, tokenizer, form, tools=tools) is None:
            continue
        found = template_losses(tokenizer, conversation, number, targets, tools, tools_needed)
        if not found.refused and found.opening is None:
            return ShownConversation(form, found.allowed)
        if problem is None:
            problem = left_out_error(tokenizer, found.refused) if found.refused else found.opening
    if problem is None:
        # raises with the reason
        render(tokenizer, conversation, tools=tools)
    assert problem is not None
    raise problem


def left_out_error(tokenizer: Any, refused: Sequence[str]) -> UsageError:
    """The error that names what the template leaves out."""
    call = "Call the role `system`, or g" if any("(developer)" in what for what in refused) else "G"
    what = f"the template leaves out {', '.join(dict.fromkeys(refused))}."
    return UsageError(what, where=template_name(tokenizer), fix=call + REMEDY[1:])


Conversation = list[dict[str, Any]]


def conversation_forms(conversation: Conversation) -> list[Conversation]:
    """The conversation in the forms that templates ask for.

    Arguments of calls are objects or text; content next to a call is "" or None.
    """
    if not any(message.get("tool_calls") for message in conversation):
        return [conversation]

    def each(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Conversation:
        return [
            change(message) if isinstance(message.get("tool_calls"), list) else message
            for message in conversation
        ]

    in_text = each(_arguments_in_text)
    without_content = each(_without_content)
    both = each(lambda message: _without_content(_arguments_in_text(message)))
    return [conversation, in_text, without_content, both]


def _without_content(message: dict[str, Any]) -> dict[str, Any]:
    """The message with None for an empty content."""
    return message if message.get("content") else {**message, "content": None}


def _arguments_in_text(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its tool calls as JSON text."""
    return {**message, "tool_calls": [_call_in_text(call) for call in message["tool_calls"]]}


def _call_in_text(call: Any) -> Any:
    """A tool call with its arguments as JSON text; what is no call stays as it is."""
    inner = call.get("function") if is_object(call) else None
    if not is_object(inner) or isinstance(inner.get("arguments"), str):
        return call
    arguments = json.dumps(inner.get("arguments"), ensure_ascii=False)
    return {**call, "function": {**inner, "arguments": arguments}}


class TemplateLosses(NamedTuple):
    """What a template leaves out of a conversation.

    refused, allowed: names of what must be shown, and of what may be left out. opening: the error
    of a target turn that the template begins in two ways.
    """

    refused: list[str]
    allowed: tuple[str, ...]
    opening: UsageError | None


def template_losses(
    tokenizer: Any,
    conversation: Conversation,
    number: int,
    targets: Sequence[int],
    tools: Tools,
    tools_needed: bool,
) -> TemplateLosses:
    """What the template leaves out of a form of the conversation (`conversation_forms`)."""
    form = conversation_forms(conversation)[number]
    text = render(tokenizer, form, tools=tools)
    pieces, marked = with_marks(conversation)
    hidden, openings = hidden_marks(
        tokenizer,
        template_of(tokenizer),
        _key(conversation_forms(marked)[number]),
        _key(tools),
        tuple(targets),
    )
    users = [i for i, message in enumerate(conversation) if message["role"] == "user"]
    question = max(users, default=-1)
    missing = [piece for piece in pieces if piece.mark in hidden or not stands_in(piece.text, text)]
    refused, allowed = sorted_losses(missing, conversation, targets, question)
    if tools and text == try_render(render, tokenizer, form):
        (refused if tools_needed else allowed).append("`tools`")
    problem = two_openings_error(tokenizer, *openings[0], question) if openings else None
    return TemplateLosses(refused, tuple(dict.fromkeys(allowed)), problem)


def sorted_losses(
    missing: Sequence[Piece], conversation: Conversation, targets: Sequence[int], question: int
) -> tuple[list[str], list[str]]:
    """The names of missing pieces: those that must be shown, and those that may be left out.

    question: the user's last turn; thoughts behind it must be shown where they are trained on.
    """
    refused = list[str]()
    allowed = list[str]()
    for piece in missing:
        role = conversation[piece.turn]["role"]
        turn = f"turn {piece.turn + 1} ({role})"
        if piece.kind in (TEXT, CALL):
            refused.append(f"the {piece.kind} of {turn}")
        elif piece.kind != THOUGHT:
            allowed.append(f"{piece.kind} of {role} turns")
        elif piece.turn in targets and piece.turn > question:
            refused.append(f"the thought of {turn}, which would be trained on")
        else:
            allowed.append("thoughts of earlier turns")
    return refused, allowed


def two_openings_error(tokenizer: Any, turn: int, opening: str, question: int) -> UsageError:
    """The error of a turn that begins with `opening` in sampling and without it in training."""
    last = "Train on the last turn alone with --train_on last, or g" if turn < question else "G"
    what = (
        f"the template begins turn {turn + 1} with {opening!r} where it is sampled, and not where"
        " it is trained on."
    )
    return UsageError(what, where=template_name(tokenizer), fix=last + ALIKE[1:])


def with_marks(conversation: Sequence[dict[str, Any]]) -> tuple[list[Piece], Conversation]:
    """Every text of the conversation, and the conversation with a mark in the place of each."""
    pieces = list[Piece]()
    marked = Conversation()

    def mark_for(kind: str, text: str) -> str:
        mark = f"laurelmark{len(pieces)}x"
        pieces.append(Piece(len(marked), kind, text, mark))
        before, after = outer_whitespace(text)
        return before + mark + after

    for message in conversation:
        marked.append(replace_texts(message, mark_for))
    return pieces, marked


def outer_whitespace(text: str) -> tuple[str, str]:
    """White space around a text, and a tag at its very beginning and end.

    They may decide how a template treats the text, so they stay around a mark.
    """
    core = text.strip()
    at = text.index(core)
    first = re.match(r"<[^<>\s]{1,40}>\s*", core)
    last = re.search(r"\s*</[^<>\s]{1,40}>$", core[-48:])
    start = at + (first.end() if first else 0)
    end = at + len(core) - (len(last.group()) if last else 0)
    return (text[:start], text[end:]) if start < end else (text[:at], text[at + len(core) :])


@lru_cache(maxsize=4096)
def hidden_marks(
    tokenizer: Any, template: str, messages_json: str, tools_json: str, targets: tuple[int, ...]
) -> tuple[frozenset[str], tuple[tuple[int, str], ...]]:
    """The marks that the template hides, and the target turns that it begins in two ways.

    With each such turn comes how it begins in sampling. Nothing where the template refuses marks.
    `template`: the tokenizer's template, as a part of the cache's key.
    """
    messages: Conversation = json.loads(messages_json)
    tools: Tools = json.loads(tools_json)
    text = try_render(render, tokenizer, messages, tools=tools)
    if text is None:
        return frozenset(), ()
    owner = {mark: i for i, message in enumerate(messages) for mark in MARK.findall(_key(message))}
    places = [
        (found.start(), found.end(), owner[found.group()])
        for found in MARK.finditer(text)
        if found.group() in owner
    ]
    openings = list[tuple[int, str]]()
    for turn in targets:
        if messages[turn]["role"] == "assistant" and turn in owner.values():
            opening = opening_of(tokenizer, messages[:turn], tools)
            header = header_before(turn, text, places)
            if opening and header is not None and opening not in header:
                openings.append((turn, opening))
    return frozenset(owner) - set(MARK.findall(text)), tuple(openings)


def header_before(turn: int, text: str, places: Sequence[tuple[int, int, int]]) -> str | None:
    """The template's own text between the turn before and this one, None if this is not shown.

    places: start and end of each mark in the text, and the turn that it is of.
    """
    first = next((start for start, _, i in places if i == turn), None)
    if first is None:
        return None
    before = max((end for _, end, i in places if end <= first and i != turn), default=0)
    return text[before:first]


def opening_of(tokenizer: Any, messages: Messages, tools: Tools) -> str:
    """The header of the assistant's turn behind these messages, "" where it is not found."""
    if not messages:
        return ""
    base = try_render(render, tokenizer, messages, tools=tools)
    prompt = try_render(text_before_turn, tokenizer, messages, tools=tools)
    if base is None or prompt is None or not prompt.startswith(base):
        return ""
    return prompt[len(base) :]


def stands_in(piece: str, text: str) -> bool:
    """Is the piece in the text: trimmed, as a part of JSON, or with other white space?"""
    core = piece.strip()
    # JSON text without its quotation marks
    unicode_json = json.dumps(core, ensure_ascii=False)[1:-1]
    ascii_json = json.dumps(core)[1:-1]
    if core in text or unicode_json in text or ascii_json in text:
        return True
    return "".join(core.split()) in "".join(text.split())


def _key(value: Any) -> str:
    """A value as JSON text, for the cache's key."""
    return json.dumps(value, default=str)
