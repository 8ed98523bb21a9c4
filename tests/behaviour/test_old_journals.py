"""Journals that an older version wrote: nothing that they could claim is lost."""

import io
import sqlite3
import sys
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from hivemint.ledger.books.entries import proof_row, session_row
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.books.writer import JournalError
from hivemint.ledger.store.database import database_url
from hivemint.protocol.receipt import Countersigned
from support.promises import DOMAIN, Work, signer

NODE = signer(1)
FIRST, SECOND = b"\x01" * 32, b"\x02" * 32


def _schema_0001() -> list[str]:
    """What the first migration writes, as SQL text."""
    text = io.StringIO()
    context = MigrationContext.configure(dialect_name="sqlite", opts={"as_sql": True, "output_buffer": text})
    with Operations.context(context):
        ScriptDirectory(str(MIGRATIONS)).get_revision("0001").module.upgrade()
    made = [part for part in text.getvalue().split(";\n") if part.strip()]
    return [*made, "CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('0001')"]


MIGRATIONS = Path(sys.modules["hivemint.ledger.store.database"].__file__ or "").parent / "migrations"
SCHEMA_0001 = _schema_0001()


def _wei(amount: int) -> str:
    return f"{amount:029d}"


def _insert(table: str, values: dict[str, object]) -> tuple[str, dict[str, object]]:
    names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    return f"INSERT INTO {table} ({names}) VALUES ({places})", values  # noqa: S608


def _old_account(work: Work, pair: Countersigned | None, owed: int) -> tuple[str, dict[str, object]]:
    plain = {
        "owner": 7,
        "client": work.client.address,
        "highest": _wei(700),
        "owed": _wei(owed),
        "collected": _wei(0 if pair else 700),
        "reason": "old",
        "session": work.id if pair else None,
    }
    return _insert("accounts", plain | proof_row(pair))


def _old_session(work: Work, pair: Countersigned | None) -> tuple[str, dict[str, object]]:
    row = session_row(7, work.id, work.session, work.signature) | proof_row(pair) | {"tokens": 0}
    row |= {"voucher_total": _wei(pair.voucher.total) if pair else None}
    return _insert("sessions", row | {name: _wei(int(row[name])) for name in ("price", "max_amount")})


async def test_a_file_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    """Its vouchers stood in the accounts; one had a lower one in its session, one had overpaid, one had paid all."""
    path = tmp_path / "journal.db"
    rows = {client: Work(signer(client), NODE) for client in (2, 3, 4)}
    with sqlite3.connect(path) as raw:
        for statement in SCHEMA_0001:
            raw.execute(statement)
        raw.execute("INSERT INTO nodes VALUES (7, ?, ?, ?)", (DOMAIN.chain_id, DOMAIN.settlement, NODE.address))
        for client, work in rows.items():
            old, new = work.countersign(500), work.countersign(700)
            raw.execute(*_old_session(work, None if client == 2 else old))
            raw.execute(*_old_account(work, new if client < 4 else None, 640 if client == 3 else 700))
    journal = Journal.open(database_url(path), DOMAIN, NODE.address, FIRST)
    books = journal.books()
    for client, work in rows.items():
        book = books[work.client.address]
        assert book.owed == 700
        assert book.best == work.countersign(700 if client < 4 else 500)
        assert (book.collected, book.reason) == (0 if client < 4 else 700, "old")
    assert len(journal.collectable()) == 2
    totals = journal.totals
    assert (totals.paid.sessions, totals.promised) == (3, 1900)
    await journal.close()
    with pytest.raises(JournalError, match="another chain"):
        Journal.open(database_url(path), DOMAIN, NODE.address, SECOND)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT id, genesis FROM nodes").fetchall() == [(7, FIRST)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        keys = raw.execute("SELECT DISTINCT \"table\" FROM pragma_foreign_key_list('sessions')").fetchall()
        assert keys == [("nodes",)]
