"""Alembic's entry: run the versions on `laurel_feedback.store.database.migrate`'s connection."""

from alembic import context

from laurel_feedback.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
context.run_migrations()
