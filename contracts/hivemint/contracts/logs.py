"""Reading logs at endpoints that limit ranges, ask to wait, and lag.

A range that an endpoint refuses is halved, down to one block, and grows again. Completeness comes from two rules: the
newest blocks are asked by their hash (a backend that has not got a block can't answer for it), and for a range of
older ones the endpoint's own head must have passed its end, before and after.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from eth_utils.address import to_checksum_address
from web3.exceptions import Web3RPCError
from web3.types import FilterParams, LogReceipt

from hivemint.contracts.rpc import Throttled
from hivemint.contracts.transactions import rpc_error
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address

if TYPE_CHECKING:
    from hivemint.contracts.chain import Chain

_T = TypeVar("_T")
NEWEST = 32
"""Blocks before the head that are asked by hash: as far as backends of one address lag behind each other."""
_FIRST_STEP, _LONGEST_STEP = 10_000, 1_000_000
_WAITS = 6  # times that one range waits for an endpoint that asks for fewer requests
_AT_ONCE = 8
_DOING = "Reading events"
_TOO_MUCH_CODES = (-32005, -32012, -32600, -32602, -32614, 35)
_TOO_MUCH = (
    "range",
    "more than",
    "limit exceeded",
    "too many",
    "too large",
    "exceed",
    "response size",
    "timeout",
    "timed out",
    "up to a",
    "result window",
    "narrow",
)


async def read_logs(
    chain: "Chain",
    addresses: Sequence[Address],
    first: int,
    last: int | None = None,
    *,
    topics: Sequence[Any] = (),
) -> list[LogReceipt]:
    """All logs of these addresses in blocks `first` to `last` (None: the newest), both included, in order.

    Raises ChainError, also if no endpoint has all of these blocks.
    """
    wanted: FilterParams = {"address": [to_checksum_address(one) for one in addresses]}
    if topics:
        wanted["topics"] = list(topics)
    head = await _when_free(chain, chain.block_number)
    last = head if last is None else last
    old = min(last, head - NEWEST)
    found = await _in_ranges(chain, wanted, first, old)
    return found + await _by_hash(chain, wanted, max(first, old + 1), last)


async def logs_of_block(chain: "Chain", addresses: Sequence[Address], block_hash: bytes) -> list[LogReceipt]:
    """The logs of one block, in order. Raises ChainError, also if no endpoint knows the block."""
    wanted: FilterParams = {"address": [to_checksum_address(one) for one in addresses]}
    return await _patiently(chain, {**wanted, "blockHash": _hex(block_hash)})


async def _by_hash(chain: "Chain", wanted: FilterParams, first: int, last: int) -> list[LogReceipt]:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int) -> list[LogReceipt]:
        async with limit:
            block_hash = await _when_free(chain, lambda: chain.block_hash(number))
            return await _patiently(chain, {**wanted, "blockHash": _hex(block_hash)})

    return [log for logs in await asyncio.gather(*map(one, range(first, last + 1))) for log in logs]


async def _in_ranges(chain: "Chain", wanted: FilterParams, first: int, last: int) -> list[LogReceipt]:
    """By the first endpoint that has all of them; another one if it fails on the way."""
    trouble: ChainError | None = None
    for alone in chain.each if first <= last else ():
        try:
            return await _by_one(alone, wanted, first, last)
        except ChainError as error:
            trouble = error
    if trouble is not None:
        raise trouble
    return []


async def _by_one(chain: "Chain", wanted: FilterParams, first: int, last: int) -> list[LogReceipt]:
    found: list[LogReceipt] = []
    step = _FIRST_STEP
    await _must_have(chain, last)
    while first <= last:
        end = min(first + step - 1, last)
        try:
            found += await _patiently(chain, {**wanted, "fromBlock": first, "toBlock": end})
        except _TooMuchError as error:
            if end == first:
                raise error.refusal from None
            step = (end - first + 1) // 2
        else:
            first, step = end + 1, min(step * 2, _LONGEST_STEP)
    await _must_have(chain, last)
    return found


async def _must_have(chain: "Chain", last: int) -> None:
    head = await _when_free(chain, chain.block_number)
    if head < last:
        raise ChainError(f"{_DOING} failed", why=f"{chain.shown} is at block {head} only, asked was up to {last}")


class _TooMuchError(Exception):
    def __init__(self, refusal: ChainError) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


async def _patiently(chain: "Chain", wanted: FilterParams) -> list[LogReceipt]:
    """One query. Raises _TooMuchError if a smaller range may pass, ChainError."""

    async def query() -> list[LogReceipt]:
        async with chain.explained(_DOING):
            try:
                return await chain.w3.eth.get_logs(wanted)
            except Web3RPCError as error:
                if "blockHash" not in wanted and _is_too_much(error):
                    raise _TooMuchError(rpc_error(_DOING, error)) from None
                raise

    logs = await _when_free(chain, query)
    return sorted(logs, key=lambda log: (log["blockNumber"], log["logIndex"]))


async def _when_free(chain: "Chain", ask: Callable[[], Awaitable[_T]]) -> _T:
    """Ask; where the endpoint asks for fewer requests, wait as long as it says and ask again."""
    for _ in range(_WAITS):
        try:
            return await ask()
        except Throttled as error:
            await asyncio.sleep(error.retry_after)
    raise ChainError(f"{_DOING} failed", why=f"{chain.shown} asks for fewer requests, again and again")


def _hex(value: bytes) -> Any:
    return "0x" + bytes(value).hex()


def _is_too_much(error: Web3RPCError) -> bool:
    """A refusal of the range or of the number of results, as the common providers word it."""
    told = (error.rpc_response or {}).get("error")
    code = told.get("code") if isinstance(told, dict) else None
    return code in _TOO_MUCH_CODES or any(text in error.message.lower() for text in _TOO_MUCH)
