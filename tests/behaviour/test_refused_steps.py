"""What becomes of a step that is refused, never sent or never answered: the corners of rules C1, C3 and C4."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivemint.client.pipeline import RoomLost
from hivemint.client.sessions.errors import NodeGone
from hivemint.client.sessions.payer import NodeUnproven
from hivemint.protocol.ids import Credits, Step
from hivemint.swarm.messages import Code, Refused
from support.client_world import ASK, WALLET, World, decode, rows
from support.fake_swarm import FakeNode

PRICE = 30 * ASK


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, FakeNode(0, 30, ask=ASK))
    yield made
    await made.client.close()


async def test_a_node_that_proves_nothing_gets_no_last_voucher(world: World) -> None:
    """It has signed two receipts that no voucher binds yet."""
    (node,) = world.nodes
    await decode(pipeline := await world.client.open(60), 2)
    node.refuse = lambda _, request, books: Refused(
        Code.VOUCHER, "no", step=request.step, owed=Credits(books.owed + 9 * PRICE)
    )
    with pytest.raises(NodeUnproven):
        await pipeline.forward(rows(1))
    await pipeline.close()
    assert not node.sessions[0].signed_off


async def test_a_step_before_others_in_flight_is_not_signed_anew(world: World) -> None:
    """Their vouchers would be too low for what the node then owes them; the session ends as if its room were lost."""
    await decode(pipeline := await world.client.open(60), 4)
    (session,) = pipeline.sessions
    await pipeline._circuit.source.put_back()
    for number in (5, 6):
        (paid,) = await pipeline._circuit.source.take(1)
        session.prepare(number - 1, 1, paid, rows="last")
    said = Refused(Code.VOUCHER, "no", step=Step(5), owed=Credits(4 * PRICE - 1))
    assert isinstance(await session.refused(said), RoomLost)
    await pipeline.close()


async def test_a_voucher_drawn_ahead_is_no_debt_that_a_node_could_speak_of(world: World) -> None:
    """The next step's voucher lies ready, and has not left, while this step is refused."""
    (node,) = world.nodes
    await decode(pipeline := await world.client.open(60), 2)
    node.delay = 30
    running = asyncio.ensure_future(pipeline.forward(rows(1)))
    async with asyncio.timeout(20):
        while len(node.signed) < 3 or (drawn := pipeline._circuit.source._next) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await asyncio.shield(drawn)
    assert world.client.payer.book.standing(node.operator.address).incurred == 4 * PRICE
    books = node.books[WALLET.address]
    books.owed -= PRICE
    await node.sessions[0].link.send(Refused(Code.VOUCHER, "no", step=Step(3), owed=Credits(3 * PRICE)))
    with pytest.raises(NodeUnproven):
        await running
    await pipeline.close()
    assert max(node.signed) == 3 * PRICE


async def test_a_voucher_that_was_drawn_and_never_left_is_struck_out(world: World) -> None:
    (node,) = world.nodes
    await decode(pipeline := await world.client.open(60), 2)
    source = pipeline._circuit.source
    await source.put_back()
    source.draw_ahead(3)
    drawing = source._next
    assert drawing is not None
    await asyncio.shield(drawing)
    book = world.client.payer.book
    assert book.totals()[node.operator.address] == (3 * PRICE, 3 * PRICE)
    await pipeline.close()
    assert book.totals()[node.operator.address] == (2 * PRICE, 2 * PRICE)


async def test_a_step_whose_fate_is_unknown_stays_owed(world: World) -> None:
    """It may have been done: the node is believed if it says so."""
    (node,) = world.nodes
    node.faults["die"] = 3
    await decode(pipeline := await world.client.open(60), 2)
    with pytest.raises(NodeGone):
        await pipeline.forward(rows(1))
    await pipeline.close()
    standing = world.client.payer.book.standing(node.operator.address)
    assert (standing.owed, standing.incurred) == (3 * PRICE, 3 * PRICE)
