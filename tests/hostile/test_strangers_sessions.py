"""Who gets a seat at a real node (P14, P15): by wallet and by network, and by what one does with it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hivemint.client.generation.sequences import Sequence
from hivemint.node.engine import seats
from hivemint.node.engine.scheduler import Lane
from hivemint.node.sessions import registry
from hivemint.node.sessions.steps import inputs
from hivemint.protocol.errors import LinkClosed, Refusal
from hivemint.protocol.ids import Credits, Step
from hivemint.swarm.host import CONTROL, Host
from hivemint.swarm.limits import PeerLimits
from hivemint.swarm.messages import Cancel, Closed, Code, Neighbours, Ping
from support.node_client import NodeSession, RefusedError
from support.one_node import ASK, Served, one_node
from support.promises import DOMAIN, signer
from support.real_nodes import emptied, real_nodes

pytest_plugins = ["support.node_pair"]
ONE_NETWORK = PeerLimits(loopback=True)


async def busy(served: Served, number: int, **changes: Any) -> str:
    """Why another session is not taken."""
    with pytest.raises(RefusedError) as caught:
        await served.open(signer(number), **changes)
    refused = caught.value.refused
    assert refused.code is Code.BUSY
    assert refused.retry_after > 0
    return refused.what


async def in_time(open_: Callable[[], Any]) -> NodeSession:
    """A session as soon as there is a seat."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await open_()  # type: ignore[no-any-return]
            except RefusedError as error:
                if error.refused.code is not Code.BUSY:
                    raise
                await asyncio.sleep(0.1)


async def closed(session: NodeSession) -> Closed:
    async with asyncio.timeout(60):
        while not isinstance(message := await session.link.receive(), Closed):
            pass
    return message


async def test_a_paid_seat_costs_at_least_a_chunk(tiny_folder: Path, tmp_path: Path) -> None:
    async with one_node(tiny_folder, tmp_path) as served:
        for amount in (0, 1, 16 * ASK - 1):
            with pytest.raises(RefusedError) as caught:
                await served.open(signer(20), price=ASK, max_amount=Credits(amount))
            assert caught.value.refused.code is Code.LIMIT
        assert not served.node.registry.occupants
        await served.open(signer(20), price=ASK, max_amount=Credits(16 * ASK))


async def test_seats_of_one_wallet_are_few_whatever_peers_it_comes_from(tiny_folder: Path, tmp_path: Path) -> None:
    async with one_node(tiny_folder, tmp_path, max_sessions_a_client=2) as served, served.another_peer() as other:
        for price in (ASK, 0):
            await served.open(signer(20), price=price)
        assert await busy(served, 20, price=ASK, by=other) == "This client has too many sessions"
        await served.open(signer(21), price=ASK)


async def test_seats_of_one_network_are_few_whatever_peers_and_wallets(tiny_folder: Path, tmp_path: Path) -> None:
    """Identities are free: a new peer and a new wallet for each session gain nothing."""
    settings: dict[str, Any] = {"max_sessions_a_prefix": 3, "max_donated_a_prefix": 2}
    async with (
        one_node(tiny_folder, tmp_path, limits=ONE_NETWORK, **settings) as served,
        served.another_peer() as second,
        served.another_peer() as third,
    ):
        await served.open(signer(20))
        await served.open(signer(21), by=second)
        assert await busy(served, 22, by=third) == "This network has too many donated sessions"
        await served.open(signer(22), by=third, price=ASK)
        assert await busy(served, 23, by=third, price=ASK) == "This network has too many sessions"


