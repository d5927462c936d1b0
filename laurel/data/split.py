"""Which rows are held out, which are duplicates, and in which order training draws them.

Pure functions of seeds.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from laurel.core.errors import UsageError
from laurel.data.source import Row, content_hash


@dataclass(frozen=True, slots=True)
class Duplicates:
    """How often rows repeat: `identical` rows equal an earlier one in every column, `repeated` ones
    share an earlier one's prompt.

    `places` pairs up to 20 of the repeated rows with the first row that has their prompt: (where,
    first where).
    """

    rows: int
    identical: int
    repeated: int
    places: tuple[tuple[str, str], ...]


def prompt_key(row: Row) -> str:
    """SHA-256 of what the row asks, alike for prompts that differ in case, white space or Unicode
    spelling only.

    What it asks is the prompt (text or messages); of `messages` everything before the assistant's
    last turn; else the text, else all columns.
    """
    columns = row.columns
    asked = columns.get("prompt", columns.get("question"))
    if asked is None and isinstance(columns.get("messages"), list):
        turns = columns["messages"]
        last = max(
            (i for i, turn in enumerate(turns) if turn.get("role") == "assistant"),
            default=len(turns),
        )
        asked = turns[:last] or turns
    asked = columns.get("text", columns) if asked is None else asked
    text = (
        asked
        if isinstance(asked, str)
        else json.dumps(asked, sort_keys=True, ensure_ascii=False, default=str)
    )
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode("utf-8", "backslashreplace")).hexdigest()


def split_rows(
    rows: Sequence[Row], held_out: int, seed: int = 0, *, most: int | None = None
) -> tuple[list[Row], list[Row]]:
    """(train, held): `held_out` rows set aside so that no prompt stands in both parts.

    Every row is in exactly one part.

    Prompts are ranked by a hash of (seed, prompt), so the choice does not depend on the order of
    the rows, and both parts keep that order. All rows of a prompt go together: where they do not
    fit, the next prompt is tried, so that the held part can be smaller than asked, never larger.
    Nothing left to train on, or nothing that fits, is a UsageError. most: what the caller holds out
    at most, so that no advice asks for more.
    """
    if held_out < 0 or held_out >= len(rows):
        fix = "Hold out fewer, or generate more." if held_out > 0 else ""
        raise UsageError(
            f"cannot hold out {held_out} of {len(rows)} rows.", where="eval_size", fix=fix
        )
    keys = [prompt_key(row) for row in rows]
    count: dict[str, int] = {}
    for key in keys:
        count[key] = count.get(key, 0) + 1
    room, chosen = held_out, set()
    for key in sorted(count, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest()):
        if count[key] <= room:
            chosen.add(key)
            room -= count[key]
        if room == 0:
            break
    if held_out and not chosen:
        fewest, most = min(count.values()), len(rows) - 1 if most is None else most
        fix = (
            f"Hold out {fewest} or more."
            if fewest <= most
            else "Name other rows with eval_dataset, or hold out none: eval_size 0."
        )
        raise UsageError(
            f"no prompt has {held_out} rows or fewer, so none can be held out.",
            where="eval_size",
            fix=fix,
        )
    train = [row for row, key in zip(rows, keys, strict=True) if key not in chosen]
    evaluation = [row for row, key in zip(rows, keys, strict=True) if key in chosen]
    return train, evaluation


def duplicates(rows: Sequence[Row]) -> Duplicates:
    """Count the rows that repeat an earlier row or its prompt. Nothing is removed."""
    first: dict[str, str] = {}
    seen: set[str] = set()
    identical, places = 0, []
    for row in rows:
        content, key = content_hash(row.columns), prompt_key(row)
        identical += content in seen
        seen.add(content)
        if key in first:
            places.append((row.where, first[key]))
        first.setdefault(key, row.where)
    return Duplicates(len(rows), identical, len(places), tuple(places[:20]))
