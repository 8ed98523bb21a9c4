"""The same tables on PostgreSQL, where a server is at hand: HIVEMINT_TEST_POSTGRES=postgresql+psycopg://..."""

import os
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.dialects import postgresql

from hivemint.contracts.bindings import Bindings
from hivemint.ledger.books.entries import Entry
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.explorer.indexer import Indexer
from hivemint.ledger.store.database import StoreError, open_store, upsert
from hivemint.ledger.store.tables import accounts, metadata
from hivemint.protocol.ids import Credits
from support.logchain import NETWORK, LogChain
from support.promises import DOMAIN, Work, signer

URL = os.environ.get("HIVEMINT_TEST_POSTGRES", "")
served = pytest.mark.skipif(not URL, reason="HIVEMINT_TEST_POSTGRES names no server")


@pytest.fixture
def empty() -> str:
    engine = create_engine(URL)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
    engine.dispose()
    return URL


@served
async def test_a_journal_on_postgresql(empty: str) -> None:
    node, work = signer(1).address, Work(signer(2), signer(1))
    journal = Journal.open(empty, DOMAIN, node)
    await journal.open_session(work.session, work.signature)
    for owed, total in ((10, 10), (30, 30), (40, 20), (40, 60)):
        journal.promise(work.countersign(40))
        work.step()
        await journal.record(Entry(work.client.address, work.id, Credits(owed), work.countersign(total)))
    journal.close_session(work.id)
    with pytest.raises(StoreError, match="in use"):
        Journal.open(empty, DOMAIN, node)
    before = journal.books(), journal.totals
    await journal.close()
    journal = Journal.open(empty, DOMAIN, node)
    assert (journal.books(), journal.totals) == before
    await journal.close()


@served
async def test_an_index_on_postgresql(empty: str) -> None:
    chain = LogChain()
    for number in range(20):
        transfer = {"from": "0x" + "00" * 20, "to": signer(2).address, "value": 2**200 + number}
        chain.mine(("CreditToken", "Transfer", transfer))
    index = await Indexer.open(empty, cast(Bindings, chain), NETWORK)
    await index.follow()
    chain.switch(5)
    chain.mine()
    assert (await index.follow()).indexed == 16
    await index.close()


def test_statements_compile_for_both(tmp_path: Path) -> None:
    engine = open_store(f"sqlite:///{tmp_path}/any.db")
    engine.dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    statement = upsert(engine, accounts, lambda new, old: new.owed >= old.owed)
    sql = str(statement.compile(dialect=engine.dialect))
    assert "ON CONFLICT (owner, client) DO UPDATE" in sql
    assert "WHERE excluded.owed >= accounts.owed" in sql
