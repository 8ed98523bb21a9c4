"""What is known of other nodes before a session needs it, and where they can be dialled."""

import asyncio
import time

import pytest

from hivemint.node.sessions.outlets import LOOK_UP_GOOD, PLACE_GOOD, NeighbourLinks, Outlets
from hivemint.node.surroundings import Surroundings
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import BlockIndex, Credits, ModelId, PeerId, SessionId
from hivemint.protocol.signing import Signer
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.messages import Peer
from hivemint.swarm.records import CheckedRecord, NodeRecord, check_record, sign_record

MODEL = ModelId(b"\x05" * 32)
OLD, NEW = "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.1/tcp/2"
PEER = PeerKey.generate()


def record(address: str, first: int = 4) -> CheckedRecord:
    operator = Signer(b"\x01" * 32)
    told = NodeRecord(
        network="test",
        model_id=MODEL,
        first_block=BlockIndex(first),
        end_block=BlockIndex(first + 4),
        peer=PEER.peer_id,
        operator=operator.address,
        numerics=("fp32/fp32/fp32",),
        ask=Credits(1),
        expires=time.time() + 40,
        addresses=(address,),
    )
    return check_record(sign_record(told, operator, PEER).to_bytes())


class Listed:
    """A directory of the test's making, which counts how often it is asked."""

    def __init__(self, *records: CheckedRecord) -> None:
        self.records, self.away, self.asked = list(records), False, list[range]()

    async def find(self, model_id: ModelId, blocks: range) -> list[CheckedRecord]:
        self.asked.append(blocks)
        if self.away:
            raise SwarmError("nobody answers")
        return self.records

    async def block(self, block: int) -> list[CheckedRecord]:
        return await self.find(MODEL, range(block, block + 1))


async def test_the_next_block_is_looked_up_too_and_an_answer_that_does_not_come_is_nobody() -> None:
    listed, told = Listed(record(OLD)), list[list[CheckedRecord]]()
    await Surroundings(listed, MODEL, (0, 4), 8, [told.append]).look()
    await Surroundings(listed, MODEL, (4, 8), 8, [told.append]).look()
    listed.away = True
    await Surroundings(listed, MODEL, (0, 4), 8, [told.append]).look()
    assert listed.asked == [range(5), range(4, 8), range(5)]
    assert told == [listed.records, listed.records, []]


class Nodes:
    """Whom the test lets a node reach."""

    def __init__(self, *reachable: str) -> None:
        self.reachable, self.dialled = reachable, list[str]()

    async def dial(self, peer: PeerId, addresses: tuple[str, ...]) -> object:
        self.dialled += addresses
        if not set(addresses) & set(self.reachable):
            raise SwarmError("nobody there")
        return type("Link", (), {"closed": False, "trip": 0.1})()


async def opened(links: NeighbourLinks, nodes: Nodes, number: int = 0) -> None:
    outlets = Outlets(links, nodes.dial)  # type: ignore[arg-type]
    await outlets.open(SessionId(number.to_bytes(32, "big")), Peer(bytes(PEER.peer_id), ()), 4)


async def test_what_is_known_is_dialled_without_asking() -> None:
    listed, nodes = Listed(record(OLD)), Nodes(OLD)
    links = NeighbourLinks(listed.block)
    links.learn(listed.records)
    listed.away = True
    await opened(links, nodes)
    assert (listed.asked, nodes.dialled) == ([], [OLD])
    assert await links.addresses(PEER.peer_id, 7) == (OLD,)
    with pytest.raises(SwarmError):
        await links.addresses(PEER.peer_id, 8)


async def test_one_that_came_back_elsewhere_is_found_there(monkeypatch: pytest.MonkeyPatch) -> None:
    listed, nodes = Listed(record(NEW)), Nodes(NEW)
    links = NeighbourLinks(listed.block)
    links.learn([record(OLD)])
    with pytest.raises(SwarmError):
        await opened(links, nodes)
    assert listed.asked == [], "it was looked up a moment ago"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LOOK_UP_GOOD)
    await opened(links, nodes)
    assert (len(listed.asked), nodes.dialled) == (1, [OLD, OLD, NEW])


async def test_naming_a_dead_node_again_and_again_costs_few_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    listed, nodes = Listed(), Nodes()
    links = NeighbourLinks(listed.block)
    links.learn([record(OLD)])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LOOK_UP_GOOD)
    done = await asyncio.gather(*(opened(links, nodes, number) for number in range(20)), return_exceptions=True)
    assert all(isinstance(one, SwarmError) for one in done)
    assert len(listed.asked) == 1


async def test_what_is_old_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Listed(record(NEW))
    links = NeighbourLinks(listed.block)
    links.learn([record(OLD)])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + PLACE_GOOD)
    assert await links.addresses(PEER.peer_id, 4) == (NEW,)
