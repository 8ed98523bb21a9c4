"""Where the records of a network lie in the DHT, and which of them belong at a place."""

from hashlib import blake2b, sha1

import msgspec

from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import ModelId
from hivemint.swarm.records import NodeRecord

EXPIRY_SLACK = 1.0
MOST_PLACES = 8192
"""Hashes that are kept, as each list holds many records of the same blocks."""


class Keys:
    """Where records of a network lie. With a swarm key the places can't be guessed from outside."""

    def __init__(self, network: str, swarm_key: bytes | None) -> None:
        self.network = network
        self._secret = blake2b(swarm_key or b"", digest_size=32).digest()
        self._places: dict[tuple[ModelId, int], bytes] = {}

    def name(self, model_id: ModelId, block: int) -> bytes:
        """20 bytes."""
        text = msgspec.msgpack.encode((self.network, bytes(model_id), block))
        return blake2b(text, key=self._secret, digest_size=20).digest()

    def place(self, model_id: ModelId, block: int) -> bytes:
        """The DHT's hash of a name, 20 bytes."""
        known = self._places.get((model_id, block))
        if known is None:
            if len(self._places) >= MOST_PLACES:
                self._places.clear()
            known = sha1(self.name(model_id, block), usedforsecurity=False).digest()
            self._places[(model_id, block)] = known
        return known

    def check_network(self, record: NodeRecord) -> None:
        if record.network != self.network:
            raise ProofError("A node record is of another network", why=f"{record.network!r}, not {self.network!r}")

    def check_place(self, record: NodeRecord, place: bytes, subkey: bytes, expires: float) -> None:
        """`place` is the DHT's hash of a name. Raises ProofError if the record does not belong there."""
        self.check_network(record)
        if subkey != bytes(record.peer):
            raise ProofError("A node record lies under another peer's id")
        if expires > record.expires + EXPIRY_SLACK:
            raise ProofError("A node record is stored beyond its own expiry")
        model_id = ModelId(record.model_id)
        if not any(self.place(model_id, block) == place for block in record.blocks):
            raise ProofError("A node record lies under a block that it does not name")
