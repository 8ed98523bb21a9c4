"""A thin typed wrapper over web3's async HTTP provider: connect, read, send, and errors that people can read.

Importing this module imports web3; a process that needs no chain does not import it.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

import stamina
from aiohttp import ClientError, ClientTimeout
from eth_account import Account
from eth_typing import Hash32
from eth_utils.address import to_checksum_address
from hexbytes import HexBytes
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.contract import AsyncContract
from web3.contract.async_contract import AsyncContractFunction
from web3.exceptions import (
    BadFunctionCallOutput,
    ContractLogicError,
    TimeExhausted,
    TransactionNotFound,
    Web3Exception,
    Web3RPCError,
)
from web3.middleware import ExtraDataToPOAMiddleware
from web3.providers.rpc.utils import ExceptionRetryConfiguration
from web3.types import BlockIdentifier, RPCEndpoint, TxParams, TxReceipt, Wei

from hivemint.contracts.artifacts import Artifact, explain_revert
from hivemint.contracts.errors import ChainError
from hivemint.contracts.ids import Address
from hivemint.contracts.signature import Signer

GAS_MARGIN = 1.25
"""Over the estimate: what other transactions do to the state before this one is mined."""
REPLACE_FACTOR = 1.25
"""By how much the fees of a replacement must rise; nodes ask for at least 10 %."""
_NONCE_ATTEMPTS = 10
_NONCE_TROUBLE = (
    "nonce too low",
    "nonce has already been used",
    "replacement transaction underpriced",
)


class Reverted(ChainError):
    """A contract refused. `error` is the name of its custom error ("" if it named none), `values` its arguments."""

    def __init__(self, doing: str, error: str, values: dict[str, Any], why: str) -> None:
        super().__init__(f"{doing} was refused by the contract", why=why)
        self.error, self.values = error, values


class Buildable(Protocol):
    """A contract's function with its arguments, its constructor, or a plain transfer."""

    async def build_transaction(self, transaction: TxParams | None = None) -> TxParams: ...


@dataclass(frozen=True, slots=True)
class Submitted:
    """A transaction that was sent and may never be mined. `transaction` is what was signed."""

    hash: Hash32
    sender: Address
    nonce: int
    doing: str
    transaction: TxParams


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction that a block holds. `gas_price` in wei of the chain's coin."""

    hash: bytes
    block: int
    block_hash: bytes
    gas_used: int
    gas_price: int
    contract: Address | None
    receipt: TxReceipt

    @property
    def cost(self) -> int:
        """What it cost the sender in gas (wei of the chain's coin)."""
        return self.gas_used * self.gas_price


