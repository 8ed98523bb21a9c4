"""The real contracts on a Hardhat node of their own, driven step by step at times that the caller sets.

Plain JSON-RPC and the node's unlocked accounts, so that a step costs a few milliseconds; `reset` goes back to the
state after `World.start`, for the next example.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from eth_abi.abi import decode, encode

from hivemint.contracts.artifacts import explain_revert, load, type_of
from hivemint.contracts.bindings import ClaimSkip, Setting, Skip
from hivemint.contracts.deploy import Numbers, deploy
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.ids import Address, Credits
from hivemint.protocol.keccak import keccak
from hivemint.protocol.network import Contracts
from hivemint.testnet.devchain import CHAIN_ID, DevChain, dev_signers
from support.chain import numbers

COIN = 10**18
_PARTS = {
    "Parameters": "parameters",
    "CreditToken": "token",
    "NodeRegistry": "registry",
    "Settlement": "settlement",
    "Emission": "emission",
}
_SKIPPED = {
    keccak(b"Skipped(address,address,uint256,uint8)"): Skip,
    keccak(b"ClaimSkipped(address,uint256,uint256,uint8)"): ClaimSkip,
}

Call = tuple[str, str, tuple[Any, ...]]
"""Contract, function, arguments."""


@dataclass(frozen=True)
class Function:
    """How a function's call is packed. web3's own encoder takes 3 ms a call, as long as the call itself."""

    selector: bytes
    inputs: list[str]
    outputs: list[str]


def _function(entry: dict[str, Any]) -> Function:
    inputs, outputs = ([type_of(one) for one in entry[side]] for side in ("inputs", "outputs"))
    return Function(keccak(f"{entry['name']}({','.join(inputs)})".encode())[:4], inputs, outputs)


def tight_numbers() -> Numbers:
    """Those of the tests, with a cap and a stake bound that random sequences do reach."""
    base = numbers()
    fixed = replace(base.fixed, thaw_blocks=3, cap=Credits(1_001 * COIN), bootstrap=Credits(1_000 * COIN), halving=12)
    return replace(base, fixed=fixed, settings={**base.settings, Setting.UNITS_PER_COIN: 4 * 10**9})


class World:
    """`send` a transaction as one of the node's accounts, `read` many views in one request."""

    def __init__(self, chain: DevChain, contracts: Contracts, numbers: Numbers) -> None:
        self.chain, self.contracts, self.numbers = chain, contracts, numbers
        self.signers = dev_signers()
        self.domain = Domain(CHAIN_ID, contracts.settlement)
        self.time = chain.time() + 1
        self._http = httpx.Client(base_url=chain.url, timeout=30, trust_env=False)
        self._functions = {
            (name, entry["name"]): _function(entry)
            for name in _PARTS
            for entry in load(name).abi
            if entry["type"] == "function"
        }
        self.block = int(chain.rpc("eth_blockNumber"), 16) + 1
        self._base = (chain.snapshot(), self.time, self.block)

    @classmethod
    @contextmanager
    def start(cls) -> "Iterator[World]":
        with DevChain.start() as chain, TemporaryDirectory(prefix="hivemint-") as folder:
            chosen = tight_numbers()
            done = asyncio.run(deploy(chain.url, dev_signers()[0], chosen, Path(folder) / "deployed.toml"))
            world = cls(chain, done.contracts, chosen)
            yield world
            world._http.close()

    def catch_up(self) -> None:
        """The next transaction comes after whatever others have sent."""
        self.time = self.chain.time() + 1
        self.block = int(self.chain.rpc("eth_blockNumber"), 16) + 1

    def mark(self) -> None:
        """`reset` comes back to here."""
        self._base = (self.chain.snapshot(), self.time, self.block)

    def reset(self) -> None:
        snapshot, self.time, self.block = self._base
        self.chain.revert(snapshot)
        self.mark()  # a snapshot is good for one revert

    def address(self, contract: str) -> Address:
        found: Address = getattr(self.contracts, _PARTS[contract])
        return found

    def send(self, sender: Address, call: Call, *, value: int = 0) -> tuple[str, str]:
        """Mine one transaction at `time`, which moves on by a second. (name of the custom error or "", its hash)."""
        self.chain.rpc("evm_setNextBlockTimestamp", hex(self.time))
        self.time += 1
        self.block += 1
        transaction = {
            "from": sender,
            "to": self.address(call[0]),
            "data": self._data(call),
            "value": hex(value),
            "gas": hex(12_000_000),
        }
        (answer,) = self._post([("eth_sendTransaction", [transaction])])
        if "error" not in answer:
            return "", str(answer["result"])
        data = answer["error"].get("data") or {}
        revert = data.get("data") if isinstance(data, dict) else data
        name, _, why = explain_revert(bytes.fromhex(str(revert or "0x")[2:]), answer["error"]["message"])
        return name or why, str(data.get("txHash", "")) if isinstance(data, dict) else ""

    def skipped(self, transaction: str) -> dict[int, str]:
        """Index -> reason, of a settlement's or a claim's skipped items."""
        (answer,) = self._post([("eth_getTransactionReceipt", [transaction])])
        found = {}
        for log in answer["result"]["logs"]:
            if reasons := _SKIPPED.get(bytes.fromhex(log["topics"][0][2:])):
                index, reason = decode(["uint256", "uint8"], bytes.fromhex(log["data"][2:]))
                found[int(index)] = reasons(reason).name
        return found

    def read(self, calls: Sequence[Call]) -> list[Any]:
        """The outputs of view functions: a value, or a tuple of them."""
        requests = [("eth_call", [{"to": self.address(call[0]), "data": self._data(call)}, "latest"]) for call in calls]
        return [self._decoded(call, answer["result"]) for call, answer in zip(calls, self._post(requests), strict=True)]

    def _decoded(self, call: Call, result: str) -> Any:
        values = decode(self._functions[call[:2]].outputs, bytes.fromhex(result[2:]))
        return values[0] if len(values) == 1 else values

    def _data(self, call: Call) -> str:
        function = self._functions[call[:2]]
        return "0x" + (function.selector + encode(function.inputs, call[2])).hex()

    def _post(self, requests: Sequence[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
        body = [
            {"jsonrpc": "2.0", "id": index, "method": method, "params": parameters}
            for index, (method, parameters) in enumerate(requests)
        ]
        answers = self._http.post("", json=body).raise_for_status().json()
        return sorted(answers, key=lambda answer: int(answer["id"]))
