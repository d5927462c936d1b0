"""A code by which an annotator comes back in: its digest, "" where there is none."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column, empty for everybody: they make a code on the page of their answers."""
    op.add_column("annotator", sa.Column("code", sa.String(), nullable=False, server_default=""))
    op.create_index("ix_annotator_code", "annotator", ["code"])
