"""The handshake with one node: its terms, the signed session, the opening receipt.

Whatever goes wrong here names the node and says what to do; `peers` of an error are to be left out of the next route.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from hivemint.client.adapter import LoraAdapter
from hivemint.client.route import Leg, session_amount
from hivemint.client.wallet import ChainPort, Identity
from hivemint.contracts.errors import LinkClosed, ProofError, ProtocolError, Refusal, SwarmError
from hivemint.contracts.ids import Credits, Digest, ModelId, SessionId, Signature
from hivemint.contracts.receipt import CheckedReceipt, check_receipt, opening
from hivemint.contracts.signature import recover
from hivemint.contracts.signed import Domain, Session, numerics_hash, peer_id_hash
from hivemint.ledger.vouchers import VoucherBook
from hivemint.swarm.adapters import digest
from hivemint.swarm.host import CONTROL, Host
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Load, Loaded, Message, Open, Opened, Peer, Previous, Refused, Route, Routed, Terms

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class Payer:
    """Who signs, where signatures count, and what has been promised so far."""

    who: Identity
    domain: Domain
    book: VoucherBook


class NodeGone(SwarmError):
    """A node cannot be reached, has died, or broke the protocol. `peers` should be left out of the next route."""

    def __init__(self, leg: Leg, what: str, why: str) -> None:
        super().__init__(f"The {leg} {what}", why=why, next_step="ask again: a new route is planned without it")
        self.peers = (leg.peer,)


class NodeLied(ProofError):
    """What a node signed does not fit what it did. Both ends of that link are set aside, no voucher follows."""

    def __init__(self, legs: tuple[Leg, ...], error: Exception) -> None:
        names = " or ".join(f"the {leg}" for leg in legs)
        why = f"{error.what}: {error.why}" if isinstance(error, ProofError | ProtocolError) else str(error)
        super().__init__(
            f"A proof does not hold: {names} cannot be trusted",
            why=why,
            next_step="it gets no more vouchers; ask again: a new route is planned without it",
        )
        self.peers = tuple(leg.peer for leg in legs)


class NodeRefusal(Refusal):
    """A node declined, in its own words."""

    def __init__(self, leg: Leg, refused: Refused) -> None:
        super().__init__(
            refused.code,
            f"The {leg} declined ({refused.code}): {refused.what}",
            why=refused.why,
            next_step=refused.next_step,
            retry_after=refused.retry_after,
        )
        self.peers = (leg.peer,)


@contextlib.contextmanager
def blaming(leg: Leg, doing: str) -> Iterator[None]:
    """Name the node in whatever its link raises."""
    try:
        yield
    except TimeoutError:
        raise NodeGone(leg, f"did not answer while {doing}", "no answer in time") from None
    except LinkClosed as error:
        raise NodeGone(leg, f"went away while {doing}", error.why or error.what) from None
    except ProtocolError as error:
        raise NodeGone(leg, f"broke the protocol while {doing}", f"{error.what}: {error.why}") from None
    except (NodeGone, Refusal, ProofError):
        raise
    except SwarmError as error:
        raise NodeGone(leg, f"failed while {doing}", f"{error.what}: {error.why}") from None


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
    return Greeting(leg, link, terms, (time.monotonic() - started) / trips)


def sign_session(
    greeting: Greeting, payer: Payer, *, tokens: int, margin: float, expiry: int, work: int = 0
) -> SignedSession:
    """A session for at most `tokens` positions, worth at most price x work x margin. Raises NodeGone.

    `work`: positions computed, a backward step's twice; 0: each position once.
    """
    leg, terms, who = greeting.leg, greeting.terms, payer.who
    if tokens > terms.max_tokens:
        raise NodeGone(leg, f"takes no session of {tokens} tokens", f"its limit is {terms.max_tokens}")
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
    chain: ChainPort | None = None,
) -> CheckedReceipt:
    """Send Open and Route; gives the opening receipt, checked. Raises NodeGone, NodeRefusal, NodeLied.

    `chain` is asked where the node claims more than the book knows (ChainError if it can't be); without it such a
    claim is a lie.
    """
    leg, link = greeting.leg, greeting.link
    with blaming(leg, "opening a session"):
        async with asyncio.timeout(timeout):
            await link.send(
                Open(session=signed.session, signature=signed.signature, delegation=payer.who.delegation),
                Route(previous=previous, next=next_hop),
            )
            opened = await _expect(link, leg, Opened)
            try:
                expected = opening(leg.operator, payer.who.client, signed.session_id)
                first = check_receipt(payer.domain, opened.receipt, expected)
                if signed.session.price:
                    await _meet(payer, leg, opened, chain)
            except ProofError as error:
                raise NodeLied((leg,), error) from None
            await _expect(link, leg, Routed)
    return first


async def load_adapter(greeting: Greeting, adapter: LoraAdapter, timeout: float) -> bytes:
    """Send a node its part of an adapter; gives the digest that stands behind every step's input from now on.

    b"" if the node has no block that the adapter changes. Raises NodeGone, NodeRefusal.
    """
    leg, link, terms = greeting.leg, greeting.link, greeting.terms
    blob = adapter.blob(leg.first, leg.end)
    if not blob:
        return b""
    if len(blob) > terms.max_adapter:
        limit = f"it takes up to {terms.max_adapter} bytes" if terms.max_adapter else "it takes none"
        raise NodeGone(leg, f"takes no adapter of {len(blob)} bytes", limit)
    with blaming(leg, "loading an adapter"):
        async with asyncio.timeout(timeout):
            await link.send(Load(blob))
            loaded = await _expect(link, leg, Loaded)
            if loaded.digest != digest(blob):
                raise ProtocolError("A node loaded another adapter than the one that was sent")
    return loaded.digest


def neighbours(greetings: list[Greeting], signed: list[SignedSession]) -> list[tuple[Previous | None, Peer | None]]:
    """For each hop, whose output it takes and where its own goes."""
    previous: list[Previous | None] = [None]
    following_: list[Peer | None] = []
    for (one, its), (other, _) in pairwise(zip(greetings, signed, strict=True)):
        previous.append(Previous(one.leg.peer, one.leg.operator, its.session_id))
        following_.append(Peer(other.leg.peer, other.leg.record.addresses))
    return list(zip(previous, [*following_, None], strict=True))


async def _meet(payer: Payer, leg: Leg, opened: Opened, chain: ChainPort | None) -> None:
    """Where this client stands with the node, as far as it has promised that itself.

    Three things prove a promise: this client's book, a voucher that its keys signed, and what the chain says that the
    node has collected: the contract paid it for vouchers of this wallet alone. The last is what remains when both
    ends have lost their books.
    """
    proven = foreign = Credits(0)
    signer = None
    if opened.highest is not None:
        signer = recover(opened.highest.voucher.digest(payer.domain), opened.highest.signature)
        if signer in (payer.who.client, payer.who.key.address):
            proven = opened.highest.voucher.total
        else:
            foreign = opened.highest.voucher.total
    known, claimed = payer.book.total(leg.operator), max(opened.owed, foreign)
    if chain is not None and claimed > max(known, proven):
        accounts = await chain.accounts(payer.who.client, [leg.operator])
        proven = max(proven, accounts[leg.operator].collected)
    if foreign > max(known, proven):
        raise ProofError(
            "A node shows a voucher that is not ours",
            why=f"{signer} signed it, for {foreign} wei",
            next_step="if an older session key of yours did, use that key once more, or fund another node",
        )
    payer.book.standing(leg.operator, opened.owed, proven)


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
            ("no room for a row", terms.max_rows >= 1 and terms.ahead >= 1 and terms.max_tokens >= 1),
        )
        if not fine
    ]
    if wrong:
        raise ProtocolError("A node's terms are not those that it published", why=", ".join(wrong))
