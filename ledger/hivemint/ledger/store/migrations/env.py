"""Alembic's entry: runs inside the transaction that `store.database` has begun."""

from alembic import context

from hivemint.ledger.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
