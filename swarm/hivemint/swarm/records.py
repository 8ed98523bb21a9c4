"""What a node says of itself in the DHT: its span, its price, its speed; signed by both of its keys.

The operator key signs a text that names the peer id, the peer key signs the same text, which names the operator: so
neither can claim the other. Both sign the encoded record as it travels (a hash of it, for the operator), hence
nothing hangs on how a reader would encode it again. The operator's prefix begins unlike every EIP-712 digest.
"""

import math
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from eth_utils.address import is_checksum_address

from hivemint.protocol.eip712 import Bytes32, SignatureBytes, Uint32, peer_id_hash
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Address, Credits, Digest, ModelId, PeerId
from hivemint.protocol.keccak import keccak
from hivemint.protocol.signing import Signer, recover
from hivemint.swarm.identity import PeerKey, peer_text, verify
from hivemint.swarm.messages import AddressText, PeerIdBytes, ShortText, from_wire_amount, to_wire_amount

RECORD_VERSION = 1
LIFETIME = 45.0
"""Seconds that a record is good for, and that a peer keeps one: a node publishes anew well before."""
MAX_LIFETIME = 300.0
"""A record that claims to last longer is refused: the node would long be gone."""
MAX_BLOCKS = 1024
MAX_RECORD = 4096
CHECKED_BYTES = 16 * 1024 * 1024
"""Memory for records that were found good."""
MOST_TRIPS = 16
"""Neighbours whose round trips a record tells."""
TRIP_UNIT = 1e-4
"""Seconds that a round trip is counted in."""
_TRIP = struct.Struct(">4sH")
_COST = 4
"""Bytes in memory for one of a record: itself, its payload, its fields."""
_PREFIX = b"\x19Hivemint node record 1\n"

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**40)]


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One node's offer. `ask` in wei per token and block; waits in seconds; `expires` in seconds since 1970."""

    version: int = RECORD_VERSION
    network: ShortText
    model_id: Bytes32
    first_block: Uint32
    end_block: Uint32
    peer: PeerIdBytes
    operator: Address
    numerics: Annotated[tuple[ShortText, ...], msgspec.Meta(min_length=1, max_length=16)]
    ask: Credits
    ahead: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 2
    max_rows: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] = 512
    addresses: Annotated[tuple[AddressText, ...], msgspec.Meta(max_length=16)] = ()
    wait_paid_s: _Seconds = 0.0
    wait_donated_s: _Seconds = 0.0
    tokens_per_s: _Seconds = 0.0
    free_tokens: _Count = 0
    trips: Annotated[bytes, msgspec.Meta(max_length=MOST_TRIPS * _TRIP.size)] = b""
    """Round trips to neighbours, as `pack_trips` writes them."""
    leaving: bool = False
    """The node takes no new sessions: in place of its record, until that one would have expired."""
    expires: Annotated[float, msgspec.Meta(ge=0, le=1e12)]

    def __post_init__(self) -> None:
        if not self.first_block < self.end_block <= self.first_block + MAX_BLOCKS:
            raise ValueError(f"blocks {self.first_block}:{self.end_block} are no span")
        if not is_checksum_address(self.operator):
            raise ValueError("operator is not a checksummed address")
        if not all(map(math.isfinite, (self.wait_paid_s, self.wait_donated_s, self.tokens_per_s, self.expires))):
            raise ValueError("a measure is not finite")
        if not 0 <= self.ask < 2**96:
            raise ValueError("ask is outside 0 .. 2^96-1")
        if len(self.trips) % _TRIP.size:
            raise ValueError(f"trips are no whole number of {_TRIP.size} bytes")

    @property
    def blocks(self) -> range:
        return range(self.first_block, self.end_block)

    def trips_s(self) -> dict[bytes, float]:
        """Seconds of a round trip to each neighbour that the node has measured, by `trip_key`. Only its word."""
        return {key: units * TRIP_UNIT for key, units in _TRIP.iter_unpack(self.trips)}


class SignedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record as it travels, and two signatures that nobody has looked at yet."""

    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD)]
    operator_signature: SignatureBytes
    peer_signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]

    def to_bytes(self) -> bytes:
        return _encoder.encode(self)


@dataclass(frozen=True, slots=True)
class CheckedRecord:
    """A record that both of its keys have signed and that had not expired. Made by `check_record` only."""

    record: NodeRecord
    signed: SignedRecord

    @property
    def peer(self) -> PeerId:
        return PeerId(self.record.peer)

    @property
    def model_id(self) -> ModelId:
        return ModelId(self.record.model_id)


def trip_key(peer: PeerId) -> bytes:
    """What stands for a peer among the round trips of a record: the first 4 bytes of its id's hash."""
    return peer_id_hash(peer)[:4]


