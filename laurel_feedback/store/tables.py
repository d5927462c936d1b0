"""The tables.

Votes name responses by their place in the item, never by the slot they were shown in; times are
seconds since 1970, UTC.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, MetaData, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


WANTS = text("live < target")
"""Of items that still want answers: only they are in the index by which they are handed out."""


class Base(DeclarativeBase):
    """Every constraint has a name, so that SQLite's tables can be altered too."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        list[Any]: JSON,
        list[int]: JSON,
        list[str]: JSON,
    }


def count_words(context: Any) -> int:
    """How many words the prompt or the text of a new row has: what reading it takes."""
    row = context.get_current_parameters()
    texts = (
        row["text"]
        if "text" in row
        else " ".join(str(message.get("content", "")) for message in row["prompt"])
        + " "
        + row.get("input", "")
    )
    return len(texts.split())


class Guideline(Base):
    """What annotators are told. A new text is a new version; votes remember the one that held."""

    __tablename__ = "guideline"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    made_at: Mapped[float]


class Batch(Base):
    """Items that are rated together under one form, one price and one number of votes."""

    __tablename__ = "batch"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(default="draft")
    """draft, open or closed."""
    settings: Mapped[dict[str, Any]]
    """See `laurel_feedback.store.batch_settings.BatchSettings`."""
    made_at: Mapped[float]
    items: Mapped[list[Item]] = relationship(back_populates="batch", order_by="Item.place")


