"""What a session's steps leave in the journal."""

import asyncio
from collections.abc import Callable
from typing import Any

from hivemint.ledger.books.entries import Entry
from hivemint.ledger.books.journal import Journal
from hivemint.node.sessions.session import ServedSession
from hivemint.protocol.ids import Step
from hivemint.protocol.receipt import Countersigned


class JournalEntries:
    """Of one session. `ended` hears of each entry's task when it is over."""

    def __init__(self, journal: Journal, session: ServedSession, ended: "Callable[[asyncio.Task[Any]], None]") -> None:
        self._journal, self._session, self._ended = journal, session, ended
        self._told = Step(0)
        """The newest receipt that the journal knows of."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def store(self, price: int, pair: Countersigned | None) -> None:
        """A change of the sum owed, and a voucher; durable when it returns."""
        session, signed = self._session, self._session.receipt.body
        self._told = signed.step
        owed = session.account.entered(price)
        await self._journal.record(
            Entry(session.terms.client, session.session_id, owed, pair, signed.step, signed.tokens)
        )

    def begin(self, price: int, pair: Countersigned | None) -> "asyncio.Task[None]":
        """The same beside what goes on; it is written whatever becomes of the one who asks."""
        task = asyncio.create_task(self.store(price, pair))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._ended)
        return task

    async def settle(self) -> None:
        """Until the journal knows of the last receipt, and nothing is on its way there."""
        if self._told != self._session.receipt.step:
            self.begin(0, None)
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
