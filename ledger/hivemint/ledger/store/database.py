"""Databases: SQLite (WAL) by default, PostgreSQL by URL. Opening, migrating, upserting, and a lock for one writer."""

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    table,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from hivemint.ledger.store.tables import REVISION, metadata
from hivemint.protocol.errors import ConfigError, HivemintError

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_MS = 10_000


class StoreError(HivemintError):
    """A database cannot be opened, read or written."""

    kind = "books"


def database_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def open_store(url: str, *, durable: bool = True, read_only: bool = False) -> Engine:
    """An engine on a database with the newest schema. Raises StoreError, ConfigError.

    `durable`: a commit outlives a power cut (synchronous FULL); without it a commit outlives kill -9 alone and
    needs no wait for the disk. `read_only` neither creates nor migrates. A new SQLite file is for its owner alone.
    """
    try:
        parsed = make_url(url)
        engine = _sqlite(parsed, durable, read_only) if parsed.get_backend_name() == "sqlite" else create_engine(parsed)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"{_shown(url)} is no database that can be used",
            why=str(error),
            next_step="write e.g. sqlite:////path/journal.db or postgresql+psycopg://user@host/name, which needs "
            "pip install 'hivemint[postgres]'",
        ) from None
    try:
        with reading(engine) if read_only else writing(engine) as connection:
            _check_revision(connection, url, migrate=not read_only)
    except HivemintError:
        engine.dispose()
        raise
    except OSError as error:
        engine.dispose()
        raise _not_opened(error.filename or parsed.database, error) from None
    return engine


def unusable(url: str, error: DBAPIError) -> StoreError:
    """A database's own error in words."""
    return StoreError(
        f"The database {_shown(url)} cannot be used",
        why=" ".join(str(error.orig).split()),
        next_step="check its path, rights and free space; a damaged file must come back from a backup",
    )


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection for reads alone: a snapshot that holds up no writer. Raises StoreError."""
    try:
        with engine.connect() as connection:
            yield connection.execution_options(read=True)
    except DBAPIError as error:
        raise unusable(str(engine.url), error) from None


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction. Raises StoreError; then nothing of it has happened."""
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise unusable(str(engine.url), error) from None


def upsert(engine: Engine, into: Table, keep_new_if: Callable[[Any, Any], ColumnElement[bool]] | None = None) -> Any:
    """INSERT ... ON CONFLICT (primary key) DO UPDATE all other columns, for both databases.

    `keep_new_if(new, old)` guards the update, e.g. so that a total never falls.
    """
    if engine.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    statement = insert(into)
    keys: list[Column[Any]] = list(into.primary_key.columns)
    values = {column.name: statement.excluded[column.name] for column in into.columns if column not in keys}
    where = keep_new_if(statement.excluded, into.c) if keep_new_if else None
    return statement.on_conflict_do_update(index_elements=keys, set_=values, where=where)


class WriterLock:
    """At most one process writes the books of one node: two would each owe from an old figure."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._held: Connection | None = None
        self._file: int | None = None
        if engine.dialect.name == "postgresql":
            self._held = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
            taken = bool(self._held.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}))
        elif engine.url.database in (None, "", ":memory:"):
            return
        else:
            path = f"{engine.url.database}.{name}.lock"
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise _not_opened(path, error) from None
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken = True
            except BlockingIOError:
                taken = False
        if not taken:
            self.release()
            raise StoreError(
                f"The journal {_shown(str(engine.url))} is in use",
                why=f"another process serves as {name} and writes it",
                next_step="stop that node first, or give this one an operator key of its own",
            )

    def release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _sqlite(url: URL, durable: bool, read_only: bool) -> Engine:
    database = url.database
    if database and database != ":memory:":
        path = Path(database)
        if read_only and not path.is_file():
            raise StoreError(f"There is no database {path}", next_step="check the path")
        if not read_only:
            _make_private(path)
    # isolation_level None: the driver begins nothing by itself; `_begin` below does, so that DDL is transactional too.
    options: dict[str, Any] = {"isolation_level": None, "check_same_thread": False}
    if read_only and database and database != ":memory:":
        # A reader does not own the file: it may be replaced at any time, so each read opens what is there by then,
        # and never makes an empty one where there is none.
        address = f"{Path(database).absolute().as_uri()}?mode=rw"
        engine = create_engine(url, poolclass=NullPool, creator=lambda: sqlite3.connect(address, uri=True, **options))
    else:
        engine = create_engine(url, connect_args=options)

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
            return
        _write_ahead(connection, database)
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # IMMEDIATE: a writer that first reads must not find its snapshot stale when it comes to write.
        reads = read_only or connection.get_execution_options().get("read", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(connection: sqlite3.Connection, database: str | None) -> None:
    """A new file becomes a WAL file once, one process at a time: SQLite's busy timeout does not cover all of that
    change, so of two processes that open a new file together one would be told `locked` at once."""
    folder = os.open(Path(database).absolute().parent, os.O_RDONLY) if database and database != ":memory:" else None
    try:
        if folder is not None:
            fcntl.flock(folder, fcntl.LOCK_EX)
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        if folder is not None:
            os.close(folder)


def _make_private(path: Path) -> None:
    """Only a new file is opened here: closing a file drops the locks that this process's SQLite holds on it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise _not_opened(path, error) from None


def _not_opened(path: object, error: OSError) -> StoreError:
    return StoreError(
        f"The database {path} cannot be opened",
        why=error.strerror or str(error),
        next_step="check the path, its rights and free space",
    )


def _check_revision(connection: Connection, url: str, *, migrate: bool) -> None:
    found = None
    if inspect(connection).has_table("alembic_version"):
        found = connection.scalar(select(Column("version_num")).select_from(table("alembic_version")))
    if found == REVISION:
        return
    if found is not None and found > REVISION:
        raise StoreError(
            f"The database {_shown(url)} is newer than this program",
            why=f"it has schema {found}, this version knows {REVISION}",
            next_step="upgrade hivemint",
        )
    if not migrate:
        raise StoreError(
            f"The database {_shown(url)} holds no current ledger",
            why=f"its schema is {found or 'unknown'}, expected {REVISION}",
            next_step="start its owner (the node) once with this version",
        )
    if found is None and connection.dialect.name == "sqlite" and not inspect(connection).get_table_names():
        _make(connection)
    else:
        _migrate(connection)


def _make(connection: Connection) -> None:
    """A new file gets today's tables at once; the migrations lead to the same ones."""
    metadata.create_all(connection)
    connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (REVISION,))


def _migrate(connection: Connection) -> None:
    from alembic import command  # only here: a database that is up to date needs no alembic in memory
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _shown(url: str) -> str:
    """A URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "that URL"


__all__ = [
    "StoreError",
    "WriterLock",
    "database_url",
    "metadata",
    "open_store",
    "reading",
    "unusable",
    "upsert",
    "writing",
]
