"""One thread that writes to a database: everything that is pending goes into one transaction (group commit).

Rows that changed several times between two commits are written once, with their last value. After a failure that
retrying does not cure the writer stops for good, and everyone who waits or comes later gets the error.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import stamina
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from hivemint.ledger.store.prepared import Prepared
from hivemint.protocol.errors import HivemintError

log = structlog.get_logger(__name__)
_Loop = asyncio.AbstractEventLoop
_Future = asyncio.Future[None]


class JournalError(HivemintError):
    """The journal refuses an entry: its session cannot go on. Nothing has changed."""

    kind = "books"


class WriteFailed(JournalError):
    """The journal can no longer store anything: its node must not serve."""


@dataclass(frozen=True, slots=True)
class Change:
    """A row for one of the writer's statements. `key` names the row: a later change of it replaces this one.

    `instead_of`: a statement whose pending change of the same key is void by this one.
    """

    statement: int
    key: Hashable
    row: dict[str, Any]
    instead_of: int | None = None


@dataclass(slots=True)
class _Batch:
    rows: dict[int, dict[Hashable, dict[str, Any]]] = field(default_factory=lambda: defaultdict(dict))
    waiters: dict[_Loop, list[_Future]] = field(default_factory=lambda: defaultdict(list))


class GroupWriter:
    """Runs `statements` (by index) over the rows that come, in that order, one transaction at a time."""

    def __init__(self, engine: Engine, statements: Sequence[Prepared]) -> None:
        self._connection, self._statements = engine.connect(), statements
        self._pending = _Batch()
        self._wake = threading.Condition()
        self._closing = False
        self._failure: HivemintError | None = None
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    async def commit(self, *changes: Change) -> None:
        """Returns when the changes are durable. Raises WriteFailed. Cancelling it takes nothing back."""
        await self.begin(*changes)

    def begin(self, *changes: Change) -> "_Future":
        """`commit` in two: what is submitted after this call is written in the same transaction or a later one."""
        future: _Future = asyncio.get_running_loop().create_future()
        self.submit(*changes, waiter=future)
        return future

    def submit(self, *changes: Change, waiter: _Future | None = None) -> None:
        """Write soon, without waiting. Raises WriteFailed if the writer has stopped."""
        with self._wake:
            self.check()
            for change in changes:
                if change.instead_of is not None:
                    self._pending.rows[change.instead_of].pop(change.key, None)
                self._pending.rows[change.statement][change.key] = change.row
            if waiter is not None:
                self._pending.waiters[waiter.get_loop()].append(waiter)
            self._wake.notify()

    def check(self) -> None:
        """Raises WriteFailed if the writer has stopped."""
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise WriteFailed("The journal is closed")

    def close(self) -> None:
        """Write what is pending and end the thread; blocks. Raises WriteFailed if something could not be stored."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._connection.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while self._failure is None:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._pending.rows or self._pending.waiters)
                batch, self._pending = self._pending, _Batch()
            if not (batch.rows or batch.waiters):
                return
            try:
                self._write(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits must hear of it: nobody else will
                self._stop(error)
            _resolve(batch, self._failure)

    def _stop(self, error: Exception) -> None:
        """Nothing is written from now on: after a failure nobody foresaw too, nothing more may be acknowledged."""
        log.error("the journal cannot be written", exc_info=None if isinstance(error, DBAPIError) else error)
        with self._wake:
            self._failure = _broken(error)
            late, self._pending = self._pending, _Batch()
        _resolve(late, self._failure)

    @stamina.retry(on=OperationalError, attempts=3, timeout=20)
    def _write(self, batch: _Batch) -> None:
        with self._connection.begin():  # one that was lost is opened anew by the next attempt
            for number, statement in enumerate(self._statements):
                if batch.rows.get(number):
                    statement.run(self._connection, list(batch.rows[number].values()))


def _broken(error: Exception) -> WriteFailed:
    return WriteFailed(
        "The journal cannot be written",
        why=str(error.orig) if isinstance(error, DBAPIError) else f"{type(error).__name__}: {error}",
        next_step="free space or mend the disk, then start the node again; nothing that was acknowledged is lost",
    )


def _resolve(batch: _Batch, failure: HivemintError | None) -> None:
    for loop, futures in batch.waiters.items():
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(_finish, futures, failure)


def _finish(futures: list[_Future], failure: HivemintError | None) -> None:
    for future in futures:
        if future.done():  # its task was cancelled
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)
