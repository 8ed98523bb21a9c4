"""Strangers in the directory: floods are declined before they cost, free keys crowd nobody out, no peer is the last."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hivemint.protocol.eip712 import peer_id_hash
from hivemint.protocol.errors import ChainError, SwarmError
from hivemint.protocol.ids import Address, BlockIndex, Credits, ModelId, PeerId
from hivemint.protocol.signing import Signer
from hivemint.swarm.dht import desk as desk_module
from hivemint.swarm.dht.keys import Keys
from hivemint.swarm.dht.known import MOST, KnownPeers
from hivemint.swarm.dht.places import PLACE_BYTES, REST_ENTRIES, Places
from hivemint.swarm.dht.standing import Standing
from hivemint.swarm.host import CONTROL, Host, HostSettings
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Routed
from hivemint.swarm.records import NodeRecord, SignedRecord, sign_record
from support.wire import NETWORK, hosts

MODEL = ModelId(b"m" * 32)
CLIENT = HostSettings(NETWORK, listen=())


@dataclass
class Row:
    peer_id_hash: bytes
    bonded: int
    retired: bool = False


class Registry:
    """The chain's word, and how often it was asked for."""

    def __init__(self) -> None:
        self.rows: dict[Address, Row] = {}
        self.asked: list[int] = []

    def add(self, operator: Signer, peer: PeerId, stake: int) -> None:
        self.rows[operator.address] = Row(peer_id_hash(peer), stake)

    async def nodes(self, nodes: Sequence[Address]) -> list[Row | None]:
        self.asked.append(len(nodes))
        await asyncio.sleep(0.01)
        return [self.rows.get(node) for node in nodes]


def record(operator: Signer, key: PeerKey, blocks: range = range(1), **changes: Any) -> SignedRecord:
    values: dict[str, Any] = {
        "network": NETWORK,
        "model_id": bytes(MODEL),
        "first_block": blocks.start,
        "end_block": blocks.stop,
        "peer": bytes(key.peer_id),
        "operator": operator.address,
        "numerics": ("fp32/fp32/fp32",),
        "ask": Credits(1),
        "expires": time.time() + 60,
    }
    return sign_record(NodeRecord(**values | changes), operator, key)


def stranger(number: int) -> tuple[Signer, PeerKey]:
    seed = number.to_bytes(4, "big")
    return Signer(b"\1" * 28 + seed), PeerKey(b"\2" * 28 + seed)


async def call(host: Host, to: Host, method: str, request: Any) -> bytes:
    """A request of the DHT as a hostile peer sends it: by no code of ours."""
    from hivemind.p2p import PeerID

    await host._daemon.connect(to.peer_id, to.addresses)
    client, peer = host._daemon.p2p._client, PeerID(bytes(to.peer_id))
    async with asyncio.timeout(10):
        answer: bytes = await client.call_unary_handler(peer, f"DHTProtocol.{method}", request.SerializeToString())
    return answer


def desk_of(host: Host) -> desk_module.Desk:
    desk = host._daemon.desk
    assert isinstance(desk, desk_module.Desk)
    return desk


async def test_a_request_of_many_keys_is_declined_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    from hivemind.p2p import P2PHandlerError
    from hivemind.proto import dht_pb2

    async with hosts(HostSettings(NETWORK), CLIENT) as (node, flooder):
        for keys in (desk_module.MOST_KEYS + 1, 5_000, 20_000):
            request = dht_pb2.FindRequest(keys=[number.to_bytes(20, "big") for number in range(keys)])
            with pytest.raises(P2PHandlerError, match=r"names \d+ keys|is too large"):
                await call(flooder, node, "rpc_find", request)
        assert desk_of(node).refused == 3


async def test_a_flood_leaves_links_and_others_alone() -> None:
    """Ten seconds' worth of the budget at once: most is declined, a link lives on, another peer is answered."""
    from hivemind.proto import dht_pb2

    async with hosts(HostSettings(NETWORK), CLIENT, CLIENT) as (node, flooder, honest):

        async def echo(link: Link) -> None:
            while True:
                await link.send(await link.receive())

        await node.serve(CONTROL, echo)
        link = await honest.dial(node.peer_id, node.addresses, CONTROL)
        request = dht_pb2.FindRequest(keys=[number.to_bytes(20, "big") for number in range(16)])
        await asyncio.gather(*(call(flooder, node, "rpc_find", request) for _ in range(600)), return_exceptions=True)
        assert desk_of(node).refused > 200
        await link.send(Routed())
        assert await link.receive() == Routed()
        assert await call(honest, node, "rpc_find", dht_pb2.FindRequest(keys=[bytes(20)]))


