"""Real nodes of a tiny model in this process, over real links, and a real client of them; the chain alone is a fake."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hivemint.client.sessions.nodes import Target
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.swarm_client import SwarmClient
from hivemint.client.sessions.wallet import Identity
from hivemint.client.settings import Bid, ClientSettings
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.node.server import Kit, Node
from hivemint.node.settings import NodeSettings
from hivemint.node.span.span import Span
from hivemint.protocol.ids import Address, BlockIndex, ModelId, PeerId
from hivemint.protocol.network import Contracts, Network
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.link import Link
from hivemint.swarm.messages import AnyMessage
from support.node_client import FakeFunds
from support.promises import DOMAIN, GENESIS, signer

ZERO = Address("0x" + "11" * 20)
NETWORK = Network("test", DOMAIN.chain_id, "http://127.0.0.1:1", Contracts(ZERO, ZERO, DOMAIN.settlement, *[ZERO] * 3))
MODEL = ModelId(b"\x07" * 32)
CLIENT = signer(42)
ASK = 10
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


Doctor = Callable[[PeerId, AnyMessage], AnyMessage]


class DoctoredLink:
    """A link whose incoming messages pass through a doctor."""

    def __init__(self, link: Link, doctor: Doctor) -> None:
        self._link, self._doctor = link, doctor

    async def receive(self) -> AnyMessage:
        return self._doctor(self._link.peer, await self._link.receive())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


class DoctoredHost:
    """The client's host; `doctor` sees all that comes on its control links."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.doctor: Doctor = lambda peer, message: message

    async def dial(self, peer: PeerId, addresses: Sequence[str], protocol: str, *, timeout: float = 5.0) -> Any:
        link = await self._host.dial(peer, addresses, protocol, timeout=timeout)
        return DoctoredLink(link, lambda peer, message: self.doctor(peer, message))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


@dataclass
class RealNodes:
    """Nodes with their blocks, one client, and the whole model by the library."""

    nodes: list[Node]
    host: Any
    client: SwarmClient
    whole: Any
    folder: Path

    def expected(self, rows: torch.Tensor) -> torch.Tensor:
        """What the library's own blocks make of `rows`, before the last norm."""
        hidden: list[torch.Tensor] = []
        hook = self.whole.model.layers[-1].register_forward_hook(lambda _, __, out: hidden.append(out))
        with torch.no_grad():
            self.whole(inputs_embeds=rows[None])
        hook.remove()
        return (hidden[0][0] if isinstance(hidden[0], tuple) else hidden[0]).reshape(rows.shape)

    def go_donated(self) -> None:
        """From now on the client bids nothing."""
        self.client.settings = self.client.settings.model_copy(update={"bid": Bid("free")})


@asynccontextmanager
async def real_nodes(
    folder: Path,
    home: Path,
    *,
    spans: Sequence[tuple[int, int]] = ((0, 1), (1, 2)),
    wallet: Signer = CLIENT,
    wrap: Callable[[Host], Any] = lambda host: host,
    **settings: Any,
) -> AsyncIterator[RealNodes]:
    """One node a span, listening on loopback. `wrap` stands between the client and its host; `settings`: the nodes'."""
    async with AsyncExitStack() as stack:
        hosts: list[Host] = []
        for listen in [LOOPBACK] * len(spans) + [()]:
            boot = hosts[0].addresses if hosts else ()
            hosts.append(await Host.start(HostSettings("test", listen=listen, bootstrap=boot)))
            stack.push_async_callback(hosts[-1].close)
        nodes = []
        chosen = {"ask": ASK, "kv_bytes": 1 << 22, "max_rows": 16, "precision": "fp32", **settings}
        for number, (first, end) in enumerate(spans):
            key = signer(1000 + number)
            journal = Journal.open(f"sqlite:///{home / str(number)}.db", DOMAIN, key.address)
            stack.push_async_callback(journal.close)
            span = Span.load(folder, BlockIndex(first), BlockIndex(end))
            kit = Kit(NETWORK, MODEL, span, key, hosts[number], journal, FakeFunds())
            nodes.append(await Node.start(kit, NodeSettings.load(**chosen)))
            stack.push_async_callback(nodes[-1].close)
        host = wrap(hosts[-1])
        book = VoucherBook.open(home / "vouchers.db", DOMAIN, wallet.address, GENESIS)
        payer = Payer(Identity.own(wallet), DOMAIN, book)
        auto: Any = AutoModelForCausalLM
        whole = auto.from_pretrained(folder, dtype=torch.float32).eval()
        target = Target(MODEL, whole.config.num_hidden_layers, whole.config.hidden_size)
        asked = ClientSettings(bid=Bid("times"), min_chunk=4, prefill_chunks=2, step_timeout=10)
        client = SwarmClient(host, target, payer, asked)
        stack.push_async_callback(client.close)
        yield RealNodes(nodes, host, client, whole, folder)


async def emptied(node: Node) -> None:
    """Until the node has noticed that its clients are gone."""
    for _ in range(1000):
        if not node.registry.occupants:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(node.registry.occupants)} sessions are still open")
