"""What an L2 takes for putting a transaction's data on its L1, beside the gas. Nothing elsewhere.

Estimates: for the judgement whether a transaction is worth it, and for the day's budget.
"""

from typing import TYPE_CHECKING

from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address
from hivemint.protocol.keccak import keccak

if TYPE_CHECKING:
    from hivemint.contracts.chain import Chain

_OPTIMISM = Address("0x420000000000000000000000000000000000000F")  # GasPriceOracle, a predeploy of every OP chain
_ARBITRUM_SYSTEM = Address("0x0000000000000000000000000000000000000064")  # has code on every Arbitrum chain
_ARBITRUM = Address("0x00000000000000000000000000000000000000C8")  # NodeInterface: no code, answers calls all the same


async def fee_beside_gas(chain: "Chain", data: bytes) -> int:
    """Wei that are taken beside gas times price: what the OP stack does. 0 where the chain does not say."""
    if not await chain.code(_OPTIMISM):
        return 0
    return await _number(chain, _OPTIMISM, keccak(b"getL1Fee(bytes)")[:4] + _word(32) + _tail(data))


async def gas_for_data(chain: "Chain", to: Address, data: bytes) -> int:
    """Gas for the data that an estimate by calldata and code leaves out: Arbitrum counts its L1 fee as gas."""
    if not await chain.code(_ARBITRUM_SYSTEM):
        return 0
    call = keccak(b"gasEstimateL1Component(address,bool,bytes)")[:4]
    call += bytes.fromhex(to[2:]).rjust(32, b"\0") + _word(0) + _word(96) + _tail(data)
    return await _number(chain, _ARBITRUM, call)


async def _number(chain: "Chain", to: Address, call: bytes) -> int:
    """The first word of what a view answers, at most 2^96; 0 if it has none."""
    try:
        answer = await chain.call_bytes(to, call, doing="Reading the fee for data")
    except ChainError:
        return 0
    return min(int.from_bytes(answer[:32], "big"), 2**96)


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _tail(data: bytes) -> bytes:
    return _word(len(data)) + data.ljust(-(-len(data) // 32) * 32, b"\0")
