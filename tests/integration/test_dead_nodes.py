"""Processes of nodes that die, hang and come back: what directory, client and `swarm status` know of them then."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from hivemint.cli.network.answering import answering
from hivemint.client.pipeline import Trail
from hivemint.client.sessions.errors import NodeGone
from hivemint.client.sessions.nodes import Target
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.route import Leg, Route
from hivemint.client.sessions.swarm_client import SwarmClient
from hivemint.client.sessions.wallet import Identity
from hivemint.client.settings import Bid, ClientSettings
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import BlockIndex, Credits, PeerId
from hivemint.swarm.dht.doubles import doubled
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.records import CheckedRecord
from support.promises import DOMAIN, GENESIS
from support.real_nodes import CLIENT, MODEL

pytest_plugins = ["support.tiny"]
pytestmark = pytest.mark.timeout(600)
PROCESS = Path(__file__).parents[1] / "support" / "node_process.py"
START, TRIED, ALL = 240.0, 10.0, 60.0
"""Seconds for a start; and in which a dead node is out of answers for whoever tried it, and for all."""


@dataclass
class Swarm:
    """A bootstrap peer and a visitor in this process, and nodes in processes of their own."""

    model: Path
    folder: Path
    boot: Host
    visitor: Host
    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self, home: str, blocks: tuple[int, int], operator: int) -> tuple[int, PeerId]:
        """Its process id and its peer, once it has published."""
        asked = {
            "model": str(self.model),
            "home": str(self.folder / home),
            "blocks": blocks,
            "bootstrap": self.boot.addresses,
            "operator": operator,
        }
        path = os.pathsep.join([str(PROCESS.parents[1]), os.environ.get("PYTHONPATH", "")])
        node = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROCESS),
            json.dumps(asked),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.running.append(node)
        assert node.stdout is not None
        async with asyncio.timeout(START):
            told = json.loads(await node.stdout.readline())
        return node.pid, PeerId(bytes.fromhex(told["peer"]))

    async def kill(self, pid: int) -> None:
        node = next(one for one in self.running if one.pid == pid)
        node.kill()
        await node.wait()

    async def listed(self, first: int = 0, end: int = 2) -> list[CheckedRecord]:
        return await self.visitor.find(MODEL, range(first, end))

    async def until_listed(self, *peers: PeerId) -> None:
        while {one.peer for one in await self.listed()} != set(peers):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


@asynccontextmanager
async def started(model: Path, folder: Path) -> AsyncIterator[Swarm]:
    async with AsyncExitStack() as stack:
        boot = await Host.start(HostSettings("test"))
        stack.push_async_callback(boot.close)
        visitor = await Host.start(HostSettings("test", listen=(), bootstrap=boot.addresses))
        stack.push_async_callback(visitor.close)
        made = Swarm(model, folder, boot, visitor)
        try:
            yield made
        finally:
            for node in made.running:
                with suppress(ProcessLookupError):
                    node.kill()
                await node.wait()


@pytest_asyncio.fixture
async def swarm(tiny_folder: Path, tmp_path: Path) -> AsyncIterator[Swarm]:
    async with started(tiny_folder, tmp_path) as made:
        yield made


def client_of(swarm: Swarm, **settings: Any) -> SwarmClient:
    """A client that asks nobody for anything but donated work; closing it closes the visitor."""
    book = VoucherBook.open(swarm.folder / "vouchers.db", DOMAIN, CLIENT.address, GENESIS)
    payer = Payer(Identity.own(CLIENT), DOMAIN, book)
    return SwarmClient(swarm.visitor, Target(MODEL, 2, 32), payer, ClientSettings(bid=Bid("free"), **settings))


async def tries(client: SwarmClient, one: CheckedRecord) -> None:
    """As a route would; what comes of it is remembered as for one."""
    numerics: Any = one.record.numerics[0]
    leg = Leg(one.record, BlockIndex(0), BlockIndex(2), Credits(0), numerics, 0.0, 0.0)
    with pytest.raises(SwarmError) as failed:
        await client.along(Route((leg,)), 8)
    assert client.another_way(failed.value)


async def test_a_killed_and_a_stopped_node_are_out_of_answers_for_who_tried_them_and_then_for_all(swarm: Swarm) -> None:
    killed, stopped, alive = await asyncio.gather(
        *(swarm.start(name, (0, 2), 1001 + number) for number, name in enumerate(("killed", "stopped", "alive")))
    )
    await swarm.until_listed(killed[1], stopped[1], alive[1])
    listed = {one.peer: one for one in await swarm.listed()}
    client = client_of(swarm)
    assert len(await client.nodes.usable()) == len(listed)
    await swarm.kill(killed[0])
    os.kill(stopped[0], signal.SIGSTOP)
    async with asyncio.timeout(ALL):
        async with asyncio.timeout(TRIED):
            await asyncio.gather(*(tries(client, listed[peer]) for _, peer in (killed, stopped)))
            assert [one.peer for one in await client.nodes.usable()] == [alive[1]]
        async with asyncio.timeout(TRIED):
            told = await answering(swarm.visitor, list(listed.values()))
        assert {peer for peer, seconds in told.items() if seconds is None} == {killed[1], stopped[1]}
        await swarm.until_listed(alive[1])


async def test_a_quick_restart_leaves_one_record_and_a_lost_peer_key_is_told(swarm: Swarm) -> None:
    pid, peer = await swarm.start("home", (0, 1), 1001)
    await swarm.until_listed(peer)
    await swarm.kill(pid)
    pid, again = await swarm.start("home", (1, 2), 1001)
    assert again == peer
    assert await swarm.listed(0, 1) == [], "the record of the blocks served before is taken back"
    (only,) = await swarm.listed()
    assert only.record.blocks == range(1, 2)
    assert doubled([only]) == []
    _, other = await swarm.start("another home", (1, 2), 1001)
    await swarm.until_listed(peer, other)
    (line,) = doubled(await swarm.listed())
    assert "is listed with 2 peer ids" in line
    assert "its peer key was lost" in line


async def test_a_text_waits_for_its_only_node_to_be_started_anew(swarm: Swarm) -> None:
    (_, first), (pid, second) = await asyncio.gather(swarm.start("a", (0, 1), 1001), swarm.start("b", (1, 2), 1002))
    await swarm.until_listed(first, second)
    client, rows = client_of(swarm, wait_for_return=START), torch.randn(14, 32)
    whole = expected(swarm.model, rows)
    text = await client.open(20)
    got = [await text.forward(rows[:10], rows="all")]
    for at, end in ((10, signal.SIGKILL), (12, signal.SIGTERM)):
        os.kill(pid, end)
        going_on = asyncio.create_task(text.forward(rows[at : at + 1]))
        await next(one for one in swarm.running if one.pid == pid).wait()
        pid, again = await swarm.start("b", (1, 2), 1002)
        assert again == second
        got += [await going_on, await text.forward(rows[at + 1 : at + 2])]
    assert torch.allclose(torch.cat(got), whole, atol=1e-5)
    assert text.replayed <= 11 + 13, "of the lost block alone"
    client.settings = client.settings.model_copy(update={"wait_for_return": 2.0})
    await text.close()
    text = await client.open(20)
    await text.forward(rows[:10])
    name = text.sessions[1].leg.name
    await swarm.kill(pid)
    with pytest.raises(NodeGone, match=name):
        await text.forward(rows[10:11])


async def test_a_lane_of_training_waits_for_its_only_node_to_be_started_anew(swarm: Swarm) -> None:
    (_, first), (pid, second) = await asyncio.gather(swarm.start("a", (0, 1), 1001), swarm.start("b", (1, 2), 1002))
    await swarm.until_listed(first, second)
    client, x = client_of(swarm, wait_for_return=START), torch.randn(6, 32, requires_grad=True)
    (wanted,) = torch.autograd.grad((expected(swarm.model, x) ** 2).sum(), x)
    lane, trail = await client.relay(8, 64), Trail({0: x.detach()})
    out = await lane.forward(trail)
    await swarm.kill(pid)
    back = Trail(trail.states, {trail.end: 2 * out})
    with pytest.raises(NodeGone):
        await lane.backward(back)
    mending = asyncio.create_task(lane.mend())
    _, again = await swarm.start("b", (1, 2), 1002)
    assert again == second
    assert await mending
    assert torch.allclose(await lane.backward(back), wanted, atol=1e-4)
    await lane.close()


def expected(model: Path, rows: torch.Tensor) -> torch.Tensor:
    """What the library's own blocks make of `rows`, before the last norm."""
    auto: Any = AutoModelForCausalLM
    whole, hidden = auto.from_pretrained(model, dtype=torch.float32).eval(), []
    whole.model.layers[-1].register_forward_hook(lambda _, __, out: hidden.append(out))
    whole(inputs_embeds=rows[None])
    found: torch.Tensor = hidden[0][0] if isinstance(hidden[0], tuple) else hidden[0]
    return found.reshape(rows.shape)
