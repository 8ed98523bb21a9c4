"""How an input is cut into steps, and how many of these are under way at once."""

from collections.abc import Sequence

from hivemint.client.sessions.session import RemoteSession
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import ClientSettings


class Chunking:
    """Of one pipeline: as much as all its nodes take, and little while some paid node has delivered nothing yet."""

    def __init__(self, sessions: Sequence[RemoteSession], settings: ClientSettings, speeds: Speeds) -> None:
        self._sessions, self._settings, self._speeds = sessions, settings, speeds
        self._ahead = min(one.terms.limits.ahead for one in sessions)
        self._max_rows = min(one.terms.limits.rows for one in sessions)

    def window(self, count: int) -> int:
        """Steps that may be in flight, of an input of `count` rows."""
        return 1 if count == 1 or self._strangers() else self._ahead

    def rows(self, count: int) -> int:
        """Rows of a step: small enough that all nodes of the route work at once, and smaller for strangers."""
        hops, smallest = len(self._sessions), self._settings.min_chunk
        wanted = -(-count // (self._settings.prefill_chunks * hops)) if hops > 1 else count
        return min(smallest if self._strangers() else max(wanted, smallest), self._max_rows)

    def _strangers(self) -> bool:
        """Whether some node that is paid has not delivered anything to this client yet."""
        return any(one.price and not self._speeds.knows(one.leg.peer) for one in self._sessions)
