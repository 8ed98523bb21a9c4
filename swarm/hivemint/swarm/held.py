"""Bytes that peers make this process keep: unread messages, unfinished frames, tensors whose step has not come.

Counted for the peer that holds them, for its network prefix, and for all. A peer over its own limit breaks the
protocol. Where a limit of many is passed, the greediest among them loses its links, not whoever came last.
"""

from collections.abc import Callable

from hivemint.protocol.errors import ProtocolError

Cut = Callable[[str], None]


class Held:
    """One holder. Made with a `parent` it counts there too; `cuts` end what this holder has open here."""

    def __init__(self, limit: int, parent: "Held | None" = None) -> None:
        self.limit, self.parent = limit, parent
        self.bytes = 0
        self.cuts: set[Cut] = set()
        self._members: set[Held] = set()

    def add(self, count: int) -> None:
        """Raises ProtocolError if this holder is over its limit, or is the greediest of those that share one."""
        level: Held | None = self
        while level is not None:
            level.bytes += count
            if level.parent is not None:  # listed there while it holds something: whoever holds nothing costs nothing
                (level.parent._members.add if level.bytes else level.parent._members.discard)(level)
            level = level.parent
        if count > 0:
            self._check()

    def _check(self) -> None:
        if self.bytes > self.limit:
            raise _too_much(self.bytes, self.limit)
        level = self.parent
        while level is not None:
            if level.bytes > level.limit:
                greediest = level._greediest()
                if greediest is self or greediest is None:
                    raise _too_much(level.bytes, level.limit)
                greediest.cut(f"it held the most, {greediest.bytes} bytes, when all together passed {level.limit}")
            level = level.parent

    def cut(self, reason: str) -> None:
        for cut in list(self.cuts):
            cut(reason)

    def _greediest(self) -> "Held | None":
        """The peer with the most bytes, in the prefix with the most; only those that something can be taken from."""
        for member in sorted(self._members, key=lambda one: one.bytes, reverse=True):
            found = member._greediest() if member._members else member
            if found is not None and found.cuts:
                return found
        return None


def _too_much(held: int, limit: int) -> ProtocolError:
    return ProtocolError("A peer's messages take too much room", why=f"{held} bytes, limit {limit}")
