"""Conversations -> text through the chat template, and where each turn lies in that text.

Most templates do not mark what the assistant said. Then it is found out by rendering: the beginning
of a conversation must be the beginning of the whole, and a turn whose content is exchanged for a
mark shows what the template writes around it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from laurel.core.errors import UsageError
from laurel.core.json_values import is_object
from laurel.core.sample import Message

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Any] | None
MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
DEFAULT_TEMPLATE = """{#- Made by laurel, for a tokenizer that came without a chat template. -#}
{%- if bos_token %}{{ bos_token }}{% endif %}
{%- if tools %}
{{- '<Tools>' }}
{%- for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}
{{- eos_token + '\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<' + message.role | capitalize + '>\n' }}
{%- if message.role == 'assistant' %}{% generation %}
{%- if message.reasoning_content %}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '\n' if message.content or not loop.first }}
{{- '<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}
{%- endfor %}
{{- eos_token }}{% endgeneration %}
{%- else %}{{ message.content + eos_token }}{% endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<Assistant>\n' }}{% endif %}"""
INVENTED = (
    "the tokenizer has no chat template: laurel's own is used, and saved with the model (its first"
    " line says who made it)"
)
REMEDY = (
    "Mark the assistant's turns in the template with {% generation %} ... {% endgeneration %}, or"
    " give another with --chat_template FILE."
)


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a text: what `role` said, with whatever closes its turn."""

    role: str
    start: int
    end: int


def ensure_template(tokenizer: Any, template_file: str | None = None) -> str:
    """Give the tokenizer a chat template, and return the template's SHA-256.

    It is that of `template_file`, else the tokenizer's own, else DEFAULT_TEMPLATE. It is saved with
    the tokenizer, so equal hashes mean equal prompts in training and use. A file that cannot be
    read or does not render, and a tokenizer without both template and EOS, are UsageErrors.
    """
    if template_file is not None:
        try:
            tokenizer.chat_template = Path(template_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"cannot read the chat template: {error}.", where=str(template_file)
            ) from None
        render(
            tokenizer,
            [Message(role="user", content="a")],
            add_generation_prompt=True,
            where=str(template_file),
        )
    elif not tokenizer.chat_template:
        tokenizer.chat_template = template_of(tokenizer)
    return hashlib.sha256(template_of(tokenizer).encode()).hexdigest()


def template_of(tokenizer: Any) -> str:
    """The text of the tokenizer's template, else DEFAULT_TEMPLATE, which needs an EOS.

    Of several templates it is the one named `default`.
    """
    template = tokenizer.chat_template
    if is_object(template) and template:
        if "default" not in template:
            what = f"several chat templates ({', '.join(template)}) and none named `default`."
            raise UsageError(
                what, where=template_name(tokenizer), fix="Give one with --chat_template FILE."
            )
        return template["default"]
    if template:
        return str(template)
    if tokenizer.eos_token is None:
        what = "the tokenizer has neither a chat template nor an EOS token to end turns with."
        raise UsageError(
            what,
            where=template_name(tokenizer),
            fix="Set tokenizer.eos_token, or give --chat_template FILE.",
        )
    return DEFAULT_TEMPLATE


def template_name(tokenizer: Any) -> str:
    """The template's name in errors."""
    return f"chat template of {tokenizer.name_or_path or type(tokenizer).__name__}"


def without_template(tokenizer: Any, template_file: str | None) -> list[str]:
    """The note for the user where `ensure_template` is going to use laurel's own template."""
    return [] if tokenizer.chat_template or template_file is not None else [INVENTED]


def render(
    tokenizer: Any,
    messages: Messages,
    *,
    add_generation_prompt: bool = False,
    where: str = "",
    tools: Tools = None,
) -> str:
    """The template's text for `messages`; UsageError where the template refuses them or fails."""
    return _render(tokenizer, messages, add_generation_prompt, where, tools)[0]


def text_before_turn(
    tokenizer: Any, messages: Messages, speaker: str = "assistant", *, tools: Tools = None
) -> str:
    """The text up to where `speaker` begins its next turn: `messages` and the header of that turn.

    For the assistant this is add_generation_prompt=True. For others, and for templates that ignore
    that flag, the header is found by rendering a turn of `speaker`; spaces that end such a header
    are left to the content.
    """
    base = ""
    if speaker == "assistant":
        text = render(tokenizer, messages, add_generation_prompt=True, tools=tools)
        base = render(tokenizer, messages, tools=tools)
        if text != base:
            return text
    frame = text_around_turn(
        tokenizer, [*messages, {"role": speaker, "content": ""}], len(messages), tools=tools
    )
    if speaker == "assistant":
        has_header = (
            frame is not None and frame[0].startswith(base) and frame[0][len(base) :].strip()
        )
        return frame[0].rstrip(" ") if frame is not None and has_header else base
    if frame is None:
        raise UsageError(
            f"no header of a turn of `{speaker}` can be found.",
            where=template_name(tokenizer),
            fix="Use a template that has one.",
        )
    return frame[0].rstrip(" ")


def text_around_turn(
    tokenizer: Any,
    messages: Messages,
    index: int,
    *,
    add_generation_prompt: bool = False,
    tools: Tools = None,
) -> tuple[str, str] | None:
    """What the template writes before and after the content of turn `index`.

    None if it refuses the messages, or does not show the content exactly once.
    """
    mark = "laurelmark0"
    whole = repr(list(messages))
    while mark in whole:
        mark = f"laurelmark{int(mark[10:]) + 1}"
    changed = [*messages[:index], {**messages[index], "content": mark}, *messages[index + 1 :]]
    text = try_render(
        text_before_turn if add_generation_prompt else render, tokenizer, changed, tools=tools
    )
    if text is None or text.count(mark) != 1:
        return None
    before, _, after = text.partition(mark)
    return before, after


def turn_spans(
    tokenizer: Any, messages: Messages, wanted: Sequence[int], *, tools: Tools = None
) -> tuple[str, tuple[Span, ...]]:
    """The rendered conversation, and the span of each `wanted` turn.

    A span is the turn's content and what closes it, without its header. {% generation %} markers
    decide on the assistant's turns where the template has them. Whitespace behind the closing token
    belongs to no turn. A template whose turns cannot be told apart is a UsageError with the remedy.
    """
    text, marked = _render(tokenizer, messages, False, "", tools)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans: list[Span] = []
    if marked and len(marked) == len(turns):
        by_marker = dict(zip(turns, marked, strict=True))
        spans = [Span("assistant", *by_marker[i]) for i in wanted if i in by_marker]
    elif marked and set(turns) <= set(wanted):
        spans = [Span("assistant", *found) for found in marked]
    elif marked:
        what = f"{len(marked)} {{% generation %}} blocks for {len(turns)} turns of the assistant."
        raise UsageError(
            what,
            where=template_name(tokenizer),
            fix="One block per turn lets single turns be chosen; train_on=assistant takes all.",
        )
    derived = [i for i in wanted if not (marked and i in turns)]
    spans += [_locate(tokenizer, messages, text, i, tools) for i in derived]
    spans.sort(key=lambda span: (span.start, span.end))
    for left, right in pairwise(spans):
        if left.end > right.start:
            raise UsageError(
                "turns overlap in the rendered text.", where=template_name(tokenizer), fix=REMEDY
            )
    return text, tuple(spans)


def _render(
    tokenizer: Any, messages: Messages, opening: bool, where: str, tools: Tools
) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the spans of {% generation %} blocks (none if the template has no markers)."""
    from transformers.utils import chat_template_utils

    library: Any = chat_template_utils
    template = template_of(tokenizer)
    try:
        # a content of None is meant: some templates take it for "there is nothing but a call"
        cleaned = [
            {key: value for key, value in message.items() if value is not None or key == "content"}
            for message in messages
        ]
        if not cleaned:
            raise ValueError("there are no messages")
        texts, spans = library.render_jinja_template(
            [cleaned],
            tools=list(tools) if tools else None,
            chat_template=template,
            add_generation_prompt=opening,
            return_assistant_tokens_mask=bool(MARKER.search(template)),
            **tokenizer.special_tokens_map,
        )
    except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        what = f"the template does not render these messages ({roles}): {error}."
        raise UsageError(what, where=where or template_name(tokenizer)) from None
    return texts[0], [(int(start), int(end)) for found in spans for start, end in found]


def try_render(function: Any, *arguments: Any, **options: Any) -> str | None:
    """The text, or None where the template refuses."""
    try:
        return function(*arguments, **options)
    # many templates refuse a conversation that is cut short; there are other ways to find a turn
    except UsageError:
        return None


def _locate(tokenizer: Any, messages: Messages, text: str, index: int, tools: Tools) -> Span:
    """The span of one turn in `text`.

    It is found by rendering the conversation's beginning, else by a mark in the turn's place.
    """
    message = messages[index]
    is_last = index == len(messages) - 1
    head = None
    if message["role"] == "assistant":
        head = try_render(text_before_turn, tokenizer, messages[:index], tools=tools)
    whole = text if is_last else try_render(render, tokenizer, messages[: index + 1], tools=tools)
    start = len(head) if head is not None and text.startswith(head) else None
    end = len(whole) if whole is not None and text.startswith(whole) else None
    if start is None or end is None:
        frame = text_around_turn(tokenizer, messages, index, tools=tools)
        start = _start(frame, text) if start is None else start
        # shorter than its own header: it is shown in a later turn
        if end is None or (start is not None and end < start):
            end = _end(tokenizer, messages, frame, text, index, tools)
    if start is None or end is None or start > end:
        what = (
            f"the template does not show where turn {index + 1} ({message['role']}) begins and"
            " ends: it writes earlier turns differently."
        )
        fix = REMEDY
        if not is_last:
            fix = "Train on the last turn alone with --train_on last. Or m" + REMEDY[1:]
        raise UsageError(what, where=template_name(tokenizer), fix=fix)
    length = _without_tail(text[start:end], message.get("content"))
    return Span(message["role"], start, start + length)


def _start(frame: tuple[str, str] | None, text: str) -> int | None:
    """The start of a turn's content behind what stands before it, None if that is not in `text`."""
    return len(frame[0].rstrip(" ")) if frame is not None and text.startswith(frame[0]) else None


def _end(
    tokenizer: Any,
    messages: Messages,
    frame: tuple[str, str] | None,
    text: str,
    index: int,
    tools: Tools,
) -> int | None:
    """The end of a turn and of what closes it, found from the end of the whole conversation."""
    if frame is None or not text.endswith(frame[1]):
        return None
    last = text_around_turn(tokenizer, messages[: index + 1], index, tools=tools)
    if last is None and messages[index]["role"] == "assistant":
        return None
    closing = last[1].rstrip() if last is not None else ""
    if not frame[1].startswith(closing):
        closing = shared_closing(tokenizer, frame[1], closing)
        if not closing:
            return None
    return len(text) - len(frame[1]) + len(closing)


def shared_closing(tokenizer: Any, here: str, there: str) -> str:
    """What two closings begin with, up to the last added token in it.

    They can differ because some templates end the last turn with an EOS besides.
    """
    size = next(
        (i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b),
        min(len(here), len(there)),
    )
    tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    ends = [here.rfind(token, 0, size) + len(token) for token in tokens if token in here[:size]]
    return here[: max(ends, default=0)]


def _without_tail(segment: str, content: Any) -> int:
    """The length of a turn without the whitespace behind its closing token.

    All of it where whitespace is all that closes it.
    """
    kept = segment.rstrip()
    ending = content.rstrip() if isinstance(content, str) else ""
    closed_by_space = not kept or (ending and kept.endswith(ending))
    return len(segment) if closed_by_space else len(kept)
