"""A client's view of the nodes: refreshed by difference, and who comes back into it."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from hivemint.client.sessions.nodes import LOOK_AROUND, LOOK_UP_GOOD, LOOK_UP_PATIENCE, Nodes, Target
from hivemint.client.sessions.routing.choice import NodeChoice
from hivemint.client.sessions.speeds import Speeds
from hivemint.protocol.errors import ProofError, SwarmError
from hivemint.protocol.ids import Address
from hivemint.protocol.node_name import node_name
from hivemint.swarm import identity
from hivemint.swarm import records as wire
from hivemint.swarm.dht.clock import SwarmClock
from hivemint.swarm.records import CheckedRecord, check_record, sign_record
from support.fake_swarm import MODEL, FakeAccounts, FakeNode


class Directory:
    """Stands for a host whose look-ups bring bytes: each is checked as the real directory does it."""

    def __init__(self, *nodes: FakeNode) -> None:
        self.clock = SwarmClock()
        self.texts = {node.peer: self._text(node) for node in nodes}

    def _text(self, node: FakeNode) -> bytes:
        record = msgspec.structs.replace(node.record().record, expires=time.time() + 61)  # not the one checked here
        return sign_record(record, node.operator, node.key).to_bytes()

    def publish(self, node: FakeNode) -> None:
        self.texts[node.peer] = self._text(node)

    async def find(self, model_id: bytes, blocks: range) -> list[CheckedRecord]:
        return [check_record(text) for text in self.texts.values()]


def made(*nodes: FakeNode, **more: Any) -> tuple[Nodes, Directory, FakeAccounts, Speeds]:
    directory, chain, speeds = Directory(*nodes), FakeAccounts.of(*nodes), Speeds()
    host: Any = directory
    return Nodes(host, Target(MODEL, 30, 8), chain, speeds, **more), directory, chain, speeds


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The peers whose signatures were verified."""
    seen: list[bytes] = []

    def counted(peer: Any, data: bytes, signature: bytes) -> None:
        seen.append(peer)
        identity.verify(peer, data, signature)

    monkeypatch.setattr(wire, "verify", counted)
    return seen


async def look_again(nodes: Nodes) -> list[CheckedRecord]:
    nodes._looked = None
    return await nodes.usable()


