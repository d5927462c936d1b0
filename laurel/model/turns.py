"""A turn of a conversation: its texts, the tool calls in one shape, and what it says of being
trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from laurel.core.errors import UsageError

Say = Callable[[str, str], str]
TEXT, THOUGHT, CALL = "content", "thought", "tool call"
THOUGHTS = (
    "reasoning_content",
    "thinking",
    "reasoning",
)  # what others call a thought in a field of its own
WEIGHTS = ("weight", "loss_weight", "loss_scale")
FLAGS = ("train", "training", "train_on_turn", "trainable", "loss")
UNCLEAR = {
    "mask": "which can mean that the turn is trained on or that it is not",
    "train_detail": "which says of single characters whether they are trained on",
}
# a thought in front of an answer; R1's prompts open it, so its answers hold the end alone
INLINE = re.compile(
    r"\s*(?:<([\w:]*think\w*|thoughts?|reasoning)>(?P<tagged>.*?)</\1>"
    r"|\[THINK\](?P<square>.*?)\[/THINK\]|(?P<open>(?:(?!<think>).)*?)</think>)",
    re.DOTALL,
)


def spoken(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message for a template: without flags and empty fields, with tool calls as most templates
    want them.

    That is [{"type": "function", "function": {"name", "arguments"}}] with arguments as an object.
    OpenAI writes them as JSON text, older files a `function_call`, others no `function` around the
    name: all of it becomes the same.
    """
    aside = (*WEIGHTS, *FLAGS, "masked", *UNCLEAR)
    said = {
        key: value
        for key, value in message.items()
        if key not in aside and value is not None and value != []
    }
    said.setdefault("content", "")
    calls = from_json(said.get("tool_calls"))
    if isinstance(said.get("function_call"), Mapping) and not calls:
        calls = [said.pop("function_call")]
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        said["tool_calls"] = [_call(call) for call in calls]
    return said


def _call(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    inner = call.get("function", call)
    if not isinstance(inner, Mapping) or "name" not in inner:
        return dict(call)
    outer = {
        key: value
        for key, value in call.items()
        if key not in ("function", "name", "arguments") and value is not None
    }
    return {
        "type": "function",
        **outer,
        "function": {**inner, "arguments": from_json(inner.get("arguments") or {})},
    }


def from_json(value: Any) -> Any:
    """JSON text as the list or object that it is; anything else as it stands."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def as_tools(value: Any) -> list[Any] | None:
    """A row's `tools` as a list, where they are functions that a template could show (as JSON text,
    too); else None.
    """
    tools = from_json(value)
    if (
        not isinstance(tools, list)
        or not tools
        or not all(isinstance(tool, Mapping) for tool in tools)
    ):
        return None
    return tools


def over(message: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """The message (see `spoken`) with each of its texts exchanged for say(what it is, text); empty
    ones stay.

    What it is: `content`, `thought`, `tool call` (its name and what it is called with), else the
    field's own name.
    """
    said = {"role": message["role"]}
    for key, value in message.items():
        if key == "content":
            said[key] = _content(message, value, say)
        elif key in THOUGHTS:
            said[key] = leaves(value, lambda text: say(THOUGHT, text))
        elif key == "tool_calls":
            said[key] = (
                [_over_call(call, say) for call in value] if isinstance(value, list) else value
            )
        elif key != "role":
            said[key] = leaves(value, lambda text, key=key: say(f"`{key}`", text))
    return said


def _content(message: Mapping[str, Any], value: Any, say: Say) -> Any:
    if not isinstance(value, str):
        return leaves(value, lambda text: say(TEXT, text))
    found = INLINE.match(value) if message["role"] == "assistant" else None
    if found is None:
        return say(TEXT, value) if value.strip() else value
    group = next(name for name in ("tagged", "square", "open") if found[name] is not None)
    start, end = found.span(group)
    thought, rest = value[start:end], value[found.end() :]
    return "".join(
        [
            value[:start],
            say(THOUGHT, thought) if thought.strip() else thought,
            value[end : found.end()],
            say(TEXT, rest) if rest.strip() else rest,
        ]
    )


def _over_call(call: Any, say: Say) -> Any:
    inner = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping):
        return leaves(call, lambda text: say(CALL, text))
    outer = {
        key: leaves(value, lambda text: say("`id`", text)) if key == "id" else value
        for key, value in call.items()
    }
    return {**outer, "function": leaves(inner, lambda text: say(CALL, text), numbers=True)}


def leaves(value: Any, say: Callable[[str], str], *, numbers: bool = False) -> Any:
    """A value with every text in it, however deep, exchanged; with `numbers` these, too, each for
    say("").
    """
    if isinstance(value, str):
        return say(value) if value.strip() else value
    if isinstance(value, Mapping):
        return {key: leaves(item, say, numbers=numbers) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [leaves(item, say, numbers=numbers) for item in value]
    return say("") if numbers and value is not None else value


def flag(message: Mapping[str, Any], turn: int) -> bool | None:
    """Is the turn trained on? As it says itself; None where it says nothing.

    `weight` is OpenAI's name, `train` and `training` axolotl's, `train_on_turn`, `trainable` and
    `loss` are others', and `masked` (torchtune's) is the reverse. Weights between 0 and 1, and
    flags that contradict each other, are refused.
    """
    for name, why in UNCLEAR.items():
        if message.get(name) is not None:
            what = f"turn {turn} ({message['role']}) has `{name}`, {why}."
            raise UsageError(
                what,
                where="messages",
                fix="Write `train: false` at turns that are not to be trained on.",
            )
    found: dict[str, bool] = {}
    for name in (*WEIGHTS, *FLAGS, "masked"):
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            what = (
                f"turn {turn} ({message['role']}) has `{name}` {value!r}, and a turn counts whole"
                " or not at all."
            )
            fix = (
                "Write 0 or 1; for reliability give the row a `weight` (pairs, labels and rankings"
                " have one)."
            )
            raise UsageError(what, where="messages", fix=fix)
        found[name] = bool(value) != (name == "masked")
    if len(set(found.values())) > 1:
        what = (
            f"turn {turn} ({message['role']}) says that it is trained on and that it is not:"
            f" {', '.join(found)}."
        )
        raise UsageError(what, where="messages", fix="Keep one of them.")
    return next(iter(found.values()), None)


def marked_as_trained(message: Mapping[str, Any]) -> bool:
    """Does the turn ask to be trained on whoever speaks? A `weight` of 1 does not: OpenAI's is of
    the assistant's turns alone.
    """
    return any(message.get(name) for name in FLAGS) or message.get("masked") is False
