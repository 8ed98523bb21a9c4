import math
import time
from dataclasses import replace
from hashlib import sha1
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemint.protocol.errors import BadInput, ConfigError, ProofError, ProtocolError, SwarmError
from hivemint.protocol.ids import Credits, ModelId
from hivemint.swarm.dht.keys import Keys
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.identity import PeerKey, parse_peer, peer_text
from hivemint.swarm.records import (
    _PREFIX,
    MAX_LIFETIME,
    CheckedRecord,
    NodeRecord,
    SignedRecord,
    _digest,
    check_record,
    pack_trips,
    sign_record,
    trip_key,
)
from support.node_records import KEY, MODEL, OPERATOR, OTHER, OTHER_KEY, of, record, signed
from support.wire import NETWORK, hosts

SECRET = b"a swarm key of 16 bytes and more"


def forged(of: SignedRecord, **changes: object) -> bytes:
    return msgspec.structs.replace(of, **changes).to_bytes()


def test_a_signed_record_is_read_back() -> None:
    mine = record()
    checked = check_record(sign_record(mine, OPERATOR, KEY).to_bytes())
    assert checked.record == mine
    assert checked.peer == KEY.peer_id
    assert checked.model_id == MODEL


def test_round_trips_are_told_in_six_bytes_each() -> None:
    near, far = KEY.peer_id, OTHER_KEY.peer_id
    told = msgspec.structs.replace(record(), trips=pack_trips([(near, 0.01234), (far, 100.0)]))
    checked = check_record(sign_record(told, OPERATOR, KEY).to_bytes()).record
    assert len(checked.trips) == 12
    assert checked.trips_s() == {trip_key(near): pytest.approx(0.0123), trip_key(far): pytest.approx(6.5535)}
    assert len(pack_trips([(PeerKey(bytes([number]) * 32).peer_id, 0.1) for number in range(1, 30)])) == 16 * 6
    assert record().trips_s() == {}


def test_forged_signatures_are_refused() -> None:
    mine = signed()
    other = sign_record(record(operator=OTHER), OTHER, KEY)
    with pytest.raises(ProofError, match=r"is forged.*expected the signature of 0x"):
        check_record(forged(mine, operator_signature=other.operator_signature))
    stranger = sign_record(record(key=OTHER_KEY), OPERATOR, OTHER_KEY)
    with pytest.raises(ProofError, match="peer's signature does not hold"):
        check_record(forged(mine, peer_signature=stranger.peer_signature))
    with pytest.raises(ProofError, match="names other keys"):
        sign_record(record(operator=OTHER), OPERATOR, KEY)


def test_one_key_alone_cannot_claim_the_other() -> None:
    """Eve signs a record that names Alice's peer, and one that names Alice's operator, with what keys she has."""
    theirs = sign_record(record(operator=OTHER, key=OTHER_KEY), OTHER, OTHER_KEY)
    claims_peer = sign_record(record(operator=OTHER), OTHER, KEY)
    with pytest.raises(ProofError):
        check_record(forged(claims_peer, peer_signature=theirs.peer_signature))
    claims_operator = sign_record(record(key=OTHER_KEY), OPERATOR, OTHER_KEY)
    with pytest.raises(ProofError):
        check_record(forged(claims_operator, operator_signature=theirs.operator_signature))


@given(st.data())
@settings(deadline=None)
def test_no_changed_byte_passes(data: st.DataObject) -> None:
    raw = bytearray(FIXED)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProofError):
        check_record(bytes(raw))


FIXED = signed(life=200).to_bytes()


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(ProofError):
        check_record(raw)


def test_time_and_size() -> None:
    mine = signed().to_bytes()
    assert check_record(mine, now=time.time() + 50)
    with pytest.raises(ProofError, match="has expired"):
        check_record(mine, now=time.time() + 61)
    with pytest.raises(ProofError, match="too long a life"):
        check_record(signed(life=MAX_LIFETIME + 10).to_bytes())
    with pytest.raises(ProofError, match="too large"):
        check_record(bytes(10_000))


@pytest.mark.parametrize(
    "change",
    [
        {"first_block": 15},
        {"end_block": 5000},
        {"operator": "0x1"},
        {"wait_paid_s": -1.0},
        {"tokens_per_s": math.inf},
        {"tokens_per_s": math.nan},
        {"numerics": ()},
        {"trips": bytes(7)},
        {"trips": bytes(6 * 17)},
        {"addresses": ("/ip4/1",) * 17},
        {"addresses": ("a" * 201,)},
        {"model_id": b"short"},
        {"version": 2},
        {"network": "n" * 401},
    ],
    ids=str,
)
def test_records_outside_their_bounds_are_refused_though_signed(change: dict[str, object]) -> None:
    fields = {name: getattr(record(), name) for name in NodeRecord.__struct_fields__} | change
    raw = {name: v.to_bytes(12, "big") if isinstance(v, Credits) else v for name, v in fields.items()}
    payload = msgspec.msgpack.encode(raw)
    one = SignedRecord(payload, OPERATOR.sign(_digest(payload)), KEY.sign(_PREFIX + payload))
    with pytest.raises(ProofError, match=r"malformed|another version"):
        check_record(one.to_bytes())