class Chain:
    """One connection to one chain. Make it with `connect`; use it as an async context manager or `close` it."""

    def __init__(self, w3: AsyncWeb3[AsyncHTTPProvider], url: str, chain_id: int) -> None:
        self.w3, self.url, self.chain_id = w3, url, chain_id
        self._sending: defaultdict[Address, asyncio.Lock] = defaultdict(asyncio.Lock)

    @classmethod
    async def connect(cls, url: str, chain_id: int | None = None, *, timeout: float = 10.0) -> Self:
        """Connect and check the chain id; None takes whatever chain is there. `timeout` in seconds, for each call.

        Raises ChainError if nothing answers or another chain does.
        """
        provider = AsyncHTTPProvider(
            url,
            request_kwargs={"timeout": ClientTimeout(total=timeout)},
            cache_allowed_requests=True,
            cacheable_requests={RPCEndpoint("eth_chainId")},
            exception_retry_configuration=ExceptionRetryConfiguration(errors=(ClientError, TimeoutError), retries=2),
        )
        w3 = AsyncWeb3(provider)
        w3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
        chain = cls(w3, url, 0)
        try:
            async with chain.explained("Connecting"):
                chain.chain_id = await w3.eth.chain_id
            if chain_id is not None and chain.chain_id != chain_id:
                raise ChainError(
                    f"{url} is the wrong chain",
                    why=f"its id is {chain.chain_id}, expected {chain_id}",
                    next_step="mend rpc_url or chain_id in network.toml",
                )
        except BaseException:
            await chain.close()
            raise
        return chain

    async def close(self) -> None:
        await self.w3.provider.disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def contract(self, artifact: Artifact, address: Address) -> AsyncContract:
        """web3's own contract object; functions are `contract.functions.NAME(...)`."""
        return self.w3.eth.contract(address=to_checksum_address(address), abi=artifact.abi)

    async def block_number(self) -> int:
        async with self.explained("Reading the block number"):
            return await self.w3.eth.get_block_number()

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

    async def call_bytes(self, to: Address, data: bytes, *, doing: str, block: BlockIdentifier = "latest") -> bytes:
        """The same with arguments and result as the ABI encodes them."""
        async with self.explained(doing):
            return bytes(await self.w3.eth.call({"to": to_checksum_address(to), "data": HexBytes(data)}, block))

    async def send(
        self, signer: Signer, what: Buildable, *, doing: str, value: int = 0, timeout: float = 120.0
    ) -> Mined:
        """Sign, send and wait until a block holds it. `value` in wei of the chain's coin.

        Raises Reverted if the contract refuses (usually before anything is sent), ChainError otherwise.
        """
        return await self.wait(await self.submit(signer, what, doing=doing, value=value), timeout=timeout)

    async def submit(
        self,
        signer: Signer,
        what: Buildable,
        *,
        doing: str,
        value: int = 0,
        nonce: int | None = None,
        fees: TxParams | None = None,
    ) -> Submitted:
        """Sign and send without waiting. One sender's transactions get rising nonces, also from many tasks.

        nonce: of a transaction to replace; then `fees` says what to pay (`raised_fees`).
        """
        async with self._sending[signer.address], self.explained(doing):
            if nonce is not None:
                return await self._sign_and_send(signer, what, doing, value, nonce, fees or {})
            async for attempt in stamina.retry_context(
                on=_is_nonce_trouble, attempts=_NONCE_ATTEMPTS, wait_initial=0.05, wait_max=1.0, wait_jitter=0.2
            ):
                with attempt:
                    chosen = await self.nonce(signer.address)
                    submitted = await self._sign_and_send(signer, what, doing, value, chosen, fees or {})
            return submitted

    async def _sign_and_send(
        self, signer: Signer, what: Buildable, doing: str, value: int, nonce: int, fees: TxParams
    ) -> Submitted:
        wanted: TxParams = {
            "from": to_checksum_address(signer.address),
            "value": Wei(value),
            "nonce": nonce,  # type: ignore[typeddict-item]  # web3's NewType for an int
            "chainId": self.chain_id,
            **fees,
        }
        transaction = await what.build_transaction(wanted)
        transaction["gas"] = int(transaction["gas"] * GAS_MARGIN)
        signed = Account.sign_transaction({k: v for k, v in transaction.items() if k != "from"}, signer.secret())
        try:
            await self.w3.eth.send_raw_transaction(signed.raw_transaction)
        except Web3RPCError:  # after a lost answer the provider sends again, and the chain then knows it already
            if not await self._knows(signed.hash):
                raise
        return Submitted(Hash32(bytes(signed.hash)), signer.address, nonce, doing, transaction)

    async def _knows(self, transaction: HexBytes) -> bool:
        try:
            await self.w3.eth.get_transaction(transaction)
        except TransactionNotFound:
            return False
        return True

    async def wait(self, submitted: Submitted, *, timeout: float = 120.0, poll: float = 0.1) -> Mined:
        """Until a block holds it. Raises Reverted, or ChainError after `timeout` seconds (it may still be mined)."""
        async with self.explained(submitted.doing):
            try:
                receipt = await self.w3.eth.wait_for_transaction_receipt(
                    submitted.hash, timeout=timeout, poll_latency=poll
                )
            except TimeExhausted:
                raise ChainError(
                    f"{submitted.doing} was sent, but no block holds it after {timeout:.0f} s",
                    why=f"transaction 0x{submitted.hash.hex()}, nonce {submitted.nonce}",
                    next_step="it may still be mined; look for it before sending it again",
                ) from None
        return await self._checked(submitted, receipt)

    async def mined(self, submitted: Submitted) -> Mined | None:
        """Where it is now: None while no block holds it (also after a reorganisation). Raises Reverted."""
        async with self.explained(submitted.doing):
            try:
                receipt = await self.w3.eth.get_transaction_receipt(submitted.hash)
            except TransactionNotFound:
                return None
        return await self._checked(submitted, receipt)

    async def _checked(self, submitted: Submitted, receipt: TxReceipt) -> Mined:
        if receipt["status"] == 0:
            await self._raise_reverted(submitted, receipt)
        return Mined(
            hash=bytes(receipt["transactionHash"]),
            block=receipt["blockNumber"],
            block_hash=bytes(receipt["blockHash"]),
            gas_used=receipt["gasUsed"],
            gas_price=receipt["effectiveGasPrice"],
            contract=Address(receipt["contractAddress"]) if receipt["contractAddress"] else None,
            receipt=receipt,
        )

    async def _raise_reverted(self, submitted: Submitted, receipt: TxReceipt) -> None:
        """A mined failure has no reason in it: ask for it by repeating the call before that block and after it."""
        again: TxParams = {k: v for k, v in submitted.transaction.items() if k in ("to", "data", "value")}  # type: ignore[assignment]
        again["from"] = to_checksum_address(submitted.sender)
        async with self.explained(submitted.doing):
            await self.w3.eth.call(again, receipt["blockNumber"] - 1)
            await self.w3.eth.call(again, receipt["blockNumber"])
        raise Reverted(submitted.doing, "", {}, "the state changed within its block, or its gas ran out")

    @asynccontextmanager
    async def explained(self, doing: str) -> AsyncIterator[None]:
        """Turn what web3 and the network raise into ChainError and Reverted."""
        try:
            yield
        except ContractLogicError as error:
            name, values, why = explain_revert(_revert_data(error), error.message or "")
            raise Reverted(doing, name, values, why) from None
        except BadFunctionCallOutput:
            raise ChainError(
                f"{doing} failed",
                why="there is no such contract at the address",
                next_step="check the addresses in network.toml; a development chain forgets them on a restart",
            ) from None
        except Web3RPCError as error:
            raise _rpc_error(doing, error) from None
        except (ClientError, TimeoutError, OSError) as error:
            raise ChainError(
                f"The chain at {self.url} cannot be reached",
                why=str(error) or f"no answer in time ({type(error).__name__})",
                next_step="check rpc_url in network.toml, and that the chain runs",
            ) from None
        except (Web3Exception, ValueError) as error:
            raise ChainError(f"{doing} failed", why=f"{type(error).__name__}: {error}") from None


