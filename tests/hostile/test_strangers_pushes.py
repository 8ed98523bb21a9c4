"""What a next node that takes nothing, and a client that has outputs sent again and again, may cost a node."""

import asyncio
from typing import Any

import pytest
import torch

from hivemint.protocol.ids import Step
from hivemint.swarm.messages import (
    FIRST_RESEND,
    Cancel,
    Cancelled,
    Code,
    HopReceipt,
    Neighbours,
    Peer,
    Refused,
    Resend,
    Routed,
    StepReceipt,
    Tensor,
)
from support.node_client import NodeSession, hash_of
from support.node_pair import Pair
from support.promises import signer

pytest_plugins = ["support.node_pair"]
AHEAD = 2


async def opened(pair: Pair, number: int) -> NodeSession:
    """A donated session at the first node, whose outputs the second one expects."""
    session, behind = [await pair.open(one, signer(number)) for one in (pair.first, pair.second)]
    assert await behind.route(session) == Routed()
    await routed(pair, session)
    return session


async def routed(pair: Pair, session: NodeSession) -> None:
    await session.link.send(Neighbours(next=Peer(bytes(pair.second.host.peer_id), ())))
    assert await session.link.receive() == Routed()


async def pushed(session: NodeSession, start: int, count: int = 1) -> None:
    """One step whose output goes to the next node alone; its receipt comes."""
    hidden = torch.randn(count, 32)
    request = session.request(count, start=start, rows="none", push=True)
    await session.send(request, hidden)
    async with asyncio.timeout(10):
        answer, _ = await session.answer()
    assert isinstance(answer, StepReceipt), answer
    session.check(request, hash_of(hidden), answer)


async def test_a_receipt_does_not_wait_for_a_next_node_that_reads_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not taken comes later, in order. Only so many tensors wait, and they end with their session."""
    came: list[tuple[type, int]] = []

    def accept(peer: Any, message: Any, holder: Any) -> None:
        number = message.head.step if isinstance(message, Tensor) else message.receipt.step
        came.append((type(message), number))

    monkeypatch.setattr(pair.second.node.inbox, "accept", accept)
    session = await opened(pair, 30)
    await pushed(session, 0)
    (link,) = pair.first.node.outlets._links.values()
    (occupant,) = pair.first.node.registry.occupants
    outputs: Any = occupant._steps.outputs  # type: ignore[attr-defined]
    assert outputs.pushing is None, "nothing waits where the link takes all at once"
    link._writable.clear()  # as if its stream were full
    for at in range(1, 1 + AHEAD):
        await pushed(session, at)
    assert len(outputs._unsent) == 2 * AHEAD
    await session.send(session.request(1, start=1 + AHEAD, rows="none", push=True), torch.randn(1, 32))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await session.answer()
    link._writable.set()
    async with asyncio.timeout(10):
        assert isinstance((await session.answer())[0], StepReceipt)
        while len(came) < 2 * (AHEAD + 2):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert came == [(kind, at) for at in range(1, 3 + AHEAD) for kind in (Tensor, HopReceipt)]

    link._writable.clear()
    await session.send(session.request(1, start=2 + AHEAD, step=3 + AHEAD, rows="none", push=True), torch.randn(1, 32))
    await session.answer()
    waiting = outputs.pushing
    assert waiting is not None
    await session.link.close()
    async with asyncio.timeout(10):
        while pair.first.node.registry.occupants:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert waiting.cancelled()
    assert not outputs._unsent


async def resent(session: NodeSession, number: int, start: int, count: int) -> Refused | None:
    """A Resend, and what it is refused for: the answer to a request behind it comes first where it is not."""
    await session.link.send(Resend(Step(FIRST_RESEND + number), start, count))
    await session.link.send(Cancel(Step(1 << 40)))
    answer = await session.link.receive()
    if isinstance(answer, Cancelled):
        return None
    assert isinstance(await session.link.receive(), Cancelled)
    assert isinstance(answer, Refused)
    return answer


async def test_outputs_are_sent_once_more_as_often_as_was_computed_and_not_as_may_be(pair: Pair) -> None:
    """One chunk: once for each naming of the next node, and four times in all. A fork of it allows nothing more."""
    session = await opened(pair, 31)
    await pushed(session, 0, 8)
    for turn in range(4):
        assert await resent(session, 3 * turn, 0, 4) is None
        refused = await resent(session, 3 * turn + 1, 0, 4)
        assert refused is not None
        assert refused.code is Code.LIMIT
        assert await resent(session, 3 * turn + 2, 4, 4) is None
        await routed(pair, session)
    refused = await resent(session, 99, 0, 1)
    assert refused is not None
    assert refused.code is Code.LIMIT
    child = await opened(pair, 31)
    await child.fork(session, 8)
    refused = await resent(child, 1, 0, 1)
    assert refused is not None
    assert refused.code is Code.LIMIT
    await pushed(child, 8)
    assert await resent(child, 2, 0, 4) is None


async def test_what_was_computed_anew_may_be_sent_once_more(pair: Pair) -> None:
    session = await opened(pair, 32)
    await pushed(session, 0, 8)
    assert await resent(session, 1, 0, 8) is None
    await pushed(session, 4, 4)
    assert await resent(session, 2, 4, 4) is None
    assert await resent(session, 3, 4, 4) is not None
