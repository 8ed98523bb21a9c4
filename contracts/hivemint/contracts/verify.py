"""Is what stands on a chain what this package carries? Code and numbers against the artifacts."""

from hivemint.contracts.artifacts import Artifact, load
from hivemint.contracts.bindings import Bindings, Setting
from hivemint.contracts.deploy import Numbers, check


async def verify(bindings: Bindings, numbers: Numbers | None = None) -> list[str]:
    """What differs, one sentence each; empty if nothing does.

    The contracts must name each other (else ChainError), and their code must be that of the artifacts, apart from
    immutables, which the constructors filled in. numbers: also compare the fixed ones and today's settings.
    """
    await check(bindings)
    found = []
    for address, binding in bindings.by_address.items():
        artifact = load(binding.NAME)
        if without_immutables(artifact, await bindings.chain.code(address)) != without_immutables(
            artifact, artifact.deployed_bytecode
        ):
            found.append(f"the code of {binding.NAME} at {address} is not that of its artifact")
    return found + (await _wrong_numbers(bindings, numbers) if numbers else [])


def without_immutables(artifact: Artifact, code: bytes) -> bytes:
    """Deployed code with zeros where its constructor wrote."""
    blank = bytearray(code)
    for places in artifact.immutables.values():
        for start, length in places:
            blank[start : start + length] = bytes(len(blank[start : start + length]))
    return bytes(blank)


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
