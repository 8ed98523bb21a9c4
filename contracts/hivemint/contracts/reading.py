"""A thin typed wrapper over web3: connect, ask, and errors that people can read. `chain.Chain` sends, too."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from typing import Any, Self, TypeVar

from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address
from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.contract import AsyncContract
from web3.contract.async_contract import AsyncContractFunction
from web3.exceptions import (
    BadFunctionCallOutput,
    ContractLogicError,
    Web3Exception,
    Web3RPCError,
)
from web3.types import BlockIdentifier

from hivemint.contracts.artifacts import Artifact, explain_revert
from hivemint.contracts.rpc import Endpoints
from hivemint.contracts.transactions import (
    Reverted,
    revert_data,
    rpc_error,
)
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address

_T = TypeVar("_T")


class NotTheContract(ChainError):
    """An endpoint's answer that the contract, or the chain, would not have given."""


class ChainReader:
    """What is asked of a chain, behind one endpoint or several. Make a `chain.Chain` with `connect`."""

    def __init__(self, endpoints: Endpoints, chain_id: int) -> None:
        self.w3: AsyncWeb3[Any] = AsyncWeb3(endpoints)
        self.chain_id = chain_id
        self._endpoints = endpoints

    async def close(self) -> None:
        await self._endpoints.disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def shown(self) -> str:
        """The endpoints' schemes and hosts, for errors and people; the rest of a URL may be secret."""
        return self._endpoints.shown

    @cached_property
    def each(self) -> tuple[Self, ...]:
        """This chain through each endpoint alone, for what they must agree on. Health is shared; `close` only here."""
        all_of_them = self._endpoints.endpoints
        return (self,) if len(all_of_them) == 1 else tuple(self._over(self._endpoints.only(one)) for one in all_of_them)

    def _over(self, endpoints: Endpoints) -> Self:
        return type(self)(endpoints, self.chain_id)

    def contract(self, artifact: Artifact, address: Address) -> AsyncContract:
        """web3's own contract object; functions are `contract.functions.NAME(...)`."""
        return self.w3.eth.contract(address=to_checksum_address(address), abi=artifact.abi)

    async def block_number(self) -> int:
        async with self.explained("Reading the block number"):
            return await self.w3.eth.get_block_number()

    async def genesis(self) -> bytes:
        """The hash of the chain's first block: what tells two chains of one id apart."""
        return await self.block_hash(0)

    async def block_hash(self, number: int) -> bytes:
        """Raises ChainError, also if there is no such block."""
        async with self.explained("Reading a block"):
            return bytes((await self.w3.eth.get_block(number))["hash"])

    async def time(self, block: BlockIdentifier = "latest") -> int:
        """A block's time, in seconds since 1970. On a development chain it may run ahead of the clock."""
        async with self.explained("Reading a block"):
            return (await self.w3.eth.get_block(block))["timestamp"]

    async def balance(self, address: Address) -> int:
        """Of the chain's own coin, in wei: what pays for gas and stake."""
        async with self.explained("Reading a balance"):
            return await self.w3.eth.get_balance(to_checksum_address(address))

    async def code(self, address: Address, block: BlockIdentifier = "latest") -> bytes:
        """The code at an address; empty if no contract is there."""
        async with self.explained("Reading code"):
            return bytes(await self.w3.eth.get_code(to_checksum_address(address), block))

    async def nonce(self, address: Address, block: BlockIdentifier = "pending") -> int:
        """The number of the sender's next transaction."""
        async with self.explained("Reading a nonce"):
            return await self.w3.eth.get_transaction_count(to_checksum_address(address), block)

    async def call(self, function: AsyncContractFunction, *, doing: str, block: BlockIdentifier = "latest") -> Any:
        """Read from a contract. `doing` begins the error's sentence, e.g. "Reading the account"."""
        async with self.explained(doing):
            return await function.call(block_identifier=block)

    async def by_any(self, ask: Callable[[Self], Awaitable[_T]]) -> _T:
        """`ask` through the endpoints as one; where what came cannot be the contract's answer, through each alone.

        Raises the first one's ChainError.
        """
        try:
            return await ask(self)
        except (NotTheContract, Reverted) as error:
            first = error
        for chain in self.each if len(self.each) > 1 else ():
            with suppress(ChainError):
                return await ask(chain)
        raise first

    async def call_bytes(self, to: Address, data: bytes, *, doing: str, block: BlockIdentifier = "latest") -> bytes:
        """The same with arguments and result as the ABI encodes them."""
        async with self.explained(doing):
            return bytes(await self.w3.eth.call({"to": to_checksum_address(to), "data": HexBytes(data)}, block))

    def odd(self, doing: str, why: str) -> "NotTheContract":
        """The error for an answer that is well-formed and still can't be true."""
        return NotTheContract(
            f"{doing} failed",
            why=f"what came from {self.shown} is not what the contract returns: {why}",
            next_step="check the addresses in network.toml, and rpc_url",
        )

    @asynccontextmanager
    async def explained(self, doing: str) -> AsyncIterator[None]:
        """Turn what web3 raises into ChainError and Reverted."""
        try:
            yield
        except ContractLogicError as error:
            name, values, why = explain_revert(revert_data(error), error.message or "")
            raise Reverted(doing, name, values, why) from None
        except BadFunctionCallOutput:
            raise NotTheContract(
                f"{doing} failed",
                why=f"there is no such contract at the address, says {self.shown}",
                next_step="check the addresses in network.toml; a development chain forgets them on a restart",
            ) from None
        except Web3RPCError as error:
            raise rpc_error(doing, error) from None
        except (Web3Exception, ValueError, DecodingError) as error:
            raise NotTheContract(f"{doing} failed", why=f"{self.shown}: {type(error).__name__}: {error}") from None
