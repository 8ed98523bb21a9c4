"""An operator's books as the database holds them: whose they are, what is read as they open, how rows are written.

What is read is checked again, as a file is outside input too. All sessions of earlier runs have ended, however these
did, so that reading also drops the rows that are kept no more, in the same transaction.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, func, select

from hivemint.ledger.books.entries import NOTHING, Book, Lanes, proof_from
from hivemint.ledger.books.keeping import ClosedSession, Gone, Keeping
from hivemint.ledger.books.writer import JournalError
from hivemint.ledger.store.database import upsert
from hivemint.ledger.store.prepared import Prepared
from hivemint.ledger.store.tables import accounts, gone, nodes, sessions
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Address, SessionId

UNKNOWN = b""
"""The genesis of books that an older version wrote: whoever opens them first says which chain they are of."""
FORGET, ACCOUNT, SESSION, CLAIM, DROP, GONE = range(6)
"""The numbers of `statements`."""


@dataclass(frozen=True, slots=True)
class StoredBooks:
    """What a journal goes on with: clients' standings, the sums of both lanes, which closed sessions stay."""

    books: dict[Address, Book]
    lanes: Lanes
    keeping: Keeping


def owner_of(connection: Connection, domain: Domain, node: Address, genesis: bytes, begin_anew: bool) -> int:
    """The number of the operator's books on this chain, new ones where there are none. Raises JournalError."""
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


def read_books(engine: Engine, connection: Connection, owner: int, domain: Domain, node: Address) -> StoredBooks:
    """Everything that a journal keeps in memory, every proof checked. Raises JournalError for damaged books."""
    keeping = Keeping(Gone.read(connection.execute(select(gone).filter_by(owner=owner)).first()))
    lanes = Lanes(keeping.gone.paid, keeping.gone.donated)
    books = _accounts(connection, owner)
    _add_proofs(books, connection, owner, domain, node)
    sums = select(
        sessions.c.price, func.count(), func.sum(sessions.c.signed_tokens), func.sum(sessions.c.tokens)
    ).where(sessions.c.owner == owner)
    for price, count, signed, countersigned in connection.execute(sums.group_by(sessions.c.price)):
        lanes.count(price, count, int(signed), int(countersigned))
    went = _closed(connection, owner, books, keeping)
    if went:
        prepared = statements(engine, owner)
        prepared[DROP].run(connection, [{"session": one.id} for one in went])
        prepared[GONE].run(connection, [keeping.gone.row(owner)])
    return StoredBooks(books, lanes, keeping)


def statements(engine: Engine, owner: int) -> list[Prepared]:
    """By number: FORGET, ACCOUNT, SESSION, CLAIM, DROP, GONE. A client that is forgotten and comes back between
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


def _accounts(connection: Connection, owner: int) -> dict[Address, Book]:
    """Standings without their proofs."""
    books: dict[Address, Book] = {}
    for row in connection.execute(select(accounts).where(accounts.c.owner == owner)):
        book = Book(
            row.owed,
            row.collected,
            row.reason,
            worthless_since=row.worthless_since,
            released_until=row.released_until,
        )
        if book != Book():
            books[row.client] = book
    return books


def _add_proofs(books: dict[Address, Book], connection: Connection, owner: int, domain: Domain, node: Address) -> None:
    """Raises JournalError for a proof that does not hold, or promises more than is owed."""
    for row in connection.execute(_best_proofs(owner)):
        book = books.get(row.client, Book())
        try:
            proof = proof_from(row, domain, node, SessionId(row.id), row.voucher_total)
            if row.voucher_total > book.owed:
                raise ProofError("more is promised than owed", why=f"{row.voucher_total} wei of {book.owed}")
        except (ProofError, ValueError) as error:
            raise JournalError(
                f"The journal's account of {row.client} is damaged",
                why=str(error),
                next_step="restore the journal from a backup",
            ) from None
        books[row.client] = book.proved(proof)


def _closed(connection: Connection, owner: int, books: dict[Address, Book], keeping: Keeping) -> list[ClosedSession]:
    """The sessions of earlier runs that are kept no more; `keeping` knows the others."""
    presented = {pair.receipt.session_id for book in books.values() for pair in book.proofs.values()}
    names = ("id", "client", "price", "signed_tokens", "tokens", "first_block", "end_block", "step")
    wanted = select(*(sessions.c[name] for name in names)).where(sessions.c.owner == owner)
    went: list[ClosedSession] = []
    for row in connection.execute(wanted.order_by(sessions.c.expiry)).mappings().all():
        closed = ClosedSession.of(dict(row))
        went += keeping.ended(closed, row["step"] is not None, closed.id in presented)
    return went


def _best_proofs(owner: int) -> Any:
    """Of each client and key the session row with the highest total."""
    order = (sessions.c.voucher_total.desc(), sessions.c.step.desc(), sessions.c.id.desc())
    place = func.row_number().over(partition_by=(sessions.c.client, sessions.c.voucher_key), order_by=order)
    paid = (sessions.c.owner == owner) & (sessions.c.price != NOTHING) & sessions.c.step.is_not(None)
    ranked = select(sessions, place.label("place")).where(paid).subquery()
    return select(ranked).where(ranked.c.place == 1)