def pack_trips(trips: Iterable[tuple[PeerId, float]]) -> bytes:
    """The first 16 of these, in seconds, 6 bytes each: `trip_key`, and 0.1 ms as an unsigned short."""
    counted = [(trip_key(peer), min(round(seconds / TRIP_UNIT), 0xFFFF)) for peer, seconds in trips]
    return b"".join(_TRIP.pack(*one) for one in counted[:MOST_TRIPS])


def sign_record(record: NodeRecord, operator: Signer, peer_key: PeerKey) -> SignedRecord:
    """Raises ProofError if the record names other keys than these."""
    if record.operator != operator.address or record.peer != peer_key.peer_id:
        raise ProofError("A node record names other keys than its signers", why=f"operator {record.operator}")
    payload = _encoder.encode(record)
    return SignedRecord(payload, operator.sign(_digest(payload)), peer_key.sign(_PREFIX + payload))


def check_record(data: bytes, *, now: float | None = None, latest: float | None = None) -> CheckedRecord:
    """Encoding, both signatures, expiry. `now` in seconds since 1970, by default this machine's clock.

    `latest`: where the time is in doubt (`dht.clock`), the latest that it may be. Raises ProofError with what is wrong.
    Network, model and span are the caller's to compare.
    """
    checked = _check_signatures(bytes(data))
    check_life(checked.record, now, latest)
    return checked


def check_life(record: NodeRecord, now: float | None = None, latest: float | None = None) -> None:
    """Raises ProofError for a record that has expired, or claims to last longer than any node publishes."""
    now = time.time() if now is None else now
    if record.expires <= now:
        raise ProofError("A node record has expired", why=f"{now - record.expires:.0f} s ago")
    left = record.expires - (now if latest is None else latest)
    if left > MAX_LIFETIME:
        raise ProofError("A node record claims too long a life", why=f"{left:.0f} s, at most {MAX_LIFETIME:.0f}")


class _Checked:
    """Records whose signatures hold, as one record lies under every block of its span; the least used leave.

    Bounded in bytes: how large a record is, and how many there are, is a stranger's choice.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._records: OrderedDict[bytes, CheckedRecord] = OrderedDict()
        self._lock = threading.Lock()  # records are checked in threads

    def get(self, data: bytes) -> CheckedRecord | None:
        with self._lock:
            found = self._records.get(data)
            if found is not None:
                self._records.move_to_end(data)
            return found

    def put(self, data: bytes, checked: CheckedRecord) -> None:
        with self._lock:
            if data not in self._records:
                self._records[data] = checked
                self._bytes += _COST * len(data)
            while self._bytes > self._limit:
                self._bytes -= _COST * len(self._records.popitem(last=False)[0])


def read_record(data: bytes) -> tuple[NodeRecord, SignedRecord]:
    """What a record says, with nothing proved. Raises ProofError for a wrong form, size or version."""
    if len(data) > MAX_RECORD + 256:
        raise ProofError("A node record is too large", why=f"{len(data)} bytes")
    try:
        signed = _decode_signed.decode(data)
        record = _decode_record.decode(signed.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProofError("A node record is malformed", why=str(error)) from None
    if record.version != RECORD_VERSION:
        raise ProofError("A node record has another version", why=f"expected {RECORD_VERSION}, got {record.version}")
    return record, signed


def is_checked(data: bytes) -> bool:
    """Whether its signatures were found good before: `check_record` costs nothing then."""
    return _checked.get(data) is not None


def _check_signatures(data: bytes) -> CheckedRecord:
    known = _checked.get(data)
    if known is not None:
        return known
    record, signed = read_record(data)
    verify(PeerId(record.peer), _PREFIX + signed.payload, signed.peer_signature)
    signer = recover(_digest(signed.payload), signed.operator_signature)
    if signer != record.operator:
        raise ProofError(
            f"The node record of {peer_text(PeerId(record.peer))} is forged",
            why=f"expected the signature of {record.operator}, got {signer}",
        )
    checked = CheckedRecord(record, signed)
    _checked.put(data, checked)
    return checked


def _digest(payload: bytes) -> Digest:
    return Digest(keccak(_PREFIX, payload))


_encoder = msgspec.msgpack.Encoder(enc_hook=to_wire_amount)
_decode_signed = msgspec.msgpack.Decoder(SignedRecord)
_decode_record = msgspec.msgpack.Decoder(NodeRecord, dec_hook=from_wire_amount)
_checked = _Checked(CHECKED_BYTES)
