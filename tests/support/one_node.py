"""One real node of a tiny model in this process, over real links, with a span that a test may hold up."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest_asyncio
import torch

from hivemint.ledger.books.journal import Journal
from hivemint.node.server import Kit, Node
from hivemint.node.settings import NodeSettings
from hivemint.node.span.packing import Work
from hivemint.node.span.span import Span
from hivemint.protocol.ids import Address, BlockIndex, ModelId
from hivemint.protocol.network import Contracts, Network
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import CONTROL, Host, HostSettings
from hivemint.swarm.limits import PeerLimits
from support.node_client import FakeFunds, NodeSession
from support.promises import DOMAIN, signer

pytest_plugins = ["support.tiny"]

ASK = 10
_ZERO = Address("0x" + "11" * 20)
_NETWORK = Network(
    "test", DOMAIN.chain_id, "http://127.0.0.1:1", Contracts(_ZERO, _ZERO, DOMAIN.settlement, *[_ZERO] * 3)
)


class Gated:
    """A span that computes as ever until `shut`; from then on a batch waits for `open`, as one on a hung device.

    `calls`: batches begun and ended so far.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self._gate = threading.Event()
        self._gate.set()
        self.held = threading.Event()
        self.begun = self.ended = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._span, name)

    def shut(self) -> None:
        self._gate.clear()

    def open(self) -> None:
        self._gate.set()

    def run(self, batch: Sequence[Work]) -> list[torch.Tensor]:
        self.begun += 1
        if not self._gate.is_set():
            self.held.set()
            self._gate.wait()
        try:
            return self._span.run(batch)
        finally:
            self.ended += 1


@dataclass
class Served:
    """A node, its span, and a host for clients."""

    node: Node
    span: Gated
    host: Host
    journal: Journal
    chain: FakeFunds
    client: Host

    async def open(self, client: Signer, *, by: Any = None, **changes: Any) -> NodeSession:
        """`by`: another peer's host than `client`."""
        link = await (by or self.client).dial(self.host.peer_id, self.host.addresses, CONTROL)
        return await NodeSession.open(link, DOMAIN, client, **changes)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def another_peer(self) -> AsyncIterator[Host]:
        host = await Host.start(HostSettings("test", listen=(), bootstrap=self.host.addresses))
        try:
            yield host
        finally:
            await host.close()


@asynccontextmanager
async def one_node(
    model: Path, folder: Path, *, limits: PeerLimits | None = None, **settings: Any
) -> AsyncIterator[Served]:
    """Block 0 of `model`; journal in `folder`. The gate is open in the end, so that nothing waits for ever.

    `limits`: the host's; by `Limits(loopback=True)` all peers here are of one network.
    """
    async with AsyncExitStack() as stack:
        host = await Host.start(HostSettings("test", limits=limits or PeerLimits()))
        stack.push_async_callback(host.close)
        client = await Host.start(HostSettings("test", listen=(), bootstrap=host.addresses))
        stack.push_async_callback(client.close)
        key, chain = signer(1001), FakeFunds()
        span = Gated(Span.load(model, BlockIndex(0), BlockIndex(1)))
        journal = Journal.open(f"sqlite:///{folder / 'journal'}.db", DOMAIN, key.address)
        stack.push_async_callback(journal.close)
        kit: Any = Kit(_NETWORK, ModelId(b"\x07" * 32), span, key, host, journal, chain)  # type: ignore[arg-type]
        defaults: dict[str, Any] = {"ask": ASK, "kv_bytes": 1 << 22, "max_rows": 16, "park": 0}
        node = await Node.start(kit, NodeSettings(**defaults | settings))
        stack.push_async_callback(node.close)
        stack.callback(span.open)
        yield Served(node, span, host, journal, chain, client)


@pytest_asyncio.fixture
async def served(tiny_folder: Path, tmp_path: Path) -> AsyncIterator[Served]:
    async with one_node(tiny_folder, tmp_path) as node:
        yield node


def rows(count: int = 1) -> torch.Tensor:
    """Input of so many tokens for the tiny model."""
    return torch.randn(count, 32)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
