"""From a command line's words to a running node: cheap checks first, then keys, chain, journal, weights, swarm.

Imports of torch, transformers, web3 and hivemind happen here, after everything that can be refused without them.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from hivemint.model.local_models import LocalModel, resolve
from hivemint.node.identity import IdentityLock
from hivemint.node.last_record import LastRecord
from hivemint.node.market import AskRule, Market
from hivemint.node.placement.rule import Placed
from hivemint.node.placement.watch import PlacementWatch
from hivemint.node.self_check import SelfCheck
from hivemint.node.settings import NodeSettings, free_cores
from hivemint.node.surroundings import Surroundings
from hivemint.protocol.eip712 import peer_id_hash
from hivemint.protocol.errors import ConfigError, ModelError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import BlockIndex
from hivemint.protocol.network import Network
from hivemint.swarm.identity import PeerKey

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.node.metrics import MetricsServer
    from hivemint.node.server import Node
    from hivemint.node.span.span import Span
    from hivemint.swarm.host import Host
from hivemint.node.running import Running, ServePlan

log = structlog.get_logger(__name__)
SWITCH = 0.001
"""Seconds between thread switches: the event loop shares the interpreter with the compute thread's dispatch."""

Progress = Callable[[str, int, int], None]
"""`(stage, done, total)`."""


def parse_blocks(text: str) -> tuple[int, int]:
    """`0:15` -> (0, 15). Raises ConfigError."""
    first, colon, end = text.partition(":")
    if not (colon and first.strip().isdecimal() and end.strip().isdecimal()):
        raise ConfigError(f"{text!r} is no span of blocks", why="expected FIRST:END", next_step="write e.g. 0:15")
    return int(first), int(end)


def find_model(network: Network, name: str, first: int, end: int, home: Home) -> LocalModel:
    """The local model `name`, if it is one of the network's and has these blocks. Raises ModelError, ConfigError."""
    model = resolve(name, home=home)
    model.anatomy.check_span(BlockIndex(first), BlockIndex(end))
    return of_network(network, name, model)


def of_network(network: Network, name: str, model: LocalModel) -> LocalModel:
    """`model`, if the network serves it. Raises ModelError."""
    if network.models and all(known.model_id != model.model_id for known in network.models):
        raise ModelError(
            f"{name} is not a model of the network {network.name}",
            why=f"its id is 0x{model.model_id.hex()[:16]}..., the network names "
            + ", ".join(f"{known.name} (0x{known.model_id.hex()[:16]}...)" for known in network.models),
            next_step="serve one of these, or add a [[models]] entry to the network file",
        )
    return model


@asynccontextmanager
async def running(plan: ServePlan, tell: Progress) -> AsyncIterator[Running]:
    """Start everything in order; end it in reverse. Raises HivemintError with what is wrong."""
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.fees import DailyBudget
    from hivemint.ledger.books.earnings import Earnings
    from hivemint.ledger.books.journal import Journal
    from hivemint.ledger.settlement.chainview import ContractView
    from hivemint.ledger.settlement.outlook import PayOutlook
    from hivemint.ledger.settlement.payments import ContractPayments
    from hivemint.ledger.settlement.settler import Settler

    network, signer, settings = plan.network, plan.signer, plan.settings
    async with AsyncExitStack() as stack:
        metrics = _metrics(settings, stack)
        _alone(f"the peer key {plan.folder / 'peer.key'}", PeerKey.load(plan.folder / "peer.key").peer_id, plan, stack)
        tell("chain", 0, 0)
        budget = DailyBudget(settings.coin_a_day, plan.folder / "gas.json")
        connecting = Bindings.connect(network, fees=settings.fees, budget=budget)
        contracts = await stack.enter_async_context(await connecting)
        view = ContractView(contracts, signer.address, network.confirmations)
        tell("journal", 0, 0)
        genesis = await contracts.chain.genesis()
        domain = network.domain
        operator = f"{domain.chain_id} {domain.settlement} {genesis.hex()} {signer.address}"
        _alone(f"the operator key {signer.address}", operator.encode(), plan, stack)
        journal = await asyncio.to_thread(
            Journal.open, plan.journal_url, domain, signer.address, genesis, begin_anew=plan.new_books
        )
        stack.push_async_callback(journal.close)
        host, span = await _load(plan, stack, tell)
        host.rank_by(contracts.registry)
        await _check_registration(contracts, plan, host)
        await _check_clock(contracts, host)

        from hivemint.node.engine.device import COMPUTE
        from hivemint.node.engine.threads import give_way
        from hivemint.node.server import Kit, Node

        sys.setswitchinterval(SWITCH)
        proofs, last = plan.folder / "evidence", LastRecord(plan.folder / "record.json")
        kit = Kit(network, plan.model.model_id, span, signer, host, journal, view, evidence=proofs, last=last)
        node = await Node.start(kit, settings)
        stack.push_async_callback(node.close)
        give_way(to=COMPUTE)
        payments = ContractPayments(contracts, signer, confirmations=network.confirmations)
        settler = Settler(journal, payments, settings.settling)
        node.supervisor.keep_up("settlement", settler.run)
        earnings = Earnings(plan.folder / "earnings.json", operator)
        outlook = PayOutlook(contracts, signer.address, plan.model.model_id)
        node.supervisor.keep_up("outlook", outlook.run)
        node.supervisor.keep_up("self-check", _self_check(plan, contracts, host, node).run)
        market = _market(plan, host, node)
        node.supervisor.keep_up("surroundings", _surroundings(plan, host, node, market).run)
        if (placement := _placement(plan, host)) is not None:
            node.supervisor.keep_up("placement", placement.run)
        up = Running(plan, node, host, journal, settler, span, earnings, outlook, market, placement)
        if metrics is not None:
            metrics.show(up)
            up.metrics_url = metrics.url
        yield up


