"""A node's journal: what clients have promised, what they owe, and the proofs that the chain pays for.

Promise P11: the newest voucher, the receipt that it binds and the sum owed are stored before the next receipt leaves.
`record` changes the books in memory at once, so that the next request of the same client already sees its debt, and
returns when the change is durable. One writer thread commits everything that is pending in one transaction; rows that
changed several times meanwhile are written once. Reads never touch the database.

If the database fails the journal stops for good: from then on `record` raises, and the node must not serve.
"""

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, func, select

from hivemint.contracts.credits import mintable
from hivemint.contracts.errors import ProofError
from hivemint.contracts.ids import Address, Credits, SessionId, Signature
from hivemint.contracts.receipt import Countersigned
from hivemint.contracts.signed import Delegation, Domain, Session
from hivemint.ledger.entries import (
    NOTHING,
    Book,
    Donated,
    Entry,
    Lane,
    OpenSession,
    Totals,
    account_row,
    check_entry,
    proof_from,
    proof_row,
    session_from,
    session_row,
)
from hivemint.ledger.prepared import Prepared
from hivemint.ledger.store import WriterLock, open_store, reading, upsert, writing
from hivemint.ledger.tables import accounts, nodes, sessions
from hivemint.ledger.writer import Change, GroupWriter, JournalError

_ACCOUNT, _SESSION, _CLAIM = range(3)


