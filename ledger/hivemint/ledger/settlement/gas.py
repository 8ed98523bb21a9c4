"""What a settlement costs now: gas, and the fee for its data where an L2 takes one.

An estimate, for the judgement whether a settlement is worth it; what may really be spent is bounded by the chain's
`FeeCeiling` and `DailyBudget`.
"""

from typing import TYPE_CHECKING

from hivemint.protocol.ids import Address
from hivemint.protocol.keccak import keccak

if TYPE_CHECKING:
    from hivemint.contracts.chain import Chain

FIRST_ITEM, NEXT_ITEM = 90_000, 27_000
"""Gas bounds of one settled item alone, and of each further one; measured by benchmarks/gas.py."""
_HEAD_BYTES, _ITEM_BYTES = 250, 320


async def settlement_cost(chain: "Chain", settlement: Address, items: int) -> int:
    """Wei of the chain's coin for settling `items` vouchers in one transaction. Raises ChainError."""
    from hivemint.contracts.data_fee import fee_beside_gas, gas_for_data

    async with chain.explained("Reading the gas price"):
        price = await chain.fees.price(chain.w3)
    data = _sample(items)
    gas = FIRST_ITEM + NEXT_ITEM * (items - 1) + await gas_for_data(chain, settlement, data)
    return gas * price + await fee_beside_gas(chain, data)


def _sample(items: int) -> bytes:
    """As many bytes as a settlement has, that compress as little."""
    size = _HEAD_BYTES + _ITEM_BYTES * items
    return b"".join(keccak(number.to_bytes(4, "big")) for number in range(-(-size // 32)))[:size]
