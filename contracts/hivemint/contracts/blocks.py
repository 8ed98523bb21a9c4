"""Block headers, as much of them as the ledger needs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # web3 comes in with whoever connects; a journal needs none of it
    from hivemint.contracts.chain import Chain


@dataclass(frozen=True, slots=True)
class Header:
    """One block: `time` in seconds since 1970."""

    number: int
    hash: bytes
    parent: bytes
    time: int


async def header(chain: "Chain", number: int | None = None) -> Header | None:
    """The block with this number, None for the newest; None if the chain has no such block. Raises ChainError."""
    from web3.exceptions import BlockNotFound

    async with chain.explained("Reading a block"):
        try:
            block = await chain.w3.eth.get_block("latest" if number is None else number)
        except BlockNotFound:
            return None
    return Header(block["number"], bytes(block["hash"]), bytes(block["parentHash"]), block["timestamp"])


async def newest(chain: "Chain") -> Header:
    """The newest block. Raises ChainError."""
    found = await header(chain)
    if found is None:
        from hivemint.protocol.errors import ChainError

        raise ChainError("The chain has no blocks", next_step="check rpc_url in network.toml")
    return found
