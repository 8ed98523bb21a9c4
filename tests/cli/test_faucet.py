"""`hivemint testnet faucet`: what it refuses, before any chain is asked. What it gives: tests/integration."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from hivemint.cli.testnet import app
from hivemint.protocol.errors import BadInput
from hivemint.protocol.network import Network
from hivemint.testnet import first_credits
from hivemint.testnet.localnet import State
from support.command import network_out_of_reach

URL = "http://127.0.0.1:9"
TO = "0x" + "11" * 20


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    """The network of a testnet that is up, as far as its folder tells; the faucet itself always gives 1 and 2 wei."""
    monkeypatch.setenv("HIVEMINT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HIVEMINT_NETWORK", raising=False)
    folder = tmp_path / "home" / "testnet"
    folder.mkdir(parents=True)
    (folder / "state.json").write_bytes(msgspec.json.encode(State(URL, "http://127.0.0.1:10", [], [])))

    async def gives(*_: Any) -> tuple[int, int]:
        return 1, 2

    monkeypatch.setattr(first_credits, "drip", gives)
    return Network.load(Path(network_out_of_reach(tmp_path))).save(folder / "network.toml")


def faucet(*words: str) -> Result:
    return CliRunner().invoke(app, ["faucet", TO, *words])


@pytest.mark.parametrize("amount", ["0", "0.0 HMC", "0 wei"])
def test_no_credits_are_refused_in_words(amount: str, own: Network) -> None:
    refused = faucet("--credits", amount)
    assert isinstance(refused.exception, BadInput)
    assert refused.exception.why == "--credits is zero"
    assert faucet("--credits", "1").exit_code == faucet().exit_code == 0


def test_another_chain_of_the_same_id_and_addresses_is_no_testnet(own: Network, tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    for other in (
        replace(own, rpc_url="http://192.0.2.9:8545"),
        replace(own, other_rpc_urls=("http://192.0.2.9:8545",)),
        replace(own, rpc_url="http://127.0.0.1:8545"),
        replace(own, chain_id=5),
    ):
        other.save(file)
        refused = faucet("--network", str(file))
        assert isinstance(refused.exception, BadInput)
        assert "is another network" in refused.exception.why
    replace(own, name="a-copy", rpc_url=f"{URL}/").save(file)
    assert faucet("--network", str(file)).exit_code == 0
