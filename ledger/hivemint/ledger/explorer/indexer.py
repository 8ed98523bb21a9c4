"""Follows the contracts' events into SQL tables, through restarts and reorganisations of the chain.

Promise P12: after a reorganisation of any depth the tables equal a fresh replay. A chain may switch branches without
saying so, so every step compares the hash of the last indexed block with the chain's. On a difference it goes back to
the last block that both know, drops all later events, and folds the rest again; that is local work, and rare.

An endpoint that lags may answer with no events where there are some. So the newest blocks are asked by their hash,
older ones at an endpoint whose own head has passed them, and now and then the sums are compared with what the token
contract says: if they differ, the index is built anew.
"""

import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import Connection, Engine, delete, func, select

from hivemint.contracts.blocks import Header, header, newest
from hivemint.ledger.explorer.fold import Fold, to_json
from hivemint.ledger.store.database import open_store, reading, upsert, writing
from hivemint.ledger.store.tables import balances, blocks, chains, events
from hivemint.protocol.errors import ChainError
from hivemint.protocol.network import Network

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings, Event

log = structlog.get_logger(__name__)

_STEP = 1000  # blocks a transaction of the database
_NEWEST = 32  # blocks before the head that are asked by their hash
_KEEP = 256  # newest blocks whose hashes are kept even without events: reorganisations are found this far back cheaply
_REPLAY = 5000  # events a read, when folding anew
_TRIES = 3  # a query during which the chain switched branches is asked again
_HEADERS_AT_ONCE = 16
_COMPARE_EVERY, _REBUILD_EVERY = 60.0, 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class Progress:
    """The last indexed block, and how far the chain was when last asked."""

    indexed: int
    head: int


