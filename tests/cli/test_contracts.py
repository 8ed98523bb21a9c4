"""`hivemint contracts`: compiled, deployed, verified and shown on a real Hardhat node."""

import asyncio
import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hivemint.cli.contracts import app
from hivemint.contracts import compile as compiling
from hivemint.contracts import deploy as deployment
from hivemint.contracts.artifacts import NAMES, load
from hivemint.contracts.bindings import Bindings, Setting
from hivemint.protocol.errors import BadInput, ChainError, ConfigError, WalletError
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.network import Network
from support.chain import NUMBERS, TEST_MODEL, TestChain
from support.tiny import tiny_model

RUNNER = CliRunner()
DEPLOYER = 18  # of the funded accounts: nobody else sends from it


@pytest.fixture
def wallet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, testchain: TestChain) -> list[str]:
    """The options that name a funded wallet."""
    monkeypatch.setenv("HIVEMINT_HOME", str(tmp_path / "home"))
    Keystores().add("deployer", testchain.signers[DEPLOYER], "correct horse", n=CHEAP_SCRYPT_N)
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    return ["--wallet", "deployer", "--password-file", str(password)]


def deploying(testchain: TestChain, wallet: list[str], network: Path, *more: str) -> Result:
    chain = ["--url", testchain.network.rpc_url, "--chain-id", str(testchain.network.chain_id)]
    return RUNNER.invoke(app, ["deploy", *chain, "--network", str(network), *wallet, *more])


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_deployed_verified_and_shown(testchain: TestChain, wallet: list[str], tmp_path: Path) -> None:
    file = tmp_path / "network.toml"
    done = told(deploying(testchain, wallet, file, "--json", "--name", "mine"))
    network = Network.load(file)
    assert (network.name, network.chain_id) == ("mine", testchain.network.chain_id)
    assert done["contracts"]["token"] == network.contracts.token
    assert done["block"] == network.deployed_block

    again = deploying(testchain, wallet, file)  # nothing is sent twice
    assert all(name in again.stdout for name in NAMES)
    assert Network.load(file) == network

    verified = told(RUNNER.invoke(app, ["verify", "--network", str(file), "--numbers", str(NUMBERS), "--json"]))
    assert (verified["ok"], verified["differences"]) == (True, [])
    params = told(RUNNER.invoke(app, ["params", "--network", str(file), "--json"]))
    assert params["fixed"]["fee"] == 500
    assert params["settings"]["strike_limit"] == 4
    assert params["owner"] == testchain.signers[DEPLOYER].address == params["auditors"][0]
    shown = RUNNER.invoke(app, ["params", "--network", str(file)]).stdout
    assert all(word in shown for word in ("5 %", "3 days", "10,000 HMC", "0.00000005 HMC", "4 in 20"))


@pytest.mark.parametrize("name", ["my model (v2)", "m" * 60])
def test_a_model_that_no_network_file_can_name_is_refused_before_anything_is_deployed(
    name: str, testchain: TestChain, wallet: list[str], tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / name)
    result = deploying(testchain, wallet, tmp_path / "network.toml", "--model", str(folder))
    assert isinstance(result.exception, BadInput)
    assert name in result.exception.what
    assert not list(tmp_path.glob("*.toml"))


def test_two_models_of_one_name_are_refused_before_anything_is_deployed(
    testchain: TestChain, wallet: list[str], tmp_path: Path
) -> None:
    both = [word for part in ("a", "b") for word in ("--model", str(tiny_model(tmp_path / part / "tiny")))]
    result = deploying(testchain, wallet, tmp_path / "network.toml", *both)
    assert isinstance(result.exception, BadInput)
    assert not list(tmp_path.glob("*.toml"))


