"""Links over real libp2p streams between two hosts of this process, and to a peer in a process of its own."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from hivemint.protocol.errors import LinkClosed, ProtocolError
from hivemint.protocol.ids import PeerId, Step
from hivemint.swarm import link as link_module
from hivemint.swarm.frames import pack
from hivemint.swarm.held import Held
from hivemint.swarm.host import CONTROL, Host, HostSettings
from hivemint.swarm.limits import PeerLimits
from hivemint.swarm.link import Link
from hivemint.swarm.messages import MAX_TENSOR, Bye, Cancel, Ping, Routed, Tensor, TensorHead
from support.wire import EVERY_TYPE, NETWORK, hosts, open_wide, plain

ECHO = Path(__file__).parent.parent / "support" / "echo_peer.py"


@dataclass
class Pair:
    """A dialled link and the other end of it."""

    dialer: Host
    here: Link
    acceptor: Host
    there: Link
    release: asyncio.Event = field(default_factory=asyncio.Event)


@contextlib.asynccontextmanager
async def linked(limits: PeerLimits | None = None) -> AsyncIterator[Pair]:
    async with hosts(HostSettings(NETWORK, limits=limits or PeerLimits()), HostSettings(NETWORK, listen=())) as (
        node,
        client,
    ):
        arrived: asyncio.Queue[Link] = asyncio.Queue()
        release = asyncio.Event()

        async def keep(link: Link) -> None:
            open_wide(link)
            arrived.put_nowait(link)
            await release.wait()

        await node.serve(CONTROL, keep)
        here = await client.dial(node.peer_id, node.addresses, CONTROL)
        yield Pair(client, here, node, await arrived.get(), release)


async def until_closed(link: Link, limit: float) -> str:
    async with asyncio.timeout(limit):
        return await link.wait_closed()


async def test_every_message_goes_through_both_ways_in_order() -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with linked() as pair:
        assert pair.there.peer == pair.dialer.peer_id
        assert pair.here.peer == pair.acceptor.peer_id
        for sender, receiver in ((pair.here, pair.there), (pair.there, pair.here)):
            sending = asyncio.create_task(sender.send(*EVERY_TYPE))
            for message in EVERY_TYPE:
                assert plain(await receiver.receive()) == plain(message)
            await sending


async def test_several_messages_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked() as pair:
        writes: list[int] = []
        transport = pair.here._transport

        class Counting:
            def __getattr__(self, name: str) -> object:
                return getattr(transport, name)

            def writelines(self, parts: list[bytes]) -> None:
                writes.append(sum(map(len, parts)))
                transport.writelines(parts)

        monkeypatch.setattr(pair.here, "_transport", Counting())
        await pair.here.send(Cancel(Step(1)), Routed(), Cancel(Step(2)))
        assert writes == [sum(map(len, pack([Cancel(Step(1)), Routed(), Cancel(Step(2))])))]
        assert [await pair.there.receive() for _ in range(3)] == [Cancel(Step(1)), Routed(), Cancel(Step(2))]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ((MAX_TENSOR + 2).to_bytes(4, "big") + bytes((Tensor.NUMBER,)), "impossible size"),
        ((5000).to_bytes(4, "big") + bytes((Cancel.NUMBER,)), "impossible size"),
        ((0).to_bytes(4, "big") + bytes((Cancel.NUMBER,)), "impossible size"),
        ((2).to_bytes(4, "big") + bytes((99, 0)), "unknown type"),
        ((3).to_bytes(4, "big") + bytes((Cancel.NUMBER, 0xC1, 0xC1)), "malformed Cancel"),
        ((2).to_bytes(4, "big") + bytes((Tensor.NUMBER, 0)), "malformed Tensor"),
    ],
    ids=["huge", "over its type's limit", "empty", "unknown", "not msgpack", "short tensor"],
)
async def test_bad_frames_end_the_link_and_the_peer_is_told_why(raw: bytes, reason: str) -> None:
    async with linked() as pair:
        await pair.here.send(Routed())
        pair.here._transport.write(raw)
        assert await pair.there.receive() == Routed()
        with pytest.raises(LinkClosed, match=reason):
            await pair.there.receive()
        with pytest.raises(LinkClosed, match=reason):
            await pair.here.receive()


async def test_a_close_tells_its_reason_and_what_came_before_is_still_delivered() -> None:
    async with linked() as pair:
        await pair.there.send(Routed(), Cancel(Step(3)))
        await pair.there.close("the session expired")
        assert await pair.here.receive() == Routed()
        assert await pair.here.receive() == Cancel(Step(3))
        with pytest.raises(LinkClosed, match="the session expired"):
            await pair.here.receive()
        with pytest.raises(LinkClosed, match="the session expired"):
            await pair.here.send(Routed())
        assert pair.here.closed
        assert pair.here.reason == "the session expired"
        await pair.here.close()
        assert not pair.dialer._links


async def test_a_waiting_receiver_learns_of_the_end() -> None:
    async with linked() as pair:
        waiting = asyncio.create_task(pair.here.receive())
        await asyncio.sleep(0)
        pair.release.set()  # the handler returns
        with pytest.raises(LinkClosed):
            await waiting


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with linked() as pair:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pair.here.receive()
        await pair.there.send(Routed())
        assert await pair.here.receive() == Routed()


async def test_a_fast_sender_is_held_back_and_all_arrives() -> None:
    chunk, count = Tensor(TensorHead(Step(1)), bytes(1024 * 1024)), 40
    async with linked() as pair:
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for _ in range(count):
                await pair.here.send(chunk)
                sent += 1

        sending = asyncio.create_task(send_all())
        before = -1
        while before != sent or not sent:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.3)
        assert sent < count - 10
        assert pair.there._inbox_bytes < link_module.INBOX_BYTES + 2 * len(chunk.data)
        for _ in range(count):
            message = await pair.there.receive()
            assert isinstance(message, Tensor)
            assert len(message.data) == len(chunk.data)
        await sending
        assert pair.there.held.bytes == 0


async def test_a_link_that_is_not_read_is_not_taken_for_dead() -> None:
    async with linked() as pair:
        sending = asyncio.create_task(pair.here.send(*[Tensor(TensorHead(Step(1)), bytes(1024 * 1024))] * 30))
        await asyncio.sleep(link_module.SILENCE_LIMIT + 1.0)
        assert not pair.here.closed
        assert not pair.there.closed
        for _ in range(30):
            await pair.there.receive()
        await sending


async def test_one_peer_cannot_make_us_hold_more_than_its_limit() -> None:
    async with linked(PeerLimits(bytes=3_000_000)) as pair:
        with contextlib.suppress(LinkClosed):  # it may learn of it while it sends
            await pair.here.send(*[Tensor(TensorHead(Step(1)), bytes(1_000_000))] * 4)
        assert "take too much room" in await until_closed(pair.there, 5)
        assert pair.there.held.bytes == 0
        with pytest.raises(LinkClosed, match="take too much room"):
            await pair.here.receive()


def test_what_all_peers_hold_is_bounded_too() -> None:
    everyone = Held(10)
    one, other = Held(8, parent=everyone), Held(8, parent=everyone)
    one.add(7)
    with pytest.raises(ProtocolError, match="too much room"):
        other.add(7)
    other.add(-7)
    one.add(-7)
    assert everyone.bytes == 0


async def test_idle_links_live_on_pings_alone() -> None:
    async with linked() as pair:
        await asyncio.sleep(link_module.SILENCE_LIMIT + 1.0)
        await pair.here.send(Routed())
        assert await pair.there.receive() == Routed()


async def test_two_receivers_on_one_link_are_a_mistake() -> None:
    async with linked() as pair:
        first = asyncio.create_task(pair.here.receive())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks"):
            await pair.here.receive()
        first.cancel()


async def test_ping_and_bye_never_reach_the_receiver() -> None:
    async with linked() as pair:
        await pair.here.send(Ping(), Routed(), Bye("that was all"))
        assert await pair.there.receive() == Routed()
        with pytest.raises(LinkClosed, match="that was all"):
            await pair.there.receive()


async def test_a_peer_that_was_silent_is_told_so() -> None:
    async with linked() as pair:
        now = asyncio.get_running_loop().time()
        pair.here._heard_at = now - 2.1
        pair.here.beat(now)
        with pytest.raises(LinkClosed, match="ended") as here:
            await pair.here.receive()
        assert here.value.why == "the peer was silent for 2 s"
        with pytest.raises(LinkClosed) as there:
            await pair.there.receive()
        assert there.value.why == "the other side heard nothing from here for 2 s"


# ---- a peer in another process


@contextlib.asynccontextmanager
async def echo_peer() -> AsyncIterator[tuple[asyncio.subprocess.Process, PeerId, str]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ECHO), NETWORK, stdout=asyncio.subprocess.PIPE, env=environment
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            peer, address = (await process.stdout.readline()).split()
        yield process, PeerId(bytes.fromhex(peer.decode())), address.decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_killed_or_stopped_peer_is_noticed(how: signal.Signals) -> None:
    async with echo_peer() as (process, peer, address), hosts(HostSettings(NETWORK, listen=())) as (client,):
        link = await client.dial(peer, (address,), CONTROL)
        await link.send(*EVERY_TYPE)
        for message in EVERY_TYPE:
            assert plain(await link.receive()) == plain(message)
        os.kill(process.pid, how)
        with pytest.raises(LinkClosed, match="silent for 2 s" if how == signal.SIGSTOP else "died or was cut off"):
            async with asyncio.timeout(10):
                await link.receive()
        assert not client._links
