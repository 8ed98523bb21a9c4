"""Money seen through two endpoints that may lie: a funded account at a node, its journal, and the node's worker.

scene         all of it, new for each test; `Scene.true` sees the chain as it is
endpoints     the two proxies
credits_of    a wallet with credits
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hivemint.contracts import rpc
from hivemint.contracts.bindings import Bindings
from hivemint.ledger.books.entries import Entry
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.settlement.payments import ContractPayments
from hivemint.ledger.settlement.settler import Settler, SettlerSettings
from hivemint.ledger.store.database import database_url
from hivemint.protocol.ids import ONE_CREDIT, Credits, PeerId
from hivemint.protocol.keccak import keccak
from hivemint.protocol.signing import Signer
from support.chain import TestChain
from support.earning import COIN, earn_credits
from support.lying_rpc import LyingRpc
from support.promises import Work

ACCOUNTS = keccak(b"accounts(address,address[],address[])")[:4]


def with_field(at: int, value: int) -> Any:
    """Field `at` of every account in an answer: 0 balance, 1 collected, 2 end of the thaw, 3 end of the key,
    4 whether the key was revoked before it was set."""

    def change(answer: bytes) -> bytes:
        words = [answer[here : here + 32] for here in range(0, len(answer), 32)]
        words[2 + at :: 5] = [value.to_bytes(32, "big")] * len(words[2 + at :: 5])
        return b"".join(words)

    return change


@dataclass
class Scene:
    """A funded account of 10 credits at a node; the worker and the view see it through `one` and `two`."""

    testchain: TestChain
    true: Bindings
    seen: Bindings
    one: LyingRpc
    two: LyingRpc
    node: Signer
    client: Signer
    journal: Journal
    settler: Settler
    clock: list[float]

    async def promise(self, total: int) -> None:
        expiry = await self.true.chain.time() + 9999
        work = Work(self.client, self.node, price=1, expiry=expiry, domain=self.testchain.network.domain)
        await self.journal.open_session(work.session, work.signature)
        work.step(1)
        await self.journal.record(Entry(self.client.address, work.id, Credits(total), work.countersign(total)))

    async def collected(self) -> int:
        return (await self.true.settlement.account(self.client.address, self.node.address)).collected

    def honest(self) -> None:
        self.one.honest()
        self.two.honest()

    def each(self) -> list[LyingRpc]:
        return [self.one, self.two]


@pytest.fixture
def endpoints(testchain: TestChain) -> Iterator[tuple[LyingRpc, LyingRpc]]:
    with LyingRpc(testchain.devchain.url) as one, LyingRpc(testchain.devchain.url) as two:
        yield one, two


@pytest.fixture(scope="session")
def credits_of(testchain: TestChain, tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """A wallet with credits: what a node of this session has minted for donated work."""
    return asyncio.run(earn_credits(testchain, tmp_path_factory.mktemp("earn") / "journal.db"))


@pytest_asyncio.fixture
async def scene(
    request: pytest.FixtureRequest,
    contracts: Bindings,
    testchain: TestChain,
    credits_of: Signer,
    endpoints: tuple[LyingRpc, LyingRpc],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Scene]:
    for name, seconds in (
        ("_FIRST_PAUSE", 0.005),
        ("_ODD_PAUSE", 0.005),
        ("_LONGEST_PAUSE", 0.01),
        ("_PATIENCE", 0.03),
    ):
        monkeypatch.setattr(rpc, name, seconds)
    one, two = endpoints
    node = Signer(keccak(b"node" + request.node.name.encode()))
    client = Signer(keccak(b"client" + request.node.name.encode()))
    for signer in (node, client):
        testchain.devchain.rpc("hardhat_setBalance", signer.address, hex(5 * COIN))
    peer = PeerId(request.node.name.encode())
    await contracts.registry.register(testchain.signers[4], node, peer, testchain.network.domain, stake=COIN)
    await contracts.settlement.fund(credits_of, {node.address: 10 * ONE_CREDIT}, client=client.address)
    testchain.devchain.mine()
    network = replace(testchain.network, rpc_url=one.url, other_rpc_urls=(two.url,))
    journal = Journal.open(database_url(tmp_path / "journal.db"), testchain.network.domain, node.address)
    clock = [0.0]
    async with await Bindings.connect(network) as seen:
        wanted = SettlerSettings(settle_min=Credits(1))
        settler = Settler(journal, ContractPayments(seen, node), wanted, clock=lambda: clock[0])
        yield Scene(testchain, contracts, seen, one, two, node, client, journal, settler, clock)
    await journal.close()
