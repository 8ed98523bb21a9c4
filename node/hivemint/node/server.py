"""A node: a span served over control and push links, its record in the DHT, its sessions in the journal."""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from hivemint.contracts.errors import HivemintError, SwarmError
from hivemint.contracts.ids import Credits, ModelId, PeerId
from hivemint.contracts.network import Network
from hivemint.contracts.signature import Signer
from hivemint.ledger.journal import Journal
from hivemint.node.admission import Admission, Chain, Offer
from hivemint.node.backward import NOTHING, Need, measure
from hivemint.node.company import Processors
from hivemint.node.control import Parts, Talk
from hivemint.node.engine import Engine
from hivemint.node.kv_cache import free_share
from hivemint.node.lobby import Lobby, LobbyLimits
from hivemint.node.metering import Meter, ReceiptMeter
from hivemint.node.push import Inbox, Outlets
from hivemint.node.room import Room
from hivemint.node.scheduler import Lane, Scheduler
from hivemint.node.settings import NodeSettings
from hivemint.node.span import Span
from hivemint.node.steps import Shop
from hivemint.node.threads import Worker
from hivemint.node.watchdog import Patience, watch
from hivemint.swarm.host import CONTROL, PUSH, Host
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Code
from hivemint.swarm.records import LIFETIME, NodeRecord, sign_record

log = structlog.get_logger(__name__)
PUBLISH_EVERY = 20.0
LOOK_EVERY = 2.0
"""Seconds between looks whether the published figures have changed much."""


@dataclass(frozen=True)
class Kit:
    """What a node is made of. `meter`: None = receipts signed by `signer`."""

    network: Network
    model_id: ModelId
    span: Span
    signer: Signer
    host: Host
    journal: Journal
    chain: Chain
    meter: Meter | None = None


class Counts:
    """Since the start: refusals by reason, tensors that left by whom they went to (hops are counted, not believed)."""

    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()
        self.outputs: Counter[str] = Counter()

    def refused(self, code: Code) -> None:
        self.refusals[code.value] += 1

    def sent(self, to: Literal["next", "client"]) -> None:
        self.outputs[to] += 1


