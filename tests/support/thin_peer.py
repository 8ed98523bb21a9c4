"""A libp2p peer without a daemon: a thousand ids in one process, each with a connection of its own to a node's daemon.

TCP, multistream-select, Noise XX, yamux: what a dialler needs of them and no more. Nothing is checked that protects
the dialler, so this is for attackers in tests alone: to the node it is a peer like others, its id proved by its key.
"""

import asyncio
import contextlib
from collections import deque
from itertools import count

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hivemint.protocol.errors import LinkClosed, ProtocolError
from hivemint.protocol.ids import PeerId
from hivemint.swarm.daemon import split_address
from hivemint.swarm.frames import FrameReader, pack
from hivemint.swarm.hello import Badge, greet
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.messages import AnyMessage, Bye, Ping
from support.thin_noise import Cipher, Handshake, agree, public

_MULTISTREAM = b"/multistream/1.0.0"
_MOST = 60_000
"""Bytes of one encrypted message, below Noise's 65,535."""
DATA, WINDOW, PING, AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
_STEP_BYTES = 32 * 1024
_STEP = 10.0
"""Seconds that a connection or a stream may take."""


class ThinPeer:
    """One connection of one id. Made by `connect`; `close` it. Raises LinkClosed when the other side has hung up."""

    def __init__(self, key: PeerKey, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.key, self.node = key, PeerId(b"")
        self._reader, self._writer = reader, writer
        self._seal, self._open = Cipher(bytes(32)), Cipher(bytes(32))
        self._rest = bytearray()
        self._streams: dict[int, ThinLink] = {}
        self._ids = count(1, 2)
        self._pump: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, address: str, key: PeerKey | None = None, *, source: str | None = None) -> "ThinPeer":
        """`address`: /ip4/../tcp/../p2p/ID. `source`: the address of this machine that the connection comes from."""
        node, place = split_address(address)
        _, _, host, _, port = place.split("/")[:5]
        try:
            async with asyncio.timeout(_STEP):
                where = (source, 0) if source else None
                reader, writer = await asyncio.open_connection(host, int(port), local_addr=where)
                peer = cls(key or PeerKey.generate(), reader, writer)
                peer.node = node
                try:
                    await peer._secure()
                except BaseException:
                    writer.transport.abort()
                    raise
        except (OSError, EOFError, TimeoutError) as error:
            raise LinkClosed("No connection", why=str(error) or type(error).__name__) from None
        peer._pump = asyncio.create_task(peer._read())
        return peer

    async def open(self, protocol: str) -> "ThinLink":
        """A stream of this protocol; nothing of ours is said yet."""
        number = next(self._ids)
        link = self._streams[number] = ThinLink(self, number)
        offer = _line(_MULTISTREAM) + _line(protocol.encode())
        self.frame(DATA, SYN, number, offer)
        async with asyncio.timeout(_STEP):
            for expected in (_MULTISTREAM, protocol.encode()):
                if (got := await link.line()) != expected:
                    raise LinkClosed("No such protocol", why=repr(got[:80]))
        return link

    async def link(self, protocol: str, network: str) -> "ThinLink":
        """A stream with Hello done. Raises Refusal as the node says it."""
        link = await self.open(protocol)
        try:
            async with asyncio.timeout(_STEP):
                await greet(link, Badge(network, self.key.peer_id, None))  # type: ignore[arg-type]
        except BaseException:
            link.reset()
            raise
        return link

    def frame(self, kind: int, flags: int, stream: int, body: bytes = b"", length: int | None = None) -> None:
        """One yamux frame; `length` for the kinds that carry a number and no body."""
        size = len(body) if length is None else length
        head = bytes((0, kind)) + flags.to_bytes(2, "big") + stream.to_bytes(4, "big") + size.to_bytes(4, "big")
        self._write(head + body)

    @property
    def unsent(self) -> int:
        """Bytes that wait for the node to read."""
        return self._writer.transport.get_write_buffer_size()

    async def close(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        self._end("closed here")

    # ---- inside

    async def _secure(self) -> None:
        """Noise XX over the plain stream, then yamux over that."""
        await self._choose(b"/noise")
        noise, ours, static = Handshake(), X25519PrivateKey.generate(), X25519PrivateKey.generate()
        noise.mix_hash(b"")  # no prologue
        noise.mix_hash(public(ours))
        noise.mix_hash(b"")
        self._send(public(ours))
        answer = await self._receive()
        theirs = answer[:32]
        noise.mix_hash(theirs)
        noise.mix_key(agree(ours, theirs))
        their_static = noise.open(answer[32:80])
        noise.mix_key(agree(ours, their_static))
        noise.open(answer[80:])  # who they are: a dialler in a test knows
        sealed = noise.seal(public(static))
        noise.mix_key(agree(static, theirs))
        self._send(sealed + noise.seal(self._identity(public(static))))
        self._seal, self._open = noise.split()
        await self._choose(b"/yamux/1.0.0", secure=True)

    def _identity(self, static: bytes) -> bytes:
        """Protobuf: the peer's public key, and its signature over the Noise key."""
        shown = bytes(self.key.peer_id)[2:]  # the identity multihash holds the public key
        signed = self.key.sign(b"noise-libp2p-static-key:" + static)
        return b"\x0a" + bytes((len(shown),)) + shown + b"\x12" + bytes((len(signed),)) + signed

    async def _choose(self, protocol: bytes, *, secure: bool = False) -> None:
        offer = _line(_MULTISTREAM) + _line(protocol)
        self._write(offer) if secure else self._writer.write(offer)
        for expected in (_MULTISTREAM, protocol):
            size = (await self._exactly(1, secure))[0]
            got = (await self._exactly(size, secure))[:-1]
            if got != expected:
                raise LinkClosed("No such protocol", why=repr(got[:80]))

    async def _exactly(self, size: int, secure: bool) -> bytes:
        if not secure:
            return await self._reader.readexactly(size)
        while len(self._rest) < size:
            self._rest += self._open.open(await self._receive())
        got = bytes(self._rest[:size])
        del self._rest[:size]
        return got

    def _write(self, data: bytes) -> None:
        if self._writer.is_closing():
            raise LinkClosed("The connection has ended")
        for at in range(0, len(data), _MOST):
            self._send(self._seal.seal(data[at : at + _MOST]))

    def _send(self, noise: bytes) -> None:
        self._writer.write(len(noise).to_bytes(2, "big") + noise)

    async def _receive(self) -> bytes:
        size = int.from_bytes(await self._reader.readexactly(2), "big")
        return await self._reader.readexactly(size)

    async def _read(self) -> None:
        """Until the connection ends: yamux frames to their streams."""
        try:
            while True:
                head = await self._exactly(12, True)
                kind, flags = head[1], int.from_bytes(head[2:4], "big")
                stream, length = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:], "big")
                body = await self._exactly(length, True) if kind == DATA and length else b""
                self._take(kind, flags, stream, length, body)
        except (OSError, EOFError, LinkClosed):
            self._end("the node hung up")

    def _take(self, kind: int, flags: int, stream: int, length: int, body: bytes) -> None:
        if kind == PING and flags & SYN:
            self.frame(PING, ACK, 0, length=length)
        elif kind == AWAY:
            raise LinkClosed("The node goes away")
        elif link := self._streams.get(stream):
            if kind == WINDOW:
                link.grow(length)
            elif body:
                self.frame(WINDOW, 0, stream, length=len(body))
                link.feed(body)
            if flags & (FIN | RST):
                link.end("the node closed the stream")
        elif flags & SYN:
            self.frame(WINDOW, RST, stream, length=0)  # it asks who we are; we do not say

    def _end(self, reason: str) -> None:
        for link in list(self._streams.values()):
            link.end(reason)

    def forget(self, number: int) -> None:
        self._streams.pop(number, None)