def test_a_network_that_is_here_does_not_become_members_only_by_a_word(
    testchain: TestChain, wallet: list[str], tmp_path: Path
) -> None:
    file, model = tmp_path / "network.toml", tiny_model(tmp_path / "tiny")
    told(deploying(testchain, wallet, file, "--json", "--model", str(model)))
    network = Network.load(file)
    assert network.manifest(network.models[0])
    refused = deploying(testchain, wallet, file, "--members-only", "--model", str(model))
    assert isinstance(refused.exception, BadInput)
    assert "no swarm key" in refused.exception.what
    assert Network.load(file) == network
    assert "stays as it is" in deploying(testchain, wallet, file, "--model", str(model)).stdout
    closed = tmp_path / "closed.toml"
    told(deploying(testchain, wallet, closed, "--json", "--members-only"))
    key = Network.load(closed).swarm_key
    told(deploying(testchain, wallet, closed, "--json", "--members-only"))
    assert key is not None
    assert Network.load(closed).swarm_key == key


async def schedule(testchain: TestChain, auditor: str) -> None:
    async with await Bindings.connect(testchain.network) as contracts:
        for name, arguments in (
            ("schedule", (Setting.STRIKE_LIMIT.value, 5)),
            ("scheduleRate", (bytes(TEST_MODEL), 9)),
            ("scheduleAuditor", (auditor, True)),
        ):
            call = contracts.parameters.function(name, *arguments)
            await contracts.chain.send(testchain.signers[0], call, doing="Scheduling")


def test_rates_and_scheduled_changes_are_listed(testchain: TestChain) -> None:
    before, auditor = testchain.devchain.snapshot(), testchain.signers[7].address
    options = ["params", "--network", str(testchain.network.path)]
    try:
        asyncio.run(schedule(testchain, auditor))
        params, shown = told(RUNNER.invoke(app, [*options, "--json"])), RUNNER.invoke(app, options).stdout
    finally:
        testchain.devchain.revert(before)
    assert params["rates"] == {"0x" + TEST_MODEL.hex(): 7}
    assert params["settings"]["strike_limit"] == 4
    assert auditor not in params["auditors"]
    expected = {"strike_limit": 5, f"rate of 0x{TEST_MODEL.hex()}": 9, f"auditor {auditor}": True}
    assert {change["what"]: change["value"] for change in params["scheduled"]} == expected
    assert {change["epoch"] for change in params["scheduled"]} == {params["next_change"]}
    assert params["next_change"] > params["epoch"]
    assert f"from epoch {params['next_change']}: strike_limit = 5" in shown


