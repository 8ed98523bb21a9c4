"""Ten strangers against a real node: what each of them has is libp2p connections, keys that cost nothing, and time.

`attack` runs one of `ATTACKS` for so many seconds and tells what came of it. Every peer id is a real one: a connection
and a handshake of its own at the node's daemon (`thin_peer`). They come from a network of their own (`gang.SOURCE`),
whose limits they share, as strangers from one place do; `directory` alone is one id on the node's own loopback. What is
made up: the wallets of `Target` are funded by whoever calls; that the chain is away is the caller's to arrange.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable

from support.attacks_on_links import directory, half_frames, identities, sybils
from support.attacks_on_sessions import dust, no_chain, repeats, routes, seats, tensors
from support.gang import Target, Told

Attack = Callable[[Target, Told], Awaitable[None]]

ATTACKS: dict[str, Attack] = {
    "repeats": repeats,
    "seats": seats,
    "tensors": tensors,
    "identities": identities,
    "directory": directory,
    "routes": routes,
    "dust": dust,
    "no_chain": no_chain,
    "half_frames": half_frames,
    "sybils": sybils,
}
"""Numbers 1 to 8 of what strangers were shown to do, then the two that need nothing but connections."""


async def attack(name: str, at: Target, seconds: float) -> Told:
    """Run it so long, then take everything back that it has open. What happened, counted."""
    told: Told = Counter()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ATTACKS[name](at, told)
    return told