class Indexer:
    """The index of one network in one database. One process may write it; any number may read it."""

    def __init__(self, engine: Engine, contracts: "Bindings", network: Network, epoch: int) -> None:
        self.engine, self.epoch = engine, epoch
        self.progress = Progress(network.deployed_block - 1, network.deployed_block - 1)
        self.trouble = ""
        self.differs = ""
        """What the sums of the index and the token contract disagree on; empty if they agree."""
        self._compared_at = self._rebuilt_at = float("-inf")
        self._contracts, self._network = contracts, network
        with writing(engine) as connection:
            self.chain = _chain_id(connection, network)
            if (last := self._last(connection)) is not None:
                self.progress = Progress(last.number, last.number)

    @classmethod
    async def open(cls, url: str, contracts: "Bindings", network: Network) -> "Indexer":
        """Open or create the database and go on where it stands. Raises StoreError, ConfigError, ChainError."""
        epoch = await contracts.emission.epoch_seconds()
        engine = await asyncio.to_thread(open_store, url, durable=False)
        return cls(engine, contracts, network, epoch)

    async def run(self, poll: float = 1.0) -> None:
        """Follow until cancelled. While the chain can't be asked, `trouble` says why, and it goes on trying."""
        pause = poll
        while True:
            try:
                await self.follow()
                pause, self.trouble = poll, ""
            except ChainError as error:
                if str(error) != self.trouble:
                    log.warning("the index waits for the chain", reason=str(error))
                pause, self.trouble = min(pause * 2, 30.0), str(error)
            await asyncio.sleep(pause)

    async def follow(self) -> Progress:
        """Index everything up to the newest block. Raises ChainError."""
        for _ in range(_TRIES):
            head = await newest(self._contracts.chain)
            await self._unwind(head)
            if await self._catch_up(head):
                if time.monotonic() - self._compared_at > _COMPARE_EVERY:
                    await self._compare(head)
                return self.progress
        raise ChainError(
            "The index can't go on",
            why=f"the chain contradicted itself {_TRIES} times: it switches branches, or its endpoint lags",
        )

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.dispose)

    async def _unwind(self, head: Header) -> None:
        """Go back to the last indexed block that is still on the chain."""
        known = await asyncio.to_thread(self._known_blocks)
        for number, hash_ in known:
            found = head if number == head.number else None
            if number < head.number:
                direct = number == head.number - 1 and any(head.parent)
                found = Header(number, head.parent, b"", 0) if direct else await header(self._contracts.chain, number)
            if found is not None and found.hash == hash_:
                if number != known[0][0]:
                    await asyncio.to_thread(self._rewind, number)
                return
        if known:
            await asyncio.to_thread(self._rewind, self._network.deployed_block - 1)

    async def _catch_up(self, head: Header) -> bool:
        """Index in steps. False if the chain switched branches meanwhile."""
        while (first := self.progress.indexed + 1) <= head.number:
            old = head.number - _NEWEST
            if first <= old:
                done = await self._index_range(first, min(first + _STEP - 1, old), head)
            else:
                done = await self._index_newest(first, head)
            if not done:
                return False
        return True

    async def _index_range(self, first: int, last: int, head: Header) -> bool:
        end = await header(self._contracts.chain, last)
        found = await self._contracts.events(first, last)
        begin, again = await header(self._contracts.chain, first), await header(self._contracts.chain, last)
        if begin is None or end is None or again is None or end.hash != again.hash:
            return False
        if not await asyncio.to_thread(self._continues, begin):
            return False
        times = await self._times({event.block for event in found} - {last}) | {last: end.time}
        await asyncio.to_thread(self._store, found, times, end)
        self.progress = Progress(last, head.number)
        return True

    async def _index_newest(self, first: int, head: Header) -> bool:
        """Block by block, by their hashes: a backend without a block can't say that it is empty."""
        numbers = range(first, head.number)
        limit = asyncio.Semaphore(_HEADERS_AT_ONCE)

        async def one(number: int) -> Header | None:
            async with limit:
                return await header(self._contracts.chain, number)

        async def events_of(block: Header) -> "list[Event]":
            async with limit:
                return await self._contracts.events_of(block.hash)

        found = [*await asyncio.gather(*map(one, numbers)), head]
        known = [block for block in found if block is not None]
        linked = all(_follows(after, block.hash) for block, after in pairwise(known))
        if len(known) != len(found) or not linked or not await asyncio.to_thread(self._continues, known[0]):
            return False
        try:
            listed = await asyncio.gather(*map(events_of, known))
        except ChainError:
            again = await header(self._contracts.chain, head.number)
            if again is not None and again.hash == head.hash:
                raise
            return False  # another branch: these blocks are not there any more
        events = [event for some in listed for event in some]
        await asyncio.to_thread(self._store, events, {block.number: block.time for block in known}, head)
        self.progress = Progress(head.number, head.number)
        return True

    async def _compare(self, head: Header) -> None:
        """Do the sums of the index agree with the token contract's? If not, events are missing: build it anew."""
        token, settlement = self._contracts.token, self._network.contracts.settlement
        self._compared_at = time.monotonic()
        told = (await token.supply(head.number), await token.balance(settlement, head.number))
        again = await header(self._contracts.chain, head.number)
        if again is None or again.hash != head.hash:
            return
        found = await asyncio.to_thread(self._sums)
        self.differs = "" if found == told else f"supply and escrow are {found} in the index, {told} on the chain"
        if self.differs and self._compared_at - self._rebuilt_at > _REBUILD_EVERY:
            log.warning("the index lacks events and is built anew", differs=self.differs)
            self._rebuilt_at, self._compared_at = self._compared_at, float("-inf")
            await asyncio.to_thread(self._rewind, self._network.deployed_block - 1)

    async def _times(self, numbers: Iterable[int]) -> dict[int, int]:
        """Block number -> its time."""
        limit = asyncio.Semaphore(_HEADERS_AT_ONCE)

        async def one(number: int) -> tuple[int, int]:
            async with limit:
                found = await header(self._contracts.chain, number)
            if found is None:
                raise ChainError(f"The chain has lost its block {number}", why="it is switching branches")
            return number, found.time

        return dict(await asyncio.gather(*(one(number) for number in numbers)))

    # The database's side: each runs in a thread, in one transaction.

    def _known_blocks(self) -> list[tuple[int, bytes]]:
        wanted = select(blocks.c.number, blocks.c.hash).where(blocks.c.chain == self.chain)
        with reading(self.engine) as connection:
            rows = connection.execute(wanted.order_by(blocks.c.number.desc()))
            return [(row.number, bytes(row.hash)) for row in rows.fetchmany(2 * _KEEP)]

    def _continues(self, first: Header) -> bool:
        """Whether this block follows the last indexed one: else the chain switched branches below it meanwhile."""
        with reading(self.engine) as connection:
            last = self._last(connection)
        return last is None or last.number != first.number - 1 or _follows(first, last.hash)

    def _sums(self) -> tuple[int, int]:
        """All credits, and those of `Settlement`, as the events tell it."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(balances).where(balances.c.chain == self.chain)).all()
        held = (row.amount for row in rows if row.holder == self._network.contracts.settlement)
        return sum(row.amount for row in rows), sum(held)

    def _store(self, found: "list[Event]", times: dict[int, int], end: Header) -> None:
        seen = {event.block: event.block_hash for event in found} | {end.number: end.hash}
        rows = [self._event_row(event, times[event.block]) for event in found]
        with writing(self.engine) as connection:
            passed = [{"chain": self.chain, "number": n, "hash": hash_, "time": times[n]} for n, hash_ in seen.items()]
            connection.execute(upsert(self.engine, blocks), passed)
            if rows:
                connection.execute(upsert(self.engine, events), rows)
                fold = Fold(self.engine, connection, self.chain, self.epoch)
                for row in rows:
                    fold.apply(row["contract"], row["name"], json.loads(row["arguments"]), row["time"])
                fold.flush()
            self._forget_empty(connection, end.number - _KEEP)

    def _event_row(self, event: "Event", when: int) -> dict[str, Any]:
        return {
            "chain": self.chain,
            "block": event.block,
            "position": event.index,
            "transaction": event.transaction,
            "time": when,
            "contract": event.contract,
            "name": event.name,
            "node": event.values.get("node"),
            "client": event.values.get("client"),
            "arguments": to_json(event.values),
        }

    def _forget_empty(self, connection: Connection, before: int) -> None:
        with_events = select(events.c.block).where(events.c.chain == self.chain, events.c.block == blocks.c.number)
        old = delete(blocks).where(blocks.c.chain == self.chain, blocks.c.number < before)
        connection.execute(old.where(~with_events.exists()))

    def _rewind(self, last: int) -> None:
        """Drop everything after block `last` and fold what is left."""
        log.warning("the chain has switched branches", back_to=last, from_block=self.progress.indexed)
        with writing(self.engine) as connection:
            connection.execute(delete(events).where(events.c.chain == self.chain, events.c.block > last))
            connection.execute(delete(blocks).where(blocks.c.chain == self.chain, blocks.c.number > last))
            self._fold_anew(connection)
        self.progress = Progress(last, self.progress.head)

    def _fold_anew(self, connection: Connection) -> None:
        fold = Fold(self.engine, connection, self.chain, self.epoch)
        fold.clear()
        wanted = select(events).where(events.c.chain == self.chain).order_by(events.c.block, events.c.position)
        for number, row in enumerate(connection.execute(wanted.execution_options(yield_per=_REPLAY)), 1):
            fold.apply(row.contract, row.name, json.loads(row.arguments), row.time)
            if number % _REPLAY == 0:
                fold.flush()
        fold.flush()

    def _last(self, connection: Connection) -> Header | None:
        newest_number = select(func.max(blocks.c.number)).where(blocks.c.chain == self.chain).scalar_subquery()
        wanted = select(blocks).where(blocks.c.chain == self.chain, blocks.c.number == newest_number)
        row = connection.execute(wanted).first()
        return Header(row.number, bytes(row.hash), b"", row.time) if row else None


def _follows(block: Header, before: bytes) -> bool:
    """Blocks that Hardhat mines many at once name no parent."""
    return block.parent == before or not any(block.parent)


def _chain_id(connection: Connection, network: Network) -> int:
    key = {"chain_id": network.chain_id, "settlement": network.contracts.settlement}
    found = connection.scalar(select(chains.c.id).filter_by(**key))
    if found is not None:
        return int(found)
    inserted = connection.execute(chains.insert().values(**key)).inserted_primary_key
    return int(inserted[0]) if inserted else 0