def test_a_deployment_that_died_goes_on(
    testchain: TestChain, wallet: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, one = tmp_path / "network.toml", deployment._deploy_one

    async def dies(*arguments: object) -> None:
        if arguments[2] == "Settlement":
            raise ChainError("The power is gone")
        await one(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as broken:
        broken.setattr(deployment, "_deploy_one", dies)
        result = deploying(testchain, wallet, file)
    assert isinstance(result.exception, ChainError)
    assert "NodeRegistry" in result.stdout
    assert not file.exists()
    planned = tomllib.loads((tmp_path / "network.deployed.toml").read_text())
    done = told(deploying(testchain, wallet, file, "--json"))
    assert planned["complete"] is False
    assert done["contracts"] == planned["contracts"]


def test_a_wrong_chain_is_refused_before_anything_is_sent(
    testchain: TestChain, wallet: list[str], tmp_path: Path
) -> None:
    chosen = ["--url", testchain.network.rpc_url, "--chain-id", "1", "--numbers", str(NUMBERS)]
    result = RUNNER.invoke(app, ["deploy", *chosen, "--network", str(tmp_path / "n.toml"), *wallet])
    assert isinstance(result.exception, ChainError)
    assert "its id is 31337, expected 1" in str(result.exception)
    assert not list(tmp_path.glob("n.*"))


def test_other_chains_need_numbers_of_their_own(wallet: list[str]) -> None:
    result = RUNNER.invoke(app, ["deploy", "--url", "http://127.0.0.1:1", "--chain-id", "10", *wallet])
    assert isinstance(result.exception, ConfigError)
    assert "--numbers" in result.exception.next_step


def test_bad_input_is_named(testchain: TestChain, wallet: list[str], tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("name = 'kept'")
    taken = deploying(testchain, wallet, mine)
    assert isinstance(taken.exception, ConfigError)
    assert mine.read_text() == "name = 'kept'"
    (tmp_path / "password").write_text("wrong")
    assert isinstance(deploying(testchain, wallet, tmp_path / "n.toml").exception, WalletError)
    assert isinstance(RUNNER.invoke(app, ["params"]).exception, ConfigError)
    lost = RUNNER.invoke(app, ["verify", "--network", str(tmp_path / "none.toml")])
    assert isinstance(lost.exception, ConfigError)


def refused(result: Result) -> dict[str, Any]:
    """The one document of `verify --json` that has both the differences and the error."""
    document: dict[str, Any] = json.loads(result.stdout)
    assert (result.exit_code, document["error"]["kind"], document["ok"]) == (5, "chain", False)
    return document


def test_another_fee_inside_the_same_code_is_noticed(testchain: TestChain) -> None:
    artifact, address = load("Settlement"), testchain.network.contracts.settlement
    kept = str(testchain.devchain.rpc("eth_getCode", address, "latest"))
    code = bytearray.fromhex(kept[2:])
    start, length = artifact.immutables["FEE"][0]
    code[start : start + length] = (0).to_bytes(length, "big")
    testchain.devchain.rpc("hardhat_setCode", address, "0x" + code.hex())
    try:
        result = RUNNER.invoke(app, ["verify", "--network", str(testchain.network.path), "--json"])
    finally:
        testchain.devchain.rpc("hardhat_setCode", address, kept)
    (difference,) = refused(result)["differences"]
    assert "FEE in the code of Settlement" in difference


def test_a_premint_by_a_foreign_constructor_is_noticed(
    testchain: TestChain, wallet: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code left on the chain is right to the last byte; the constructor has written a supply of 255 wei."""
    chain, before = testchain.devchain, testchain.devchain.snapshot()
    honest = told(deploying(testchain, wallet, tmp_path / "honest.toml", "--json"))
    runtime = bytes.fromhex(str(chain.rpc("eth_getCode", honest["contracts"]["token"], "latest"))[2:])
    chain.revert(before)
    supply_slot, size = "02", len(runtime).to_bytes(2, "big").hex()
    writes = bytes.fromhex(f"60ff60{supply_slot}55" + f"61{size}6013600039" + f"61{size}6000f3")
    assert len(writes) == 0x13  # SSTORE, CODECOPY from behind itself, RETURN
    foreign = dataclasses.replace(load("CreditToken"), bytecode=writes + runtime)
    monkeypatch.setattr(deployment, "load", lambda name: foreign if name == "CreditToken" else load(name))
    file = tmp_path / "foreign.toml"
    assert told(deploying(testchain, wallet, file, "--json"))["contracts"] == honest["contracts"]
    supply = {"to": honest["contracts"]["token"], "data": "0x18160ddd"}  # totalSupply()
    assert int(str(chain.rpc("eth_call", supply, "latest")), 16) == 255
    result = RUNNER.invoke(app, ["verify", "--network", str(file), "--json"])
    (difference,) = refused(result)["differences"]
    assert "CreditToken" in difference
    assert "created by other code" in difference


def test_compile_says_which_artifact_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.json").write_bytes((compiling.artifacts_folder() / f"{name}.json").read_bytes())
    compiled = compiling.compile_contracts()
    monkeypatch.setattr(compiling, "compile_contracts", lambda solc=None: compiled)  # it takes seconds: once is enough
    monkeypatch.setattr(compiling, "artifacts_folder", lambda: tmp_path)
    assert told(RUNNER.invoke(app, ["compile", "--check", "--json"]))["differ"] == []
    stale = tmp_path / "Emission.json"
    stale.write_bytes(stale.read_bytes() + b" ")
    result = RUNNER.invoke(app, ["compile", "--check"])
    assert isinstance(result.exception, ConfigError)
    assert "Emission" in result.exception.why
    assert told(RUNNER.invoke(app, ["compile", "--json"]))["differ"] == ["Emission"]
    assert "byte for byte" in RUNNER.invoke(app, ["compile"]).stdout


def test_no_traceback_reaches_the_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hivemint.cli.main", "contracts"]
    done = subprocess.run(
        [*command, "params", "--network", str(tmp_path / "none.toml")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert done.stderr.startswith("error ")
    told_help = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(verb in told_help for verb in ("compile", "deploy", "verify", "params"))
