"""How the chat template closes a turn, and whether sampling stops there."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from laurel.model.chat import encode_after, ends_of
from laurel.model.render import render, shared_closing, text_around_turn, try_render

TAG = re.compile(r"[<\[{|\uff5c].*\w.*[>\]}|\uff5c]")
QUESTION = {"role": "user", "content": "a"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "function": {"name": "laurelmark0x", "arguments": {"a": "laurelmark1x"}},
        }
    ],
}


def turn_closing(tokenizer: Any) -> tuple[str, str] | None:
    """What the template writes behind an assistant's turn: the last one, and every one.

    The second is the part of the first that stands behind earlier turns, too (an EOS can follow at
    the very end). None where it cannot be found.
    """
    turns = [QUESTION, {"role": "assistant", "content": "b"}]
    last = text_around_turn(tokenizer, turns, 1)
    earlier = text_around_turn(tokenizer, [*turns, QUESTION], 1)
    if last is None:
        return None
    everywhere = shared_closing(tokenizer, earlier[1], last[1]) if earlier is not None else ""
    return last[1], everywhere or last[1]


def tool_call_closing(tokenizer: Any) -> str | None:
    """The same behind a tool call; None where the template shows none."""
    text = try_render(render, tokenizer, [QUESTION, CALL])
    mark = "laurelmark1x"
    return text.rpartition(mark)[2] if text is not None and mark in text else None


def end_token(
    tokenizer: Any, tail: str, known: Collection[int], *, special: bool = False
) -> int | None:
    """The token of a closing at which sampling should stop besides the `known` ones.

    It is the last control token. None where a known one is in the closing, or where it holds plain
    text alone: a token of plain text can stand anywhere. special: only a token that the tokenizer
    calls special.
    """
    ids = [i for i in encode_after(tokenizer, tail.strip()) if i != tokenizer.unk_token_id]
    if any(i in known for i in ids):
        return None
    of_control = set(tokenizer.all_special_ids)
    if not special:
        of_control |= set(getattr(tokenizer, "added_tokens_decoder", {}))
        of_control |= {i for i in ids if TAG.fullmatch(tokenizer.decode([i]).strip())}
    return next((i for i in reversed(ids) if i in of_control), None)


def learn_ends(model: Any, tokenizer: Any) -> list[str]:
    """Add the token that closes the template's turns to the model's end tokens; notes for the user.

    They are in the generation configuration, which is saved with the model. A model that is trained
    to close its turns with a token at which sampling does not stop goes on to its limit. A closing
    that is plain text, or nothing, cannot be an end token: then a note warns.
    """
    generation = getattr(model, "generation_config", None)
    known = ends_of(tokenizer, generation)
    tails = turn_closing(tokenizer)
    after_call = tool_call_closing(tokenizer)
    # (closing, whether only a special token of it counts)
    candidates = list[tuple[str, bool]]()
    if tails is not None:
        candidates.append((tails[1], False))
    if after_call is not None:
        candidates.append((after_call, True))
    notes = list[str]()
    new = set[int]()
    for tail, special in candidates:
        found = end_token(tokenizer, tail, known | new, special=special)
        if found is not None:
            new.add(found)
    if tails is not None:
        closing_ids = encode_after(tokenizer, tails[0].strip())
        if not (known | new).intersection(closing_ids):
            notes.append(missing_end_warning(tails[0]))
    if new:
        names = ", ".join(f"`{tokenizer.decode([i])}`" for i in sorted(new))
        notes.append(
            f"the chat template closes turns with {names}: an end token from now on, in sampling"
            " and in what is saved"
        )
    if generation is not None and known | new:
        every = sorted(known | new)
        generation.eos_token_id = every if len(every) > 1 else every[0]
    return notes


def missing_end_warning(tail: str) -> str:
    """The warning about a closing at which sampling cannot stop."""
    how = (
        f"closes the assistant's turns with {tail!r}, which is plain text"
        if tail.strip()
        else "does not close the assistant's turns"
    )
    remedy = f"--stop {tail.strip()!r} ends samples there, a" if tail.strip() else "A"
    return (
        f"warning: the chat template {how}: no end token, so a model trained on it goes on to its"
        f" limit. {remedy} template that closes with an end token is better (--chat_template FILE)"
    )
