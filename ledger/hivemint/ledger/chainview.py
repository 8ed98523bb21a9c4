"""What a node's admission asks of the chain, answered from memory: one poll of all watched accounts a block.

An account counts with the lower of its values at the newest and at the last confirmed block, so deposits count late
and thaws at once (`protocol.md`, section 1). A second RPC address, if the network names one, lowers it further.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from hivemint.contracts.ids import Address, Credits
from hivemint.ledger.blocks import newest

if TYPE_CHECKING:
    from hivemint.contracts import bindings

OWN_KEY = 2**64 - 1
"""`key` of a client that signs with its wallet's own key: no record, no time limit."""
_FRESH = 0.5  # seconds; far below any block time, and it bounds the calls a flood of handshakes can cause
_WATCHED, _WATCH = 10_000, 60.0
"""Accounts that are read with each block: so many at most, and none that nobody has asked for in so many seconds."""
_AT_ONCE = 500  # pairs a call
_NOTHING = Credits(0)


@dataclass(frozen=True, slots=True)
class AccountView:
    """A client's account at this node, in wei. `funded` = balance + collected, 0 while thawing."""

    funded: Credits
    thawing: bool
    collected: Credits = _NOTHING


class ChainView(Protocol):
    """What admission asks. Every method raises ChainError if the chain cannot be asked."""

    async def account(self, client: Address) -> AccountView: ...

    async def key(self, client: Address, key: Address) -> int:
        """Until when the key may sign for the client, seconds since 1970; 0 if it is unknown."""
        ...

    async def time(self) -> int:
        """The newest block's time, seconds since 1970."""
        ...

    async def registered(self, node: Address) -> bytes | None:
        """The peer id hash of a node that may serve; None if it is not registered or its key is retired."""
        ...


@dataclass(frozen=True, slots=True)
class _Known:
    account: AccountView
    valid_until: int
    wanted_at: float


_Pair = tuple[Address, Address]


class ContractView:
    """`ChainView` over the contracts, for the node `node`. Use it from one event loop."""

    def __init__(
        self,
        contracts: "bindings.Bindings",
        node: Address,
        confirmations: int,
        *,
        second: "bindings.Bindings | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._all = [contracts] if second is None else [contracts, second]
        self._node, self._confirmations, self._clock = node, confirmations, clock
        self._known: dict[_Pair, _Known] = {}  # in the order of last use
        self._nodes: dict[Address, bytes | None] = {}
        self._block = (-1, 0)  # number, time
        self._asked_at = float("-inf")
        self._lock = asyncio.Lock()

    async def account(self, client: Address) -> AccountView:
        return (await self._pair(client, client)).account

    async def key(self, client: Address, key: Address) -> int:
        return OWN_KEY if key == client else (await self._pair(client, key)).valid_until

    async def time(self) -> int:
        await self._poll()
        return self._block[1]

    async def registered(self, node: Address) -> bytes | None:
        await self._poll()
        if node not in self._nodes:
            found = await self._all[0].registry.node(node)
            self._nodes[node] = None if found is None or found.retired else found.peer_id_hash
        return self._nodes[node]

    async def _pair(self, client: Address, key: Address) -> _Known:
        pair = (client, key)
        await self._poll()
        if pair not in self._known:
            async with self._lock:
                await self._read([pair], self._block[0])
        known = self._known[pair] = replace(self._known.pop(pair), wanted_at=self._clock())
        return known

    async def _poll(self) -> None:
        """Read all watched accounts again if there is a new block."""
        if self._clock() - self._asked_at < _FRESH:
            return
        async with self._lock:
            if self._clock() - self._asked_at < _FRESH:  # another task was first
                return
            head = await newest(self._all[0].chain)
            if head.number != self._block[0] or head.time != self._block[1]:
                self._nodes.clear()
                since = self._clock() - _WATCH
                watched = [pair for pair, known in self._known.items() if known.wanted_at >= since][-_WATCHED:]
                self._known = {pair: self._known[pair] for pair in watched}
                for first in range(0, len(watched), _AT_ONCE):
                    await self._read(watched[first : first + _AT_ONCE], head.number)
                self._block = (head.number, head.time)
            self._asked_at = self._clock()

    async def _read(self, pairs: Sequence[_Pair], block: int) -> None:
        first, *second = self._all
        asked = [(first, at) for at in {block, max(0, block - self._confirmations)}]
        # The second chain node may be a block behind: its own newest will do.
        asks = [view.settlement.accounts(self._node, pairs, block=at) for view, at in asked]
        asks += [view.settlement.accounts(self._node, pairs) for view in second]
        answers = await asyncio.gather(*asks)
        for number, pair in enumerate(pairs):
            found = [answer[number] for answer in answers]
            account = AccountView(
                funded=Credits(min(one.funded for one in found)),
                thawing=any(one.thaw_end for one in found),
                collected=Credits(max(one.collected for one in found)),
            )
            wanted_at = self._known[pair].wanted_at if pair in self._known else self._clock()
            self._known[pair] = _Known(account, min(one.key_valid_until for one in found), wanted_at)
