"""A node that dies in mid-text is replaced: what it had is computed again at another one, and nowhere else."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import torch

from hivemint.client.sessions.pipelines.live_pipeline import LivePipeline
from hivemint.node.engine.scheduler import Lane
from hivemint.node.server import Node
from hivemint.protocol.errors import SwarmError
from hivemint.swarm.messages import AnyMessage, StepReceipt, Tensor
from support.patient import Patient
from support.real_nodes import ASK, CLIENT, RealNodes, emptied, real_nodes
from support.tiny import tiny_model

LAYERS = 3
WIDTH = 32
ZEROS = bytes(32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=LAYERS)


@pytest_asyncio.fixture
async def swarm(folder: Path, tmp_path: Path) -> AsyncIterator[RealNodes]:
    """Two nodes for each block."""
    spans = [(at, at + 1) for at in range(LAYERS) for _ in range(2)]
    async with real_nodes(folder, tmp_path, spans=spans) as made:
        yield made


class Text:
    """Rows through a pipeline, each output compared with the library's."""

    def __init__(self, swarm: RealNodes, pipeline: LivePipeline, rows: torch.Tensor) -> None:
        self.swarm, self.pipeline, self.rows = swarm, pipeline, rows
        self.wanted = swarm.expected(rows)

    async def to(self, end: int) -> None:
        """A token at a time."""
        while (at := self.pipeline.position) < end:
            got = await self.pipeline.forward(self.rows[at : at + 1])
            assert torch.allclose(got, self.wanted[at : at + 1], atol=1e-5), f"position {at}"

    def at(self, hop: int) -> Node:
        return next(n for n in self.swarm.nodes if n.kit.host.peer_id == self.pipeline.sessions[hop].leg.peer)


def kill(*nodes: Node) -> None:
    """From where others stand: its streams break at once, and nobody says why."""
    for node in nodes:
        os.kill(node.kit.host._daemon.child.pid, signal.SIGKILL)


def computed(node: Node, lane: Lane = Lane.PAID) -> int:
    totals = node.kit.journal.totals.paid if lane is Lane.PAID else node.kit.journal.totals.donated
    return totals.tokens_signed


async def begin(swarm: RealNodes, prompt: int = 20, length: int = 40) -> Text:
    text = Text(swarm, await swarm.client.open(50), torch.randn(length, WIDTH))
    got = await text.pipeline.forward(text.rows[:prompt])
    assert torch.allclose(got, text.wanted[prompt - 1 : prompt], atol=1e-5)
    return text


@pytest.mark.parametrize("lane", [Lane.PAID, Lane.DONATED])
@pytest.mark.parametrize("hop", range(LAYERS))
async def test_a_killed_nodes_place_is_taken_and_nothing_else_computed_again(
    swarm: RealNodes, hop: int, lane: Lane
) -> None:
    if lane is Lane.DONATED:
        swarm.go_donated()
    text = await begin(swarm)
    await text.to(28)
    before = [text.at(one) for one in range(LAYERS)]
    kill(before[hop])
    await text.to(40)
    after = [text.at(one) for one in range(LAYERS)]
    assert [one is other for one, other in zip(before, after, strict=True)] == [at != hop for at in range(LAYERS)]
    assert text.pipeline.replayed == text.pipeline.paid_again <= 29
    await text.pipeline.close()
    for node in after:
        await emptied(node)
        assert computed(node, lane) == 40, "each position once at each node that lives"
        assert node.kit.journal.book(CLIENT.address).owed == (40 * ASK if lane is Lane.PAID else 0)
        assert node.counts.refusals == {}


@pytest.mark.parametrize("hops", [(0, 1), (1, 2), (0, 2), (0, 1, 2)])
async def test_several_at_once(swarm: RealNodes, hops: tuple[int, ...]) -> None:
    text = await begin(swarm)
    await text.to(25)
    stay = [text.at(hop) for hop in range(LAYERS) if hop not in hops]
    kill(*(text.at(hop) for hop in hops))
    await text.to(40)
    await text.pipeline.close()
    assert len(text.pipeline._repair.left) >= len(hops)
    for node in stay:
        await emptied(node)
        assert computed(node) == 40


