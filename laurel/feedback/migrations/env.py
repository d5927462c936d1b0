"""Alembic's entry: run the versions on the connection that `laurel.feedback.store.migrate` gives."""

from alembic import context

from laurel.feedback.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True)
context.run_migrations()
