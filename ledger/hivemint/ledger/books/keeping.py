"""Which rows of a journal are kept: what can still be claimed, and a bounded past beside it.

    paid session    while it is open or one of its vouchers waits; then if it carries the highest total of its key, the
                    one that settlement presents. Of the others the last HISTORY, if a voucher pays for something.
    donated session while it is open; then if a voucher binds work: the MOST_DONATED largest, until their epoch's claim
                    is over, and for KNOWN_EPOCHS if they were claimed
    account         until it has had no open session for WORTHLESS_FOR, and at each look at the chain in that time
                    nothing more could be claimed of it. Its sessions go with it.

Nothing that goes is ever asked for again: steps are numbered within a session and sessions die with the run, and what
a forgotten account owed is what the chain says was collected. The sums of what went stay (`Gone`).
"""

import heapq
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hivemint.ledger.books.entries import Book, LaneTotals
from hivemint.protocol.credits import mintable
from hivemint.protocol.ids import Address, Credits, SessionId

HISTORY = 1_000
"""Closed paid sessions that another one of the same key has outbid."""
MOST_DONATED = 10_000
"""Closed donated sessions with countersigned work; a node claims the largest until its stake is filled."""
KNOWN_EPOCHS = 30
"""Epochs for which a claimed session's row tells that a share of its epoch may be minted."""
WORTHLESS_FOR = 3 * 86_400
"""Seconds, by the chain's time and by the clock: a thaw's, far longer than a wrong answer or a reorganisation."""


@dataclass(frozen=True, slots=True)
class ClosedSession:
    """A row that may go: of whom, at what price, and what it adds to the lane's sums."""

    id: SessionId
    client: Address
    price: Credits
    signed: int
    countersigned: int
    work: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "ClosedSession":
        work = row["tokens"] * (row["end_block"] - row["first_block"])
        return cls(SessionId(bytes(row["id"])), row["client"], row["price"], row["signed_tokens"], row["tokens"], work)


@dataclass(slots=True)
class Gone:
    """Sums over rows that are kept no more, in tokens and wei."""

    paid: LaneTotals = field(default_factory=LaneTotals)
    donated: LaneTotals = field(default_factory=LaneTotals)
    promised: int = 0
    settled: int = 0
    minted: int = 0

    @classmethod
    def read(cls, row: Any) -> "Gone":
        """From the row of `gone`; None: nothing has gone yet."""
        if row is None:
            return cls()
        return cls(
            LaneTotals(
                row.paid_sessions,
                row.paid_tokens_signed,
                row.paid_tokens_countersigned,
                row.paid_signed,
                row.paid_countersigned,
            ),
            LaneTotals(row.donated_sessions, row.donated_tokens_signed, row.donated_tokens_countersigned),
            row.promised,
            row.settled,
            row.minted,
        )

    def row(self, owner: int) -> dict[str, Any]:
        return {
            "owner": owner,
            "paid_sessions": self.paid.sessions,
            "paid_tokens_signed": self.paid.tokens_signed,
            "paid_tokens_countersigned": self.paid.tokens_countersigned,
            "paid_signed": self.paid.signed,
            "paid_countersigned": self.paid.countersigned,
            "donated_sessions": self.donated.sessions,
            "donated_tokens_signed": self.donated.tokens_signed,
            "donated_tokens_countersigned": self.donated.tokens_countersigned,
            "promised": self.promised,
            "settled": self.settled,
            "minted": self.minted,
        }

    def session(self, closed: ClosedSession) -> None:
        if closed.price:
            self.paid = self.paid.plus(1, closed.signed, closed.countersigned, closed.price)
        else:
            self.donated = self.donated.plus(1, closed.signed, closed.countersigned, 0)

    def account(self, book: Book) -> None:
        self.promised += book.earned
        self.settled += book.collected
        self.minted += mintable(book.collected)

    def back(self, collected: Credits) -> None:
        """A client is seen for the first time, or again: what the chain had paid before is counted with its book."""
        self.promised -= min(self.promised, collected)
        self.settled -= min(self.settled, collected)
        self.minted -= min(self.minted, mintable(collected))


class Keeping:
    """What of a journal's closed sessions stays. Each method returns the rows that go."""

    def __init__(self, gone: Gone) -> None:
        self.gone = gone
        self._presented: dict[SessionId, ClosedSession] = {}
        self._outbid: deque[ClosedSession] = deque()
        self._donated: list[tuple[int, SessionId, ClosedSession]] = []

    def ended(self, closed: ClosedSession, bound: bool, presented: bool) -> list[ClosedSession]:
        """A session has closed. `bound`: a voucher is stored for it; `presented`: settlement presents that one."""
        if not bound or (not closed.price and not closed.countersigned):
            return self._go([closed])
        if not closed.price:
            heapq.heappush(self._donated, (closed.work, closed.id, closed))
            return self._go([heapq.heappop(self._donated)[2]] if len(self._donated) > MOST_DONATED else [])
        self._presented[closed.id] = closed
        return [] if presented else self.outbid(closed.id)

    def outbid(self, session: SessionId) -> list[ClosedSession]:
        """Its voucher is not the highest of its key any more; nothing happens if the session is still open."""
        if (closed := self._presented.pop(session, None)) is not None:
            self._outbid.append(closed)
        return self._go([self._outbid.popleft()] if len(self._outbid) > HISTORY else [])

    def forgotten(self, client: Address, book: Book) -> list[ClosedSession]:
        """An account goes, with its sessions: those that settlement would have presented and the past ones."""
        self.gone.account(book)
        went = [one for one in self._outbid if one.client == client]
        self._outbid = deque(one for one in self._outbid if one.client != client)
        for pair in book.proofs.values():
            closed = self._presented.pop(pair.receipt.session_id, None)
            went += [closed] if closed else []
        return self._go(went)

    def expired(self, old: set[SessionId]) -> list[ClosedSession]:
        """Donated sessions whose claim is over."""
        went = [closed for _, session, closed in self._donated if session in old]
        self._donated = [one for one in self._donated if one[1] not in old]
        heapq.heapify(self._donated)
        return self._go(went)

    def _go(self, closed: list[ClosedSession]) -> list[ClosedSession]:
        for one in closed:
            self.gone.session(one)
        return closed
