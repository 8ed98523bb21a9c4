"""Blocks that nobody serves any more, and how long whoever has computed a part at the others waits for them."""

import asyncio
import time

import structlog

from hivemint.client.sessions.errors import NodeGone
from hivemint.client.sessions.routing.missing import MissingBlocks
from hivemint.protocol.errors import HivemintError
from hivemint.swarm.messages import Code

log = structlog.get_logger(__name__)

LOOK_AGAIN = 0.5
"""Seconds between two tries to find a node that may have come."""
_GOING = (Code.DRAINING, Code.FAILED)
"""A node that goes down says one of these."""


class Absence:
    """Of one text, or one lane of training: a node that is started anew is back within seconds, and what the others
    have computed is worth the wait."""

    def __init__(self, seconds: float) -> None:
        """The longest wait without any progress."""
        self._seconds = seconds
        self._since: float | None = None

    def over(self) -> None:
        """It has gone on."""
        self._since = None

    async def may_end(self, error: HivemintError) -> bool:
        """Whether there is still time for a node to come where `error` says that one is away; it is given a moment."""
        if not isinstance(error, NodeGone | MissingBlocks) and getattr(error, "code", None) not in _GOING:
            return False
        now = time.monotonic()
        if self._since is None:
            self._since = now
            log.info("blocks are served by nobody: waiting for a node", seconds=self._seconds, reason=str(error))
        if now + LOOK_AGAIN > self._since + self._seconds:
            return False
        await asyncio.sleep(LOOK_AGAIN)
        return True
