"""What stands on the chain is compared with the artifacts, byte for byte apart from immutables."""

from dataclasses import replace

from hivemint.contracts.bindings import Bindings
from hivemint.contracts.verify import verify
from support.chain import TEST_MODEL, TestChain, numbers


async def test_a_true_deployment_verifies(contracts: Bindings) -> None:
    assert await verify(contracts, numbers()) == []


async def test_owner_and_auditors_are_those_that_the_numbers_name(contracts: Bindings, testchain: TestChain) -> None:
    deployer, other = testchain.signers[0].address, testchain.signers[1].address
    assert await verify(contracts, replace(numbers(), owner=deployer, auditors=(deployer,))) == []
    told = await verify(contracts, replace(numbers(), owner=other, auditors=(deployer, other)))
    assert told == [f"the owner is {deployer}, expected {other}", f"auditor {other} is False, expected True"]


async def test_auditors_and_rates_beside_those_of_the_numbers_are_named(
    contracts: Bindings, testchain: TestChain
) -> None:
    first, parameters = testchain.network.deployed_block, contracts.parameters
    assert await verify(contracts, numbers(), first_block=first) == []
    deployer, stranger = testchain.signers[0], testchain.signers[1].address
    told = await verify(contracts, replace(numbers(), auditors=(stranger,), rates={}), first_block=first)
    assert f"auditor {stranger} is False, expected True" in told
    assert any(f"{deployer.address} is an auditor in epoch" in one for one in told)
    assert any(f"0x{TEST_MODEL.hex()} is paid 7 in epoch" in one for one in told)
    snapshot = testchain.devchain.snapshot()
    try:  # not today, but as scheduled
        for name, arguments in (("scheduleAuditor", (stranger, True)), ("scheduleRate", (b"\1" * 32, 5))):
            await contracts.chain.send(deployer, parameters.function(name, *arguments), doing="Scheduling")
        epoch = int(await parameters.read("nextChange"))
        assert await verify(contracts, numbers(), first_block=first) == [
            f"{stranger} is an auditor in epoch {epoch}, and the numbers do not name it",
            f"0x{'01' * 32} is paid 5 in epoch {epoch}, and the numbers do not name that model",
        ]
    finally:
        testchain.devchain.revert(snapshot)


async def test_one_changed_byte_and_other_numbers_are_told(contracts: Bindings, testchain: TestChain) -> None:
    address = contracts.settlement.address
    code = bytearray(await contracts.chain.code(address))
    changed = code.copy()
    changed[-1] ^= 1
    testchain.devchain.rpc("hardhat_setCode", address, "0x" + changed.hex())
    try:
        told = await verify(contracts, replace(numbers(), rates={TEST_MODEL: 8}))
    finally:
        testchain.devchain.rpc("hardhat_setCode", address, "0x" + code.hex())
    assert len(told) == 2
    assert f"the code of Settlement at {address}" in told[0]
    assert "is 7, expected 8" in told[1]
    assert await verify(contracts) == []
