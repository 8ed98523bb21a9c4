"""Outputs that leave for the next node: where that can be dialled, and the links to it.

One link to each next node, shared by the sessions whose `Neighbours` name it, closed with the last of them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from hivemint.protocol.errors import HivemintError, Refusal, SwarmError
from hivemint.protocol.ids import PeerId, SessionId
from hivemint.swarm.addresses import is_name
from hivemint.swarm.link import Link
from hivemint.swarm.messages import AnyMessage, Peer
from hivemint.swarm.records import MOST_TRIPS, CheckedRecord, pack_trips

LOOK_AGAIN, LOOK_UP_GOOD = 0.5, 5.0
"""Seconds between looks into the directory for a peer that was not there, and for one that does not answer."""
PLACE_GOOD = 90.0
"""Seconds that what was found of a peer serves as long as it can be dialled there: a look-up in which a peer that has
just died is asked takes seconds."""
MOST_OUTLETS = 256
OPEN_LIMIT = 20.0
"""Seconds for the look-up of a next node and its dialling, the look-ups of others before it included."""

Dial = Callable[[PeerId, Sequence[str]], Awaitable[Link]]
Find = Callable[[int], Awaitable[list[CheckedRecord]]]
"""The records of the nodes that serve one block."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a peer can be dialled, by its record; `at`: when that was found."""

    at: float
    blocks: range
    addresses: tuple[str, ...]


class NeighbourLinks:
    """Where the nodes of a block can be dialled, as the directory says; what a client says of it counts nothing."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._places: dict[PeerId, _Place] = {}
        self._looked: dict[int, float] = {}
        self._looking = asyncio.Lock()

    def learn(self, found: Iterable[CheckedRecord]) -> None:
        """What a look-up has just found, whoever made it. What is older than PLACE_GOOD is forgotten."""
        now = time.monotonic()
        self._places = {peer: one for peer, one in self._places.items() if now - one.at < PLACE_GOOD}
        for one in found:
            self._places[one.peer] = _Place(now, one.record.blocks, _plain(one.record.addresses))

    async def addresses(self, peer: PeerId, block: int, *, but: tuple[str, ...] = ()) -> tuple[str, ...]:
        """() if no record of `peer` names `block`. What is known serves, and no look-up is waited for.

        `but`: those that were tried in vain; then only others count, of the last LOOK_UP_GOOD seconds. Raises
        SwarmError if the directory does not answer.
        """
        good, again = (LOOK_UP_GOOD, LOOK_UP_GOOD) if but else (PLACE_GOOD, LOOK_AGAIN)
        if not self._knows(peer, block, good):  # else nobody's look-up is waited for
            async with self._looking:
                looked = self._looked.get(block, float("-inf"))
                if not self._knows(peer, block, good) and time.monotonic() - looked > again:
                    self.learn(await self._find(block))
                    self._looked[block] = time.monotonic()
        place = self._places.get(peer)
        found = place.addresses if place is not None and block in place.blocks else ()
        return () if found == but else found

    def _knows(self, peer: PeerId, block: int, good: float) -> bool:
        """Whether it was found in the last `good` seconds."""
        place = self._places.get(peer)
        return place is not None and block in place.blocks and time.monotonic() - place.at < good


class Outlets:
    """Links to next nodes, one a peer, each closed with the last session that named it."""

    def __init__(self, neighbours: NeighbourLinks, dial: Dial) -> None:
        self._neighbours, self._dial = neighbours, dial
        self._links: dict[PeerId, Link] = {}
        self._users: dict[SessionId, PeerId] = {}
        self._opening: dict[PeerId, asyncio.Lock] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._trips: dict[PeerId, float] = {}

    async def open(self, session: SessionId, to: Peer, block: int) -> None:
        """A standing link to `to`, which serves `block`.

        Raises SwarmError, the same for a peer that is unknown, refuses or does not answer: whoever asks is not told
        what this node can reach.
        """
        peer = PeerId(to.peer)
        if self._users.get(session) != peer:
            self.leave(session)
        self._users[session] = peer
        try:
            async with asyncio.timeout(OPEN_LIMIT), self._opening.setdefault(peer, asyncio.Lock()):
                link = self._links.get(peer)
                if link is None or link.closed:
                    await self._connect(peer, block)
        except (HivemintError, TimeoutError):  # a Refusal at its Hello among them, which is no SwarmError
            self.leave(session)
            raise SwarmError(
                "The next node cannot be reached", next_step="leave it out of the route, or carry the tensor yourself"
            ) from None
        except asyncio.CancelledError:  # its client has left
            self.leave(session)
            raise
        finally:
            if peer not in self._users.values():
                self._opening.pop(peer, None)
        if self._users.get(session) != peer:  # it has left meanwhile
            self.leave(session)
            self._hang_up(peer)

    async def send(self, to: Peer, *messages: AnyMessage) -> None:
        """Raises SwarmError (LinkClosed among it) when the link has ended."""
        await self._link(to).send(*messages)

    def put(self, to: Peer, *messages: AnyMessage) -> bool:
        """The same without waiting: False, and nothing sent, where the link takes nothing now."""
        return self._link(to).put(*messages)

    @property
    def trips(self) -> bytes:
        """Round trips to the nodes that were linked to last, as a record tells them."""
        return pack_trips(self._trips.items())

    def leave(self, session: SessionId) -> None:
        """The session pushes no more; its next node's link ends if no other session uses it."""
        peer = self._users.pop(session, None)
        if peer is not None:
            self._hang_up(peer)

    async def close(self) -> None:
        links, self._links = list(self._links.values()), {}
        self._users.clear()
        await asyncio.gather(*(link.close("the node is going down") for link in links), return_exceptions=True)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _link(self, to: Peer) -> Link:
        if (link := self._links.get(PeerId(to.peer))) is None:
            raise SwarmError("There is no link to the next node", next_step="name it again")
        return link

    async def _connect(self, peer: PeerId, block: int) -> None:
        addresses = await self._neighbours.addresses(peer, block)
        if not addresses or len(self._links) >= MOST_OUTLETS:
            raise SwarmError("No record names this peer for the next block")
        try:
            link = await self._dial(peer, addresses)
        except Refusal:  # it was there, and would say the same elsewhere
            raise
        except HivemintError:
            if not (newer := await self._neighbours.addresses(peer, block, but=addresses)):
                raise
            link = await self._dial(peer, newer)
        self._links[peer] = link
        best = min(link.trip, self._trips.pop(peer, link.trip))  # a longer one may have been a busy moment
        self._trips[peer] = (best + link.trip) / 2
        while len(self._trips) > MOST_TRIPS:
            del self._trips[next(iter(self._trips))]

    def _hang_up(self, peer: PeerId) -> None:
        if peer in self._users.values() or (link := self._links.pop(peer, None)) is None:
            return
        self._opening.pop(peer, None)
        task = asyncio.create_task(link.close("no session pushes to this node any more"))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _plain(addresses: Sequence[str]) -> tuple[str, ...]:
    """Without names: whoever publishes one would choose what this node's resolver is asked."""
    return tuple(address for address in addresses if not is_name(address))
