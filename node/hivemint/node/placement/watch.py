"""Looks again, now and then, whether the node would help more elsewhere, and tells once it is clear.

Nodes see each other's moves only when they serve again. So that not all run to the same hole: each looks at its own
random times, the more nodes there are the more rarely; a move that suits another node better is left to it once; and a
node moves where a second look, after a pause of its own, finds what the first one found: that the move clearly helps.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Protocol

import structlog

from hivemint.node.placement.rule import Choice, Placed, believed, better, suits_another
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.ids import Address, ModelId
from hivemint.swarm.records import CheckedRecord

log = structlog.get_logger(__name__)
LOOK_EVERY = 300.0
"""Seconds between a node's looks, on average, in a swarm of MANY nodes or fewer."""
MANY = 16
SECOND = 0.1
"""Of the seconds between looks: the longest pause before the second one."""


class Records(Protocol):
    """The host, as far as it is asked here."""

    async def find(self, model_id: ModelId, blocks: range) -> list[CheckedRecord]: ...
    @property
    def ranks(self) -> bool: ...
    def is_registered(self, one: CheckedRecord) -> bool: ...


def pause(every: float, nodes: int, source: random.Random) -> float:
    """Seconds until the next look: in all swarms about MANY nodes look in `every` seconds, or all where there are
    fewer."""
    return every * max(1.0, nodes / MANY) * source.uniform(0.5, 1.5)


class Moves:
    """What one node decides, look by look."""

    def __init__(self) -> None:
        self._waited = False

    def decide(self, blocks: int, others: Sequence[Placed], own: Placed, size: int) -> Choice | None:
        """Where it should go now; None: it stays, or waits until its next look for a node that the move suits better
        (which may never move: so it waits once)."""
        found = better(blocks, others, own, size)
        if found is None:
            self._waited = False
        elif not self._waited and suits_another(blocks, others, own, found):
            self._waited = True
            return None
        return found


class PlacementWatch:
    """Of one node that serves `own`, in a model of `blocks`, and could hold `size` of them. `chosen` is set once to
    where it should go."""

    def __init__(
        self,
        records: Records,
        model: ModelId,
        blocks: int,
        operator: Address,
        own: Placed,
        size: int,
        every: float,
        *,
        source: random.Random | None = None,
    ) -> None:
        """`every`: seconds between looks, on average, where nodes are few."""
        self.chosen: asyncio.Future[Choice] = asyncio.get_running_loop().create_future()
        self._records, self._model, self._blocks, self._operator = records, model, blocks, operator
        self._own, self._size, self._every = own, size, every
        self._source = source or random.Random()  # noqa: S311 - it is for chance, not for secrets
        self._nodes, self._moves = 1, Moves()

    async def run(self) -> None:
        """Until cancelled, or until a move is clear. A swarm that does not answer is looked at again."""
        while not self.chosen.done():
            await asyncio.sleep(pause(self._every, self._nodes, self._source))
            if await self._found() is None:
                continue
            await asyncio.sleep(self._source.uniform(0, SECOND * self._every))
            if (found := await self._found()) is not None and not self.chosen.done():
                log.info("another place helps the swarm more", blocks=f"{found.first}:{found.end}", **_told(found))
                self.chosen.set_result(found)
        await asyncio.Event().wait()  # a task that ends would be begun again

    async def _found(self) -> Choice | None:
        try:
            return await self.look()
        except HivemintError as error:
            log.info("the swarm could not be looked at", reason=str(error))
            return None

    async def look(self) -> Choice | None:
        """Where the node should go, by the records of now; None: it stays. Raises SwarmError."""
        found = await self._records.find(self._model, range(self._blocks))
        others = placed(found, self._records, self._operator, self._blocks)
        self._nodes = len(others) + 1
        known = believed(others, self._own.rate)
        return await asyncio.to_thread(self._moves.decide, self._blocks, known, self._own, self._size)


def placed(found: list[CheckedRecord], records: Records, own: Address, blocks: int) -> list[Placed]:
    """The places of other operators' nodes, by what they publish: who is not registered serves nothing, where a
    registry tells. An operator counts once for each of its spans."""
    places: dict[tuple[Address, int, int], Placed] = {}
    for one in found:
        record = one.record
        if record.operator == own or record.first_block >= blocks or (records.ranks and not records.is_registered(one)):
            continue
        end = min(record.end_block, blocks)
        rate = record.tokens_per_s * (record.end_block - record.first_block)
        places[record.operator, record.first_block, end] = Placed(record.first_block, end, rate)
    return list(places.values())


def _told(found: Choice) -> dict[str, float]:
    return {"tokens_per_s_before": round(found.before, 2), "tokens_per_s_after": round(found.after, 2)}
