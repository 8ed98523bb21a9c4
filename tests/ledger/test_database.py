"""Databases: the migrations lead to exactly the tables of the code, once, also when two processes open at once."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, inspect, select
from sqlalchemy.dialects import sqlite

from hivemint.ledger.store import database
from hivemint.ledger.store.database import StoreError, database_url, open_store, reading, writing
from hivemint.ledger.store.tables import REVISION, Wei, metadata, nodes
from hivemint.protocol.ids import Credits

MIGRATIONS = Path(sys.modules["hivemint.ledger.store.database"].__file__ or "").parent / "migrations"


def test_migrations_make_the_tables_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file has them at once; one that went through every migration has the same."""
    made = open_store(database_url(tmp_path / "new.db"))
    monkeypatch.setattr(database, "_make", database._migrate)
    migrated = open_store(database_url(tmp_path / "migrated.db"))
    for engine in (made, migrated):
        with reading(engine) as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
            assert context.get_current_revision() == REVISION
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [REVISION]
    assert shape(made) == shape(migrated)


def shape(engine: Engine) -> object:
    """Columns, keys, indexes and constraints by table, as SQLite has them; a migration adds columns with defaults."""
    inspector = inspect(engine)
    return {
        name: (
            sorted((one["name"], str(one["type"]), one["nullable"]) for one in inspector.get_columns(name)),
            inspector.get_pk_constraint(name)["constrained_columns"],
            sorted(str(one) for one in inspector.get_foreign_keys(name)),
            sorted((str(one["name"]), str(one["column_names"])) for one in inspector.get_indexes(name)),
            sorted(str(one["sqltext"]) for one in inspector.get_check_constraints(name)),
        )
        for name in inspector.get_table_names()
    }


def test_opening_again_and_read_only_changes_nothing(tmp_path: Path) -> None:
    url = database_url(tmp_path / "any.db")
    open_store(url).dispose()
    open_store(url).dispose()
    engine = open_store(url, read_only=True)
    with pytest.raises(Exception, match="readonly"), engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM nodes")


def test_a_reader_sees_the_file_that_took_the_place_of_another(tmp_path: Path) -> None:
    """A journal restored from a copy while the ledger reads it. Where there is none for a moment, none is made."""
    place, copy = tmp_path / "any.db", tmp_path / "copy.db"
    for path, node in ((place, "old"), (copy, "new")):
        writer = open_store(database_url(path))
        with writing(writer) as connection:
            connection.execute(nodes.insert(), {"chain_id": 1, "settlement": "0x", "node": node, "genesis": b""})
        writer.dispose()
    reader = open_store(database_url(place), read_only=True)

    def seen() -> list[str]:
        with reading(reader) as connection:
            return list(connection.scalars(select(nodes.c.node)))

    assert seen() == ["old"]
    place.unlink()
    with pytest.raises(StoreError, match=r"any\.db"):
        seen()
    assert not place.exists()
    shutil.copy(copy, place)
    assert seen() == ["new"]


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    url = database_url(tmp_path / "any.db")
    open_store(url).dispose()
    with sqlite3.connect(tmp_path / "any.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer than this program"):
        open_store(url)


def test_two_processes_may_create_it_at_once(tmp_path: Path) -> None:
    url = database_url(tmp_path / "any.db")
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"from hivemint.ledger.store.database import open_store; open_store({url!r})"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == [""] * 3


def test_importing_the_journal_brings_no_web3_and_no_alembic() -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from hivemint.ledger.books import journal, voucher_book\n"
        "from hivemint.ledger.settlement import chainview, settler\n"
        "print([name for name in ('web3', 'alembic', 'fastapi', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


amounts = st.integers(0, 2**96 - 1)


@given(one=amounts, other=amounts)
def test_amounts_survive_and_compare_as_text(one: int, other: int) -> None:
    kind, dialect = Wei(), sqlite.dialect()
    texts = [kind.process_bind_param(amount, dialect) for amount in (one, other)]
    assert texts[0] is not None
    assert texts[1] is not None
    assert (texts[0] < texts[1]) == (one < other)
    assert kind.process_result_value(texts[0], dialect) == one
    assert isinstance(kind.process_result_value(texts[0], dialect), Credits)


@pytest.mark.parametrize("amount", [-1, 10**29])
def test_amounts_that_do_not_fit_are_refused(amount: int) -> None:
    with pytest.raises(ValueError, match="no amount"):
        Wei().process_bind_param(amount, sqlite.dialect())


def test_opening_a_file_again_keeps_the_locks_that_this_process_holds(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    first, second = open_store(database_url(path)), open_store(database_url(path))
    with reading(first) as connection:
        connection.exec_driver_sql("SELECT 1 FROM alembic_version")
        second.dispose()
        open_store(database_url(path)).dispose()
        # Leaving WAL needs the file alone: another process gets it only if our locks are gone.
        leave = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE')"
        other = subprocess.run([sys.executable, "-c", leave, str(path)], capture_output=True, text=True, check=False)
    first.dispose()
    assert "database is locked" in other.stderr
