"""A node's journal: what clients owe, what they have promised, and the proofs that the chain pays for.

Promise P11: the proof of a step and the sum owed are stored before the next receipt leaves. `record` changes the books
in memory at once, so that the next request of the same client already sees its debt, and returns when the change is
durable. One writer thread commits everything that is pending in one transaction; rows that changed several times
meanwhile are written once. Reads never touch the database.

What is stored for a paid session is the voucher with the highest total that the node's own receipts carry: a total not
above the sum owed. One that runs ahead, because steps of the client's other sessions are still under way, waits in
memory until the sum owed reaches it. So entries of two sessions may come in any order (decision 0018).

An entry that does not hold raises JournalError and changes nothing. If the database fails the journal stops for good:
from then on `record` raises WriteFailed, and the node must not serve.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine

from hivemint.ledger.books.donated_sessions import DonatedSessions
from hivemint.ledger.books.entries import (
    Book,
    Entry,
    NodeTotals,
    account_row,
    check_pair,
    rank,
    row_after,
    session_row,
)
from hivemint.ledger.books.keeping import WORTHLESS_FOR, ClosedSession
from hivemint.ledger.books.open_sessions import OpenRow, OpenSessions
from hivemint.ledger.books.stored import (
    ACCOUNT,
    DROP,
    FORGET,
    GONE,
    SESSION,
    UNKNOWN,
    StoredBooks,
    owner_of,
    read_books,
    statements,
)
from hivemint.ledger.books.writer import Change, GroupWriter, JournalError, WriteFailed
from hivemint.ledger.store.database import WriterLock, open_store, writing
from hivemint.protocol.credits import mintable
from hivemint.protocol.eip712 import MAX_UINT96, Delegation, Domain, Session
from hivemint.protocol.ids import Address, Credits, SessionId, Signature
from hivemint.protocol.receipt import Countersigned

_NO_BOOK = Book()
MOST_PROMISED = 256
"""Vouchers of one client that wait for the sum owed; an honest one has as many as steps in flight."""


class Journal:
    """The books of one operator on one `Settlement` contract. One process at a time; its methods are for one thread."""

    def __init__(
        self, engine: Engine, lock: WriterLock, domain: Domain, node: Address, owner: int, stored: StoredBooks
    ) -> None:
        self.domain, self.node = domain, node
        self._engine, self._lock, self._owner = engine, lock, owner
        self._books, self._lanes, self._keeping = stored.books, stored.lanes, stored.keeping
        self._open = OpenSessions()
        self._writer = GroupWriter(engine, statements(engine, owner))
        self.donated_sessions = DonatedSessions(engine, owner, domain, node, self._writer)

    @classmethod
    def open(
        cls, url: str, domain: Domain, node: Address, genesis: bytes = UNKNOWN, *, begin_anew: bool = False
    ) -> "Journal":
        """Open or create, migrate, check every proof that counts, start the writer. Blocks for the time of reading.

        `genesis`: the hash of the chain's first block. Books of another chain are left alone; `begin_anew`: the user
        has said that new ones may stand beside them. Raises StoreError (unusable, locked by another process),
        ConfigError (bad URL), JournalError (damaged, or of another chain).
        """
        engine = open_store(url)
        with ExitStack() as undo:
            undo.callback(engine.dispose)
            lock = WriterLock(engine, node.lower())
            undo.callback(lock.release)
            with writing(engine) as connection:
                owner = owner_of(connection, domain, node, genesis, begin_anew)
                journal = cls(engine, lock, domain, node, owner, read_books(engine, connection, owner, domain, node))
                undo.callback(journal._writer.close)
            undo.pop_all()
        return journal

    # What the node asks in its hot loop: all from memory.

    def book(self, client: Address) -> Book:
        """The client's standing, with everything recorded so far, durable or about to be."""
        return self._books.get(client, _NO_BOOK)

    def books(self) -> dict[Address, Book]:
        """All clients' standings, a copy."""
        return dict(self._books)

    @property
    def totals(self) -> NodeTotals:
        """The credit flow, for the live view."""
        books, went = self._books.values(), self._keeping.gone
        return NodeTotals(
            paid=self._lanes.paid,
            donated=self._lanes.donated,
            promised=Credits(went.promised + sum(book.earned for book in books)),
            settled=Credits(went.settled + sum(book.collected for book in books)),
            minted=Credits(went.minted + sum(mintable(book.collected) for book in books)),
        )

    async def open_session(
        self, session: Session, signature: Signature, delegation: tuple[Delegation, bytes] | None = None
    ) -> SessionId:
        """Store a session's signed terms, durable when it returns: the opening receipt leaves after it."""
        session_id = session.session_id(self.domain)
        if session.node != self.node:
            raise JournalError("A session of another node", why=f"expected {self.node}, got {session.node}")
        if session_id in self._open:
            raise JournalError("A session is open already", why=session_id.hex())
        row = session_row(self._owner, session_id, session, signature)
        if delegation is not None:
            row |= {"delegation_until": delegation[0].valid_until, "delegation_signature": delegation[1]}
        self._writer.check()
        self._open.add(session_id, OpenRow(session.client, session.price, row))
        self._lanes.count(session.price, 1, 0, 0)
        await self._writer.commit(Change(SESSION, session_id, row))
        return session_id

    def promise(self, pair: Countersigned) -> None:
        """A voucher came with a request: cover from now on, a proof once `record` says that so much is owed.

        Raises JournalError, ProofError before anything has changed.
        """
        receipt = pair.receipt.body
        if self._open.taking(receipt.client, receipt.session_id).price:
            check_pair(pair, self.node, receipt.client, receipt.session_id)
            book = self.book(receipt.client)
            self._books[receipt.client] = replace(book, promised=_with(book.promised, pair))

    async def record(self, entry: Entry) -> None:
        """Make an entry durable. Raises JournalError, ProofError before anything has changed.

        The sum owed never falls, and never passes what was promised. Every voucher that it reaches becomes a proof.
        A donated session's entry leaves it as it is.
        """
        opened = self._open.taking(entry.client, entry.session)
        if entry.newest is not None:
            check_pair(entry.newest, self.node, entry.client, entry.session)
        book = self.book(entry.client)
        owed = entry.owed if opened.price else book.owed
        promised = book.promised if entry.newest is None or not opened.price else _with(book.promised, entry.newest)
        _check_owed(owed, book, promised)
        self._writer.check()
        proofs = [pair for pair in promised if pair.voucher.total <= owed]
        before = book.proofs
        book = replace(book, owed=owed, promised=promised[len(proofs) :], worthless_since=0)
        rows = {entry.session: _signed(opened.row, entry)}
        if entry.newest is not None and not opened.price:
            rows[entry.session] = row_after(rows[entry.session], entry.newest)
        for pair in proofs:
            session = pair.receipt.session_id
            rows[session] = row_after(rows.get(session, self._open[session].row), pair)
            book = book.proved(pair)
        changes = [Change(SESSION, session, row) for session, row in rows.items()]
        if opened.price:  # a wallet that pays nothing has no account
            self._books[entry.client] = book
            changes.append(self._account(entry.client, book))
        for session, row in rows.items():
            self._put(session, row)
        stored = self._writer.begin(*changes)
        if any(self._open[session].ended for session in rows):
            self._tidy(entry.client)
        for key, pair in before.items():
            if book.proofs[key] is not pair:
                self._drop(self._keeping.outbid(pair.receipt.session_id))
        await stored

    def close_session(self, session: SessionId) -> None:
        """Forget an ended session in memory. Of its row what can be claimed is kept, and a bounded past."""
        client = self._open.end(session)
        if client is not None:
            self._tidy(client)

    async def release(self, client: Address, until: int) -> None:
        """The account may be closed by a release until `until`; durable when it returns: the release leaves after it.

        It never falls: a release that was signed stays good until its own deadline.
        """
        self._writer.check()
        book = self.book(client)
        book = self._books[client] = replace(book, released_until=max(book.released_until, until))
        await self._writer.commit(self._account(client, book))

    # What settlement asks and notes.

    def observe(self, client: Address, collected: Credits, reason: str | None = None) -> None:
        """Note what the chain says it has paid out of this account; durable a little later. No proof is lost by it.

        `reason`: why it has not paid the rest; None leaves what was known. Raises JournalError for what is no amount.
        """
        if not 0 <= collected <= MAX_UINT96:
            raise JournalError("The chain cannot have paid this", why=f"{collected} wei to {client}")
        book = self.book(client)
        changed = replace(book, collected=collected, reason=book.reason if reason is None else reason)
        if changed != book:
            if client not in self._books:
                self._keeping.gone.back(collected)
            self._books[client] = changed
            self._writer.submit(self._account(client, changed))

    def judge(self, worthless: Mapping[Address, bool], now: int) -> None:
        """Note which accounts the chain has just been found to hold nothing for. One that has had no session and was
        worthless for WORTHLESS_FOR seconds (`now`: of the chain's time or the clock's, the earlier one) is forgotten,
        but not before its release is over. Raises WriteFailed.
        """
        live = self.clients
        for client, found in worthless.items():
            book = self._books.get(client)
            if book is None:
                continue
            since = (book.worthless_since or now) if found and client not in live else 0
            if since and now - since >= WORTHLESS_FOR and now > book.released_until:
                self._writer.submit(Change(FORGET, client, {"forgotten": client}, instead_of=ACCOUNT))
                del self._books[client]
                self._drop(self._keeping.forgotten(client, book))
            elif since != book.worthless_since:
                self._books[client] = changed = replace(book, worthless_since=since)
                self._writer.submit(self._account(client, changed))

    @property
    def clients(self) -> set[Address]:
        """Who has a session open, or vouchers that wait."""
        return self._open.clients()

    def collectable(self) -> list[Countersigned]:
        """For each client and key the proof with the highest total, where the chain has not paid all; most first."""
        unpaid = [
            (pair.voucher.total - book.collected, pair)
            for book in self._books.values()
            for pair in book.proofs.values()
            if pair.voucher.total > book.collected
        ]
        return [pair for _, pair in sorted(unpaid, key=lambda one: -one[0])]

    async def drop_over(self, epoch: int, length: int) -> None:
        """Keep no more what is of no use once `epoch` can be claimed. Raises WriteFailed, StoreError."""
        await self._writer.commit()  # what was noted of claims is stored
        self._drop(self._keeping.expired(await asyncio.to_thread(self.donated_sessions.over, epoch, length)))

    async def close(self) -> None:
        """Commit what is pending and let the database go. Raises JournalError if something could not be stored."""
        try:
            await asyncio.to_thread(self._writer.close)
        finally:
            self._lock.release()
            self._engine.dispose()

    # Inside.

    def _account(self, client: Address, book: Book) -> Change:
        return Change(ACCOUNT, client, account_row(self._owner, client, book))

    def _drop(self, closed: Iterable[ClosedSession]) -> None:
        changes = [Change(DROP, one.id, {"session": one.id}) for one in closed]
        if changes:
            self._writer.submit(*changes, Change(GONE, 0, self._keeping.gone.row(self._owner)))

    def _put(self, session: SessionId, row: dict[str, Any]) -> None:
        opened = self._open[session]
        signed, bound = (row[name] - opened.row[name] for name in ("signed_tokens", "tokens"))
        self._lanes.count(opened.price, 0, signed, bound)
        opened.row = row

    def _tidy(self, client: Address) -> None:
        """Ended sessions are kept while their vouchers wait, and these while other sessions may raise the sum owed."""
        ended = self._open.ended(client)
        if not ended:
            return
        book = self.book(client)
        if self._open.have_all_ended(client):
            book = self._books[client] = replace(book, promised=())
        waiting = {pair.receipt.session_id for pair in book.promised}
        presented = {pair.receipt.session_id for pair in book.proofs.values()}
        for session in ended:
            if session not in waiting:
                row = self._open.pop(session).row
                with suppress(WriteFailed):  # then nothing is written any more, and the row stays
                    self._drop(
                        self._keeping.ended(ClosedSession.of(row), row["step"] is not None, session in presented)
                    )
        if book == Book():
            self._books.pop(client, None)


def _with(promised: tuple[Countersigned, ...], pair: Countersigned) -> tuple[Countersigned, ...]:
    """With one more voucher, lowest total first. The highest always stays, as it is what covers."""
    if any(one is pair for one in promised):
        return promised
    if len(promised) < MOST_PROMISED and (not promised or rank(pair) > rank(promised[-1])):
        return (*promised, pair)  # as an honest client's do
    more = sorted({*promised, pair}, key=rank)
    if len(more) > MOST_PROMISED:
        del more[-2]
    return tuple(more)


def _check_owed(owed: Credits, book: Book, promised: tuple[Countersigned, ...]) -> None:
    """Raises JournalError."""
    highest = max([book.earned, book.debt, *(pair.voucher.total for pair in promised)])
    if owed < book.owed:
        raise JournalError("The sum owed does not fall", why=f"{book.owed} wei were owed, the entry says {owed}")
    if owed > highest:
        raise JournalError("A client cannot owe more than it has promised", why=f"{owed} wei owed, {highest} promised")


def _signed(row: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """A session's row with the newest receipt of an entry; steps only rise."""
    if entry.signed_step <= row["signed_step"]:
        return row
    return row | {"signed_step": entry.signed_step, "signed_tokens": entry.signed_tokens}
