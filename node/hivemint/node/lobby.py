"""All open sessions of a node: who may come in, who must leave, and why."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from hivemint.contracts.errors import ChainError
from hivemint.contracts.ids import Address, PeerId
from hivemint.node.account import Account, Standing
from hivemint.node.admission import Chain
from hivemint.node.engine import Engine
from hivemint.node.room import IDLE
from hivemint.node.scheduler import Lane
from hivemint.node.session import ServedSession
from hivemint.swarm.messages import Code, Refused

log = structlog.get_logger(__name__)


class Guest(Protocol):
    """A conversation, as the lobby sees it."""

    peer: PeerId
    session: ServedSession | None
    key_on_chain: bool
    active_at: float

    async def end(self, code: Code, why: str, within: float | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class LobbyLimits:
    """Sessions at once in all, in the free lane, and of one remote peer there; the longest free queue in seconds."""

    sessions: int = 256
    free: int = 64
    free_a_peer: int = 16
    free_wait_s: float = 30.0


class Lobby:
    """Lives in the event loop. `broken` is called with an error after which the node must not go on."""

    def __init__(
        self, engine: Engine, chain: Chain, book: Callable[[Address], Standing], limits: LobbyLimits,
        broken: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self.guests: list[Guest] = []
        self.draining = False
        self.broken = broken
        self._engine, self._chain, self._book, self._limits = engine, chain, book, limits
        self._accounts: dict[Address, Account] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def account(self, client: Address) -> Account:
        """The one Account of a client."""
        known = self._accounts.get(client)
        if known is None:
            known = self._accounts[client] = Account(client, self._book)
        return known

    def count(self, lane: Lane) -> int:
        return sum(guest.session is not None and guest.session.lane is lane for guest in self.guests)

    def check(self, peer: PeerId, price: int) -> Refused | None:
        """Is there room in this lane? Asked before any signature is looked at, and again before booking."""
        if self.draining:
            return Refused(Code.DRAINING, "The node is going down", "it takes no new sessions", "use another node")
        if len(self.guests) >= self._limits.sessions and not self._send_idle_away():
            return self.busy("Every seat is taken", f"{len(self.guests)} sessions are open")
        if price:
            return None
        if sum(guest.peer == peer for guest in self._free_guests()) >= self._limits.free_a_peer:
            return self.busy(
                "This peer has too many free sessions", f"expected fewer than {self._limits.free_a_peer} at once"
            )
        if self.count(Lane.FREE) >= self._limits.free and not self._send_idle_away():
            return self.busy("The free lane is full", f"{self.count(Lane.FREE)} sessions are in it")
        if (wait := self._engine.free_wait()) > self._limits.free_wait_s:
            return self.busy("The free lane's queue is full", f"about {wait:.0f} s of work wait in it")
        return None

    def busy(self, what: str, why: str) -> Refused:
        retry = min(60.0, max(1.0, self._engine.free_wait()))
        return Refused(Code.BUSY, what, why, "try again later, bid, or use another node", retry_after=retry)

    def enter(self, guest: Guest) -> None:
        self.guests.append(guest)

    def leave(self, guest: Guest) -> None:
        """Forget a guest, and what was kept for its client or peer alone."""
        if guest not in self.guests:
            return
        self.guests.remove(guest)
        session = guest.session
        if session is None:
            return
        if not any(other.session and other.session.account is session.account for other in self.guests):
            self._accounts.pop(session.terms.client, None)
        scheduler = self._engine.scheduler
        if session.lane is Lane.PAID:
            scheduler.forget(Lane.PAID, session.session_id)
        elif not any(other.peer == guest.peer for other in self._free_guests()):
            scheduler.forget(Lane.FREE, guest.peer)

    async def watch(self, every: float = 1.0) -> None:
        """No step is taken after expiry, on a thaw or on a revocation: such sessions are closed. Until cancelled."""
        while True:
            await asyncio.sleep(every)
            try:
                now = max(time.time(), await self._chain.time())
                for guest in list(self.guests):
                    if guest.session and not guest.session.closed and (ended := await self._over(guest, now)):
                        self._end(guest, *ended)
            except ChainError as error:  # vouchers stay good; new sessions are refused until it answers again
                log.warning("the chain does not answer", reason=str(error))

    async def drain(self, limit: float, code: Code, why: str) -> None:
        """Take nobody in, finish the steps that were taken, at most `limit` seconds, and close all sessions."""
        self.draining = True
        await asyncio.gather(*(guest.end(code, why, limit) for guest in list(self.guests)), return_exceptions=True)

    async def _over(self, guest: Guest, now: float) -> tuple[Code, str] | None:
        session = guest.session
        if session is None:
            return None
        terms = session.terms
        if now >= terms.expiry:
            return Code.EXPIRY, f"the session expired at {terms.expiry}"
        if terms.price and (await self._chain.account(terms.client)).thawing:
            return Code.THAWING, "the account at this node is thawing"
        if terms.session_key != terms.client:
            until = await self._chain.key(terms.client, terms.session_key)
            if (until or guest.key_on_chain) and until <= now:
                return Code.REVOKED, f"the session key was good until {until}"
        return None

    def _free_guests(self) -> list[Guest]:
        return [guest for guest in self.guests if guest.session and guest.session.lane is Lane.FREE]

    def _send_idle_away(self) -> bool:
        """Close the free session that has been idle longest, if it has been for long enough."""
        idle = [g for g in self._free_guests() if time.monotonic() - g.active_at > IDLE and not _busy(g)]
        if not idle:
            return False
        self._end(min(idle, key=lambda guest: guest.active_at), Code.BUSY, "the session was idle while others waited")
        return True

    def _end(self, guest: Guest, code: Code, why: str) -> None:
        task = asyncio.create_task(guest.end(code, why))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _busy(guest: Guest) -> bool:
    return guest.session is not None and bool(guest.session.pending)


def by_lane(lobby: Lobby) -> Counter[Lane]:
    """Open sessions of each lane."""
    return Counter({lane: lobby.count(lane) for lane in Lane})
