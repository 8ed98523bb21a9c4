"""K/V room by lane: who gets pages, and who must give them back.

Pages are taken as tokens come (`kv/cache.py`). A session that has been idle for `idle` seconds loses its room when
another needs it; its client sends its tokens again. Paid sessions may displace free ones, but not below the free
lane's share. Reserving without using blocks nobody.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from hivemint.node.engine.scheduler import Lane
from hivemint.node.kv.cache import Blocks, KvCache, KvStore, OutOfRoom, Tally
from hivemint.node.kv.pages import PAGE, Table, pages_for
from hivemint.node.span.lora import Adapter

IDLE = 30.0
INPUT_LIMIT = 30.0
"""Seconds that a step waits for its input; the nodes before may be busy."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Loan:
    """An adapter, and the pages of the store that it stands for."""

    adapter: Adapter
    pages: int
    table: Table


@dataclass(eq=False)
class Seat:
    """A session's place in the store. `busy` counts its steps whose input is here: a busy seat is never taken away.
    `waits` counts those that wait for theirs: they keep it no longer than one of them may wait.
    """

    cache: KvCache
    lane: Lane
    used_at: float
    busy: int = 0
    waits: int = 0
    on_evicted: Callable[[], None] | None = None
    loan: Loan | None = None
    parked: bool = False
    """Nobody uses it now: it is the first to go. `on_evicted` closes it then."""

    @property
    def adapter(self) -> Adapter | None:
        return None if self.loan is None else self.loan.adapter

    @property
    def pages(self) -> int:
        """All that the session holds."""
        return self.cache.pages + (self.loan.pages if self.loan else 0)


