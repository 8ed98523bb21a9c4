"""From a command line's words to a running node: cheap checks first, then keys, chain, journal, weights, swarm.

Imports of torch, transformers, web3 and hivemind happen here, after everything that can be refused without them.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from hivemint.contracts.errors import ConfigError, ModelError
from hivemint.contracts.home import Home
from hivemint.contracts.ids import BlockIndex, Credits
from hivemint.contracts.network import Network
from hivemint.contracts.signature import Signer
from hivemint.contracts.signed import peer_id_hash
from hivemint.node.settings import NodeSettings, free_cores
from hivemint.swarm.models import LocalModel, resolve

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.ledger.journal import Journal
    from hivemint.ledger.settlement import Settler
    from hivemint.node.metrics import MetricsServer
    from hivemint.node.server import Node
    from hivemint.node.span import Span
    from hivemint.swarm.host import Host

log = structlog.get_logger(__name__)
SWITCH = 0.001
"""Seconds between thread switches: the event loop shares the interpreter with the compute thread's dispatch."""

Progress = Callable[[str, int, int], None]
"""`(stage, done, total)`."""


@dataclass(frozen=True)
class Plan:
    """What to serve, as whom. `name`: of the folder in the home."""

    network: Network
    model: LocalModel
    first: int
    end: int
    name: str
    signer: Signer
    settings: NodeSettings
    home: Home

    @property
    def folder(self) -> Path:
        return self.home.node(self.name)

    @property
    def journal_url(self) -> str:
        return f"sqlite:///{self.folder / 'journal.db'}"


@dataclass
class Running:
    """A node that serves, with all that it stands on."""

    plan: Plan
    node: "Node"
    host: "Host"
    journal: "Journal"
    settler: "Settler"
    span: "Span"
    metrics_url: str | None = None
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)


def parse_blocks(text: str) -> tuple[int, int]:
    """`0:15` -> (0, 15). Raises ConfigError."""
    first, colon, end = text.partition(":")
    if not (colon and first.strip().isdigit() and end.strip().isdigit()):
        raise ConfigError(f"{text!r} is no span of blocks", why="expected FIRST:END", next_step="write e.g. 0:15")
    return int(first), int(end)


def find_model(network: Network, name: str, first: int, end: int, home: Home) -> LocalModel:
    """The local model `name`, if it is one of the network's and has these blocks. Raises ModelError, ConfigError."""
    model = resolve(name, home=home)
    model.anatomy.check_span(BlockIndex(first), BlockIndex(end))
    if network.models and all(known.model_id != model.model_id for known in network.models):
        raise ModelError(
            f"{name} is not a model of the network {network.name}",
            why=f"its id is 0x{model.model_id.hex()[:16]}..., the network names "
            + ", ".join(f"{known.name} (0x{known.model_id.hex()[:16]}...)" for known in network.models),
            next_step="serve one of these, or add a [[models]] entry to the network file",
        )
    return model


@asynccontextmanager
async def running(plan: Plan, tell: Progress) -> AsyncIterator[Running]:
    """Start everything in order; end it in reverse. Raises HivemintError with what is wrong."""
    from hivemint.contracts.bindings import Bindings
    from hivemint.ledger.chainview import ContractView
    from hivemint.ledger.journal import Journal
    from hivemint.ledger.payments import ContractPayments
    from hivemint.ledger.settlement import Settler, SettlerSettings

    network, signer, settings = plan.network, plan.signer, plan.settings
    async with AsyncExitStack() as stack:
        metrics = _metrics(settings, stack)
        tell("chain", 0, 0)
        contracts = await stack.enter_async_context(await Bindings.connect(network))
        second = None
        if network.second_rpc_url:
            second = await stack.enter_async_context(await Bindings.connect(network, second=True))
        view = ContractView(contracts, signer.address, network.confirmations, second=second)
        tell("journal", 0, 0)
        journal = await asyncio.to_thread(Journal.open, plan.journal_url, network.domain, signer.address)
        stack.push_async_callback(journal.close)
        host, span = await _load(plan, stack, tell)
        await _check_registration(contracts, plan, host)

        from hivemint.node.engine import COMPUTE
        from hivemint.node.server import Kit, Node
        from hivemint.node.threads import give_way

        sys.setswitchinterval(SWITCH)
        node = await Node.start(Kit(network, plan.model.model_id, span, signer, host, journal, view), settings)
        stack.push_async_callback(node.close)
        give_way(to=COMPUTE)
        payments = ContractPayments(contracts, signer, node=signer.address)
        amounts = SettlerSettings(settle_min=Credits(settings.settle_min), settle_every=settings.settle_every)
        settler = Settler(journal, payments, amounts)
        worker = asyncio.create_task(settler.run(), name="settlement")
        stack.callback(worker.cancel)
        up = Running(plan, node, host, journal, settler, span)
        if metrics is not None:
            metrics.show(up)
            up.metrics_url = metrics.url
        yield up


