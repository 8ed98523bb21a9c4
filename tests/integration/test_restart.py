"""A client's process is killed and begins again: what its nodes still hold is neither computed nor paid again."""

import asyncio
import json
import os
import stat
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hivemint.client.kept import TextMark
from hivemint.client.sessions.pipelines.live_pipeline import LivePipeline
from hivemint.node.server import Node
from support import kept_client
from support.real_nodes import ASK, CLIENT, RealNodes, emptied, real_nodes

pytest_plugins = ["support.two_nodes"]

PROMPT, TOKENS = list(range(3, 23)), 24


async def lost(net: RealNodes, pipeline: LivePipeline) -> None:
    """Its links end without a word."""
    for session in pipeline.sessions:
        session.link.abort("the cable was pulled")
    for node in net.nodes:
        await emptied(node)
    await pipeline.close()


def owed(node: Node) -> int:
    """Positions."""
    return node.kit.journal.book(CLIENT.address).owed // ASK


async def begun(net: RealNodes, rows: torch.Tensor) -> tuple[LivePipeline, TextMark]:
    pipeline = await net.client.open(50)
    await pipeline.forward(rows)
    mark = await net.client.mark(pipeline)
    assert mark is not None
    return pipeline, mark


async def test_a_new_session_begins_with_what_a_lost_client_had(two_nodes: RealNodes) -> None:
    rows = torch.randn(24, 32)
    pipeline, mark = await begun(two_nodes, rows[:20])
    await lost(two_nodes, pipeline)
    assert [len(node.registry.parking) for node in two_nodes.nodes] == [1, 1]
    again = await two_nodes.client.fork(two_nodes.client.recall(mark), 50, 20)
    assert again is not None
    got = await again.forward(rows[20:], rows="all")
    assert torch.allclose(got, two_nodes.expected(rows)[20:], atol=1e-5)
    await again.close()
    for node in two_nodes.nodes:
        assert owed(node) == node.kit.journal.totals.paid.tokens_signed == 24
        assert node.kit.journal.totals.promised == 24 * ASK
        assert node.counts.refusals == {}


async def test_a_mark_may_be_a_step_older_than_what_the_node_has(two_nodes: RealNodes) -> None:
    """The client was killed with a step under way: the session is found all the same, and cut back to the mark."""
    rows, other = torch.randn(24, 32), torch.randn(4, 32)
    pipeline, mark = await begun(two_nodes, rows[:20])
    await pipeline.forward(rows[20:21])
    await pipeline.settle()
    await lost(two_nodes, pipeline)
    text = torch.cat([rows[:20], other])
    again = await two_nodes.client.fork(two_nodes.client.recall(mark), 50, 20)
    assert again is not None
    got = await again.forward(other, rows="all")
    assert torch.allclose(got, two_nodes.expected(text)[20:], atol=1e-5)
    await again.close()
    assert [owed(node) for node in two_nodes.nodes] == [25, 25]


async def test_what_was_overwritten_since_is_no_beginning(two_nodes: RealNodes) -> None:
    """A crop: of the older state only what is before it is still there."""
    rows = torch.randn(24, 32)
    pipeline, mark = await begun(two_nodes, rows[:20])
    pipeline.crop(12)
    await pipeline.forward(torch.randn(2, 32))
    await pipeline.settle()
    await lost(two_nodes, pipeline)
    assert await two_nodes.client.fork(two_nodes.client.recall(mark), 50, 20) is None
    again = await two_nodes.client.fork(two_nodes.client.recall(mark), 50, 12)
    assert again is not None
    got = await again.forward(rows[12:], rows="all")
    assert torch.allclose(got, two_nodes.expected(rows)[12:], atol=1e-5)
    await again.close()


async def test_a_talk_that_was_closed_leaves_nothing_at_its_nodes(two_nodes: RealNodes) -> None:
    pipeline, mark = await begun(two_nodes, torch.randn(20, 32))
    await pipeline.close()
    for node in two_nodes.nodes:
        await emptied(node)
        assert len(node.registry.parking) == 0
        assert node.engine.room.store.bytes_used == 0
    assert await two_nodes.client.fork(two_nodes.client.recall(mark), 50, 20) is None
    assert await two_nodes.client.plan(50), "nobody is set aside for it"


async def test_parked_room_is_the_first_to_go(two_nodes: RealNodes) -> None:
    """Nobody waits for it to be idle, and a node that goes down forgets it at once."""
    pipeline, _ = await begun(two_nodes, torch.randn(20, 32))
    await lost(two_nodes, pipeline)
    first, second = two_nodes.nodes
    room = first.engine.room
    assert room._evict_one(room.seats[0].lane, room._clock())
    assert (len(first.registry.parking), room.seats, first._services.seats) == (0, [], {})
    assert first.registry._accounts == {}
    await second.close()
    assert len(second.registry.parking) == 0


