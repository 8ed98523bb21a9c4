"""Deployment on a real Hardhat node: complete, resumed, and refused."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from hivemint.contracts import deploy as deployment
from hivemint.contracts.artifacts import NAMES, load
from hivemint.contracts.bindings import Bindings, Setting
from hivemint.contracts.chain import Chain
from hivemint.contracts.deploy import check, deploy, load_numbers, read_record
from hivemint.protocol.errors import ChainError, ConfigError
from hivemint.protocol.signing import Signer
from hivemint.testnet.devchain import CHAIN_ID, dev_signers
from support.chain import NUMBERS, TEST_MODEL, TEST_RATE, TestChain, numbers

DEPLOYER = dev_signers()[19]  # nobody else sends from it, so its nonces are this file's


async def test_the_contracts_stand_with_the_numbers_of_the_file(contracts: Bindings, testchain: TestChain) -> None:
    await check(contracts)
    wanted = numbers()
    assert await contracts.parameters.fixed() == wanted.fixed
    epoch = await contracts.settlement.current_epoch()
    for setting in Setting:
        assert await contracts.parameters.value(setting, epoch) == wanted.settings[setting]
    assert await contracts.parameters.rate(TEST_MODEL, epoch) == TEST_RATE
    assert await contracts.parameters.owner() == testchain.signers[0].address
    assert await contracts.settlement.fee() == wanted.fixed.fee


@pytest.mark.parametrize("died_before", ["CreditToken", "Settlement", "Emission"])
async def test_a_deployment_that_died_goes_on(
    testchain: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died_before: str
) -> None:
    record = tmp_path / "deployed.toml"
    one = deployment._deploy_one

    async def dies(*arguments: object) -> None:
        if arguments[2] == died_before:
            raise KeyboardInterrupt
        await one(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(deployment, "_deploy_one", dies)
    with pytest.raises(KeyboardInterrupt):
        await deploy(testchain.network.rpc_url, DEPLOYER, numbers(), record)
    with pytest.raises(ConfigError, match="not complete"):
        read_record(record)
    monkeypatch.undo()

    async with await Chain.connect(testchain.network.rpc_url) as chain:
        before = await chain.nonce(DEPLOYER.address)
        done = await deploy(testchain.network.rpc_url, DEPLOYER, numbers(), record)
        left = len(NAMES) - NAMES.index(died_before)
        assert await chain.nonce(DEPLOYER.address) == before + left
        again = await deploy(testchain.network.rpc_url, DEPLOYER, numbers(), record)
        assert await chain.nonce(DEPLOYER.address) == before + left
        fresh = Bindings.over(chain, done.contracts)
        await check(fresh)
        assert await fresh.token.supply() == 0  # no premint
        with pytest.raises(ChainError, match="belongs to another deployment"):
            await check(Bindings.over(chain, replace(done.contracts, token=testchain.network.contracts.token)))
    assert again == done == read_record(record)


async def test_a_sent_contract_that_no_block_holds_yet_is_waited_for(testchain: TestChain, tmp_path: Path) -> None:
    record, devchain = tmp_path / "deployed.toml", testchain.devchain
    async with await Chain.connect(testchain.network.rpc_url) as chain:
        plan = await deployment._plan(chain, DEPLOYER, numbers(), record)
        devchain.rpc("evm_setAutomine", False)
        try:
            factory = chain.w3.eth.contract(abi=load("Parameters").abi, bytecode=load("Parameters").bytecode)
            constructor = factory.constructor(*numbers().arguments(DEPLOYER.address))
            await chain.submit(DEPLOYER, constructor, doing="Deploying")
            devchain.mine_every(0.2)
            done = await deploy(testchain.network.rpc_url, DEPLOYER, numbers(), record)
        finally:
            devchain.mine_every(0)
            devchain.rpc("evm_setAutomine", True)
    assert done.contracts == plan.contracts


async def test_a_record_of_something_else_is_refused(testchain: TestChain, tmp_path: Path) -> None:
    record, url = tmp_path / "deployed.toml", testchain.network.rpc_url
    await deploy(url, DEPLOYER, numbers(), record)
    with pytest.raises(ConfigError, match="deployer"):
        await deploy(url, testchain.signers[0], numbers(), record)
    with pytest.raises(ConfigError, match="numbers"):
        await deploy(url, DEPLOYER, replace(numbers(), rates={}), record)
    table = tomllib.loads(record.read_text())
    table["contracts"]["token"] = table["contracts"]["emission"]
    record.write_text(tomli_w.dumps(table))
    with pytest.raises(ConfigError, match="do not follow"):
        read_record(record)


async def test_a_nonce_used_for_something_else_is_noticed(testchain: TestChain, tmp_path: Path) -> None:
    record = tmp_path / "deployed.toml"
    async with await Chain.connect(testchain.network.rpc_url) as chain:
        await deployment._plan(chain, DEPLOYER, numbers(), record)
        await Bindings.over(chain, testchain.network.contracts).token.approve(DEPLOYER, DEPLOYER.address, 1)
    with pytest.raises(ChainError, match="used for something else"):
        await deploy(testchain.network.rpc_url, DEPLOYER, numbers(), record)


async def test_another_chain_is_refused_before_anything_is_sent(testchain: TestChain, tmp_path: Path) -> None:
    with pytest.raises(ChainError, match=rf"its id is {CHAIN_ID}, expected 1\."):
        await deploy(testchain.network.rpc_url, DEPLOYER, numbers(), tmp_path / "record", chain_id=1)
    with pytest.raises(ConfigError, match="No such file"):  # not even a plan was written
        read_record(tmp_path / "record")


async def test_a_timelock_of_nothing_is_for_development_chains_alone(
    testchain: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(numbers(), fixed=replace(numbers().fixed, delay=0))
    monkeypatch.setattr(deployment, "DEVELOPMENT", 1)
    with pytest.raises(ConfigError, match="needs a timelock"):
        await deploy(testchain.network.rpc_url, DEPLOYER, bare, tmp_path / "record")
    assert not (tmp_path / "record").exists(), "refused before anything is planned"


async def test_a_deployer_without_coin_is_told_so(testchain: TestChain, tmp_path: Path) -> None:
    with pytest.raises(ChainError, match="pays for gas"):
        await deploy(testchain.network.rpc_url, Signer(b"\7" * 32), numbers(), tmp_path / "record")


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        (Setting.STRIKE_LIMIT, 3, "setting 3, value 3, low 4, high 20"),
        (Setting.STRIKE_WINDOW, 21, "setting 4, value 21, low 4, high 20"),
    ],
)
async def test_a_strike_rule_that_breaks_p9_is_refused(
    testchain: TestChain, tmp_path: Path, setting: Setting, value: int, told: str
) -> None:
    chosen = replace(numbers(), settings={**numbers().settings, setting: value})
    with pytest.raises(ChainError, match=re.escape(told)):
        await deploy(testchain.network.rpc_url, DEPLOYER, chosen, tmp_path / "record")


@pytest.mark.parametrize(
    ("line", "bad", "told"),
    [
        ("fee = 500", "", "lacks the field 'fee'"),
        ("fee = 500", 'fee = "much"', "invalid literal"),
        ('cap = "10000"', 'cap = "-1"', "not negative"),
        ("auditors = []", 'auditors = ["0x12"]', "not a checksummed address"),
        ("[rates]", '[rates]\n"0x12" = 1', "not 32 bytes"),
        ("[fixed]", "[fixed", "is not TOML"),
    ],
)
def test_bad_numbers_are_named(tmp_path: Path, line: str, bad: str, told: str) -> None:
    text = NUMBERS.read_text()
    assert line in text
    path = tmp_path / "numbers.toml"
    path.write_text(text.replace(line, bad, 1))
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_numbers(path)
