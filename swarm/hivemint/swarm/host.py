"""This process in the swarm: a libp2p peer that dials, serves, publishes and finds.

hivemind's P2P and DHTNode live in the caller's event loop (uvloop or plain asyncio); nothing is forked. The daemon
underneath is a child process of ours; when it dies every link ends with that reason and `wait_ended` returns.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hivemint.contracts.errors import BadInput, HivemintError, ProtocolError, Refusal, SwarmError
from hivemint.contracts.ids import ModelId, PeerId
from hivemint.swarm.daemon import Daemon, full_address, split_address
from hivemint.swarm.directory import Directory, Keys
from hivemint.swarm.handshake import HELLO_LIMIT, Badge, answer, greet, read_hello
from hivemint.swarm.identity import PeerKey, peer_text
from hivemint.swarm.limits import Gate, Limits
from hivemint.swarm.link import Held, Link
from hivemint.swarm.messages import Code, Hello, Refused
from hivemint.swarm.records import CheckedRecord, SignedRecord

CONTROL = "hivemint/control/1"
PUSH = "hivemint/push/1"
BEAT = 0.25
HOUSEKEEPING = 10.0
MIN_SWARM_KEY = 16
Handler = Callable[[Link], Awaitable[None]]


@dataclass(frozen=True)
class HostSettings:
    """`identity`: Ed25519 key file, made (0600) if absent; None = a new peer id each time.

    `listen`: multiaddresses, () = a client that nobody can dial. `announce`: what to tell others instead, e.g. a
    proxy's port. `bootstrap`: full multiaddresses, /ip4/../tcp/../p2p/ID. `swarm_key`: at least 16 secret bytes.
    """

    network: str
    identity: Path | None = None
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    swarm_key: bytes | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        size = MIN_SWARM_KEY if self.swarm_key is None else len(self.swarm_key)
        if size < MIN_SWARM_KEY:
            raise BadInput("The swarm key is too short", why=f"at least {MIN_SWARM_KEY} bytes, got {size}")
        for address in self.bootstrap:
            try:
                split_address(address)
            except ProtocolError as error:
                raise BadInput(f"Bootstrap peer {address[:120]!r}", why=error.what, next_step=error.next_step) from None


class Host:
    """Made by `start`; `close` it. All methods raise SwarmError (or its children) when peers or the daemon fail."""

    peer_id: PeerId
    addresses: tuple[str, ...]

    def __init__(self, settings: HostSettings, key: PeerKey, daemon: Daemon) -> None:
        self.key = key
        self.peer_id = key.peer_id
        self.addresses = ()
        self.refusals: Counter[str] = Counter()
        """Links that were turned away before their handler saw them, by code."""
        self._settings, self._daemon = settings, daemon
        self._badge = Badge(settings.network, key.peer_id, settings.swarm_key)
        self._gate = Gate(settings.limits)
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
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
            host._directory = await Directory.join(
                host._daemon, keys, settings.bootstrap, client_only=not settings.listen
            )
            host._spawn(host._directory.keep_joined(), "bootstrap")
            host._spawn(host._beat(), "heartbeat")
        except BaseException:
            await host.close()
            raise
        return host

    async def serve(self, protocol: str, handler: Handler) -> None:
        """Call `handler` with each link that a peer opens, once Hello is done; the link ends when it returns."""
        self._check_alive()

        async def accept(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._spawn(self._accept(peer, reader, writer, handler), f"{protocol} {peer_text(peer)[-8:]}")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})

        await self._daemon.handle(protocol, accept)

    async def dial(self, peer: PeerId, addresses: Sequence[str], protocol: str, *, timeout: float = 5.0) -> Link:
        """A new link, Hello done. Raises Refusal (another network, rate), LinkClosed, SwarmError within `timeout` s.

        Without addresses libp2p looks the peer up, which takes long if it is dead.
        """
        self._check_alive()
        link: Link | None = None
        try:
            async with asyncio.timeout(timeout):
                await self._daemon.connect(peer, addresses)
                _, writer = await self._daemon.open(peer, protocol)
                link = self._link(peer, writer, self._gate.enter(peer, self._now()))
                await greet(link, self._badge)
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

    async def wait_ended(self) -> str:
        """Until the host is closed or its daemon has died; why."""
        await self._ended.wait()
        return self._reason

    async def close(self) -> None:
        """Say Bye on every link, end the handlers, leave the DHT, end the daemon. Safe to call twice."""
        self._end("the host was closed")
        await asyncio.gather(*(link.close("the peer is shutting down") for link in list(self._links)))
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._directory is not None and self._daemon.child.returncode is None:
            await self._directory.close()
        await self._daemon.stop()

    # ---- inside

    async def _accept(
        self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
    ) -> None:
        """From a stream to a link: Hello first (bounded in size and time), then the limits, then the network."""
        held = self._gate.enter(peer, self._now())
        hello: Hello | None = None
        with contextlib.suppress(TimeoutError, EOFError, OSError, ProtocolError):
            if not self._gate.flooded(peer):
                async with asyncio.timeout(HELLO_LIMIT):
                    hello = await read_hello(reader)
        if hello is None:
            self._gate.leave(peer)
            writer.transport.abort()
            return
        link = self._link(peer, writer, held)
        reason = ""
        try:
            self._gate.check(peer, self._now())
            async with asyncio.timeout(HELLO_LIMIT):
                await answer(link, self._badge, hello)
            await handler(link)
        except Refusal as error:
            reason = str(error)
            self.refusals[error.code] += 1
            with contextlib.suppress(SwarmError):
                await link.send(_refused(error))
        except TimeoutError:
            reason = "no proof in time"
        except HivemintError as error:
            reason = str(error)
        finally:
            await link.close(reason)

    def _link(self, peer: PeerId, writer: asyncio.StreamWriter, held: Held) -> Link:
        link = Link(peer, writer, held)
        link.on_closed = self._forget
        self._links.add(link)
        return link

    def _forget(self, link: Link) -> None:
        if link in self._links:
            self._links.discard(link)
            self._gate.leave(link.peer)

    async def _beat(self) -> None:
        housekeeping = self._now()
        while True:
            await asyncio.sleep(BEAT)
            now = self._now()
            for link in list(self._links):
                link.beat(now)
            if now - housekeeping > HOUSEKEEPING:
                housekeeping = now
                self._gate.forget_idle(now)

    async def _watch(self) -> None:
        reason = f"this host's libp2p daemon has died: {await self._daemon.wait()}"
        self._end(reason)
        for link in list(self._links):
            link.abort(reason)

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


def _refused(error: Refusal) -> Refused:
    return Refused(
        Code(error.code), error.what[:400], error.why[:400], error.next_step[:400], retry_after=error.retry_after
    )
