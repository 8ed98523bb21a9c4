"""What a stranger's steps, repeats and routes may cost a real node: no wait outlives its link or its limit."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
import torch

from hivemint.node.sessions.steps import inputs, vain
from hivemint.protocol.errors import LinkClosed
from hivemint.protocol.ids import Credits, Step
from hivemint.swarm import link as link_module
from hivemint.swarm.frames import pack
from hivemint.swarm.host import CONTROL
from hivemint.swarm.messages import (
    Cancel,
    Cancelled,
    Code,
    Neighbours,
    Previous,
    Refused,
    Routed,
    StepReceipt,
    Tensor,
    TensorHead,
)
from hivemint.swarm.rows import to_wire
from support.node_client import NodeSession, RefusedError
from support.one_node import ASK, Served
from support.promises import DOMAIN, signer

pytest_plugins = ["support.one_node"]
NEIGHBOUR = Previous(b"\1" * 38, signer(1002).address, b"\6" * 32)


async def answered(served: Served, number: int) -> tuple[NodeSession, Any, torch.Tensor]:
    """A donated session, its first request, which was answered, and that one's input."""
    session, hidden = await served.open(signer(number)), torch.randn(1, 32)
    request = session.request(1, start=0, rows="all")
    await session.take(request, hidden)
    return session, request, hidden


async def refusal(session: NodeSession) -> Refused:
    async with asyncio.timeout(60):
        message, _ = await session.answer()
    assert isinstance(message, Refused), message
    return message


def talk(served: Served) -> Any:
    (occupant,) = served.node.registry.occupants
    return occupant


async def test_a_repeat_without_its_tensor_keeps_no_seat(served: Served) -> None:
    session, request, _ = await answered(served, 20)
    await session.send(request)
    await served.until(lambda: bool(talk(served)._steps._repeats._tasks))
    await session.link.close()
    await served.until(lambda: not served.node.registry.occupants and not served.node.engine.room.seats)


async def test_one_repeat_of_a_step_waits_at_a_time_and_not_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, request, hidden = await answered(served, 21)
    for _ in range(50):
        await session.send(request)
    await session.send(request, hidden)  # the tensor is the waiting one's
    async with asyncio.timeout(60):
        answer, tensor = await session.answer()
    assert isinstance(answer, StepReceipt)
    assert tensor is not None
    monkeypatch.setattr(inputs, "INPUT_LIMIT", 0.2)
    await session.send(request)
    refused = await refusal(session)  # and nothing was left of the fifty
    assert (refused.code, refused.step) == (Code.MISSING, 1)
    assert not talk(served)._steps._repeats._tasks
    assert not talk(served)._steps._repeats._inputs


