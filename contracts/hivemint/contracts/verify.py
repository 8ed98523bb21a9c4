"""Is what stands on a chain what this package carries? Code and numbers against the artifacts."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from web3.utils import get_create_address

from hivemint.contracts.artifacts import Artifact, load
from hivemint.contracts.bindings import Bindings, Setting
from hivemint.contracts.deploy import Numbers, check
from hivemint.protocol.ids import Address, ModelId
from hivemint.protocol.keccak import keccak

_BLOCKS_SEARCHED = 5_000
"""After the deployment's first block, for the transactions that created the contracts."""


async def verify(bindings: Bindings, numbers: Numbers | None = None, *, first_block: int | None = None) -> list[str]:
    """What differs, one sentence each; empty if nothing does.

    The contracts must name each other (else ChainError), their code must be that of the artifacts, and each immutable
    in it what this deployment's constructors write: the same code with another fee inside is another contract.
    numbers: also compare the fixed ones, today's settings, and the owner, if they name one.
    first_block: also find the transactions that created the contracts, from there on, and compare the code that they
    ran. With both, rates and auditors must be those of the numbers and no others, now or to come; if the numbers name
    no auditor, the deployer is the only one.
    """
    await check(bindings)
    found, immutables = [], await _immutables(bindings)
    for address, binding in bindings.by_address.items():
        artifact, code = load(binding.NAME), await bindings.chain.code(address)
        if without_immutables(artifact, code) != without_immutables(artifact, artifact.deployed_bytecode):
            found.append(f"the code of {binding.NAME} at {address} is not that of its artifact")
            continue
        for name, places in artifact.immutables.items():
            expected = immutables[binding.NAME][name]
            if any(code[start : start + length] != expected for start, length in places):
                found.append(f"{name} in the code of {binding.NAME} at {address} is not 0x{expected.hex()}")
    deployer = None
    if first_block is not None:
        wrong, deployer = await _creations(bindings, first_block)
        found += wrong
    if numbers is not None:
        found += await _wrong_numbers(bindings, numbers)
    if numbers is not None and first_block is not None:
        auditors = numbers.auditors or ((deployer,) if deployer else ())
        found += await _strangers(bindings, numbers.rates, auditors, first_block)
    return found


def without_immutables(artifact: Artifact, code: bytes) -> bytes:
    """Deployed code with zeros where its constructor wrote."""
    blank = bytearray(code)
    for places in artifact.immutables.values():
        for start, length in places:
            blank[start : start + length] = bytes(len(blank[start : start + length]))
    return bytes(blank)


async def _creations(bindings: Bindings, first_block: int) -> tuple[list[str], Address | None]:
    """What is wrong with them, and who deployed `Parameters`.

    A foreign constructor can leave the right code and still write what no getter shows, e.g. a premint.
    """
    chain, found, deployer = bindings.chain, [], None
    waiting = dict(bindings.by_address)
    for number in range(first_block, min(await chain.block_number(), first_block + _BLOCKS_SEARCHED) + 1):
        if not waiting:
            break
        async with chain.explained("Reading a block"):
            block = await chain.w3.eth.get_block(number, full_transactions=True)
        for transaction in block["transactions"]:
            if isinstance(transaction, bytes) or transaction.get("to") is not None:
                continue
            address = Address(get_create_address(transaction["from"], transaction["nonce"]))
            binding = waiting.pop(address, None)
            if binding is bindings.parameters:
                deployer = Address(transaction["from"])
            if binding and not bytes(transaction["input"]).startswith(load(binding.NAME).bytecode):
                found.append(f"{binding.NAME} at {address} was created by other code than its artifact's")
    found += [
        f"no transaction from block {first_block} on created {binding.NAME} at {address}"
        for address, binding in waiting.items()
    ]
    return found, deployer


