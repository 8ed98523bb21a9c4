"""How fast nodes are, as this client sees it: what routes are planned by, and who is far slower than it publishes."""

import time
from collections import Counter, deque
from dataclasses import dataclass

from hivemint.protocol.ids import PeerId

UNKNOWN_TRIP = 0.002
FRESH = 300.0
"""How long an own measurement counts, in seconds."""
WINDOW = 8
"""Steps of a node that are judged together."""
_NEWER = 0.2
_TWICE = 2


@dataclass(slots=True)
class PeerSpeed:
    """What this client saw of one peer: the dial's round trip, seconds per decode step and block."""

    trip: float = UNKNOWN_TRIP
    step: float | None = None
    at: float = 0.0


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
        self._delivered: set[PeerId] = set()
        self._shares: dict[PeerId, deque[float]] = {}
        self._sessions: Counter[PeerId] = Counter()

    def trip(self, peer: PeerId, seconds: float) -> None:
        self._seen.setdefault(peer, PeerSpeed()).trip = seconds

    def step(self, peer: PeerId, seconds: float, blocks: int) -> None:
        """One decode step through `blocks` blocks."""
        seen, value = self._seen.setdefault(peer, PeerSpeed()), seconds / blocks
        old = seen.step if seen.step is not None and time.monotonic() - seen.at < FRESH else value
        seen.step, seen.at = old + _NEWER * (value - old), time.monotonic()
        self.delivered(peer)

    def of(self, peer: PeerId) -> PeerSpeed:
        seen = self._seen.get(peer, PeerSpeed())
        if seen.step is not None and time.monotonic() - seen.at > FRESH:
            return PeerSpeed(seen.trip)
        return seen

    def knows(self, peer: PeerId) -> bool:
        """Whether this peer has delivered a step to this client."""
        return peer in self._delivered

    def delivered(self, peer: PeerId) -> None:
        """A step of this peer's has been proved."""
        self._delivered.add(peer)

    def opened(self, peer: PeerId, sessions: int = 1) -> None:
        """So many more sessions of this client are open there; fewer, below 0."""
        self._sessions[peer] = max(0, self._sessions[peer] + sessions)

    def judge(self, peer: PeerId, seconds: float, published: float) -> None:
        """One step of any kind, and the seconds that it takes by what its node publishes."""
        allowed = max(self._allowance.floor, self._allowance.times * (published + self.of(peer).trip))
        share = seconds / (allowed * max(1, self._sessions[peer]))
        self._shares.setdefault(peer, deque(maxlen=WINDOW)).append(share)

    def slow(self, peer: PeerId) -> bool:
        """Whether its last steps took far longer than it publishes."""
        return self.lateness(peer) > 1 and sum(share > 1 for share in self._shares[peer]) >= _TWICE

    def lateness(self, peer: PeerId) -> float:
        """What its last steps took, as a share of what all `WINDOW` of them may take."""
        return sum(self._shares.get(peer, ())) / WINDOW

    def forgive(self, peer: PeerId) -> None:
        """Judge it anew: it has been set aside for what was seen."""
        self._shares.pop(peer, None)