# --- processes


@asynccontextmanager
async def child(net: RealNodes, folder: Path, home: Path, rest_at: int = 0, bid: str = "ask") -> AsyncIterator[Process]:
    job: dict[str, Any] = {"bootstrap": list(net.nodes[0].kit.host.addresses)}
    job |= {"home": str(home), "model": str(folder), "bid": bid}
    job |= {"prompt": PROMPT, "tokens": TOKENS, "rest_at": rest_at}
    here = str(Path(kept_client.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    process = await asyncio.create_subprocess_exec(
        sys.executable, kept_client.__file__, json.dumps(job), stdout=PIPE, env=environment, limit=1 << 20
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def heard(process: Process, what: str, count: int = 1) -> list[dict[str, Any]]:
    """All lines until the `count`th of a kind."""
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []
    async with asyncio.timeout(120):
        while sum(one["what"] == what for one in lines) < count:
            line = await process.stdout.readline()
            assert line, lines
            if line.startswith(b"{"):  # else it is of the log
                lines.append(json.loads(line))
    return lines


def library(net: RealNodes) -> list[int]:
    answer = net.whole.generate(
        torch.tensor([PROMPT]), do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, eos_token_id=None
    )
    ids: list[int] = answer[0].tolist()
    return ids


@pytest.mark.parametrize("bid", ["ask", "free"])
async def test_a_killed_client_goes_on_token_for_token(tiny_folder: Path, tmp_path: Path, bid: str) -> None:
    """kill -9 between two steps: nothing is paid again, to the position."""
    home, paid = tmp_path / "client", bid == "ask"
    home.mkdir()
    async with real_nodes(tiny_folder, tmp_path) as net:
        expected, cut = library(net), len(PROMPT) + 9
        async with child(net, tiny_folder, home, cut, bid) as process:
            await heard(process, "at rest")
            kept = home / "talk"
            assert stat.S_IMODE(kept.stat().st_mode) == 0o600
            assert CLIENT.secret() not in kept.read_bytes()
            process.kill()
            await process.wait()
        for node in net.nodes:
            await emptied(node)
        async with child(net, tiny_folder, home, bid=bid) as process:
            found, *_, done = await heard(process, "done")
            assert await process.wait() == 0
        assert found["ids"] == expected[:cut]
        assert found["note"] == {"prompt": len(PROMPT)}
        assert done["ids"] == expected
        assert done["replayed"] == 0
        assert not kept.exists(), "the talk was closed"
        positions = len(PROMPT) + TOKENS - 1
        for node in net.nodes:
            totals = node.kit.journal.totals.paid if paid else node.kit.journal.totals.donated
            assert totals.tokens_signed == positions, "each position once"
            assert owed(node) == (positions if paid else 0)
        if paid:
            assert done["spent"] == (len(expected) - cut) * 2 * ASK


async def test_a_client_that_is_killed_with_a_step_under_way_pays_that_step_alone_again(
    tiny_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "client"
    home.mkdir()
    async with real_nodes(tiny_folder, tmp_path) as net:
        expected, positions = library(net), len(PROMPT) + TOKENS - 1
        for count in (3, 5):
            async with child(net, tiny_folder, home) as process:
                await heard(process, "tokens", count)  # the first line is the prompt
                process.kill()
                await process.wait()  # and it is begun again at once: the nodes may not have missed it yet
        async with child(net, tiny_folder, home) as process:
            _, *_, done = await heard(process, "done")
        assert done["ids"] == expected
        assert done["replayed"] == 0
        for node in net.nodes:
            assert positions <= owed(node) <= positions + 2 * 2, "of two kills, two steps each at most"
            assert node.kit.journal.book(CLIENT.address).earned <= owed(node) * ASK


async def test_what_nodes_have_given_to_others_is_computed_again_and_said(tiny_folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "client"
    home.mkdir()
    async with real_nodes(tiny_folder, tmp_path) as net:
        expected, cut = library(net), len(PROMPT) + 5
        async with child(net, tiny_folder, home, cut) as process:
            await heard(process, "at rest")
            process.kill()
            await process.wait()
        for node in net.nodes:
            await emptied(node)
        net.nodes[1].registry.parking.clear()
        async with child(net, tiny_folder, home) as process:
            _, *_, done = await heard(process, "done")
        assert done["ids"] == expected
        assert done["replayed"] == cut - 1
