"""The nodes of the same blocks and of the one behind them, looked up now and then, for all that want to know.

So what a session needs to begin, such as where the next node can be dialled, is known before it is asked for.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import ModelId
from hivemint.swarm.records import CheckedRecord

log = structlog.get_logger(__name__)

LOOK_EVERY = 30.0


class Listings(Protocol):
    """The host, as far as it is asked here."""

    async def find(self, model_id: ModelId, blocks: range) -> list[CheckedRecord]: ...


class Surroundings:
    """Of one node that serves `[first, end)` of `blocks`. `tell`: whoever wants the records, again after each look."""

    def __init__(
        self,
        directory: Listings,
        model: ModelId,
        span: tuple[int, int],
        blocks: int,
        tell: Sequence[Callable[[list[CheckedRecord]], None]],
    ) -> None:
        self._directory, self._model, self._tell = directory, model, tell
        first, end = span
        self._blocks = range(first, min(end + 1, blocks))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Where the directory does not answer, nobody is there as far as is known."""
        try:
            found = await self._directory.find(self._model, self._blocks)
        except SwarmError as error:
            log.info("the directory could not be asked", reason=str(error))
            found = []
        for tell in self._tell:
            tell(found)
