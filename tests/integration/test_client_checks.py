"""The client against two real nodes: equal to the whole model, every step bound, every doctored byte seen."""

import asyncio
from collections.abc import Callable

import pytest
import torch

from hivemint.client.sessions.errors import NodeGone, NodeLied, NodeRefusal
from hivemint.client.sessions.pipelines.live_pipeline import LivePipeline
from hivemint.swarm.messages import AnyMessage
from support.lies import changed_output, changed_rows, changed_signature, more_tokens
from support.real_nodes import ASK, CLIENT, RealNodes

pytest_plugins = ["support.two_nodes"]


async def run(pipeline: LivePipeline, steps: int) -> None:
    try:
        for _ in range(steps):
            await pipeline.forward(torch.randn(1, 32))
    finally:
        await pipeline.close()


async def test_equal_to_the_library_and_all_work_is_countersigned(two_nodes: RealNodes) -> None:
    rows = torch.randn(20, 32)
    pipeline = await two_nodes.client.open(40)
    got = [await pipeline.forward(rows[:16]), *[await pipeline.forward(rows[at : at + 1]) for at in range(16, 20)]]
    await pipeline.close()
    assert torch.allclose(torch.cat(got), two_nodes.expected(rows)[15:], atol=1e-5)
    for node in two_nodes.nodes:
        book = node.kit.journal.book(CLIENT.address)
        assert book.owed == book.earned == 20 * ASK
        assert node.kit.journal.totals.paid.tokens_countersigned == 20
        assert node.counts.refusals == {}


async def test_the_donated_lane(two_nodes: RealNodes) -> None:
    two_nodes.go_donated()
    pipeline = await two_nodes.client.open(40)
    await pipeline.forward(torch.randn(5, 32))
    await run(pipeline, 3)
    for node in two_nodes.nodes:
        assert node.kit.journal.totals.donated.tokens_countersigned == 8


async def test_several_sequences_at_once(two_nodes: RealNodes) -> None:
    async def one() -> None:
        pipeline = await two_nodes.client.open(30)
        rows = torch.randn(9, 32)
        got = [await pipeline.forward(rows[:8]), await pipeline.forward(rows[8:])]
        await pipeline.close()
        assert torch.allclose(torch.cat(got), two_nodes.expected(rows)[7:], atol=1e-5)

    await asyncio.gather(*(one() for _ in range(6)))
    for node in two_nodes.nodes:
        book = node.kit.journal.book(CLIENT.address)
        assert book.owed == book.earned == 6 * 9 * ASK


LIES = [
    (changed_output, 1),
    *((lie, who) for lie in (changed_rows, changed_signature, more_tokens) for who in (0, 1)),
]


@pytest.mark.parametrize(("change", "who"), LIES)
async def test_a_doctored_message_is_noticed_before_its_step_is_bound(
    two_nodes: RealNodes, change: Callable[[AnyMessage], AnyMessage], who: int
) -> None:
    """P17: steps 1 and 2 are honest; of step 3 no voucher is ever signed."""
    peer = two_nodes.nodes[who].offer.peer
    pipeline = await two_nodes.client.open(40)
    for _ in range(2):
        await pipeline.forward(torch.randn(1, 32))
    two_nodes.host.doctor = lambda sender, message: change(message) if sender == peer else message
    with pytest.raises(NodeLied):
        await run(pipeline, 2)
    for node in two_nodes.nodes:
        assert node.kit.journal.totals.paid.tokens_countersigned <= 2


@pytest.mark.parametrize("who", [0, 1])
async def test_a_node_whose_place_in_the_swarm_dies_is_named(two_nodes: RealNodes, who: int) -> None:
    pipeline = await two_nodes.client.open(40)
    await pipeline.forward(torch.randn(3, 32))
    two_nodes.nodes[who].kit.host._daemon.child.kill()
    with pytest.raises(NodeGone, match=two_nodes.nodes[who].kit.signer.address):
        await run(pipeline, 20)


async def test_what_a_node_refuses_comes_in_its_own_words(two_nodes: RealNodes) -> None:
    two_nodes.nodes[0].kit.chain.now = 2**40  # type: ignore[attr-defined]
    with pytest.raises(NodeRefusal) as caught:
        await two_nodes.client.open(40)
    assert caught.value.code == "expiry"
    assert caught.value.why
