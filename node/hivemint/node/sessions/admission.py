"""Who may open a session: small checks, cheapest first; each answers None (ok) or a Refused.

Nothing is computed and nothing is written before all of them have passed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hivemint.node.engine.threads import Worker
from hivemint.node.sessions.account import ClientAccount, FundsView
from hivemint.node.sessions.nonces import Nonces
from hivemint.node.sessions.offer import Offer, refusal
from hivemint.protocol.credits import format_credits
from hivemint.protocol.eip712 import Domain, Session, peer_id_hash
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Address, PeerId, SessionId
from hivemint.protocol.signing import recover
from hivemint.swarm.messages import Code, Open, Refused, SignedDelegation

CLOCK_SKEW = 300
"""Seconds by which a session must outlive this clock and the chain's (`docs/protocol.md`, section 7)."""
MAX_SESSION = 86_400
"""Seconds that a session may last: with an expiry of its own choice a client would choose the epoch of its work."""
MAX_DELEGATION = 90 * 86_400


class FundsReader(Protocol):
    """What admission asks of the chain (`ledger.settlement.chainview`)."""

    async def account(self, client: Address) -> FundsView: ...
    async def key(self, client: Address, key: Address) -> int: ...
    async def time(self) -> int: ...
    async def earliest(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Admitted:
    """All checks but the account's have passed. `wire`: the wire form that its numerics name. `key_until`: the end of
    its key by the chain; 0 for one that its wallet's delegation alone speaks for.
    """

    session: Session
    session_id: SessionId
    wire: str
    key_until: int


class Admission:
    """Decides on Open messages. `account` gives the one Account of a client; its check and the booking are one."""

    def __init__(
        self,
        offer: Offer,
        domain: Domain,
        chain: FundsReader,
        worker: Worker,
        account: Callable[[Address], ClientAccount],
        *,
        clock: Callable[[], float] = time.time,
        nonces: Nonces | None = None,
    ) -> None:
        self.offer, self.domain = offer, domain
        self.nonces = nonces or Nonces()
        self._chain, self._worker, self._account, self._clock = chain, worker, account, clock

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
        now = await self.now()
        if refused := check_expiry(session, now) or check_limits(offer, session):
            return refused
        session_id, refused = await self._worker.do(check_signature, self.domain, message)
        if refused:
            return refused
        if refused := self.nonces.check(peer, session.nonce):  # another Open of this peer was faster
            return refused
        self.nonces.spend(session.nonce)
        until = await self._chain.key(session.client, session.session_key)
        if session.session_key != session.client and (refused := await self._check_key(message, until, now)):
            return refused
        return Admitted(session, session_id, offer.wire(session) or "", until)

    async def now(self) -> float:
        """The later of the clock and the newest block's time, in seconds since 1970."""
        return max(self._clock(), await self._chain.time())

    async def check_account(self, admitted: Admitted) -> tuple[ClientAccount, Refused | None]:
        """owed + what all open sessions may still spend + this one's maxAmount <= funded. The answer holds until the
        next `await`. Nothing is kept of an account that has no session here yet.
        """
        session = admitted.session
        if not session.price:
            return self._account(session.client), None
        now, earliest = await self.now(), await self._chain.earliest()
        view = await self._chain.account(session.client)
        account = self._account(session.client)
        account.see(view, now)
        account.see_key(session.session_key, admitted.key_until)
        if refused := check_release(account, earliest):
            return account, refused
        if view.thawing:
            return account, refusal(
                Code.THAWING,
                "The account at this node is thawing",
                "a thawing account pays for no new work",
                "cancel the thaw, or use another node",
            )
        needed = account.needed(session.max_amount)
        if needed <= view.funded:
            return account, None
        return account, refusal(
            Code.FUNDS,
            "The account at this node does not cover the session",
            f"expected {format_credits(needed)} or more, got {format_credits(view.funded)}",
            "fund the account, ask for less, or use the donated lane",
            account,
        )

    async def _check_key(self, message: Open, until: int, now: float) -> Refused | None:
        """A session key that is not the wallet: registered on the chain, or delegated (donated lane)."""
        session = message.session
        if until:
            return check_key_time(session, until, now)
        if session.price or message.delegation is None:
            return refusal(
                Code.KEY,
                "The session key is not registered",
                f"{session.session_key} has no record of {session.client}",
                "run `hivemint key authorize`",
            )
        return await self._worker.do(check_delegation, self.domain, session, message.delegation, now)


def check_release(account: ClientAccount, newest: int) -> Refused | None:
    """A release that this node has signed could take the account's credits away under the work. `newest`: the time of
    the newest block, by the endpoint that is furthest behind.
    """
    if not account.released_until or newest > account.released_until:
        return None
    return Refused(
        Code.RELEASED,
        "The account at this node is released, so that its client can close it",
        f"the release is good until {account.released_until}, the newest block is of {newest}",
        "use the donated lane or another node meanwhile",
        retry_after=float(account.released_until + 1 - newest),
    )


def check_node(offer: Offer, session: Session) -> Refused | None:
    if session.node != offer.operator:
        return refusal(
            Code.NODE, "The session names another operator", f"expected {offer.operator}, got {session.node}"
        )
    if session.peer_id_hash != peer_id_hash(offer.peer):
        return refusal(Code.NODE, "The session names another peer id", "expected the hash of this node's")
    return None


def check_model(offer: Offer, session: Session) -> Refused | None:
    if session.model_id != offer.model_id:
        return refusal(
            Code.MODEL,
            "This node serves another model",
            f"expected {offer.model_id.hex()[:16]}, got {session.model_id.hex()[:16]}",
        )
    if offer.wire(session) is None:
        return refusal(
            Code.NUMERICS, "This node computes in other numerics", f"expected one of {', '.join(offer.numerics)}"
        )
    return None


def check_span(offer: Offer, session: Session) -> Refused | None:
    if offer.first <= session.first_block < session.end_block <= offer.end:
        return None
    return refusal(
        Code.SPAN,
        "The session's blocks are not served here",
        f"expected blocks within {offer.first}:{offer.end}, got {session.first_block}:{session.end_block}",
        "look the record up again",
    )


def check_price(offer: Offer, session: Session) -> Refused | None:
    least = offer.price(session)
    if session.price and session.price < least:
        return refusal(
            Code.PRICE,
            "The price is below the ask",
            f"expected {least} wei a token or 0, got {session.price}",
            "bid the ask or more, or use the donated lane",
        )
    return None


def check_expiry(session: Session, now: float) -> Refused | None:
    if session.expiry <= now + CLOCK_SKEW:
        return refusal(
            Code.EXPIRY,
            "The session would expire too soon",
            f"expected later than {int(now) + CLOCK_SKEW}, got {session.expiry}",
            "take the time from the chain",
        )
    latest = int(now) + MAX_SESSION + CLOCK_SKEW
    if session.expiry > latest:
        return refusal(
            Code.EXPIRY,
            "The session would last too long",
            f"expected at most {latest}, got {session.expiry}",
            "open a new one a day",
        )
    return None


def check_limits(offer: Offer, session: Session) -> Refused | None:
    if not 1 <= session.max_tokens <= offer.limits.tokens:
        return refusal(
            Code.LIMIT,
            "The session asks for too many tokens",
            f"expected 1 to {offer.limits.tokens}, got {session.max_tokens}",
            "ask for fewer, and go on in a new session",
        )
    least = session.price * min(session.max_tokens, offer.limits.rows)
    if session.max_amount < least:
        return refusal(
            Code.LIMIT,
            "The session's maxAmount does not pay for one chunk",
            f"expected {least} wei or more, got {session.max_amount}",
            "allow more, or ask for fewer tokens",
        )
    return None


def check_signature(domain: Domain, message: Open) -> tuple[SessionId, Refused | None]:
    """The session's id, and whether its own key signed it."""
    session_id = message.session.session_id(domain)
    try:
        signer = recover(session_id, message.signature)  # type: ignore[arg-type]
    except ProofError as error:
        return session_id, refusal(Code.KEY, error.what, error.why)
    if signer == message.session.session_key:
        return session_id, None
    return session_id, refusal(
        Code.KEY,
        "The session is not signed by its session key",
        f"expected {message.session.session_key}, got {signer}; another chain or contract gives another signer",
        "sign for this network",
    )


def check_key_time(session: Session, until: int, now: float) -> Refused | None:
    if until <= now:
        return refusal(
            Code.REVOKED,
            "The session key is revoked or its time is up",
            f"it was good until {until}",
            "run `hivemint key authorize` for a new key",
        )
    if session.expiry > until:
        return refusal(
            Code.EXPIRY, "The session outlives its key", f"expected an expiry of at most {until}, got {session.expiry}"
        )
    return None


def check_delegation(domain: Domain, session: Session, shown: SignedDelegation, now: float) -> Refused | None:
    """A wallet's permission that is not on the chain: enough where no money moves."""
    granted = shown.delegation
    if (granted.client, granted.session_key) != (session.client, session.session_key):
        return refusal(Code.KEY, "The delegation is for another client or key")
    if not session.expiry <= granted.valid_until <= now + MAX_DELEGATION:
        return refusal(
            Code.KEY,
            "The delegation's time does not fit",
            f"expected {session.expiry} to 90 days from now, got {granted.valid_until}",
        )
    try:
        signer = recover(granted.digest(domain), shown.signature)
    except ProofError as error:
        return refusal(Code.KEY, error.what, error.why)
    if signer == session.client:
        return None
    return refusal(Code.KEY, "The delegation is forged", f"expected {session.client}, got {signer}")
