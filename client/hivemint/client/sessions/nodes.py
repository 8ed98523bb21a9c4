"""The nodes of one model as this client knows them: looked up, registered, and not set aside."""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hivemint.client.sessions.wallet import ChainPort
from hivemint.protocol.eip712 import peer_id_hash
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import ModelId, PeerId
from hivemint.swarm.host import Host
from hivemint.swarm.records import CheckedRecord

LOOK_UP_GOOD = 3.0
"""Seconds that the directory's answer serves for further routes."""

_TWICE = 2


@dataclass(frozen=True, slots=True)
class Target:
    """The model whose blocks are looked for. `hidden` numbers a row."""

    model_id: ModelId
    blocks: int
    hidden: int


class Nodes:
    """`chain` None: nobody is asked who is registered."""

    def __init__(self, host: Host, target: Target, chain: ChainPort | None) -> None:
        self._host, self._target, self._chain = host, target, chain
        self._records: list[CheckedRecord] = []
        self._looked: float | None = None
        self._look_up = asyncio.Lock()
        self._aside: dict[PeerId, float] = {}
        self._liars: dict[PeerId, float] = {}
        self._lost: Counter[PeerId] = Counter()

    async def usable(self) -> list[CheckedRecord]:
        """Registered with the peer id that they show, and not set aside.

        A node that merely failed counts again where blocks are left that nobody else serves; one that lied does not.
        """
        async with self._look_up:
            if self._looked is None or time.monotonic() - self._looked > LOOK_UP_GOOD:
                found = await self._host.find(self._target.model_id, range(self._target.blocks))
                self._records, self._looked = await self._registered(found), time.monotonic()
        alive = self._without(self._now(self._liars))
        rested = self._without(self._left_out())
        kept, left = {one.peer for one in rested}, self._all_blocks - _served(rested)
        return [one for one in alive if one.peer in kept or not left.isdisjoint(one.record.blocks)]

    def set_aside(self, peers: Iterable[PeerId], seconds: float, *, lied: bool = False) -> None:
        """Leave these out of routes for a while."""
        until = time.monotonic() + seconds
        for peer in peers:
            book = self._liars if lied else self._aside
            book[peer] = max(until, book.get(peer, 0.0))

    def lost_room(self, peers: Iterable[PeerId], seconds: float) -> None:
        """These made a text be computed again: whoever does so twice is left out of routes for a while."""
        for peer in peers:
            self._lost[peer] += 1
            if self._lost[peer] >= _TWICE:
                del self._lost[peer]
                self.set_aside([peer], seconds)

    def enough_without(self, peers: Collection[PeerId]) -> bool:
        """Whether all blocks are served by others, none of them set aside."""
        return self._covers(self._without(set(peers) | self._left_out()))

    def replaceable(self, peers: Collection[PeerId]) -> bool:
        """Whether at least one of these, set aside or not, can be done without."""
        return any(self._covers(self._without((self._left_out() - set(peers)) | {peer})) for peer in peers)

    def forget(self) -> None:
        """Look again at the next call."""
        self._looked = None

    @property
    def clock_trouble(self) -> str:
        """What is wrong with this machine's clock, in a line; "" if nothing is known to be."""
        return self._host.clock.trouble()

    def _without(self, peers: Collection[PeerId]) -> list[CheckedRecord]:
        now = self._host.clock.earliest()
        return [one for one in self._records if one.record.expires > now and one.peer not in peers]

    def _now(self, book: dict[PeerId, float]) -> set[PeerId]:
        now = time.monotonic()
        for peer in [peer for peer, until in book.items() if until <= now]:
            del book[peer]
        return set(book)

    def _left_out(self) -> set[PeerId]:
        return self._now(self._liars) | self._now(self._aside)

    @property
    def _all_blocks(self) -> set[int]:
        return set(range(self._target.blocks))

    def _covers(self, records: list[CheckedRecord]) -> bool:
        return self._all_blocks <= _served(records)

    async def _registered(self, records: list[CheckedRecord]) -> list[CheckedRecord]:
        if self._chain is None or not records:
            return records
        hashes = await self._chain.peer_hashes(sorted({one.record.operator for one in records}))
        known = [one for one in records if hashes.get(one.record.operator) == peer_id_hash(one.peer)]
        if not known:
            raise SwarmError(
                f"None of the {len(records)} nodes of this model is registered",
                why="the registry on the chain does not hold their operators with these peer ids",
                next_step="their owners register them with `hivemint node register`",
            )
        return known


def _served(records: Iterable[CheckedRecord]) -> set[int]:
    return {block for one in records for block in one.record.blocks}
