"""Texts that begin alike, through a route of real nodes: what is computed once, paid once, and proved all the same."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from hivemint.client.generation.bill import Bill
from hivemint.client.generation.causal_lm import SwarmModelForCausalLM
from hivemint.client.generation.ends import Ends
from hivemint.client.generation.sequences import Sequence
from hivemint.client.sessions.pipelines.live_pipeline import LivePipeline
from hivemint.model.local_models import LocalModel
from hivemint.node.engine.scheduler import Lane
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.home import Home
from hivemint.protocol.receipt import following, fork, opening
from hivemint.swarm.messages import AnyMessage, StepReceipt
from support.own_loop import Here
from support.real_nodes import ASK, CLIENT, RealNodes, emptied, real_nodes

pytest_plugins = ["support.two_nodes"]


async def branch(two_nodes: RealNodes, parent: LivePipeline, rows: torch.Tensor, count: int) -> LivePipeline:
    """Fork at `count` and go on with the rest of `rows`; equal to the library."""
    child = await two_nodes.client.fork(parent, 50, count)
    assert child is not None
    assert child.position == count
    got = await child.forward(rows[count:], rows="all")
    assert torch.allclose(got, two_nodes.expected(rows)[count:], atol=1e-5)
    return child


@pytest.mark.parametrize("lane", [Lane.PAID, Lane.DONATED])
async def test_a_common_beginning_is_computed_and_owed_once(two_nodes: RealNodes, lane: Lane) -> None:
    if lane is Lane.DONATED:
        two_nodes.go_donated()
    start, ends = torch.randn(20, 32), torch.randn(3, 4, 32)
    parent = await two_nodes.client.open(50)
    await parent.forward(start)
    children = await asyncio.gather(*(branch(two_nodes, parent, torch.cat([start, end]), 20) for end in ends))
    grandchild = await branch(two_nodes, children[0], torch.cat([start, ends[0], ends[1]]), 24)
    other = torch.cat([start, torch.randn(2, 32)])
    assert torch.allclose(await parent.forward(other[20:]), two_nodes.expected(other)[-1:], atol=1e-5)
    for pipeline in (parent, *children, grandchild):
        await pipeline.close()
    computed = 20 + 3 * 4 + 4 + 2
    for node in two_nodes.nodes:
        totals = node.kit.journal.totals.paid if lane is Lane.PAID else node.kit.journal.totals.donated
        assert totals.tokens_signed == totals.tokens_countersigned == computed
        assert node.kit.journal.book(CLIENT.address).owed == (computed * ASK if lane is Lane.PAID else 0)
        assert node.counts.refusals == {}
        await emptied(node)
        assert node.engine.room.store.bytes_used == 0


async def test_every_receipt_of_a_child_is_bound_to_what_its_kv_came_from(two_nodes: RealNodes) -> None:
    """An auditor who knows the parent's steps can tell from the child's head alone where its K/V began."""
    parent = await two_nodes.client.open(50)
    await parent.forward(torch.randn(6, 32))
    child = await two_nodes.client.fork(parent, 50, 5)
    assert child is not None
    for mine, its in zip(child.sessions, parent.sessions, strict=True):
        before = opening(mine.leg.operator, CLIENT.address, mine.session_id)
        leaf = fork(before, its.newest.body, 5)
        assert bytes(leaf.input_hash) == bytes(its.newest.head)
        assert bytes(leaf.output_hash) == bytes(its.session_id)
        assert mine.newest.body == following(before, leaf)
        other = fork(before, msgspec.structs.replace(its.newest.body, head=its.session_id), 5)
        assert other.head() != mine.newest.head
    await child.close()
    await parent.close()


async def test_a_receipt_of_another_parent_is_a_lie_and_no_child(tiny_folder: Path, tmp_path: Path) -> None:
    """P17: nothing is bound to it, the parent goes on, the node is set aside for what comes."""

    class Doctored:
        """The second node signs, at the fork, over a session's head that the client did not name."""

        def __init__(self, host: Any) -> None:
            self.host, self.lies = host, False

        async def dial(self, peer: Any, *args: Any, **options: Any) -> Any:
            link = await self.host.dial(peer, *args, **options)
            receive = link.receive

            async def doctored() -> AnyMessage:
                message: AnyMessage = await receive()
                if self.lies and isinstance(message, StepReceipt):
                    receipt = msgspec.structs.replace(message.receipt.body, head=bytes(32))
                    signed = msgspec.structs.replace(message.receipt, body=receipt)
                    return msgspec.structs.replace(message, receipt=signed)
                return message

            link.receive = doctored
            return link

        def __getattr__(self, name: str) -> Any:
            return getattr(self.host, name)

    async with real_nodes(tiny_folder, tmp_path, wrap=Doctored) as net:
        rows = torch.randn(8, 32)
        parent = await net.client.open(50)
        await parent.forward(rows[:6])
        await parent.settle()
        net.host.lies = True
        assert await net.client.fork(parent, 50, 6) is None
        net.host.lies = False
        assert torch.allclose(await parent.forward(rows[6:]), net.expected(rows)[-1:], atol=1e-5)
        await parent.close()
        with pytest.raises(SwarmError, match="No node serves"):
            await net.client.plan(50)
        for node in net.nodes:
            assert node.kit.journal.totals.paid.tokens_signed == 8


