"""Who is left out of routes for a while, why, for how long, and how it comes back."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hivemint.protocol.ids import PeerId

LONGEST = 3600.0
"""Seconds that a growing time ends at; one that begins above it does not grow."""
TRYING = 15.0
"""Seconds in which a route that tries a node again has opened its session, or has failed to."""
TRIAL = 60.0
"""Seconds in which such a session has delivered a step, or has failed: after these another one may try."""
MOST_KEPT = 4096


@dataclass(slots=True)
class _Mark:
    """What is held against one node. `until`, `since` by the monotonic clock; `times`: in a row, without a step proved
    between."""

    reason: str
    since: float
    until: float
    times: int
    lied: bool = False
    tried: float = float("-inf")


class Aside:
    """Each time a node misbehaves it is left out twice as long as the time before, up to an hour.

    When its time is over it gets one use at a time, until it has delivered a step again: that proves it, and its next
    time begins small. `delivered_at` and `opened_at` tell when a peer delivered last, and when a session of this client
    was last opened there, by the monotonic clock; None: never.
    """

    def __init__(
        self, delivered_at: Callable[[PeerId], float | None], opened_at: Callable[[PeerId], float | None]
    ) -> None:
        self._delivered_at, self._opened_at = delivered_at, opened_at
        self._marks: OrderedDict[PeerId, _Mark] = OrderedDict()
        self._busy: dict[PeerId, float] = {}

    def misbehaved(self, peer: PeerId, seconds: float, reason: str, *, lied: bool) -> None:
        """Leave it out: `seconds` the first time; 0 or less: never."""
        if seconds <= 0:
            return
        now, known = time.monotonic(), self._marks.get(peer)
        times = 0 if known is None or self._proved(peer, known) else known.times
        if known is not None and times and known.until > now:
            times -= 1  # the same trouble, told by another session of that time
        until = now + min(seconds * 2 ** min(times, 30), max(seconds, LONGEST))
        if known is not None and known.until > until:
            until = known.until
        lied = lied or (known is not None and known.lied and known.until > now)
        self._marks[peer] = _Mark(reason or (known.reason if known else ""), now, until, times + 1, lied)
        self._marks.move_to_end(peer)
        while len(self._marks) > MOST_KEPT:
            self._marks.popitem(last=False)

    def busy(self, peer: PeerId, seconds: float) -> None:
        """It has no room now: nothing is held against it."""
        self._busy[peer] = max(time.monotonic() + seconds, self._busy.get(peer, 0.0))

    def trying(self, peer: PeerId) -> None:
        """A route is about to be opened over it: until that is known, no other one is."""
        mark = self._marks.get(peer)
        if mark is not None:
            mark.tried = time.monotonic()

    def liars(self) -> set[PeerId]:
        now = time.monotonic()
        return {peer for peer, mark in self._marks.items() if mark.lied and mark.until > now}

    def peers(self) -> set[PeerId]:
        """All that are left out now."""
        now = time.monotonic()
        for peer in [peer for peer, until in self._busy.items() if until <= now]:
            del self._busy[peer]
        return {peer for peer in self._marks if self._left_out(peer, now)} | set(self._busy)

    def since(self, peer: PeerId) -> float:
        """When it misbehaved last, by the monotonic clock; minus infinity: never, as far as is known."""
        mark = self._marks.get(peer)
        return float("-inf") if mark is None else mark.since

    def reason(self, peer: PeerId) -> str:
        """Why it is left out, and for how long, in a few words; "" if it is not."""
        now, mark = time.monotonic(), self._marks.get(peer)
        if mark is None or not self._left_out(peer, now):
            left = self._busy.get(peer, 0.0) - now
            return f"busy for {left:.0f} s more" if left > 0 else ""
        often = f", {mark.times} times in a row" if mark.times > 1 else ""
        why = mark.reason or ("it lied" if mark.lied else "it failed")
        if mark.until > now:
            return f"set aside for {mark.until - now:.0f} s more{often}: {why}"
        return f"on trial by another session{often}: {why}"

    def _left_out(self, peer: PeerId, now: float) -> bool:
        mark = self._marks[peer]
        if mark.until > now:
            return True
        if self._proved(peer, mark):
            return False
        opened = self._opened_at(peer)
        return now - mark.tried < TRYING or (opened is not None and opened > mark.until and now - opened < TRIAL)

    def _proved(self, peer: PeerId, mark: _Mark) -> bool:
        """Whether it has delivered since its time was over."""
        delivered = self._delivered_at(peer)
        return delivered is not None and delivered > mark.until
