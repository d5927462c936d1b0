"""Conversations as files write them -> messages {role, content}.

Speakers, contents in parts, system texts, earlier turns.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Columns = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "ai", "bot", "model", "bing", "bard", "claude"), "assistant"
    ),
    **dict.fromkeys(("observation", "function_response", "ipython", "function"), "tool"),
}
TEXT_PARTS = ("text", "input_text", "output_text")
EXCHANGES = (  # how files call the two sides of one exchange
    ("input", "output"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("human", "gpt"),
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("query", "response"),
)
_TURN = re.compile(r"\n\n(Human|Assistant):[ \t]?")


def as_message(turn: Any) -> Any:
    """One turn as {role, content} and what else it holds (weights, names, tool calls).

    What is no turn comes back as it is.
    """
    if not isinstance(turn, Mapping):
        return turn
    turn = {key: value for key, value in turn.items() if value is not None or key == "content"}
    role_key = next((key for key in ("role", "from") if key in turn), None)
    content_key = next((key for key in ("content", "value") if key in turn), None)
    if role_key is None or content_key is None:
        return turn
    rest = {key: value for key, value in turn.items() if key not in (role_key, content_key)}
    role, content = turn[role_key], content_of(turn[content_key])
    if role == "function_call" and (calls := parse_tool_calls(content)):
        return {"role": "assistant", "content": "", "tool_calls": calls, **rest}
    if content is None and (rest.get("tool_calls") or rest.get("function_call")):
        content = ""  # a call of a tool needs no words
    return {
        "role": SPEAKERS.get(role.lower(), role) if isinstance(role, str) else role,
        "content": content,
        **rest,
    }


def content_of(value: Any) -> Any:
    """A content given in parts {"type": "text", "text": ...} as one text.

    Any other value, and parts that are no text, as they are.
    """
    if not isinstance(value, list) or not value or any(non_text_type(part) for part in value):
        return value
    return "".join(part["text"] for part in value)


def non_text_type(part: Any) -> str:
    """What a part of a content is, if it is no text: `image_url`, ...; empty for text."""
    if not isinstance(part, Mapping):
        return f"a {type(part).__name__}"
    kind = str(part.get("type", "text" if "text" in part else "unknown"))
    return "" if kind in TEXT_PARTS and isinstance(part.get("text"), str) else kind


def parse_tool_calls(text: Any) -> list[Columns] | None:
    """The calls in the JSON text of ShareGPT's turns of `function_call`, in OpenAI's form."""
    try:
        parsed = json.loads(text)
    except (TypeError, ValueError):
        return None
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not calls or not all(
        isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls
    ):
        return None
    return [{"type": "function", "function": call} for call in calls]


def as_conversation(value: Any) -> Any:
    """A list of turns, of exchanges or the JSON (or Python) text of such a list, as messages.

    Anything else as it is.
    """
    if isinstance(value, str):
        value = parse_written_list(value)
    if isinstance(value, Mapping) and {"role", "content"} <= (one := as_message(value)).keys():
        return [one]
    if not isinstance(value, list):
        return value
    exchanges = [exchange_messages(item) for item in value]
    if value and all(exchanges):
        return [turn for pair in exchanges if pair for turn in pair]
    return [as_message(turn) for turn in value]


def alternate_turns(texts: Sequence[str]) -> list[Columns]:
    """Texts of the user and the assistant, who take turns."""
    return [
        {"role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate(texts)
    ]


def exchange_messages(item: Any) -> list[Columns] | None:
    """One exchange, {"input": ..., "output": ...} or the like, as two messages.

    What else it holds stays with the answer.
    """
    if not isinstance(item, Mapping):
        return None
    for asked, reply in EXCHANGES:
        if isinstance(item.get(asked), str) and isinstance(item.get(reply), str):
            rest = {
                key: value
                for key, value in item.items()
                if key not in (asked, reply) and value is not None
            }
            return [
                {"role": "user", "content": item[asked]},
                {"role": "assistant", "content": item[reply], **rest},
            ]
    return None


def parse_written_list(value: Any) -> Any:
    """The list of turns that a cell of a table holds as text, in JSON or as Python prints it.

    Any other value as it is.
    """
    if (
        not isinstance(value, str)
        or value.lstrip()[:1] != "["
        or not re.fullmatch(r"\[\s*\{.*\}\s*\]", value.strip(), re.DOTALL)
    ):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        turns = isinstance(found, list) and all(
            isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in found
        )
        return found if turns else value
    return value


def history_messages(value: Any) -> list[Columns] | None:
    """A column `history` as messages; None for what cannot be read so.

    It holds pairs [asked, said], exchanges, turns, or texts in turn.
    """
    value = parse_written_list(value)
    if not isinstance(value, list):
        said = as_dialogue(value)
        return said if said and said[-1]["role"] == "assistant" else None
    if value and all(isinstance(item, str) for item in value) and len(value) % 2 == 0:
        return alternate_turns(value)
    if all(_is_pair(item) for item in value):
        return alternate_turns([text for pair in value for text in pair])
    turns = as_conversation(value)
    return (
        turns
        if all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns)
        else None
    )


def as_dialogue(value: Any) -> list[Columns] | None:
    """A dialogue as messages; None for anything else.

    It is a list of messages, or text in turns of "Human:" and "Assistant:".
    """
    if isinstance(value, list):
        turns = as_conversation(value)
        return turns if all(isinstance(turn, dict) for turn in turns) else None
    if not isinstance(value, str) or not value.startswith("\n\nHuman:"):
        return None
    parts = _TURN.split(value)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def same_texts(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Do two lists of messages say the same, spaces around the contents apart?"""
    if len(left) != len(right):
        return False
    pairs = zip(left, right, strict=True)
    return all(a.get("role") == b.get("role") and _stripped(a) == _stripped(b) for a, b in pairs)


def _stripped(turn: Mapping[str, Any]) -> Any:
    content = turn.get("content")
    return content.strip() if isinstance(content, str) else content


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, list | tuple)
        and len(item) == 2
        and all(isinstance(side, str) for side in item)
    )