class Transfer:
    """A plain payment of the chain's coin; `send` takes it like a contract's function."""

    def __init__(self, chain: Chain, to: Address) -> None:
        self._w3, self._to = chain.w3, to

    async def build_transaction(self, transaction: TxParams | None = None) -> TxParams:
        wanted: TxParams = {**(transaction or {}), "to": to_checksum_address(self._to)}
        if "maxFeePerGas" not in wanted:
            tip = await self._w3.eth.max_priority_fee
            base = (await self._w3.eth.get_block("latest")).get("baseFeePerGas", 0)
            wanted |= {"maxPriorityFeePerGas": tip, "maxFeePerGas": Wei(2 * base + tip)}
        return {**wanted, "gas": await self._w3.eth.estimate_gas(wanted)}


def raised_fees(submitted: Submitted, factor: float = REPLACE_FACTOR) -> TxParams:
    """Fees for a replacement of `submitted` that nodes accept."""
    names = ("maxFeePerGas", "maxPriorityFeePerGas", "gasPrice")
    old: dict[str, Any] = dict(submitted.transaction)
    return {name: int(old[name] * factor) + 1 for name in names if name in old}  # type: ignore[return-value]


def _revert_data(error: ContractLogicError) -> bytes:
    data = error.data
    if isinstance(data, dict):  # Hardhat and Ganache wrap it
        data = data.get("data")
    if not isinstance(data, str):
        return b""
    try:
        return bytes.fromhex(data.removeprefix("Reverted ").removeprefix("0x"))
    except ValueError:
        return b""


def _is_nonce_trouble(error: Exception) -> bool:
    """Another process sends with the same key, and was faster."""
    return isinstance(error, Web3RPCError) and any(text in error.message.lower() for text in _NONCE_TROUBLE)


def _rpc_error(doing: str, error: Web3RPCError) -> ChainError:
    told = (error.rpc_response or {}).get("error")
    message = str(told.get("message", told)) if isinstance(told, dict) else error.message
    short = "insufficient funds" in message.lower() or "doesn't have enough funds" in message.lower()
    next_step = "send some of the chain's coin to this wallet: it pays for gas and stake" if short else ""
    return ChainError(f"{doing} failed", why=f"the chain answered: {message}", next_step=next_step)
