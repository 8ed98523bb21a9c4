"""What this peer keeps of the directory for others, in place of the library's unbounded storage.

A place is one block's list of records by peer id. Registered operators win entries by stake, the others share a
bounded rest; a place fits a sixteenth of the largest answer that the daemon carries, and all of them a bounded memory.
An entry stays for a record's usual life from when it came, whatever it claims: so the dead are gone by any clock.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hivemint.swarm.dht.clock import SwarmClock
from hivemint.swarm.records import LIFETIME

PLACE_BYTES, REST_BYTES = 48 * 1024, 8 * 1024
"""Of one place: for registered operators, and for all others."""
REST_ENTRIES = 16
ALL_BYTES, ALL_REST_BYTES = 32 * 1024 * 1024, 8 * 1024 * 1024
ENTRY_COST = 128
"""Bytes that an entry is counted with beside its value."""
SWEEP_EVERY = 5.0


@dataclass(slots=True)
class _Stored:
    value: bytes
    expires: float
    """By its record; the later one is the newer one."""
    until: float
    """By the steady clock."""
    stake: int

    @property
    def size(self) -> int:
        return len(self.value) + ENTRY_COST


Stake = Callable[[bytes], int]
"""The stake behind a stored value; 0: unregistered."""


class Places:
    """The storage of hivemind's DHT protocol: `store`, `store_subkey`, `get`, `items`."""

    def __init__(self, stake: Stake, *, ranked: Callable[[], bool], clock: SwarmClock | None = None) -> None:
        """`ranked`: whether a registry tells who is registered; without it all entries share a whole place."""
        self._stake, self._ranked, self._clock = stake, ranked, clock or SwarmClock()
        self._places: dict[Any, dict[bytes, _Stored]] = {}
        self._bytes = self._rest_bytes = 0
        self._swept = 0.0

    @property
    def held(self) -> int:
        """Bytes."""
        return self._bytes

    def store(self, key: Any, value: bytes, expiration_time: float, subkey: bytes | None = None) -> bool:
        """False: not taken. Only entries under a peer id are."""
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: Any, subkey: bytes, value: bytes, expiration_time: float) -> bool:
        now = self._clock.steady()
        self._sweep(now)
        place = self._places.get(key, {})
        known, left = place.get(subkey), expiration_time - self._clock.earliest()
        if left <= 0 or (known is not None and known.until > now and known.expires >= expiration_time):
            return False
        entry = _Stored(value, expiration_time, now + min(left, LIFETIME), self._stake(value))
        leaving = self._make_room(place, subkey, entry)
        if leaving is None:
            return False
        for peer in leaving:
            self._drop(place, peer)
        self._places.setdefault(key, place)[subkey] = entry
        self._count(entry, 1)
        return True

    def get(self, key: Any) -> Any:
        """A copy in the library's form, or None: it writes into what it gets."""
        from hivemind.dht.storage import DictionaryDHTValue
        from hivemind.utils.timed_storage import ValueWithExpiration

        now = self._clock.steady()
        live = {peer: entry for peer, entry in self._places.get(key, {}).items() if entry.until > now}
        if not live:
            return None
        value = DictionaryDHTValue()
        value.frozen = True  # the library would judge by this machine's clock
        for peer, entry in live.items():
            value.store(peer, entry.value, entry.expires)
        return ValueWithExpiration(value, value.latest_expiration_time)

    def items(self) -> Iterator[Any]:
        """None: the library would send them all to every newcomer, and records are published anew every 20 s."""
        return iter(())

    def _make_room(self, place: dict[bytes, _Stored], subkey: bytes, entry: _Stored) -> list[bytes] | None:
        """Who must leave for `entry`, the least stake first; None if it is `entry` that finds no room."""
        leaving = [subkey] if subkey in place else []
        registered = entry.stake > 0
        peers = {peer: one for peer, one in place.items() if (one.stake > 0) == registered and peer not in leaving}
        most = PLACE_BYTES if registered else REST_BYTES if self._ranked() else PLACE_BYTES + REST_BYTES
        freed = sum(place[peer].size for peer in leaving)
        whole, limit = (self._bytes, ALL_BYTES) if registered else (self._rest_bytes, self._rest_limit())
        if whole - freed + entry.size > limit:
            return None
        used, count = sum(one.size for one in peers.values()), len(peers)
        for peer, one in sorted(peers.items(), key=lambda item: item[1].stake):
            if used + entry.size <= most and (registered or not self._ranked() or count < REST_ENTRIES):
                return leaving
            if one.stake >= entry.stake:
                return None
            leaving.append(peer)
            used, count = used - one.size, count - 1
        return leaving if used + entry.size <= most else None

    def _rest_limit(self) -> int:
        return ALL_REST_BYTES if self._ranked() else ALL_BYTES

    def _sweep(self, now: float) -> None:
        if now - self._swept < SWEEP_EVERY:
            return
        self._swept = now
        for key, place in list(self._places.items()):
            for peer in [peer for peer, entry in place.items() if entry.until <= now]:
                self._drop(place, peer)
            if not place:
                del self._places[key]

    def _drop(self, place: dict[bytes, _Stored], peer: bytes) -> None:
        self._count(place.pop(peer), -1)

    def _count(self, entry: _Stored, sign: int) -> None:
        self._bytes += sign * entry.size
        if not entry.stake:
            self._rest_bytes += sign * entry.size