class Item(Base):
    """A prompt with its K responses.

    `live` counts leases that hold and votes that were given; it cannot exceed `target`.
    """

    __tablename__ = "item"
    id: Mapped[str] = mapped_column(primary_key=True)
    batch_id: Mapped[int] = mapped_column(ForeignKey("batch.id"))
    place: Mapped[int]
    kind: Mapped[str] = mapped_column(default="normal")
    """The kind of an item: normal, gold, attention, check, training, product or held.

    check is the test after the guidelines; of held see `laurel_feedback.store.model_giveaways`.
    Only normal and product ones are exported.
    """
    prompt: Mapped[list[Any]]
    """Messages: [{"role": ..., "content": ...}, ...]."""
    input: Mapped[str] = mapped_column(default="")
    harm: Mapped[list[str]] = mapped_column(default=list)
    """Names of kinds of harm, such as "violence"."""
    harmful: Mapped[bool] = mapped_column(default=False)
    """Is there one?"""
    gold: Mapped[int | None] = mapped_column(default=None)
    """The place of the response that is objectively right.

    Of gold, attention, check and training items.
    """
    explanation: Mapped[str] = mapped_column(default="")
    source: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Where it came from: file, row, ids, model; exported with every vote, never shown."""
    content_hash: Mapped[str] = mapped_column(index=True)
    words: Mapped[int] = mapped_column(default=count_words)
    target: Mapped[int]
    live: Mapped[int] = mapped_column(default=0)
    batch: Mapped[Batch] = relationship(back_populates="items")
    responses: Mapped[list[Response]] = relationship(
        back_populates="item", order_by="Response.place"
    )
    __table_args__ = (
        CheckConstraint("live >= 0 AND live <= target", name="target"),
        UniqueConstraint("batch_id", "place"),
        Index(None, "batch_id", "kind", "live", "id", sqlite_where=WANTS, postgresql_where=WANTS),
    )


class Response(Base):
    """One answer of an item, a candidate with an id of its own."""

    __tablename__ = "response"
    id: Mapped[str] = mapped_column(primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("item.id"))
    place: Mapped[int]
    text: Mapped[str]
    words: Mapped[int] = mapped_column(default=count_words)
    model: Mapped[str] = mapped_column(default="")
    source: Mapped[dict[str, Any]] = mapped_column(default=dict)
    item: Mapped[Item] = relationship(back_populates="responses")
    __table_args__ = (UniqueConstraint("item_id", "place"),)


class Plan(Base):
    """An item planned for one annotator.

    An annotator with plans in a batch gets those items; one without gets items that nobody has a
    plan for.
    """

    __tablename__ = "plan"
    item_id: Mapped[str] = mapped_column(ForeignKey("item.id"), primary_key=True)
    annotator_id: Mapped[int] = mapped_column(
        ForeignKey("annotator.id"), primary_key=True, index=True
    )


class Annotator(Base):
    """Someone who rates, known by a pseudonym.

    `person` is the operator's own note of who that is; erasure empties it.
    """

    __tablename__ = "annotator"
    id: Mapped[int] = mapped_column(primary_key=True)
    pseudonym: Mapped[str] = mapped_column(unique=True)
    person: Mapped[str] = mapped_column(default="")
    state: Mapped[str] = mapped_column(default="invited")
    """invited, active, withdrawn, erased or failed (the guidelines' test)."""
    consent: Mapped[str] = mapped_column(default="")
    """The version of the consent text that was signed.

    Its first word, keep or delete, says what withdrawal does to votes.
    """
    consent_at: Mapped[float | None] = mapped_column(default=None)
    checks: Mapped[int] = mapped_column(default=0)
    """Attempts at the guidelines' test so far; at most two."""
    qualified: Mapped[bool] = mapped_column(default=False)
    opted_out: Mapped[list[str]] = mapped_column(default=list)
    """Kinds of harm that are not shown, at no loss of pay."""
    code: Mapped[str] = mapped_column(default="", server_default="", index=True)
    """The digest of the code by which they come back in; "" where there is none."""
    made_at: Mapped[float]


class Invite(Base):
    """A link that works once. Only its SHA-256 is stored."""

    __tablename__ = "invite"
    digest: Mapped[str] = mapped_column(primary_key=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"))
    expires: Mapped[float]
    used_at: Mapped[float | None] = mapped_column(default=None)


class Admin(Base):
    """A coordinator. Argon2 keeps the password."""

    __tablename__ = "admin"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    password: Mapped[str]


class Login(Base):
    """A browser's session: the digest of its cookie, its account, its forms' token."""

    __tablename__ = "login"
    digest: Mapped[str] = mapped_column(primary_key=True)
    annotator_id: Mapped[int | None] = mapped_column(ForeignKey("annotator.id"), default=None)
    admin_id: Mapped[int | None] = mapped_column(ForeignKey("admin.id"), default=None)
    csrf: Mapped[str]
    made_at: Mapped[float]
    expires: Mapped[float]


class Assignment(Base):
    """An item given to an annotator: a lease until it is answered, skipped or has expired.

    `order` is the places as shown, slot by slot.
    """

    __tablename__ = "assignment"
    id: Mapped[str] = mapped_column(primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("item.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"))
    batch_id: Mapped[int] = mapped_column(ForeignKey("batch.id"))
    repeat: Mapped[int] = mapped_column(default=0)
    """0, or 1 for the same item once more with the slots the other way round."""
    seq: Mapped[int]
    """Which of this annotator's samples of the batch: 1, 2, ..."""
    state: Mapped[str] = mapped_column(default="leased")
    """leased, submitted, skipped, expired or withdrawn."""
    lease_until: Mapped[float]
    order: Mapped[list[int]]
    skip_reason: Mapped[str] = mapped_column(default="")
    made_at: Mapped[float]
    item: Mapped[Item] = relationship()
    votes: Mapped[list[Vote]] = relationship(back_populates="assignment", order_by="Vote.revision")
    __table_args__ = (
        UniqueConstraint("item_id", "annotator_id", "repeat"),
        UniqueConstraint("annotator_id", "batch_id", "seq"),
        Index(None, "state", "lease_until"),
    )


class Vote(Base):
    """One answer; the one with the highest revision of its assignment holds."""

    __tablename__ = "vote"
    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"))
    revision: Mapped[int]
    key: Mapped[str] = mapped_column(unique=True)
    """Made by the client: the same key again is the same answer, not a second one."""
    rating: Mapped[int | None] = mapped_column(default=None)
    """1: the first response (place 0) is better, 2 slightly, 3 the second slightly, 4 the second.

    0 a tie. Of one answer: 1 up, 4 down.
    """
    ranking: Mapped[list[int] | None] = mapped_column(default=None)
    """Rank of each response by place, 1 the best; equal ranks are ties."""
    scales: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """{"helpfulness": [1..5 by place], "presentation": [1..3 by place]}."""
    rationale: Mapped[str] = mapped_column(default="")
    active_ms: Mapped[int] = mapped_column(default=0)
    """Time at work on it: gaps between signs of life, each capped by what reading the item takes.
    """
    pasted: Mapped[float | None] = mapped_column(default=None)
    """Share of the rationale's characters that came by pasting; None without a rationale."""
    guideline_id: Mapped[int | None] = mapped_column(ForeignKey("guideline.id"), default=None)
    made_at: Mapped[float]
    assignment: Mapped[Assignment] = relationship(back_populates="votes")
    __table_args__ = (UniqueConstraint("assignment_id", "revision"),)


class Draft(Base):
    """What an annotator has filled in and not submitted."""

    __tablename__ = "draft"
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"), primary_key=True)
    form: Mapped[dict[str, Any]]
    made_at: Mapped[float]


class Event(Base):
    """A sign of life or of pasting: sizes and times, never text."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"), index=True)
    kind: Mapped[str]
    size: Mapped[int] = mapped_column(default=0)
    made_at: Mapped[float]


class Demographic(Base):
    """An answer to an optional question about the annotator.

    Apart from everything else, emptied by erasure and after its retention.
    """

    __tablename__ = "demographic"
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"), primary_key=True)
    question: Mapped[str] = mapped_column(primary_key=True)
    answer: Mapped[str]
    keep_until: Mapped[float]


class Ruling(Base):
    """A coordinator's decision about an item: its answer and why.

    And whether annotators see the case after their own answer.
    """

    __tablename__ = "ruling"
    item_id: Mapped[str] = mapped_column(ForeignKey("item.id"), primary_key=True)
    rating: Mapped[int]
    reason: Mapped[str] = mapped_column(default="")
    pinned: Mapped[bool] = mapped_column(default=False)
    admin_id: Mapped[int | None] = mapped_column(ForeignKey("admin.id"), default=None)
    made_at: Mapped[float]


class Dispute(Base):
    """An annotator's objection to a gold item's answer; the coordinator closes it."""

    __tablename__ = "dispute"
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"), primary_key=True)
    text: Mapped[str]
    state: Mapped[str] = mapped_column(default="open")
    made_at: Mapped[float]


class Verdict(Base):
    """A model's judgement of an item, as shown and as it answered.

    status: a, b, tie, inconsistent, invalid or error.
    """

    __tablename__ = "verdict"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("item.id"), index=True)
    judge: Mapped[str]
    order: Mapped[list[int]]
    status: Mapped[str]
    raw: Mapped[str] = mapped_column(default="")


class ApiKey(Base):
    """An application that asks its users which response they prefer.

    Only the key's SHA-256 is stored.
    """

    __tablename__ = "api_key"
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    revoked: Mapped[bool] = mapped_column(default=False)
    made_at: Mapped[float]


class Attempt(Base):
    """A counter of a rate limit, shared by all processes.

    Tries of a key (an address, a session) in the window that began then.
    """

    __tablename__ = "attempt"
    key: Mapped[str] = mapped_column(primary_key=True)
    began: Mapped[float]
    count: Mapped[int]


class Release(Base):
    """An export and its annotators, so that a withdrawal can name the files with their votes."""

    __tablename__ = "release"
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str]
    kind: Mapped[str]
    path: Mapped[str]
    pseudonyms: Mapped[list[str]]
    made_at: Mapped[float]


class Audit(Base):
    """Who did what to which object; each row's hash covers the row before."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]]
    made_at: Mapped[float]
    previous: Mapped[str]
    hash: Mapped[str]
