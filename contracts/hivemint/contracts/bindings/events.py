"""Contract events, decoded: what the indexer stores."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from eth_utils.abi import event_abi_to_log_topic
from web3.types import LogReceipt

from hivemint.contracts.artifacts import load
from hivemint.contracts.bindings.base import Binding
from hivemint.protocol.ids import Address


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `contract` is the contract's name (`Settlement`, ...), `values` its arguments by name."""

    contract: str
    name: str
    values: dict[str, Any]
    block: int
    block_hash: bytes
    transaction: bytes
    index: int


def decode_logs(bindings: Mapping[Address, Binding], logs: Iterable[LogReceipt]) -> list[Event]:
    """In the order of `logs`; what none of our contracts can have emitted is left out."""
    events = []
    for log in logs:
        binding = bindings.get(Address(log["address"]))
        name = _names(binding.NAME).get(bytes(log["topics"][0])) if binding and log["topics"] else None
        if binding and name:
            arguments = binding.contract.events[name]().process_log(log)["args"]
            events.append(
                Event(
                    contract=binding.NAME,
                    name=name,
                    values=dict(arguments),
                    block=log["blockNumber"],
                    block_hash=bytes(log["blockHash"]),
                    transaction=bytes(log["transactionHash"]),
                    index=log["logIndex"],
                )
            )
    return events


@lru_cache
def _names(contract: str) -> dict[bytes, str]:
    """First topic -> event name."""
    return {
        bytes(event_abi_to_log_topic(entry)): entry["name"]  # type: ignore[arg-type]  # the ABI is plain JSON
        for entry in load(contract).abi
        if entry["type"] == "event"
    }
