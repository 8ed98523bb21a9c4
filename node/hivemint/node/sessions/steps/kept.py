"""Outputs that are kept, so that a next node which takes over from a dead one gets its inputs without new work."""

from collections import OrderedDict
from dataclasses import dataclass, field

from hivemint.protocol.ids import SessionId


@dataclass(slots=True)
class _Kept:
    row_bytes: int
    paid: bool
    rows: bytearray = field(default_factory=bytearray)


class KeptOutputs:
    """Of all sessions of a node that has a next one: the rows of each position in wire form, `most` bytes in all.

    Above that whole sessions are forgotten, donated ones first, the longest unused first. What is forgotten costs its
    client a computation at one more node, nothing else.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._sessions: OrderedDict[SessionId, _Kept] = OrderedDict()
        self.bytes = 0

    def keep(self, session: SessionId, start: int, data: bytes | memoryview, row_bytes: int, *, paid: bool) -> None:
        """The outputs from position `start` on, in place of those that were kept from there on."""
        kept = self._sessions.get(session)
        if kept is None:
            if start:
                return None  # the beginning is not there, so nobody could build on it
            kept = self._sessions[session] = _Kept(row_bytes, paid)
        before = len(kept.rows)
        if start * row_bytes > before:
            return self.forget(session)
        kept.rows[start * row_bytes :] = data
        self.bytes += len(kept.rows) - before
        self._sessions.move_to_end(session)
        while self.bytes > self._most and self._sessions:
            donated = (one for one, its in self._sessions.items() if not its.paid)
            self.forget(next(donated, next(iter(self._sessions))))
        return None

    def rows(self, session: SessionId, start: int, count: int) -> bytes | None:
        """None if these positions are not (all) kept."""
        kept = self._sessions.get(session)
        if kept is None or len(kept.rows) < (start + count) * kept.row_bytes:
            return None
        self._sessions.move_to_end(session)
        return bytes(memoryview(kept.rows)[start * kept.row_bytes : (start + count) * kept.row_bytes])

    def fork(self, parent: SessionId, child: SessionId, count: int) -> None:
        """The child begins with the first `count` positions of its parent."""
        if (rows := self.rows(parent, 0, count)) is not None:
            kept = self._sessions[parent]
            self.keep(child, 0, rows, kept.row_bytes, paid=kept.paid)

    def forget(self, session: SessionId) -> None:
        """Harmless for one that is not kept."""
        if (kept := self._sessions.pop(session, None)) is not None:
            self.bytes -= len(kept.rows)
