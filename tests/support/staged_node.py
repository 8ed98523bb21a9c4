"""A real node on a stage: its journal a file, its chain the real contracts through endpoints that can lie."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivemint.contracts.bindings import Bindings
from hivemint.ledger.books.entries import Book
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.settlement.chainview import ContractView
from hivemint.ledger.settlement.payments import ContractPayments
from hivemint.ledger.settlement.settler import Settler, SettlerSettings
from hivemint.ledger.store.database import database_url
from hivemint.node.server import Kit, Node
from hivemint.node.settings import NodeSettings
from hivemint.node.span.span import Span
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.ids import Credits, ModelId
from support.money_stage import NODE, WALLET, Stage

ASK, ROWS, AHEAD = 10, 4, 2
"""Wei a token and block (there is one block); rows a step; a session's steps in flight."""
_SETTLER = SettlerSettings(settle_min=Credits(1), dust=Credits(1))


class Ticks:
    """A clock that goes on when it is told to: nothing is taken as fresh."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class StagedNode:
    stage: Stage
    file: Path
    node: Node
    journal: Journal
    settler: Settler
    contracts: Bindings
    ticks: Ticks

    @classmethod
    async def start(cls, stage: Stage, span: Span, file: Path) -> "StagedNode":
        ticks = Ticks()
        contracts = await Bindings.connect(stage.network)
        genesis = await contracts.chain.genesis()
        journal = Journal.open(database_url(file), stage.domain, NODE.address, genesis)
        view = ContractView(contracts, NODE.address, 1, clock=ticks)
        kit = Kit(stage.network, ModelId(b"\x07" * 32), span, NODE, stage.host, journal, view)
        chosen: dict[str, Any] = {"ask": ASK, "kv_bytes": 1 << 22, "max_rows": ROWS, "ahead": AHEAD, "drain": 0.01}
        node = await Node.start(kit, NodeSettings(**chosen, max_backward=0))
        settler = Settler(journal, ContractPayments(contracts, NODE), _SETTLER, clock=ticks)
        return cls(stage, file, node, journal, settler, contracts, ticks)

    @property
    def span(self) -> Span:
        return self.node.kit.span

    @property
    def book(self) -> Book:
        return self.journal.book(WALLET.address)

    @property
    def owed(self) -> int:
        """What the node would tell the wallet now."""
        return self.node.registry.account(WALLET.address).owed

    async def look(self) -> None:
        """What the node does each second while sessions run."""
        self.ticks.now += 1
        await self.node.registry.look()
        for ending in list(self.node.registry._ending):
            await ending

    async def settle(self) -> None:
        """A round of the worker. Raises what went wrong."""
        self.ticks.now += 1000
        await self.settler.round()

    async def try_to_settle(self) -> None:
        """The same while the chain may not answer as it should: the worker tells, and tries again later."""
        with suppress(HivemintError):
            await self.settle()

    async def killed(self) -> "StagedNode":
        """What a disk holds at this moment, and a node that is started from it."""
        copied = self.file.with_name(f"{self.file.stem}+.db")
        for end in ("", "-wal"):
            here = self.file.with_name(self.file.name + end)
            if here.exists():
                shutil.copy(here, copied.with_name(copied.name + end))
        await self.end()
        return await self.start(self.stage, self.span, copied)

    async def end(self) -> None:
        await self.node.close()
        await self.journal.close()
        await self.contracts.close()
