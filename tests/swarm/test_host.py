import asyncio
import os
import signal
import stat
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from hivemint.protocol.errors import BadInput, ConfigError, HivemintError, LinkClosed, Refusal, SwarmError
from hivemint.protocol.ids import Step
from hivemint.swarm import messages
from hivemint.swarm.frames import pack
from hivemint.swarm.hello import Badge
from hivemint.swarm.host import CONTROL, PUSH, Host, HostSettings
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.limits import Gate, PeerLimits
from hivemint.swarm.link import Link
from hivemint.swarm.messages import AnyMessage, Cancel, Hello, Prove, Refused, Routed
from support.wire import EVERY_TYPE, NETWORK, hosts, open_wide

SECRET = b"a swarm key of 16 bytes and more"
CLIENT = HostSettings(NETWORK, listen=())
Runner = Callable[[Coroutine[Any, Any, None]], None]


async def echo(link: Link) -> None:
    open_wide(link)
    while True:
        await link.send(await link.receive())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_hosts_talk_in_either_event_loop(run: Runner) -> None:
    async def talk() -> None:
        async with hosts(HostSettings(NETWORK), CLIENT) as (node, client):
            await node.serve(CONTROL, echo)
            await node.serve(PUSH, echo)
            for protocol in (CONTROL, PUSH):
                link = await client.dial(node.peer_id, node.addresses, protocol)
                sending = asyncio.create_task(link.send(*EVERY_TYPE))
                for message in EVERY_TYPE:
                    assert type(await link.receive()) is type(message)
                await sending
                await link.close()
            assert node.addresses[0].startswith("/ip4/127.0.0.1/tcp/")

    run(talk())


async def test_the_daemons_sockets_and_identity_are_private(tmp_path: Path) -> None:
    settings = HostSettings(NETWORK, identity=tmp_path / "peer.key")
    async with hosts(settings) as (host,):
        await host.serve(CONTROL, echo)
        folder, pid = host._daemon.folder, host._daemon.child.pid
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {path.name.split("-")[0] for path in folder.iterdir()} == {"lock", "control.sock", "p2pclient"}
        assert os.getsid(pid) != os.getsid(0), "a Ctrl-C in the terminal must not reach it"
        peer = host.peer_id
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    async with hosts(settings) as (again,):
        assert again.peer_id == peer


async def test_another_network_is_refused_by_both_sides() -> None:
    async with hosts(HostSettings(NETWORK), replace(CLIENT, network="other")) as (node, stranger):
        called = False

        async def handler(link: Link) -> None:
            nonlocal called
            called = True

        await node.serve(CONTROL, handler)
        with pytest.raises(Refusal, match="expected network 'test', got 'other'") as refusal:
            await stranger.dial(node.peer_id, node.addresses, CONTROL)
        assert refusal.value.code == messages.Code.NETWORK
        assert not called


async def test_another_protocol_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, client):
        await node.serve(CONTROL, echo)
        newer = Badge(NETWORK, client.peer_id, None)
        monkeypatch.setattr(Badge, "hello", lambda self: Hello(9 if self is newer else 1, NETWORK, bytes(32)))
        client._badge = newer
        with pytest.raises(Refusal, match="expected protocol version 1, got 9"):
            await client.dial(node.peer_id, node.addresses, CONTROL)


@pytest.mark.parametrize(
    ("node_key", "client_key", "reason"),
    [
        (SECRET, b"another swarm key of many bytes!", "does not know this swarm's key"),
        (SECRET, None, "belongs to a private swarm"),
        (None, SECRET, "a private swarm and a public one"),
    ],
)
async def test_a_wrong_swarm_key_is_refused(node_key: bytes | None, client_key: bytes | None, reason: str) -> None:
    settings = HostSettings(NETWORK, swarm_key=node_key), replace(CLIENT, swarm_key=client_key)
    async with hosts(*settings) as (node, client):
        await node.serve(CONTROL, echo)
        with pytest.raises(Refusal, match=reason):
            await client.dial(node.peer_id, node.addresses, CONTROL)


async def test_the_right_swarm_key_is_welcome() -> None:
    async with hosts(HostSettings(NETWORK, swarm_key=SECRET), replace(CLIENT, swarm_key=SECRET)) as (node, client):
        await node.serve(CONTROL, echo)
        link = await client.dial(node.peer_id, node.addresses, CONTROL)
        await link.send(Routed())
        assert await link.receive() == Routed()


