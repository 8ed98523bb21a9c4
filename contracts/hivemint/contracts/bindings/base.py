"""What the bindings share: one contract at one address."""

from typing import Any, ClassVar

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from web3.contract.async_contract import AsyncContractFunction
from web3.logs import DISCARD
from web3.types import BlockIdentifier

from hivemint.contracts.artifacts import load, type_of
from hivemint.contracts.chain import Chain, Mined
from hivemint.contracts.errors import ChainError
from hivemint.contracts.ids import Address, Signature
from hivemint.contracts.keccak import keccak


class Binding:
    """A contract of ours. `contract` is web3's own object, for what the methods here do not cover."""

    NAME: ClassVar[str]

    def __init__(self, chain: Chain, address: Address) -> None:
        self.chain, self.address = chain, address
        self.contract = chain.contract(load(self.NAME), address)

    def function(self, name: str, *arguments: Any) -> AsyncContractFunction:
        """A function with its arguments, for `Chain.call`, `send` and `submit`."""
        with_arguments: AsyncContractFunction = getattr(self.contract.functions, name)(*arguments)
        return with_arguments

    async def read(self, name: str, *arguments: Any, block: BlockIdentifier = "latest") -> Any:
        """Call a view function."""
        return await self.chain.call(self.function(name, *arguments), doing=f"Reading {self.NAME}.{name}", block=block)

    async def read_long(self, name: str, *arguments: Any, block: BlockIdentifier = "latest") -> Any:
        """`read` for long lists: web3 looks at each element so often that 170 accounts take it 40 ms, eth_abi 3 ms.

        Addresses come out in lower case.
        """
        entry = next(one for one in load(self.NAME).abi if one.get("name") == name)
        inputs, outputs = ([type_of(one) for one in entry[side]] for side in ("inputs", "outputs"))
        selector = keccak(f"{name}({','.join(inputs)})".encode())[:4]
        doing = f"Reading {self.NAME}.{name}"
        data = selector + encode(inputs, arguments)
        raw = await self.chain.call_bytes(self.address, data, doing=doing, block=block)
        try:
            results = decode(outputs, raw)
        except DecodingError as error:
            raise ChainError(
                f"{doing} failed", why=f"what came back is not what the contract returns: {error}",
                next_step="check the addresses in network.toml, and rpc_url",
            ) from None  # fmt: skip
        return results[0] if len(results) == 1 else results

    def events_in(self, mined: Mined, event: str) -> list[dict[str, Any]]:
        """The arguments of this contract's events of one name in a transaction, in order."""
        found = self.contract.events[event]().process_receipt(mined.receipt, errors=DISCARD)
        return [dict(entry["args"]) for entry in found if entry["address"] == self.address]


def halves(signature: Signature) -> tuple[bytes, bytes]:
    """A compact signature as the contracts take it: (r, vs)."""
    return signature[:32], signature[32:]
