"""Which of the nodes that are listed answer, and what is said of them: `swarm status`, the page, `doctor`."""

import json
import re
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import typer

from hivemint.cli import doctor, swarm
from hivemint.cli.network.answering import answering, notes
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import node_name
from hivemint.swarm.dht.clock import SwarmClock
from hivemint.swarm.host import HostSettings
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.records import CheckedRecord, check_record, sign_record
from support.chain import TestChain
from support.node_records import KEY, MODEL, OPERATOR, OTHER, record
from support.verbs import RUNNER
from support.wire import NETWORK, hosts

pytest_plugins = ["support.verbs", "support.chain"]
MINUTES = 300.0


def listed(key: PeerKey, blocks: tuple[int, int], *addresses: str, operator: Any = OPERATOR) -> CheckedRecord:
    said = msgspec.structs.replace(record(key=key, operator=operator, blocks=blocks), addresses=addresses)
    return check_record(sign_record(said, operator, key).to_bytes())


@dataclass
class Place:
    """What `served` asks of a network file."""

    model_id: Any = MODEL

    def model(self, _name: str) -> "Place":
        return self

    def manifest(self, _model: Any) -> bytes:
        return b""


async def test_a_dead_node_is_listed_as_one_that_does_not_answer_and_serves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(swarm, "_block_count", lambda _tensors: 30)
    monkeypatch.setattr("hivemint.model.manifest.parse", lambda _text: SimpleNamespace(tensors=()))
    async with hosts(HostSettings(NETWORK)) as (boot,):
        joined = HostSettings(NETWORK, bootstrap=boot.addresses)
        late = replace(joined, clock=lambda: time.time() - MINUTES)
        async with hosts(late, replace(joined, listen=())) as (node, visitor):
            found = [
                listed(node.key, (0, 15), *node.addresses),
                listed(KEY, (15, 30), "/ip4/127.0.0.1/tcp/9", operator=OTHER),
            ]
            told = await answering(visitor, found)
            assert told[KEY.peer_id] is None
            assert told[node.peer_id] == pytest.approx(-MINUTES, abs=5)
            (line,) = notes(visitor, found, told)
            assert line.startswith(f"the clock of node {node_name(OPERATOR.address)} is ")
            assert line.endswith("behind")

            async def find(*_: Any) -> list[CheckedRecord]:
                return found

            monkeypatch.setattr(visitor, "find", find)
            network: Any = Place()
            report: Any = await swarm.served(visitor, network, "model")
            assert [one["answers"] for one in report["nodes"]] == [True, False]
            assert report["missing"] == ["15:30"]
            assert report["notes"] == [line]


async def test_who_is_listed_twice_and_a_wrong_clock_here_are_noted() -> None:
    async with hosts(HostSettings(NETWORK)) as (boot,):
        ahead = HostSettings(NETWORK, bootstrap=boot.addresses, listen=(), clock=lambda: time.time() + MINUTES)
        async with hosts(ahead) as (visitor,):
            found = [listed(KEY, (0, 15)), listed(PeerKey.generate(), (0, 15))]
            clock, twice = notes(visitor, found, {boot.peer_id: -MINUTES})
            assert "5 min 0 s" in clock
            assert "is listed with 2 peer ids" in twice


def findings(network: Network) -> dict[str, Any]:
    app = typer.Typer()
    app.command()(doctor.doctor)
    result = RUNNER.invoke(app, ["--network", str(network.path), "--json"])
    return {one["check"]: one for one in json.loads(result.stdout)["findings"]}


@pytest.mark.parametrize(("off", "side"), [(MINUTES, "ahead"), (-MINUTES, "behind")])
def test_doctor_tells_of_a_clock_that_is_off(
    off: float, side: str, testchain: TestChain, home: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the chain's, and where another peer is met that one's too."""
    testchain.devchain.mine()
    skew = testchain.devchain.time() - time.time()
    wrong = SimpleNamespace(time=lambda: time.time() + skew + off, monotonic=time.monotonic)
    monkeypatch.setattr("hivemint.swarm.dht.clock.time", wrong)
    found = findings(testchain.network)["clock"]
    assert not found["ok"]
    assert re.match(r"your clock differs from the chain's by (5 min \d|4 min 5\d) s", found["found"]), found
    assert f"it is {side}" in found["found"]
    assert "set-ntp" in found["next_step"]


def test_doctor_finds_nothing_wrong_with_a_clock_that_peers_agree_with() -> None:
    clock = SwarmClock()
    clock.hear([("a", 0.1), ("b", -0.1)])
    clock.see_block(time.time() + 7200)
    found = doctor._clock(clock)
    assert found.ok
    assert found.found == "as that of 2 network(s) of peers; the chain's newest block is 2 h 0 min ahead"
