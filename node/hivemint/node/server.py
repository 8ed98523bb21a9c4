"""A node: a span served over control and push links, its record in the DHT, its sessions in the journal."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from hivemint.ledger.books.journal import Journal
from hivemint.node.engine.engine import Engine
from hivemint.node.engine.gathering import Processors
from hivemint.node.engine.scheduler import Lane, Scheduler
from hivemint.node.engine.seats import Seats
from hivemint.node.engine.step_job import StepJob
from hivemint.node.engine.threads import Worker
from hivemint.node.engine.watchdog import HangLimit, watch
from hivemint.node.kv.cache import free_share
from hivemint.node.last_record import LastRecord
from hivemint.node.sessions.admission import Admission, FundsReader
from hivemint.node.sessions.conversation import Conversation
from hivemint.node.sessions.inbox import Inbox
from hivemint.node.sessions.leaving import Leaving
from hivemint.node.sessions.metering import Meter, ReceiptMeter
from hivemint.node.sessions.offer import Offer
from hivemint.node.sessions.outlets import NeighbourLinks, Outlets
from hivemint.node.sessions.parking import ParkingLimits
from hivemint.node.sessions.registry import SessionLimits, SessionRegistry
from hivemint.node.sessions.services import Counts, Services
from hivemint.node.sessions.steps.kept import KeptOutputs
from hivemint.node.settings import NodeSettings
from hivemint.node.span.backward import NOTHING, Need, measure
from hivemint.node.span.span import Span
from hivemint.node.supervise import Supervisor
from hivemint.protocol import evidence
from hivemint.protocol.errors import ConfigError, HivemintError, ProofError, SwarmError
from hivemint.protocol.ids import Credits, ModelId, PeerId
from hivemint.protocol.network import Network
from hivemint.protocol.receipt import SignedReceipt
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import CONTROL, PUSH, Host
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Code, Limits
from hivemint.swarm.records import LIFETIME, NodeRecord, sign_record

log = structlog.get_logger(__name__)
PUBLISH_EVERY = 20.0
RECORD = "record"
LOOK_EVERY = 2.0
"""Seconds between looks whether the published figures have changed much."""
TAKE_BACK = 2.0
"""Seconds that a node which leaves gives to the directory."""
HANDING = 0.1
"""Seconds between looks whether the sessions of a node that moves have ended."""


@dataclass(frozen=True)
class Kit:
    """What a node is made of. `meter`: None = receipts signed by `signer`. `evidence`: the folder for what proves that
    a neighbour has signed two receipts of one step. `last`: which blocks were published before.
    """

    network: Network
    model_id: ModelId
    span: Span
    signer: Signer
    host: Host
    journal: Journal
    chain: FundsReader
    meter: Meter | None = None
    evidence: Path | None = None
    last: LastRecord | None = None


class Node:
    """Made by `start`; `run` serves until stopped or broken, `close` drains. Lives in one event loop."""

    def __init__(self, kit: Kit, settings: NodeSettings, need: Need | None) -> None:
        """`need`: memory of backward passes; None: none are served."""
        self.kit, self.settings = kit, settings
        self.counts = Counts()
        self.offer = _offer(kit, settings, need)
        self._worker = Worker("receipts")
        self._hop_worker = Worker("checks")
        self.supervisor = Supervisor()
        self._broke: HivemintError | None = None
        self._published: tuple[float, ...] = ()
        self._store = store = kit.span.new_store(settings.kv_bytes or None)
        room = Seats(store, donated_share=settings.donated_share, idle=settings.idle, max_seats=settings.max_sessions)
        scheduler = Scheduler[StepJob](settings.batch_rows, settings.donated_share, whole=settings.max_rows)
        patience = Processors().patience if kit.span.device.type == "cpu" else lambda: 0.0
        self.engine = Engine(kit.span, scheduler, room, need or NOTHING, patience)
        limits = SessionLimits(
            sessions=settings.max_sessions,
            of_client=settings.max_sessions_a_client,
            of_prefix=settings.max_sessions_a_prefix,
            donated=settings.max_donated_sessions,
            donated_of_prefix=settings.max_donated_a_prefix,
            donated_wait_s=settings.donated_wait,
            idle_s=settings.idle,
            parking=ParkingLimits(settings.park),
        )
        self.registry = SessionRegistry(self.engine, kit.chain, kit.journal, limits, self.supervisor.broken)
        self.inbox = Inbox(settings.ahead, self._differ)
        self.neighbours = NeighbourLinks(lambda block: kit.host.find(kit.model_id, range(block, block + 1)))
        self.outlets = Outlets(self.neighbours, lambda peer, addresses: kit.host.dial(peer, addresses, PUSH))
        domain = kit.network.domain
        meter = kit.meter or ReceiptMeter(domain, kit.signer, self._worker)
        admission = Admission(self.offer, domain, kit.chain, self._hop_worker, self.registry.account)
        leaving = Leaving(domain, kit.signer, admission.nonces, kit.chain, self._hop_worker, kit.journal, self.registry)
        self._services = Services(
            offer=self.offer,
            admission=admission,
            registry=self.registry,
            leaving=leaving,
            engine=self.engine,
            adapters=kit.span.new_adapters(settings.max_adapter, settings.max_rank),
            hidden_size=kit.span.hidden_size,
            dtype=kit.span.dtype,
            meter=meter,
            journal=kit.journal,
            inbox=self.inbox,
            outlets=self.outlets,
            kept=KeptOutputs(settings.keep_outputs),
            counts=self.counts,
            prefix_of=kit.host.prefix_of,
        )

    @classmethod
    async def start(cls, kit: Kit, settings: NodeSettings) -> "Node":
        """Warm up, open the doors, publish. The host must have started."""
        node = cls(kit, settings, await asyncio.to_thread(_need, kit.span) if settings.max_backward else None)
        try:
            await node._begin()
        except BaseException:
            await node.close()
            raise
        return node

    async def _begin(self) -> None:
        await asyncio.to_thread(self.kit.span.prepare, self._store, self.settings.batch_rows)
        await self.engine.warm_up(self.kit.span.hidden_size, self.kit.span.dtype)
        supervisor = self.supervisor
        supervisor.essential("engine", self.engine.run())
        limit = HangLimit(self.settings.hung_times, self.settings.hung_least)
        supervisor.essential("watchdog", watch(self.engine.device, limit))
        supervisor.essential("host", self._watch_host())
        supervisor.keep_up("sessions", self.registry.watch)
        await self.kit.host.serve(PUSH, self.inbox.receive)
        await self.kit.host.serve(CONTROL, self._control)
        await self._publish()
        supervisor.keep_up(RECORD, self._keep_published)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Raises what broke the node: its daemon died, its journal failed, its device hangs."""
        stopped: asyncio.Future[Any] = asyncio.create_task(stop.wait())
        await asyncio.wait({stopped, self.supervisor.failure}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not self.supervisor.failure.done():
            return
        try:
            self.supervisor.failure.result()
        except HivemintError as error:
            self._broke = error
            log.error("the node cannot go on", reason=str(error))
            raise

    async def hand_over(self, within: float) -> int:
        """Before a move: take nobody in, say so in the directory, and stay until the sessions have ended by themselves,
        `within` seconds at most. How many are left: `close` finishes their steps and tells their clients to go on
        elsewhere.
        """
        self.registry.draining = True
        await self._take_back()
        for _ in range(round(within / HANDING)):
            if not self.registry.occupants:
                break
            await asyncio.sleep(HANDING)
        return len(self.registry.occupants)

    async def close(self) -> None:
        """Drain: finish what was taken, close the sessions, then the links. The journal and host are the maker's.

        A broken node finishes nothing: each session is told what broke.
        """
        taking_back = asyncio.create_task(self._take_back())
        if self._broke is None:
            await self.registry.drain(self.settings.drain, Code.DRAINING, "the node is going down")
        else:
            self.engine.fail(self._broke)
            await self.registry.drain(self.settings.drain, Code.FAILED, self._broke.what)
        await taking_back
        await self.outlets.close()
        await self.supervisor.close()
        self._worker.stop()
        self._hop_worker.stop()

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
            ahead=offer.limits.ahead,
            max_rows=offer.limits.rows,
            addresses=self.kit.host.addresses[:16],
            wait_paid_s=gauge.wait_s[Lane.PAID],
            wait_donated_s=max(gauge.wait_s[Lane.DONATED], self.engine.donated_wait()),
            tokens_per_s=gauge.rows_per_s,
            free_tokens=self.engine.capacity().kv_free,
            trips=self.outlets.trips,
            leaving=self.registry.draining,
            expires=self.kit.host.clock.now() + LIFETIME,
        )

    async def _control(self, link: Link) -> bool:
        """Whether the client was charged for more than the handshake cost."""
        conversation = Conversation(self._services, link)
        await conversation.run()
        return conversation.session is not None and conversation.session.pays

    async def _publish(self) -> None:
        """A record that cannot be stored is told, and stored at one of the next looks."""
        record = self.record()
        self._published = _figures(record)
        try:
            await self._put(record)
            await self._take_back_before(record)
        except SwarmError as error:
            self.supervisor.tell(RECORD, str(error))
        else:
            self.supervisor.well(RECORD)

    async def _put(self, record: NodeRecord) -> None:
        await self.kit.host.publish(sign_record(record, self.kit.signer, self.kit.host.key))

    async def _take_back_before(self, record: NodeRecord) -> None:
        """Where an earlier run served other blocks, nobody is to look any more."""
        if self.kit.last is not None:
            if (farewell := self.kit.last.farewell(record)) is not None:
                await self._put(farewell)
            self.kit.last.remember(record)

    async def _take_back(self) -> None:
        """Nobody is to look here any more; where the directory does not take that in time, the record expires."""
        if not self._published:
            return
        try:
            async with asyncio.timeout(TAKE_BACK):
                await self._put(self.record())  # which says that it is leaving: the registry drains
        except (HivemintError, ValueError, TimeoutError) as error:
            log.info("the record could not be taken back", reason=str(error) or f"not within {TAKE_BACK:g} s")

    async def _keep_published(self) -> None:
        """Every 20 s, and at once when the figures have changed much; at each look while it does not succeed."""
        at = time.monotonic()
        while not self.registry.draining:
            await asyncio.sleep(LOOK_EVERY)
            if self.registry.draining:
                return
            due = time.monotonic() - at >= PUBLISH_EVERY or RECORD in self.supervisor.trouble
            if not due and not _changed_much(self._published, _figures(self.record())):
                continue
            at = time.monotonic()
            await self._publish()

    async def _watch_host(self) -> None:
        reason = await self.kit.host.wait_ended()
        raise SwarmError("The node's place in the swarm is lost", why=reason, next_step="start the node again")

    def _differ(self, one: SignedReceipt, other: SignedReceipt) -> None:
        """A neighbour has sent two receipts of one step. What both signatures prove is kept: it is slashed for it."""
        try:
            proof = evidence.prove(self.kit.network.domain, one, other)
        except ProofError:  # anybody can forge one
            return
        kept = None
        if self.kit.evidence is not None:
            try:
                kept = evidence.keep(self.kit.evidence, proof)
            except (ConfigError, OSError) as error:
                log.error("evidence cannot be kept", reason=str(error))
        told = {} if kept is None else {"evidence": str(kept), "next": f"hivemint node report {kept}"}
        log.error("a node signed two receipts of one step", node=proof.node, step=one.step, **told)


