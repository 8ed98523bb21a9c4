"""Who may open a session: small checks, cheapest first; each answers None (ok) or a Refused.

Nothing is computed and nothing is written before all of them have passed.
"""

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hivemint.contracts.credits import format_credits
from hivemint.contracts.errors import ProofError
from hivemint.contracts.ids import Address, Credits, ModelId, PeerId, SessionId
from hivemint.contracts.signature import recover
from hivemint.contracts.signed import Domain, Session, numerics_hash, peer_id_hash
from hivemint.node.account import Account
from hivemint.node.threads import Worker
from hivemint.swarm.messages import Code, Open, Refused, SignedDelegation

NONCE_LIFE = 60.0
CLOCK_SKEW = 300
"""Seconds by which a session must outlive this clock and the chain's (`protocol.md`, section 7)."""
MAX_DELEGATION = 90 * 86_400


class AccountView(Protocol):
    @property
    def collected(self) -> Credits: ...
    @property
    def funded(self) -> Credits: ...
    @property
    def thawing(self) -> bool: ...


class Books(Protocol):
    """The journal's mirror (`ledger.journal`)."""

    def observe(self, client: Address, collected: Credits) -> None: ...


class Chain(Protocol):
    """What admission asks of the chain (`ledger.chainview`)."""

    async def account(self, client: Address) -> AccountView: ...
    async def key(self, client: Address, key: Address) -> int: ...
    async def time(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Offer:
    """What this node serves, and for how much: `ask` in wei per token and block."""

    operator: Address
    peer: PeerId
    model_id: ModelId
    first: int
    end: int
    numerics: tuple[str, ...]
    ask: Credits
    max_tokens: int
    max_rows: int
    ahead: int
    max_backward: int
    max_adapter: int = 0
    max_rank: int = 0

    def price(self, session: Session) -> int:
        """The least price per token for a session's span."""
        return self.ask * session.blocks

    def part(self, session: Session) -> tuple[int, int] | None:
        """The session's blocks, counted from this node's first; None: all of them."""
        if (session.first_block, session.end_block) == (self.first, self.end):
            return None
        return session.first_block - self.first, session.end_block - self.first

    def wire(self, session: Session) -> str | None:
        """The wire form that a session's numerics name, None if this node does not serve them."""
        label = next((label for label in self.numerics if numerics_hash(label) == session.numerics), None)
        return label.rsplit("/", 1)[-1] if label else None


@dataclass(frozen=True, slots=True)
class Admitted:
    """All checks but the account's have passed. `wire`: the wire form that its numerics name."""

    session: Session
    session_id: SessionId
    open: Open
    wire: str
    key_on_chain: bool


class Nonces:
    """Nonces that need no memory until they are used: time and a MAC by a secret of this run over peer id and time.

    Good for 60 s, spent once. What is remembered are spent ones, for as long as they could come again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._secret = secrets.token_bytes(32)
        self._clock = clock
        self._last = 0
        self._spent: OrderedDict[bytes, float] = OrderedDict()

    def issue(self, peer: PeerId) -> bytes:
        """32 bytes: nanoseconds (8), MAC (24). No two are equal."""
        self._last = max(self._last + 1, int(self._clock() * 1e9))
        stamp = self._last.to_bytes(8, "big")
        return stamp + self._mac(peer, stamp)

    def check(self, peer: PeerId, nonce: bytes) -> Refused | None:
        stamp, mac = nonce[:8], nonce[8:]
        if not hmac.compare_digest(mac, self._mac(peer, stamp)):
            return _refused(
                Code.NONCE, "The session's nonce is not of this node's run",
                "expected the one from Terms, given to this peer", "dial again",
            )  # fmt: skip
        age = self._clock() - int.from_bytes(stamp, "big") / 1e9
        if age > NONCE_LIFE:
            return _refused(Code.NONCE, "The nonce is old", f"it is good for 60 s, got {age:.0f} s", "dial again")
        if nonce in self._spent:
            return _refused(Code.NONCE, "The nonce is spent", "it opens one session", "dial again")
        return None

    def spend(self, nonce: bytes) -> None:
        now = self._clock()
        while self._spent and next(iter(self._spent.values())) < now - NONCE_LIFE:
            self._spent.popitem(last=False)
        self._spent[nonce] = now

    def _mac(self, peer: PeerId, stamp: bytes) -> bytes:
        return hmac.digest(self._secret, peer + stamp, "sha256")[:24]


class Admission:
    """Decides on Open messages. `account` gives the one Account of a client; its check and the booking are one."""

    def __init__(
        self, offer: Offer, domain: Domain, chain: Chain, worker: Worker, books: Books,
        account: Callable[[Address], Account], *, clock: Callable[[], float] = time.time, nonces: Nonces | None = None,
    ) -> None:  # fmt: skip
        self.offer, self.domain = offer, domain
        self.nonces = nonces or Nonces()
        self._chain, self._worker, self._books, self._account, self._clock = chain, worker, books, account, clock

    async def admit(self, peer: PeerId, message: Open) -> Admitted | Refused:
        """Every check but the account's, which `check_account` does right before the session is booked."""
        session, offer = message.session, self.offer
        for refused in (
            self.nonces.check(peer, session.nonce),
            check_node(offer, session),
            check_model(offer, session),
            check_span(offer, session),
            check_price(offer, session),
        ):
            if refused:
                return refused
        now = max(self._clock(), await self._chain.time())
        if refused := check_expiry(session, now) or check_limits(offer, session):
            return refused
        session_id, refused = await self._worker.do(check_signature, self.domain, message)
        if refused:
            return refused
        if refused := self.nonces.check(peer, session.nonce):  # another Open of this peer was faster
            return refused
        self.nonces.spend(session.nonce)
        until = 0
        if session.session_key != session.client:
            until = await self._chain.key(session.client, session.session_key)
            if refused := await self._check_key(message, until, now):
                return refused
        wire = offer.wire(session) or ""
        return Admitted(session, session_id, message, wire, bool(until))

    async def check_account(self, session: Session) -> tuple[Account, Refused | None]:
        """owed + what all open sessions may still spend + this one's maxAmount <= funded. The answer holds until the
        next `await`.
        """
        account = self._account(session.client)
        if not session.price:
            return account, None
        view = await self._chain.account(session.client)
        self._books.observe(session.client, view.collected)  # a restored disk must not be paid twice by one voucher
        if view.thawing:
            return account, _refused(
                Code.THAWING, "The account at this node is thawing", "a thawing account pays for no new work",
                "cancel the thaw, or use another node",
            )  # fmt: skip
        needed = account.needed(session.max_amount)
        if needed <= view.funded:
            return account, None
        return account, _refused(
            Code.FUNDS, "The account at this node does not cover the session",
            f"expected {format_credits(needed)} or more, got {format_credits(view.funded)}",
            "fund the account, ask for less, or use the free lane",
            account,
        )  # fmt: skip

    async def _check_key(self, message: Open, until: int, now: float) -> Refused | None:
        """A session key that is not the wallet: registered on the chain, or delegated (free lane)."""
        session = message.session
        if until:
            return check_key_time(session, until, now)
        if session.price or message.delegation is None:
            return _refused(
                Code.KEY, "The session key is not registered",
                f"{session.session_key} has no record of {session.client}", "run `hivemint key authorize`",
            )  # fmt: skip
        return await self._worker.do(check_delegation, self.domain, session, message.delegation, now)


def check_node(offer: Offer, session: Session) -> Refused | None:
    if session.node != offer.operator:
        return _refused(
            Code.NODE, "The session names another operator", f"expected {offer.operator}, got {session.node}"
        )
    if session.peer_id_hash != peer_id_hash(offer.peer):
        return _refused(Code.NODE, "The session names another peer id", "expected the hash of this node's")
    return None


def check_model(offer: Offer, session: Session) -> Refused | None:
    if session.model_id != offer.model_id:
        return _refused(
            Code.MODEL, "This node serves another model",
            f"expected {offer.model_id.hex()[:16]}, got {session.model_id.hex()[:16]}",
        )  # fmt: skip
    if offer.wire(session) is None:
        return _refused(
            Code.NUMERICS, "This node computes in other numerics", f"expected one of {', '.join(offer.numerics)}"
        )
    return None


def check_span(offer: Offer, session: Session) -> Refused | None:
    if offer.first <= session.first_block < session.end_block <= offer.end:
        return None
    return _refused(
        Code.SPAN, "The session's blocks are not served here",
        f"expected blocks within {offer.first}:{offer.end}, got {session.first_block}:{session.end_block}",
        "look the record up again",
    )  # fmt: skip


def check_price(offer: Offer, session: Session) -> Refused | None:
    least = offer.price(session)
    if session.price and session.price < least:
        return _refused(
            Code.PRICE, "The price is below the ask", f"expected {least} wei a token or 0, got {session.price}",
            "bid the ask or more, or use the free lane",
        )  # fmt: skip
    return None


def check_expiry(session: Session, now: float) -> Refused | None:
    if session.expiry <= now + CLOCK_SKEW:
        return _refused(
            Code.EXPIRY, "The session would expire too soon",
            f"expected later than {int(now) + CLOCK_SKEW}, got {session.expiry}", "take the time from the chain",
        )  # fmt: skip
    return None


def check_limits(offer: Offer, session: Session) -> Refused | None:
    if not 1 <= session.max_tokens <= offer.max_tokens:
        return _refused(
            Code.LIMIT, "The session asks for too many tokens",
            f"expected 1 to {offer.max_tokens}, got {session.max_tokens}", "ask for fewer, and go on in a new session",
        )  # fmt: skip
    return None


def check_signature(domain: Domain, message: Open) -> tuple[SessionId, Refused | None]:
    """The session's id, and whether its own key signed it."""
    session_id = message.session.session_id(domain)
    try:
        signer = recover(session_id, message.signature)  # type: ignore[arg-type]
    except ProofError as error:
        return session_id, _refused(Code.KEY, error.what, error.why)
    if signer == message.session.session_key:
        return session_id, None
    return session_id, _refused(
        Code.KEY, "The session is not signed by its session key",
        f"expected {message.session.session_key}, got {signer}; another chain or contract gives another signer",
        "sign for this network",
    )  # fmt: skip


def check_key_time(session: Session, until: int, now: float) -> Refused | None:
    if until <= now:
        return _refused(
            Code.REVOKED, "The session key is revoked or its time is up", f"it was good until {until}",
            "run `hivemint key authorize` for a new key",
        )  # fmt: skip
    if session.expiry > until:
        return _refused(
            Code.EXPIRY, "The session outlives its key", f"expected an expiry of at most {until}, got {session.expiry}"
        )
    return None


def check_delegation(domain: Domain, session: Session, shown: SignedDelegation, now: float) -> Refused | None:
    """A wallet's permission that is not on the chain: enough where no money moves."""
    granted = shown.delegation
    if (granted.client, granted.session_key) != (session.client, session.session_key):
        return _refused(Code.KEY, "The delegation is for another client or key")
    if not session.expiry <= granted.valid_until <= now + MAX_DELEGATION:
        return _refused(
            Code.KEY, "The delegation's time does not fit",
            f"expected {session.expiry} to 90 days from now, got {granted.valid_until}",
        )  # fmt: skip
    try:
        signer = recover(granted.digest(domain), shown.signature)
    except ProofError as error:
        return _refused(Code.KEY, error.what, error.why)
    if signer == session.client:
        return None
    return _refused(Code.KEY, "The delegation is forged", f"expected {session.client}, got {signer}")


def _refused(
    code: Code, what: str, why: str = "", next_step: str = "", account: Account | None = None
) -> Refused:  # fmt: skip
    if account is None:
        return Refused(code, what, why, next_step)
    return Refused(code, what, why, next_step, highest=account.highest, owed=account.owed)
