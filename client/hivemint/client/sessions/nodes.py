"""The nodes of one model as this client knows them: looked up, registered, allowed by the user, and not set aside."""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import structlog

from hivemint.client.sessions.routing.aside import Aside
from hivemint.client.sessions.routing.choice import NodeChoice
from hivemint.client.sessions.routing.missing import LeftOut, served_blocks
from hivemint.client.sessions.routing.view import NodeView
from hivemint.client.sessions.routing.wish import ANY_NODE
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.sessions.wallet import ChainPort
from hivemint.protocol.eip712 import peer_id_hash
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import Address, ModelId, PeerId
from hivemint.swarm.host import Host
from hivemint.swarm.records import CheckedRecord

log = structlog.get_logger(__name__)

LOOK_UP_GOOD = 3.0
"""Seconds that the directory's answer serves for further routes."""
LOOK_UP_PATIENCE = 0.25
"""Seconds that a new answer is waited for where what is known would do: a look-up that asks a peer that has just died
takes seconds."""
LOOK_AROUND = 25.0
"""Seconds after which the directory is asked again, while a text goes on that may need another node at once: records
are 20 s old at most when they are found, and live 45 s."""
REGISTERED_GOOD = 600.0
"""Seconds that the registry's word on an operator serves; who is not registered is asked for again at each look-up."""

_TWICE = 2


@dataclass(frozen=True, slots=True)
class Target:
    """The model whose blocks are looked for. `hidden` numbers a row."""

    model_id: ModelId
    blocks: int
    hidden: int