async def test_what_is_no_request_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    from hivemind.p2p import P2PHandlerError
    from hivemind.proto import dht_pb2

    elsewhere = dht_pb2.NodeInfo(node_id=b"\1" * 20)
    odd: list[tuple[str, Any, str]] = [
        ("rpc_ping", dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=b"\1" * 90_000)), "another place"),
        ("rpc_find", dht_pb2.FindRequest(keys=[bytes(20)], peer=elsewhere), "another place"),
        ("rpc_find", dht_pb2.FindRequest(keys=[bytes(21)]), "names 1 keys"),
        ("rpc_store", dht_pb2.StoreRequest(keys=[bytes(20)], values=[b"x"]), "not aligned"),
    ]
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, flooder):
        for method, request, why in odd:
            with pytest.raises(P2PHandlerError, match=why):
                await call(flooder, node, method, request)
        table = node._directory._node.protocol.routing_table  # type: ignore[union-attr]
        assert not table.peer_id_to_uid


async def store(host: Host, to: Host, signed: SignedRecord, block: int = 0, **changes: Any) -> bool:
    """Straight to one peer, as nobody needs the library to store."""
    import msgspec
    from hivemind.proto import dht_pb2

    pack = msgspec.msgpack.encode
    peer = changes.get("peer") or msgspec.msgpack.decode(signed.payload)["peer"]
    request = dht_pb2.StoreRequest(
        keys=[Keys(NETWORK, None).place(MODEL, block)],
        subkeys=[pack(peer)],
        values=[pack(signed.to_bytes())],
        expiration_time=[time.time() + 50],
        in_cache=[changes.get("in_cache", False)],
    )
    answer = dht_pb2.StoreResponse.FromString(await call(host, to, "rpc_store", request))
    return bool(answer.store_ok[0])


async def test_records_of_free_keys_share_a_bounded_rest() -> None:
    """Sixty of them, then one registered node's: it is there, first, and checked before any of the others."""
    registry = Registry()
    operator, key = stranger(0)
    registry.add(operator, key.peer_id, 5)
    async with hosts(HostSettings(NETWORK)) as (node,):
        node.rank_by(registry)
        async with hosts(replace(CLIENT, bootstrap=node.addresses)) as (client,):
            client.rank_by(registry)
            taken = [await store(client, node, record(*stranger(number))) for number in range(1, 61)]
            assert 8 < sum(taken) <= REST_ENTRIES
            assert await store(client, node, record(operator, key), in_cache=True)
            found = await client.find(MODEL, range(1))
            assert found[0].peer == key.peer_id
            assert client.is_registered(found[0])
            assert len(found) == 1 + sum(taken)
            assert not any(client.is_registered(one) for one in found[1:])


async def test_signatures_of_strangers_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "SIGNATURES", 0.001)
    monkeypatch.setattr(desk_module, "SIGNATURES_AT_ONCE", 3)
    async with hosts(HostSettings(NETWORK), CLIENT) as (node, client):
        signed = [record(*stranger(number)) for number in range(5)]
        assert [await store(client, node, one) for one in signed] == [True] * 3 + [False] * 2
        renewed = record(*stranger(0), expires=time.time() + 100)
        assert not await store(client, node, renewed)


async def test_the_registry_is_asked_for_many_at_once() -> None:
    registry, standing = Registry(), Standing()
    standing.registry = registry
    operators = [stranger(number)[0].address for number in range(1000)]
    await asyncio.gather(*(standing.learn(operators[at : at + 10]) for at in range(0, 1000, 10)))
    assert len(registry.asked) < 20
    assert max(registry.asked) <= 128


async def test_a_chain_that_is_away_leaves_all_unregistered_and_is_asked_again() -> None:
    standing = Standing()
    operator, key = stranger(1)
    known = Registry()
    known.add(operator, key.peer_id, 7)

    class Away:
        async def nodes(self, nodes: Sequence[Address]) -> list[Row | None]:
            raise ChainError("The chain does not answer")

    said = NodeRecord(
        network=NETWORK,
        model_id=bytes(MODEL),
        first_block=BlockIndex(0),
        end_block=BlockIndex(1),
        peer=bytes(key.peer_id),
        operator=operator.address,
        numerics=("x",),
        ask=Credits(0),
        expires=1.0,
    )
    standing.registry = Away()
    await standing.learn({operator.address})
    assert standing.stake(said) == 0
    standing.registry = known
    await standing.learn({operator.address})
    assert standing.stake(said) == 7


