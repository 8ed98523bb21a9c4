"""`hivemint node start` from nothing, walked at a terminal: an empty home, a chain, and a node that is about to be.

It registers, serves, is seen by another peer, says why it has earned nothing; after Ctrl-C it is over, and gone from
the directory at once.
"""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hivemint.model.local_models import LocalModel
from hivemint.protocol.node_name import node_name
from hivemint.testnet.devchain import DevChain
from hivemint.testnet.localnet import Layout, LocalNet
from hivemint.testnet.processes import hivemint
from support.terminal import Terminal

pytest_plugins = ["support.models"]
COIN = 10**18


@pytest.fixture(scope="module")
def net(smollm2: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNet]:
    """One node alone, so that a second one is welcome."""
    made = LocalNet(tmp_path_factory.mktemp("start") / "net", smollm2)
    try:
        asyncio.run(made.up(Layout(nodes=1, ledger=False), lambda _: None))
        yield made
    finally:
        made.down()


@pytest.fixture
def environment(tmp_path: Path, smollm2: LocalModel) -> dict[str, str]:
    """An empty home that sees the models of this machine, and nothing else of the user's."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(smollm2.folder.parent, target_is_directory=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HIVEMINT_")}
    return kept | {
        "HIVEMINT_HOME": str(home),
        "HIVEMINT_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm-256color",
    }


def told(environment: dict[str, str], net: LocalNet, *words: str) -> Any:
    command = hivemint(*words, "--network", str(net.network_file), "--json")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def operators(environment: dict[str, str], net: LocalNet) -> set[str]:
    """Who serves, as another peer finds it in the directory."""
    (model,) = told(environment, net, "swarm", "status")
    return {node["operator"] for node in model["nodes"]}


def test_a_node_from_nothing(net: LocalNet, environment: dict[str, str]) -> None:
    command = hivemint("node", "start", net.model.name)
    with Terminal(command, environment, columns=80) as terminal:
        terminal.expect("Network file")
        terminal.press("/nowhere/network.toml\n")
        terminal.expect("cannot be read")
        terminal.press(str(net.network_file) + "\n")
        terminal.expect("Its name [node]")
        terminal.press("\n")
        terminal.expect("Password of node")
        terminal.press("correct horse\n")
        terminal.expect("Once more")
        terminal.press("correct horse\n")
        asked = terminal.expect("hivemint testnet faucet 0x")
        assert re.search(r"holds 0 coins; a node needs 1\.\d+ coins: 1 coin of stake, which stay yours", asked)
        (address,) = set(re.findall(r"0x[0-9a-fA-F]{40}", asked))
        DevChain(net.network.rpc_url).rpc("hardhat_setBalance", address, hex(2 * COIN))

        dear = terminal.expect("Follow the other nodes instead (--ask auto)? [Y/n]", 120)
        assert "your ask is 5 times the cheapest" in dear, "before it serves"
        terminal.press("\n")
        question = terminal.expect("[Y/n]", 120)
        for part in (
            "blocks 0:30 (1 other node serves them",
            "as the other nodes of these blocks ask",
            "stake: 1 coin",
            "unpaid: the stake counts from the next epoch",
            "this machine alone",
            "--listen /ip4/0.0.0.0/tcp/4001",
            "Register, bond and serve these blocks?",
        ):
            assert part in question
        terminal.press("\n")
        terminal.expect("registered, 1 coin bonded")
        name = node_name(address)
        assert name in question
        terminal.expect("a token and block", 180)
        terminal.expect(f"name {name}")
        assert address in operators(environment, net)
        running = told(environment, net, "node", "status", "--wallet", "node")
        assert (running["running"], running["bonded_wei"]) == (True, COIN)
        terminal.press("\x03")
        last = terminal.expect("nothing is left to collect")
        assert name in last
        assert "are not served any more" in last
        assert address not in operators(environment, net), "its record was taken back"
        assert terminal.ended() == 0
    stopped = told(environment, net, "node", "status", "--wallet", "node")
    assert stopped["running"] is False
    assert str(stopped["state"]).startswith("stopped since")


def test_the_second_start_asks_for_the_password_alone(net: LocalNet, environment: dict[str, str]) -> None:
    """With --blocks, and registered by the first line: nothing is left to ask."""
    words = ("--network", str(net.network_file), "--wallet", "alice-node", "--blocks", "0:1")
    mine = environment | {"HIVEMINT_HOME": str(net.home.root)}
    with Terminal(hivemint("node", "start", net.model.name, *words), mine) as terminal:
        terminal.expect("Password of alice-node")
        terminal.press("wrong\n")
        terminal.wait(r"(?s)is wrong.*Password of alice-node")  # both may come at once
        terminal.press("hivemint\n")
        terminal.expect("Another node on this machine serves with", 120)
        assert "[Y/n]" not in terminal.shown
        assert terminal.ended() != 0
