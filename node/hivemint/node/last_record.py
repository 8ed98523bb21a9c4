"""Which blocks a node has published last: an earlier run's record, under other blocks, is replaced by its farewell."""

from contextlib import suppress
from pathlib import Path

import msgspec

from hivemint.protocol.eip712 import Uint32
from hivemint.swarm.messages import PeerIdBytes
from hivemint.swarm.records import MAX_BLOCKS, NodeRecord

_EARLIER = 1.0
"""Seconds by which a farewell expires before the record that follows it: that one replaces it where both belong."""


class _Place(msgspec.Struct, frozen=True):
    """What is remembered: whose record lies under which blocks of which model."""

    peer: PeerIdBytes
    model_id: bytes
    first_block: Uint32
    end_block: Uint32

    @property
    def is_span(self) -> bool:
        return len(self.model_id) == 32 and self.first_block < self.end_block <= self.first_block + MAX_BLOCKS


class LastRecord:
    """A small file in the node's folder. One that is damaged counts as none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)

    def farewell(self, record: NodeRecord) -> NodeRecord | None:
        """What to publish beside `record`, so that nobody looks for its peer at the blocks served before. None where
        `record` itself comes to lie under all of them.
        """
        before = self._known
        if before is None or before.peer != bytes(record.peer):
            return None
        same = before.model_id == bytes(record.model_id)
        if same and record.first_block <= before.first_block and before.end_block <= record.end_block:
            return None
        return msgspec.structs.replace(
            record,
            model_id=before.model_id,
            first_block=before.first_block,
            end_block=before.end_block,
            leaving=True,
            expires=record.expires - _EARLIER,
        )

    def remember(self, record: NodeRecord) -> None:
        """`record` is published. A disk that is full costs nothing but the memory."""
        now = _Place(record.peer, record.model_id, record.first_block, record.end_block)
        if now == self._known:
            return
        self._known = now
        fresh = self._path.with_name(f".{self._path.name}.new")
        with suppress(OSError):
            fresh.write_bytes(msgspec.json.encode(now))
            fresh.replace(self._path)


def _read(path: Path) -> _Place | None:
    try:
        known = msgspec.json.decode(path.read_bytes(), type=_Place)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return known if known.is_span else None
