"""All open sessions of a node: who may come in, who must leave, and why."""

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from hivemint.node.engine.engine import Engine
from hivemint.node.engine.scheduler import Lane
from hivemint.node.engine.seats import IDLE, keeps
from hivemint.node.sessions.account import Books, ClientAccount
from hivemint.node.sessions.admission import FundsReader
from hivemint.node.sessions.parking import Parking, ParkingLimits
from hivemint.node.sessions.session import ServedSession
from hivemint.node.sessions.steps.vain import Vain
from hivemint.protocol.credits import format_credits
from hivemint.protocol.eip712 import Session
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address
from hivemint.swarm.messages import Code, Refused

log = structlog.get_logger(__name__)


OPENING = 5.0
"""Seconds that a session keeps its seat, where others wait, before it has done any step."""


class Occupant(Protocol):
    """A conversation, as the registry sees it. `active_at`: when it opened, or its last step was signed for."""

    prefix: Hashable
    session: ServedSession | None
    key_on_chain: bool
    active_at: float

    def vacate(self, code: Code, why: str) -> None: ...
    async def end(self, code: Code, why: str, within: float = ...) -> None: ...


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Sessions at once: in all, of a wallet, from a network, in the donated lane, and there from a network. The longest
    donated queue, and how long a session may do nothing while others wait for its seat, in seconds.
    """

    sessions: int = 256
    of_client: int = 64
    of_prefix: int = 128
    donated: int = 64
    donated_of_prefix: int = 16
    donated_wait_s: float = 30.0
    idle_s: float = IDLE
    parking: ParkingLimits = field(default_factory=ParkingLimits)


@dataclass(frozen=True, slots=True)
class _Group:
    """Sessions that share a limit, and what it means that they have reached it."""

    occupants: list[Occupant]
    limit: int
    what: str

    @property
    def full(self) -> bool:
        return len(self.occupants) >= self.limit


class SessionRegistry:
    """Lives in the event loop. `broken` is called with an error after which the node must not go on."""

    def __init__(
        self,
        engine: Engine,
        chain: FundsReader,
        books: Books,
        limits: SessionLimits,
        broken: Callable[[BaseException], None],
    ) -> None:
        self.occupants: list[Occupant] = []
        self.draining = False
        self.broken = broken
        self._engine, self._chain, self._books, self._limits = engine, chain, books, limits
        self._accounts: dict[Address, ClientAccount] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._trouble = ""
        self._vain: dict[Hashable, Vain] = {}
        self.parking = Parking(limits.parking, self._left)

    def account(self, client: Address) -> ClientAccount:
        """The one Account of a client. It is kept from the client's first session to enter to the last to leave."""
        return self._accounts.get(client) or ClientAccount(client, self._books)

    def count(self, lane: Lane) -> int:
        return sum(occupant.session is not None and occupant.session.lane is lane for occupant in self.occupants)

    def paid_sessions(self, client: Address) -> int:
        """Open ones, and those whose last steps are not written down yet."""
        sessions = [occupant.session for occupant in self.occupants if occupant.session is not None]
        return sum(bool(session.terms.price) for session in sessions if session.terms.client == client)

    def check(self, prefix: Hashable, terms: Session) -> Refused | None:
        """Is there a seat, or one whose session is idle? Asked before any signature is looked at."""
        if self.draining:
            return Refused(Code.DRAINING, "The node is going down", "it takes no new sessions", "use another node")
        if not terms.price and (vain := self._vain.get(prefix)) is not None and (wait := vain.rest()):
            what, why = "Too many requests of this network led to nothing", f"it may ask again in {wait:.1f} s"
            return Refused(Code.BUSY, what, why, "wait, or use another node", retry_after=wait)
        for group in self._groups(prefix, terms):
            if group.full and not self._idle(group):
                return self.busy(group.what, f"{len(group.occupants)} sessions are open, and none of them is idle")
        if not terms.price and (wait := self._engine.donated_wait(prefix)) > self._limits.donated_wait_s:
            return self.busy(
                "The donated lane's queue is full", f"about {wait:.0f} s of work from this network are in it"
            )
        return None

    def vain(self, prefix: Hashable) -> Vain:
        """What a network's donated sessions have asked for in vain, all together."""
        return self._vain.setdefault(prefix, Vain())

    def make_room(self, prefix: Hashable, terms: Session) -> Refused | None:
        """The same right before a session is booked: those that are idle and in its way lose their seats now."""
        if refused := self.check(prefix, terms):
            return refused
        for group in self._groups(prefix, terms):
            if group.full:
                self._send_away(self._idle(group)[0])
        return None

    def _groups(self, prefix: Hashable, terms: Session) -> Iterator[_Group]:
        """Those that a session of these terms would be one of; each as it is when it is asked for."""
        limits = self._limits
        mine = [one for one in self.occupants if one.session and one.session.terms.client == terms.client]
        yield _Group(mine, limits.of_client, "This client has too many sessions")
        yield _Group(self._of(prefix), limits.of_prefix, "This network has too many sessions")
        if not terms.price:
            own = self._of(prefix, self._donated_occupants())
            yield _Group(own, limits.donated_of_prefix, "This network has too many donated sessions")
            yield _Group(self._donated_occupants(), limits.donated, "The donated lane is full")
        yield _Group(self.occupants, limits.sessions, "Every seat is taken")

    def busy(self, what: str, why: str) -> Refused:
        retry = min(60.0, max(1.0, self._engine.donated_wait()))
        return Refused(Code.BUSY, what, why, "try again later, bid, or use another node", retry_after=retry)

    def enter(self, occupant: Occupant) -> None:
        self.occupants.append(occupant)
        if occupant.session is not None:
            self._accounts[occupant.session.terms.client] = occupant.session.account

    def leave(self, occupant: Occupant) -> None:
        """Forget an occupant, and what was kept for its client or network alone."""
        if occupant not in self.occupants:
            return
        self.occupants.remove(occupant)
        session = occupant.session
        if session is None:
            return
        self._left(session.account)
        if session.lane is Lane.PAID:
            self._engine.forget(Lane.PAID, session.session_id)
        elif not self._of(occupant.prefix, self._donated_occupants()):
            self._engine.forget(Lane.DONATED, occupant.prefix)

    def _left(self, account: ClientAccount) -> None:
        """A session is gone, open or parked: with the last one its account is forgotten."""
        of_open = any(other.session and other.session.account is account for other in self.occupants)
        if not of_open and not self.parking.has(account):
            self._accounts.pop(account.client, None)

    async def watch(self, every: float = 1.0) -> None:
        """No step is taken after expiry, on a thaw or a revocation, nor above what the account holds: such sessions
        are closed. Until cancelled.
        """
        while True:
            await asyncio.sleep(every)
            await self.look()

    async def look(self) -> None:
        """One look at every occupant. What goes wrong at one of them keeps nobody else from being looked at."""
        self.parking.look()
        for prefix in [one for one, vain in self._vain.items() if vain.forgotten() and not self._of(one)]:
            del self._vain[prefix]
        told = ""
        try:
            now = max(time.time(), await self._chain.time())
        except ChainError as error:
            return self._tell(str(error))
        for occupant in list(self.occupants):
            try:
                if occupant.session and not occupant.session.closed and (ended := await self._over(occupant, now)):
                    self._end(occupant, *ended)
            except ChainError as error:
                told = str(error)
            except Exception:  # an answer that nobody foresaw
                log.exception(
                    "a session could not be looked at", client=occupant.session and occupant.session.terms.client
                )
        return self._tell(told)

    def _tell(self, trouble: str) -> None:
        """Once: vouchers stay good while the chain does not answer; new sessions are refused until it does again."""
        if trouble and trouble != self._trouble:
            log.warning("the chain does not answer", reason=trouble)
        self._trouble = trouble

    async def drain(self, limit: float, code: Code, why: str) -> None:
        """Take nobody in, finish the steps that were taken, at most `limit` seconds, and close all sessions."""
        self.draining = True
        self.parking.clear()
        ends = [occupant.end(code, why, limit) for occupant in list(self.occupants)]
        for ended in await asyncio.gather(*ends, *self._ending, return_exceptions=True):
            if isinstance(ended, Exception):
                log.error("a session did not end as it should", exc_info=ended)

    async def _over(self, occupant: Occupant, now: float) -> tuple[Code, str] | None:
        session = occupant.session
        if session is None:
            return None
        terms = session.terms
        if now >= terms.expiry:
            return Code.EXPIRY, f"the session expired at {terms.expiry}"
        if terms.session_key != terms.client and (why := await self._key_over(occupant, now)):
            return Code.REVOKED, why
        if not terms.price:
            return None
        account = session.account
        for key in account.keys:
            account.see_key(key, await self._chain.key(terms.client, key))
        account.see(await self._chain.account(terms.client), now)
        if account.thawing:
            return Code.THAWING, "the account at this node is thawing"
        if account.owed > account.funded:
            return Code.FUNDS, (
                f"the account holds {format_credits(account.funded)} now, {format_credits(account.owed)} are owed"
            )
        return None

    async def _key_over(self, occupant: Occupant, now: float) -> str:
        """Why a session's key may not sign any more; empty if it may."""
        if occupant.session is None:
            return ""
        terms = occupant.session.terms
        until = await self._chain.key(terms.client, terms.session_key)
        if (until or occupant.key_on_chain) and until <= now:
            return f"the session key was good until {until}"
        return ""

    def _donated_occupants(self) -> list[Occupant]:
        return [occupant for occupant in self.occupants if occupant.session and occupant.session.lane is Lane.DONATED]

    def _of(self, prefix: Hashable, occupants: list[Occupant] | None = None) -> list[Occupant]:
        return [
            occupant for occupant in (self.occupants if occupants is None else occupants) if occupant.prefix == prefix
        ]

    def _idle(self, group: _Group) -> list[Occupant]:
        """Who may be sent away, the first one first: donated sessions before paid ones, then those idle longest."""
        now = time.monotonic()
        idle = [occupant for occupant in group.occupants if now - occupant.active_at > self._keeps(occupant)]
        return sorted(idle, key=lambda occupant: (_lane(occupant) is Lane.PAID, occupant.active_at))

    def _keeps(self, occupant: Occupant) -> float:
        """Seconds after its last step that an occupant keeps its seat; after its opening, if it has done none, fewer.
        One with a step under way keeps it, one whose steps wait for input as long as one of them may wait: taking
        steps back costs nothing.
        """
        session, idle = occupant.session, self._limits.idle_s
        if session is None:
            return idle
        if not session.receipt.step and not session.adapter:
            idle = min(idle, OPENING)
        return math.inf if any(step.fed for step in session.pending) else keeps(idle, len(session.pending))

    def _send_away(self, occupant: Occupant) -> None:
        code, why = Code.BUSY, f"no step for {self._keeps(occupant):g} s, and another session needed the seat"
        occupant.vacate(code, why)
        self._end(occupant, code, why)

    def _end(self, occupant: Occupant, code: Code, why: str) -> None:
        task = asyncio.create_task(occupant.end(code, why))
        self._ending.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a session did not end as it should", exc_info=error)


def _lane(occupant: Occupant) -> Lane | None:
    return occupant.session.lane if occupant.session else None
