"""Strangers on real links: what they make a host hold is counted, bounded, and taken from the greediest."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from itertools import count

import pytest

from hivemint.node.sessions import arrivals
from hivemint.node.sessions.inbox import Inbox
from hivemint.protocol.errors import LinkClosed, ProtocolError, Refusal, SwarmError
from hivemint.protocol.ids import PeerId, SessionId, Step
from hivemint.swarm import link as link_module
from hivemint.swarm.addresses import prefix_of
from hivemint.swarm.frames import HEAD, pack
from hivemint.swarm.held import Held
from hivemint.swarm.host import CONTROL, PUSH, Host, HostSettings
from hivemint.swarm.limits import Gate, PeerLimits
from hivemint.swarm.link import Link
from hivemint.swarm.messages import (
    MAX_TENSOR,
    MIB,
    Cancel,
    Load,
    Ping,
    Routed,
    StepReceipt,
    Tensor,
    TensorHead,
    tensor_body,
)
from support.wire import NETWORK, hosts

CLIENT = HostSettings(NETWORK, listen=())
SOURCE = SessionId(b"\6" * 32)


@dataclass
class Door:
    """A host that keeps its links open, and a stranger's end of one."""

    node: Host
    stranger: Host
    arrived: asyncio.Queue[Link]

    async def dial(self) -> tuple[Link, Link]:
        """The stranger's end and the node's."""
        here = await self.stranger.dial(self.node.peer_id, self.node.addresses, CONTROL)
        return here, await self.arrived.get()


@contextlib.asynccontextmanager
async def door(limits: PeerLimits | None = None) -> AsyncIterator[Door]:
    async with hosts(HostSettings(NETWORK, limits=limits or PeerLimits()), CLIENT) as (node, stranger):
        arrived: asyncio.Queue[Link] = asyncio.Queue()

        async def keep(link: Link) -> None:
            arrived.put_nowait(link)
            await link.wait_closed()

        await node.serve(CONTROL, keep)
        yield Door(node, stranger, arrived)


def head(kind: type, size: int) -> bytes:
    return (size + 1).to_bytes(4, "big") + bytes((kind.NUMBER,))  # type: ignore[attr-defined]


async def reason(link: Link) -> str:
    async with asyncio.timeout(10):
        return await link.wait_closed()


@pytest.mark.parametrize("kind", [Tensor, Load, StepReceipt])
async def test_a_stranger_can_announce_nothing_large(kind: type) -> None:
    """The five bytes of the head end the link: nothing of the body is read, nothing is held."""
    async with door() as at:
        here, there = await at.dial()
        here._transport.write(head(kind, kind.LIMIT - 10))  # type: ignore[attr-defined]
        assert "impossible size" in await reason(there)
        assert there.held.bytes == 0


async def test_a_session_may_send_what_its_node_allows_and_no_byte_more() -> None:
    async with door() as at:
        here, there = await at.dial()
        there.allow(Tensor, tensor_body(1000))
        await here.send(Tensor(TensorHead(Step(1)), bytes(1000)))
        assert isinstance(await there.receive(), Tensor)
        here._transport.write(head(Tensor, tensor_body(1000) + 1))
        assert "impossible size" in await reason(there)


async def test_a_frame_that_is_fed_byte_by_byte_ends_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "FRAME_TIME", 1.0)
    async with door() as at:
        here, there = await at.dial()
        honest, other = await at.dial()
        here._transport.write(head(Cancel, 100))

        async def drip() -> None:
            for _ in count():
                here._transport.write(b"\x81")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert "was not whole after" in await reason(there)
        dripping.cancel()
        await honest.send(Routed())
        assert await other.receive() == Routed()