class Node:
    """Made by `start`; `run` serves until stopped or broken, `close` drains. Lives in one event loop."""

    def __init__(self, kit: Kit, settings: NodeSettings, need: Need | None) -> None:
        """`need`: memory of backward passes; None: none are served."""
        self.kit, self.settings = kit, settings
        self.counts = Counts()
        self.offer = _offer(kit, settings, need)
        self._worker = Worker("receipts")
        self._hop_worker = Worker("checks")
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._broke: HivemintError | None = None
        self._published: tuple[float, ...] = ()
        self._tasks: list[asyncio.Task[None]] = []
        store = kit.span.new_store(settings.kv_bytes or None)
        room = Room(store, free_share=settings.free_share, max_seats=settings.max_sessions)
        scheduler = Scheduler(settings.batch_rows, settings.free_share, whole=settings.max_rows)
        patience = Processors().patience if kit.span.device.type == "cpu" else lambda: 0.0
        self.engine = Engine(kit.span, scheduler, room, need or NOTHING, patience)
        limits = LobbyLimits(
            settings.max_sessions, settings.max_free_sessions, settings.max_free_a_peer, settings.free_wait
        )
        self.lobby = Lobby(self.engine, kit.chain, kit.journal.book, limits, self._broken)
        self.inbox = Inbox(settings.ahead)
        self.outlets = Outlets(lambda peer, addresses: kit.host.dial(peer, addresses, PUSH))
        domain = kit.network.domain
        meter = kit.meter or ReceiptMeter(domain, kit.signer, self._worker)
        shop = Shop(
            self.offer, self.engine, meter, kit.journal, self.inbox, self.outlets, kit.span.hidden_size,
            kit.span.dtype, self.counts,
        )  # fmt: skip
        admission = Admission(self.offer, domain, kit.chain, self._hop_worker, kit.journal, self.lobby.account)
        self._parts = Parts(admission, self.lobby, shop, kit.span.new_adapters(settings.max_adapter, settings.max_rank))

    @classmethod
    async def start(cls, kit: Kit, settings: NodeSettings) -> "Node":
        """Warm up, open the doors, publish. The host must have started."""
        node = cls(kit, settings, await asyncio.to_thread(_need, kit.span) if settings.max_backward else None)
        await asyncio.to_thread(kit.span.prepare, node.engine.room.store, settings.batch_rows)
        await node.engine.warm_up(kit.span.hidden_size, kit.span.dtype)
        node._tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("engine", node.engine.run()),
                ("watchdog", watch(node.engine, Patience(settings.hung_times, settings.hung_least))),
                ("sessions", node.lobby.watch()),
                ("record", node._keep_published()),
                ("host", node._watch_host()),
            )
        ]
        await kit.host.serve(PUSH, node.inbox.receive)
        await kit.host.serve(CONTROL, node._control)
        await node._publish()
        return node

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Raises what broke the node: its daemon died, its journal failed, its device hangs."""
        stopped: asyncio.Future[Any] = asyncio.create_task(stop.wait())
        await asyncio.wait({stopped, self._failure, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        try:
            for ended in (self._failure, *self._tasks):
                if ended.done():
                    ended.result()
        except Exception as error:
            self._broke = (
                error if isinstance(error, HivemintError) else HivemintError("The node failed", why=str(error))
            )
            log.error("the node cannot go on", reason=str(error))
            raise

    async def close(self) -> None:
        """Drain: finish what was taken, close the sessions, then the links. The journal and host are the maker's.

        A broken node finishes nothing: each session is told what broke.
        """
        if self._broke is None:
            await self.lobby.drain(self.settings.drain, Code.DRAINING, "the node is going down")
        else:
            self.engine.fail(self._broke)
            await self.lobby.drain(self.settings.drain, Code.FAILED, f"{self._broke.what}: {self._broke.why}")
        await self.outlets.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._worker.stop()
        self._hop_worker.stop()
        if not self._failure.done():
            self._failure.cancel()

    def record(self) -> NodeRecord:
        """What the DHT is told now."""
        offer, gauge = self.offer, self.engine.gauge
        return NodeRecord(
            network=self.kit.network.name,
            model_id=offer.model_id,
            first_block=self.kit.span.first,
            end_block=self.kit.span.end,
            peer=offer.peer,
            operator=offer.operator,
            numerics=offer.numerics,
            ask=offer.ask,
            ahead=offer.ahead,
            max_rows=offer.max_rows,
            addresses=self.kit.host.addresses[:16],
            wait_paid_s=gauge.wait_s[Lane.PAID],
            wait_free_s=max(gauge.wait_s[Lane.FREE], self.engine.free_wait()),
            tokens_per_s=gauge.rows_per_s,
            free_tokens=self.engine.room.store.tokens_free,
            expires=time.time() + LIFETIME,
        )

    async def _control(self, link: Link) -> None:
        await Talk(self._parts, link).run()

    async def _publish(self) -> None:
        record = self.record()
        self._published = _figures(record)
        await self.kit.host.publish(sign_record(record, self.kit.signer, self.kit.host.key))

    async def _keep_published(self) -> None:
        """Every 20 s, and at once when the figures have changed much."""
        at = time.monotonic()
        while not self.lobby.draining:
            await asyncio.sleep(LOOK_EVERY)
            if time.monotonic() - at < PUBLISH_EVERY and not _changed_much(self._published, _figures(self.record())):
                continue
            at = time.monotonic()
            with suppress(SwarmError):  # the next look tries again
                await self._publish()

    async def _watch_host(self) -> None:
        reason = await self.kit.host.wait_ended()
        raise SwarmError("The node's place in the swarm is lost", why=reason, next_step="start the node again")

    def _broken(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(error if isinstance(error, HivemintError) else HivemintError(str(error)))


def _need(span: Span) -> Need | None:
    """None where a backward pass can't be run: some quantised kernels have no gradient. A node serves without."""
    try:
        return measure(span)
    except (RuntimeError, HivemintError) as error:
        log.warning("no backward passes are served", reason=str(error)[:300])
        return None


def _offer(kit: Kit, settings: NodeSettings, need: Need | None) -> Offer:
    span = kit.span
    most = min(settings.max_tokens or span.max_positions, span.max_positions)
    backward = 0 if need is None else need.most_rows(free_share(span.device), min(settings.max_backward, most))
    return Offer(
        kit.signer.address, PeerId(kit.host.peer_id), kit.model_id, span.first, span.end,
        (numerics(span, settings.wire),), Credits(settings.ask), most, min(settings.max_rows, most), settings.ahead,
        backward, settings.max_adapter, settings.max_rank,
    )  # fmt: skip


def numerics(span: Span, wire: str) -> str:
    """`weights/compute/wire` as it is declared and signed. `wire` "": that of the computation."""
    return f"{span.precision}/{wire or span.precision.compute}"


def _figures(record: NodeRecord) -> tuple[float, ...]:
    return record.wait_paid_s + 0.1, record.wait_free_s + 0.1, record.tokens_per_s + 1, record.free_tokens + 1024.0


def _changed_much(before: tuple[float, ...], now: tuple[float, ...]) -> bool:
    return any(max(a, b) > 1.5 * min(a, b) for a, b in zip(before, now, strict=True))
