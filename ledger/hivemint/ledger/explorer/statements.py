"""What own nodes' journals say, read from beside: which work was signed and countersigned, and what came of it."""

from typing import Any

from sqlalchemy import Connection, func, select

from hivemint.ledger.books.entries import LaneTotals
from hivemint.ledger.books.keeping import Gone
from hivemint.ledger.explorer.documents import OwnLane, OwnNode, OwnSession
from hivemint.ledger.store.database import open_store, reading
from hivemint.ledger.store.tables import accounts, gone, nodes, sessions
from hivemint.protocol.credits import mintable
from hivemint.protocol.ids import Credits
from hivemint.protocol.network import Network


class Statements:
    """A journal opened for reading; the node that writes it may run. It can hold several nodes' books."""

    def __init__(self, url: str, network: Network) -> None:
        """Raises StoreError if there is no journal, ConfigError for a bad URL."""
        self._engine = open_store(url, read_only=True)
        self._network = network

    def nodes(self) -> list[OwnNode]:
        """The credit flow of each node, all sessions together. What the chain alone knows is 0 here."""
        with reading(self._engine) as connection:
            return [self._node(connection, owner, node) for node, owner in self._owners(connection).items()]

    def sessions(self, node: str, limit: int, offset: int) -> list[OwnSession]:
        """A node's sessions that its journal keeps (`keeping.py`), the latest expiry first."""
        with reading(self._engine) as connection:
            owners = {name.lower(): owner for name, owner in self._owners(connection).items()}
            owner = owners.get(node.lower())
            wanted = select(sessions).where(sessions.c.owner == owner)
            wanted = wanted.order_by(sessions.c.expiry.desc(), sessions.c.id).limit(limit).offset(offset)
            return [_session(row) for row in connection.execute(wanted)]

    def close(self) -> None:
        self._engine.dispose()

    def _owners(self, connection: Connection) -> dict[str, int]:
        """Of several books of one node those that were begun last: its chain has begun anew."""
        wanted = select(nodes.c.id, nodes.c.node).where(
            nodes.c.chain_id == self._network.chain_id, nodes.c.settlement == self._network.contracts.settlement
        )
        return {row.node: row.id for row in connection.execute(wanted.order_by(nodes.c.id))}

    def _node(self, connection: Connection, owner: int, node: str) -> OwnNode:
        went = Gone.read(connection.execute(select(gone).filter_by(owner=owner)).first())
        paid, donated = went.paid, went.donated
        sums = select(
            sessions.c.price, func.count(), func.sum(sessions.c.signed_tokens), func.sum(sessions.c.tokens)
        ).where(sessions.c.owner == owner)
        for price, count, signed, countersigned in connection.execute(sums.group_by(sessions.c.price)):
            if price:
                paid = paid.plus(count, int(signed), int(countersigned), price)
            else:
                donated = donated.plus(count, int(signed), int(countersigned), 0)
        books = connection.execute(
            select(accounts.c.collected, accounts.c.reason).where(accounts.c.owner == owner)
        ).all()
        best = select(func.max(sessions.c.voucher_total)).where(
            sessions.c.owner == owner, sessions.c.voucher_total.is_not(None)
        )
        return OwnNode(
            node=node,
            paid=_lane(paid),
            donated=_lane(donated),
            promised=Credits(went.promised + sum(connection.scalars(best.group_by(sessions.c.client)))),
            collected=Credits(went.settled + sum(book.collected for book in books)),
            minted=Credits(went.minted + sum(mintable(book.collected) for book in books)),
            donated_minted=Credits(0),
            earned=Credits(0),
            earned_hour=Credits(0),
            earned_day=Credits(0),
            reasons=sorted({book.reason for book in books if book.reason}),
        )


def _lane(lane: LaneTotals) -> OwnLane:
    return OwnLane(
        sessions=lane.sessions,
        tokens_signed=lane.tokens_signed,
        tokens_countersigned=lane.tokens_countersigned,
        signed=lane.signed,
        countersigned=lane.countersigned,
    )


def _session(row: Any) -> OwnSession:
    return OwnSession(
        session=bytes(row.id),
        client=row.client,
        price=row.price,
        first_block=row.first_block,
        end_block=row.end_block,
        expiry=row.expiry,
        signed_step=row.signed_step,
        signed_tokens=row.signed_tokens,
        countersigned_step=row.step,
        countersigned_tokens=row.tokens,
        claim=row.claim,
    )
