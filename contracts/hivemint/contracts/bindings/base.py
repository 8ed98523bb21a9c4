"""What the bindings share: one contract at one address."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from web3.contract.async_contract import AsyncContractFunction
from web3.exceptions import Web3Exception
from web3.logs import DISCARD
from web3.types import BlockIdentifier

from hivemint.contracts.artifacts import load, type_of
from hivemint.contracts.chain import Chain, Mined
from hivemint.contracts.logs import read_logs
from hivemint.protocol.ids import Address, Signature
from hivemint.protocol.keccak import keccak


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
        """Call a view function. An endpoint that answers what cannot be decoded is passed over, if there are others."""

        async def by(chain: Chain) -> Any:
            contract = self.contract if chain is self.chain else chain.contract(load(self.NAME), self.address)
            function = getattr(contract.functions, name)(*arguments)
            return await chain.call(function, doing=f"Reading {self.NAME}.{name}", block=block)

        return await self.chain.by_any(by)

    async def read_long(self, name: str, *arguments: Any, block: BlockIdentifier = "latest") -> Any:
        """`read` for long lists: web3 looks at each element so often that 170 accounts take it 40 ms, eth_abi 3 ms.

        Addresses come out in lower case.
        """
        entry = next(one for one in load(self.NAME).abi if one.get("name") == name)
        inputs, outputs = ([type_of(one) for one in entry[side]] for side in ("inputs", "outputs"))
        selector = keccak(f"{name}({','.join(inputs)})".encode())[:4]
        doing = f"Reading {self.NAME}.{name}"
        data = selector + encode(inputs, arguments)

        async def by(chain: Chain) -> tuple[Any, ...]:
            raw = await chain.call_bytes(self.address, data, doing=doing, block=block)
            with decoding(chain, doing):
                return decode(outputs, raw)

        results = await self.chain.by_any(by)
        return results[0] if len(results) == 1 else results

    def events_in(self, mined: Mined, event: str) -> list[dict[str, Any]]:
        """The arguments of this contract's events of one name in a transaction, in order."""
        found = self.contract.events[event]().process_receipt(mined.receipt, errors=DISCARD)
        return [dict(entry["args"]) for entry in found if entry["address"] == self.address]

    def event_in(self, mined: Mined, event: str) -> dict[str, Any]:
        """The one event of that name. Raises ChainError if the receipt has none: the endpoint made it up."""
        found = self.events_in(mined, event)
        if not found:
            raise self.chain.odd(f"Reading what {self.NAME} did", f"the receipt names no {event}")
        return found[0]

    async def read_events(self, event: str, first: int, last: int | None = None, **equal: Any) -> list[dict[str, Any]]:
        """The arguments of all events of one name in these blocks (`last` None: up to the newest), in order.

        equal: values of indexed arguments. Raises ChainError.
        """
        kind = self.contract.events[event]()
        wanted = kind._get_event_filter_params(kind.abi, equal, from_block=0, to_block=0)
        topics = wanted.get("topics", [])
        logs = await read_logs(self.chain, [self.address], first, last, topics=topics)
        with decoding(self.chain, f"Reading {self.NAME}'s history"):
            return [dict(kind.process_log(log)["args"]) for log in logs]


@contextmanager
def decoding(chain: Chain, doing: str) -> Iterator[None]:
    """What an endpoint sent is decoded here: whatever does not fit is a ChainError that names it."""
    try:
        yield
    except (DecodingError, Web3Exception, ValueError) as error:
        raise chain.odd(doing, f"{type(error).__name__}: {error}") from None


def halves(signature: Signature) -> tuple[bytes, bytes]:
    """A compact signature as the contracts take it: (r, vs)."""
    return signature[:32], signature[32:]
