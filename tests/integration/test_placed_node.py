"""`hivemint node start MODEL` without blocks, as a process: it measures, chooses, serves, and moves when one leaves."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hivemint.model.local_models import LocalModel
from hivemint.swarm.host import Host, HostSettings
from hivemint.testnet.localnet import NETWORK_NAME, QUICK, Layout, LocalNet
from hivemint.testnet.processes import Child, hivemint, launch, wait_ready

pytest_plugins = ["support.models"]
PATIENCE = 180.0
HALF = 15


@pytest.fixture
def net(smollm2: LocalModel, tmp_path: Path) -> Iterator[LocalNet]:
    made = LocalNet(tmp_path / "net", smollm2)
    try:
        asyncio.run(made.up(Layout(ledger=False), lambda _: None))
        yield made
    finally:
        made.down()


def events(child: Child) -> list[dict[str, Any]]:
    """What the node has said of itself for machines."""
    lines = Path(child.log).read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"event": ')]


def event(child: Child, *names: str) -> list[dict[str, Any]]:
    """All events, once these are the last ones in this order."""
    limit = time.monotonic() + PATIENCE
    while tuple(one["event"] for one in events(child))[-len(names) :] != names:
        assert child.alive, Path(child.log).read_text()[-2000:]
        assert time.monotonic() < limit, events(child)
        time.sleep(0.2)
    return events(child)


async def served(net: LocalNet, operator: str) -> set[tuple[int, int]]:
    """The spans of an operator, as another peer finds them in the directory."""
    host = await Host.start(HostSettings(NETWORK_NAME, listen=(), bootstrap=net.network.bootstrap))
    try:
        found = [one.record for one in await host.find(net.model.model_id, range(net.model.anatomy.num_blocks))]
        return {(one.first_block, one.end_block) for one in found if one.operator == operator}
    finally:
        await host.close()


def span(text: str) -> tuple[int, int]:
    first, _, end = text.partition(":")
    return int(first), int(end)


@pytest.mark.timeout(600)
def test_it_is_placed_and_moves_to_the_blocks_that_lose_their_node(net: LocalNet, tmp_path: Path) -> None:
    words = ["--network", str(net.network_file), "--wallet", "dave", "--password-file", str(net.folder / "password")]
    command = hivemint("node", "start", net.model_argument, *words, "--yes")
    quick = {"HIVEMINT_MAX_BLOCKS": str(HALF), "HIVEMINT_LOOK_AGAIN": "2", "HIVEMINT_HAND_OVER": "1"}
    child = launch("dave", command, tmp_path / "dave.log", QUICK | quick | {"HIVEMINT_HOME": str(net.home.root)})
    try:
        wait_ready(child, PATIENCE)
        placed, ready = events(child)[:2]
        assert (placed["event"], ready["event"]) == ("placed", "ready")
        assert placed["blocks"] == ready["blocks"]
        assert "rows/s through one block, 15 blocks fit" in placed["measured"]
        assert "ms to other nodes and back" in placed["measured"]
        assert "tokens/s" in placed["helps"]
        assert "a day at" in placed["earns"]

        first, end = span(ready["blocks"])
        assert end - first == HALF
        lost = net.plans[0] if first >= HALF / 2 else net.plans[1]  # of which it serves less
        net.child(lost.operator).stop()
        *_, moving, again = event(child, "moving", "ready")
        assert span(moving["to"]) == span(again["blocks"]) == (lost.first, lost.end)
        assert moving["why"].startswith("blocks had no node; with it: ")
        assert again["peer"] == ready["peer"]
        assert asyncio.run(served(net, ready["operator"])) == {(lost.first, lost.end)}
    finally:
        child.stop()
    assert events(child)[-1]["event"] == "draining"