def _need(span: Span) -> Need | None:
    """None where a backward pass can't be run: some quantised kernels have no gradient. A node serves without."""
    try:
        return measure(span)
    except (RuntimeError, HivemintError) as error:
        log.warning("no backward passes are served", reason=str(error)[:300])
        return None


def _offer(kit: Kit, settings: NodeSettings, need: Need | None) -> Offer:
    span = kit.span
    most = min(settings.max_session_tokens or span.max_positions, span.max_positions)
    backward = 0 if need is None else need.most_rows(free_share(span.device), min(settings.max_backward, most))
    return Offer(
        operator=kit.signer.address,
        peer=PeerId(kit.host.peer_id),
        model_id=kit.model_id,
        first=span.first,
        end=span.end,
        numerics=(numerics(span, settings.wire),),
        ask=Credits(settings.first_ask),
        limits=Limits(
            tokens=most,
            rows=min(settings.max_rows, most),
            ahead=settings.ahead,
            backward_rows=backward,
            adapter_bytes=settings.max_adapter,
            adapter_rank=settings.max_rank,
        ),
    )


def numerics(span: Span, wire: str) -> str:
    """`weights/compute/wire` as it is declared and signed. `wire` "": that of the computation."""
    return f"{span.precision}/{wire or span.precision.compute}"


def _figures(record: NodeRecord) -> tuple[float, ...]:
    return record.wait_paid_s + 0.1, record.wait_donated_s + 0.1, record.tokens_per_s + 1, record.free_tokens + 1024.0


def _changed_much(before: tuple[float, ...], now: tuple[float, ...]) -> bool:
    return any(max(a, b) > 1.5 * min(a, b) for a, b in zip(before, now, strict=True))
