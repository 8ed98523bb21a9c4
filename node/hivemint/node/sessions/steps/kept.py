"""Outputs that are kept, so that a next node which takes over from a dead one gets its inputs without new work."""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field

from hivemint.protocol.ids import SessionId


@dataclass(eq=False, slots=True)
class _Part:
    """What one step put out. `holders`: its session, and the forks that begin with some of it."""

    data: bytes
    holders: int = 1


@dataclass(slots=True)
class _Kept:
    """`ends`: for each part the position behind the last of its rows that counts here."""

    row_bytes: int
    paid: bool
    parts: list[_Part] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.ends[-1] if self.ends else 0


class KeptOutputs:
    """Of all sessions of a node that has a next one: the rows of each position in wire form, `most` bytes in all.

    What a fork has in common with its parent is here once, and counts once: a fork costs nothing, so it must not take
    room from others. Above `most` whole sessions are forgotten, donated ones first, the longest unused first. What is
    forgotten costs its client a computation at one more node, nothing else.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._sessions: OrderedDict[SessionId, _Kept] = OrderedDict()
        self.bytes = 0

    def keep(self, session: SessionId, start: int, data: bytes, row_bytes: int, *, paid: bool) -> None:
        """The outputs from position `start` on, in place of those that were kept from there on."""
        kept = self._sessions.get(session)
        if kept is None:
            if start:
                return None  # the beginning is not there, so nobody could build on it
            kept = self._sessions[session] = _Kept(row_bytes, paid)
        if start > kept.length:
            return self.forget(session)
        self._cut(kept, start)
        kept.parts.append(_Part(data))
        kept.ends.append(start + len(data) // row_bytes)
        self.bytes += len(data)
        self._sessions.move_to_end(session)
        while self.bytes > self._most and self._sessions:
            donated = (one for one, its in self._sessions.items() if not its.paid)
            self.forget(next(donated, next(iter(self._sessions))))
        return None

    def rows(self, session: SessionId, start: int, count: int) -> bytes | None:
        """None if these positions are not (all) kept."""
        kept = self._sessions.get(session)
        if kept is None or kept.length < start + count:
            return None
        self._sessions.move_to_end(session)
        found, end = [], start + count
        at = bisect_right(kept.ends, start)
        while start < end:
            begins, stop = kept.ends[at - 1] if at else 0, min(end, kept.ends[at])
            rows = memoryview(kept.parts[at].data)
            found.append(rows[(start - begins) * kept.row_bytes : (stop - begins) * kept.row_bytes])
            start, at = stop, at + 1
        return b"".join(found)

    def fork(self, parent: SessionId, child: SessionId, count: int) -> None:
        """The child begins with the first `count` positions of its parent."""
        kept = self._sessions.get(parent)
        if kept is None or not 0 < count <= kept.length:
            return
        self._sessions.move_to_end(parent)
        self.forget(child)
        last = bisect_left(kept.ends, count)
        begun = _Kept(kept.row_bytes, kept.paid, kept.parts[: last + 1], [*kept.ends[:last], count])
        for part in begun.parts:
            part.holders += 1
        self._sessions[child] = begun

    def forget(self, session: SessionId) -> None:
        """Harmless for one that is not kept."""
        if (kept := self._sessions.pop(session, None)) is not None:
            self._cut(kept, 0)

    def _cut(self, kept: _Kept, length: int) -> None:
        """Forget what is behind `length`; of the part that it stands in only where no fork has that too."""
        while kept.length > length:
            begins, part = kept.ends[-2] if len(kept.ends) > 1 else 0, kept.parts[-1]
            if begins < length:
                kept.ends[-1] = length
                if part.holders == 1:
                    self.bytes -= len(part.data)
                    part.data = part.data[: (length - begins) * kept.row_bytes]
                    self.bytes += len(part.data)
                return
            kept.ends.pop()
            kept.parts.pop()
            part.holders -= 1
            if not part.holders:
                self.bytes -= len(part.data)
