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

from sqlalchemy import Connection, Engine, bindparam, func, select

from hivemint.ledger.books.entries import (
    NOTHING,
    Book,
    Donated,
    Entry,
    LaneTotals,
    NodeTotals,
    OpenRow,
    account_row,
    check_pair,
    proof_from,
    rank,
    row_after,
    session_from,
    session_row,
)
from hivemint.ledger.books.keeping import KNOWN_EPOCHS, WORTHLESS_FOR, ClosedSession, Gone, Keeping
from hivemint.ledger.books.writer import Change, GroupWriter, JournalError, WriteFailed
from hivemint.ledger.store.database import WriterLock, open_store, reading, upsert, writing
from hivemint.ledger.store.prepared import Prepared
from hivemint.ledger.store.tables import accounts, gone, nodes, sessions
from hivemint.protocol.credits import mintable
from hivemint.protocol.eip712 import MAX_UINT96, Delegation, Domain, Session
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Address, Credits, SessionId, Signature
from hivemint.protocol.receipt import Countersigned

UNKNOWN = b""
"""The genesis of books that an older version wrote: whoever opens them first says which chain they are of."""
_FORGET, _ACCOUNT, _SESSION, _CLAIM, _DROP, _GONE = range(6)
MOST_PROMISED = 256
"""Vouchers of one client that wait for the sum owed; an honest one has as many as steps in flight."""