def test_the_directory_knows_its_places() -> None:
    keys, mine, subkey = Keys(NETWORK, None), record(), bytes(KEY.peer_id)
    place = sha1(keys.name(MODEL, 14)).digest()  # noqa: S324 - the DHT's own
    keys.check_place(mine, place, subkey, mine.expires)
    with pytest.raises(ProofError, match="another peer's id"):
        keys.check_place(mine, place, bytes(OTHER_KEY.peer_id), mine.expires)
    with pytest.raises(ProofError, match="does not name"):
        keys.check_place(mine, sha1(keys.name(MODEL, 15)).digest(), subkey, mine.expires)  # noqa: S324
    with pytest.raises(ProofError, match="beyond its own expiry"):
        keys.check_place(mine, place, subkey, mine.expires + 5)
    with pytest.raises(ProofError, match="another network"):
        Keys("other", None).check_place(mine, place, subkey, mine.expires)
    assert Keys(NETWORK, SECRET).name(MODEL, 14) != keys.name(MODEL, 14)


def test_peer_keys_are_kept_in_private_files(tmp_path: Path) -> None:
    path = tmp_path / "node" / "peer.key"
    first = PeerKey.load(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert PeerKey.load(path).peer_id == first.peer_id
    assert parse_peer(peer_text(first.peer_id)) == first.peer_id
    assert first._key.private_bytes_raw().hex() not in repr(first)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ConfigError, match="not an Ed25519 peer key"):
        PeerKey.load(path)
    for text in ("", "O0", "1" * 400, "2"):
        with pytest.raises(ProtocolError):
            parse_peer(text)


# ---- on real hosts


def spans(found: list[CheckedRecord]) -> list[range]:
    return sorted((one.record.blocks for one in found), key=lambda span: span.start)


async def test_records_are_found_over_a_bootstrap_peer_and_by_block() -> None:
    async with hosts(HostSettings(NETWORK)) as (boot,):
        joined = HostSettings(NETWORK, bootstrap=boot.addresses)
        async with hosts(joined, joined, replace(joined, listen=())) as (first, second, client):
            await first.publish(of(first, (0, 15)))
            await second.publish(of(second, (15, 30)))
            assert spans(await client.find(MODEL, range(30))) == [range(15), range(15, 30)]
            assert spans(await client.find(MODEL, range(20, 22))) == [range(15, 30)]
            assert await client.find(ModelId(b"n" * 32), range(30)) == []
            await first.publish(of(first, (0, 15), free_tokens=7, expires=time.time() + 90))
            (newest,) = await client.find(MODEL, range(15))
            assert newest.record.free_tokens == 7
            assert newest.record.addresses == first.addresses
            assert client.addresses == ()


async def test_the_dht_takes_no_bad_record() -> None:
    async with hosts(HostSettings(NETWORK)) as (boot,):
        joined = HostSettings(NETWORK, bootstrap=boot.addresses)
        async with hosts(joined, joined) as (node, client):
            with pytest.raises(ProofError, match="another network"):
                await node.publish(of(node, (0, 15), network="other"))
            with pytest.raises(ProofError, match="has expired"):
                await node.publish(of(node, (0, 15), expires=time.time() - 1))
            good = of(node, (0, 1))
            bad = forged(good, operator_signature=OTHER.sign(b"\5" * 32))  # type: ignore[arg-type]
            name = Keys(NETWORK, None).name(MODEL, 0)
            store = node._directory._node.store  # type: ignore[union-attr]
            subkey = bytes(node.peer_id)
            for place, value, key in (
                (name, bad, subkey),
                (name, good.to_bytes(), bytes(client.peer_id)),
                (Keys(NETWORK, None).name(MODEL, 1), good.to_bytes(), subkey),
                (name, b"x", subkey),
            ):
                assert not await store(place, value, time.time() + 50, subkey=key, exclude_self=True)
            assert await client.find(MODEL, range(2)) == []
            assert await store(name, good.to_bytes(), time.time() + 50, subkey=subkey, exclude_self=True)
            assert len(await client.find(MODEL, range(2))) == 1


async def test_a_private_swarm_keeps_its_places_to_itself() -> None:
    async with hosts(HostSettings(NETWORK, swarm_key=SECRET)) as (boot,):
        joined = HostSettings(NETWORK, bootstrap=boot.addresses)
        async with hosts(replace(joined, swarm_key=SECRET), joined) as (member, stranger):
            await boot.publish(of(boot, (0, 15)))
            assert len(await member.find(MODEL, range(15))) == 1
            assert await stranger.find(MODEL, range(15)) == []


async def test_no_bootstrap_peer_is_a_clear_error() -> None:
    dead = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_text(KEY.peer_id)}"
    with pytest.raises(SwarmError, match=r"No bootstrap peer answers.*tcp/9.*check the addresses"):
        await Host.start(HostSettings(NETWORK, bootstrap=(dead,)))
    with pytest.raises(BadInput, match=r"127\.0\.0\.1:4001.*looks like /ip4/"):
        HostSettings(NETWORK, bootstrap=("127.0.0.1:4001",))
