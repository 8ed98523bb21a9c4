"""A testnet that has credits when it comes up, in a folder with a space: the printed lines run, and money moves."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hivemint.model.local_models import LocalModel
from hivemint.testnet.processes import hivemint

pytest_plugins = ["support.models"]


@pytest.fixture
def home(smollm2: LocalModel, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "it's my home"
    folder.mkdir(mode=0o700)
    (folder / "models").symlink_to(smollm2.home.models, target_is_directory=True)
    yield folder
    run({"HIVEMINT_HOME": str(folder)}, "testnet", "down")


def run(more: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith("HIVEMINT_")}
    return subprocess.run(
        hivemint(*words),
        env=base | more,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def told(more: dict[str, str], *words: str) -> Any:
    done = run(more, *words, "--json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def exported(text: str) -> dict[str, str]:
    """What a shell makes of the printed lines."""
    lines = "\n".join(line for line in text.splitlines() if line.startswith("export "))
    done = subprocess.run(["/bin/sh", "-c", f"{lines}\nenv -0"], capture_output=True, text=True, check=True, env={})
    pairs = (entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)
    return {name: value for name, value in pairs if name.startswith("HIVEMINT_")}


def test_a_developer_can_pay_in_the_first_minute(home: Path) -> None:
    up = run({"HIVEMINT_HOME": str(home)}, "testnet", "up", "--epochs", "3")
    assert up.returncode == 0, up
    place = exported(up.stdout)
    assert place["HIVEMINT_NETWORK"] == str(home / "testnet" / "network.toml")
    bob = told(place, "wallet", "show", "bob", "--network", place["HIVEMINT_NETWORK"])
    assert bob["credits"] > 0

    (amount,) = [words.split()[3] for words in up.stdout.splitlines()[-1:] for words in [words.partition("pay ")[2]]]
    funded = told(place, "account", "fund", amount, "--wallet", "bob", "--yes")
    assert (len(funded["deposits"]), funded["left_out"]) == (2, {})
    (count,) = funded["answers"].values()
    assert count >= 1, funded
    answer = told(place, "generate", "Hello", "--wallet", "bob", "--max-tokens", "4")
    assert (answer["lane"], answer["unpaid"]) == ("paid", "")
    assert answer["spent_wei"] > 0
    assert all(row["left"] > 0 for row in told(place, "account", "list", "--wallet", "bob"))

    given = told(place, "testnet", "faucet", "erin", "--coin", "1")
    assert given["credits_wei"] > 0
    other = home / "other.toml"
    other.write_text(Path(place["HIVEMINT_NETWORK"]).read_text().replace("chain_id = 31337", "chain_id = 8453"))
    refused = run(place, "testnet", "faucet", "erin", "--network", str(other))
    assert refused.returncode != 0
    assert "another network" in refused.stderr

    dead = next(one for one in told(place, "testnet", "status")["processes"] if one["name"] == "carol-node")
    os.kill(dead["pid"], signal.SIGKILL)
    alone = told(place, "account", "fund", "1 wei", "--wallet", "alice", "--yes")
    assert len(alone["deposits"]) == len(alone["left_out"]) == 1, "a dead node gets nothing, and is named"
    assert alone["total_wei"] == 1