async def raw_link(client: Host, node: Host, *first: AnyMessage) -> Link:
    """A link on which the dialer says what it likes instead of Hello."""
    await client._daemon.connect(node.peer_id, node.addresses)
    _, writer = await client._daemon.open(node.peer_id, CONTROL)
    link = client._links.add(node.peer_id, writer, client._gate.enter(node.peer_id, 0.0))
    link._transport.writelines(pack(first))
    return link


async def test_a_dialer_without_the_proof_reaches_no_handler() -> None:
    """It reflects the acceptor's own MAC, or makes one up, or sends a request in its place."""
    async with hosts(HostSettings(NETWORK, swarm_key=SECRET), CLIENT) as (node, stranger):
        calls: list[Link] = []

        async def handler(link: Link) -> None:
            calls.append(link)

        await node.serve(CONTROL, handler)
        for attempt in range(3):
            link = await raw_link(stranger, node, Hello(messages.PROTOCOL_VERSION, NETWORK, bytes(32)))
            theirs = await link.receive()
            assert isinstance(theirs, Hello)
            assert theirs.mac is not None
            tries = (Prove(theirs.mac), Prove(bytes(32)), Routed())
            await link.send(tries[attempt])
            refused = await link.receive()
            assert isinstance(refused, Refused)
            assert refused.code == messages.Code.NETWORK
        assert not calls


def test_a_proof_binds_label_peers_order_and_nonces() -> None:
    a, b, badge = PeerKey(b"\1" * 32).peer_id, PeerKey(b"\2" * 32).peer_id, Badge(NETWORK, bytes(38), SECRET)  # type: ignore[arg-type]
    proofs = {
        badge.mac(label, *peers, nonces)
        for label in (b"accept", b"dial")
        for peers in ((a, b), (b, a), (a, a))
        for nonces in (bytes(64), bytes(63) + b"\1")
    }
    assert len(proofs) == 12


async def test_what_is_not_a_hello_ends_the_stream_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivemint.swarm.link_registry.HELLO_LIMIT", 0.3)
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, stranger):
        await node.serve(CONTROL, echo)
        for first in ((Cancel(Step(1)),), ()):  # the second says nothing at all
            link = await raw_link(stranger, node, *first)
            async with asyncio.timeout(5):
                with pytest.raises(LinkClosed, match="the stream ended"):
                    await link.receive()
        assert not node._links


async def test_a_silent_acceptor_costs_a_dialer_its_time_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, client):

        async def mute(link: Link, badge: Badge, theirs: Hello) -> None:
            await asyncio.sleep(60)

        monkeypatch.setattr("hivemint.swarm.link_registry.answer", mute)
        await node.serve(CONTROL, echo)
        with pytest.raises(SwarmError, match=r"does not answer.*waited 0\.5 s"):
            await client.dial(node.peer_id, node.addresses, CONTROL, timeout=0.5)
        assert not client._links


async def test_too_many_handshakes_and_links_are_refused() -> None:
    limits = PeerLimits(handshakes_per_s=0.001, handshake_burst=3, links=2)
    async with hosts(HostSettings(NETWORK, limits=limits), CLIENT) as (node, client):
        await node.serve(CONTROL, echo)

        async def dial() -> Link:
            return await client.dial(node.peer_id, node.addresses, CONTROL)

        first, _ = await dial(), await dial()
        with pytest.raises(Refusal, match="2 links are open") as refusal:
            await dial()
        assert refusal.value.code == messages.Code.RATE
        await first.close()
        await dial()
        for link in list(client._links):
            await link.close()
        with pytest.raises(Refusal, match=r"more than 0\.001 handshakes a second") as refusal:
            await dial()
        assert refusal.value.retry_after > 0


async def test_a_handshake_counts_for_nothing_once_its_link_was_worth_it() -> None:
    limits = PeerLimits(handshakes_per_s=0.001, handshake_burst=2)
    async with hosts(HostSettings(NETWORK, limits=limits), CLIENT) as (node, client):
        ended: asyncio.Queue[None] = asyncio.Queue()

        async def paying(link: Link) -> bool:
            await link.wait_closed()
            ended.put_nowait(None)
            return True

        async def idle(link: Link) -> None:
            await link.wait_closed()

        await node.serve(CONTROL, paying)
        await node.serve(PUSH, idle)
        for _ in range(4):
            link = await client.dial(node.peer_id, node.addresses, CONTROL)
            await link.close()
            await ended.get()
        for _ in range(2):
            await (await client.dial(node.peer_id, node.addresses, PUSH)).close()
        with pytest.raises(Refusal, match="handshakes a second"):
            await client.dial(node.peer_id, node.addresses, PUSH)


