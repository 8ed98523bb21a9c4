"""Sessions, vouchers and checks of the client against nodes in this process: what holds, and what is noticed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from hivemint.client.pipeline import SessionLimit
from hivemint.client.sessions.errors import NodeGone, NodeLied, NodeRefusal
from hivemint.client.sessions.payer import NodeUnproven
from hivemint.client.sessions.pipelines.live_pipeline import LivePipeline
from hivemint.client.sessions.route import session_amount
from hivemint.client.settings import Bid
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import Credits
from hivemint.protocol.node_name import node_name
from support.client_world import ASK, FUNDS, WALLET, World, decode, rows
from support.fake_swarm import DOMAIN, Books, FakeNode
from support.promises import GENESIS


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK))
    yield made
    await made.client.close()


async def test_prompt_and_tokens_come_back_right_and_are_all_countersigned(world: World) -> None:
    pipeline = await world.client.open(60)
    prompt = rows(20)
    assert torch.equal(await pipeline.forward(prompt), prompt[-1:] + 30)
    assert pipeline.position == 20
    await decode(pipeline, 6)
    await pipeline.close()
    for node in world.nodes:
        books, session = node.books[WALLET.address], node.sessions[0]
        assert books.owed == books.highest == 26 * ASK * 15
        assert session.countersigned is not None
        assert session.countersigned.receipt.tokens == 26
        assert node.refused == []


async def test_all_rows(world: World) -> None:
    pipeline = await world.client.open(60)
    assert torch.equal(await pipeline.forward(rows(20), rows="all"), rows(20) + 30)
    await pipeline.close()


async def test_hidden_states_go_from_node_to_node(world: World) -> None:
    """S + 1 hops a step: client to first, first to second, second to client."""
    pipeline = await world.client.open(60)
    await decode(pipeline, 5)
    await pipeline.close()
    assert world.nodes[0].hops == []
    assert [step for _, step in world.nodes[1].hops] == [1, 2, 3, 4, 5]


async def test_decode_binds_the_step_before_and_prefill_no_older_than_ahead(world: World) -> None:
    world.client.speeds.step(world.nodes[0].peer, 0.01, 15)
    world.client.speeds.step(world.nodes[1].peer, 0.01, 15)
    pipeline = await world.client.open(100)
    await pipeline.forward(rows(64))
    prefill = len(world.nodes[0].sessions[0].bound)
    assert prefill > 4
    world.nodes[1].delay = 0.1  # the next vouchers are drawn in the first quarter of it
    await decode(pipeline, 4)
    bound = world.nodes[0].sessions[0].bound
    assert any(step - receipt == 2 for step, receipt in bound[:prefill]), "two chunks were never in flight"
    drawn_ahead = bound[prefill + 1 :]  # the first token's vouchers are drawn when the prompt has come back
    assert [step - receipt for step, receipt in drawn_ahead] == [2] * 3
    await pipeline.close()
    assert bound[-1] == (prefill + 5, prefill + 4), "the last voucher countersigns the last token"


async def test_nodes_that_take_one_request_at_a_time_get_vouchers_over_the_newest_receipt(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK, ahead=1))
    pipeline = await world.client.open(100)
    await decode(pipeline, 4)
    assert all(step - receipt == 1 for node in world.nodes for step, receipt in node.sessions[0].bound)
    await pipeline.close()
    await world.client.close()


async def test_vouchers_that_were_drawn_and_not_sent_cost_nothing(world: World) -> None:
    for _ in range(2):
        pipeline = await world.client.open(100)
        await decode(pipeline, 4)
        await pipeline.close()
    book = VoucherBook.open(world.folder / "vouchers.db", DOMAIN, WALLET.address, GENESIS)
    for node in world.nodes:
        books = node.books[WALLET.address]
        assert books.owed == books.highest == 8 * ASK * 15
        assert book.totals()[node.operator.address] == (books.owed, books.owed)
    book.close()


async def test_a_stranger_gets_one_small_chunk_first(world: World) -> None:
    pipeline = await world.client.open(100)
    await pipeline.forward(rows(64))
    assert world.nodes[0].sessions[0].bound[:2] == [(1, 0), (2, 1)]
    await pipeline.close()


async def test_donated_lane_signs_no_money(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK), bid=Bid("free"))
    pipeline = await world.client.open(60)
    await decode(pipeline, 3)
    await pipeline.close()
    assert world.nodes[0].books[WALLET.address].highest == 0
    assert world.client.payer.book.totals() == {}
    assert world.nodes[1].sessions[0].countersigned is not None
    await world.client.close()


async def test_auto_pays_where_it_can_and_says_why_where_not(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK), bid=Bid())
    plan = await world.client.plan(60)
    assert (plan.lane, plan.unpaid) == ("paid", "")
    second = world.nodes[1]
    needed = format_credits(session_amount(ASK * 15, 60, world.client.settings.margin), 9)
    world.chain.funded[second.operator.address] = 10
    plan = await world.client.plan(60)
    assert plan.lane == "donated"
    covers = format_credits(10, 9, symbol=False)
    assert plan.unpaid == f"the escrow at {node_name(second.operator.address)} covers {covers} of {needed}"
    assert plan.notes[-1] == f"donated lane: {plan.unpaid}"
    pipeline = await world.client.open(60)
    assert pipeline.plan.unpaid == plan.unpaid
    await pipeline.close()
    world.chain.funded.update({node.operator.address: 0 for node in world.nodes})
    lacks = [f"no escrow is funded at {node_name(node.operator.address)}" for node in world.nodes]
    assert (await world.client.plan(60)).unpaid == ", ".join(lacks)
    world.chain.funded[second.operator.address] = FUNDS
    world.chain.thawing.add(second.operator.address)
    plan = await world.client.plan(60)
    assert f"the escrow at {node_name(second.operator.address)} thaws until " in plan.notes[-1]
    assert "fund" not in plan.unpaid.partition("thaws")[2]
    world.chain.thawing.clear()
    world.chain.funded.update({node.operator.address: FUNDS for node in world.nodes})
    assert (await world.client.plan(60)).unpaid == ""
    await world.client.close()


async def test_an_account_that_thaws_is_opened_again_not_funded(tmp_path: Path) -> None:
    """Where only paid work is asked for, the refusal names each node and the cure that helps."""
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK))
    first, second = world.nodes
    world.chain.funded[first.operator.address] = 10
    with pytest.raises(SwarmError) as short:
        await world.client.plan(60)
    assert f"the escrow at {node_name(first.operator.address)} covers " in short.value.why
    assert "account fund" in short.value.next_step
    world.chain.thawing.add(second.operator.address)
    with pytest.raises(SwarmError) as thawing:
        await world.client.plan(60)
    assert f"the escrow at {node_name(second.operator.address)} thaws until" in thawing.value.why
    assert "account cancel" in thawing.value.next_step
    assert "account fund" not in thawing.value.next_step
    await world.client.close()


async def test_a_price_ceiling_that_leaves_no_paid_route_is_why(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 30, ask=ASK), bid=Bid(), max_price=Credits(30 * ASK - 1))
    plan = await world.client.plan(60)
    assert plan.lane == "donated"
    assert plan.unpaid.startswith("No route costs at most")
    assert "the cheapest one costs" in plan.unpaid
    await world.client.close()


async def forward_to_the_end(pipeline: LivePipeline, steps: int) -> None:
    """Like `decode`, whatever comes back."""
    try:
        for _ in range(steps):
            await pipeline.forward(rows(1))
    finally:
        await pipeline.close()


async def decode_to_the_end(pipeline: LivePipeline, steps: int) -> None:
    try:
        await decode(pipeline, steps)
    finally:
        await pipeline.close()


LIES = [  # only the first node pushes, only the last one answers the client
    *((fault, node) for fault in ("rows", "head", "forged") for node in (0, 1)),
    ("push", 0),
    ("output", 1),
    ("missing-output", 1),
]


@pytest.mark.parametrize(("fault", "node"), LIES)
async def test_a_lie_is_noticed_before_its_step_is_bound(world: World, fault: str, node: int) -> None:
    """P17. From step 3 on one node lies; no voucher anywhere binds step 3."""
    world.nodes[node].faults[fault] = 3
    pipeline = await world.client.open(60)
    await decode(pipeline, 2)
    with pytest.raises(NodeLied) as caught:
        await forward_to_the_end(pipeline, 3)
    assert world.nodes[node].peer in caught.value.peers
    for one in world.nodes:
        assert max(receipt for _, receipt in one.sessions[0].bound) <= 2
        assert one.peer not in caught.value.peers or not one.sessions[0].signed_off, "no word to a liar"
        books = one.books[WALLET.address]
        assert books.highest <= 4 * ASK * 15


@pytest.mark.parametrize("node", [0, 1])
async def test_a_lie_about_the_last_step_comes_out_at_the_end(world: World, node: int) -> None:
    world.nodes[node].faults["forged"] = 3
    pipeline = await world.client.open(60)
    with pytest.raises(NodeLied):  # the first node's receipt comes before the output, the last one's after it
        await decode_to_the_end(pipeline, 3)
    assert world.nodes[node].sessions[0].bound[-1][1] < 3


async def test_a_lie_in_prefill(world: World) -> None:
    """The first node is ahead: its receipt for the step is there, and fits, long before the second one's does not."""
    world.nodes[0].faults["push"] = 4
    world.nodes[1].delay = 0.02
    pipeline = await world.client.open(100)
    with pytest.raises(NodeLied):
        await pipeline.forward(rows(64))
    await pipeline.close()
    for node in world.nodes:
        assert max(receipt for _, receipt in node.sessions[0].bound) <= 3


