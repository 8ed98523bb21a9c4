"""The compiled contracts, committed as JSON: what a Python user needs instead of a compiler. No web3 here.

`hivemint contracts compile` must give these files byte for byte.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Any

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError

from hivemint.protocol.errors import ConfigError
from hivemint.protocol.keccak import keccak

NAMES = ("Parameters", "CreditToken", "NodeRegistry", "Settlement", "Disputes", "Emission")
"""All contracts, in the order in which they are deployed."""
_ERROR_STRING, _PANIC = keccak(b"Error(string)")[:4], keccak(b"Panic(uint256)")[:4]
_TIMES = ("thawEnd", "unbondEnd", "validUntil", "latest", "deadline")
_COINS = ("stake", "minimum")


@dataclass(frozen=True)
class Artifact:
    """One contract: its interface and its code.

    bytecode: what a deployment sends, without the constructor's arguments. immutables: name -> places (start, length)
    in `deployed_bytecode` that the constructor fills in.
    """

    name: str
    abi: list[dict[str, Any]]
    bytecode: bytes
    deployed_bytecode: bytes
    immutables: dict[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class CustomError:
    """A custom error of one of the contracts; `inputs` as in the ABI."""

    name: str
    inputs: list[dict[str, Any]]


@cache
def load(name: str) -> Artifact:
    """A committed artifact by the contract's name. Raises ConfigError if the package lacks it."""
    try:
        text = (files("hivemint.contracts") / "artifacts" / f"{name}.json").read_text()
    except FileNotFoundError:
        raise ConfigError(
            f"The contract {name} has no artifact", next_step="run `hivemint contracts compile`"
        ) from None
    document = json.loads(text)
    immutables = {
        immutable: [(place["start"], place["length"]) for place in places]
        for immutable, places in document["immutableReferences"].items()
    }
    code, deployed = (bytes.fromhex(document[key].removeprefix("0x")) for key in ("bytecode", "deployedBytecode"))
    return Artifact(name, document["abi"], code, deployed, immutables)


@cache
def custom_errors() -> dict[bytes, CustomError]:
    """Selector -> error, over all contracts: one contract's error can pass through another."""
    table = {}
    for entry in (entry for artifact in map(load, NAMES) for entry in artifact.abi):
        if entry["type"] == "error":
            signature = f"{entry['name']}({','.join(map(type_of, entry['inputs']))})"
            table[keccak(signature.encode())[:4]] = CustomError(entry["name"], entry["inputs"])
    return table


def type_of(entry: dict[str, Any]) -> str:
    """An ABI input's canonical type; a tuple's members in parentheses."""
    kind: str = entry["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(map(type_of, entry['components']))})" + kind.removeprefix("tuple")


def explain_revert(data: bytes, message: str = "") -> tuple[str, dict[str, Any], str]:
    """Revert data -> (name of the custom error or "", its arguments, a sentence for people).

    `message` is what the chain said itself, for data that says nothing.
    """
    selector, body = data[:4], data[4:]
    try:
        if selector == _ERROR_STRING:
            return "", {}, str(decode(["string"], body)[0])
        if selector == _PANIC:
            return "", {}, f"arithmetic or index fault in the contract (panic 0x{decode(['uint256'], body)[0]:02x})"
        if known := custom_errors().get(selector):
            arguments = decode([type_of(entry) for entry in known.inputs], body)
            values = {entry["name"]: value for entry, value in zip(known.inputs, arguments, strict=True)}
            told = ", ".join(f"{name} {_show(name, value)}" for name, value in values.items())
            return known.name, values, f"{_words(known.name)} ({told})" if told else _words(known.name)
    except DecodingError:
        return "", {}, f"the contract answered 0x{data[:64].hex()}, which is not what its error says"
    if data:
        return "", {}, f"the contract answered with an unknown error, 0x{selector.hex()}"
    return "", {}, message or "it gave no reason"


def _words(name: str) -> str:
    """`StillThawing` -> `still thawing`; names such as ERC20... keep their capitals."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).split(" ")
    return " ".join(word if word.isupper() or word.startswith("ERC") else word.lower() for word in words)


def _show(name: str, value: Any) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_show("", one) for one in value) + "]"
    if name in _TIMES and isinstance(value, int) and value < 2**36:
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if name in _COINS:
        return f"{Decimal(value).scaleb(-18).normalize():f} coins"
    return str(value)
