"""What strangers may ask of this peer's part of the directory: before hivemind's DHT answers in this event loop.

Every request is weighed by what it costs here: a unit is about 25 microseconds. Each network prefix has a budget, and
all of them together a tenth of one processor; a request beyond it, or of a form that no honest peer sends, costs a
comparison. Records are looked at before they are stored: their signatures in a thread, their operators' stake in the
registry.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from hivemint.protocol.errors import ProofError, SwarmError
from hivemint.protocol.ids import PeerId
from hivemint.swarm.budget import Budget
from hivemint.swarm.dht.clock import SwarmClock
from hivemint.swarm.dht.keys import Keys
from hivemint.swarm.dht.places import Places
from hivemint.swarm.dht.standing import Standing
from hivemint.swarm.records import NodeRecord, is_checked, read_record

MOST_KEYS = 16
"""Of one request; a peer's look-up asks for the root of the number of blocks, at most 16 (hivemind's chunk)."""
MOST_REQUEST = 128 * 1024
MOST_ANSWER = 1000 * 1024
"""Below `daemon.MAX_MESSAGE`: what is larger never arrives, and the asker waits in vain."""
UNITS, UNITS_AT_ONCE = 500.0, 4000.0
ALL_UNITS, ALL_UNITS_AT_ONCE = 4000.0, 8000.0
SIGNATURES, SIGNATURES_AT_ONCE = 20.0, 100.0
"""Records a second, of one prefix, whose signatures are not known yet."""
MOST_PREFIXES = 4096


class Desk:
    """Lives in one event loop. `places` is the storage that the DHT uses."""

    def __init__(
        self,
        keys: Keys,
        standing: Standing,
        prefix_of: Callable[[PeerId], Hashable],
        clock: SwarmClock | None = None,
    ) -> None:
        self.standing, self.prefix_of, self.clock, self.refused = standing, prefix_of, clock or SwarmClock(), 0
        self.places = Places(self._stake, ranked=lambda: standing.registry is not None, clock=self.clock)
        self._keys = keys
        self._all: Budget | None = None
        self._units: dict[Hashable, Budget] = {}
        self._signatures: dict[Hashable, Budget] = {}

    async def answer(self, peer: PeerId, raw: bytes, kind: Any, handler: Callable[[Any], Awaitable[Any]]) -> bytes:
        """The answer to one request of the protobuf type `kind`. Raises SwarmError, which the asker gets to read."""
        prefix = self.prefix_of(peer)
        if len(raw) > MOST_REQUEST:
            raise self._refuse("is too large")
        self._spend(prefix, 1 + len(raw) / 1024)
        request = _parse(kind, raw)
        keys = getattr(request, "keys", ())
        if len(keys) > MOST_KEYS or any(len(key) > 20 for key in keys):
            raise self._refuse(f"names {len(keys)} keys, at most {MOST_KEYS}")
        self._spend(prefix, len(keys))
        self._check_id(peer, request)
        if hasattr(request, "values"):
            await self._look_at(prefix, request)
        message = await handler(request)
        if hasattr(message, "dht_time"):
            message.dht_time = self.clock.own()
        answer: bytes = message.SerializeToString()
        self._spend(prefix, len(answer) / 4096)
        if len(answer) > MOST_ANSWER:
            raise self._refuse("asks for too much at once")
        return answer

    def _check_id(self, peer: PeerId, request: Any) -> None:
        """A peer's place in the DHT follows from its peer id: nobody sits down beside a block of its choice."""
        if request.HasField("peer") and request.peer.node_id not in (b"", node_id(peer)):
            raise self._refuse("comes from another place than its peer's")

    async def _look_at(self, prefix: Hashable, request: Any) -> None:
        """Empty the values that are not stored: the DHT declines them one by one."""
        count = len(request.keys)
        if not count == len(request.values) == len(request.subkeys) == len(request.expiration_time):
            raise self._refuse("is not aligned")
        request.ClearField("in_cache")
        request.in_cache.extend([False] * count)
        claims: dict[int, tuple[bytes, NodeRecord]] = {}
        rows = zip(request.keys, request.subkeys, request.values, request.expiration_time, strict=True)
        for number, (key, subkey, value, expires) in enumerate(rows):
            with suppress(ProofError, msgspec.MsgspecError, UnicodeDecodeError):
                data = msgspec.msgpack.decode(value, type=bytes)
                record, _ = read_record(data)
                self._spend(prefix, len(record.blocks) / 10)
                self._keys.check_place(record, key, msgspec.msgpack.decode(subkey, type=bytes), expires)
                claims[number] = data, record
        good = await self._genuine(prefix, list(claims.values()))
        for number in range(count):
            if number not in claims or claims[number][0] not in good:
                request.values[number] = b""

    async def _genuine(self, prefix: Hashable, claims: Sequence[tuple[bytes, NodeRecord]]) -> set[bytes]:
        texts = {data for data, _ in claims}
        new = [data for data in texts if not is_checked(data)]
        if new and not self._budget(self._signatures, prefix, SIGNATURES, SIGNATURES_AT_ONCE).take(_now(), len(new)):
            texts.difference_update(new)
        if texts:
            await self.standing.learn({record.operator for data, record in claims if data in texts})
        if any(data in texts for data in new):
            return await asyncio.to_thread(genuine, texts, self.clock)
        return genuine(texts, self.clock)

    def _stake(self, value: bytes) -> int:
        with suppress(ProofError, msgspec.MsgspecError, UnicodeDecodeError):
            return self.standing.stake(read_record(msgspec.msgpack.decode(value, type=bytes))[0])
        return 0

    def _spend(self, prefix: Hashable, units: float) -> None:
        now = _now()
        if self._all is None:
            self._all = Budget(ALL_UNITS, ALL_UNITS_AT_ONCE, now)
        own = self._budget(self._units, prefix, UNITS, UNITS_AT_ONCE)
        if not own.take(now, units) or not self._all.take(now, units):
            raise self._refuse("comes too soon")

    def _budget(self, book: dict[Hashable, Budget], prefix: Hashable, rate: float, burst: float) -> Budget:
        now = _now()
        if len(book) >= MOST_PREFIXES and prefix not in book:
            for other in [other for other, budget in book.items() if budget.full(now)]:
                del book[other]
            if len(book) >= MOST_PREFIXES:
                prefix = None  # all further ones share one
        return book.setdefault(prefix, Budget(rate, burst, now))

    def _refuse(self, why: str) -> SwarmError:
        self.refused += 1
        return SwarmError(f"The request {why}")


def genuine(texts: set[bytes], clock: SwarmClock) -> set[bytes]:
    """Those whose signatures hold and that have not expired."""
    good = set()
    for data in texts:
        with suppress(ProofError):
            clock.check(data)
            good.add(data)
    return good


def node_id(peer: PeerId) -> bytes:
    """A peer's place in the DHT, 20 bytes."""
    from hivemind.dht.routing import DHTID

    place: bytes = DHTID.generate(source=bytes(peer)).to_bytes()
    return place


def _parse(kind: Any, raw: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(raw)
    except DecodeError:
        raise SwarmError("The request is malformed") from None


def _now() -> float:
    return asyncio.get_running_loop().time()
