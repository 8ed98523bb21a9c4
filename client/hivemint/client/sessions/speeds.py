"""How fast nodes are, as this client sees it: what routes are planned by, and who is far slower than it publishes."""

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from hivemint.protocol.ids import PeerId

UNKNOWN_TRIP = 0.002
FRESH = 300.0
"""How long an own measurement counts, in seconds."""
HALF = 100.0
"""Seconds after which an own measurement counts half, and what the node publishes the other half."""
UNDERSTATED_HALF = 1800.0
"""Seconds after which half is forgotten of what a node was found to understate."""
WINDOW = 8
"""Steps of a node that are judged together."""
_NEWER = 0.2
_TWICE = 2


@dataclass(slots=True)
class PeerSpeed:
    """What this client saw of one peer.

    `trip`: seconds of a round trip; None: never measured. `step`: seconds per decode step and block, of steps through
    `blocks` blocks, as of `at` by the monotonic clock. `excess`: seconds that its steps took beyond what it publishes.
    """

    trip: float | None = None
    step: float | None = None
    blocks: int = 1
    at: float = 0.0
    excess: float = 0.0
    excess_at: float = 0.0

    def weight(self, now: float) -> float:
        """How much of its wait is taken from `step`, 0 to 1: the rest is what the node publishes."""
        age = now - self.at
        return 0.0 if self.step is None or age > FRESH else 0.5 ** (age / HALF)

    def understated(self, now: float) -> float:
        """Seconds to be added to what it publishes."""
        return float(self.excess * 0.5 ** ((now - self.excess_at) / UNDERSTATED_HALF))


@dataclass(frozen=True, slots=True)
class Allowance:
    """How long a step may take: `times` what its node publishes, and never less than `floor` seconds."""

    times: float = 10.0
    floor: float = 2.0


class Speeds:
    """Own measurements, by peer. A step's time holds the node's queue, its compute and the way to it.

    A node is slow when the last `WINDOW` steps took longer than all of them were allowed, and more than one of them
    did: one pause proves nothing. Sessions of this client at one node share what it publishes.
    """

    def __init__(self, allowance: Allowance | None = None) -> None:
        self._allowance = allowance or Allowance()
        self._seen: dict[PeerId, PeerSpeed] = {}
        self._delivered: dict[PeerId, float] = {}
        self._shares: dict[PeerId, deque[float]] = {}
        self._sessions: Counter[PeerId] = Counter()
        self._opened: dict[PeerId, float] = {}

    def trip(self, peer: PeerId, seconds: float) -> None:
        """One round trip. A slow one may be a busy moment: it counts half against what was seen before."""
        seen = self._seen.setdefault(peer, PeerSpeed())
        seen.trip = seconds if seen.trip is None else min(seconds, (seen.trip + seconds) / 2)

    def step(self, peer: PeerId, seconds: float, blocks: int) -> None:
        """One decode step through `blocks` blocks."""
        seen, value = self._seen.setdefault(peer, PeerSpeed()), seconds / blocks
        old = seen.step if seen.step is not None and time.monotonic() - seen.at < FRESH else value
        seen.step, seen.blocks, seen.at = old + _NEWER * (value - old), blocks, time.monotonic()
        self.delivered(peer)

    def of(self, peer: PeerId) -> PeerSpeed:
        """What is known of it; a step that was long ago is not."""
        seen = self._seen.get(peer, PeerSpeed())
        if seen.step is not None and time.monotonic() - seen.at > FRESH:
            return PeerSpeed(seen.trip, excess=seen.excess, excess_at=seen.excess_at)
        return seen

    @property
    def seen(self) -> Mapping[PeerId, PeerSpeed]:
        """All that was measured, old or new."""
        return self._seen

    @property
    def sessions(self) -> Mapping[PeerId, int]:
        """How many sessions of this client are open at each node."""
        return self._sessions

    def knows(self, peer: PeerId) -> bool:
        """Whether this peer has delivered a step to this client."""
        return peer in self._delivered

    def delivered(self, peer: PeerId) -> None:
        """A step of this peer's has been proved."""
        self._delivered[peer] = time.monotonic()

    def delivered_at(self, peer: PeerId) -> float | None:
        """When it last did, by the monotonic clock."""
        return self._delivered.get(peer)

    def opened(self, peer: PeerId, sessions: int = 1) -> None:
        """So many more sessions of this client are open there; fewer, below 0."""
        self._sessions[peer] = max(0, self._sessions[peer] + sessions)
        if sessions > 0:
            self._opened[peer] = time.monotonic()

    def opened_at(self, peer: PeerId) -> float | None:
        """When a session was last opened there, by the monotonic clock."""
        return self._opened.get(peer)

    def judge(self, peer: PeerId, seconds: float, published: float) -> None:
        """One step of any kind, and the seconds that it takes by what its node publishes."""
        seen, now = self._seen.setdefault(peer, PeerSpeed()), time.monotonic()
        honest = published + (UNKNOWN_TRIP if seen.trip is None else seen.trip)
        allowed = max(self._allowance.floor, self._allowance.times * honest)
        share = seconds / (allowed * max(1, self._sessions[peer]))
        self._shares.setdefault(peer, deque(maxlen=WINDOW)).append(share)
        old = seen.understated(now)
        seen.excess, seen.excess_at = old + _NEWER * (max(0.0, seconds - honest) - old), now

    def slow(self, peer: PeerId) -> bool:
        """Whether its last steps took far longer than it publishes."""
        return self.lateness(peer) > 1 and sum(share > 1 for share in self._shares[peer]) >= _TWICE

    def lateness(self, peer: PeerId) -> float:
        """What its last steps took, as a share of what all `WINDOW` of them may take."""
        return sum(self._shares.get(peer, ())) / WINDOW

    def forgive(self, peer: PeerId) -> None:
        """Judge it anew: it has been set aside for what was seen."""
        self._shares.pop(peer, None)