class Seats:
    """All seats of one store."""

    def __init__(
        self,
        store: KvStore,
        *,
        donated_share: float = 0.1,
        idle: float = IDLE,
        max_seats: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self._share, self._idle, self._max_seats, self._clock = donated_share, idle, max_seats, clock
        self.seats: list[Seat] = []
        self._tallies = {lane: Tally() for lane in Lane}
        self._held: list[Seat] = []
        self._leaving: list[Seat] = []

    def open(self, lane: Lane, max_tokens: int, blocks: Blocks | None = None) -> Seat:
        """A seat without any page yet, for the whole span or a part of it. Raises OutOfRoom."""
        if len(self.seats) >= self._max_seats and not self._evict_parked():
            raise OutOfRoom("no seat for another session", why=f"{len(self.seats)} are open", next_step="wait")
        try:
            cache = self.store.open(max_tokens, self._tallies[lane], blocks)
        except OutOfRoom:
            if pages_for(max_tokens) > pages_for(self.store.tokens_total) or not self._evict_one(lane, self._clock()):
                raise
            cache = self.store.open(max_tokens, self._tallies[lane], blocks)
        seat = Seat(cache, lane, self._clock())
        self.seats.append(seat)
        return seat

    def take(self, seat: Seat, tokens: int, start: int | None = None) -> None:
        """Pages for `tokens` in all, those from `start` on to be written, evicting others if it must.

        Raises OutOfRoom, nothing changed for this seat.
        """
        seat.used_at = self._clock()
        missing = seat.cache.missing(tokens, start)
        if not missing or tokens > seat.cache.max_tokens:
            return seat.cache.reserve(tokens, start)
        return self._evicting(seat, missing, lambda: seat.cache.reserve(tokens, start))

    def fork(self, parent: Seat, child: Seat, count: int) -> Callable[[], None]:
        """`child` begins with `count` tokens of `parent`: see `KvCache.fork`. Both seats are held by being busy."""
        parent.used_at = child.used_at = self._clock()
        missing = child.cache.fork_pages(count)
        return self._evicting(child, missing, lambda: child.cache.fork(parent.cache, count))

    def touch(self, seat: Seat) -> None:
        """The seat is used, though it takes no more pages."""
        seat.used_at = self._clock()

    def load(self, seat: Seat, adapter: Adapter) -> None:
        """Keep an adapter for this session, within the same budget. Raises OutOfRoom."""
        seat.used_at = self._clock()
        pages, tally = self.store.pages_of(adapter.nbytes), self._tallies[seat.lane]
        table = self._evicting(seat, pages, lambda: self.store.lend(pages, tally))
        seat.loan = Loan(adapter, pages, table)

    def hold(self, seats: Iterable[Seat]) -> None:
        """The device writes to them: none is closed before `let_go`."""
        self._held += seats

    def let_go(self, seats: Iterable[Seat]) -> None:
        """Close those of them that were given back meanwhile."""
        for seat in seats:
            self._held.remove(seat)
        for seat in [seat for seat in self._leaving if seat not in self._held]:
            self._leaving.remove(seat)
            self.close(seat)

    def release(self, seat: Seat) -> None:
        """Give a seat back: closed now, or as soon as it is held no more."""
        if seat in self._held:
            self._leaving.append(seat)
        else:
            self.close(seat)

    def close(self, seat: Seat) -> None:
        if seat in self.seats:
            self.seats.remove(seat)
        self._unload(seat)
        seat.cache.close()

    def _unload(self, seat: Seat) -> None:
        if seat.loan is not None:
            self.store.take_back(seat.loan.pages, seat.loan.table, self._tallies[seat.lane])
            seat.loan = None

    def used(self, lane: Lane) -> int:
        """Tokens in the pages of a lane's sessions. What several of them read counts once."""
        return self._tallies[lane].pages * PAGE

    @property
    def _donated_tokens_kept(self) -> int:
        return int(self.store.tokens_total * self._share)

    def _evicting(self, seat: Seat, missing: int, take: Callable[[], T]) -> T:
        """`take`, which needs `missing` pages for `seat`, after as many evictions as it needs."""
        while True:
            if self._may_grow(seat, missing):
                try:
                    return take()
                except OutOfRoom:
                    if seat not in self.seats:  # it has been closed: nobody's room helps it
                        raise
            if not self._evict_one(seat.lane, seat.used_at, but=seat):
                why, next_step = "the other sessions are busy", "try again later"
                raise OutOfRoom(f"no room for {missing * PAGE} tokens now", why=why, next_step=next_step)

    def _may_grow(self, seat: Seat, missing: int) -> bool:
        """Paid sessions leave the donated lane its share while it has anybody."""
        if seat.lane is Lane.DONATED or not any(other.lane is Lane.DONATED for other in self.seats):
            return True
        grown = self.used(Lane.PAID) + missing * PAGE
        return grown <= self.store.tokens_total - self._donated_tokens_kept

    def _evict_one(self, lane: Lane, now: float, but: Seat | None = None) -> bool:
        """Take the room of the session that has been quiet longest, if one may be taken; of parked ones first."""
        if self._evict_parked():
            return True
        quiet = [seat for seat in self.seats if seat is not but and not seat.busy and seat.pages]
        idle = [seat for seat in quiet if now - seat.used_at >= keeps(self._idle, seat.waits)]
        if not idle and lane is Lane.PAID and self.used(Lane.DONATED) > self._donated_tokens_kept:
            idle = [seat for seat in quiet if seat.lane is Lane.DONATED and not seat.waits]
        if not idle:
            return False
        victim = min(idle, key=lambda seat: seat.used_at)
        victim.cache.evict()
        self._unload(victim)
        if victim.on_evicted:
            victim.on_evicted()
        return True

    def _evict_parked(self) -> bool:
        parked = [seat for seat in self.seats if seat.parked and not seat.busy and seat.on_evicted]
        if not parked:
            return False
        oldest = min(parked, key=lambda seat: seat.used_at)
        if oldest.on_evicted:
            oldest.on_evicted()
        return True


def keeps(idle: float, waits: int) -> float:
    """Seconds after its last step that a session keeps its place, with so many steps that wait for their input."""
    return idle + INPUT_LIMIT if waits else idle
