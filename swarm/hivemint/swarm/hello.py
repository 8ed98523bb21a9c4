"""Hello: both ends name protocol version and network; in a private swarm both prove that they know its key.

    dialer    Hello(version, network, nonce)
    acceptor  Hello(version, network, nonce, MAC "accept")      or Refused(rate | network)
    dialer    Prove(MAC "dial")                                  in a private swarm

    MAC = HMAC-SHA256(swarm key, label, dialer's id, acceptor's id, dialer's nonce, acceptor's nonce)

Nonces make a recorded proof worthless, the two labels make a reflected one worthless, the ids (authenticated by
libp2p) make a relayed one worthless.
"""

import asyncio
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from hivemint.protocol.errors import ProtocolError, Refusal
from hivemint.protocol.ids import PeerId
from hivemint.swarm.frames import HEAD, body_size
from hivemint.swarm.link import Link
from hivemint.swarm.messages import PROTOCOL_VERSION, Code, Hello, Prove, Refused, decode

HELLO_LIMIT = 3.0
"""Seconds that a peer has for each of its frames here."""


@dataclass(frozen=True, slots=True)
class Badge:
    """What a host shows and asks for."""

    network: str
    peer: PeerId
    swarm_key: bytes | None

    def hello(self) -> Hello:
        return Hello(PROTOCOL_VERSION, self.network, secrets.token_bytes(32))

    def check(self, hello: Hello) -> None:
        """Raises Refusal(network)."""
        if hello.version != PROTOCOL_VERSION:
            raise _foreign(f"expected protocol version {PROTOCOL_VERSION}, got {hello.version}")
        if hello.network != self.network:
            raise _foreign(f"expected network {self.network!r}, got {hello.network!r}")

    def mac(self, label: bytes, dialer: PeerId, acceptor: PeerId, nonces: bytes) -> bytes:
        assert self.swarm_key is not None  # noqa: S101 - callers asked `private`
        parts = label + len(dialer).to_bytes(2, "big") + dialer + len(acceptor).to_bytes(2, "big") + acceptor + nonces
        return hmac.new(self.swarm_key, parts, hashlib.sha256).digest()

    @property
    def private(self) -> bool:
        return self.swarm_key is not None


async def greet(link: Link, badge: Badge) -> None:
    """The dialer's side. Raises Refusal, ProtocolError, LinkClosed; the time limit is the caller's."""
    mine = badge.hello()
    await link.send(mine)
    theirs = await link.receive()
    if isinstance(theirs, Refused):
        raise Refusal(
            theirs.code, theirs.what, why=theirs.why, next_step=theirs.next_step, retry_after=theirs.retry_after
        )
    if not isinstance(theirs, Hello):
        raise ProtocolError("A peer did not say Hello", why=f"got {type(theirs).__name__}")
    badge.check(theirs)
    if badge.private != (theirs.mac is not None):
        raise _foreign("a private swarm and a public one" if badge.private else "the peer belongs to a private swarm")
    if theirs.mac is not None:
        nonces = mine.nonce + theirs.nonce
        if not hmac.compare_digest(theirs.mac, badge.mac(b"accept", badge.peer, link.peer, nonces)):
            raise _foreign("the peer does not know this swarm's key")
        await link.send(Prove(badge.mac(b"dial", badge.peer, link.peer, nonces)))


async def read_hello(reader: asyncio.StreamReader) -> Hello:
    """The first frame of a dialer, read before anything else is made for it. Raises ProtocolError, EOFError."""
    number, size = body_size(await reader.readexactly(HEAD))
    if number != Hello.NUMBER:
        raise ProtocolError("A peer did not say Hello", why=f"its first frame is of type {number}")
    hello = decode(number, await reader.readexactly(size))
    assert isinstance(hello, Hello)  # noqa: S101 - by its number
    return hello


async def answer(link: Link, badge: Badge, theirs: Hello) -> None:
    """The acceptor's side. Raises Refusal, ProtocolError, LinkClosed; the time limit is the caller's."""
    badge.check(theirs)
    mine = badge.hello()
    if not badge.private:
        await link.send(mine)
        return
    nonces = theirs.nonce + mine.nonce
    mac = badge.mac(b"accept", link.peer, badge.peer, nonces)
    await link.send(Hello(mine.version, mine.network, mine.nonce, mac))
    proof = await link.receive()
    if not isinstance(proof, Prove):
        raise _foreign(f"expected the proof of the swarm's key, got {type(proof).__name__}")
    if not hmac.compare_digest(proof.mac, badge.mac(b"dial", link.peer, badge.peer, nonces)):
        raise _foreign("the peer does not know this swarm's key")


def _foreign(why: str) -> Refusal:
    return Refusal(
        Code.NETWORK, "The peer belongs to another swarm", why=why, next_step="use the same network file on both sides"
    )
