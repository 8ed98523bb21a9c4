"""What a node says first on a control link, and what its client may send from then on."""

import asyncio

from hivemint.node.sessions.services import Services
from hivemint.protocol.errors import LinkClosed
from hivemint.swarm.link import Link
from hivemint.swarm.messages import KIB, AnyMessage, Limits, Load, Tensor, Terms, tensor_body

HANDSHAKE = 20.0
"""Seconds that a client has from Terms to Open."""


async def first_word(services: Services, link: Link) -> AnyMessage:
    """Show the terms, with a nonce of this link; what the client says to them. Raises LinkClosed: nothing in time."""
    offer = services.offer
    await link.send(
        Terms(
            nonce=services.admission.nonces.issue(link.peer),
            operator=offer.operator,
            model_id=offer.model_id,
            first_block=offer.first,
            end_block=offer.end,
            numerics=offer.numerics,
            ask=offer.ask,
            limits=offer.limits,
        )
    )
    try:
        async with asyncio.timeout(HANDSHAKE):
            return await link.receive()
    except TimeoutError:
        raise LinkClosed("The client opened no session", why=f"within {HANDSHAKE:.0f} s") from None


def allow(link: Link, limits: Limits, row_bytes: int) -> None:
    """Of an open session: a step's rows, a backward step's states and gradients, an adapter."""
    link.allow(Tensor, tensor_body(limits.widest * row_bytes))
    link.allow(Load, limits.adapter_bytes + KIB)