async def test_slow_but_whole_frames_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is each frame's own: a link that always has an unfinished one lives."""
    monkeypatch.setattr(link_module, "FRAME_TIME", 1.0)
    async with door() as at:
        here, there = await at.dial()
        here._sent_at = float("inf")  # no ping in the middle of a frame
        frame = head(Cancel, len(_CANCEL)) + _CANCEL
        stream = frame * 8
        for at_byte in range(0, len(stream), HEAD):
            here._transport.write(stream[at_byte : at_byte + HEAD])
            await asyncio.sleep(0.08)
        for _ in range(8):
            assert await there.receive() == Cancel(Step(7))


async def test_unread_and_unfinished_bytes_have_one_limit_a_peer() -> None:
    async with door(PeerLimits(bytes=3_000_000)) as at:
        here, there = await at.dial()
        there.allow(Tensor, MAX_TENSOR)
        here._transport.write(head(Tensor, 5_000_000) + bytes(4_000_000))
        assert "take too much room" in await reason(there)
        assert there.held.bytes == 0


async def test_the_greediest_peer_makes_room_for_all_others() -> None:
    """The byte that passes the sum is an innocent's: another loses its link for it."""
    limits = PeerLimits(bytes=4_000_000, total_bytes=5_000_000)
    async with door(limits) as at, hosts(CLIENT) as (honest,):
        greedy, its = await at.dial()
        its.allow(Tensor, MAX_TENSOR)
        greedy._transport.write(head(Tensor, 3_900_000) + bytes(3_800_000))
        mine = await honest.dial(at.node.peer_id, at.node.addresses, CONTROL)
        there = await at.arrived.get()
        there.allow(Tensor, MAX_TENSOR)
        while its.held.bytes < 3_800_000:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await mine.send(Tensor(TensorHead(Step(1)), bytes(2_000_000)))
        assert "it held the most" in await reason(its)
        received = await there.receive()
        assert isinstance(received, Tensor)
        assert not there.closed


def test_many_small_holders_of_one_prefix_count_as_one() -> None:
    """A thousand ids from one network, a little each, against one client that holds more than each of them."""
    gate, cut = Gate(PeerLimits(bytes=100, prefix_bytes=1000, total_bytes=1000)), list[str]()
    for number in range(1000):
        peer: Held = gate.enter(bytes([number % 256, number // 256]), 0.0, "203.0.113.0/24")  # type: ignore[arg-type]
        peer.cuts.add(lambda reason, number=number: cut.append(f"sybil {number}"))  # type: ignore[misc]
        with contextlib.suppress(ProtocolError):
            peer.add(1)
    honest = gate.enter(b"honest", 0.0, "198.51.100.0/24")  # type: ignore[arg-type]
    honest.cuts.add(lambda reason: cut.append("honest"))
    honest.add(50)
    assert cut
    assert "honest" not in cut


@pytest.mark.parametrize(("message", "most"), [(Ping(), 60), (Cancel(Step(1)), 200)])
async def test_messages_that_cost_nothing_have_a_budget(message: Ping | Cancel, most: int) -> None:
    async with door() as at:
        here, there = await at.dial()

        async def drain() -> None:
            with contextlib.suppress(LinkClosed):
                while True:
                    await there.receive()

        draining = asyncio.create_task(drain())
        with contextlib.suppress(LinkClosed):
            for _ in range(most * 4):
                await here.send(message)
        assert "too many" in await reason(there)
        await draining


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("/ip4/127.0.0.1/tcp/1", None),
        ("/ip4/127.0.0.77/tcp/1", None),
        ("/ip6/::1/tcp/1", None),
        ("/ip6/::ffff:127.0.0.1/tcp/1", None),
        ("/ip4/127.0.1.1/tcp/1", "127.0.1.0/24"),
        ("/ip4/192.0.2.7/tcp/1", "192.0.2.0/24"),
        ("/ip6/::ffff:192.0.2.7/tcp/1", "192.0.2.0/24"),
        ("/ip6/2001:db8:1:2ff::7/tcp/1", "2001:db8:1:200::/56"),
        ("/ip4/192.0.2.7/tcp/1/p2p/12D3/p2p-circuit", None),
        ("/dns4/localhost/tcp/1", None),
    ],
)
def test_whose_network_an_address_is_in(address: str, network: str | None) -> None:
    """This machine's own says nothing; another loopback network does."""
    assert prefix_of(address) == network


async def test_ids_of_one_network_share_its_links_and_handshakes() -> None:
    """A new id for each dial: the loopback's prefix is what is counted here."""
    limits = PeerLimits(loopback=True, prefix_links=3, prefix_handshake_burst=4, prefix_handshakes_per_s=0.001)
    async with door(limits) as at, hosts(*[CLIENT] * 4) as sybils:
        links = [await one.dial(at.node.peer_id, at.node.addresses, CONTROL) for one in sybils[:3]]
        assert {at.node.prefix_of(one.peer_id) for one in sybils[:3]} == {"127.0.0.0/24"}
        with pytest.raises(Refusal, match="3 links are open from this network"):
            await sybils[3].dial(at.node.peer_id, at.node.addresses, CONTROL)
        await links[0].close()
        await sybils[3].dial(at.node.peer_id, at.node.addresses, CONTROL)
        await links[1].close()
        with pytest.raises(Refusal, match="handshakes a second"):
            await at.dial()


# ---- push links


class Neighbour:
    """A node's inbox behind a real push link, and the previous node's end."""

    def __init__(self, inbox: Inbox, link: Link, node: Host) -> None:
        self.inbox, self.link, self.node = inbox, link, node

    @property
    def held(self) -> int:
        return sum(usage.held.bytes for usage in self.node._gate._peers.values())

    async def until(self, held: int) -> None:
        async with asyncio.timeout(10):
            while self.held != held:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def push(self, step: int, size: int = 1000, source: SessionId = SOURCE) -> None:
        await self.link.send(Tensor(TensorHead(Step(step), source), bytes(size)))


@contextlib.asynccontextmanager
async def neighbour(ahead: int = 2) -> AsyncIterator[Neighbour]:
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, previous):
        inbox = Inbox(ahead)
        await node.serve(PUSH, inbox.receive)
        link = await previous.dial(node.peer_id, node.addresses, PUSH)
        yield Neighbour(inbox, link, node)