@pytest.mark.parametrize("node", [0, 1])
async def test_a_node_that_dies_is_named(world: World, node: int) -> None:
    world.nodes[node].faults["die"] = 3
    pipeline = await world.client.open(60)
    with pytest.raises(NodeGone, match=world.nodes[node].operator.address) as caught:
        await decode(pipeline, 5)
    await pipeline.close()
    assert caught.value.next_step
    other = world.nodes[1 - node]
    assert other.sessions[0].countersigned is not None


async def test_who_lied_is_left_out_and_who_failed_is_tried_again(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK))
    for fault, usable in (("die", True), ("forged", False)):
        world.nodes[0].faults = {fault: 1}
        pipeline = await world.client.open(60)
        with pytest.raises((NodeGone, NodeLied)):
            await forward_to_the_end(pipeline, 2)
        if usable:
            assert await world.client.plan(60)
        else:
            with pytest.raises(SwarmError, match="No node serves blocks 0:15"):
                await world.client.plan(60)
    await world.client.close()


async def test_a_silent_node_costs_the_steps_in_flight(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK), step_timeout=0.3)
    world.nodes[1].faults["silent"] = 3
    pipeline = await world.client.open(60)
    with pytest.raises(NodeGone, match=world.nodes[1].operator.address):
        await decode(pipeline, 5)
    await pipeline.close()
    assert world.nodes[1].books[WALLET.address].highest == 3 * ASK * 15
    await world.client.close()


