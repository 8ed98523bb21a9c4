"""Parked sessions: their client's link was lost, their keys and values wait for a while for it to come back.

Nothing can be asked of a parked session. A new session of the same key may begin with what it has (a fork), for which
nothing is computed and nothing owed. Its room is the first to go when anybody needs some, busy or not, paid or not.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from hivemint.node.engine.seats import Seat
from hivemint.node.sessions.account import ClientAccount
from hivemint.node.sessions.session import ServedSession


@dataclass(frozen=True, slots=True)
class ParkingLimits:
    """Seconds that a session is kept (0: none is), and how many at once: of a wallet, from a network."""

    seconds: float = 120.0
    of_client: int = 8
    of_prefix: int = 16


@dataclass(frozen=True, eq=False, slots=True)
class Parked:
    """`free` gives its room back."""

    session: ServedSession
    seat: Seat
    prefix: Hashable
    until: float
    free: Callable[[], None]


class Parking:
    """Lives in the event loop. `left` is told the account of each session that is forgotten."""

    def __init__(
        self,
        limits: ParkingLimits,
        left: Callable[[ClientAccount], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._left, self._clock = limits, left, clock
        self._parked: list[Parked] = []

    def __len__(self) -> int:
        return len(self._parked)

    def has(self, account: ClientAccount) -> bool:
        """Whether any session of this client is parked."""
        return any(one.session.account is account for one in self._parked)

    def park(self, session: ServedSession, seat: Seat, prefix: Hashable, free: Callable[[], None]) -> None:
        """A session without steps under way. Those that are too many with it go, the oldest first."""
        if not self._limits.seconds:
            session.forget()
            return free()
        one = Parked(session, seat, prefix, self._clock() + self._limits.seconds, free)
        session.park()
        seat.parked, seat.on_evicted = True, lambda: self.forget(one)
        self._parked.append(one)
        mine = [other for other in self._parked if other.session.account is session.account]
        near = [other for other in self._parked if other.prefix == prefix]
        for other in {*mine[: -self._limits.of_client], *near[: -self._limits.of_prefix]}:
            self.forget(other)
        return None

    def look(self) -> None:
        """Forget those whose time is up."""
        now = self._clock()
        for one in [one for one in self._parked if one.until <= now]:
            self.forget(one)

    def clear(self) -> None:
        for one in list(self._parked):
            self.forget(one)

    def forget(self, one: Parked) -> None:
        """Harmless when called again."""
        if one in self._parked:
            self._parked.remove(one)
            one.session.forget()
            one.free()
            self._left(one.session.account)
