"""The handshake with one node: its terms, the signed session, the opening receipt.

Whatever goes wrong here names the node and says what to do; `peers` of an error are to be left out of the next route.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import msgspec

from hivemint.client.sessions.errors import NodeGone, NodeLied, NodeRefusal, blaming
from hivemint.client.sessions.payer import Payer, believe
from hivemint.client.sessions.route import Leg, session_amount
from hivemint.client.settings import ClientSettings
from hivemint.protocol.eip712 import Session, numerics_hash, peer_id_hash
from hivemint.protocol.errors import ProofError, ProtocolError
from hivemint.protocol.ids import Digest, ModelId, SessionId, Signature
from hivemint.protocol.receipt import CheckedReceipt, check_receipt, opening
from hivemint.swarm.host import CONTROL, Host
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Message, Neighbours, Open, Opened, Peer, Previous, Refused, Routed, Terms

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class Greeting:
    """A link on which the node has made its offer. `trip`: seconds of one round trip, about."""

    leg: Leg
    link: Link
    terms: Terms
    trip: float


@dataclass(frozen=True, slots=True)
class SignedSession:
    """A session as its session key signed it, and its id."""

    session: Session
    session_id: SessionId
    signature: Signature


def within(greeting: Greeting, settings: ClientSettings) -> Greeting:
    """The offer as far as this client's own ceilings allow."""
    named = greeting.terms.limits
    cut = msgspec.structs.replace(
        named,
        tokens=min(named.tokens, settings.max_session_tokens),
        rows=min(named.rows, settings.max_rows),
        ahead=min(named.ahead, settings.max_ahead),
        backward_rows=min(named.backward_rows, settings.max_backward),
        adapter_bytes=min(named.adapter_bytes, settings.max_adapter),
    )
    return replace(greeting, terms=msgspec.structs.replace(greeting.terms, limits=cut))


async def greet(host: Host, leg: Leg, timeout: float) -> Greeting:
    """Dial a node and take its terms. Raises NodeGone, NodeRefusal."""
    started = time.monotonic()
    with blaming(leg, "connecting"):
        async with asyncio.timeout(timeout):
            link = await host.dial(leg.peer, leg.record.addresses, CONTROL, timeout=timeout)
            try:
                terms = await _expect(link, leg, Terms)
                _check_terms(leg, terms)
            except BaseException:
                link.abort("the handshake failed")
                raise
    trips = 2  # to open the stream, and for Hello; the terms come with the answer
    return Greeting(leg, link, terms, link.trip or (time.monotonic() - started) / trips)


def sign_session(
    greeting: Greeting, payer: Payer, *, tokens: int, margin: float, expiry: int, work: int = 0
) -> SignedSession:
    """A session for at most `tokens` positions, worth at most price x work x margin. Raises NodeGone.

    `work`: positions computed, a backward step's twice; 0: each position once.
    """
    leg, terms, who = greeting.leg, greeting.terms, payer.who
    if tokens > terms.limits.tokens:
        raise NodeGone(leg, f"takes no session of {tokens} tokens", f"its limit is {terms.limits.tokens}")
    if leg.bid and leg.bid < terms.ask:
        raise NodeGone(leg, "asks more than it had published", f"{terms.ask} wei per token and block, bid {leg.bid}")
    session = Session(
        client=who.client,
        session_key=who.key.address,
        node=leg.operator,
        peer_id_hash=peer_id_hash(leg.peer),
        model_id=ModelId(leg.record.model_id),
        numerics=numerics_hash(leg.numerics),
        first_block=leg.first,
        end_block=leg.end,
        price=leg.price,
        max_amount=session_amount(leg.price, work or tokens, margin),
        max_tokens=tokens,
        expiry=expiry,
        nonce=terms.nonce,
    )
    digest = session.session_id(payer.domain)
    return SignedSession(session, digest, who.key.sign(Digest(digest)))


async def shake_hands(
    greeting: Greeting,
    signed: SignedSession,
    payer: Payer,
    *,
    previous: Previous | None,
    next_hop: Peer | None,
    timeout: float,
) -> CheckedReceipt:
    """Send Open and Neighbours; gives the opening receipt, checked.

    Raises NodeGone, NodeRefusal, NodeLied; NodeUnproven where the node claims a debt that nothing proves, ChainError
    where the chain would have to be asked for it and cannot be.
    """
    leg, link = greeting.leg, greeting.link
    with blaming(leg, "opening a session"):
        async with asyncio.timeout(timeout):
            await link.send(
                Open(session=signed.session, signature=signed.signature, delegation=payer.who.delegation),
                Neighbours(previous=previous, next=next_hop),
            )
            opened = await _expect(link, leg, Opened)
            try:
                expected = opening(leg.operator, payer.who.client, signed.session_id)
                first = check_receipt(payer.domain, opened.receipt, expected)
            except ProofError as error:
                raise NodeLied((leg,), error) from None
            if signed.session.price:
                await believe(payer, leg, opened.owed, opened.highest)
            await _expect(link, leg, Routed)
    return first


async def expect(greeting: Greeting, message: Message, kind: type[_M], timeout: float, doing: str) -> _M:
    """The answer to the one message that follows a node's terms. Raises NodeGone, NodeRefusal."""
    with blaming(greeting.leg, doing):
        async with asyncio.timeout(timeout):
            await greeting.link.send(message)
            return await _expect(greeting.link, greeting.leg, kind)


def neighbours(
    greetings: list[Greeting], signed: list[SignedSession], before: Previous | None, after: Peer | None
) -> list[tuple[Previous | None, Peer | None]]:
    """For each hop, whose output it takes and where its own goes; `before` and `after` are those of the whole."""
    previous: list[Previous | None] = [before]
    following_: list[Peer | None] = []
    for (one, its), (other, _) in pairwise(zip(greetings, signed, strict=True)):
        previous.append(Previous(one.leg.peer, one.leg.operator, its.session_id))
        following_.append(Peer(other.leg.peer, other.leg.record.addresses))
    return list(zip(previous, [*following_, after], strict=True))


def check_training(greetings: Sequence[Greeting], tokens: int) -> None:
    """Whether all nodes take sequences of `tokens` positions, forward and backward. Raises NodeGone."""
    for one in greetings:
        most = min(one.terms.limits.backward_rows, one.terms.limits.rows)
        if tokens > most:
            limit = f"it takes {most} positions a step" if most else "it serves no backward steps"
            raise NodeGone(one.leg, f"trains no sequences of {tokens} positions", limit)


async def _expect(link: Link, leg: Leg, kind: type[_M]) -> _M:
    message = await link.receive()
    if isinstance(message, kind):
        return message
    if isinstance(message, Refused):
        raise NodeRefusal(leg, message)
    raise ProtocolError(f"Expected {kind.__name__}", why=f"got {type(message).__name__}")


def _check_terms(leg: Leg, terms: Terms) -> None:
    """The offer on the link must be the one that was published, or better."""
    record = leg.record
    wrong = [
        text
        for text, fine in (
            ("another operator", terms.operator == record.operator),
            ("another model", terms.model_id == record.model_id),
            ("other blocks", terms.first_block <= leg.first and leg.end <= terms.end_block),
            ("other numerics", leg.numerics in terms.numerics),
            ("no room for a row", terms.limits.rows >= 1 and terms.limits.ahead >= 1 and terms.limits.tokens >= 1),
        )
        if not fine
    ]
    if wrong:
        raise ProtocolError("A node's terms are not those that it published", why=", ".join(wrong))