def test_stake_wins_places_and_memory_is_bounded() -> None:
    """Whoever has more stake displaces whoever has less; those without never displace each other."""
    stakes: dict[bytes, int] = {}
    places, soon = Places(lambda value: stakes.get(value[:4], 0), ranked=lambda: True), time.time() + 50
    size = PLACE_BYTES // 10
    for number in range(100):
        name = number.to_bytes(4, "big")
        stakes[name] = 1 + number
        assert places.store_subkey("block", name, name + bytes(size), soon)
    kept = {int.from_bytes(peer, "big") for peer, _ in places.get("block").value.items()}
    assert kept == set(range(91, 100))
    assert not places.store_subkey("block", b"poor", b"none" + bytes(9000), soon)
    for number in range(20_000):
        places.store_subkey(number, b"free", b"none" + bytes(1000), soon)
    assert places.held < 9 * 1024 * 1024
    assert not list(places.items())


async def test_an_answer_fits_what_the_daemon_carries() -> None:
    """The fullest places there can be, sixteen of them: one answer."""
    from hivemind.proto import dht_pb2

    async with hosts(HostSettings(NETWORK), CLIENT) as (node, client):
        desk, soon = desk_of(node), time.time() + 50
        from hivemind.dht.routing import DHTID

        keys = [number.to_bytes(20, "big") for number in range(16)]
        for key in keys:
            for number in range(2000):
                desk.places.store_subkey(DHTID.from_bytes(key), number.to_bytes(38, "big"), bytes(300), soon)
        answer = await call(client, node, "rpc_find", dht_pb2.FindRequest(keys=keys))
        assert 500_000 < len(answer) < desk_module.MOST_ANSWER


async def test_a_lying_replica_hides_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers with 2,000 records in the honest node's name, none of them signed: the real one is found."""
    import msgspec
    from hivemind.dht.storage import DictionaryDHTValue
    from hivemind.utils.timed_storage import ValueWithExpiration

    async with hosts(HostSettings(NETWORK)) as (boot,):
        joined = HostSettings(NETWORK, bootstrap=boot.addresses)
        async with hosts(joined, replace(joined, listen=())) as (honest, client):
            operator, _ = stranger(0)
            good = record(operator, honest.key)
            await honest.publish(good)

            def lies(key: Any) -> Any:
                value = DictionaryDHTValue()
                later = time.time() + 290
                claim = msgspec.msgpack.decode(good.payload) | {"expires": later + 5}
                fake = SignedRecord(msgspec.msgpack.encode(claim), good.operator_signature, good.peer_signature)
                for number in range(1000):
                    value.store(bytes(honest.peer_id), msgspec.msgpack.encode(fake.to_bytes()), later)
                    value.store(number.to_bytes(38, "big"), msgspec.msgpack.encode(fake.to_bytes()), later)
                return ValueWithExpiration(value, later)

            monkeypatch.setattr(desk_of(boot).places, "get", lies)
            found = await client.find(MODEL, range(1))
            assert [one.signed for one in found] == [good]


# ---- the way in


async def test_a_peer_that_was_met_is_the_way_in_when_bootstrap_is_away(tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    boot = await Host.start(HostSettings(NETWORK))
    settings = HostSettings(NETWORK, listen=(), bootstrap=boot.addresses, known=file)
    async with hosts(HostSettings(NETWORK, bootstrap=boot.addresses)) as (node,):
        operator, _ = stranger(3)
        signed = record(operator, node.key, addresses=node.addresses)
        await node.publish(signed)
        async with hosts(settings) as (client,):
            assert len(await client.find(MODEL, range(1))) == 1
        await boot.close()
        async with hosts(settings) as (client,):
            assert [one.signed for one in await client.find(MODEL, range(1))] == [signed]
        with pytest.raises(SwarmError, match="No bootstrap peer answers"):
            await Host.start(replace(settings, known=None))


def test_the_file_of_known_peers_is_small_and_forgiving(tmp_path: Path) -> None:
    file, peer = tmp_path / "peers.json", "/p2p/12D3KooWAVHffWVwKM7yVPv4ynEV1kxNa7BdiEQsKLErG4HJtSWP"
    for damaged in (b"", b"{", b"[1]", b'{"x": "y"}', b"\xff", b"{" * 70_000):
        file.write_bytes(damaged)
        assert KnownPeers(file).addresses() == []
    known = KnownPeers(file)
    known.remember(f"/ip4/203.0.{number % 7}.{number % 200}/tcp/{number}{peer}" for number in range(1, 5000))
    known.remember(["nonsense", "/ip4/203.0.113.1/tcp/1"])
    known.save()
    again = KnownPeers(file).addresses()
    assert 0 < len(again) <= MOST
    assert len(again) == 7 * 4  # four of each prefix
    KnownPeers(tmp_path / "no such folder" / "x").save()