class ThinLink:
    """One stream, with the two verbs of a `Link`, and `write` for what no message is. No heartbeat: `ping` yourself."""

    def __init__(self, peer: ThinPeer, number: int) -> None:
        self.peer, self.closed, self.reason = peer.node, False, ""
        self.deaf = False
        """What the node says is thrown away unread."""
        self._peer, self._number = peer, number
        self._room, self._pouring = 256 * 1024, asyncio.Lock()
        self._frames = FrameReader()
        self._plain: bytearray | None = bytearray()
        self._inbox: deque[AnyMessage] = deque()
        self._changed = asyncio.Event()

    async def send(self, *messages: AnyMessage) -> None:
        """All of them, as fast as the node has room for them. Raises LinkClosed."""
        await self.pour(b"".join(pack(messages)))

    async def pour(self, data: bytes) -> None:
        """Raw bytes within the stream's window: whoever writes past it is cut off by the node's muxer."""
        async with self._pouring:
            for at in range(0, len(data), _STEP_BYTES):
                part = data[at : at + _STEP_BYTES]
                while self._room < len(part) and not self.closed:
                    self._changed.clear()
                    await self._changed.wait()
                self.write(part)

    def write(self, data: bytes) -> None:
        """A few raw bytes, without waiting. Raises LinkClosed."""
        if self.closed:
            raise LinkClosed("The stream has ended", why=self.reason)
        self._peer.frame(DATA, 0, self._number, data)
        self._room -= len(data)

    def ping(self) -> None:
        """A sign of life, unless the stream has ended or is in the middle of something."""
        if not self._pouring.locked():
            with contextlib.suppress(LinkClosed):
                self.write(b"".join(pack([Ping()])))

    async def receive(self) -> AnyMessage:
        while not self._inbox:
            if self.closed:
                raise LinkClosed("The stream has ended", why=self.reason)
            self._changed.clear()
            await self._changed.wait()
        return self._inbox.popleft()

    async def line(self) -> bytes:
        """One of multistream-select; what follows the second is ours."""
        while self._plain is None or not self._plain or len(self._plain) <= self._plain[0]:
            if self.closed or self._plain is None:
                raise LinkClosed("The stream has ended", why=self.reason)
            self._changed.clear()
            await self._changed.wait()
        size = self._plain[0]
        got = bytes(self._plain[1:size])
        del self._plain[: size + 1]
        if got != _MULTISTREAM:
            rest, self._plain = bytes(self._plain), None
            if rest:
                self.feed(rest)
        return got

    def reset(self) -> None:
        """End it without a word."""
        if not self.closed:
            with contextlib.suppress(LinkClosed):
                self._peer.frame(WINDOW, RST, self._number, length=0)
            self.end("reset here")

    # ---- called by the peer

    def feed(self, data: bytes) -> None:
        if self._plain is not None:
            self._plain += data
        elif not self.deaf:
            try:
                for message, _ in self._frames.feed(data):
                    if isinstance(message, Bye):
                        self.reason = message.reason
                    elif not isinstance(message, Ping):
                        self._inbox.append(message)
            except ProtocolError as error:
                self.end(str(error))
        self._changed.set()

    def grow(self, size: int) -> None:
        self._room += size
        self._changed.set()

    def end(self, reason: str) -> None:
        if not self.closed:
            self.closed, self.reason = True, self.reason or reason
            self._peer.forget(self._number)
            self._changed.set()


def _line(text: bytes) -> bytes:
    return bytes((len(text) + 1,)) + text + b"\n"