def _self_check(plan: ServePlan, contracts: "Bindings", host: "Host", node: "Node") -> SelfCheck:
    blocks, operator = range(plan.model.anatomy.num_blocks), plan.signer.address
    return SelfCheck(host, contracts.chain, node.supervisor, plan.model.model_id, blocks, operator)


def _market(plan: ServePlan, host: "Host", node: "Node") -> Market:
    """What others ask for these blocks; with `ask = "auto"` the node follows them."""
    settings, offer = plan.settings, node.offer
    rule = AskRule(settings.ask_floor, settings.ask_ceiling) if settings.ask_auto else None
    blocks, operator = range(plan.first, plan.end), plan.signer.address
    return Market(host.stake_of, blocks, operator, lambda: offer.ask, offer.reprice, rule)


def _surroundings(plan: ServePlan, host: "Host", node: "Node", market: Market) -> Surroundings:
    tell = (market.see, node.neighbours.learn)
    return Surroundings(host, plan.model.model_id, (plan.first, plan.end), plan.model.anatomy.num_blocks, tell)


def _placement(plan: ServePlan, host: "Host") -> PlacementWatch | None:
    """Looks again where the node has chosen its blocks."""
    measured, every = plan.measured, plan.settings.look_again
    if measured is None or not every:
        return None
    own, blocks = Placed(plan.first, plan.end, measured.rate), plan.model.anatomy.num_blocks
    return PlacementWatch(host, plan.model.model_id, blocks, plan.signer.address, own, measured.blocks, every)


def _alone(what: str, identity: bytes, plan: ServePlan, stack: AsyncExitStack) -> None:
    stack.callback(IdentityLock.take(what, identity, plan.home.root).release)


def _metrics(settings: NodeSettings, stack: AsyncExitStack) -> "MetricsServer | None":
    """Hold the port before anything that takes time: a taken one is found at once."""
    from hivemint.node.metrics import MetricsServer

    if settings.metrics_port is None:
        return None
    server = MetricsServer(settings.metrics_port)
    stack.callback(server.close)
    return server


async def _load(plan: ServePlan, stack: AsyncExitStack, tell: Progress) -> tuple["Host", "Span"]:
    """Weights in a thread while the host joins the swarm; whichever fails ends the start."""
    from hivemint.swarm.host import Host, HostSettings

    settings = plan.settings
    host_settings = HostSettings(
        network=plan.network.name,
        identity=plan.folder / "peer.key",
        listen=settings.listen,
        announce=settings.announce,
        bootstrap=(*plan.network.bootstrap, *settings.bootstrap),
        swarm_key=plan.network.swarm_key,
        known=plan.folder / "peers.json",
    )
    tell("swarm", 0, 0)
    host = await Host.start(host_settings)
    stack.push_async_callback(host.close)
    span = await asyncio.to_thread(_load_span, plan, tell)
    return host, span


def _load_span(plan: ServePlan, tell: Progress) -> "Span":
    """The span's tensors are checked against the manifest, then read."""
    from hivemint.node.span import memory

    memory.spare()
    import torch

    from hivemint.node.span.precision import Precision
    from hivemint.node.span.span import Span

    precision, device = Precision.parse(plan.settings.precision), torch.device(plan.settings.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"There is no device {device}",
            why=f"torch sees {torch.cuda.device_count()} GPUs",
            next_step="choose --device cpu, or install a torch for this GPU",
        )
    precision.check_device(device)
    torch.set_num_threads(plan.settings.threads or free_cores())
    anatomy = plan.model.anatomy
    first, end = BlockIndex(plan.first), BlockIndex(plan.end)
    names = [entry.name for block in range(first, end) for entry in anatomy.block_tensors(BlockIndex(block))]
    plan.model.manifest.check_tensors(plan.model.folder, names, tell)
    span = Span.load(
        plan.model.folder,
        first,
        end,
        precision=precision,
        device=plan.settings.device,
        on_progress=lambda done, total: tell("load", done, total),
    )
    memory.trim()
    if device.type == "cpu":
        memory.use_huge_pages()
    return span


async def _check_registration(contracts: "Bindings", plan: ServePlan, host: "Host") -> None:
    """A node may serve before it is registered, but clients will not pay it and the chain mints it nothing."""
    known = await contracts.registry.node(plan.signer.address)
    if known is None:
        log.warning("the operator is not registered", operator=plan.signer.address, next="hivemint node register")
    elif known.retired:
        raise ConfigError(
            "This operator key is retired",
            why="an equivocation was proved against it",
            next_step="register a new operator key",
        )
    elif known.peer_id_hash != peer_id_hash(host.peer_id):
        log.warning("the registry knows another peer id of this operator", next="hivemint node register")


async def _check_clock(contracts: "Bindings", host: "Host") -> None:
    """A node whose clock is off publishes by the swarm's time; its owner is told."""
    host.clock.see_block(await contracts.chain.time())
    if trouble := host.clock.trouble():
        log.warning("this machine's clock is off", trouble=trouble)
