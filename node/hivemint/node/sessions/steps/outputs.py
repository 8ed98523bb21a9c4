"""Where the outputs of a session's steps go: to the next node, to the client, or to both."""

import structlog

from hivemint.node.sessions.services import Services
from hivemint.protocol.errors import SwarmError
from hivemint.swarm.link import Link
from hivemint.swarm.messages import HopReceipt, Peer, StepReceipt, StepRequest, Tensor

log = structlog.get_logger(__name__)


class Outputs:
    """`next`: the node behind this one, once it has been named."""

    def __init__(self, services: Services, link: Link) -> None:
        self.next: Peer | None = None
        self._services, self._link = services, link

    async def send(self, request: StepRequest, pushed: Tensor, own: Tensor | None) -> None:
        """The tensor, as the request asks for it. Raises LinkClosed: the client has hung up."""
        if request.push:
            await self._push(pushed)
        if own is not None:
            await self._link.send(own)

    async def prove(self, request: StepRequest, hop: HopReceipt, answer: StepReceipt) -> None:
        """The receipt, to whom the tensor went, and to the client always."""
        counts = self._services.counts
        if request.push:
            await self._push(hop)
            counts.sent("next")
        await self._link.send(answer)
        if request.rows != "none":
            counts.sent("client")

    async def _push(self, message: Tensor | HopReceipt) -> None:
        """A broken link to the next node is the client's to replace: it gets this node's receipt all the same."""
        try:
            if self.next is not None:
                await self._services.outlets.send(self.next, message)
        except SwarmError as error:
            log.info("the next node is gone", reason=str(error))
            self.next = None