class Journal:
    """The books of one operator on one `Settlement` contract. One process at a time; its methods are for one thread."""

    def __init__(self, engine: Engine, lock: WriterLock, domain: Domain, node: Address, owner: int) -> None:
        self.domain, self.node = domain, node
        self._engine, self._lock, self._owner = engine, lock, owner
        self._books: dict[Address, Book] = {}
        self._open: dict[SessionId, OpenRow] = {}
        self._paid, self._free = LaneTotals(), LaneTotals()
        self._keeping = Keeping(Gone())
        self._writer = GroupWriter(engine, _statements(engine, owner))

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
                owner = _owner(connection, domain, node, genesis, begin_anew)
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
    def totals(self) -> NodeTotals:
        """The credit flow, for the live view."""
        books, went = self._books.values(), self._keeping.gone
        return NodeTotals(
            paid=self._paid,
            free=self._free,
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
        self._open[session_id] = OpenRow(session.client, session.price, row)
        self._count(session.price, 1, 0, 0)
        await self._writer.commit(Change(_SESSION, session_id, row))
        return session_id

    def promise(self, pair: Countersigned) -> None:
        """A voucher came with a request: cover from now on, a proof once `record` says that so much is owed.

        Raises JournalError, ProofError before anything has changed.
        """
        receipt = pair.receipt.body
        if self._session(receipt.client, receipt.session_id).price:
            check_pair(pair, self.node, receipt.client, receipt.session_id)
            book = self.book(receipt.client)
            self._books[receipt.client] = replace(book, promised=_with(book.promised, pair))

    async def record(self, entry: Entry) -> None:
        """Make an entry durable. Raises JournalError, ProofError before anything has changed.

        The sum owed never falls, and never passes what was promised. Every voucher that it reaches becomes a proof.
        A free session's entry leaves it as it is.
        """
        opened = self._session(entry.client, entry.session)
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
        changes = [Change(_SESSION, session, row) for session, row in rows.items()]
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
        opened = self._open.get(session)
        if opened is not None:
            opened.ended = True
            self._tidy(opened.client)

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
                self._writer.submit(Change(_FORGET, client, {"forgotten": client}, instead_of=_ACCOUNT))
                del self._books[client]
                self._drop(self._keeping.forgotten(client, book))
            elif since != book.worthless_since:
                self._books[client] = changed = replace(book, worthless_since=since)
                self._writer.submit(self._account(client, changed))

    @property
    def clients(self) -> set[Address]:
        """Who has a session open, or vouchers that wait."""
        return {opened.client for opened in self._open.values()}

    def collectable(self) -> list[Countersigned]:
        """For each client and key the proof with the highest total, where the chain has not paid all; most first."""
        unpaid = [
            (pair.voucher.total - book.collected, pair)
            for book in self._books.values()
            for pair in book.proofs.values()
            if pair.voucher.total > book.collected
        ]
        return [pair for _, pair in sorted(unpaid, key=lambda one: -one[0])]

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

    async def drop_over(self, epoch: int, length: int) -> None:
        """Keep no more what is of no use once `epoch` can be claimed. Raises WriteFailed, StoreError."""
        await self._writer.commit()  # what was noted of claims is stored
        self._drop(self._keeping.expired(await asyncio.to_thread(self._over, epoch, length)))

    def _over(self, epoch: int, length: int) -> set[SessionId]:
        begin = sessions.c.expiry < epoch * length
        known = sessions.c.claim.startswith("claimed") & (sessions.c.expiry >= (epoch - KNOWN_EPOCHS) * length)
        wanted = select(sessions.c.id).where(
            sessions.c.owner == self._owner, sessions.c.price == NOTHING, begin, ~known
        )
        with reading(self._engine) as connection:
            return {SessionId(bytes(found)) for found in connection.scalars(wanted)}

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

    def _account(self, client: Address, book: Book) -> Change:
        return Change(_ACCOUNT, client, account_row(self._owner, client, book))

    def _session(self, client: Address, session: SessionId) -> OpenRow:
        opened = self._open.get(session)
        if opened is None or opened.ended or opened.client != client:
            raise JournalError(
                "A journal entry of an unknown session",
                why=f"{session.hex()[:12]} of {client} is not open",
                next_step="call open_session first",
            )
        return opened

    def _drop(self, closed: Iterable[ClosedSession]) -> None:
        changes = [Change(_DROP, one.id, {"session": one.id}) for one in closed]
        if changes:
            self._writer.submit(*changes, Change(_GONE, 0, self._keeping.gone.row(self._owner)))

    def _put(self, session: SessionId, row: dict[str, Any]) -> None:
        opened = self._open[session]
        signed, bound = (row[name] - opened.row[name] for name in ("signed_tokens", "tokens"))
        self._count(opened.price, 0, signed, bound)
        opened.row = row

    def _tidy(self, client: Address) -> None:
        """Ended sessions are kept while their vouchers wait, and these while other sessions may raise the sum owed."""
        ended = [session for session, one in self._open.items() if one.ended and one.client == client]
        if not ended:
            return
        book = self.book(client)
        if all(one.ended for one in self._open.values() if one.client == client):
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

    def _count(self, price: Credits, opened: int, signed: int, countersigned: int) -> None:
        if price:
            self._paid = self._paid.plus(opened, signed, countersigned, price)
        else:
            self._free = self._free.plus(opened, signed, countersigned, 0)

    def _load(self, connection: Connection) -> None:
        self._keeping = Keeping(Gone.read(connection.execute(select(gone).filter_by(owner=self._owner)).first()))
        self._paid, self._free = self._keeping.gone.paid, self._keeping.gone.free
        for row in connection.execute(select(accounts).where(accounts.c.owner == self._owner)):
            book = Book(
                row.owed,
                row.collected,
                row.reason,
                worthless_since=row.worthless_since,
                released_until=row.released_until,
            )
            if book != Book():
                self._books[row.client] = book
        for row in connection.execute(_best_proofs(self._owner)):
            book = self.book(row.client)
            try:
                proof = proof_from(row, self.domain, self.node, SessionId(row.id), row.voucher_total)
                if row.voucher_total > book.owed:
                    raise ProofError("more is promised than owed", why=f"{row.voucher_total} wei of {book.owed}")
            except (ProofError, ValueError) as error:
                raise JournalError(
                    f"The journal's account of {row.client} is damaged",
                    why=str(error),
                    next_step="restore the journal from a backup",
                ) from None
            self._books[row.client] = book.proved(proof)
        sums = select(
            sessions.c.price, func.count(), func.sum(sessions.c.signed_tokens), func.sum(sessions.c.tokens)
        ).where(sessions.c.owner == self._owner)
        for price, count, signed, countersigned in connection.execute(sums.group_by(sessions.c.price)):
            if price:
                self._paid = self._paid.plus(count, int(signed), int(countersigned), price)
            else:
                self._free = self._free.plus(count, int(signed), int(countersigned), 0)
        self._tidy_rows(connection)

    def _tidy_rows(self, connection: Connection) -> None:
        """All sessions of earlier runs have ended, however these did."""
        presented = {p.receipt.session_id for book in self._books.values() for p in book.proofs.values()}
        names = ("id", "client", "price", "signed_tokens", "tokens", "first_block", "end_block", "step")
        wanted = select(*(sessions.c[name] for name in names)).where(sessions.c.owner == self._owner)
        went: list[ClosedSession] = []
        for row in connection.execute(wanted.order_by(sessions.c.expiry)).mappings().all():
            closed = ClosedSession.of(dict(row))
            went += self._keeping.ended(closed, row["step"] is not None, closed.id in presented)
        if went:
            statements = _statements(self._engine, self._owner)
            statements[_DROP].run(connection, [{"session": one.id} for one in went])
            statements[_GONE].run(connection, [self._keeping.gone.row(self._owner)])


def _with(promised: tuple[Countersigned, ...], pair: Countersigned) -> tuple[Countersigned, ...]:
    """With one more voucher, lowest total first. The highest always stays, as it is what covers."""
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


def _best_proofs(owner: int) -> Any:
    """Of each client and key the session row with the highest total."""
    order = (sessions.c.voucher_total.desc(), sessions.c.step.desc(), sessions.c.id.desc())
    place = func.row_number().over(partition_by=(sessions.c.client, sessions.c.voucher_key), order_by=order)
    paid = (sessions.c.owner == owner) & (sessions.c.price != NOTHING) & sessions.c.step.is_not(None)
    ranked = select(sessions, place.label("place")).where(paid).subquery()
    return select(ranked).where(ranked.c.place == 1)


def _owner(connection: Connection, domain: Domain, node: Address, genesis: bytes, begin_anew: bool) -> int:
    key = {"chain_id": domain.chain_id, "settlement": domain.settlement, "node": node}
    known = {row.genesis: row.id for row in connection.execute(select(nodes).filter_by(**key))}
    if genesis in known:
        return int(known[genesis])
    if UNKNOWN in known and not begin_anew:
        connection.execute(nodes.update().where(nodes.c.id == known[UNKNOWN]).values(genesis=genesis))
        return int(known[UNKNOWN])
    if known and not begin_anew:
        raise JournalError(
            "These books are of another chain",
            why=f"they were begun on the chain whose first block is 0x{next(iter(known)).hex()[:16]}..., this one's is "
            f"0x{genesis.hex()[:16]}..., although its chain id and contract are the same",
            next_step="connect to the chain of these books, or begin new ones beside them: "
            "`hivemint node start --new-books`",
        )
    inserted = connection.execute(nodes.insert().values(**key, genesis=genesis)).inserted_primary_key
    return int(inserted[0]) if inserted else 0


def _statements(engine: Engine, owner: int) -> list[Prepared]:
    """By number: _FORGET, _ACCOUNT, _SESSION, _CLAIM, _DROP, _GONE. A client that is forgotten and comes back between
    two commits keeps its new row.
    """
    claim = (
        sessions.update()
        .where(sessions.c.owner == owner, sessions.c.id == bindparam("session"))
        .values(claim=bindparam("outcome"))
    )
    mine = (sessions.c.owner == owner) & (sessions.c.id == bindparam("session"))
    forget = accounts.delete().where(accounts.c.owner == owner, accounts.c.client == bindparam("forgotten"))
    return [
        Prepared(engine, forget),
        Prepared(engine, upsert(engine, accounts, lambda new, old: new.owed >= old.owed), accounts),
        Prepared(engine, upsert(engine, sessions), sessions),
        Prepared(engine, claim),
        Prepared(engine, sessions.delete().where(mine)),
        Prepared(engine, upsert(engine, gone), gone),
    ]
