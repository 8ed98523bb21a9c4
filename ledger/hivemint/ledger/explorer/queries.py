"""Questions that people ask of the ledger, answered from the index, the own nodes' journals and the swarm."""

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from sqlalchemy import Select, Table, func, select

from hivemint.ledger.books.earnings import DAY, HOUR
from hivemint.ledger.explorer import documents
from hivemint.ledger.explorer.documents import (
    Balance,
    Epoch,
    EscrowRow,
    NodeRow,
    OwnNode,
    OwnSession,
    Page,
    ServedModel,
    SettlementRow,
    Withdrawal,
)
from hivemint.ledger.explorer.indexer import Indexer
from hivemint.ledger.explorer.statements import Statements
from hivemint.ledger.store.database import reading
from hivemint.ledger.store.tables import balances, blocks, epochs, escrows, events, registrations, shares
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.network import Network

log = structlog.get_logger(__name__)

SwarmMap = Callable[[], Awaitable[Sequence[dict[str, Any]]]]
"""Asks the DHT: one dict a model, as `documents.ServedModel` has it. The ledger itself speaks no libp2p."""

_TOTALS_FRESH = 2.0  # seconds
_SWARM_FRESH = 3.0
_MOST_EVENTS = 20_000  # of a node and a day


class Explorer:
    """Reads only. Methods without `async` block for the time of a query: call them in a thread."""

    def __init__(
        self,
        indexer: Indexer,
        network: Network,
        statements: Sequence[Statements] = (),
        swarm_map: SwarmMap | None = None,
    ) -> None:
        self.network, self.indexer = network, indexer
        self._statements, self._swarm_map = statements, swarm_map
        self._totals: tuple[float, documents.CreditTotals] | None = None
        self._swarm: tuple[float, list[ServedModel]] = (float("-inf"), [])
        self.swarm_trouble = "" if swarm_map else "the ledger runs without a view of the swarm"

    # The chain.

    def status(self) -> documents.IndexStatus:
        progress = self.indexer.progress
        return documents.IndexStatus(
            network=self.network.name,
            chain_id=self.network.chain_id,
            indexed=progress.indexed,
            head=progress.head,
            trouble=self.indexer.trouble,
            totals=self.totals(),
        )

    def totals(self) -> documents.CreditTotals:
        """Sums over all credits, at most two seconds old."""
        if self._totals is None or time.monotonic() - self._totals[0] > _TOTALS_FRESH:
            self._totals = (time.monotonic(), self._add_up())
        return self._totals[1]

    def balances(self, limit: int, offset: int) -> Page[Balance]:
        """The greatest first."""
        rows = self._page(self._of(balances).order_by(balances.c.amount.desc(), balances.c.holder), limit, offset)
        return _paged([Balance(holder=row.holder, amount=row.amount) for row in rows], limit, offset)

    def balance(self, holder: str) -> Balance:
        rows = self._page(self._of(balances).where(balances.c.holder == holder), 1, 0)
        return Balance(holder=holder, amount=rows[0].amount if rows else 0)

    def escrows(
        self, limit: int, offset: int, *, client: str | None = None, node: str | None = None
    ) -> Page[EscrowRow]:
        wanted = _where(self._of(escrows), escrows, client=client, node=node).order_by(escrows.c.client, escrows.c.node)
        rows = self._page(wanted, limit, offset)
        return _paged([EscrowRow.model_validate(row, from_attributes=True) for row in rows], limit, offset)

    def nodes(self, limit: int, offset: int, *, node: str | None = None) -> Page[NodeRow]:
        """By what they have earned, the most first."""
        wanted = _where(self._of(registrations), registrations, node=node)
        wanted = wanted.order_by(registrations.c.minted.desc(), registrations.c.donated.desc(), registrations.c.node)
        rows = self._page(wanted, limit, offset)
        return _paged([NodeRow.model_validate(row, from_attributes=True) for row in rows], limit, offset)

    def settlements(
        self,
        limit: int,
        offset: int,
        *,
        node: str | None = None,
        client: str | None = None,
        transaction: bytes | None = None,
    ) -> Page[SettlementRow]:
        """The newest first."""
        wanted = _where(self._of(events), events, node=node, client=client).where(events.c.name == "Settled")
        if transaction is not None:
            wanted = wanted.where(events.c.transaction == transaction)
        rows = self._page(wanted.order_by(events.c.block.desc(), events.c.position.desc()), limit, offset)
        return _paged([_settlement(row) for row in rows], limit, offset)

    def withdrawals(
        self, limit: int, offset: int, *, node: str | None = None, client: str | None = None
    ) -> Page[Withdrawal]:
        """The newest first."""
        closed = events.alias()
        beside = (closed.c.chain == events.c.chain) & (closed.c.transaction == events.c.transaction)
        beside &= (closed.c.node == events.c.node) & (closed.c.client == events.c.client) & (closed.c.name == "Closed")
        wanted = _where(self._of(events), events, node=node, client=client).where(events.c.name == "Withdrawn")
        wanted = wanted.add_columns(select(closed).where(beside).exists().label("together"))
        rows = self._page(wanted.order_by(events.c.block.desc(), events.c.position.desc()), limit, offset)
        return _paged([_withdrawal(row) for row in rows], limit, offset)

    def epochs(self, limit: int, offset: int) -> Page[Epoch]:
        """The newest first."""
        rows = self._page(self._of(epochs).order_by(epochs.c.epoch.desc()), limit, offset)
        numbers = [row.epoch for row in rows]
        claimed = self._page(
            self._of(shares).where(shares.c.epoch.in_(numbers)).order_by(shares.c.weight.desc(), shares.c.node),
            limit * 100,
            0,
        )
        found = [
            Epoch(
                epoch=row.epoch,
                begins=row.epoch * self.indexer.epoch,
                settled=row.settled,
                minted=row.minted,
                fee=row.settled - row.minted,
                donated=row.donated,
                shares=[
                    documents.ShareRow.model_validate(share, from_attributes=True)
                    for share in claimed
                    if share.epoch == row.epoch
                ],
            )
            for row in rows
        ]
        return _paged(found, limit, offset)

    # Own nodes and the swarm.

    @property
    def has_own_nodes(self) -> bool:
        return bool(self._statements)

    def own_nodes(self) -> list[OwnNode]:
        """The flow of own nodes' credits; settled and minted as the chain has them, if the node is indexed."""
        found = []
        for own in (own for statements in self._statements for own in statements.nodes()):
            on_chain = self.nodes(1, 0, node=own.node).items
            chain = {"collected": on_chain[0].settled, "minted": on_chain[0].minted} if on_chain else {}
            donated = on_chain[0].donated if on_chain else 0
            earned = {"earned": chain.get("minted", own.minted) + donated} | self._earned_lately(own.node)
            found.append(own.model_copy(update=chain | {"donated_minted": donated} | earned))
        return found

    def _earned_lately(self, node: str) -> dict[str, int]:
        """What the chain has minted for a node within the last hour and day, by the times of its blocks.

        A local chain's clock may run ahead of ours: then that one counts.
        """
        newest = select(func.max(blocks.c.time)).where(blocks.c.chain == self.indexer.chain)
        with reading(self.indexer.engine) as connection:
            now = max(time.time(), connection.execute(newest).scalar() or 0)
        wanted = _where(self._of(events), events, node=node).where(events.c.name.in_(("Settled", "Minted")))
        wanted = wanted.where(events.c.time >= int(now) - DAY).order_by(events.c.block.desc())
        rows = self._page(wanted, _MOST_EVENTS, 0)
        amounts = [(row.time, _minted(row.name, json.loads(row.arguments))) for row in rows]
        hour = sum(amount for at, amount in amounts if at >= now - HOUR)
        return {"earned_hour": hour, "earned_day": sum(amount for _, amount in amounts)}

    def own_sessions(self, node: str, limit: int, offset: int) -> Page[OwnSession]:
        found = [one for statements in self._statements for one in statements.sessions(node, limit + 1, offset)]
        return _paged(found, limit, offset)

    async def swarm(self) -> list[ServedModel]:
        """The block map, a few seconds old at most. If the DHT can't be asked: the last one, and `swarm_trouble`."""
        if self._swarm_map is not None and time.monotonic() - self._swarm[0] > _SWARM_FRESH:
            before = self._swarm[1]
            self._swarm = (time.monotonic(), before)  # nobody else asks meanwhile
            try:
                found = [ServedModel.model_validate(model) for model in await self._swarm_map()]
                self._swarm, self.swarm_trouble = (time.monotonic(), found), ""
            except HivemintError as error:
                self.swarm_trouble = str(error)
                log.warning("the swarm cannot be asked", reason=str(error))
        return self._swarm[1]

    # Inside.

    def _of(self, table: Table) -> Select[Any]:
        return select(table).where(table.c.chain == self.indexer.chain)

    def _page(self, wanted: Select[Any], limit: int, offset: int) -> Sequence[Any]:
        """One row more than asked, so that `_paged` knows whether there is a next page."""
        with reading(self.indexer.engine) as connection:
            return connection.execute(wanted.limit(limit + 1).offset(offset)).all()

    def _add_up(self) -> documents.CreditTotals:
        with reading(self.indexer.engine) as connection:
            held = {row.holder: row.amount for row in connection.execute(self._of(balances))}
            by_epoch = connection.execute(self._of(epochs)).all()
            escrow = sum(row.balance for row in connection.execute(self._of(escrows)))
        settled, minted = sum(row.settled for row in by_epoch), sum(row.minted for row in by_epoch)
        donated, supply = sum(row.donated for row in by_epoch), sum(held.values())
        covered = escrow <= held.get(self.network.contracts.settlement, 0)  # more of it was sent there by mistake
        return documents.CreditTotals(
            supply=supply,
            settled=settled,
            minted=minted,
            fee=settled - minted,
            donated=donated,
            escrow=escrow,
            supply_ok=supply == donated + minted - settled and covered and not self.indexer.differs,
        )