async def test_a_tensor_that_its_session_does_not_await_is_dropped_at_its_head(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step's input has not come: half of the second's is not kept. Afterwards both are served."""
    monkeypatch.setattr(link_module, "PING_AFTER", 60.0)  # no Ping between the halves of a frame
    monkeypatch.setattr(link_module, "SILENCE_LIMIT", 60.0)
    session = await served.open(signer(24))
    first, second = torch.randn(1, 32), torch.randn(4, 32)
    await session.send(session.request(1, start=0, rows="all"))
    behind = session.request(4, start=1, step=2, rows="all")
    await session.send(behind)
    frame = b"".join(pack([Tensor(TensorHead(Step(2)), to_wire(second, "fp32"))]))
    session.link._transport.write(frame[:300])
    link = talk(served)._link
    await served.until(lambda: link._frames._skipped == len(frame) - 300)
    assert link.held.bytes == 0
    session.link._transport.write(frame[300:])
    await session.link.send(Tensor(TensorHead(Step(1)), to_wire(first, "fp32")))
    assert isinstance((await session.answer())[0], StepReceipt)
    await session.link.send(Tensor(TensorHead(Step(2)), to_wire(second, "fp32")))
    assert isinstance((await session.answer())[0], StepReceipt)


async def test_a_repeat_of_another_size_is_a_conflict(served: Served) -> None:
    session, request, _ = await answered(served, 22)
    await session.send(request, torch.randn(2, 32))
    assert (await refusal(session)).code is Code.CONFLICT
    await session.step(torch.randn(1, 32), 1)


@pytest.mark.parametrize("asked", ["repeats", "forged vouchers"])
async def test_a_flood_of_requests_that_lead_to_nothing_ends_its_session(served: Served, asked: str) -> None:
    session, request, _ = await answered(served, 23)
    if asked == "forged vouchers":
        request = session.request(1, start=1, signer=signer(99))

    async def flood() -> None:
        for _ in range(20):
            await session.link.send(*[request] * 500)

    flooding = asyncio.create_task(flood())
    codes = set()
    with suppress(LinkClosed):
        while True:
            message, _ = await session.answer()
            codes.add(getattr(message, "code", None))
    assert Code.PROTOCOL in codes
    await asyncio.gather(flooding, return_exceptions=True)
    assert served.node.counts.refusals["voucher"] <= 2 * vain.BURST
    await served.until(lambda: not served.node.registry.occupants and not served.node.engine.room.seats)


async def test_a_network_whose_requests_led_to_nothing_rests(served: Served) -> None:
    """Its next donated session is refused before any signature is looked at, with a time; who pays is served."""
    session, request, _ = await answered(served, 25)
    with suppress(LinkClosed):
        for _ in range(20):
            await session.link.send(*[request] * 100)
        while True:
            await session.answer()
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            await served.open(signer(26))
        assert caught.value.refused.code is Code.BUSY
        assert 1 < caught.value.refused.retry_after <= vain.BURST / vain.RATE
    paying = await served.open(signer(27), price=ASK)
    await paying.step(torch.randn(1, 32), 0)


async def test_a_step_whose_route_is_replaced_does_not_wait_for_ever(served: Served) -> None:
    """Its input is nobody's any more: it is refused, owed is what was owed, and the session goes on."""
    session = await served.open(signer(24), price=ASK)
    await session.link.send(Neighbours(NEIGHBOUR))
    assert await session.link.receive() == Routed()
    await session.send(session.request(1, start=0, source=Step(5)))
    await served.until(lambda: bool(talk(served).session.pending))
    await session.link.send(Neighbours())
    told = [await session.link.receive(), await session.link.receive()]
    assert Routed() in told
    (refused,) = [one for one in told if isinstance(one, Refused)]
    assert (refused.code, refused.step, refused.owed) == (Code.MISSING, 1, 0)
    assert not talk(served).session.pending
    session.total = 0
    await session.step(torch.randn(1, 32), 0)


async def test_an_input_behind_one_that_does_not_come_is_not_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs come in the order of their requests, so whoever leaves one out keeps nothing here with the next."""
    session, rows = await served.open(signer(28)), torch.randn(4, 32)
    await session.send(session.request(1, start=0))
    await session.send(session.request(4, start=1, step=2), rows)
    await session.link.send(Cancel(Step(3)))
    answer, _ = await session.answer()  # all that was sent before has been read
    assert isinstance(answer, Cancelled)
    own = talk(served)._steps.inputs._own
    assert [(step, input_.done()) for step, input_ in own.items()] == [(1, False), (2, False)]


async def test_leaving_waits_for_no_input(served: Served) -> None:
    """The seat is free at once, though a step waits for its tensor and another for the first."""
    session = await served.open(signer(25))
    for step in (1, 2):
        await session.send(session.request(1, start=step - 1, step=step, bound=session.receipt))
    await served.until(lambda: len(talk(served).session.pending) == 2)
    await session.link.close()
    async with asyncio.timeout(inputs.INPUT_LIMIT / 2):
        await served.until(lambda: not served.node.engine.room.seats)


async def test_what_a_node_ends_waits_its_time_and_no_longer(served: Served) -> None:
    """A step without its input holds no thaw, revocation or going down up: it is dropped, and nothing is owed."""
    session = await served.open(signer(26), price=ASK)
    await session.send(session.request(1, start=0))
    await served.until(lambda: bool(talk(served).session.pending))
    account = talk(served).session.account
    await talk(served).end(Code.THAWING, "for a test", 0.1)
    assert account.owed == 0
    await served.until(lambda: not served.node.registry.occupants)


async def test_a_client_that_reads_nothing_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It pings and asks, and takes no answer: what is sent to it waits in memory, for a limited time."""
    link = await served.client.dial(served.host.peer_id, served.host.addresses, CONTROL)
    session = await NodeSession.open(link, DOMAIN, signer(27))
    ours = talk(served)._link
    ours._transport.set_write_buffer_limits(high=1024)
    monkeypatch.setattr(link_module, "FRAME_TIME", 0.5)
    link._reading = False  # as if its inbox were full: silence of the node does not count
    link._transport.pause_reading()

    request = session.request(1, start=9)  # a gap

    async def ask() -> None:
        with suppress(LinkClosed):
            while True:
                await session.link.send(request)
                await asyncio.sleep(0)

    budget = talk(served)._steps._vain._budget
    budget.burst = budget.left = 1e9
    asking = asyncio.create_task(ask())
    await served.until(lambda: not served.node.registry.occupants and not served.node.engine.room.seats)
    assert "did not take" in ours.reason
    asking.cancel()


@pytest.mark.parametrize("what", ["cancelled", "left"])
async def test_a_step_that_is_taken_back_before_it_began_holds_nothing(served: Served, what: str) -> None:
    """Its cancel, or the end of its link, is in the same write as its request: the step's task has not run at all."""
    session = await served.open(signer(28), price=ASK)
    request = session.request(1, start=0)
    if what == "left":
        await session.link.send(request)
        await session.link.close()
    else:
        await session.link.send(request, Cancel(Step(1)))
        assert await session.link.receive() == Cancelled(Step(0), Credits(0))
        occupant = talk(served)
        await served.until(lambda: not occupant._steps._tasks and not occupant._steps.inputs._own)
        assert occupant._seat.busy == 0
        session.total = 0
        await session.step(torch.randn(1, 32), 0)
        await session.link.close()
    await served.until(lambda: not served.node.registry.occupants and not served.node.engine.room.seats)