async def test_a_dead_node_is_replaced_when_opening(tmp_path: Path) -> None:
    spare = FakeNode(15, 30, ask=ASK + 1)
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK), spare)
    world.swarm.dead.add(world.nodes[1].peer)
    pipeline = await world.client.open(60)
    await decode(pipeline, 2)
    assert pipeline.sessions[1].leg.peer == spare.peer
    await pipeline.close()
    await world.client.close()


async def test_a_dead_node_without_a_spare_is_an_error_with_its_name(world: World) -> None:
    world.swarm.dead.add(world.nodes[1].peer)
    with pytest.raises(NodeGone, match="connection refused"):
        await world.client.open(60)


async def test_busy_nodes_are_waited_for(world: World) -> None:
    world.nodes[0].faults["busy"] = 0
    pipeline = await world.client.open(60)
    assert world.nodes[0].dials == 4
    await pipeline.close()


async def test_a_busy_node_is_passed_by_where_there_is_another(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 30, ask=ASK), FakeNode(0, 30, ask=ASK + 1))
    world.nodes[0].faults["busy"] = 0
    pipeline = await world.client.open(60)
    assert [node.dials for node in world.nodes] == [1, 1]
    await pipeline.close()
    await world.client.close()


async def test_missing_blocks_can_be_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), wait_for_blocks=20)
    opening = asyncio.ensure_future(world.client.open(60))
    await world.swarm.looked.wait()
    late = FakeNode(15, 30, ask=ASK)
    late.swarm = world.swarm
    world.swarm.nodes.append(late)
    world.chain.add(late, FUNDS)
    pipeline = await opening
    assert [session.leg.peer for session in pipeline.sessions] == [node.peer for node in world.nodes] + [late.peer]
    await decode_to_the_end(pipeline, 2)
    await world.client.close()