def _where(wanted: Select[Any], table: Table, **equal: str | None) -> Select[Any]:
    for name, value in equal.items():
        if value is not None:
            wanted = wanted.where(table.c[name] == value)
    return wanted


def _paged(items: list[documents.T], limit: int, offset: int) -> Page[documents.T]:
    return Page(items=items[:limit], next=offset + limit if len(items) > limit else None)


def _minted(name: str, values: dict[str, Any]) -> int:
    """Of a `Settled` of paid work, or a `Minted` of donated work."""
    return int(values["minted"] if name == "Settled" else values["amount"])


def _withdrawal(row: Any) -> Withdrawal:
    return Withdrawal(
        block=row.block,
        time=row.time,
        transaction=bytes(row.transaction),
        node=row.node,
        client=row.client,
        amount=json.loads(row.arguments)["amount"],
        together=row.together,
    )


def _settlement(row: Any) -> SettlementRow:
    values = json.loads(row.arguments)
    return SettlementRow(
        block=row.block,
        time=row.time,
        transaction=bytes(row.transaction),
        node=row.node,
        client=row.client,
        session=values["sessionId"],
        step=values["step"],
        tokens=values["tokens"],
        burned=values["burned"],
        minted=values["minted"],
        fee=values["burned"] - values["minted"],
    )