class Journal:
    """The books of one operator on one `Settlement` contract. One process at a time; its methods are for one thread."""

    def __init__(self, engine: Engine, lock: WriterLock, domain: Domain, node: Address, owner: int) -> None:
        self.domain, self.node = domain, node
        self._engine, self._lock, self._owner = engine, lock, owner
        self._books: dict[Address, Book] = {}
        self._open: dict[SessionId, OpenSession] = {}
        self._paid, self._free = Lane(), Lane()
        self._writer = GroupWriter(engine, _statements(engine, owner))

    @classmethod
    def open(cls, url: str, domain: Domain, node: Address) -> "Journal":
        """Open or create, migrate, check every stored proof, start the writer. Blocks for the time of reading it all.

        Raises StoreError (unusable, locked by another process), ConfigError (bad URL), JournalError (damaged).
        """
        engine = open_store(url)
        with ExitStack() as undo:
            undo.callback(engine.dispose)
            lock = WriterLock(engine, node.lower())
            undo.callback(lock.release)
            with writing(engine) as connection:
                owner = _owner(connection, domain, node)
                journal = cls(engine, lock, domain, node, owner)
                undo.callback(journal._writer.close)
                journal._load(connection)
            undo.pop_all()
        return journal

    # What the node asks in its hot loop: all from memory.

    def book(self, client: Address) -> Book:
        """The client's standing, with everything recorded so far, durable or about to be."""
        return self._books.get(client, Book())

    def books(self) -> dict[Address, Book]:
        """All clients' standings, a copy."""
        return dict(self._books)

    @property
    def totals(self) -> Totals:
        """The credit flow, for the live view."""
        books = self._books.values()
        return Totals(
            paid=self._paid,
            free=self._free,
            promised=Credits(sum(book.highest for book in books)),
            settled=Credits(sum(book.collected for book in books)),
            minted=Credits(sum(mintable(book.collected) for book in books)),
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
        self._open[session_id] = OpenSession(session.client, session.price, row)
        self._count(session.price, 1, 0, 0)
        await self._writer.commit(Change(_SESSION, session_id, row))
        return session_id

    async def record(self, entry: Entry) -> None:
        """Make an entry durable. Raises JournalError, ProofError before anything has changed.

        The highest total never falls (an older voucher changes nothing), the sum owed never passes it.
        """
        opened = self._open.get(entry.session)
        if opened is None or opened.client != entry.client:
            raise JournalError(
                "A journal entry of an unknown session",
                why=f"{entry.session.hex()[:12]} of {entry.client} is not open",
                next_step="call open_session first",
            )
        check_entry(entry, self.node)
        book, row = self.book(entry.client), opened.row
        promised, newest = book.highest, entry.newest
        if newest is not None and newest.voucher.total > promised:
            promised = newest.voucher.total
        if not 0 <= entry.owed <= promised:
            raise JournalError(
                "A client cannot owe more than it has promised", why=f"{entry.owed} wei owed, {promised} promised"
            )
        self._writer.check()
        proof = newest if promised > book.highest else book.newest
        changed = replace(book, highest=promised, owed=Credits(entry.owed), newest=proof)
        after = self._session_after(row, entry)
        signed, bound = after["signed_tokens"] - row["signed_tokens"], after["tokens"] - row["tokens"]
        self._count(opened.price, 0, signed, bound)
        opened.row = after
        self._books[entry.client] = changed
        await self._writer.commit(self._account(entry.client), Change(_SESSION, entry.session, after))

    def close_session(self, session: SessionId) -> None:
        """Forget an ended session in memory; its row stays for settlement and claims."""
        self._open.pop(session, None)

    # What settlement asks and notes.

    def observe(self, client: Address, collected: Credits, reason: str | None = None) -> None:
        """Note what the chain says it has paid out of this account; durable a little later.

        `reason`: why it has not paid the rest; None leaves what was known.

        More than this journal knows of means that it lost entries (an old copy of the disk): vouchers up to
        `collected` are spent then, so the client's standing is raised to it and they pay for nothing twice.
        """
        book = self.book(client)
        lost = max(0, collected - book.highest)
        changed = replace(
            book,
            highest=Credits(book.highest + lost),
            owed=Credits(book.owed + lost),
            newest=None if lost else book.newest,
            collected=Credits(max(collected, 0)),
            reason=book.reason if reason is None else reason,
        )
        if changed != book:
            self._books[client] = changed
            self._writer.submit(self._account(client))

    def collectable(self) -> list[Countersigned]:
        """Each client's highest voucher with its receipt, where the chain has not paid all of it; most first."""
        unpaid = [book for book in self._books.values() if book.newest is not None and book.open > 0]
        return [book.newest for book in sorted(unpaid, key=lambda book: -book.open) if book.newest is not None]

    def donated(self, begin: int, end: int) -> list[Donated]:
        """Free sessions with countersigned work that expire in [begin, end) seconds, in rising order of session id.

        Reads the database, so call it in a thread. A stored proof that does not hold is left out and marked.
        """
        wanted = (
            select(sessions)
            .where(sessions.c.owner == self._owner, sessions.c.expiry >= begin, sessions.c.expiry < end)
            .where(sessions.c.price == NOTHING, sessions.c.tokens > 0, sessions.c.voucher_total == NOTHING)
            .order_by(sessions.c.id)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(wanted).all()
        found: list[Donated] = []
        for row in rows:
            try:
                newest = proof_from(row, self.domain, self.node, SessionId(row.id), NOTHING)
            except (ProofError, ValueError):
                self.note_claims([SessionId(row.id)], "its stored proof does not hold")
                continue
            shown = None if row.delegation_until is None else (row.delegation_until, row.delegation_signature)
            found.append(Donated(session_from(row, self.node), row.signature, shown, newest, row.claim))
        return found

    def donated_epochs(self, length: int) -> set[int]:
        """Epochs (of `length` seconds) in which free sessions expired that were claimed. Reads the database."""
        wanted = select(sessions.c.expiry).where(
            sessions.c.owner == self._owner, sessions.c.claim.startswith("claimed")
        )
        with reading(self._engine) as connection:
            return {expiry // length for expiry in connection.scalars(wanted.distinct())}

    def note_claims(self, claimed: Iterable[SessionId], outcome: str) -> None:
        """Note what became of free sessions on the chain, for the live view; durable a little later."""
        for session in claimed:
            self._writer.submit(Change(_CLAIM, session, {"session": session, "outcome": outcome[:80]}))

    async def close(self) -> None:
        """Commit what is pending and let the database go. Raises JournalError if something could not be stored."""
        try:
            await asyncio.to_thread(self._writer.close)
        finally:
            self._lock.release()
            self._engine.dispose()

    # Inside.

    def _account(self, client: Address) -> Change:
        return Change(_ACCOUNT, client, account_row(self._owner, client, self._books[client]))

    def _session_after(self, row: dict[str, Any], entry: Entry) -> dict[str, Any]:
        """The session's row after an entry; steps only rise."""
        after = dict(row)
        if entry.signed_step > row["signed_step"]:
            after |= {"signed_step": entry.signed_step, "signed_tokens": entry.signed_tokens}
        newest = entry.newest
        if newest is not None and (row["step"] is None or newest.receipt.receipt.step > row["step"]):
            after |= proof_row(newest) | {"voucher_total": newest.voucher.total}
            if newest.receipt.receipt.step > after["signed_step"]:
                after |= {"signed_step": newest.receipt.receipt.step, "signed_tokens": newest.receipt.receipt.tokens}
        return after

    def _count(self, price: Credits, opened: int, signed: int, countersigned: int) -> None:
        if price:
            self._paid = self._paid.plus(opened, signed, countersigned, price)
        else:
            self._free = self._free.plus(opened, signed, countersigned, 0)

    def _load(self, connection: Connection) -> None:
        for row in connection.execute(select(accounts).where(accounts.c.owner == self._owner)):
            newest = None
            try:
                if row.session is not None:
                    newest = proof_from(row, self.domain, self.node, SessionId(row.session), row.highest)
            except (ProofError, ValueError) as error:
                raise JournalError(
                    f"The journal's account of {row.client} is damaged",
                    why=str(error),
                    next_step="restore the journal from a backup",
                ) from None
            self._books[row.client] = Book(row.highest, row.owed, newest, row.collected, row.reason)
        sums = select(
            sessions.c.price, func.count(), func.sum(sessions.c.signed_tokens), func.sum(sessions.c.tokens)
        ).where(sessions.c.owner == self._owner)
        for price, count, signed, countersigned in connection.execute(sums.group_by(sessions.c.price)):
            if price:
                self._paid = self._paid.plus(count, int(signed), int(countersigned), price)
            else:
                self._free = self._free.plus(count, int(signed), int(countersigned), 0)


def _owner(connection: Connection, domain: Domain, node: Address) -> int:
    key = {"chain_id": domain.chain_id, "settlement": domain.settlement, "node": node}
    found = connection.scalar(select(nodes.c.id).filter_by(**key))
    if found is not None:
        return int(found)
    inserted = connection.execute(nodes.insert().values(**key)).inserted_primary_key
    return int(inserted[0]) if inserted else 0


def _statements(engine: Engine, owner: int) -> list[Prepared]:
    """By number: _ACCOUNT, _SESSION, _CLAIM."""
    claim = (
        sessions.update()
        .where(sessions.c.owner == owner, sessions.c.id == bindparam("session"))
        .values(claim=bindparam("outcome"))
    )
    return [
        Prepared(engine, upsert(engine, accounts, lambda new, old: new.highest >= old.highest), accounts),
        Prepared(engine, upsert(engine, sessions), sessions),
        Prepared(engine, claim),
    ]
