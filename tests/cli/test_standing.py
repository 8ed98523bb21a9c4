"""`hivemint node status`: running or not and since when, with the chain away, and with nothing but the books."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hivemint.cli.node import verbs
from hivemint.cli.node.standing import running
from hivemint.ledger.books.journal import Journal
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.network import Contracts, Network
from hivemint.protocol.node_name import node_name
from hivemint.protocol.signing import Signer
from support.verbs import RUNNER, told

pytest_plugins = ["support.verbs"]
NOW = 1_800_000_000.0
SEEN = {"model": "a model", "blocks": "0:15", "credits": {}, "reasons": {}, "at": NOW - 1, "started": NOW - 60}


def test_running_stopped_and_ended_without_a_word() -> None:
    alive = SEEN | {"pid": os.getpid()}
    assert running(alive, NOW) == {
        "running": True,
        "since": NOW - 60,
        "state": "running since 2027-01-15 07:59:00 UTC",
    }
    stopped = running(alive | {"stopped": NOW - 30}, NOW)
    assert (stopped["running"], stopped["since"]) == (False, NOW - 30)
    assert "stopped since" in stopped["state"]
    for ended in (SEEN | {"pid": 2**22 + 1}, alive | {"at": NOW - 100}, SEEN | {"pid": "x"}):
        found = running(ended, NOW)
        assert not found["running"]
        assert "without a word" in found["state"]
    assert "never started" in running({}, NOW)["state"]


@pytest.fixture
def away(tmp_path: Path, home: Path) -> tuple[Network, Address]:
    """A network whose chain does not answer, and a wallet."""
    operator = Keystores().add("op", Signer(b"\x31" * 32), "correct horse", n=CHEAP_SCRYPT_N).address
    zero = Address("0x" + "11" * 20)
    network = Network("away", 31337, "http://127.0.0.1:1", Contracts(*[zero] * 6))
    return network.save(tmp_path / "network.toml"), operator


def test_it_works_with_the_chain_away(away: tuple[Network, Address], home: Path) -> None:
    network, operator = away
    words = ("status", "--wallet", "op", "--network", str(network.path))
    folder = home / "nodes" / "op"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps(SEEN | {"pid": os.getpid(), "stopped": NOW, "flow": {"earned": 5}}))
    found = told(verbs.app, *words)
    assert found["registered"] is None
    assert (found["name"], found["operator"]) == (node_name(operator), operator)
    assert found["last_seen"]["flow"]["earned"] == 5
    shown = " ".join(RUNNER.invoke(verbs.app, list(words), catch_exceptions=False).stdout.split())
    assert node_name(operator) in shown
    assert "stopped since 2027-01-15 08:00:00 UTC" in shown
    assert "does not answer" in shown
    assert "earned in all 5" in shown


def test_it_tells_what_the_books_know_of_a_node_that_left_no_word(away: tuple[Network, Address], home: Path) -> None:
    import asyncio

    network, operator = away
    folder = home / "nodes" / "op"
    folder.mkdir(parents=True)
    journal = Journal.open(f"sqlite:///{folder / 'journal.db'}", network.domain, operator)
    asyncio.run(journal.close())
    found = told(verbs.app, "status", "--wallet", "op", "--network", str(network.path))
    assert found["books"]["earned"] == "0" or found["books"]["earned"] == 0
    assert found["state"] == "never started from this folder"
    other = replace(network, name="other")
    assert other.domain == network.domain