async def test_a_second_look_checks_and_asks_for_what_is_new_alone(
    verified: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = [FakeNode(0, 15), FakeNode(15, 30), FakeNode(0, 30)]
    nodes, directory, chain, _ = made(*fakes)
    asked: list[Sequence[Address]] = []
    answer = chain.peer_hashes

    async def peer_hashes(operators: Sequence[Address]) -> Any:
        asked.append(list(operators))
        return await answer(operators)

    monkeypatch.setattr(chain, "peer_hashes", peer_hashes)
    verified.clear()  # the fakes check their own as they are made
    first = await nodes.usable()
    assert sorted(verified) == sorted(fake.peer for fake in fakes)
    assert len(asked) == 1
    verified.clear()
    again = await look_again(nodes)
    assert verified == []
    assert len(asked) == 1
    assert all(one is other for one, other in zip(first, again, strict=True)), "the same objects: nothing is made anew"
    directory.publish(fakes[1])
    newcomer = FakeNode(0, 15)
    chain.add(newcomer, 0)
    directory.publish(newcomer)
    verified.clear()
    await look_again(nodes)
    assert sorted(verified) == sorted([fakes[1].peer, newcomer.peer])
    assert asked[1:] == [[newcomer.operator.address]]


class Slow(Directory):
    """A directory that answers when the test lets it."""

    def __init__(self, *nodes: FakeNode) -> None:
        super().__init__(*nodes)
        self.answers, self.asked = asyncio.Event(), 0
        self.answers.set()

    async def find(self, model_id: bytes, blocks: range) -> list[CheckedRecord]:
        self.asked += 1
        await self.answers.wait()
        return await super().find(model_id, blocks)


async def test_a_slow_look_up_is_not_waited_for_where_what_is_known_would_do() -> None:
    first, second = FakeNode(0, 30), FakeNode(0, 30)
    directory: Any = Slow(first)
    nodes = Nodes(directory, Target(MODEL, 30, 8), FakeAccounts.of(first, second), Speeds())
    assert [one.peer for one in await nodes.usable()] == [first.peer]
    directory.publish(second)
    directory.answers.clear()
    nodes._looked = time.monotonic() - 2 * LOOK_UP_GOOD
    assert [one.peer for one in await nodes.usable()] == [first.peer]
    nodes.look_around()
    assert directory.asked == 2, "one at a time"
    nodes.set_aside([first.peer], 60)
    waiting = asyncio.ensure_future(nodes.usable())
    await asyncio.wait((waiting,), timeout=2 * LOOK_UP_PATIENCE)
    assert not waiting.done(), "what is known would not do"
    directory.answers.set()
    assert [one.peer for one in await waiting] == [second.peer]


async def test_a_look_up_that_fails_ends_nothing_as_long_as_what_is_known_lives() -> None:
    node = FakeNode(0, 30)
    nodes, directory, *_ = made(node)
    assert await nodes.usable()

    async def away(*_: Any) -> Any:
        raise SwarmError("nobody answers")

    directory.find = away  # type: ignore[assignment, method-assign]
    nodes._looked = time.monotonic() - 2 * LOOK_UP_GOOD
    assert [one.peer for one in await nodes.usable()] == [node.peer]
    nodes.set_aside([node.peer], 60)
    with pytest.raises(SwarmError):
        await nodes.usable()


async def test_a_text_that_goes_on_has_the_directory_asked_now_and_then() -> None:
    directory: Any = Slow(node := FakeNode(0, 30))
    nodes = Nodes(directory, Target(MODEL, 30, 8), FakeAccounts.of(node), Speeds())
    await nodes.usable()
    nodes.look_around()
    assert directory.asked == 1
    nodes._looked = time.monotonic() - 2 * LOOK_AROUND
    directory.answers.clear()
    nodes.look_around()
    nodes.look_around()
    await asyncio.sleep(0)
    assert directory.asked == 2
    await nodes.close()
    assert nodes._look_up is not None
    assert nodes._look_up.cancelled()


async def test_the_view_of_plans_is_made_anew_only_if_something_changed() -> None:
    fakes = [FakeNode(0, 15), FakeNode(15, 30)]
    nodes, directory, _, _ = made(*fakes)
    view = await nodes.view()
    nodes._looked = None
    assert await nodes.view() is view
    directory.publish(fakes[0])
    nodes._looked = None
    assert await nodes.view() is not view


async def test_who_is_registered_with_another_peer_is_asked_for_again() -> None:
    fakes = [FakeNode(0, 30), FakeNode(0, 30)]
    nodes, _, chain, _ = made(*fakes)
    chain.peers[fakes[1].operator.address] = b"\0" * 32
    assert [one.peer for one in await nodes.usable()] == [fakes[0].peer]
    chain.add(fakes[1], 0)
    assert len(await look_again(nodes)) == 2


async def test_one_that_failed_comes_back_where_nobody_else_whom_the_user_allows_serves() -> None:
    mine, other = FakeNode(0, 30), FakeNode(0, 30)
    name = node_name(mine.operator.address)
    for choice, back in ((NodeChoice(allowed=(name,)), True), (NodeChoice(), False)):
        nodes, _, _, _ = made(mine, other, choice=choice)
        await nodes.usable()
        nodes.set_aside([mine.peer], 60, reason="it died")
        assert (mine.peer in {one.peer for one in await nodes.usable()}) == back
        assert nodes.enough_without([other.peer]) is False
        assert nodes.replaceable([mine.peer]) != back
        nodes.set_aside([mine.peer], 60, lied=True)
        assert mine.peer not in {one.peer for one in await nodes.usable()}


async def test_blocks_that_the_model_has_not_bring_nobody_back() -> None:
    honest, failed = FakeNode(0, 30), FakeNode(0, 31)
    nodes, _, _, _ = made(honest, failed)
    await nodes.usable()
    nodes.set_aside([failed.peer], 60, reason="it died")
    assert [one.peer for one in await nodes.usable()] == [honest.peer]


async def test_who_is_set_aside_is_told_with_the_reason() -> None:
    fakes = [FakeNode(0, 30), FakeNode(0, 30)]
    nodes, _, _, speeds = made(*fakes)
    await nodes.usable()
    assert nodes.left_out() == []
    nodes.set_aside([fakes[0].peer], 60, reason="did not answer while connecting")
    nodes.set_aside([fakes[1].peer], 60, busy=True)
    told = {one.record.peer: one.reason for one in nodes.left_out()}
    assert "did not answer while connecting" in told[fakes[0].peer]
    assert "busy" in told[fakes[1].peer]
    assert not speeds.sessions


def test_another_operators_record_is_not_taken_for_a_checked_one() -> None:
    """What is kept is found by all of its bytes."""
    node, other = FakeNode(0, 30), FakeNode(0, 30)
    record = node.record()
    forged = sign_record(other.record().record, other.operator, other.key)
    swapped = type(forged)(record.signed.payload, forged.operator_signature, forged.peer_signature)
    with pytest.raises(ProofError, match=r"is forged|does not hold"):
        check_record(swapped.to_bytes())


async def test_of_those_that_failed_each_gets_its_turn() -> None:
    """Two for the same blocks, both set aside: who failed last comes last, however good it looks."""
    first, second, rest = FakeNode(0, 15), FakeNode(0, 15), FakeNode(15, 30)
    nodes, *_ = made(first, second, rest)
    await nodes.usable()
    turns = []
    nodes.set_aside([first.peer], 60)
    nodes.set_aside([second.peer], 60)
    for _ in range(4):
        (again,) = [one.peer for one in await nodes.usable() if one.peer != rest.peer]
        turns.append(again)
        nodes.set_aside([again], 60, reason="it failed")
    assert turns == [first.peer, second.peer] * 2


async def test_who_is_busy_comes_before_who_failed_and_a_liar_not_at_all() -> None:
    busy, failed, liar, rest = FakeNode(0, 15), FakeNode(0, 15), FakeNode(0, 15), FakeNode(15, 30)
    nodes, *_ = made(busy, failed, liar, rest)
    await nodes.usable()
    nodes.set_aside([liar.peer], 60, lied=True)
    nodes.set_aside([failed.peer], 60)
    nodes.set_aside([busy.peer], 60, busy=True)
    assert {one.peer for one in await nodes.usable()} == {busy.peer, rest.peer}


async def test_a_node_that_failed_before_is_left_to_try_and_a_liar_is_not() -> None:
    first, second, rest = FakeNode(0, 15), FakeNode(0, 15), FakeNode(15, 30)
    nodes, *_ = made(first, second, rest)
    await nodes.usable()
    nodes.set_aside([second.peer], 60)
    assert not nodes.replaceable([first.peer])
    assert nodes.left_to_try([first.peer])
    assert nodes.left_to_try([rest.peer, first.peer])
    assert not nodes.left_to_try([rest.peer])
    nodes.set_aside([second.peer], 60, lied=True)
    assert not nodes.left_to_try([first.peer])