async def test_what_a_node_has_forgotten_is_no_beginning(two_nodes: RealNodes) -> None:
    """One node of the two has given the room to others: no child, and the parent replays as ever."""
    parent = await two_nodes.client.open(50)
    await parent.forward(torch.randn(6, 32))
    await parent.settle()
    (seat,) = two_nodes.nodes[1].engine.room.seats
    seat.cache.evict()
    assert seat.on_evicted
    seat.on_evicted()
    assert await two_nodes.client.fork(parent, 50, 6) is None
    assert await two_nodes.client.plan(50), "nobody is set aside for it"
    await parent.close()


@pytest.mark.parametrize(("tokens", "count"), [(50, 7), (50, 0), (3, 6)])
async def test_a_fork_that_cannot_be_asks_nobody(two_nodes: RealNodes, tokens: int, count: int) -> None:
    parent = await two_nodes.client.open(50)
    await parent.forward(torch.randn(6, 32))
    assert await two_nodes.client.fork(parent, tokens, count) is None
    await parent.close()
    assert await two_nodes.client.fork(parent, 50, 6) is None, "a closed one has nothing to give"
    assert all(node.counts.refusals == {} for node in two_nodes.nodes)


async def test_sequences_over_real_nodes_share_and_fall_back(two_nodes: RealNodes) -> None:
    """`Sequence.begin_as` with pages shared at both nodes, then with none: the same hidden states."""
    table = torch.randn(64, 32)
    ends: Any = SimpleNamespace(context=64, hidden_size=32, embed=lambda ids, start: table[ids])
    ids = torch.randint(0, 64, (24,))
    first = Sequence(two_nodes.client, ends, 50)
    await first.advance(ids[:20])
    second = Sequence(two_nodes.client, ends, 50)
    await second.begin_as(first, ids)
    assert torch.equal(second.computed, ids[:20])
    hidden = await second.advance(ids)
    assert torch.allclose(hidden, two_nodes.expected(table[ids])[-1:], atol=1e-5)
    await first.close()
    third = Sequence(two_nodes.client, ends, 50)
    await third.begin_as(first, ids)
    assert torch.allclose(await third.advance(ids), hidden, atol=1e-5)
    await second.close()
    await third.close()
    for node in two_nodes.nodes:
        assert node.kit.journal.book(CLIENT.address).owed == (24 + 24) * ASK


async def test_a_talk_whose_room_went_to_others_goes_on_and_says_so(two_nodes: RealNodes, tmp_path: Path) -> None:
    """At both nodes, then at one of them: the next turn is the library's, and the bill names what was lost."""
    local = LocalModel("tiny", two_nodes.folder, Home(tmp_path / "home"))
    model: Any = SwarmModelForCausalLM(local, Ends.load(local), two_nodes.client, Here())  # type: ignore[arg-type]
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "eos_token_id": None}

    def talk() -> tuple[torch.Tensor, list[Bill]]:
        ids, bills = torch.tensor([list(range(3, 23))]), [Bill() for _ in range(4)]
        with model.conversation() as kept:
            for bill, lost in zip(bills, ([], two_nodes.nodes, [], two_nodes.nodes[1:]), strict=True):
                for node in lost:
                    node.engine.room._idle = 0.0
                    room, until = node.engine.room, time.monotonic() + 30
                    while not room._evict_one(Lane.PAID, room._clock()):
                        assert time.monotonic() < until, "its last step does not end"
                        time.sleep(0.01)
                ids = model.generate(ids, bill=bill, conversation=kept, **how)
        return ids, bills

    ids, bills = await asyncio.to_thread(talk)
    longer = how | {"max_new_tokens": 16, "min_new_tokens": 16}
    expected = two_nodes.whole.generate(torch.tensor([list(range(3, 23))]), **longer)
    assert torch.equal(ids, expected)
    assert [bill.replayed for bill in bills] == [0, 23, 0, 31], "all that was computed, of 24 and 32 tokens"
    assert [bill.paid_again for bill in bills] == [0, 2 * 23, 0, 2 * 31]
    assert "23 positions computed again" in str(bills[1])
    assert sum(bill.spent for bill in bills) == (35 + 23 + 31) * 2 * ASK
