"""What another peer's answer is worth: in place of hivemind's own check, which looks at every signature in the loop.

Of each block's list the registered operators' records are taken first, by stake, then some of the others. Signatures
are checked in a thread, and no more of them than an honest peer could send.
"""

import asyncio
import math
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import msgspec

from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import PeerId
from hivemint.swarm.dht.clock import SwarmClock
from hivemint.swarm.dht.desk import genuine, node_id
from hivemint.swarm.dht.keys import Keys
from hivemint.swarm.dht.places import REST_ENTRIES
from hivemint.swarm.dht.standing import Standing
from hivemint.swarm.records import NodeRecord, read_record

MOST_REGISTERED, MOST_UNRANKED = 256, 160
"""Records of one list: with stake, and where no registry ranks them."""
MOST_NEAREST = 20
_LIST = 0x50
"""hivemind's msgpack extension for a dictionary of sub-keys."""
_Entries = list[tuple[bytes, bytes, float]]
_Claim = tuple[bytes, bytes, float, NodeRecord]
"""Sub-key, record, expiry, and what the record says of itself."""


class Asker:
    """Called like the protocol's `call_find`."""

    def __init__(self, protocol: Any, keys: Keys, standing: Standing, clock: SwarmClock) -> None:
        self._protocol, self._keys, self._standing, self._clock = protocol, keys, standing, clock

    async def __call__(self, peer: Any, keys: Collection[Any]) -> dict[Any, tuple[Any, dict[Any, Any]]] | None:
        """For each key the records that were found good, and peers nearer to it; None if `peer` does not answer."""
        from hivemind.proto import dht_pb2

        protocol, wanted = self._protocol, list(keys)
        request = dht_pb2.FindRequest(keys=[key.to_bytes() for key in wanted], peer=protocol.node_info)
        response = await self._ask(peer, request)
        known = protocol.routing_table.get(peer_id=peer)
        if response is None or len(response.results) != len(wanted):
            await protocol.update_routing_table(known, peer, responded=False)
            return None
        if response.peer.node_id == node_id(PeerId(peer.to_bytes())):
            await protocol.update_routing_table(_id(response.peer.node_id), peer, responded=True)
        found = await self._sift(
            [(key.to_bytes(), one.value) for key, one in zip(wanted, response.results, strict=True)]
        )
        return {
            key: (_value(entries), _nearest(one))
            for key, one, entries in zip(wanted, response.results, found, strict=True)
        }

    async def _ask(self, peer: Any, request: Any) -> Any:
        from google.protobuf.message import DecodeError
        from hivemind.p2p import P2PDaemonError, P2PHandlerError

        protocol = self._protocol
        try:
            async with protocol.rpc_semaphore:
                return await protocol.get_stub(peer).rpc_find(request, timeout=protocol.wait_timeout)
        except (TimeoutError, OSError, EOFError, DecodeError, P2PDaemonError, P2PHandlerError):
            return None

    async def _sift(self, lists: list[tuple[bytes, bytes]]) -> list[_Entries]:
        """Of each (key, list as it travels) the entries to keep."""
        claims = await asyncio.to_thread(self._read, lists)
        await self._standing.learn({record.operator for one in claims for *_, record in one})
        chosen = [self._choose(one) for one in claims]
        good = await asyncio.to_thread(genuine, {data for one in chosen for _, data, _, _ in one}, self._clock)
        packed = msgspec.msgpack.encode
        return [[(peer, packed(data), expires) for peer, data, expires, _ in one if data in good] for one in chosen]

    def _read(self, lists: list[tuple[bytes, bytes]]) -> list[list[_Claim]]:
        return [self._claims(key, value) for key, value in lists]

    def _claims(self, key: bytes, value: bytes) -> list[_Claim]:
        claims: list[_Claim] = []
        for peer, packed, expires in _entries(value):
            with suppress(ProofError, msgspec.MsgspecError, UnicodeDecodeError):
                data = msgspec.msgpack.decode(packed, type=bytes)
                record, _ = read_record(data)
                self._keys.check_place(record, key, peer, expires)
                claims.append((peer, data, expires, record))
        return claims

    def _choose(self, claims: list[_Claim]) -> list[_Claim]:
        ranked = sorted(claims, key=lambda claim: self._standing.stake(claim[3]), reverse=True)
        registered = [claim for claim in ranked if self._standing.stake(claim[3])]
        rest = MOST_UNRANKED if self._standing.registry is None else REST_ENTRIES
        return registered[:MOST_REGISTERED] + ranked[len(registered) :][:rest]


def _entries(value: bytes) -> _Entries:
    """A list as it travels: an extension of [size, expiry, [[sub-key, value, expiry] ...]]."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        packed = msgspec.msgpack.decode(value, type=msgspec.msgpack.Ext)
        if packed.code == _LIST:
            _, _, entries = _list.decode(packed.data)
            return [entry for entry in entries if math.isfinite(entry[2])]
    return []


def _value(entries: _Entries) -> Any:
    from hivemind.dht.storage import DictionaryDHTValue
    from hivemind.utils.timed_storage import ValueWithExpiration

    if not entries:
        return None
    value = DictionaryDHTValue()
    value.frozen = True  # the library would judge by this machine's clock
    for peer, packed, expires in entries:
        value.store(peer, packed, expires)
    return ValueWithExpiration(value, value.latest_expiration_time)


def _nearest(result: Any) -> dict[Any, Any]:
    """Peers that stand where their peer ids put them."""
    from hivemind.p2p import PeerID

    pairs = list(zip(result.nearest_node_ids, result.nearest_peer_ids, strict=False))[:MOST_NEAREST]
    return {_id(place): PeerID(peer) for place, peer in pairs if place == node_id(PeerId(peer))}


def _id(place: bytes) -> Any:
    from hivemind.dht.routing import DHTID

    return DHTID.from_bytes(place)


_list = msgspec.msgpack.Decoder(tuple[float, float, list[tuple[bytes, bytes, float]]])
