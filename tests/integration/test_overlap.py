"""Nodes whose spans overlap: routes that use a part of what a node serves, at that part's price."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from hivemint.client.sessions.route import Route
from hivemint.protocol.ids import BlockIndex
from support.real_nodes import ASK, CLIENT, RealNodes, real_nodes
from support.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=4)


@pytest_asyncio.fixture
async def net(folder: Path, tmp_path: Path) -> AsyncIterator[RealNodes]:
    async with real_nodes(folder, tmp_path, spans=((0, 3), (1, 4))) as made:
        yield made


def cut_at(route: Route, block: int) -> Route:
    first, second = sorted(route.legs, key=lambda leg: leg.first)
    return Route((replace(first, end=BlockIndex(block)), replace(second, first=BlockIndex(block))))


async def run(net: RealNodes, cut: int | None, tokens: int = 12) -> None:
    """A prompt and some tokens through the blocks before and behind `cut` (None: wherever the client cuts)."""
    route = await net.client.route(50)
    pipeline = await net.client.along(route if cut is None else cut_at(route, cut), 50)
    rows = torch.randn(tokens, 32)
    got = [await pipeline.forward(rows[:8])]
    got += [await pipeline.forward(rows[at : at + 1]) for at in range(8, tokens)]
    assert torch.allclose(torch.cat(got), net.expected(rows)[7:], atol=1e-5)
    await pipeline.close()


@pytest.mark.parametrize("cut", [1, 2, 3, None])
async def test_a_route_over_parts_of_spans_equals_the_library(net: RealNodes, cut: int | None) -> None:
    await run(net, cut)
    owed = [node.kit.journal.book(CLIENT.address).owed for node in net.nodes]
    assert sum(owed) == 12 * 4 * ASK
    if cut is not None:
        assert owed == [12 * cut * ASK, 12 * (4 - cut) * ASK]


async def test_sessions_of_different_parts_at_the_same_nodes(net: RealNodes) -> None:
    await asyncio.gather(*(run(net, cut) for cut in (1, 2, 3, 2, 3, None)))
    for node in net.nodes:
        assert node.counts.refusals == {}


async def test_a_fork_of_a_part(net: RealNodes) -> None:
    parent = await net.client.along(cut_at(await net.client.route(50), 2), 50)
    rows = torch.randn(10, 32)
    await parent.forward(rows[:8])
    child = await net.client.fork(parent, 50, 8)
    assert child is not None
    assert torch.allclose(await child.forward(rows[8:]), net.expected(rows)[-1:], atol=1e-5)
    await child.close()
    await parent.close()
