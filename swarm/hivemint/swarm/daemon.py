"""The libp2p daemon of one host: a child process of ours, its control sockets in a folder that only we can enter.

hivemind would start the daemon itself, but then a Ctrl-C in the terminal kills it before a node has drained, and
nobody notices when it dies. So the child is started here, in a session of its own, and watched; hivemind's `P2P`
joins it through `P2P.replicate`.
"""

import asyncio
import contextlib
import errno
import importlib
import importlib.util
import os
import shutil
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from hivemint.protocol.errors import ConfigError, ProtocolError, SwarmError
from hivemint.protocol.ids import PeerId
from hivemint.swarm import run_folder
from hivemint.swarm.identity import PeerKey, parse_peer, peer_text

START_LIMIT = 15.0
STOP_LIMIT = 3.0
MAX_MESSAGE = 1024 * 1024
"""Of the DHT's requests and answers. The daemon cuts a peer off that sends more, before we see it."""
StreamHandler = Callable[[PeerId, str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Peer id, the address that its connection comes from, and the stream."""


class RequestHandler(Protocol):
    """What stands before the DHT: every request of another peer comes here unread (`dht.desk`)."""

    async def answer(self, peer: PeerId, raw: bytes, kind: Any, handler: Callable[[Any], Awaitable[Any]]) -> bytes:
        """The answer to one request of the protobuf type `kind`. Raises SwarmError, which the asker gets to read."""


class Daemon:
    """`p2p` is hivemind's own object, for its DHT. All calls raise SwarmError; time limits are the caller's."""

    def __init__(self, folder: Path, lock: int, child: asyncio.subprocess.Process) -> None:
        self.folder, self._lock = folder, lock
        self.child = child
        self.p2p: Any = None
        self.desk: RequestHandler | None = None
        self._control: Any = None
        self._last_lines: deque[str] = deque(maxlen=4)
        self._log = asyncio.create_task(self._read_log(), name="p2pd log")
        self._ready = asyncio.Event()

    @classmethod
    async def start(cls, key: PeerKey, listen: Sequence[str], announce: Sequence[str]) -> "Daemon":
        """Start the child and wait until it answers, at most 15 s. Raises SwarmError; ConfigError for a taken port."""
        _check_free(listen)
        await asyncio.to_thread(_load_hivemind)
        folder, lock = run_folder.make()
        key.save(folder / "peer.key")
        control = f"/unix{folder}/control.sock"
        try:
            child = await asyncio.create_subprocess_exec(
                str(files("hivemind.hivemind_cli") / "p2pd"),
                *_arguments(folder / "peer.key", control, listen, announce),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for us alone: we drain, then end it
            )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
            raise _not_started(error) from None
        daemon = cls(folder, lock, child)
        try:
            async with asyncio.timeout(START_LIMIT):
                await daemon._join(control)
        except TimeoutError:
            await daemon.stop()
            raise SwarmError("The libp2p daemon did not answer", why=f"waited {START_LIMIT:.0f} s") from None
        except BaseException:
            await daemon.stop()
            raise
        return daemon

    async def _join(self, control: str) -> None:
        ended = asyncio.create_task(self.child.wait())
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ended, ready}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
        if not self._ready.is_set():
            await self._log
            raise SwarmError("The libp2p daemon did not start", why=" ".join(self._last_lines)[:400])
        from hivemind.p2p import P2P, P2PContext
        from hivemind.utils.multiaddr import Multiaddr

        async def behind_the_desk(
            p2p: Any, name: str, handler: Callable[[Any, Any], Awaitable[Any]], kind: Any, balanced: bool = False
        ) -> None:
            """In place of P2P's own, which parses whatever comes."""

            async def unary(raw: bytes, remote: Any) -> bytes:
                if self.desk is None:
                    raise SwarmError("This peer answers no requests")
                context = P2PContext(name, p2p.peer_id, remote)
                peer = PeerId(remote.to_bytes())
                return await self.desk.answer(peer, raw, kind, lambda request: handler(request, context))

            await p2p._client.add_unary_handler(name, unary, balanced=balanced)

        own = {"_UNIX_SOCKET_PREFIX": f"/unix{self.folder}/", "_add_protobuf_unary_handler": behind_the_desk}
        private: Any = type("PrivateP2P", (P2P,), own)
        self.p2p = await private.replicate(Multiaddr(control))
        self._control = self.p2p._client.control
        self._control.persistent_conn_max_msg_size = MAX_MESSAGE
        for task in (self._control._read_task, self._control._write_task):
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # `wait` tells of the end
        self.folder.joinpath("peer.key").unlink(missing_ok=True)  # read; the lasting copy is the node's own

    async def addresses(self) -> tuple[str, ...]:
        """Where this peer can be dialled, without /p2p/."""
        with _translated():
            _, visible = await self.p2p._client.identify()
        return tuple(str(address) for address in visible)

    async def connections(self) -> dict[PeerId, str]:
        """The address of each connected peer's connection."""
        with _translated():
            found = await self.p2p._client.list_peers()
        return {PeerId(info.peer_id.to_bytes()): str(info.addrs[0]) for info in found if info.addrs}

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """A connection to `peer`: by the addresses given, else by libp2p's own look-up."""
        from hivemind.p2p import PeerID

        with _translated():
            await self.p2p._client.connect(PeerID(bytes(peer)), _multiaddrs(peer, addresses))

    async def open(self, peer: PeerId, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to a connected peer."""
        from hivemind.p2p import PeerID

        with _translated():
            _, reader, writer = await self.p2p.call_binary_stream_handler(PeerID(bytes(peer)), protocol)
        return reader, writer

    async def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Call `handler` for every stream that a peer opens. The peer id is authenticated by libp2p."""

        async def accept(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await handler(PeerId(info.peer_id.to_bytes()), str(info.addr), reader, writer)

        with _translated():
            await self.p2p.add_binary_stream_handler(protocol, accept)

    def tidy(self) -> None:
        """The library keeps every request that its asker has cancelled."""
        tasks = self._control._handler_tasks
        for call in [call for call, task in tasks.items() if task.done()]:
            del tasks[call]

    async def wait(self) -> str:
        """Until the child has ended, or hears us no more; why. Calls that wait for it fail with SwarmError."""
        ended, deaf = asyncio.create_task(self.child.wait()), self._control._read_task
        try:
            await asyncio.wait({ended, deaf}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({ended}, timeout=0.5)  # a dying child closes its sockets first
        finally:
            ended.cancel()
        self._fail_calls()
        if self.child.returncode is None:
            return "its control connection broke"
        code = self.child.returncode
        await asyncio.wait({self._log}, timeout=0.5)
        lines = [
            line for line in self._last_lines if not line.startswith(("Peer ID:", "Peer Addrs:", "Control socket:"))
        ]
        return f"exit status {code}" + (f": {' '.join(lines)[:400]}" if lines else "")

    def _fail_calls(self) -> None:
        from hivemind.p2p import P2PDaemonError

        for call in self._control._pending_calls.values():
            if not call.done():
                call.set_exception(P2PDaemonError("the libp2p daemon has ended"))

    async def stop(self) -> None:
        """End the child, if it lives, and remove its folder."""
        if self.p2p is not None:
            await self.p2p.shutdown()
        if self.child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.child.terminate()
            try:
                async with asyncio.timeout(STOP_LIMIT):
                    await self.child.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self.child.kill()
                await self.child.wait()
        await asyncio.wait({self._log}, timeout=0.5)  # to the end of the pipe, which closes it
        self._log.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def _read_log(self) -> None:
        out = self.child.stdout
        while out is not None:
            try:
                line = await out.readline()
            except ValueError:  # a line longer than the reader's limit
                continue
            if not line:
                return
            text = line.decode(errors="replace").strip()
            self._last_lines.append(text[:400])
            if text.startswith("Peer ID:"):
                self._ready.set()


def _load_hivemind() -> None:
    """Its network half alone: the package's own `__init__` would bring its trainer and scipy, 50 MB and 0.3 s more.

    In a thread, as it brings torch along.
    """
    if "hivemind" not in sys.modules:
        spec = importlib.util.find_spec("hivemind")
        if spec is not None:
            package = importlib.util.module_from_spec(spec)  # knows where its parts lie; nothing of it has run
            sys.modules["hivemind"] = package
    importlib.import_module("hivemind.dht.node")
    importlib.import_module("hivemind.p2p")
    importlib.import_module("hivemind.utils.logging").use_hivemind_log_handler("nowhere")  # the program's own decides


def split_address(text: str) -> tuple[PeerId, str]:
    """`/ip4/../tcp/../p2p/ID` -> (ID, the rest). Raises ProtocolError."""
    address, found, peer = text.rpartition("/p2p/")
    if not found or not address.startswith("/"):
        raise ProtocolError(
            "This is not a peer's full address",
            why=f"got {text[:120]!r}",
            next_step="it looks like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...",
        )
    return parse_peer(peer), address


def full_address(address: str, peer: PeerId) -> str:
    return f"{address}/p2p/{peer_text(peer)}"


def _multiaddrs(peer: PeerId, addresses: Sequence[str]) -> list[Any]:
    from hivemind.utils.multiaddr import Multiaddr

    usable = []
    for text in addresses:
        try:
            named, address = split_address(text) if "/p2p/" in text and "/p2p-circuit" not in text else (peer, text)
            if named == peer:
                usable.append(Multiaddr(address))
        except (ProtocolError, ValueError, LookupError):
            continue  # one peer's bad address must not hide its good ones
    if addresses and not usable:
        raise SwarmError(f"Peer {peer_text(peer)} has no usable address", why=f"got {', '.join(addresses)[:200]}")
    return usable


def _not_started(error: OSError) -> SwarmError:
    missing = isinstance(error, FileNotFoundError | PermissionError) or error.errno == errno.ENOEXEC
    return SwarmError(
        "The libp2p daemon did not start",
        why=str(error),
        next_step=f"reinstall hivemind for this machine ({sys.platform})"
        if missing
        else "allow this user more open files (ulimit -n) and processes (ulimit -u)",
    )


def _arguments(key: Path, control: str, listen: Sequence[str], announce: Sequence[str]) -> list[str]:
    public = any(not _is_loopback(address) for address in listen)
    arguments = [
        f"-id={key}",
        f"-listen={control}",
        f"-autonat={int(public)}",
        f"-natPortMap={int(public)}",
        f"-relayService={int(public)}",
        "-relay=1",
        "-connManager=1",
        "-connHi=4096",  # its trimming looks at no open stream, so it must not begin early
        "-connLo=3072",
        f"-persistentConnMaxMsgSize={MAX_MESSAGE}",
        "-idleTimeout=30s",  # ends a daemon that we did not live to join
        "-dhtServer" if listen else "-dhtClient",
        f"-hostAddrs={','.join(listen)}" if listen else "-noListenAddrs",
    ]
    return arguments + ([f"-announceAddrs={','.join(announce)}"] if announce else [])


def _check_free(listen: Sequence[str]) -> None:
    """libp2p listens with SO_REUSEPORT: it would share a taken port without a word, and half of the dials get lost."""
    for address in listen:
        match address.split("/"):
            case ["", "ip4" | "ip6" as family, host, "tcp", port] if port.isdecimal() and int(port):
                pass
            case _:
                continue
        with socket.socket(socket.AF_INET if family == "ip4" else socket.AF_INET6) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
                probe.listen(1)
            except (OSError, OverflowError) as error:
                raise ConfigError(
                    f"Cannot listen on {address}",
                    why=str(error),
                    next_step="choose another port, or 0 for any free one",
                ) from None


def _is_loopback(address: str) -> bool:
    return address.startswith(("/ip4/127.", "/ip6/::1/"))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """hivemind's errors as ours."""
    from hivemind.p2p import P2PDaemonError

    try:
        yield
    except P2PDaemonError as error:
        raise SwarmError("The peer cannot be reached", why=_short(str(error))) from None
    except (OSError, EOFError) as error:
        raise SwarmError("The libp2p daemon does not answer", why=str(error) or type(error).__name__) from None


def _short(text: str) -> str:
    return " ".join(text.removeprefix("Connect failed. msg=").split())[:300]