@pytest.mark.parametrize("hop", [0, 1])
async def test_the_one_behind_dies_while_the_first_is_replaced(
    swarm: RealNodes, monkeypatch: pytest.MonkeyPatch, hop: int
) -> None:
    """The new node says that it cannot reach the next one, which is true: it keeps its place."""
    text = await begin(swarm)
    await text.to(25)
    opener, behind = swarm.client._opener, text.at(hop + 1)
    opens = opener.open

    async def late(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(opener, "open", opens)
        kill(behind)
        return await opens(*args, **named)

    monkeypatch.setattr(opener, "open", late)
    kill(text.at(hop))
    await text.to(40)
    assert text.at(hop + 1) is not behind
    await text.pipeline.close()


async def test_one_after_the_other_until_nobody_is_left(swarm: RealNodes) -> None:
    text = await begin(swarm)
    for number, hop in enumerate(range(LAYERS)):
        await text.to(22 + 4 * number)
        kill(text.at(hop))
    await text.to(40)
    assert text.pipeline.replayed <= 23 + 27 + 31
    kill(text.at(1))
    with pytest.raises(SwarmError):
        await text.pipeline.forward(torch.randn(1, WIDTH))
    await text.pipeline.close()


@pytest.mark.parametrize("hop", range(LAYERS))
async def test_while_the_prompt_is_under_way(swarm: RealNodes, hop: int) -> None:
    rows = torch.randn(40, WIDTH)
    text = Text(swarm, await swarm.client.open(50), rows)
    running = asyncio.ensure_future(text.pipeline.forward(rows, rows="all"))
    async with asyncio.timeout(30):
        while not 8 <= text.pipeline.sessions[hop].length < 40:  # noqa: ASYNC110
            await asyncio.sleep(0)
    kill(text.at(hop))
    assert torch.allclose(await running, text.wanted, atol=1e-5)
    stay, again = [text.at(one) for one in range(LAYERS)], text.pipeline.paid_again
    await text.pipeline.close()
    for one, node in enumerate(stay):
        await emptied(node)
        most = 40 if one < hop else 40 + again  # whoever took what nobody can prove any more is one of the lost
        assert 40 <= computed(node) <= most


async def test_a_text_that_was_cropped_and_forked_goes_on(swarm: RealNodes) -> None:
    """The child has the outputs of its parent for those that come after."""
    text = await begin(swarm)
    await text.to(24)
    text.pipeline.crop(22)
    await text.to(26)
    other = torch.cat([text.rows[:23], torch.randn(12, WIDTH)])
    child = await swarm.client.fork(text.pipeline, 50, 23)
    assert child is not None
    branch = Text(swarm, child, other)
    await branch.to(27)
    kill(branch.at(1))
    await asyncio.gather(branch.to(35), text.to(36))
    await asyncio.gather(child.close(), text.pipeline.close())


async def test_outputs_that_are_not_kept_are_computed_again_one_node_earlier(folder: Path, tmp_path: Path) -> None:
    spans = [(at, at + 1) for at in range(LAYERS) for _ in range(2)]
    async with real_nodes(folder, tmp_path, spans=spans, keep_outputs=0) as swarm:
        text = await begin(swarm)
        await text.to(25)
        kill(text.at(2))
        await text.to(32)
        assert text.pipeline.replayed > 2 * 25
        await text.pipeline.close()


def other_rows(message: AnyMessage) -> AnyMessage:
    if not isinstance(message, StepReceipt):
        return message
    return msgspec.structs.replace(message, rows=bytes(len(message.rows)))


def fewer_rows(message: AnyMessage) -> AnyMessage:
    return msgspec.structs.replace(message, rows=b"") if isinstance(message, StepReceipt) else message


def other_head(message: AnyMessage) -> AnyMessage:
    if not isinstance(message, StepReceipt):
        return message
    signed = msgspec.structs.replace(message.receipt, body=msgspec.structs.replace(message.receipt.body, head=ZEROS))
    return msgspec.structs.replace(message, receipt=signed)


def nothing(message: AnyMessage) -> None:
    """It answers pings, and no request."""


def other_shape(message: AnyMessage) -> AnyMessage:
    return Tensor(message.head, message.data[:-4]) if isinstance(message, Tensor) else message


LIES = [*((treat, hop) for treat in (other_rows, nothing) for hop in range(LAYERS)), (fewer_rows, 1), (other_head, 1)]


@pytest.mark.parametrize(("treat", "hop"), LIES)
async def test_a_node_that_lies_or_says_nothing_is_replaced(
    folder: Path, tmp_path: Path, hop: int, treat: Callable[[AnyMessage], AnyMessage | None]
) -> None:
    spans = [(at, at + 1) for at in range(LAYERS) for _ in range(2)]
    async with real_nodes(folder, tmp_path, spans=spans, wrap=Patient) as swarm:
        swarm.client.settings = swarm.client.settings.model_copy(update={"step_floor": 0.5})
        text = await begin(swarm)
        await text.to(25)
        bad = text.at(hop)
        swarm.host.treat, swarm.host.peer = treat, bad.kit.host.peer_id
        await text.to(40)
        assert all(text.at(one) is not bad for one in range(LAYERS))
        await text.pipeline.close()


async def test_a_last_tensor_of_another_shape_costs_its_node_the_place(folder: Path, tmp_path: Path) -> None:
    spans = [(at, at + 1) for at in range(LAYERS) for _ in range(2)]
    async with real_nodes(folder, tmp_path, spans=spans, wrap=Patient) as swarm:
        text = await begin(swarm)
        await text.to(25)
        bad = text.at(LAYERS - 1)
        swarm.host.treat, swarm.host.peer = other_shape, bad.kit.host.peer_id
        await text.to(40)
        assert text.at(LAYERS - 1) is not bad
        await text.pipeline.close()