async def test_auto_goes_free_where_a_node_counts_the_deposit_later(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 30, ask=ASK), bid=Bid())
    world.nodes[0].faults["funds"] = 0
    pipeline = await world.client.open(60)
    assert pipeline.sessions[0].price == 0
    assert pipeline.plan.lane == "donated"
    name = node_name(world.nodes[0].operator.address)
    assert pipeline.plan.unpaid.startswith(f"the deposit at {name} does not count there yet")
    assert pipeline.plan.notes[-1] == f"donated lane: {pipeline.plan.unpaid}"
    await pipeline.close()
    await world.client.close()


async def test_open_sessions_reserve_what_they_have_not_spent(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 30, ask=ASK), bid=Bid(), margin=1.0)
    world.chain.funded[world.nodes[0].operator.address] = 100 * ASK * 30
    first = await world.client.open(60)
    assert first.sessions[0].price == ASK * 30
    assert (await world.client.plan(60)).lane == "donated"
    assert (await world.client.plan(40)).lane == "paid"
    await first.close()
    assert (await world.client.plan(60)).lane == "paid"
    await world.client.close()


async def test_busy_beyond_patience_is_a_refusal(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 30, ask=ASK), patience=0)
    world.nodes[0].faults["busy"] = 0
    with pytest.raises(NodeRefusal, match="no room") as caught:
        await world.client.open(60)
    assert caught.value.code == "busy"
    await world.client.close()


async def test_a_bad_opening_is_a_lie(world: World) -> None:
    world.nodes[0].faults["old-opening"] = 0
    with pytest.raises(NodeLied):
        await world.client.open(60)


async def test_a_debt_that_nothing_proves_is_not_believed_and_called_no_lie(world: World) -> None:
    world.nodes[0].faults["claim"] = 0
    with pytest.raises(NodeUnproven, match=world.nodes[0].operator.address):
        await world.client.open(60)


@pytest.fixture
async def settled(world: World) -> World:
    """The first node has collected what six tokens cost, and has lost its books; so has the client."""
    pipeline = await world.client.open(60)
    await decode(pipeline, 6)
    await pipeline.close()
    node = world.nodes[0]
    world.chain.collected[node.operator.address] = node.books[WALLET.address].owed
    node.books[WALLET.address] = Books(owed=node.books[WALLET.address].owed)
    await world.client.close()
    (world.folder / "vouchers.db").unlink()
    world.client = world.another()
    return world


async def test_what_the_chain_has_paid_counts_when_both_ends_lost_their_books(settled: World) -> None:
    node, paid = settled.nodes[0], 6 * ASK * 15
    pipeline = await settled.client.open(60)
    await decode(pipeline, 2)
    await pipeline.close()
    books = node.books[WALLET.address]
    assert books.owed == books.highest == paid + 2 * ASK * 15
    assert settled.client.payer.book.totals()[node.operator.address] == (books.owed, books.owed)


async def test_no_wei_above_what_the_chain_has_paid_is_believed(settled: World) -> None:
    settled.nodes[0].faults["claim"] = 0
    with pytest.raises(NodeUnproven, match="cannot prove"):
        await settled.client.open(60)


async def test_an_opening_asks_the_chain_once_for_what_its_accounts_hold(world: World) -> None:
    """And no more than that where the book knows what the node claims."""
    route = await world.client.route(60)
    await decode(await world.client.along(route, 60), 3)
    world.chain.asked.clear()
    await (await world.client.along(route, 60)).close()
    assert world.chain.asked == sorted(node.operator.address for node in world.nodes)


async def test_limits_of_the_session_end_it_before_anything_is_sent(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 30, ask=ASK), margin=1.0)
    pipeline = await world.client.open(10)
    await pipeline.forward(rows(8))
    with pytest.raises(SessionLimit):
        await pipeline.forward(rows(3))
    await pipeline.forward(rows(2))
    assert world.nodes[0].books[WALLET.address].highest == 10 * ASK * 30
    await pipeline.close()
    await world.client.close()


