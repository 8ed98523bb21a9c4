"""What a node can find out about itself from others: that its clock is off, or that it is listed twice."""

import asyncio
from contextlib import suppress
from typing import Protocol

from hivemint.node.supervise import Supervisor
from hivemint.protocol.errors import ChainError, SwarmError
from hivemint.protocol.ids import Address, ModelId
from hivemint.swarm.dht.doubles import doubled
from hivemint.swarm.host import Host

LOOK_EVERY = 30.0
LOOKS_A_LISTING = 20
"""The directory is asked at the start, and with each so many looks."""
CLOCK, IDENTITY = "clock", "identity"


class _Chain(Protocol):
    async def time(self) -> int:
        """Of the newest block, in seconds since 1970."""
        ...


class SelfCheck:
    """Tells the supervisor; nothing of it ends a node."""

    def __init__(
        self, host: Host, chain: _Chain, supervisor: Supervisor, model: ModelId, blocks: range, operator: Address
    ) -> None:
        self._host, self._chain, self._supervisor = host, chain, supervisor
        self._model, self._blocks, self._operator = model, blocks, operator

    async def run(self) -> None:
        """Until cancelled."""
        looks = 0
        while True:
            await self.look_at_clock()
            if looks % LOOKS_A_LISTING == 0:
                with suppress(SwarmError):
                    await self.look_at_listing()
            looks += 1
            await asyncio.sleep(LOOK_EVERY)

    async def look_at_clock(self) -> None:
        """Beside the chain's newest block, and what peers have said."""
        with suppress(ChainError):
            self._host.clock.see_block(await self._chain.time())
        self._say(CLOCK, self._host.clock.trouble())

    async def look_at_listing(self) -> None:
        """Whether another peer is listed under this node's operator. Raises SwarmError."""
        found = await self._host.find(self._model, self._blocks)
        self._say(IDENTITY, "; ".join(doubled(one for one in found if one.record.operator == self._operator)))

    def _say(self, what: str, trouble: str) -> None:
        if trouble:
            self._supervisor.tell(what, trouble)
        else:
            self._supervisor.well(what)
