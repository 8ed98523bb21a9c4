"""`hivemint node status`: running or not and since when, with the chain away, and with nothing but the books."""

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemint.cli.console import emit
from hivemint.cli.node import verbs
from hivemint.cli.node.standing import STATUS_SIZE, LastSeen, brought_up, last_seen, running, show
from hivemint.ledger.books.journal import Journal
from hivemint.node.status import Snapshot
from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.network import Contracts, Network
from hivemint.protocol.node_name import node_name
from hivemint.protocol.signing import Signer
from support.verbs import RUNNER, told

pytest_plugins = ["support.verbs"]
NOW = 1_800_000_000.0
SEEN = {"model": "a model", "blocks": "0:15", "credits": {}, "reasons": {}, "at": NOW - 1, "started": NOW - 60}


def seen(tmp_path: Path, document: dict[str, Any]) -> LastSeen:
    (tmp_path / "status.json").write_text(json.dumps(document))
    found = last_seen(tmp_path / "status.json")
    assert found is not None
    return found


def test_running_stopped_and_ended_without_a_word(tmp_path: Path) -> None:
    alive = SEEN | {"pid": os.getpid()}
    assert running(seen(tmp_path, alive), NOW) == {
        "running": True,
        "since": NOW - 60,
        "state": "running since 2027-01-15 07:59:00 UTC",
    }
    stopped = running(seen(tmp_path, alive | {"stopped": NOW - 30}), NOW)
    assert (stopped["running"], stopped["since"]) == (False, NOW - 30)
    assert "stopped since" in stopped["state"]
    for ended in (SEEN | {"pid": 2**22 + 1}, alive | {"at": NOW - 100}, SEEN):
        found = running(seen(tmp_path, ended), NOW)
        assert not found["running"]
        assert "without a word" in found["state"]
    assert last_seen(tmp_path / "none.json") is None
    assert "never started" in running(None, NOW)["state"]


def test_what_was_claimed_since_it_stopped_is_no_longer_left_to_collect(tmp_path: Path) -> None:
    flow = {"settled": 10, "minted": 9, "unsettled": 100, "donated_minted": 5, "earned": 14, "signed": 120}
    reasons = {"settled": "less than a settlement is worth", "donated": "next epoch"}
    before = seen(tmp_path, SEEN | {"stopped": NOW, "flow": flow, "reasons": reasons})
    books = {"settled": 110, "minted": 104, "unsettled": 0, "earned": 104, "donated_minted": 0, "signed": 120}
    after = brought_up(before, books)
    assert after.flow == flow | {"settled": 110, "minted": 104, "unsettled": 0, "earned": 109}
    assert after.reasons == {"donated": "next epoch"}
    for same in ({}, books | {"settled": 10}, books | {"settled": 0}):
        assert brought_up(before, same) == before


def test_all_that_a_node_writes_is_read() -> None:
    assert {one.name for one in msgspec.structs.fields(LastSeen)} == {one.name for one in fields(Snapshot)} | {"pid"}


DAMAGED = [
    ("at", '"x"'),
    ("at", "1e300"),
    ("at", "-1.0"),
    ("at", "null"),
    ("at", "NaN"),
    ("at", "1e999"),
    ("started", "1e18"),
    ("stopped", "[1]"),
    ("reach", "5"),
    ("reach", '[["a"]]'),
    ("reach", '[["a", 1]]'),
    ("reach_fix", "{}"),
    ("ask", '"z"'),
    ("ask", "0.5"),
    ("ask", "1" + "0" * 60),
    ("ask_note", "7"),
    ("pid", '"x"'),
    ("pid", "-1"),
    ("pid", str(2**31)),
    ("pid", "1" + "0" * 30),
    ("flow", "[]"),
    ("flow", '{"earned": "5"}'),
    ("flow", '{"earned": -1' + "0" * 60 + "}"),
    ("flow", '{"earned": -1' + "0" * 5000 + "}"),
    ("reasons", '{"settled": 5}'),
    ("reasons", '"x"'),
    ("blocks", "null"),
]


@pytest.mark.parametrize(("name", "value"), DAMAGED, ids=lambda text: text[:20])
def test_a_damaged_status_is_refused_by_name(tmp_path: Path, name: str, value: str) -> None:
    told = {known: json.dumps(one) for known, one in SEEN.items()} | {name: value}
    (tmp_path / "status.json").write_text("{" + ", ".join(f'"{known}": {one}' for known, one in told.items()) + "}")
    with pytest.raises(ConfigError, match=r"status\.json is not a node's status.*remove it"):
        last_seen(tmp_path / "status.json")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**200), 2**200) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["earned", "bound", "x"]), inner),
    max_leaves=5,
)
NAMES = sorted(one.name for one in msgspec.structs.fields(LastSeen))
FULL: dict[str, Any] = SEEN | {
    "pid": os.getpid(),
    "flow": {"signed": 5, "earned": 5, "unsettled": 2, "bound_tokens": 3},
    "reach": [["/ip4/127.0.0.1/tcp/1", "this machine alone"]],
    "ask": 10**11,
}


def survives(path: Path) -> None:
    """It is told, or refused in words."""
    try:
        found = last_seen(path)
    except BadInput:
        return
    told: dict[str, Any] = {"operator": "0x" + "11" * 20, "chain": "it is away", "last_seen": found, **running(found)}
    show(told)
    emit(told)


@settings(max_examples=300, deadline=None)
@given(damage=st.dictionaries(st.sampled_from(NAMES), ANY, min_size=1, max_size=3))
def test_whatever_type_stands_there_is_told_or_refused(
    tmp_path_factory: pytest.TempPathFactory, damage: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "status.json"
    path.write_text(json.dumps(FULL | damage))
    survives(path)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 600), piece=st.binary(max_size=6) | st.sampled_from([b"[" * 50_000, b"1e999", b"-", b'":']))
def test_whatever_bytes_stand_there_are_told_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, piece: bytes
) -> None:
    path, data = tmp_path_factory.getbasetemp() / "status-bytes.json", json.dumps(FULL).encode()
    path.write_bytes(data[:at] + piece + data[at + len(piece) :])
    survives(path)


def test_what_is_no_small_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_bytes(b" " * (STATUS_SIZE + 1))
    (tmp_path / "c").write_text(json.dumps(SEEN)[:-1] + ', "new": ' + "[" * 100_000)
    for name in "abc":
        with pytest.raises(BadInput):
            last_seen(tmp_path / name)


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
