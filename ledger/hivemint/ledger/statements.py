"""What own nodes' journals say, read from beside: which work was signed and countersigned, and what came of it."""

from typing import Any

from sqlalchemy import Connection, func, select

from hivemint.contracts.credits import mintable
from hivemint.contracts.ids import Credits
from hivemint.contracts.network import Network
from hivemint.ledger.documents import OwnLane, OwnNode, OwnSession
from hivemint.ledger.entries import Lane
from hivemint.ledger.store import open_store, reading
from hivemint.ledger.tables import accounts, nodes, sessions


class Statements:
    """A journal opened for reading; the node that writes it may run. It can hold several nodes' books."""

    def __init__(self, url: str, network: Network) -> None:
        """Raises StoreError if there is no journal, ConfigError for a bad URL."""
        self._engine = open_store(url, read_only=True)
        self._network = network

    def nodes(self) -> list[OwnNode]:
        """The credit flow of each node, all of its sessions together. `donated` is not the journal's to know: 0."""
        with reading(self._engine) as connection:
            return [self._node(connection, owner, node) for owner, node in self._owners(connection)]

    def sessions(self, node: str, limit: int, offset: int) -> list[OwnSession]:
        """A node's sessions, the latest expiry first."""
        with reading(self._engine) as connection:
            owner = next((owner for owner, name in self._owners(connection) if name.lower() == node.lower()), None)
            wanted = select(sessions).where(sessions.c.owner == owner)
            wanted = wanted.order_by(sessions.c.expiry.desc(), sessions.c.id).limit(limit).offset(offset)
            return [_session(row) for row in connection.execute(wanted)]

    def close(self) -> None:
        self._engine.dispose()

    def _owners(self, connection: Connection) -> list[tuple[int, str]]:
        wanted = select(nodes.c.id, nodes.c.node).where(
            nodes.c.chain_id == self._network.chain_id, nodes.c.settlement == self._network.contracts.settlement
        )
        return [(row.id, row.node) for row in connection.execute(wanted.order_by(nodes.c.id))]

    def _node(self, connection: Connection, owner: int, node: str) -> OwnNode:
        paid, free = Lane(), Lane()
        sums = select(
            sessions.c.price, func.count(), func.sum(sessions.c.signed_tokens), func.sum(sessions.c.tokens)
        ).where(sessions.c.owner == owner)
        for price, count, signed, countersigned in connection.execute(sums.group_by(sessions.c.price)):
            if price:
                paid = paid.plus(count, int(signed), int(countersigned), price)
            else:
                free = free.plus(count, int(signed), int(countersigned), 0)
        wanted = select(accounts.c.highest, accounts.c.collected, accounts.c.reason).where(accounts.c.owner == owner)
        books = connection.execute(wanted).all()
        return OwnNode(
            node=node,
            paid=_lane(paid),
            free=_lane(free),
            promised=sum(book.highest for book in books),
            collected=sum(book.collected for book in books),
            minted=sum(mintable(book.collected) for book in books),
            donated=Credits(0),
            reasons=sorted({book.reason for book in books if book.reason}),
        )


def _lane(lane: Lane) -> OwnLane:
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
