"""Who is about to be back at a device, and how long a step may wait for them.

A step costs a fixed part and a small one for each row, so one large batch carries its sessions for less than several
small ones. Sessions come back when their token has passed the other nodes and the client, which takes about as long
as it took the last time. While a node waits for them its device is idle: that pays where others use the same
processors meanwhile (clients and nodes on one machine), and nowhere else.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from hivemint.node.engine.scheduler import Lane
from hivemint.node.engine.seats import Seat

SHARED = 1.5
"""Longest wait for gathering, in steps, on processors that others use as well."""
FEW = 2
"""So many sessions never wait for each other: apart they keep two nodes busy at once."""
_OTHERS = 0.25
"""The part of all processors from which on others count."""
_PERIOD, _PAUSE = 1.0, 5.0
"""Seconds between two looks, and so many after which the time in between tells nothing of now."""


@dataclass(eq=False, slots=True)
class _Stay:
    """A session at this device: `here` steps of it; when the last one left, and how long it was away before."""

    here: int = 0
    left: float = 0.0
    away: float | None = None


class Gathering:
    """Sessions with a step here now, and those that will be back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._stays: dict[Seat, _Stay] = {}

    def came(self, seat: Seat) -> None:
        """A step of it waits here."""
        stay = self._stays.get(seat)
        if stay is None:
            stay = self._stays[seat] = _Stay()
        elif not stay.here:
            stay.away = self._clock() - stay.left
        stay.here += 1

    def left(self, seat: Seat) -> None:
        """A step of it is done, or taken back."""
        stay = self._stays.get(seat)
        if stay is not None:
            stay.here -= 1
            stay.left = self._clock()

    def gone(self, seat: Seat) -> None:
        self._stays.pop(seat, None)

    def due(self, within: float, late: float, *, paid: bool) -> set[Seat]:
        """Who should be back `within` so many seconds, or is so many `late`. `paid`: of that lane only.

        Empty where all that are about would be `FEW`.
        """
        now = self._clock()
        due = {
            seat
            for seat, stay in self._stays.items()
            if not stay.here
            and stay.away is not None
            and -late <= stay.left + stay.away - now <= within
            and (not paid or seat.lane is Lane.PAID)
        }
        return due if len(due) + sum(stay.here > 0 for stay in self._stays.values()) > FEW else set()


class Processors:
    """How busy others keep this machine's processors: what a waiting node leaves them is not lost."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._process = clock, psutil.Process()
        self._at, (self._busy, self._own) = clock(), self._read()
        self._others = 0.0

    def patience(self) -> float:
        """How long a step may wait for gathering here, in steps; 0 on processors that nobody else uses."""
        if (passed := self._clock() - self._at) >= _PERIOD:
            busy, own = self._read()
            if passed < _PAUSE:
                self._others = (busy - self._busy - (own - self._own)) / (passed * (psutil.cpu_count() or 1))
            self._at, self._busy, self._own = self._clock(), busy, own
        return SHARED if self._others >= _OTHERS else 0.0

    def _read(self) -> tuple[float, float]:
        """Seconds that all processors have worked, and those of them that were for this process.

        The system counts nicer threads (a node's own, `threads.give_way`) apart, a process counts them with the rest.
        """
        every, own = psutil.cpu_times(), self._process.cpu_times()
        return every.user + getattr(every, "nice", 0.0) + every.system, own.user + own.system
