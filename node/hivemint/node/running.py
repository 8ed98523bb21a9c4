"""A node that serves: what it was started with, and its parts."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hivemint.ledger.books.earnings import DAY, HOUR
from hivemint.ledger.books.flow import CreditFlow
from hivemint.model.local_models import LocalModel
from hivemint.node.settings import NodeSettings
from hivemint.protocol.home import Home
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.ledger.books.earnings import Earnings
    from hivemint.ledger.books.journal import Journal
    from hivemint.ledger.settlement.outlook import PayOutlook
    from hivemint.ledger.settlement.settler import Settler
    from hivemint.node.market import Market
    from hivemint.node.placement.measure import Measured
    from hivemint.node.placement.watch import PlacementWatch
    from hivemint.node.server import Node
    from hivemint.node.span.span import Span
    from hivemint.swarm.host import Host


@dataclass(frozen=True)
class ServePlan:
    """What to serve, as whom. `name`: of the folder in the home."""

    network: Network
    model: LocalModel
    first: int
    end: int
    name: str
    signer: Signer
    settings: NodeSettings
    home: Home
    new_books: bool = False
    """The user has said that books of this chain may begin beside those of another one."""
    measured: "Measured | None" = None
    """What the blocks were chosen by; None: the user has named them, and the node stays there."""

    @property
    def folder(self) -> Path:
        return self.home.node(self.name)

    @property
    def journal_url(self) -> str:
        return f"sqlite:///{self.folder / 'journal.db'}"


@dataclass
class Running:
    """A node that serves, with all that it stands on."""

    plan: ServePlan
    node: "Node"
    host: "Host"
    journal: "Journal"
    settler: "Settler"
    span: "Span"
    earnings: "Earnings"
    outlook: "PayOutlook"
    market: "Market"
    placement: "PlacementWatch | None" = None
    """None: it stays where it is."""
    metrics_url: str | None = None
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    def flow(self) -> CreditFlow:
        """Where the work stands on its way to credits: the figures of every view."""
        return flow_of(self.journal, self.settler, self.earnings)


def flow_of(journal: "Journal", settler: "Settler", earnings: "Earnings") -> CreditFlow:
    """Books, chain and what was earned when, brought together."""
    totals = journal.totals
    earnings.note(int(totals.minted), settler.minted_epochs, frozenset(settler.minted_here))
    hour, day = earnings.last(HOUR), earnings.last(DAY)
    return CreditFlow.of(totals, earnings.donated, hour=hour, day=day, since_start=earnings.since_start)
