"""Which operators are registered, and with what stake: what ranks the records of nodes.

Keys are free and stake is not. So a record counts by its operator's stake; one that no registry knows has none, and
shares what is left over. The registry is asked rarely, for many at once, however many records name new operators.
"""

import asyncio
import random
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Protocol

from hivemint.protocol.eip712 import peer_id_hash
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address, PeerId
from hivemint.swarm.records import NodeRecord

ASK_LIMIT = 3.0
"""Seconds that a record waits for the chain's word on it."""
MOST_ASKED, MOST_KNOWN, MOST_WAITING = 128, 8192, 1024
GOOD, REFUSED = 300.0, 60.0
"""Seconds for which the registry's yes and no are believed."""


class Registered(Protocol):
    @property
    def peer_id_hash(self) -> bytes: ...
    @property
    def retired(self) -> bool: ...
    @property
    def bonded(self) -> int: ...


class OperatorRegistry(Protocol):
    """The contract's own view (`contracts.bindings.registry`)."""

    async def nodes(self, nodes: Sequence[Address]) -> Sequence[Registered | None]: ...


class Standing:
    """Lives in one event loop. Without a `registry` nobody has stake and nobody is asked."""

    def __init__(self) -> None:
        self.registry: OperatorRegistry | None = None
        self._known: dict[Address, tuple[float, bytes, int]] = {}
        self._waiting: set[Address] = set()
        self._asking = asyncio.Lock()

    def stake(self, record: NodeRecord) -> int:
        """Wei, at least 1 for a registered node whose peer id is the registry's; 0 for everybody else."""
        _, peer_hash, stake = self._known.get(record.operator, (0.0, b"", 0))
        return max(1, stake) if peer_hash and peer_hash == peer_id_hash(PeerId(record.peer)) else 0

    async def learn(self, operators: Collection[Address]) -> None:
        """Ask for those that are not known. At most 3 s; who is not told by then counts as unregistered."""
        if self.registry is None:
            return
        now = time.monotonic()
        new = {one for one in operators if self._known.get(one, (0.0, b"", 0))[0] < now}
        for one in random.sample(sorted(new), min(len(new), MOST_WAITING - len(self._waiting))):
            self._waiting.add(one)
        with suppress(TimeoutError):
            async with asyncio.timeout(ASK_LIMIT):
                async with self._asking:
                    if new & self._waiting:
                        await self._ask(self.registry)

    async def _ask(self, registry: OperatorRegistry) -> None:
        """A random part of those that wait, so that no flood of new keys keeps an honest one out for long."""
        asked = random.sample(sorted(self._waiting), min(len(self._waiting), MOST_ASKED))
        try:
            found = await registry.nodes(asked)
        except ChainError:  # records are ranked when it answers again
            return
        finally:
            self._waiting.difference_update(asked)
        now = time.monotonic()
        for operator, node in zip(asked, found, strict=True):
            if node is None or node.retired:
                self._known[operator] = (now + REFUSED, b"", 0)
            else:
                self._known[operator] = (now + GOOD, bytes(node.peer_id_hash), node.bonded)
        if len(self._known) > MOST_KNOWN:
            kept = sorted(self._known.items(), key=lambda item: (bool(item[1][1]), item[1][0]), reverse=True)
            self._known = dict(kept[: MOST_KNOWN // 2])
