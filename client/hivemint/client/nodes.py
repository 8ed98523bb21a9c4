"""The nodes of one model as this client knows them: looked up, registered, and not set aside."""

import asyncio
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hivemint.client.wallet import ChainPort
from hivemint.contracts.errors import SwarmError
from hivemint.contracts.ids import ModelId, PeerId
from hivemint.contracts.signed import peer_id_hash
from hivemint.swarm.host import Host
from hivemint.swarm.records import CheckedRecord

LOOK_UP_GOOD = 3.0
"""Seconds that the directory's answer serves for further routes."""


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

    async def usable(self) -> list[CheckedRecord]:
        """Registered with the peer id that they show, and not set aside.

        A node that merely failed counts again where no route is left without it; one that lied does not.
        """
        async with self._look_up:
            if self._looked is None or time.monotonic() - self._looked > LOOK_UP_GOOD:
                found = await self._host.find(self._target.model_id, range(self._target.blocks))
                self._records, self._looked = await self._registered(found), time.monotonic()
        alive = self._without(self._now(self._liars))
        rested = self._without(self._now(self._liars) | self._now(self._aside))
        return rested if self._covers(rested) else alive

    def set_aside(self, peers: Iterable[PeerId], seconds: float, *, lied: bool = False) -> None:
        """Leave these out of routes for a while."""
        until = time.monotonic() + seconds
        for peer in peers:
            book = self._liars if lied else self._aside
            book[peer] = max(until, book.get(peer, 0.0))

    def enough_without(self, peers: Collection[PeerId]) -> bool:
        """Whether all blocks are served by others, none of them set aside."""
        return self._covers(self._without(set(peers) | self._now(self._liars) | self._now(self._aside)))

    def forget(self) -> None:
        """Look again at the next call."""
        self._looked = None

    def _without(self, peers: Collection[PeerId]) -> list[CheckedRecord]:
        now = time.time()
        return [one for one in self._records if one.record.expires > now and one.peer not in peers]

    def _now(self, book: dict[PeerId, float]) -> set[PeerId]:
        now = time.monotonic()
        for peer in [peer for peer, until in book.items() if until <= now]:
            del book[peer]
        return set(book)

    def _covers(self, records: list[CheckedRecord]) -> bool:
        blocks = self._target.blocks
        return len({block for one in records for block in one.record.blocks if block < blocks}) == blocks

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
