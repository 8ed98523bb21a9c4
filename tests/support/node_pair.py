"""Two real nodes in this process, a block of a tiny model each, and a client's host: the fixture `pair`.

(PYTEST_DONT_REWRITE: tests import from here before pytest does, and nothing is asserted here.)
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest_asyncio

from hivemint.ledger.books.journal import Journal
from hivemint.node.server import Kit, Node
from hivemint.node.settings import NodeSettings
from hivemint.node.span.span import Span
from hivemint.protocol.ids import Address, BlockIndex, ModelId
from hivemint.protocol.network import Contracts, Network
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import CONTROL, Host, HostSettings
from support.node_client import FakeFunds, NodeSession
from support.promises import DOMAIN, signer

pytest_plugins = ["support.tiny"]

ZERO = Address("0x" + "11" * 20)
NETWORK = Network("test", DOMAIN.chain_id, "http://127.0.0.1:1", Contracts(ZERO, ZERO, DOMAIN.settlement, *[ZERO] * 3))
MODEL = ModelId(b"\x07" * 32)
ASK = 10


@dataclass
class Running:
    node: Node
    host: Host
    journal: Journal
    chain: FakeFunds
    url: str
    key: Signer


@dataclass
class Pair:
    """Two nodes with a block each, and a client's host."""

    first: Running
    second: Running
    client: Host
    folder: Path

    async def open(self, running: Running, client: Signer, **changes: Any) -> NodeSession:
        link = await self.client.dial(running.host.peer_id, running.host.addresses, CONTROL)
        return await NodeSession.open(link, DOMAIN, client, **changes)


async def start(
    folder: Path,
    block: int,
    chain: FakeFunds,
    name: str,
    host: Host,
    key: Signer,
    precision: str = "fp32",
    **settings: Any,
) -> Running:
    span = Span.load(folder, BlockIndex(block), BlockIndex(block + 1), precision=precision)
    url = f"sqlite:///{folder.parent / name}.db"
    journal = Journal.open(url, DOMAIN, key.address)
    defaults: dict[str, Any] = {"ask": ASK, "kv_bytes": 1 << 22, "max_rows": 16}
    node = await Node.start(Kit(NETWORK, MODEL, span, key, host, journal, chain), NodeSettings(**defaults | settings))
    return Running(node, host, journal, chain, url, key)


@pytest_asyncio.fixture
async def pair(tiny_folder: Path, tmp_path: Path) -> AsyncIterator[Pair]:
    folder = tmp_path / "tiny"
    folder.symlink_to(tiny_folder)
    chain = FakeFunds()
    hosts = [await Host.start(HostSettings("test"))]
    boot = hosts[0].addresses
    hosts += [
        await Host.start(HostSettings("test", bootstrap=boot)),
        await Host.start(HostSettings("test", listen=(), bootstrap=boot)),
    ]
    one = await start(folder, 0, chain, "one", hosts[0], signer(1001))
    two = await start(folder, 1, chain, "two", hosts[1], signer(1002))
    yield Pair(one, two, hosts[2], folder)
    for running in (one, two):
        await running.node.close()
        await running.journal.close()
    for host in reversed(hosts):
        await host.close()
