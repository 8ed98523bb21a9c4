"""Alembic migrations, run from code by `store.database`."""
