"""A row of data as ids: each of the answers it holds, or its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from laurel.data.source import Row
from laurel.model.chat import Supervised, encode_after, encode_prompt, encode_supervised


def split_answers(columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The row's columns once for each answer it holds: chosen and rejected of a pair, ranked
    responses, else the row itself.
    """
    asked = {name: columns[name] for name in ("prompt", "tools") if name in columns}
    if {"prompt", "chosen", "rejected"} <= columns.keys():
        return [{**asked, "completion": columns[side]} for side in ("chosen", "rejected")]
    if {"prompt", "responses", "ranks"} <= columns.keys():
        return [{**asked, "completion": response} for response in columns["responses"]]
    return [columns]


def encode_answers(
    policy: Any, row: Row, *, train_on: str | None, max_length: int | None
) -> list[Supervised]:
    """Every answer of a row as ids with the mask of its targets. Steps have their targets at their
    ends.
    """
    if {"prompt", "completions", "labels"} <= row.columns.keys():
        return [encode_steps(policy.tokenizer, row.columns, max_length=max_length)]
    return [
        encode_supervised(policy.tokenizer, one, train_on=train_on, max_length=max_length)
        for one in split_answers(row.columns)
    ]


def encode_steps(
    tokenizer: Any, columns: Mapping[str, Any], *, max_length: int | None
) -> Supervised:
    """Prompt and steps, a line each, as ids; the last token of every step is a target. Steps beyond
    max_length are left out.
    """
    ids, text, cut = (
        encode_prompt(tokenizer, columns["prompt"], tools=columns.get("tools")),
        "",
        False,
    )
    mask = [False] * len(ids)
    for step in columns["completions"]:
        more = encode_after(tokenizer, "\n" + step, text or "a")
        cut = max_length is not None and len(ids) + len(more) > max_length
        if not more or cut:
            break
        ids, mask, text = ids + more, [*mask, *[False] * (len(more) - 1), True], f"{text}\n{step}"
    return Supervised(ids, tuple(mask), text, (), cut)
