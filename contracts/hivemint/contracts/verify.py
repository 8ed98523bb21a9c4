"""Is what stands on a chain what this package carries? Code and numbers against the artifacts."""

from hivemint.contracts.artifacts import Artifact, load
from hivemint.contracts.bindings import Bindings, Setting
from hivemint.contracts.deploy import Numbers, check
from hivemint.contracts.keccak import keccak


async def verify(bindings: Bindings, numbers: Numbers | None = None) -> list[str]:
    """What differs, one sentence each; empty if nothing does.

    The contracts must name each other (else ChainError), their code must be that of the artifacts, and each immutable
    in it what this deployment's constructors write: the same code with another fee inside is another contract.
    numbers: also compare the fixed ones and today's settings.
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
    return found + (await _wrong_numbers(bindings, numbers) if numbers else [])


def without_immutables(artifact: Artifact, code: bytes) -> bytes:
    """Deployed code with zeros where its constructor wrote."""
    blank = bytearray(code)
    for places in artifact.immutables.values():
        for start, length in places:
            blank[start : start + length] = bytes(len(blank[start : start + length]))
    return bytes(blank)


async def _immutables(bindings: Bindings) -> dict[str, dict[str, bytes]]:
    """Contract -> immutable -> its 32 bytes, from the addresses, the chain's id and the numbers that all can read."""
    fixed, genesis = await bindings.parameters.fixed(), await bindings.parameters.genesis()
    at = {
        "PARAMETERS": bindings.parameters, "TOKEN": bindings.token, "REGISTRY": bindings.registry,
        "SETTLEMENT": bindings.settlement, "DISPUTES": bindings.disputes, "EMISSION": bindings.emission,
    }  # fmt: skip
    numbers = {
        "FEE": fixed.fee, "EPOCH": fixed.epoch, "THAW": fixed.thaw, "UNBOND": fixed.unbond,
        "MIN_STAKE": fixed.min_stake, "CAP": fixed.cap, "FIRST_BOOTSTRAP": fixed.bootstrap,
        "HALVING": fixed.halving, "GENESIS": genesis,
    }  # fmt: skip
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
    pairs = [
        (name, getattr(fixed, name), getattr(numbers.fixed, name))
        for name in ("fee", "epoch", "thaw", "unbond", "delay", "halving", "min_stake", "cap", "bootstrap")
    ]
    for setting in Setting:
        pairs.append((setting.name, await bindings.parameters.value(setting, epoch), numbers.settings[setting]))
    for model, rate in numbers.rates.items():
        pairs.append((f"rate of 0x{model.hex()}", await bindings.parameters.rate(model, epoch), rate))
    return [f"{name} is {there}, expected {wanted}" for name, there, wanted in pairs if there != wanted]
