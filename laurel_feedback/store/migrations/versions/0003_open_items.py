"""An index of the items that still want answers.

Handing one out reads a handful of its entries, however many items there are.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make it in place of the one over all items."""
    wants = sa.text("live < target")
    op.drop_index("ix_item_batch_id_kind_live_id", table_name="item")
    op.create_index(
        "ix_item_batch_id_kind_live_id",
        "item",
        ["batch_id", "kind", "live", "id"],
        sqlite_where=wants,
        postgresql_where=wants,
    )
