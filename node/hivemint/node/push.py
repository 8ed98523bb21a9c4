"""Between neighbours: outputs that leave for the next node, and inputs that came from the previous one.

One link to each next node, shared by all sessions, dialled when a Route first names it. What comes in is kept by
(source session, step): at most `ahead` a session, for 2 s, and only from the peer that an open session has named.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from hivemint.contracts.errors import LinkClosed, SwarmError
from hivemint.contracts.ids import PeerId, SessionId, Step
from hivemint.swarm.link import Link
from hivemint.swarm.messages import AnyMessage, HopReceipt, Peer, Tensor

KEEP = 2.0
"""Seconds that an input is kept before its request is here."""

Dial = Callable[[PeerId, Sequence[str]], Awaitable[Link]]


@dataclass(eq=False)
class Arrival:
    """A step's input on its way in: the tensor first, its maker's word on it by a later frame."""

    tensor: asyncio.Future[Tensor]
    receipt: asyncio.Future[HopReceipt]
    wanted: bool = False
    at: float = field(default_factory=time.monotonic)


class Inbox:
    """Inputs pushed by previous nodes, of all sessions."""

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self._named: dict[SessionId, PeerId] = {}
        self._arrivals: dict[SessionId, dict[Step, Arrival]] = {}
        self.dropped = 0

    def name(self, source: SessionId, peer: PeerId) -> bool:
        """An open session takes the outputs of `source` from `peer`. False: another open session does so already."""
        if source in self._named:
            return False
        self._named[source] = peer
        return True

    def forget(self, source: SessionId) -> None:
        self._named.pop(source, None)
        for arrival in self._arrivals.pop(source, {}).values():
            arrival.tensor.cancel()
            arrival.receipt.cancel()

    def want(self, source: SessionId, step: Step) -> Arrival:
        """The input of a step that was taken; it may be here already. `done` when it has been used or given up."""
        arrival = self._arrival(source, step)
        arrival.wanted = True
        return arrival

    def done(self, source: SessionId, step: Step) -> None:
        self._arrivals.get(source, {}).pop(step, None)

    async def receive(self, link: Link) -> None:
        """Handler of push links: until the link ends."""
        with suppress(LinkClosed):
            while True:
                self.accept(link.peer, await link.receive())

    def accept(self, peer: PeerId, message: AnyMessage) -> None:
        """Keep a frame, or drop it in silence: a foreign peer learns nothing of the sessions here."""
        if isinstance(message, Tensor):
            source, step = message.head.session, message.head.step
        elif isinstance(message, HopReceipt):
            source, step = message.receipt.receipt.session_id, message.receipt.receipt.step
        else:
            source, step = None, Step(0)
        if source is None or self._named.get(SessionId(source)) != peer:
            self.dropped += 1
            return
        arrival = self._admit(SessionId(source), step)
        if arrival is None:
            self.dropped += 1
        elif isinstance(message, Tensor) and not arrival.tensor.done():
            arrival.tensor.set_result(message)
        elif isinstance(message, HopReceipt) and not arrival.receipt.done():
            arrival.receipt.set_result(message)

    def _admit(self, source: SessionId, step: Step) -> Arrival | None:
        """Where a frame goes; None if too many wait for their requests."""
        steps = self._arrivals.setdefault(source, {})
        now = time.monotonic()
        for old in [n for n, a in steps.items() if not a.wanted and now - a.at > KEEP]:
            del steps[old]
        if step not in steps and sum(not arrival.wanted for arrival in steps.values()) >= self._ahead:
            return None
        return self._arrival(source, step)

    def _arrival(self, source: SessionId, step: Step) -> Arrival:
        loop = asyncio.get_running_loop()
        steps = self._arrivals.setdefault(source, {})
        if step not in steps:
            steps[step] = Arrival(loop.create_future(), loop.create_future())
        return steps[step]


class Outlets:
    """Links to next nodes, one a peer, reused over sessions."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._links: dict[PeerId, Link] = {}
        self._dialling: dict[PeerId, asyncio.Lock] = {}

    async def open(self, to: Peer) -> None:
        """A standing link to `to`. Raises SwarmError when it cannot be reached."""
        peer = PeerId(to.peer)
        async with self._dialling.setdefault(peer, asyncio.Lock()):
            link = self._links.get(peer)
            if link is None or link.closed:
                self._links[peer] = await self._dial(peer, to.addresses)

    async def send(self, to: Peer, *messages: AnyMessage) -> None:
        """Raises SwarmError (LinkClosed among it) when the link has ended."""
        link = self._links.get(PeerId(to.peer))
        if link is None:
            raise SwarmError("There is no link to the next node", next_step="send its Route again")
        await link.send(*messages)

    async def close(self) -> None:
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(link.close("the node is going down") for link in links), return_exceptions=True)
