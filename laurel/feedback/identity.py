"""Responses that give away who wrote them: found before they are served, held until a coordinator has decided."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from laurel.core.errors import UsageError
from laurel.feedback.audit import record
from laurel.feedback.store import Store
from laurel.feedback.tables import Item, Response

HELD = "held"
"""The kind of an item that waits for a coordinator: nobody is given it, and no export takes it."""
MAKERS = "openai|anthropic|google|deepmind|meta|microsoft|mistral(?: ai)?|cohere|alibaba|deepseek|xai|nvidia|databricks|hugging ?face"
NAMES = (
    "chat ?gpt|gpt-?[234](?:[.-]?[0-9a-z]+)*|claude|gemini|bard|bing chat|copilot|llama|alpaca|vicuna|mistral|mixtral|palm|qwen|deepseek"
    "|grok|falcon|dolly|koala|guanaco|openai|anthropic|open ?assistant"
)
PATTERNS = (
    re.compile(r"\bas an? (?:ai|artificial intelligence|(?:large )?language)(?:[ -](?:language )?(?:model|assistant|system|chatbot))?\b"),
    re.compile(rf"\b(?:developed|trained|created|made|built|designed|provided) by (?:{MAKERS})\b"),
    re.compile(rf"\b(?:{NAMES})\b"),
)
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
LEAST_NAME = 4
"""A model's name shorter than this is a word like others."""


@dataclass(frozen=True)
class Flag:
    """An item with words that tell who wrote a response: place and words of each. `state`: held, served, left out, or seen already."""

    item: str
    prompt: str
    words: tuple[tuple[int, str], ...]
    state: str


def telling_words(text: str, models: Iterable[str] = ()) -> list[str]:
    """The words of a text that name its model, its maker, or say that it is a model. `models`: names used in the batch.

    Compatibility forms and invisible characters do not hide them.
    """
    plain = UNSEEN.sub("", unicodedata.normalize("NFKC", text)).lower().replace("\u2019", "'")
    own = [re.compile(rf"(?<!\w){re.escape(name.lower())}(?!\w)") for name in sorted(set(models)) if len(name) >= LEAST_NAME]
    found = [(match.start(), match[0]) for pattern in (*PATTERNS, *own) for match in pattern.finditer(plain)]
    return list(dict.fromkeys(word for _, word in sorted(found)))


def flagged(session: Session, batch_id: int) -> list[Flag]:
    """Every item of the batch that has such words in any of its responses, each of which is read in whole."""
    rows = session.execute(
        select(Item.id, Item.prompt, Item.kind, Item.source, Item.live, Response.place, Response.text, Response.model)
        .join(Response, Response.item_id == Item.id)
        .where(Item.batch_id == batch_id)
        .order_by(Item.place, Response.place)
    ).all()
    models = {row.model for row in rows if row.model}
    words: dict[str, list[tuple[int, str]]] = {}
    items = {row.id: row for row in rows}
    for row in rows:
        words.setdefault(row.id, []).extend((row.place, word) for word in telling_words(row.text, models))
    return [Flag(name, _asked(items[name].prompt), tuple(found), _state(items[name])) for name, found in words.items() if found]


def _asked(prompt: list[dict[str, str]]) -> str:
    return str(prompt[-1].get("content", "")) if prompt else ""


def _state(item: Item) -> str:
    decided = (item.source or {}).get("identity", "")
    return decided if decided in ("served", "left out") else HELD if item.kind == HELD else "seen" if item.live else "unread"


def hold(session: Session, batch_id: int) -> int:
    """Hold every flagged item that nobody has decided about and nobody has seen; how many. Call it before a batch serves new items."""
    found = [flag.item for flag in flagged(session, batch_id) if flag.state == "unread"]
    for name in found:
        item = session.get_one(Item, name)
        item.source, item.kind = {**item.source, "held_kind": item.kind}, HELD
    return len(found)


def decide(store: Store, item_id: str, serve: bool, *, actor: str) -> None:
    """A coordinator lets a held item be served as it is, or leaves it out for good. Either can be changed until it was served."""
    with store.write() as session:
        item = session.get(Item, item_id)
        if item is None:
            raise UsageError(f"there is no item `{item_id}`.", where="item", fix="Load the list again.")
        kind = item.source.get("held_kind", "normal") if item.kind == HELD else item.kind
        said = "served" if serve else "left out"
        rest = {name: value for name, value in item.source.items() if name != "held_kind"}
        item.source = {**rest, "identity": said, **({} if serve else {"held_kind": kind})}
        item.kind = kind if serve else HELD
        record(session, actor, "identity words", item_id, store.now(), decision=said)
