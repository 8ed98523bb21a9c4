"""Transactions on their way: what was sent, what a block holds, why a contract refused; and a plain transfer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from eth_typing import Hash32
from eth_utils.address import to_checksum_address
from web3.exceptions import ContractLogicError, Web3RPCError
from web3.types import TxParams, TxReceipt

from hivemint.contracts.refusals import MEANINGS, Meaning
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address

if TYPE_CHECKING:
    from hivemint.contracts.chain import Chain

_NONCE_TROUBLE = (
    "nonce too low",
    "nonce has already been used",
    "replacement transaction underpriced",
)


class Reverted(ChainError):
    """A contract refused. `error` is the name of its custom error ("" if it named none), `values` its arguments.

    What that means, and what to do then, is said where it is known (`refusals.py`).
    """

    def __init__(self, doing: str, error: str, values: dict[str, Any], why: str) -> None:
        words, next_step = MEANINGS.get(error, Meaning("", ""))
        told = f"{words}; the contract says: {why}" if words else why
        super().__init__(f"{doing} was refused by the contract", why=told, next_step=next_step)
        self.error, self.values = error, values


class Underpriced(ChainError):
    """A replacement offers too little more than what it is to replace."""


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

    @classmethod
    def of(cls, receipt: TxReceipt, offered: TxParams) -> "Mined":
        """Chains without a base fee may leave the price out of the receipt: it is what was offered."""
        return cls(
            hash=bytes(receipt["transactionHash"]),
            block=receipt["blockNumber"],
            block_hash=bytes(receipt["blockHash"]),
            gas_used=receipt["gasUsed"],
            gas_price=int(receipt.get("effectiveGasPrice", offered.get("gasPrice", 0))),
            contract=Address(receipt["contractAddress"]) if receipt["contractAddress"] else None,
            receipt=receipt,
        )


class Transfer:
    """A plain payment of the chain's coin; `send` takes it like a contract's function."""

    def __init__(self, chain: "Chain", to: Address) -> None:
        self._w3, self._to = chain.w3, to

    async def build_transaction(self, transaction: TxParams | None = None) -> TxParams:
        wanted: TxParams = {**(transaction or {}), "to": to_checksum_address(self._to)}
        return {**wanted, "gas": await self._w3.eth.estimate_gas(wanted)}


def revert_data(error: ContractLogicError) -> bytes:
    data = error.data
    if isinstance(data, dict):  # Hardhat and Ganache wrap it
        data = data.get("data")
    if not isinstance(data, str):
        return b""
    try:
        return bytes.fromhex(data.removeprefix("Reverted ").removeprefix("0x"))
    except ValueError:
        return b""


def is_nonce_trouble(error: Exception) -> bool:
    """Another process sends with the same key, and was faster."""
    return isinstance(error, Web3RPCError) and any(text in error.message.lower() for text in _NONCE_TROUBLE)


def rpc_error(doing: str, error: Web3RPCError) -> ChainError:
    """In words: what was being done, what the chain said, and the cure where it is known."""
    told = (error.rpc_response or {}).get("error")
    message = str(told.get("message", told)) if isinstance(told, dict) else error.message
    short = "insufficient funds" in message.lower() or "doesn't have enough funds" in message.lower()
    next_step = "send some of the chain's coin to this wallet: it pays for gas and stake" if short else ""
    cheap = "underpriced" in message.lower()
    if cheap:
        next_step = "the chain asks for a higher fee or tip: raise HIVEMINT_MAX_FEE or HIVEMINT_MAX_TIP (gwei)"
    kind = Underpriced if cheap else ChainError
    return kind(f"{doing} failed", why=f"the chain answered: {message[:300]}", next_step=next_step)
