"""`hivemint testnet` as a user runs it: up, status, a second up, down; and the whole demo, which is slow."""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from hivemint.model.local_models import LocalModel
from hivemint.testnet.processes import hivemint
from support.localnet import pids_below

pytest_plugins = ["support.models"]

PROCESSES = {"chain", "bootstrap", "alice-node", "carol-node", "ledger"}
KEYS = {
    "text",
    "equal_to_reference",
    "tokens",
    "receipts_signed",
    "receipts_countersigned",
    "hops_per_token",
    "settled",
    "burned_wei",
    "minted_wei",
    "fee_wei",
    "supply_ok",
    "priority",
    "attacks",
    "seconds",
}
"""What the demo's document must hold."""
ATTACKS = {"forged receipt", "replayed settlement", "foreign session", "empty escrow", "doctored hidden state"}


@pytest.fixture
def home(smollm2: LocalModel, tmp_path: Path) -> Iterator[Path]:
    """An own home that sees the pulled models; whatever a failed test leaves running is ended."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    (folder / "models").symlink_to(smollm2.home.models, target_is_directory=True)
    yield folder
    run(folder, "testnet", "down")


def run(home: Path, *words: str, within: float = 200) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith("HIVEMINT_")}
    return subprocess.run(
        hivemint(*words),
        env=base | {"HIVEMINT_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )


def told(home: Path, *words: str, within: float = 200) -> Any:
    """The one JSON document on stdout."""
    done = run(home, *words, "--json", within=within)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def test_while_one_is_started_another_removes_nothing(home: Path) -> None:
    folder = home / "testnet"
    (folder / "logs").mkdir(parents=True)
    log = folder / "logs" / "alice-node.log"
    log.write_text("of the one that is being started")
    with (folder / "starting").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run(home, "testnet", "up", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, done.stderr) == (2, "")
    assert "being started already" in error["what"]
    assert log.exists()


def test_a_testnet_goes_up_and_down(home: Path) -> None:
    up = told(home, "testnet", "up")
    assert {process["name"] for process in up["processes"]} == PROCESSES
    assert all(process["alive"] for process in up["processes"])
    assert told(home, "testnet", "status") == up
    network = {"HIVEMINT_NETWORK": up["network"]}
    (model,) = json.loads(ask(home, network, "swarm", "status", "--json"))
    assert (model["missing"], len(model["nodes"])) == ([], 2)
    names = {node["operator"]: node["name"] for node in model["nodes"]}
    assert {node["operator"]: node["name"] for node in up["nodes"]} == names
    shown = run(home, "testnet", "status").stdout
    assert all(name in shown for name in names.values())
    assert httpx.get(up["ledger_url"], trust_env=False).status_code == 200
    assert "ledger" in run(home, "testnet", "status").stdout
    inside = home / "testnet" / "home"  # where the lines that `up` prints point HIVEMINT_HOME at
    assert told(inside, "testnet", "status") == up
    before = json.loads(ask(home, network, "contracts", "params", "--json"))["epoch"]
    passed = told(inside, "testnet", "epoch")
    assert passed["epoch"] == before + 1 == json.loads(ask(home, network, "contracts", "params", "--json"))["epoch"]
    assert passed["credits"]["alice"] == 0

    again = run(home, "testnet", "up", "--json")
    error = json.loads(again.stdout)["error"]
    assert (again.returncode, again.stderr, error["kind"]) == (2, "", "settings")
    assert "already up" in error["what"]
    assert "testnet down" in error["next_step"]
    assert told(home, "testnet", "status") == up  # and nothing was harmed

    started = [psutil.Process(process["pid"]) for process in up["processes"]]
    everything = {one for process in started for one in [process, *process.children(recursive=True)]}
    ledger = psutil.Process(next(one["pid"] for one in up["processes"] if one["name"] == "ledger"))
    ledger.kill()
    psutil.wait_procs([ledger], timeout=30)
    assert "ledger ended by accident" in run(home, "testnet", "status").stdout
    assert set(told(home, "testnet", "down")["ended"]) >= PROCESSES - {"ledger"}
    _, alive = psutil.wait_procs(everything, timeout=30)
    assert not alive
    assert pids_below(home) == []
    for verb in ("status", "epoch", "down"):
        none = run(home, "testnet", verb)
        assert none.returncode == 2
        assert "No testnet is up" in none.stderr


def ask(home: Path, more: dict[str, str], *words: str) -> str:
    """Stdout of a command in the testnet's own home."""
    environment = {**os.environ, "HIVEMINT_HOME": str(home / "testnet" / "home"), **more}
    done = subprocess.run(hivemint(*words), env=environment, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout


@pytest.mark.slow
def test_the_demo_is_one_document_in_which_everything_came_true(home: Path) -> None:
    """`testnet demo` starts and stops a testnet of its own; nothing but the document is on stdout."""
    before = set(demo_processes())
    figures = told(home, "testnet", "demo", within=290)
    assert figures.keys() >= KEYS
    assert figures["text"]
    assert figures["equal_to_reference"]
    assert figures["tokens"] > 10
    assert figures["hops_per_token"] == 3  # two nodes
    assert figures["receipts_signed"] >= figures["receipts_countersigned"] > 0
    assert figures["burned_wei"] == figures["minted_wei"] + figures["fee_wei"] > figures["fee_wei"] > 0
    assert figures["settled"] >= 2
    assert figures["supply_ok"]
    assert {attack["name"] for attack in figures["attacks"]} == ATTACKS
    assert all(attack["refused"] and attack["reason"] for attack in figures["attacks"])
    for lane in ("paid", "donated"):
        assert figures["priority"][lane].keys() == {"wait_ms_p50", "tokens_per_s"}
    assert figures["seconds"]["total"] > 0
    assert set(demo_processes()) <= before


def demo_processes() -> list[int]:
    return pids_below(Path("hivemint-demo-"))
