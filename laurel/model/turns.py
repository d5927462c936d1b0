"""A turn of a conversation: its texts, its tool calls in one form, and its own training flag."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeGuard

from laurel.core.errors import UsageError
from laurel.core.json_values import is_list, is_object

Replace = Callable[[str, str], str]
"""(what a text is, the text) -> the text in its place."""
TEXT, THOUGHT, CALL = "content", "thought", "tool call"
# the names of fields for thoughts
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
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
    """The message as a template gets it: without flags and empty fields, calls in one form.

    The form is [{"type": "function", "function": {"name", "arguments"}}], arguments as an object.
    OpenAI writes them as JSON text, older files a `function_call`, others no `function` around the
    name: all of it becomes the same.
    """
    left_out = (*WEIGHTS, *FLAGS, "masked", *UNCLEAR)
    shown = {
        key: value
        for key, value in message.items()
        if key not in left_out and value is not None and value != []
    }
    shown.setdefault("content", "")
    calls = parse_json_text(shown.get("tool_calls"))
    if is_object(shown.get("function_call")) and not calls:
        calls = [shown.pop("function_call")]
    if is_sequence(calls):
        shown["tool_calls"] = [_call(call) for call in calls]
    return shown


def is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    """Is this a sequence of values, and no text?"""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _call(call: Any) -> Any:
    """A tool call in the form that `spoken` describes; what is no call stays as it is."""
    if not is_object(call):
        return call
    inner: Any = call.get("function", call)
    if not is_object(inner) or "name" not in inner:
        return dict(call)
    outer = {
        key: value
        for key, value in call.items()
        if key not in ("function", "name", "arguments") and value is not None
    }
    return {
        "type": "function",
        **outer,
        "function": {**inner, "arguments": parse_json_text(inner.get("arguments") or {})},
    }


def parse_json_text(value: Any) -> Any:
    """JSON text of a list or object, parsed; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def as_tools(value: Any) -> list[Any] | None:
    """A row's `tools` as a list of objects, also from JSON text; None where they are none."""
    tools = parse_json_text(value)
    if not is_list(tools) or not tools:
        return None
    return tools if all(is_object(tool) for tool in tools) else None


def replace_texts(message: Mapping[str, Any], replace: Replace) -> dict[str, Any]:
    """The message (see `spoken`) with every text that is not empty replaced.

    What a text is: `content`, `thought`, `tool call` (its name and what it is called with), else
    the field's own name.
    """
    replaced: dict[str, Any] = {"role": message["role"]}
    for key, value in message.items():
        if key == "content":
            replaced[key] = _replace_content(message, value, replace)
        elif key in THOUGHTS:
            replaced[key] = replace_leaves(value, partial(replace, THOUGHT))
        elif key == "tool_calls":
            calls = [_replace_call(call, replace) for call in value] if is_list(value) else value
            replaced[key] = calls
        elif key != "role":
            replaced[key] = replace_leaves(value, partial(replace, f"`{key}`"))
    return replaced


def _replace_content(message: Mapping[str, Any], value: Any, replace: Replace) -> Any:
    """The content with its text replaced, or, behind a thought in it, the two one by one."""
    if not isinstance(value, str):
        return replace_leaves(value, partial(replace, TEXT))
    found = INLINE.match(value) if message["role"] == "assistant" else None
    if found is None:
        return replace(TEXT, value) if value.strip() else value
    group = next(name for name in ("tagged", "square", "open") if found[name] is not None)
    start, end = found.span(group)
    thought = value[start:end]
    rest = value[found.end() :]
    # the thought first: texts are numbered in the order of the calls
    if thought.strip():
        thought = replace(THOUGHT, thought)
    if rest.strip():
        rest = replace(TEXT, rest)
    return value[:start] + thought + value[end : found.end()] + rest


def _replace_call(call: Any, replace: Replace) -> Any:
    """A tool call with its name and arguments replaced, numbers included, and its id."""
    inner = call.get("function") if is_object(call) else None
    if not is_object(inner):
        return replace_leaves(call, partial(replace, CALL))
    outer = dict(call)
    if "id" in outer:
        outer["id"] = replace_leaves(outer["id"], partial(replace, "`id`"))
    return {**outer, "function": replace_leaves(inner, partial(replace, CALL), numbers=True)}


def replace_leaves(value: Any, replace: Callable[[str], str], *, numbers: bool = False) -> Any:
    """A value with every text in it, however deep, replaced.

    numbers: other values but None are replaced, too, each by replace("").
    """
    if isinstance(value, str):
        return replace(value) if value.strip() else value
    if is_object(value):
        return {key: replace_leaves(item, replace, numbers=numbers) for key, item in value.items()}
    if is_sequence(value):
        return [replace_leaves(item, replace, numbers=numbers) for item in value]
    return replace("") if numbers and value is not None else value


def trained_flag(message: Mapping[str, Any], turn: int) -> bool | None:
    """Is the turn trained on, by its own flags? None where it has none.

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
    """Does a flag ask for the turn to be trained on, whatever its role?

    A `weight` of 1 does not: OpenAI's is of the assistant's turns alone.
    """
    return any(message.get(name) for name in FLAGS) or message.get("masked") is False
