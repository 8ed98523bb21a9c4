"""What an indexer has stored, as a test compares it."""

from sqlalchemy import select

from hivemint.ledger.explorer.fold import DERIVED
from hivemint.ledger.explorer.indexer import Indexer
from hivemint.ledger.store.database import reading
from hivemint.ledger.store.tables import events


def tables(indexer: Indexer) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables that it derives, and the events that they come of."""
    with reading(indexer.engine) as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for table in (*DERIVED, events)
        }
