"""The first tables, as they were: later versions change them by name."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

FROZEN = sa.MetaData()

sa.Table(
    "admin",
    FROZEN,
    sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column("name", sa.String(), nullable=False),
    sa.Column("password", sa.String(), nullable=False),
    sa.UniqueConstraint("name", name="uq_admin_name"),
)
sa.Table(
    "annotator",
    FROZEN,
    sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column("pseudonym", sa.String(), nullable=False),
    sa.Column("person", sa.String(), nullable=False),
    sa.Column("state", sa.String(), nullable=False),
    sa.Column("consent", sa.String(), nullable=False),
    sa.Column("consent_at", sa.Double()),
    sa.Column("checks", sa.Integer(), nullable=False),
    sa.Column("qualified", sa.Boolean(), nullable=False),
    sa.Column("opted_out", sa.JSON(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
    sa.UniqueConstraint("pseudonym", name="uq_annotator_pseudonym"),
)
sa.Table(
    "api_key",
    FROZEN,
    sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column("digest", sa.String(), nullable=False),
    sa.Column("name", sa.String(), nullable=False),
    sa.Column("revoked", sa.Boolean(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
    sa.UniqueConstraint("digest", name="uq_api_key_digest"),
)
sa.Table(
    "attempt",
    FROZEN,
    sa.Column("key", sa.String(), primary_key=True),
    sa.Column("began", sa.Double(), nullable=False),
    sa.Column("count", sa.Integer(), nullable=False),
)
sa.Table(
    "audit",
    FROZEN,
    sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column("actor", sa.String(), nullable=False),
    sa.Column("action", sa.String(), nullable=False),
    sa.Column("subject", sa.String(), nullable=False),
    sa.Column("detail", sa.JSON(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
    sa.Column("previous", sa.String(), nullable=False),
    sa.Column("hash", sa.String(), nullable=False),
)
sa.Table(
    "batch",
    FROZEN,
    sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column("name", sa.String(), nullable=False),
    sa.Column("state", sa.String(), nullable=False),
    sa.Column("settings", sa.JSON(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
    sa.UniqueConstraint("name", name="uq_batch_name"),
)
sa.Table(
    "guideline",
    FROZEN,
    sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column("text", sa.String(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
)
sa.Table(
    "release",
    FROZEN,
    sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column("digest", sa.String(), nullable=False),
    sa.Column("kind", sa.String(), nullable=False),
    sa.Column("path", sa.String(), nullable=False),
    sa.Column("pseudonyms", sa.JSON(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
)
sa.Table(
    "demographic",
    FROZEN,
    sa.Column(
        "annotator_id",
        sa.Integer(),
        sa.ForeignKey("annotator.id", name="fk_demographic_annotator_id"),
        primary_key=True,
    ),
    sa.Column("question", sa.String(), primary_key=True),
    sa.Column("answer", sa.String(), nullable=False),
    sa.Column("keep_until", sa.Double(), nullable=False),
)
sa.Table(
    "invite",
    FROZEN,
    sa.Column("digest", sa.String(), primary_key=True),
    sa.Column(
        "annotator_id",
        sa.Integer(),
        sa.ForeignKey("annotator.id", name="fk_invite_annotator_id"),
        nullable=False,
    ),
    sa.Column("expires", sa.Double(), nullable=False),
    sa.Column("used_at", sa.Double()),
)
sa.Table(
    "item",
    FROZEN,
    sa.Column("id", sa.String(), primary_key=True),
    sa.Column(
        "batch_id", sa.Integer(), sa.ForeignKey("batch.id", name="fk_item_batch_id"), nullable=False
    ),
    sa.Column("place", sa.Integer(), nullable=False),
    sa.Column("kind", sa.String(), nullable=False),
    sa.Column("prompt", sa.JSON(), nullable=False),
    sa.Column("input", sa.String(), nullable=False),
    sa.Column("harm", sa.JSON(), nullable=False),
    sa.Column("harmful", sa.Boolean(), nullable=False),
    sa.Column("gold", sa.Integer()),
    sa.Column("explanation", sa.String(), nullable=False),
    sa.Column("source", sa.JSON(), nullable=False),
    sa.Column("content_hash", sa.String(), nullable=False),
    sa.Column("words", sa.Integer(), nullable=False),
    sa.Column("target", sa.Integer(), nullable=False),
    sa.Column("live", sa.Integer(), nullable=False),
    sa.UniqueConstraint("batch_id", "place", name="uq_item_batch_id_place"),
    sa.CheckConstraint("live >= 0 AND live <= target", name="ck_item_target"),
    sa.Index("ix_item_content_hash", "content_hash"),
    sa.Index("ix_item_batch_id_kind_live_id", "batch_id", "kind", "live", "id"),
)
sa.Table(
    "login",
    FROZEN,
    sa.Column("digest", sa.String(), primary_key=True),
    sa.Column(
        "annotator_id", sa.Integer(), sa.ForeignKey("annotator.id", name="fk_login_annotator_id")
    ),
    sa.Column("admin_id", sa.Integer(), sa.ForeignKey("admin.id", name="fk_login_admin_id")),
    sa.Column("csrf", sa.String(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
    sa.Column("expires", sa.Double(), nullable=False),
)
sa.Table(
    "assignment",
    FROZEN,
    sa.Column("id", sa.String(), primary_key=True),
    sa.Column(
        "item_id",
        sa.String(),
        sa.ForeignKey("item.id", name="fk_assignment_item_id"),
        nullable=False,
    ),
    sa.Column(
        "annotator_id",
        sa.Integer(),
        sa.ForeignKey("annotator.id", name="fk_assignment_annotator_id"),
        nullable=False,
    ),
    sa.Column(
        "batch_id",
        sa.Integer(),
        sa.ForeignKey("batch.id", name="fk_assignment_batch_id"),
        nullable=False,
    ),
    sa.Column("repeat", sa.Integer(), nullable=False),
    sa.Column("seq", sa.Integer(), nullable=False),
    sa.Column("state", sa.String(), nullable=False),
    sa.Column("lease_until", sa.Double(), nullable=False),
    sa.Column("order", sa.JSON(), nullable=False),
    sa.Column("skip_reason", sa.String(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
    sa.UniqueConstraint(
        "item_id", "annotator_id", "repeat", name="uq_assignment_item_id_annotator_id_repeat"
    ),
    sa.UniqueConstraint(
        "annotator_id", "batch_id", "seq", name="uq_assignment_annotator_id_batch_id_seq"
    ),
    sa.Index("ix_assignment_state_lease_until", "state", "lease_until"),
)
sa.Table(
    "plan",
    FROZEN,
    sa.Column(
        "item_id", sa.String(), sa.ForeignKey("item.id", name="fk_plan_item_id"), primary_key=True
    ),
    sa.Column(
        "annotator_id",
        sa.Integer(),
        sa.ForeignKey("annotator.id", name="fk_plan_annotator_id"),
        primary_key=True,
    ),
    sa.Index("ix_plan_annotator_id", "annotator_id"),
)
sa.Table(
    "response",
    FROZEN,
    sa.Column("id", sa.String(), primary_key=True),
    sa.Column(
        "item_id", sa.String(), sa.ForeignKey("item.id", name="fk_response_item_id"), nullable=False
    ),
    sa.Column("place", sa.Integer(), nullable=False),
    sa.Column("text", sa.String(), nullable=False),
    sa.Column("words", sa.Integer(), nullable=False),
    sa.Column("model", sa.String(), nullable=False),
    sa.Column("source", sa.JSON(), nullable=False),
    sa.UniqueConstraint("item_id", "place", name="uq_response_item_id_place"),
)
sa.Table(
    "ruling",
    FROZEN,
    sa.Column(
        "item_id", sa.String(), sa.ForeignKey("item.id", name="fk_ruling_item_id"), primary_key=True
    ),
    sa.Column("rating", sa.Integer(), nullable=False),
    sa.Column("reason", sa.String(), nullable=False),
    sa.Column("pinned", sa.Boolean(), nullable=False),
    sa.Column("admin_id", sa.Integer(), sa.ForeignKey("admin.id", name="fk_ruling_admin_id")),
    sa.Column("made_at", sa.Double(), nullable=False),
)
sa.Table(
    "verdict",
    FROZEN,
    sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column(
        "item_id", sa.String(), sa.ForeignKey("item.id", name="fk_verdict_item_id"), nullable=False
    ),
    sa.Column("judge", sa.String(), nullable=False),
    sa.Column("order", sa.JSON(), nullable=False),
    sa.Column("status", sa.String(), nullable=False),
    sa.Column("raw", sa.String(), nullable=False),
    sa.Index("ix_verdict_item_id", "item_id"),
)
sa.Table(
    "dispute",
    FROZEN,
    sa.Column(
        "assignment_id",
        sa.String(),
        sa.ForeignKey("assignment.id", name="fk_dispute_assignment_id"),
        primary_key=True,
    ),
    sa.Column("text", sa.String(), nullable=False),
    sa.Column("state", sa.String(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
)
sa.Table(
    "draft",
    FROZEN,
    sa.Column(
        "assignment_id",
        sa.String(),
        sa.ForeignKey("assignment.id", name="fk_draft_assignment_id"),
        primary_key=True,
    ),
    sa.Column("form", sa.JSON(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
)
sa.Table(
    "event",
    FROZEN,
    sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column(
        "assignment_id",
        sa.String(),
        sa.ForeignKey("assignment.id", name="fk_event_assignment_id"),
        nullable=False,
    ),
    sa.Column("kind", sa.String(), nullable=False),
    sa.Column("size", sa.Integer(), nullable=False),
    sa.Column("made_at", sa.Double(), nullable=False),
    sa.Index("ix_event_assignment_id", "assignment_id"),
)
sa.Table(
    "vote",
    FROZEN,
    sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column(
        "assignment_id",
        sa.String(),
        sa.ForeignKey("assignment.id", name="fk_vote_assignment_id"),
        nullable=False,
    ),
    sa.Column("revision", sa.Integer(), nullable=False),
    sa.Column("key", sa.String(), nullable=False),
    sa.Column("rating", sa.Integer()),
    sa.Column("ranking", sa.JSON()),
    sa.Column("scales", sa.JSON(), nullable=False),
    sa.Column("rationale", sa.String(), nullable=False),
    sa.Column("active_ms", sa.Integer(), nullable=False),
    sa.Column("pasted", sa.Double()),
    sa.Column(
        "guideline_id", sa.Integer(), sa.ForeignKey("guideline.id", name="fk_vote_guideline_id")
    ),
    sa.Column("made_at", sa.Double(), nullable=False),
    sa.UniqueConstraint("assignment_id", "revision", name="uq_vote_assignment_id_revision"),
    sa.UniqueConstraint("key", name="uq_vote_key"),
)


def upgrade() -> None:
    """Make them all."""
    FROZEN.create_all(op.get_bind())
