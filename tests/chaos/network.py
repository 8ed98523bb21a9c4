"""The network that a run is over: a tiny model, two nodes a span, each behind a proxy, on machines of their own.

What the testnet starts (`LocalNet`) is started the same way here; what differs is where, and by which addresses others
find it.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from chaos.machines import Machines, small_disk
from chaos.proxy import Proxies
from chaos.schedule import CLIENTS
from chaos.tiny import BLOCKS
from hivemint.contracts.bindings import Account, Bindings
from hivemint.contracts.deploy import Deployment
from hivemint.model.local_models import LocalModel
from hivemint.protocol.ids import Credits
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer
from hivemint.testnet.devchain import DevChain
from hivemint.testnet.localnet import PEOPLE, LocalNet, NodePlan
from hivemint.testnet.processes import Child

T = TypeVar("T")
DISK = 48 << 20
"""Bytes of the disk that a node's folder is on."""
TWICE = 2
"""Nodes a span."""
ROOM = 4 << 20
"""Bytes for keys and values."""


def node_plans(blocks: int) -> list[NodePlan]:
    """Two nodes for each half of the model, the halves in turn."""
    half = blocks // 2
    spans = [(0, half), (half, blocks)] * TWICE
    return [NodePlan(PEOPLE[number], *span) for number, span in enumerate(spans)]


PLACES = (*(plan.operator for plan in node_plans(BLOCKS)), *CLIENTS)
"""Who has a machine of its own."""


class ChaosNet(LocalNet):
    """A `LocalNet` of two nodes a span. `disks`: which nodes have a disk of their own, that can be filled."""

    def __init__(self, folder: Path, model: LocalModel, machines: Machines, proxies: Proxies, stack: ExitStack) -> None:
        super().__init__(folder, model)
        self.machines, self.proxies, self._stack = machines, proxies, stack
        self.ports: dict[str, int] = {}
        self.disks: set[str] = set()
        self.dev = DevChain("http://127.0.0.1:9")
        """The chain itself, not by way of its proxy; once there is one."""
        self.written: Callable[[], None] = lambda: None
        """Called when the network's file is there: who only reads it starts while the nodes do."""

    # --- up

    def _share_out(self) -> list[NodePlan]:
        return node_plans(self.model.anatomy.num_blocks)

    def _start_chain(self) -> DevChain:
        chain = super()._start_chain()
        self.dev = DevChain(chain.url)
        port = int(chain.url.rpartition(":")[2].strip("/"))
        self.proxies.put_before("chain", ("127.0.0.1", port))
        return chain

    def _make_wallets(self, plans: list[NodePlan]) -> None:
        super()._make_wallets(plans)
        for plan in plans:
            folder = self.home.node(plan.operator)
            if self._stack.enter_context(small_disk(folder, DISK)):
                self.disks.add(plan.operator)

    def _write_network(self, url: str, deployment: Deployment, bootstrap: Child) -> Network:
        host, port = self.proxies.address("chain")
        network = super()._write_network(f"http://{host}:{port}", deployment, bootstrap)
        self.written()
        return network

    async def start_node(self, plan: NodePlan, **settings: str) -> Child:
        """Behind its proxy, which is announced in its place."""
        name = plan.operator
        if name not in self.ports:
            self.ports[name] = free_port()
            self.proxies.put_before(name, (self.machines.address(name), self.ports[name]))
        host, port = self.proxies.address(name)
        places = {
            "HIVEMINT_LISTEN": f'["/ip4/{self.machines.address(name)}/tcp/{self.ports[name]}"]',
            "HIVEMINT_ANNOUNCE": f'["/ip4/{host}/tcp/{port}"]',
            "HIVEMINT_KV_BYTES": str(ROOM),
            "HIVEMINT_PARK": "10",  # at the end all room is to be free
            "XDG_STATE_HOME": str(self.folder / "state"),
        }
        return await super().start_node(plan, **places, **settings)

    async def _start(
        self, name: str, command: list[str], within: float, settings: Mapping[str, str] | None = None
    ) -> Child:
        more = ["--listen", f"/ip4/{self.machines.hub}/tcp/0"] if name == "bootstrap" else []
        return await super()._start(name, [*self.machines.enter(name), *command, *more], within, settings)

    async def start_ledger(self) -> Child:
        """Again, after it has ended, with the index that it had."""
        self._children = [child for child in self._children if child.name != "ledger"]
        return await self._start("ledger", self._ledger_command(self.plans), 60.0)

    # --- while it runs

    @property
    def children(self) -> list[Child]:
        return list(self._children)

    def metrics(self, plan: NodePlan) -> dict[str, float]:
        """A node's own figures, `name{label}` -> value. Raises httpx.HTTPError where it does not answer."""
        url = str(self.child(plan.operator).ready["metrics"])

        def read() -> str:
            return httpx.get(url, trust_env=False, timeout=3.0).raise_for_status().text

        text = self.machines.within(plan.operator, read)
        return {
            "".join([sample.name, *(f"{{{value}}}" for value in sample.labels.values())]): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def open_sessions(self, plan: NodePlan) -> int:
        """Of both lanes; -1 where the node does not answer."""
        try:
            found = self.metrics(plan)
        except (httpx.HTTPError, OSError):
            return -1
        return int(sum(value for name, value in found.items() if name.startswith("hivemint_node_sessions")))

    def ledger(self, path: str) -> Any:
        """What the ledger answers to a GET of `/api/...`."""
        url = str(self.child("ledger").ready["url"]).rstrip("/")
        return httpx.get(f"{url}/api/{path}", trust_env=False, timeout=20.0).raise_for_status().json()

    def chain(self, work: Callable[[Bindings], Awaitable[T]]) -> T:
        """Run `work` with bindings over a connection of its own."""

        async def run() -> T:
            async with await Bindings.connect(self.network) as bindings:
                return await work(bindings)

        return asyncio.run(run())

    def operator(self, plan: NodePlan) -> Signer:
        return self.signer(plan.operator)

    def account(self, client: Signer, plan: NodePlan) -> Account:
        return self.chain(lambda bindings: bindings.settlement.account(client.address, plan.address))


async def fund(net: ChaosNet, wallets: list[Signer], grant: Credits) -> None:
    """`grant` wei in escrow at every node for each wallet, confirmed."""
    async with await Bindings.connect(net.network) as bindings:
        owners = [net.signer(plan.owner) for plan in net.plans]
        holds = [int(await bindings.token.balance(owner.address)) for owner in owners]
        rich = owners[holds.index(max(holds))]
        accounts = {plan.address: grant for plan in net.plans}
        for wallet in wallets:
            block = (await bindings.settlement.fund(rich, accounts, client=wallet.address)).block
        while await bindings.chain.block_number() <= block + net.network.confirmations:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def minted(net: ChaosNet, donate: Callable[[], None]) -> None:
    """Two epochs and a little donated work, which `donate` asks for: credits are with the nodes' owners."""
    await net.next_epoch()  # stake counts from the epoch after it was bonded
    await asyncio.to_thread(donate)
    await net.next_epoch()
    async with await Bindings.connect(net.network) as bindings:
        epoch = await bindings.emission.current_epoch() - 1
        served: list[NodePlan] = []
        while len({plan.first for plan in served}) < TWICE:
            served = [plan for plan in net.plans if (await bindings.emission.claim_of(plan.address, epoch)).units]
            await asyncio.sleep(0.2)
        await net.next_epoch()
        owners = [net.signer(plan.owner).address for plan in served]
        while not any([await bindings.token.balance(owner) for owner in owners]):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