async def test_what_was_promised_and_not_delivered_pays_the_next_session(world: World) -> None:
    world.nodes[1].faults["die"] = 3
    pipeline = await world.client.open(60)
    with pytest.raises(NodeGone):
        await decode(pipeline, 5)
    await pipeline.close()
    world.nodes[1].faults.clear()
    for node in world.nodes:  # the node drops what it never finished
        node.books[WALLET.address].owed = 2 * ASK * 15
    pipeline = await world.client.open(60)
    await decode(pipeline, 1)
    await pipeline.close()
    for node in world.nodes:
        assert node.books[WALLET.address].highest == 3 * ASK * 15


async def test_two_processes_of_one_wallet(world: World) -> None:
    """The second raises the sum owed; the first is refused once, and signs on from there."""
    other = world.another()
    one, two = await world.client.open(60), await other.open(60)
    for _ in range(3):
        await decode(one, 1)
        await decode(two, 2)
    await one.close()
    await two.close()
    for node in world.nodes:
        books = node.books[WALLET.address]
        assert books.owed == 9 * ASK * 15
        drawn_by_the_other = ASK * 15  # one token's promise, that a total may have counted before it was taken back
        assert books.owed <= books.highest <= books.owed + drawn_by_the_other


async def test_a_lost_book_is_restored_from_the_nodes_proof(world: World, tmp_path: Path) -> None:
    """On a new machine the node shows the wallet's own highest voucher; what it signs next goes on from there."""
    pipeline = await world.client.open(60)
    await decode_to_the_end(pipeline, 4)
    world.folder = tmp_path / "new machine"
    world.folder.mkdir()
    pipeline = await world.another().open(60)
    await decode_to_the_end(pipeline, 1)
    for node in world.nodes:
        assert node.books[WALLET.address].highest == node.books[WALLET.address].owed == 5 * ASK * 15
        assert node.refused == []


async def test_many_sequences_at_once(world: World) -> None:
    async def one(number: int) -> None:
        pipeline = await world.client.open(60)
        await pipeline.forward(rows(10 + number))
        await decode(pipeline, 5)
        await pipeline.close()

    await asyncio.gather(*(one(number) for number in range(8)))
    for node in world.nodes:
        books = node.books[WALLET.address]
        assert books.owed == books.highest == sum(15 + number for number in range(8)) * ASK * 15


async def test_cancel_drops_what_has_not_begun(world: World) -> None:
    world.nodes[0].delay = 0.2
    pipeline = await world.client.open(100)
    running = asyncio.ensure_future(pipeline.forward(rows(64)))
    await world.nodes[0].began.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await pipeline.cancel()
    await pipeline.close()
    with pytest.raises(SwarmError):
        await pipeline.forward(rows(1))
    for node in world.nodes:
        assert node.books[WALLET.address].owed <= node.books[WALLET.address].highest


async def test_close_twice_and_after_an_error(world: World) -> None:
    """Each time it ends, the node that still lives is signed off, and nothing is sent any more."""
    world.nodes[1].faults["die"] = 2
    pipeline = await world.client.open(60)
    await decode(pipeline, 1)
    with pytest.raises(NodeGone):
        await decode(pipeline, 3)
    await pipeline.close()
    await pipeline.close()
    assert not pipeline.open
    assert world.nodes[0].sessions[0].signed_off
    with pytest.raises(SwarmError):
        await decode(pipeline, 1)


async def test_expiry_follows_the_chain_where_it_is_ahead(world: World) -> None:
    world.chain.ahead = 10**6
    pipeline = await world.client.open(60)
    assert pipeline.sessions[0].session.expiry >= await world.chain.time() + 3500
    await pipeline.close()


async def test_unregistered_nodes_are_left_out(world: World) -> None:
    world.chain.peers[world.nodes[1].operator.address] = b"\0" * 32
    with pytest.raises(SwarmError, match="No node serves blocks 15:30"):
        await world.client.plan(60)
    world.chain.peers.clear()
    world.client.nodes.forget()
    with pytest.raises(SwarmError, match="registered"):
        await world.client.plan(60)
