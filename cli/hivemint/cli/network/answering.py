"""Which of the nodes that are listed answer now: a dead one stays listed for up to 45 s, a stopped one too."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hivemint.protocol.ids import PeerId

if TYPE_CHECKING:
    from hivemint.swarm.host import Host
    from hivemint.swarm.records import CheckedRecord

MOST_ASKED = 128
"""Nodes asked in one look, those with the most stake first; of the others it is not known."""
CLOCK_OFF = 30.0
"""Seconds from which on a node's clock is said to be wrong."""


async def answering(host: "Host", found: "Sequence[CheckedRecord]") -> dict[PeerId, float | None]:
    """By how many seconds each node's clock is ahead of this machine's; None: it did not answer within 3 s."""
    asked = found[:MOST_ASKED]
    told = await asyncio.gather(*(host.ping(one.peer, one.record.addresses) for one in asked))
    return {one.peer: seconds for one, seconds in zip(asked, told, strict=True)}


def notes(host: "Host", found: "Sequence[CheckedRecord]", told: Mapping[PeerId, float | None]) -> list[str]:
    """What people should know beside the list, by name: clocks that are off, operators that are listed twice."""
    from hivemint.protocol.node_name import node_name
    from hivemint.swarm.dht.clock import span
    from hivemint.swarm.dht.doubles import doubled

    lines = [trouble] if (trouble := host.clock.trouble()) else []
    for one in found:
        seconds = told.get(one.peer)
        ahead = 0.0 if seconds is None else seconds - host.clock.offset
        if abs(ahead) >= CLOCK_OFF:
            side = "ahead" if ahead > 0 else "behind"
            lines.append(f"the clock of node {node_name(one.record.operator)} is {span(ahead)} {side}")
    return lines + doubled(found)