async def test_an_unnamed_peer_can_push_nothing() -> None:
    async with neighbour() as at:
        with contextlib.suppress(LinkClosed):
            await at.push(1)
        assert "impossible size" in await reason(at.link)
        assert at.held == 0


async def test_pushed_tensors_count_for_their_peer_and_leave_after_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "KEEP", 0.3)
    async with neighbour(ahead=2) as at:
        at.inbox.name(SOURCE, _dialer(at), tensor_body(1000))
        for step in range(1, 6):
            await at.push(step)
        await at.until(2000)  # `ahead` of them
        await at.until(0)
        assert at.inbox.dropped == 5


async def test_a_step_behind_one_that_waits_keeps_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both requests are here; the first one's input never comes. The second is told that its own is missing."""
    monkeypatch.setattr(arrivals, "KEEP", 0.3)
    async with neighbour() as at:
        taken = at.inbox.name(SOURCE, _dialer(at), tensor_body(1000))
        taken.want(Step(1))
        second = taken.want(Step(2))
        await at.push(2)
        await at.until(1000)
        await at.until(0)
        assert not second.claim().done()


async def test_a_pushed_tensor_for_which_there_is_no_room_is_dropped_at_its_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of a third one comes, and no more: nothing of it is kept. Its end, later, ends nothing else."""
    monkeypatch.setattr(link_module, "PING_AFTER", 60.0)  # no Ping between the halves of a frame
    monkeypatch.setattr(link_module, "SILENCE_LIMIT", 60.0)
    async with neighbour(ahead=2) as at:
        taken = at.inbox.name(SOURCE, _dialer(at), tensor_body(100_000))
        for step in (1, 2):
            taken.want(Step(step))
            await at.push(step, size=100_000)
        await at.until(200_000)
        frame = b"".join(pack([Tensor(TensorHead(Step(3), SOURCE), bytes(100_000))]))
        at.link._transport.write(frame[:60_000])
        async with asyncio.timeout(10):
            while not at.inbox.dropped:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert at.held == 200_000
        first = taken.want(Step(1))
        await first.claim()
        taken.done(Step(1), first)
        at.link._transport.write(frame[60_000:])
        await at.push(4, size=50_000)
        await at.until(150_000)
        assert at.inbox.dropped == 1


async def test_a_tensor_that_is_read_stays_until_its_step_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "KEEP", 0.1)
    async with neighbour() as at:
        taken = at.inbox.name(SOURCE, _dialer(at), tensor_body(1000))
        arrival, tensor = await _read(at, taken)
        assert len(tensor.data) == 1000
        await asyncio.sleep(0.3)
        assert at.held == 1000
        taken.done(Step(1), arrival)
        assert at.held == 0


async def test_who_names_a_session_first_keeps_it_from_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each session that has named it gets what comes, which counts once; one that named another peer gets nothing."""
    async with neighbour() as at:
        squatters = [at.inbox.name(SOURCE, _dialer(at), tensor_body(1000)) for _ in range(3)]
        elsewhere = at.inbox.name(SOURCE, PeerId(b"\x02" * 38), tensor_body(1000))
        honest = at.inbox.name(SOURCE, _dialer(at), tensor_body(1000))
        other = elsewhere.want(Step(1)).claim()
        waiting = squatters[0].want(Step(1))
        arrival, tensor = await _read(at, honest)
        assert (await waiting.claim()) is tensor
        assert at.held == 1000
        for one in squatters:
            at.inbox.forget(one)
        assert at.held == 1000
        assert not other.done()
        honest.done(Step(1), arrival)
        assert at.held == 0
        at.inbox.forget(honest)
        at.inbox.forget(elsewhere)
        assert not at.inbox._sources


