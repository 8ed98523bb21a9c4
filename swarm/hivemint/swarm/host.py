"""This process in the swarm: a libp2p peer that dials, serves, publishes and finds.

hivemind's P2P and DHTNode live in the caller's event loop (uvloop or plain asyncio); nothing is forked. The daemon
underneath is a child process of ours; when it dies every link ends with that reason and `wait_ended` returns.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from hivemint.protocol.errors import BadInput, ProtocolError, SwarmError
from hivemint.protocol.ids import ModelId, PeerId
from hivemint.swarm.addresses import ConnectedPrefixes, is_anywhere, is_name, is_public, within_reach
from hivemint.swarm.daemon import Daemon, full_address, split_address
from hivemint.swarm.dht.clock import SwarmClock
from hivemint.swarm.dht.desk import Desk
from hivemint.swarm.dht.directory import Directory
from hivemint.swarm.dht.keys import Keys
from hivemint.swarm.dht.known import KnownPeers
from hivemint.swarm.dht.standing import OperatorRegistry, Standing
from hivemint.swarm.hello import Badge, greet
from hivemint.swarm.identity import PeerKey, peer_text
from hivemint.swarm.limits import Gate, PeerLimits
from hivemint.swarm.link import Link
from hivemint.swarm.link_registry import Handler, LinkRegistry
from hivemint.swarm.records import CheckedRecord, SignedRecord

log = structlog.get_logger(__name__)
CONTROL = "hivemint/control/1"
PUSH = "hivemint/push/1"
BEAT = 0.25
HOUSEKEEPING = 10.0
MIN_SWARM_KEY = 16


@dataclass(frozen=True)
class HostSettings:
    """`identity`: Ed25519 key file, made (0600) if absent; None = a new peer id each time.

    `listen`: multiaddresses, () = a client that nobody can dial. `announce`: what to tell others instead, e.g. a
    proxy's port. `bootstrap`: full multiaddresses, /ip4/../tcp/../p2p/ID. `swarm_key`: at least 16 secret bytes.
    `known`: file of peers that were met before, tried when the bootstrap peers are away. `private`: whether loopback
    and private addresses are dialled; None = if the bootstrap peers, or else this host, have no public one. `clock`:
    this machine's, seconds since 1970; None = the system's.
    """

    network: str
    identity: Path | None = None
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    swarm_key: bytes | None = None
    limits: PeerLimits = field(default_factory=PeerLimits)
    known: Path | None = None
    private: bool | None = None
    clock: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        size = MIN_SWARM_KEY if self.swarm_key is None else len(self.swarm_key)
        if size < MIN_SWARM_KEY:
            raise BadInput("The swarm key is too short", why=f"at least {MIN_SWARM_KEY} bytes, got {size}")
        for address in self.bootstrap:
            try:
                split_address(address)
            except ProtocolError as error:
                raise BadInput(f"Bootstrap peer {address[:120]!r}", why=error.what, next_step=error.next_step) from None

    @property
    def is_private(self) -> bool:
        if self.private is not None:
            return self.private
        places = self.bootstrap or (*self.announce, *self.listen)
        return not any(is_public(place) or is_name(place) or is_anywhere(place) for place in places)


class Host:
    """Made by `start`; `close` it. All methods raise SwarmError (or its children) when peers or the daemon fail."""

    peer_id: PeerId
    addresses: tuple[str, ...]

    def __init__(self, settings: HostSettings, key: PeerKey, daemon: Daemon) -> None:
        self.key = key
        self.peer_id = key.peer_id
        self.addresses = ()
        self.clock = SwarmClock(settings.clock)
        """The swarm's time, and what is wrong with this machine's clock."""
        self._settings, self._daemon = settings, daemon
        self._badge = Badge(settings.network, key.peer_id, settings.swarm_key)
        self._gate = Gate(settings.limits)
        self._links = LinkRegistry(self._badge, self._gate)
        self._prefixes = ConnectedPrefixes(daemon.connections, loopback=settings.limits.loopback)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._standing = Standing()
        self._directory: Directory | None = None
        self._ended = asyncio.Event()
        self._reason = ""

    @classmethod
    async def start(cls, settings: HostSettings) -> "Host":
        """Start the daemon and join the DHT. Raises ConfigError (key file), SwarmError (port taken, no bootstrap)."""
        key = PeerKey.load(settings.identity) if settings.identity else PeerKey.generate()
        host = cls(settings, key, await Daemon.start(key, settings.listen, settings.announce))
        try:
            places = settings.announce or (await host._daemon.addresses() if settings.listen else ())
            host.addresses = tuple(full_address(place, key.peer_id) for place in places)
            host._spawn(host._watch(), "p2pd watch")
            keys = Keys(settings.network, settings.swarm_key)
            desk = Desk(keys, host._standing, host._prefix_soon, host.clock)
            known = KnownPeers(settings.known)
            host._directory = await Directory.join(
                host._daemon,
                keys,
                settings.bootstrap,
                desk,
                known,
                client_only=not settings.listen,
            )
            host._spawn(host._keep_joined(host._directory), "bootstrap")
            host._spawn(host._beat(), "heartbeat").add_done_callback(host._lost)
        except BaseException:
            await host.close()
            raise
        return host

    async def serve(self, protocol: str, handler: Handler) -> None:
        """Call `handler` with each link that a peer opens, once Hello is done; the link ends when it returns."""
        self._check_alive()

        async def accept(
            peer: PeerId, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            task = asyncio.current_task()
            prefix = self._prefixes.seen(peer, address)
            if task is not None:  # the daemon's server made one for this stream alone: `close` ends it
                task.set_name(protocol)
                self._tasks.add(task)
            try:
                with contextlib.suppress(asyncio.CancelledError):  # by `close`; the server would log it
                    await self._links.accept(peer, prefix, reader, writer, handler)
            finally:
                self._tasks.discard(task)

        await self._daemon.handle(protocol, accept)

    async def dial(self, peer: PeerId, addresses: Sequence[str], protocol: str, *, timeout: float = 5.0) -> Link:
        """A new link, Hello done. Raises Refusal (another network, rate), LinkClosed, SwarmError within `timeout` s.

        Without addresses libp2p looks the peer up, which takes long if it is dead. Loopback and private addresses
        are left out, but for a network of such.
        """
        self._check_alive()
        usable = within_reach(addresses, private=self._settings.is_private)
        if addresses and not usable:
            raise SwarmError(f"Peer {peer_text(peer)} has no usable address", why=f"got {', '.join(addresses)[:200]}")
        link: Link | None = None
        try:
            async with asyncio.timeout(timeout):
                await self._daemon.connect(peer, usable)
                _, writer = await self._daemon.open(peer, protocol)
                link = self._links.add(peer, writer, self._gate.enter(peer, self._now()))
                began = self._now()
                await greet(link, self._badge)
                link.trip = self._now() - began
        except TimeoutError:
            if link is not None:
                link.abort("no Hello in time")
            raise SwarmError(
                f"Peer {peer_text(peer)} does not answer", why=f"waited {timeout:g} s", next_step="try another node"
            ) from None
        except BaseException as error:
            if link is not None:
                link.abort(str(error) or type(error).__name__)
            raise
        return link

    async def publish(self, record: SignedRecord) -> None:
        """Put the record under every block of its span; it expires by itself. Raises ProofError, SwarmError."""
        self._check_alive()
        await self._directory_of().publish(record)

    async def find(self, model_id: ModelId, blocks: range) -> list[CheckedRecord]:
        """Records of nodes that serve one of `blocks`, both signatures checked; some of the nodes may be dead."""
        self._check_alive()
        return await self._directory_of().find(model_id, blocks)

    async def ping(self, peer: PeerId, addresses: Sequence[str]) -> float | None:
        """By how many seconds the clock of a peer of the directory is ahead of this one; None: no answer within 3 s."""
        self._check_alive()
        usable = within_reach(addresses, private=self._settings.is_private)
        return await self._directory_of().pings.ask(peer, usable) if usable else None

    def rank_by(self, registry: OperatorRegistry) -> None:
        """From now on records count by their operators' stake, and those without share what is left over."""
        self._standing.registry = registry

    @property
    def ranks(self) -> bool:
        """Whether a registry tells who is registered."""
        return self._standing.registry is not None

    def is_registered(self, one: CheckedRecord) -> bool:
        """As far as the registry was asked; nobody is without `rank_by`."""
        return self._standing.stake(one.record) > 0

    def stake_of(self, one: CheckedRecord) -> int:
        """Wei of coin that a registered node's operator has bonded, at least 1; 0 for who is not registered."""
        return self._standing.stake(one.record)

    def prefix_of(self, peer: PeerId) -> str | PeerId:
        """The network that a connected peer comes from (`203.0.113.0/24`); the peer itself where none is known.

        Whoever shares out seats or compute counts by this: a peer id costs nothing to make.
        """
        return self._prefixes.of(peer)

    @property
    def refusals(self) -> Counter[str]:
        """Links that were turned away before their handler saw them, by code."""
        return self._links.refusals

    async def wait_ended(self) -> str:
        """Until the host is closed or its daemon has died; why."""
        await self._ended.wait()
        return self._reason

    async def close(self) -> None:
        """Say Bye on every link, end the handlers, leave the DHT, end the daemon. Safe to call twice."""
        self._end("the host was closed")
        await self._links.close("the peer is shutting down")
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._directory is not None and self._daemon.child.returncode is None:
            await self._directory.close()
        await self._daemon.stop()

    # ---- inside

    def _prefix_soon(self, peer: PeerId) -> str | PeerId:
        """As `prefix_of`, for a peer that may have opened no stream yet: then where it comes from is looked up."""
        if self._prefixes.worth_a_look(peer, self._now()):
            self._spawn(self._prefixes.look_around(), "prefixes")
        return self.prefix_of(peer)

    async def _beat(self) -> None:
        housekeeping = self._now()
        while True:
            await asyncio.sleep(BEAT)
            now = self._now()
            self._links.beat(now)
            if now - housekeeping > HOUSEKEEPING:
                housekeeping = now
                self._gate.forget_idle(now)
                self._daemon.tidy()
                self._spawn(self._prefixes.look_around(), "prefixes")

    async def _keep_joined(self, directory: Directory) -> None:
        while True:
            try:
                await directory.keep_joined()
            except Exception:  # whatever it is: told, and begun again, after the pause that it begins with
                log.exception("looking after the bootstrap peers failed")

    def _lost(self, task: "asyncio.Task[None]") -> None:
        """Without its heartbeat a host would take dead links for living ones: it has ended."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the heartbeat failed", exc_info=error)
            self._end(f"its heartbeat failed: {type(error).__name__}: {error}")

    async def _watch(self) -> None:
        reason = f"this host's libp2p daemon has died: {await self._daemon.wait()}"
        self._end(reason)
        self._links.abort(reason)

    def _end(self, reason: str) -> None:
        if not self._ended.is_set():
            self._reason = reason
            self._ended.set()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _check_alive(self) -> None:
        if self._ended.is_set():
            raise SwarmError("This host has ended", why=self._reason, next_step="start it again")

    def _directory_of(self) -> Directory:
        if self._directory is None:
            raise SwarmError("This host has not joined the swarm")
        return self._directory

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
