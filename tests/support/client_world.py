"""A client over nodes in this process: what tests of its pipelines and of its beliefs begin with."""

from pathlib import Path
from typing import Any

import torch

from hivemint.client.sessions.nodes import Target
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.pipelines.live_pipeline import LivePipeline
from hivemint.client.sessions.swarm_client import SwarmClient
from hivemint.client.sessions.wallet import Identity
from hivemint.client.settings import Bid, ClientSettings
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.protocol.signing import Signer
from support.fake_swarm import DOMAIN, HIDDEN, MODEL, FakeAccounts, FakeNode, FakeSwarm
from support.promises import GENESIS

WALLET = Signer(b"\x11" * 32)
ASK = 5
FUNDS = 10**9


class World:
    """Two nodes of 15 blocks, one client with funded accounts."""

    def __init__(self, folder: Path, *nodes: FakeNode, **settings: Any) -> None:
        self.nodes = nodes
        self.swarm = FakeSwarm(*nodes)
        self.chain = FakeAccounts.of(*nodes, funds=FUNDS)
        self.folder = folder
        self.client = self.another(**settings)

    def another(self, machine: str = "", who: Identity | None = None, **settings: Any) -> SwarmClient:
        """A client of the same wallet with its own view of the book's file: another process, in effect.

        `machine`: one with a file of its own.
        """
        chosen = ClientSettings(
            **{"min_chunk": 4, "step_timeout": 5, "repairs": 0, "spread": 0.0, "bid": Bid("times"), **settings}
        )
        book = VoucherBook.open(self.folder / f"vouchers{machine}.db", DOMAIN, WALLET.address, GENESIS)
        payer = Payer(who or Identity.own(WALLET), DOMAIN, book, self.chain)
        swarm: Any = self.swarm
        return SwarmClient(swarm, Target(MODEL, 30, HIDDEN), payer, chosen, proofs=self.folder / "evidence")


def rows(count: int) -> torch.Tensor:
    return torch.arange(count * HIDDEN, dtype=torch.float32).view(count, HIDDEN)


async def decode(pipeline: LivePipeline, steps: int) -> None:
    for _ in range(steps):
        got = await pipeline.forward(rows(1))
        assert torch.equal(got, rows(1) + 30)
