"""Responses that give away which model wrote them.

They are found before they are served and held until a coordinator has decided.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from laurel.core.errors import UsageError
from laurel_feedback.store.audit import record
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Item, Response

HELD = "held"
"""The kind of an item that waits for a coordinator: nobody is given it, and no export takes it."""
MAKERS = (
    "openai|anthropic|google|deepmind|meta|microsoft|mistral(?:"
    " ai)?|cohere|alibaba|deepseek|xai|nvidia|databricks|hugging ?face"
)
NAMES = (
    "chat ?gpt|gpt-?[234](?:[.-]?[0-9a-z]+)*|openai|anthropic|deepmind|deepseek|qwen|chatglm"
    "|mixtral|vicuna|guanaco|bing chat|open ?assistant"
)
WORDS = (
    "Claude|Gemini|Bard|Copilot|Llama|LLaMA|Alpaca|Mistral|PaLM|Grok|Falcon|Dolly|Koala|Cohere|Bing"
)
"""Names that are words too: found only as they are written."""
PATTERNS = tuple(
    re.compile(text)
    for text in (
        (
            r"(?i:\bas an? (?:ai|artificial intelligence|(?:large )?language)(?:[ -](?:language"
            r" )?(?:model|assistant|system|chatbot))?\b)"
        ),
        rf"(?i:\b(?:developed|trained|created|made|built|designed|provided) by (?:{MAKERS})\b)",
        rf"(?i:\b(?:{NAMES})\b)",
        rf"\b(?:{WORDS})\b",
    )
)
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
LEAST_NAME = 4
"""A model's name shorter than this is a word like others."""


@dataclass(frozen=True)
class FlaggedItem:
    """An item with words that tell who wrote a response: place and words of each.

    `state`: held, served, left out, or seen already.
    """

    item: str
    prompt: str
    words: tuple[tuple[int, str], ...]
    state: str


def telling_words(text: str, models: Iterable[str] = ()) -> list[str]:
    """The words of a text that name its model, its maker, or say that it is a model. `models`:
    names used in the batch.

    Compatibility forms and invisible characters do not hide them.
    """
    plain = UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    found = [
        (match.start(), match[0].lower())
        for pattern in (*PATTERNS, *_own(frozenset(models)))
        for match in pattern.finditer(plain)
    ]
    return list(dict.fromkeys(word for _, word in sorted(found)))


@lru_cache(maxsize=8)
def _own(models: frozenset[str]) -> tuple[re.Pattern[str], ...]:
    """A pattern for the names of the batch's own models.

    The longest come first, so that all of a name is shown.
    """
    names = sorted(
        (re.escape(name) for name in models if len(name) >= LEAST_NAME),
        key=lambda name: (-len(name), name),
    )
    return (re.compile(rf"(?i:(?<!\w)(?:{'|'.join(names)})(?!\w))"),) if names else ()


def flagged_items(session: Session, batch_id: int) -> list[FlaggedItem]:
    """Every item of the batch with such words in any of its responses, which are read in whole."""
    rows = session.execute(
        select(
            Item.id,
            Item.prompt,
            Item.kind,
            Item.source,
            Item.live,
            Response.place,
            Response.text,
            Response.model,
        )
        .join(Response, Response.item_id == Item.id)
        .where(Item.batch_id == batch_id)
        .order_by(Item.place, Response.place)
    ).all()
    models = frozenset(row.model for row in rows if row.model)
    words: dict[str, list[tuple[int, str]]] = {}
    items = {row.id: row for row in rows}
    for row in rows:
        words.setdefault(row.id, []).extend(
            (row.place, word) for word in telling_words(row.text, models)
        )
    return [
        FlaggedItem(name, _asked(items[name].prompt), tuple(found), _state(items[name]))
        for name, found in words.items()
        if found
    ]


def _asked(prompt: list[dict[str, str]]) -> str:
    return str(prompt[-1].get("content", "")) if prompt else ""


def _state(item: Any) -> str:
    """What is decided about an item, of which kind, source and live are read."""
    decided = (item.source or {}).get("identity", "")
    return (
        decided
        if decided in ("served", "left out")
        else HELD
        if item.kind == HELD
        else "seen"
        if item.live
        else "unread"
    )


def hold_items(session: Session, flags: Iterable[FlaggedItem]) -> int:
    """Hold every item of these that nobody has decided about and nobody has seen; how many."""
    count = 0
    for flag in flags:
        item = session.get_one(Item, flag.item)
        if _state(item) == "unread":
            item.source, item.kind = {**item.source, "held_kind": item.kind}, HELD
            count += 1
    return count


def read_and_hold(store: Store, batch_id: int) -> int:
    """Read every response of a batch and hold what tells; how many.

    Reading takes no lock. For new items of a batch that is open.
    """
    with store.read() as session:
        found = flagged_items(session, batch_id)
    with store.write() as session:
        return hold_items(session, found)


def decide_held_item(store: Store, item_id: str, serve: bool, *, actor: str) -> None:
    """A coordinator lets a held item be served as it is, or leaves it out for good.

    Either can be changed until it was served.
    """
    with store.write() as session:
        item = session.get(Item, item_id)
        if item is None:
            raise UsageError(
                f"there is no item `{item_id}`.", where="item", fix="Load the list again."
            )
        kind = item.source.get("held_kind", "normal") if item.kind == HELD else item.kind
        outcome = "served" if serve else "left out"
        rest = {name: value for name, value in item.source.items() if name != "held_kind"}
        item.source = {**rest, "identity": outcome, **({} if serve else {"held_kind": kind})}
        item.kind = kind if serve else HELD
        record(session, actor, "identity words", item_id, store.now(), decision=outcome)
