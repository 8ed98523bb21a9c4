"""What a node's admission asks of the chain, answered from memory: one poll of all watched accounts a block.

An account counts with the lower of its values at the newest and at the last confirmed block, so deposits count late
and thaws at once (`docs/protocol.md`, section 1). Of several endpoints each is asked, and the most cautious answer
counts: the lowest `funded`, a thaw if any of them knows one, the earliest end of a key, the earliest time where
something must be over. What was collected counts at the confirmed block only, the lowest of what they say. An endpoint
that can't be asked is left out, as long as one answers.

Nobody waits longer than WAIT for a chain that is away; while it is known to be, nobody waits at all.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hivemint.contracts.blocks import Header, newest
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address, Credits

if TYPE_CHECKING:
    from hivemint.contracts import bindings

OWN_KEY = 2**64 - 1
"""`key` of a client that signs with its wallet's own key: no record, no time limit."""
_FRESH = 0.5  # seconds; far below any block time, and it bounds the calls a flood of handshakes can cause
_WATCHED, _WATCH = 10_000, 10.0
"""Accounts that are read with each block: so many at most, and none that nobody has asked for in so many seconds. Those
of open sessions are asked for each second.
"""
WAIT = 2.0
"""Seconds that an answer is waited for."""
_AT_ONCE = 500  # pairs a call
_NOTHING = Credits(0)
_OVER = 1  # a time that is over: a key that was revoked before it was ever set has no other


@dataclass(frozen=True, slots=True)
class SeenAccount:
    """A client's account at this node, in wei. `funded` = balance + collected, 0 while thawing."""

    funded: Credits
    thawing: bool
    collected: Credits = _NOTHING


@dataclass(frozen=True, slots=True)
class _Known:
    account: SeenAccount
    valid_until: int
    wanted_at: float


_Pair = tuple[Address, Address]


class ContractView:
    """What the chain says of the accounts at `node`: asked of each endpoint, the most cautious answer counts.

    Use it from one event loop. Every method raises ChainError if the chain cannot be asked.
    """

    def __init__(
        self,
        contracts: "bindings.Bindings",
        node: Address,
        confirmations: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._contracts, self._each = contracts, contracts.each()
        self._node, self._confirmations, self._clock = node, confirmations, clock
        self._known: dict[_Pair, _Known] = {}  # in the order of last use
        self._block = (-1, 0)  # number, time
        self._earliest = 0
        self._lock = asyncio.Lock()
        self._polling: asyncio.Task[None] | None = None
        self._polling_since = float("-inf")

    async def account(self, client: Address) -> SeenAccount:
        return (await self._pair(client, client)).account

    async def key(self, client: Address, key: Address) -> int:
        """Until when the key may sign for the client, seconds since 1970: long over for one that was revoked before it
        was ever set; 0 if it is unknown."""
        return OWN_KEY if key == client else (await self._pair(client, key)).valid_until

    async def time(self) -> int:
        """The newest block's time, seconds since 1970."""
        await self._poll()
        return self._block[1]

    async def earliest(self) -> int:
        """The same, the earliest that any endpoint says: for what must be over before something is risked."""
        await self._poll()
        return self._earliest

    async def _pair(self, client: Address, key: Address) -> _Known:
        pair = (client, key)
        await self._poll()
        if pair not in self._known:
            try:
                async with asyncio.timeout(WAIT), self._lock:
                    await self._read([pair])
            except TimeoutError:
                raise _away() from None
        known = self._known[pair] = replace(self._known.pop(pair), wanted_at=self._clock())
        return known

    async def _poll(self) -> None:
        """Read all watched accounts again if there is a new block. One look serves all who ask meanwhile.

        Raises ChainError: at once while a look fails or is waited for in vain.
        """
        polling = self._polling
        if polling is None or (polling.done() and self._clock() - self._polling_since >= _FRESH):
            self._polling = polling = asyncio.create_task(self._look(), name="chain")
            polling.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # if nobody waits any more
            self._polling_since = self._clock()
        if not polling.done():
            left = max(0.0, self._polling_since + WAIT - self._clock())
            await asyncio.wait({polling}, timeout=left)
        if not polling.done():
            raise _away()
        polling.result()

    async def _look(self) -> None:
        try:
            async with self._lock:
                await self._renew()
        finally:
            self._polling_since = self._clock()

    async def _renew(self) -> None:
        head = await newest(self._contracts.chain)
        if head.number == self._block[0] and head.time == self._block[1]:
            return
        since = self._clock() - _WATCH
        watched = [pair for pair, known in self._known.items() if known.wanted_at >= since][-_WATCHED:]
        self._known = {pair: self._known[pair] for pair in watched}
        for first in range(0, len(watched), _AT_ONCE):
            await self._read(watched[first : first + _AT_ONCE], head.number)
        self._earliest = await self._earliest_time(head)
        self._block = (head.number, head.time)

    async def _earliest_time(self, head: Header) -> int:
        if len(self._each) == 1:
            return head.time
        heads = await asyncio.gather(*(newest(one.chain) for one in self._each), return_exceptions=True)
        for one in heads:
            if isinstance(one, BaseException) and not isinstance(one, ChainError):
                raise one
        return min([head.time, *(one.time for one in heads if isinstance(one, Header))])

    async def _read(self, pairs: Sequence[_Pair], head: int | None = None) -> None:
        head = head if len(self._each) == 1 else None  # each endpoint has its own
        answers = await each_account(self._each, self._node, pairs, self._confirmations, head)
        for number, pair in enumerate(pairs):
            found = [(new[number], sure[number]) for new, sure in answers]
            both = [view for views in found for view in views]
            account = SeenAccount(
                funded=Credits(min(one.funded for one in both)),
                thawing=any(one.thaw_end for one in both),
                collected=Credits(min(sure.collected for _, sure in found)),
            )
            wanted_at = self._known[pair].wanted_at if pair in self._known else self._clock()
            until = _OVER if any(one.key_revoked for one in both) else min(one.key_valid_until for one in both)
            self._known[pair] = _Known(account, until, wanted_at)


def _away() -> ChainError:
    return ChainError("The chain does not answer", why=f"not within {WAIT:.0f} s", next_step="try again later")


Accounts = list["bindings.AccountView"]


async def each_account(
    each: Sequence["bindings.Bindings"],
    node: Address,
    pairs: Sequence[_Pair],
    confirmations: int,
    newest_block: int | None = None,
) -> list[tuple[Accounts, Accounts]]:
    """What each endpoint that answers says of the accounts, at its newest and at its last confirmed block.

    `newest_block`: where it is known already. Raises ChainError if none answers. An endpoint that fails half-way is
    left out as a whole.
    """

    async def one(contracts: "bindings.Bindings") -> tuple[Accounts, Accounts]:
        head = await contracts.chain.block_number() if newest_block is None else newest_block
        at = [head, max(0, head - confirmations)]
        new, sure = await asyncio.gather(*(contracts.settlement.accounts(node, pairs, block=block) for block in at))
        return new, sure

    answers = await asyncio.gather(*(one(contracts) for contracts in each), return_exceptions=True)
    found = [answer for answer in answers if isinstance(answer, tuple)]
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in failed:
        if not isinstance(error, ChainError) or not found:
            raise error
    return found