class Nodes:
    """`chain` None: nobody is asked who is registered. `speeds` tells which nodes have delivered, `choice` which the
    user allows."""

    def __init__(
        self,
        host: Host,
        target: Target,
        chain: ChainPort | None,
        speeds: Speeds | None = None,
        choice: NodeChoice = ANY_NODE,
    ) -> None:
        self._host, self._target, self._chain, self.choice = host, target, chain, choice
        self._records: list[CheckedRecord] = []
        self._looked: float | None = None
        self._look_up: asyncio.Task[None] | None = None
        known = speeds or Speeds()
        self._aside = Aside(known.delivered_at, known.opened_at)
        self._registry: dict[Address, tuple[float, bytes]] = {}
        self._lost: Counter[PeerId] = Counter()
        self._view = NodeView(())

    async def usable(self) -> list[CheckedRecord]:
        """Registered with the peer id that they show, and not set aside.

        A node that merely failed counts again where blocks are left that nobody else serves, the one first whose
        failure is the longest ago: so each of several gets its turn, and not the best of them, dead by now, all turns.
        One that lied does not. Nodes that the user does not allow are among them: a plan leaves them out, by name.
        Raises SwarmError.
        """
        if self._age > LOOK_UP_GOOD:
            await self._asked()
        out = self._left_out()
        rested = self._without(out)
        if self._covers(rested):
            return rested
        again, left = [], self._every & ~self._served(rested)
        failed = [one for one in self._without(self._aside.liars()) if one.peer in out]
        for one in sorted(failed, key=lambda one: self._aside.since(one.peer)):
            if left & self._served([one]):
                again.append(one)
                left &= ~self._served([one])
        return rested + again

    async def view(self) -> NodeView:
        """The same, as planning sees them: made anew only if a record has changed, or who is set aside."""
        records = await self.usable()
        if not self._view.holds(records):
            self._view = NodeView(records)
        return self._view

    def left_out(self) -> list[LeftOut]:
        """Those of the last look-up that are set aside now, with the reasons."""
        reasons = ((one.record, self._aside.reason(one.peer)) for one in self._without(()))
        return [LeftOut(record, reason) for record, reason in reasons if reason]

    def set_aside(
        self, peers: Iterable[PeerId], seconds: float, *, lied: bool = False, reason: str = "", busy: bool = False
    ) -> None:
        """Leave these out of routes for a while: longer each time, until they deliver again (`Aside`).

        `reason`: what they did, for people. `busy`: they have no room now, which is no fault.
        """
        for peer in peers:
            if busy:
                self._aside.busy(peer, seconds)
            else:
                self._aside.misbehaved(peer, seconds, reason, lied=lied)

    def trying(self, peers: Iterable[PeerId]) -> None:
        """A route over these is about to be opened: of those that are to prove themselves, others keep off for now."""
        for peer in peers:
            self._aside.trying(peer)

    def lost_room(self, peers: Iterable[PeerId], seconds: float) -> None:
        """These made a text be computed again: whoever does so twice is left out of routes for a while."""
        for peer in peers:
            self._lost[peer] += 1
            if self._lost[peer] >= _TWICE:
                del self._lost[peer]
                self.set_aside([peer], seconds, reason="it lost a text's keys and values twice")

    def enough_without(self, peers: Collection[PeerId]) -> bool:
        """Whether all blocks are served by others, none of them set aside."""
        return self._covers(self._without(set(peers) | self._left_out()))

    def replaceable(self, peers: Collection[PeerId]) -> bool:
        """Whether at least one of these, set aside or not, can be done without."""
        return any(self._covers(self._without((self._left_out() - set(peers)) | {peer})) for peer in peers)

    def left_to_try(self, peers: Collection[PeerId]) -> bool:
        """Whether at least one of these can be done without, if those that failed get another turn (`usable`)."""
        liars = self._aside.liars()
        return any(self._covers(self._without(liars | {peer})) for peer in peers)

    def look_around(self) -> None:
        """A text goes on: where what is known grows old, the directory is asked beside it."""
        if self._age > LOOK_AROUND:
            self._look()

    async def close(self) -> None:
        """Ask nobody any more."""
        if self._look_up is not None:
            self._look_up.cancel()
            await asyncio.wait((self._look_up,))

    def forget(self) -> None:
        """Look again at the next call, and ask the registry for all that is found."""
        self._looked = None
        self._registry.clear()

    @property
    def clock_trouble(self) -> str:
        """What is wrong with this machine's clock, in a line; "" if nothing is known to be."""
        return self._host.clock.trouble()

    @property
    def _age(self) -> float:
        """Seconds since the directory's last answer came."""
        return float("inf") if self._looked is None else time.monotonic() - self._looked

    async def _asked(self) -> None:
        """Until the directory has answered; where what is known would do, for a moment, and whatever the answer is.
        Raises SwarmError, ChainError."""
        look_up = self._look()
        enough = self._looked is not None and self.enough_without(())
        await asyncio.wait((look_up,), timeout=LOOK_UP_PATIENCE if enough else None)
        if not enough:
            look_up.result()

    def _look(self) -> "asyncio.Task[None]":
        """The look-up that is under way, or a new one."""
        if self._look_up is None or self._look_up.done():
            self._look_up = asyncio.create_task(self._find())
            self._look_up.add_done_callback(_heard)
        return self._look_up

    async def _find(self) -> None:
        found = await self._host.find(self._target.model_id, range(self._target.blocks))
        self._records, self._looked = await self._registered(found), time.monotonic()

    def _without(self, peers: Collection[PeerId]) -> list[CheckedRecord]:
        now = self._host.clock.earliest()
        return [one for one in self._records if one.record.expires > now and one.peer not in peers]

    def _left_out(self) -> set[PeerId]:
        return self._aside.peers()

    def _covers(self, records: list[CheckedRecord]) -> bool:
        return not self._every & ~self._served(records)

    @property
    def _every(self) -> int:
        return (1 << self._target.blocks) - 1

    def _served(self, records: list[CheckedRecord]) -> int:
        """The blocks that nodes among these serve which the user allows, a bit each."""
        named = self.choice.allowed or self.choice.blocked
        return served_blocks(one.record for one in records if not named or not self.choice.excludes(one.record))

    async def _registered(self, records: list[CheckedRecord]) -> list[CheckedRecord]:
        """The registry is asked for operators alone that are new, or whose answer is old."""
        if self._chain is None or not records:
            return records
        now = time.monotonic()
        operators = {one.record.operator for one in records}
        self._registry = {
            operator: known
            for operator, known in self._registry.items()
            if operator in operators and now - known[0] < REGISTERED_GOOD
        }
        wrong = {one.record.operator for one in records if not self._as_registered(one)}
        if wrong:
            hashes = await self._chain.peer_hashes(sorted(wrong))
            self._registry |= {operator: (now, peer_hash) for operator, peer_hash in hashes.items()}
        known = [one for one in records if self._as_registered(one)]
        if not known:
            raise SwarmError(
                f"None of the {len(records)} nodes of this model is registered",
                why="the registry on the chain does not hold their operators with these peer ids",
                next_step="their owners register them with `hivemint node register`",
            )
        return known

    def _as_registered(self, one: CheckedRecord) -> bool:
        known = self._registry.get(one.record.operator)
        return known is not None and known[1] == peer_id_hash(one.peer)


def _heard(look_up: "asyncio.Task[None]") -> None:
    """Whoever waits is told what went wrong; a look-up that nobody waits for is made again at the next need."""
    if not look_up.cancelled() and (error := look_up.exception()) is not None:
        log.debug("the directory could not be asked", reason=str(error))
