"""A client that wants to leave a node, said right or wrong on purpose."""

from typing import Any

import msgspec

from hivemint.protocol.eip712 import Domain, Leave
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import CONTROL
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Leave as LeaveMessage
from hivemint.swarm.messages import Left, Refused, Terms
from support.one_node import Served
from support.promises import DOMAIN


async def dialled(served: Served) -> tuple[Link, Terms]:
    link = await served.client.dial(served.host.peer_id, served.host.addresses, CONTROL)
    terms = await link.receive()
    assert isinstance(terms, Terms)
    return link, terms


def leave_message(
    terms: Terms, wallet: Signer, *, by: Signer | None = None, domain: Domain = DOMAIN, **changes: Any
) -> LeaveMessage:
    """`by`: whose signature it carries; `changes`: fields of what is signed."""
    leave = msgspec.structs.replace(Leave(wallet.address, terms.operator, terms.nonce), **changes)
    return LeaveMessage(leave, leave.sign(domain, by or wallet))


async def leave(served: Served, wallet: Signer, **how: Any) -> Left | Refused:
    """On a link of its own."""
    link, terms = await dialled(served)
    await link.send(leave_message(terms, wallet, **how))
    answer = await link.receive()
    assert isinstance(answer, Left | Refused), answer
    return answer
