"""A client's Route makes a node dial only whom the directory names, and tells nobody what the node can reach."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from hivemint.node.sessions.outlets import MOST_OUTLETS, NeighbourLinks, Outlets
from hivemint.protocol.errors import Refusal, SwarmError
from hivemint.protocol.ids import PeerId, SessionId
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.messages import Code, Neighbours, Peer, Refused, Routed
from hivemint.swarm.records import pack_trips
from support.node_pair import ASK, Pair
from support.promises import signer
from support.routes import unsigned

pytest_plugins = ["support.node_pair"]


@asynccontextmanager
async def listener() -> AsyncIterator[tuple[str, list[object]]]:
    """A port of this machine that strangers would like to know of, and who has connected to it."""
    connected: list[object] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}", connected


async def test_a_node_dials_no_address_of_a_clients_choice(pair: Pair) -> None:
    """Open, closed, a name, the real next node at a wrong place: the first three get one answer, nobody is dialled."""
    session = await pair.open(pair.first, signer(20), price=ASK)
    unknown = PeerKey.generate().peer_id
    async with listener() as (place, connected):
        answers = set()
        for address in (place, "/ip4/127.0.0.1/tcp/9", "/dns4/localhost/tcp/9", "/ip4/169.254.169.254/tcp/80"):
            await session.link.send(Neighbours(next=Peer(bytes(unknown), (address,))))
            answer = await session.link.receive()
            assert isinstance(answer, Refused)
            assert answer.code is Code.MISSING
            answers.add(answer)
        assert len(answers) == 1
        await session.link.send(Neighbours(next=Peer(bytes(pair.second.host.peer_id), (place,))))
        assert await session.link.receive() == Routed()
        assert not connected


async def test_a_next_node_that_refuses_at_hello_is_one_that_cannot_be_reached(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is that for an unknown peer, word for word; the session goes on."""

    def check(*_: Any) -> None:
        raise Refusal(Code.RATE, "Too many requests from this peer", retry_after=1.0)

    monkeypatch.setattr(pair.second.host._gate, "check", check)
    session = await pair.open(pair.first, signer(24), price=ASK)
    answers = []
    for peer in (pair.second.host.peer_id, PeerKey.generate().peer_id):
        await session.link.send(Neighbours(next=Peer(bytes(peer), ())))
        answers.append(await session.link.receive())
    assert isinstance(answers[0], Refused)
    assert answers[0].code is Code.MISSING
    assert answers[0] == answers[1]
    await session.step(torch.randn(1, 32), 0)


async def test_the_link_to_the_next_node_ends_with_its_last_session(pair: Pair) -> None:
    outlets, to = pair.first.node.outlets, Peer(bytes(pair.second.host.peer_id), ())
    one, two = [await pair.open(pair.first, signer(number), price=ASK) for number in (21, 22)]
    for session in (one, two):
        await session.link.send(Neighbours(next=to))
        assert await session.link.receive() == Routed()
    (link,) = outlets._links.values()
    await one.link.close()
    async with asyncio.timeout(10):
        while len(outlets._users) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not link.closed
        await two.link.close()
        while outlets._links or not link.closed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not outlets._users
    assert not outlets._opening


async def test_a_route_anew_gives_up_the_old_neighbour(pair: Pair) -> None:
    outlets, to = pair.first.node.outlets, Peer(bytes(pair.second.host.peer_id), ())
    session = await pair.open(pair.first, signer(23), price=ASK)
    await session.link.send(Neighbours(next=to))
    assert await session.link.receive() == Routed()
    await session.link.send(Neighbours())
    assert await session.link.receive() == Routed()
    assert not outlets._links


class FakeLink:
    closed, trip = False, 0.02

    async def close(self, reason: str = "") -> None:
        self.closed = True


async def test_outlets_are_bounded() -> None:
    """Of the directory only the answer is made up here; what is counted is the node's own."""
    peers = [PeerId(number.to_bytes(38, "big")) for number in range(MOST_OUTLETS + 1)]

    class Everybody(NeighbourLinks):
        async def addresses(self, peer: PeerId, block: int, *, but: tuple[str, ...] = ()) -> tuple[str, ...]:
            return ("/ip4/192.0.2.1/tcp/1",)

    async def nobody(block: int) -> list[object]:
        return []

    async def dial(peer: PeerId, addresses: object) -> FakeLink:
        return FakeLink()

    outlets = Outlets(Everybody(nobody), dial)  # type: ignore[arg-type]
    for number, peer in enumerate(peers[:-1]):
        await outlets.open(SessionId(number.to_bytes(32, "big")), Peer(bytes(peer), ()), 1)
    with pytest.raises(SwarmError, match="cannot be reached"):
        await outlets.open(SessionId(b"\xff" * 32), Peer(bytes(peers[-1]), ()), 1)
    outlets.leave(SessionId(bytes(32)))
    await outlets.open(SessionId(b"\xff" * 32), Peer(bytes(peers[-1]), ()), 1)
    assert len(outlets.trips) == 16 * 6, "round trips to the newest 16 alone are kept, and told"
    assert outlets.trips.endswith(pack_trips([(peers[-1], FakeLink.trip)]))


async def test_many_routes_cost_few_look_ups() -> None:
    looks = 0

    async def find(block: int) -> list[object]:
        nonlocal looks
        looks += 1
        return []

    neighbours = NeighbourLinks(find)  # type: ignore[arg-type]
    peers = [PeerKey.generate().peer_id for _ in range(50)]
    assert set(await asyncio.gather(*(neighbours.addresses(peer, 1) for peer in peers))) == {()}
    assert looks < 5


async def test_a_look_up_that_hangs_keeps_nobody_waiting_whose_peer_is_known() -> None:
    asked = asyncio.Event()

    async def find(block: int) -> list[object]:
        asked.set()
        await asyncio.Event().wait()
        return []

    neighbours = NeighbourLinks(find)  # type: ignore[arg-type]
    known = unsigned(4, 8, addresses=("/ip4/192.0.2.1/tcp/1",))
    neighbours.learn([known])
    pestering = asyncio.create_task(neighbours.addresses(PeerKey.generate().peer_id, 4))
    await asked.wait()
    async with asyncio.timeout(1):
        assert await neighbours.addresses(known.peer, 4) == known.record.addresses
    pestering.cancel()