async def _immutables(bindings: Bindings) -> dict[str, dict[str, bytes]]:
    """Contract -> immutable -> its 32 bytes, from the addresses, the chain's id and the numbers that all can read."""
    fixed, genesis = await bindings.parameters.fixed(), await bindings.parameters.genesis()
    at = {
        "PARAMETERS": bindings.parameters,
        "TOKEN": bindings.token,
        "REGISTRY": bindings.registry,
        "SETTLEMENT": bindings.settlement,
        "DISPUTES": bindings.disputes,
        "EMISSION": bindings.emission,
    }
    numbers = {
        "FEE": fixed.fee,
        "EPOCH": fixed.epoch,
        "THAW": fixed.thaw,
        "THAW_BLOCKS": fixed.thaw_blocks,
        "UNBOND": fixed.unbond,
        "MIN_STAKE": fixed.min_stake,
        "CAP": fixed.cap,
        "FIRST_BOOTSTRAP": fixed.bootstrap,
        "HALVING": fixed.halving,
        "GENESIS": genesis,
    }
    common = {name: bytes.fromhex(binding.address[2:]).rjust(32, b"\0") for name, binding in at.items()}
    common |= {name: int(number).to_bytes(32, "big") for name, number in numbers.items()}
    token = common | _permit_domain(b"Hivemint Credit", b"1", bindings.chain.chain_id, common["TOKEN"])
    return {binding.NAME: token if binding is bindings.token else common for binding in at.values()}


def _permit_domain(name: bytes, version: bytes, chain_id: int, contract: bytes) -> dict[str, bytes]:
    """What OpenZeppelin's EIP712 keeps; a short string's last byte is its length."""
    kind = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    chain = chain_id.to_bytes(32, "big")
    return {
        "_name": name.ljust(31, b"\0") + bytes([len(name)]),
        "_version": version.ljust(31, b"\0") + bytes([len(version)]),
        "_hashedName": keccak(name),
        "_hashedVersion": keccak(version),
        "_cachedChainId": chain,
        "_cachedThis": contract,
        "_cachedDomainSeparator": keccak(kind, keccak(name), keccak(version), chain, contract),
    }


async def _wrong_numbers(bindings: Bindings, numbers: Numbers) -> list[str]:
    epoch = await bindings.settlement.current_epoch()
    fixed = await bindings.parameters.fixed()
    pairs: list[tuple[str, Any, Any]] = [
        (name, getattr(fixed, name), getattr(numbers.fixed, name)) for name in (field.name for field in fields(fixed))
    ]
    for setting in Setting:
        pairs.append((setting.name, await bindings.parameters.value(setting, epoch), numbers.settings[setting]))
    for model, rate in numbers.rates.items():
        pairs.append((f"rate of 0x{model.hex()}", await bindings.parameters.rate(model, epoch), rate))
    if numbers.owner is not None:
        pairs.append(("the owner", await bindings.parameters.owner(), numbers.owner))
    for auditor in numbers.auditors:
        pairs.append((f"auditor {auditor}", await bindings.parameters.is_auditor(auditor, epoch), True))
    return [f"{name} is {there}, expected {wanted}" for name, there, wanted in pairs if there != wanted]


async def _strangers(
    bindings: Bindings, rates: Mapping[ModelId, int], auditors: Sequence[Address], first_block: int
) -> list[str]:
    """Auditors and rates that the numbers do not name, today or as scheduled."""
    parameters, today = bindings.parameters, await bindings.settlement.current_epoch()
    found = []
    for event in await parameters.read_events("AuditorScheduled", first_block):
        auditor, epoch = Address(event["auditor"]), max(today, event["epoch"])
        if auditor not in auditors and await parameters.is_auditor(auditor, epoch):
            found.append(f"{auditor} is an auditor in epoch {epoch}, and the numbers do not name it")
    for event in await parameters.read_events("RateScheduled", first_block):
        model, epoch = ModelId(bytes(event["modelId"])), max(today, event["epoch"])
        if model not in rates and (rate := await parameters.rate(model, epoch)):
            found.append(f"0x{model.hex()} is paid {rate} in epoch {epoch}, and the numbers do not name that model")
    return list(dict.fromkeys(found))
