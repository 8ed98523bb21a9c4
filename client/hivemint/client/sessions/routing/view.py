"""The nodes of one look-up as arrays, one row a node: what all plans over them share, made once."""

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from hivemint.client.sessions.route import UNKNOWN_SPEED, wire_of
from hivemint.client.sessions.routing.trips import published_trips
from hivemint.client.settings import Bid
from hivemint.protocol.ids import Credits
from hivemint.swarm.records import LIFETIME, CheckedRecord
from hivemint.swarm.rows import WIRES

STALE_HALF = 30.0
"""Seconds after which half of a published wait's difference from what is usual in the swarm has been forgotten."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class NodeView:
    """Of checked records, in their order. All arrays have one number a record."""

    def __init__(self, records: Sequence[CheckedRecord]) -> None:
        self.records = tuple(records)
        self.rows = {one.peer: row for row, one in enumerate(self.records)}
        found = [one.record for one in self.records]
        self.first: Ints = np.array([one.first_block for one in found], dtype=np.int64)
        self.end: Ints = np.array([one.end_block for one in found], dtype=np.int64)
        self.free: Floats = np.array([one.free_tokens for one in found], dtype=np.float64)
        speed = np.array([one.tokens_per_s or UNKNOWN_SPEED for one in found], dtype=np.float64)
        self.compute: Floats = 1.0 / (speed * np.maximum(1, self.end - self.first))
        """Seconds a token and block."""
        self._expires = np.array([one.expires for one in found], dtype=np.float64)
        self._waits = {
            paid: np.array([one.wait_paid_s if paid else one.wait_donated_s for one in found], dtype=np.float64)
            for paid in (True, False)
        }
        self._bids: dict[Bid, list[Credits | None]] = {}
        self._dice: tuple[bytes, Floats] = (b"", np.zeros(len(found)))

    def holds(self, records: Sequence[CheckedRecord]) -> bool:
        """Whether it is of these very records."""
        return len(records) == len(self.records) and all(map(_same, records, self.records))

    @cached_property
    def trips(self) -> Floats:
        """Seconds of a round trip between two nodes, [n, n]; NaN where nothing is known of it."""
        return published_trips([(one.peer, one.record.trips_s()) for one in self.records])

    @cached_property
    def labels(self) -> dict[str, list[str]]:
        """By wire form: each node's numerics with that form; "" for who offers none."""
        return {
            wire: [next((one for one in node.record.numerics if wire_of(one) == wire), "") for node in self.records]
            for wire in WIRES
        }

    def waits(self, now: float, *, paid: bool) -> Floats:
        """Seconds in the queue of a lane, for a bid of the ask. `now` in seconds since 1970.

        What was published a while ago counts less and less, what is usual in this lane now more and more.
        """
        published = self._waits[paid]
        if not len(published):
            return published
        age = np.clip(LIFETIME - (self._expires - now), 0.0, LIFETIME)
        usual = float(np.median(published))
        return usual + (published - usual) * np.asarray(0.5 ** (age / STALE_HALF))

    def bids(self, bid: Bid) -> list[Credits | None]:
        """What a bid comes to at each node, in wei per token and block; None: it does not reach."""
        if bid not in self._bids:
            if len(self._bids) > _MOST_BIDS:
                self._bids.clear()
            self._bids[bid] = [bid.at(one.record.ask) for one in self.records]
        return self._bids[bid]

    def dice(self, salt: bytes) -> Floats:
        """A number in [0, 1) for each node: the same for one salt, others for others; all 0 without one."""
        if not salt:
            return np.zeros(len(self.records))
        if self._dice[0] != salt:
            drawn = [blake2b(one.record.peer, digest_size=4, key=salt[:64]).digest() for one in self.records]
            self._dice = salt, np.array([int.from_bytes(one) / 2**32 for one in drawn], dtype=np.float64)
        return self._dice[1]


_MOST_BIDS = 8


def _same(one: CheckedRecord, other: CheckedRecord) -> bool:
    return one is other
