"""Where the outputs of a session's steps go: to the next node, to the client, or to both.

The client's receipt does not wait for the next node: one that reads nothing would make the node before it look silent.
What the link to it does not take at once waits here, in order, and at most `ahead` tensors of a session do.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from hivemint.node.sessions.services import Services
from hivemint.protocol.errors import SwarmError
from hivemint.swarm.link import Link
from hivemint.swarm.messages import HopReceipt, Peer, StepReceipt, StepRequest, Tensor

log = structlog.get_logger(__name__)


class Outputs:
    """`next`: the node behind this one, once it has been named, and as long as its link stands."""

    def __init__(self, services: Services, link: Link, ended: "Callable[[asyncio.Task[None]], None]") -> None:
        """`ended` hears of each task that is over, however it ended."""
        self.next: Peer | None = None
        self._services, self._link, self._ended = services, link, ended
        self._unsent: deque[Tensor | HopReceipt] = deque()
        self.pushing: asyncio.Task[None] | None = None
        """What waits for the link to the next node, while that takes less than there is."""

    def lead_to(self, peer: Peer | None) -> None:
        """From now on the outputs go there. What the node of before has not taken is not for this one."""
        self.next = peer
        self._unsent.clear()
        if self.pushing is not None:
            self.pushing.cancel()
            self.pushing = None

    async def send(self, request: StepRequest, pushed: Tensor, own: Tensor | None) -> None:
        """The tensor, as the request asks for it. Raises LinkClosed: the client has hung up."""
        if request.push:
            await self.push(pushed)
        if own is not None:
            await self._link.send(own)

    async def prove(self, request: StepRequest, hop: HopReceipt, answer: StepReceipt) -> None:
        """The receipt, to whom the tensor went, and to the client always."""
        counts = self._services.counts
        if request.push:
            await self.push(hop)
            counts.sent("next")
        await self._link.send(answer)
        if request.rows != "none":
            counts.sent("client")

    async def push(self, message: Tensor | HopReceipt) -> None:
        """Waits only while the next node has not taken as many tensors as a session may have under way.

        A broken link to it is the client's to replace: it gets this node's receipt all the same.
        """
        while self.pushing is not None and self._full(message):
            await asyncio.wait([self.pushing])
        if self.next is None or (self.pushing is None and self._put(self.next, message)):
            return
        self._unsent.append(message)
        if self.pushing is None:
            self.pushing = asyncio.create_task(self._push_all(self.next))
            self.pushing.add_done_callback(self._over)

    def _put(self, to: Peer, message: Tensor | HopReceipt) -> bool:
        """Whether there is nothing more to do with it."""
        try:
            return self._services.outlets.put(to, message)
        except SwarmError as error:
            self._lost(error)
            return True

    def _full(self, message: Tensor | HopReceipt) -> bool:
        unsent = sum(isinstance(one, Tensor) for one in self._unsent)
        return isinstance(message, Tensor) and unsent >= self._services.offer.limits.ahead

    async def _push_all(self, to: Peer) -> None:
        """Until nothing is left. A message counts as unsent until the link has room for the next one."""
        try:
            while self._unsent:
                await self._services.outlets.send(to, self._unsent[0])
                self._unsent.popleft()
        except SwarmError as error:
            self._lost(error)
        self.pushing = None

    def _lost(self, error: SwarmError) -> None:
        log.info("the next node is gone", reason=str(error))
        self._unsent.clear()
        self.next = None

    def _over(self, task: "asyncio.Task[None]") -> None:
        if self.pushing is task:  # it failed as nobody foresaw
            self.lead_to(None)
        self._ended(task)
