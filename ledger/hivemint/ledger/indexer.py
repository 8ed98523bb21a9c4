"""Follows the contracts' events into SQL tables, through restarts and reorganisations of the chain.

Promise P12: after a reorganisation of any depth the tables equal a fresh replay. A chain may switch branches without
saying so, so every step compares the hash of the last indexed block with the chain's. On a difference it goes back to
the last block that both know, drops all later events, and folds the rest again; that is local work, and rare.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import Connection, Engine, delete, func, select

from hivemint.contracts.errors import ChainError
from hivemint.contracts.network import Network
from hivemint.ledger.blocks import Header, header, newest
from hivemint.ledger.fold import Fold, to_json
from hivemint.ledger.store import open_store, reading, upsert, writing
from hivemint.ledger.tables import blocks, chains, events

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings, Event

log = structlog.get_logger(__name__)

_STEP = 1000  # blocks a log query
_KEEP = 256  # newest blocks whose hashes are kept even without events: reorganisations are found this far back cheaply
_REPLAY = 5000  # events a read, when folding anew
_TRIES = 3  # a query during which the chain switched branches is asked again
_HEADERS_AT_ONCE = 16


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
                break
        return self.progress

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.dispose)

    async def _unwind(self, head: Header) -> None:
        """Go back to the last indexed block that is still on the chain."""
        known = await asyncio.to_thread(self._known_blocks)
        for number, hash_ in known:
            found = head if number == head.number else None
            if number < head.number:
                direct = number == head.number - 1
                found = Header(number, head.parent, b"", 0) if direct else await header(self._contracts.chain, number)
            if found is not None and found.hash == hash_:
                if number != known[0][0]:
                    await asyncio.to_thread(self._rewind, number)
                return
        if known:
            await asyncio.to_thread(self._rewind, self._network.deployed_block - 1)

    async def _catch_up(self, head: Header) -> bool:
        """Index in steps. False if the chain switched branches meanwhile."""
        first = self.progress.indexed + 1
        while first <= head.number:
            last = min(first + _STEP - 1, head.number)
            end = head if last == head.number else await header(self._contracts.chain, last)
            found = await self._contracts.events(first, last)
            again = await header(self._contracts.chain, last)
            if end is None or again is None or end.hash != again.hash:
                return False
            times = await self._times({event.block for event in found} - {last}) | {last: end.time}
            await asyncio.to_thread(self._store, found, times, end)
            self.progress = Progress(last, head.number)
            first = last + 1
        return True

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

    def _event_row(self, event: "Event", time: int) -> dict[str, Any]:
        return {
            "chain": self.chain,
            "block": event.block,
            "position": event.index,
            "transaction": event.transaction,
            "time": time,
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


def _chain_id(connection: Connection, network: Network) -> int:
    key = {"chain_id": network.chain_id, "settlement": network.contracts.settlement}
    found = connection.scalar(select(chains.c.id).filter_by(**key))
    if found is not None:
        return int(found)
    inserted = connection.execute(chains.insert().values(**key)).inserted_primary_key
    return int(inserted[0]) if inserted else 0