def _metrics(settings: NodeSettings, stack: AsyncExitStack) -> "MetricsServer | None":
    """Hold the port before anything that takes time: a taken one is found at once."""
    from hivemint.node.metrics import MetricsServer

    if settings.metrics_port is None:
        return None
    server = MetricsServer(settings.metrics_port)
    stack.callback(server.close)
    return server


async def _load(plan: Plan, stack: AsyncExitStack, tell: Progress) -> tuple["Host", "Span"]:
    """Weights in a thread while the host joins the swarm; whichever fails ends the start."""
    from hivemint.swarm.host import Host, HostSettings

    settings = plan.settings
    host_settings = HostSettings(
        network=plan.network.name, identity=plan.folder / "peer.key", listen=settings.listen,
        announce=settings.announce, bootstrap=(*plan.network.bootstrap, *settings.bootstrap),
    )  # fmt: skip
    tell("swarm", 0, 0)
    host = await Host.start(host_settings)
    stack.push_async_callback(host.close)
    span = await asyncio.to_thread(_load_span, plan, tell)
    return host, span


def _load_span(plan: Plan, tell: Progress) -> "Span":
    """The span's tensors are checked against the manifest, then read."""
    from hivemint.node import memory

    memory.spare()
    import torch

    from hivemint.node.precision import Precision
    from hivemint.node.span import Span

    precision, device = Precision.parse(plan.settings.precision), torch.device(plan.settings.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"There is no device {device}", why=f"torch sees {torch.cuda.device_count()} GPUs",
            next_step="choose --device cpu, or install a torch for this GPU",
        )  # fmt: skip
    precision.check_device(device)
    torch.set_num_threads(plan.settings.threads or free_cores())
    anatomy = plan.model.anatomy
    first, end = BlockIndex(plan.first), BlockIndex(plan.end)
    names = [entry.name for block in range(first, end) for entry in anatomy.block_tensors(BlockIndex(block))]
    plan.model.manifest.check_tensors(plan.model.folder, names, tell)
    span = Span.load(
        plan.model.folder, first, end, precision=precision, device=plan.settings.device,
        on_progress=lambda done, total: tell("load", done, total),
    )  # fmt: skip
    memory.trim()
    if device.type == "cpu":
        memory.use_huge_pages()
    return span


async def _check_registration(contracts: "Bindings", plan: Plan, host: "Host") -> None:
    """A node may serve before it is registered, but clients will not pay it and the chain mints it nothing."""
    known = await contracts.registry.node(plan.signer.address)
    if known is None:
        log.warning("the operator is not registered", operator=plan.signer.address, next="hivemint node register")
    elif known.retired:
        raise ConfigError(
            "This operator key is retired", why="an equivocation was proved against it",
            next_step="register a new operator key",
        )  # fmt: skip
    elif known.peer_id_hash != peer_id_hash(host.peer_id):
        log.warning("the registry knows another peer id of this operator", next="hivemint node register")