async def test_larger_than_the_session_named_is_refused_at_the_head() -> None:
    async with neighbour() as at:
        at.inbox.name(SOURCE, _dialer(at), tensor_body(1000))
        with contextlib.suppress(LinkClosed):
            await at.push(1, size=64 * MIB - 2000)
        assert "impossible size" in await reason(at.link)


def _dialer(at: Neighbour) -> PeerId:
    (peer,) = at.node._gate._peers
    return peer


async def _read(at: Neighbour, taken: arrivals.Arrivals) -> tuple[arrivals.Arrival, Tensor]:
    arrival = taken.want(Step(1))
    await at.push(1)
    async with asyncio.timeout(10):
        return arrival, await asyncio.shield(arrival.claim())


# ---- where a host dials


async def test_private_places_are_dialled_in_private_networks_only() -> None:
    async with hosts(HostSettings(NETWORK), replace(CLIENT, private=False)) as (node, public):
        with pytest.raises(SwarmError, match="no usable address"):
            await public.dial(node.peer_id, node.addresses, CONTROL)


@pytest.mark.parametrize(
    ("listen", "bootstrap", "private"),
    [
        (("/ip4/127.0.0.1/tcp/0",), (), True),
        (("/ip4/0.0.0.0/tcp/4001",), (), False),
        (("/ip4/0.0.0.0/tcp/4001",), ("/ip4/10.0.0.7/tcp/1",), True),
        ((), ("/ip4/10.0.0.7/tcp/1", "/ip4/8.8.8.8/tcp/1"), False),
        ((), ("/dns4/boot.example.org/tcp/1",), False),
    ],
)
def test_a_network_is_private_if_its_bootstrap_peers_are(
    listen: tuple[str, ...], bootstrap: tuple[str, ...], private: bool
) -> None:
    peer = "/p2p/12D3KooWAVHffWVwKM7yVPv4ynEV1kxNa7BdiEQsKLErG4HJtSWP"
    assert HostSettings(NETWORK, listen=listen, bootstrap=tuple(b + peer for b in bootstrap)).is_private is private


_CANCEL = b"\x81\xa9from_step\x07"