def test_what_is_given_back_is_never_more_than_was_taken() -> None:
    limits = PeerLimits(
        handshake_burst=2, prefix_handshake_burst=3, handshakes_per_s=1e-9, prefix_handshakes_per_s=1e-9
    )
    gate, one, other = Gate(limits), PeerKey(b"\1" * 32).peer_id, PeerKey(b"\2" * 32).peer_id
    for peer in (one, other):
        gate.enter(peer, 0.0, "net")
    gate.give_back(one, "net")  # nobody has taken any
    for peer in (one, one, other):
        gate.check(peer, 0.0, "net")
    for peer in (one, other):
        with pytest.raises(Refusal, match="handshakes a second"):
            gate.check(peer, 0.0, "net")
    gate.give_back(one, "net")
    gate.check(other, 0.0, "net")
    with pytest.raises(Refusal, match="handshakes a second"):
        gate.check(one, 0.0, "net")
    gate.give_back(PeerKey(b"\3" * 32).peer_id, "elsewhere")


def test_the_gate_refills_and_forgets() -> None:
    gate, peer = Gate(PeerLimits(handshakes_per_s=2, handshake_burst=1, links=2)), PeerKey(b"\1" * 32).peer_id
    gate.enter(peer, 0.0)
    gate.check(peer, 0.0)
    with pytest.raises(Refusal, match="handshakes a second"):
        gate.check(peer, 0.4)
    gate.check(peer, 0.6)
    gate.forget_idle(100.0)
    assert peer in gate._peers
    for _ in range(3):
        assert not gate.flooded(peer)
        gate.enter(peer, 100.0)
    with pytest.raises(Refusal, match="2 links are open"):
        gate.check(peer, 100.0)
    gate.enter(peer, 100.0)
    assert gate.flooded(peer)
    for _ in range(5):
        gate.leave(peer)
    gate.forget_idle(200.0)
    assert not gate._peers


async def test_streams_without_hello_are_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivemint.swarm.link_registry.HELLO_LIMIT", 1.0)
    async with hosts(HostSettings(NETWORK, limits=PeerLimits(links=2)), CLIENT) as (node, stranger):
        await node.serve(CONTROL, echo)
        silent = [await raw_link(stranger, node) for _ in range(8)]
        async with asyncio.timeout(5):
            reasons = await asyncio.gather(*(link.wait_closed() for link in silent))
        assert len(reasons) == 8
        link = await stranger.dial(node.peer_id, node.addresses, CONTROL)
        assert node._gate._peers[stranger.peer_id].links == 1
        await link.close()


async def test_a_handlers_refusal_and_errors_reach_the_dialer() -> None:
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, client):

        async def refuse(link: Link) -> None:
            raise Refusal(messages.Code.BUSY, "No room", why="the queue is full", retry_after=2.5)

        async def fail(link: Link) -> None:
            raise SwarmError("The cache is gone", why="evicted")

        async def fail_elsewhere(link: Link) -> None:
            raise HivemintError("No answer", why="https://rpc.example.org/v2/a-secret-key")

        await node.serve(CONTROL, refuse)
        await node.serve(PUSH, fail)
        link = await client.dial(node.peer_id, node.addresses, CONTROL)
        refused = await link.receive()
        assert isinstance(refused, Refused)
        assert (refused.code, refused.retry_after) == (messages.Code.BUSY, 2.5)
        with pytest.raises(LinkClosed, match="the queue is full"):
            await link.receive()
        link = await client.dial(node.peer_id, node.addresses, PUSH)
        with pytest.raises(LinkClosed, match="evicted"):
            await link.receive()
        await node.serve("hivemint/other/1", fail_elsewhere)
        link = await client.dial(node.peer_id, node.addresses, "hivemint/other/1")
        with pytest.raises(LinkClosed, match="this side failed") as told:
            await link.receive()
        assert "secret" not in str(told.value)