async def test_handshakes_are_given_back_to_who_is_charged_for_more_than_they_cost(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Sessions without end for whoever pays; dust and donated ones use the allowance up."""
    limits = PeerLimits(handshakes_per_s=0.001, handshake_burst=3)
    async with one_node(tiny_folder, tmp_path, limits=limits) as served:

        async def once(number: int, count: int, price: int) -> None:
            session = await served.open(signer(number), price=price, max_tokens=count)
            await session.step(torch.randn(count, 32), 0)
            await session.link.close()
            await served.until(lambda: not len(served.host._links))

        for number in range(5):
            await once(20 + number, 16, ASK)
        await once(30, 1, ASK)
        await once(31, 16, 0)
        await once(32, 15, ASK)
        with pytest.raises(Refusal, match="handshakes a second"):
            await served.open(signer(33), price=ASK)


async def test_peers_of_no_known_network_stand_for_themselves(tiny_folder: Path, tmp_path: Path) -> None:
    async with one_node(tiny_folder, tmp_path, max_sessions_a_prefix=1) as served, served.another_peer() as other:
        await served.open(signer(20))
        assert await busy(served, 21) == "This network has too many sessions"
        await served.open(signer(21), by=other)


@pytest.mark.parametrize("price", [0, ASK])
async def test_an_idle_session_of_any_lane_gives_its_seat_to_one_that_waits(
    tiny_folder: Path, tmp_path: Path, price: int
) -> None:
    async with one_node(tiny_folder, tmp_path, max_sessions=1, idle=0.2) as served:
        session = await served.open(signer(20), price=price)
        await session.step(torch.randn(1, 32), 0)
        newcomer = await in_time(lambda: served.open(signer(21)))
        told = await closed(session)
        assert told.code is Code.BUSY
        assert "another session needed the seat" in told.reason
        await newcomer.step(torch.randn(1, 32), 0)
        await served.until(lambda: len(served.node.engine.room.seats) == 1)
        assert served.journal.book(signer(20).address).owed == price  # what was computed is owed all the same


async def test_only_steps_keep_a_seat(tiny_folder: Path, tmp_path: Path) -> None:
    """No cancel, ping, route, repeat or refused step does."""
    async with one_node(tiny_folder, tmp_path, max_sessions=1, idle=0.5) as served:
        session = await served.open(signer(20))
        repeat = session.request(1, start=0, rows="all")
        await session.take(repeat, torch.randn(1, 32))
        beyond = session.request(1, start=9)

        async def fuss() -> None:
            with suppress(LinkClosed):
                while True:
                    for message in (Cancel(Step(2)), Ping(), Neighbours(), repeat, beyond):
                        await session.link.send(message)
                        await asyncio.sleep(0.06)

        fussing = asyncio.create_task(fuss())
        await in_time(lambda: served.open(signer(21)))
        assert (await closed(session)).code is Code.BUSY
        fussing.cancel()


async def test_who_opens_a_session_and_asks_for_nothing_keeps_no_seat(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All seats taken by sessions that never do a step hold up a payer for seconds, not for the whole of `idle`."""
    monkeypatch.setattr(registry, "OPENING", 0.2)
    async with one_node(tiny_folder, tmp_path, max_sessions=1, idle=3600) as served:
        squatter = await served.open(signer(20), price=ASK)
        newcomer = await in_time(lambda: served.open(signer(21), price=ASK))
        assert (await closed(squatter)).code is Code.BUSY
        await newcomer.step(torch.randn(1, 32), 0)
        with pytest.raises(RefusedError):
            await served.open(signer(22), price=ASK)


@pytest.mark.parametrize("taken_back", [True, False])
async def test_steps_that_are_never_fed_keep_no_seat(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_back: bool
) -> None:
    """They are taken, and owed for nothing: their input never comes, or they are cancelled. One is always under way."""
    for module in (inputs, seats):
        monkeypatch.setattr(module, "INPUT_LIMIT", 0.3)
    async with one_node(tiny_folder, tmp_path, max_sessions=1, idle=0.2, ahead=2) as served:
        session = await served.open(signer(20), price=ASK)

        async def squat() -> None:
            with suppress(LinkClosed):
                while True:
                    if taken_back:
                        await session.link.send(Cancel(Step(1)))
                    for number in (1, 2):
                        bound, total = session.receipt, ASK * number
                        await session.link.send(
                            session.request(1, start=number - 1, step=number, bound=bound, total=total)
                        )
                    await asyncio.sleep(0.15)

        squatting = asyncio.create_task(squat())
        await served.until(lambda: any(seat.waits for seat in served.node.engine.room.seats))
        newcomer = await in_time(lambda: served.open(signer(21), price=ASK))
        assert (await closed(session)).code is Code.BUSY
        squatting.cancel()
        assert served.journal.book(signer(20).address).owed == 0
        await newcomer.step(torch.randn(1, 32), 0)


async def test_steps_that_are_never_fed_keep_no_room(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (inputs, seats):
        monkeypatch.setattr(module, "INPUT_LIMIT", 60.0)
    async with one_node(tiny_folder, tmp_path) as served:
        session = await served.open(signer(20))
        await session.step(torch.randn(16, 32), 0)
        await session.send(session.request(1, start=16))
        kept = served.node.engine.room
        (seat,) = kept.seats
        await served.until(lambda: seat.waits == 1)
        assert seat.busy == 0
        other = kept.open(Lane.DONATED, 64)
        assert not kept._evict_one(Lane.DONATED, seat.used_at + 89, but=other), "an input may take so long"
        assert kept._evict_one(Lane.DONATED, seat.used_at + 90, but=other)
        message, _ = await session.answer()
        assert (message.code, message.step, message.cached) == (Code.BUSY, 2, 0)
        session.total = 0
        await session.take(session.request(4, start=0, rows="all"), torch.randn(4, 32))
        assert (seat.waits, seat.busy) == (0, 0)
        kept.close(other)


async def test_a_session_with_a_step_under_way_keeps_its_seat(tiny_folder: Path, tmp_path: Path) -> None:
    async with one_node(tiny_folder, tmp_path, max_sessions=1, idle=0.05) as served:
        session = await served.open(signer(20))
        served.span.shut()
        await session.send(session.request(1, start=0), torch.randn(1, 32))
        await served.until(served.span.held.is_set)
        (occupant,) = served.node.registry.occupants
        occupant.active_at -= 3600
        assert await busy(served, 21, price=ASK) == "Every seat is taken"
        served.span.open()
        await session.answer()
        assert not session.link.closed


async def test_donated_sessions_leave_before_paid_ones(tiny_folder: Path, tmp_path: Path) -> None:
    async with one_node(tiny_folder, tmp_path, max_sessions=2, idle=0.2) as served:
        paid = await served.open(signer(20), price=ASK)
        free = await served.open(signer(21))
        for occupant in served.node.registry.occupants:  # the paid one has been idle for longer
            occupant.active_at -= 7200 if occupant.session and occupant.session.terms.price else 3600
        await served.open(signer(22), price=ASK)
        assert (await closed(free)).code is Code.BUSY
        await paid.step(torch.randn(1, 32), 0)


async def test_one_that_is_refused_all_the_same_sends_nobody_away(tiny_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_sessions": 2, "max_donated_sessions": 1}
    async with one_node(tiny_folder, tmp_path, **settings) as served:
        idle = await served.open(signer(20), price=ASK)
        await served.open(signer(21))
        next(iter(served.node.registry.occupants)).active_at -= 3600
        assert await busy(served, 22) == "The donated lane is full"
        await idle.step(torch.randn(1, 32), 0)


async def test_a_real_client_goes_on_after_it_lost_its_seat(tiny_folder: Path, tmp_path: Path) -> None:
    """It sends its text again in a new session, and gets what the whole model says."""
    table = torch.randn(64, 32)
    ends: Any = SimpleNamespace(embed=lambda ids, start: table[ids])
    settings: dict[str, Any] = {"spans": ((0, 2),), "max_sessions": 1, "idle": 0.2}
    async with real_nodes(tiny_folder, tmp_path, **settings) as nodes:
        (node,) = nodes.nodes
        text = Sequence(nodes.client, ends, 32)
        ids = torch.arange(8)
        await text.advance(ids[:6])

        async def stranger() -> NodeSession:
            host: Host = nodes.host
            link = await host.dial(node.kit.host.peer_id, node.kit.host.addresses, CONTROL)
            return await NodeSession.open(link, DOMAIN, signer(77))

        other = await in_time(stranger)
        await other.link.close()
        await emptied(node)
        output = await text.advance(ids)
        assert torch.allclose(output[0], nodes.expected(table[ids])[-1], atol=1e-4)
        await text.close()


# ---- the donated lane's compute


async def test_a_network_has_one_share_of_the_donated_lane_for_all_peers(tiny_folder: Path, tmp_path: Path) -> None:
    async with (
        one_node(tiny_folder, tmp_path, limits=ONE_NETWORK) as served,
        served.another_peer() as second,
    ):
        served.span.shut()
        sessions = [await served.open(signer(20)), await served.open(signer(21), by=second)]
        for session in sessions:
            for step in (1, 2):
                await session.send(session.request(8, start=0, step=step, bound=session.receipt), torch.randn(8, 32))
        flows = served.node.engine.scheduler._flows[Lane.DONATED]
        await served.until(lambda: served.node.engine.scheduler.waiting(Lane.DONATED) >= 16)
        assert list(flows) == ["127.0.0.0/24"]
        served.span.open()
        await sessions[0].link.close()
        await sessions[1].link.close()
        await served.until(lambda: not served.node.registry.occupants)
        assert not flows


async def test_who_fills_the_donated_queue_shuts_out_himself_alone(tiny_folder: Path, tmp_path: Path) -> None:
    async with one_node(tiny_folder, tmp_path, donated_wait=1e-6) as served, served.another_peer() as other:
        served.span.shut()
        session = await served.open(signer(20))
        for step in (1, 2):
            await session.send(session.request(8, start=0, step=step, bound=session.receipt), torch.randn(8, 32))
        await served.until(lambda: served.node.engine.scheduler.waiting(Lane.DONATED) > 0)
        assert await busy(served, 21) == "The donated lane's queue is full"
        late = await served.open(signer(21), by=other)
        served.span.open()
        await late.step(torch.randn(1, 32), 0)


async def test_a_donated_step_waits_for_its_share_however_much_others_ask(tiny_folder: Path, tmp_path: Path) -> None:
    """P15, the order alone: behind a network's queue of many rows a newcomer's token is in the next donated batch."""
    async with (
        one_node(tiny_folder, tmp_path, batch_rows=20, donated_share=0.5) as served,
        served.another_peer() as other,
    ):
        crowd = [await served.open(signer(30 + n)) for n in range(6)]
        served.span.shut()
        for session in crowd:
            await session.send(session.request(16, start=0), torch.randn(16, 32))
        scheduler = served.node.engine.scheduler
        # The span took 16 to 20 of the 96 rows before it was shut; with one request still on its way, 64 wait at most.
        await served.until(lambda: scheduler.waiting(Lane.DONATED) >= 6 * 16 - 20)
        late = await served.open(signer(50), by=other)
        await late.send(late.request(1, start=0), torch.randn(1, 32))
        await served.until(lambda: len(scheduler._flows[Lane.DONATED]) == 2)
        batches: list[list[object]] = []
        run = served.span.run

        def watched(batch: Any) -> Any:
            batches.append([work.cache for work in batch])
            return run(batch)

        served.span.run = watched  # type: ignore[method-assign]
        seat = served.node._services.seats[late.session_id]
        served.span.open()
        await late.answer()
        assert seat.cache in batches[0]
