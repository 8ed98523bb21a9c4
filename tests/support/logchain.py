"""A chain of blocks with events, in memory, as far as the indexer asks one: it can switch branches at any depth."""

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from web3.exceptions import BlockNotFound

from hivemint.contracts.bindings import Event
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address
from hivemint.protocol.network import Contracts, Network

EPOCH = 100
_CONTRACT = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
NETWORK = Network("reference", 31337, "http://127.0.0.1:1", Contracts(*[_CONTRACT] * 6), deployed_block=1)


@dataclass
class _Block:
    hash: bytes
    parent: bytes
    time: int
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)


class LogChain:
    """Stands for `Bindings` and its `Chain` in one."""

    def __init__(self) -> None:
        self.blocks = [_Block(bytes(32), bytes(32), 1000)]
        self._branch = 0
        self.emission = self
        self.token = self
        self.chain = self
        self.w3 = SimpleNamespace(eth=self)
        self.asked = 0

    def mine(self, *events: tuple[str, str, dict[str, Any]]) -> None:
        """One more block with these events: (contract, name, arguments)."""
        parent = self.blocks[-1]
        seed = parent.hash + self._branch.to_bytes(4, "big") + repr(events).encode()
        block_hash = hashlib.sha256(seed).digest()
        self.blocks.append(_Block(block_hash, parent.hash, parent.time + 30, list(events)))

    def switch(self, depth: int) -> None:
        """Another branch, from `depth` blocks before the newest."""
        self._branch += 1
        del self.blocks[max(1, len(self.blocks) - depth) :]

    async def epoch_seconds(self) -> int:
        return EPOCH

    @asynccontextmanager
    async def explained(self, doing: str) -> AsyncIterator[None]:
        yield

    async def get_block(self, number: int | str) -> dict[str, Any]:
        self.asked += 1
        at = len(self.blocks) - 1 if isinstance(number, str) else number
        if at >= len(self.blocks):
            raise BlockNotFound(f"no block {at}")
        block = self.blocks[at]
        return {"number": at, "hash": block.hash, "parentHash": block.parent, "timestamp": block.time}

    async def events(self, first: int, last: int) -> list[Event]:
        return [event for number in range(first, min(last + 1, len(self.blocks))) for event in self._events(number)]

    async def events_of(self, block_hash: bytes) -> list[Event]:
        for number, block in enumerate(self.blocks):
            if block.hash == block_hash:
                return self._events(number)
        raise ChainError("unknown block")

    def _events(self, number: int) -> list[Event]:
        block = self.blocks[number]
        return [
            Event(contract, name, values, number, block.hash, block.hash[::-1], index)
            for index, (contract, name, values) in enumerate(block.events)
        ]

    # What the token contract says, by the same events.

    async def supply(self, block: int) -> int:
        return sum(amount for holder, amount in self._balances(block).items() if int(holder, 16))

    async def balance(self, holder: str, block: int) -> int:
        return self._balances(block).get(holder, 0)

    def _balances(self, block: int) -> dict[str, int]:
        held: dict[str, int] = defaultdict(int)
        for _, name, values in (event for one in self.blocks[: block + 1] for event in one.events):
            if name == "Transfer":
                held[values["from"]] -= values["value"]
                held[values["to"]] += values["value"]
        return held