async def test_an_unexpected_error_in_a_handler_ends_its_link_alone() -> None:
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, client):

        async def bug(link: Link) -> None:
            if await link.receive() == Routed():
                raise KeyError("a secret of the node")
            await echo(link)

        problems: list[dict[str, Any]] = []
        told = asyncio.Event()

        def tell(_: object, context: dict[str, Any]) -> None:
            problems.append(context)
            told.set()

        asyncio.get_running_loop().set_exception_handler(tell)
        await node.serve(CONTROL, bug)
        good = await client.dial(node.peer_id, node.addresses, CONTROL)
        await good.send(Cancel(Step(1)), Cancel(Step(2)))
        assert await good.receive() == Cancel(Step(2))
        bad = await client.dial(node.peer_id, node.addresses, CONTROL)
        await bad.send(Routed())
        with pytest.raises(LinkClosed) as closed:
            await bad.receive()
        assert "secret" not in str(closed.value)
        await good.send(Cancel(Step(3)))
        assert await good.receive() == Cancel(Step(3))
        async with asyncio.timeout(10):
            await told.wait()  # the loop tells of a failed task in its own time
        assert [type(problem["exception"]) for problem in problems] == [KeyError]


async def test_a_dead_daemon_ends_its_host_and_all_links() -> None:
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, client):
        await node.serve(CONTROL, echo)
        link = await client.dial(node.peer_id, node.addresses, CONTROL)
        (there,) = node._links
        os.kill(client._daemon.child.pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            assert "libp2p daemon has died" in await client.wait_ended()
            with pytest.raises(LinkClosed):
                await link.receive()
        with pytest.raises(SwarmError, match=r"has ended.*daemon has died"):
            await client.dial(node.peer_id, node.addresses, CONTROL)
        async with asyncio.timeout(5):
            await client.close()
            await there.wait_closed()


async def test_closing_a_host_says_bye_and_ends_its_handlers() -> None:
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, client):
        await node.serve(CONTROL, echo)
        link = await client.dial(node.peer_id, node.addresses, CONTROL)
        await node.close()
        with pytest.raises(LinkClosed, match="shutting down"):
            await link.receive()
        assert not node._tasks
        await node.close()
        with pytest.raises(SwarmError, match="the host was closed"):
            await node.dial(client.peer_id, (), CONTROL)


async def test_peers_that_cannot_be_dialled_give_clear_errors() -> None:
    absent = PeerKey.generate().peer_id
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, client):
        with pytest.raises(SwarmError, match="cannot be reached"):
            await client.dial(absent, ("/ip4/127.0.0.1/tcp/9",), CONTROL)
        with pytest.raises(SwarmError, match="no usable address"):
            await client.dial(absent, ("nonsense", "/ip4/999.0.0.1/tcp/1", "/ip4/1.2.3.4/nope/5"), CONTROL)
        with pytest.raises(SwarmError, match="cannot be reached"):
            await client.dial(absent, (), CONTROL)
        with pytest.raises(SwarmError, match="cannot be reached"):  # another peer than the one that we asked for
            await client.dial(absent, [text.split("/p2p/")[0] for text in node.addresses], CONTROL)
        with pytest.raises(SwarmError, match="cannot be reached"):  # a protocol that it does not serve
            await client.dial(node.peer_id, node.addresses, CONTROL)


async def test_bad_settings_give_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least 16 bytes, got 5"):
        HostSettings(NETWORK, swarm_key=b"short")
    (tmp_path / "peer.key").write_bytes(b"not a key")
    with pytest.raises(BadInput, match="not an Ed25519 peer key"):
        await Host.start(HostSettings(NETWORK, identity=tmp_path / "peer.key"))
    async with hosts(HostSettings(NETWORK)) as (host,):
        port = host.addresses[0].split("/")[4]
        with pytest.raises(ConfigError, match=r"Cannot listen.*in use.*choose another port"):
            await Host.start(HostSettings(NETWORK, listen=(f"/ip4/127.0.0.1/tcp/{port}",)))
    with pytest.raises(SwarmError, match="did not start"):
        await Host.start(HostSettings(NETWORK, listen=("/nonsense",)))


async def test_announced_addresses_stand_for_the_real_ones() -> None:
    async with hosts(HostSettings(NETWORK, announce=("/ip4/192.0.2.1/tcp/4001",))) as (host,):
        assert [text.split("/p2p/")[0] for text in host.addresses] == ["/ip4/192.0.2.1/tcp/4001"]
