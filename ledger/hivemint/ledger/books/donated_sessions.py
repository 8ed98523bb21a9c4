"""A node's donated sessions as its journal stored them: what `Emission` may be asked for, and what became of it.

All but `note_claims` reads the database, so call it in a thread; what is noted is written by the journal's writer.
"""

from collections.abc import Iterable

from sqlalchemy import Engine, select

from hivemint.ledger.books.entries import NOTHING, Donated, proof_from, session_from
from hivemint.ledger.books.keeping import KNOWN_EPOCHS
from hivemint.ledger.books.stored import CLAIM
from hivemint.ledger.books.writer import Change, GroupWriter
from hivemint.ledger.store.database import reading
from hivemint.ledger.store.tables import sessions
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Address, SessionId


class DonatedSessions:
    """Of the books `owner`: those of one operator on one chain."""

    def __init__(self, engine: Engine, owner: int, domain: Domain, node: Address, writer: GroupWriter) -> None:
        self._engine, self._owner, self._writer = engine, owner, writer
        self._domain, self._node = domain, node

    def donated(self, begin: int, end: int) -> list[Donated]:
        """Those with countersigned work that expire in [begin, end) seconds, in rising order of session id.

        A stored proof that does not hold is left out and marked.
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
                newest = proof_from(row, self._domain, self._node, SessionId(row.id), NOTHING)
            except (ProofError, ValueError):
                self.note_claims([SessionId(row.id)], "its stored proof does not hold")
                continue
            shown = None if row.delegation_until is None else (row.delegation_until, row.delegation_signature)
            found.append(Donated(session_from(row, self._node), row.signature, shown, newest, row.claim))
        return found

    def claimed_epochs(self, length: int) -> set[int]:
        """Epochs (of `length` seconds) in which sessions expired that were claimed."""
        wanted = select(sessions.c.expiry).where(
            sessions.c.owner == self._owner, sessions.c.claim.startswith("claimed")
        )
        with reading(self._engine) as connection:
            return {expiry // length for expiry in connection.scalars(wanted.distinct())}

    def over(self, epoch: int, length: int) -> set[SessionId]:
        """Those that are of no use once `epoch` can be claimed."""
        begin = sessions.c.expiry < epoch * length
        known = sessions.c.claim.startswith("claimed") & (sessions.c.expiry >= (epoch - KNOWN_EPOCHS) * length)
        wanted = select(sessions.c.id).where(
            sessions.c.owner == self._owner, sessions.c.price == NOTHING, begin, ~known
        )
        with reading(self._engine) as connection:
            return {SessionId(bytes(found)) for found in connection.scalars(wanted)}

    def note_claims(self, claimed: Iterable[SessionId], outcome: str) -> None:
        """Note what became of them on the chain, for the live view; durable a little later. Raises WriteFailed."""
        for session in claimed:
            self._writer.submit(Change(CLAIM, session, {"session": session, "outcome": outcome[:80]}))
