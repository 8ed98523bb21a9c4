"""What the bindings share: one contract at one address."""

from typing import Any, ClassVar

from web3.contract.async_contract import AsyncContractFunction
from web3.logs import DISCARD
from web3.types import BlockIdentifier

from hivemint.contracts.artifacts import load
from hivemint.contracts.chain import Chain, Mined
from hivemint.contracts.ids import Address, Signature


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

    def events_in(self, mined: Mined, event: str) -> list[dict[str, Any]]:
        """The arguments of this contract's events of one name in a transaction, in order."""
        found = self.contract.events[event]().process_receipt(mined.receipt, errors=DISCARD)
        return [dict(entry["args"]) for entry in found if entry["address"] == self.address]


def halves(signature: Signature) -> tuple[bytes, bytes]:
    """A compact signature as the contracts take it: (r, vs)."""
    return signature[:32], signature[32:]
