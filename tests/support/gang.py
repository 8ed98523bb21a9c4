"""What attackers on a node have in common: peers of ids that cost nothing, links kept alive, a pace."""

import asyncio
import contextlib
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import CONTROL
from hivemint.swarm.link import Link
from support.node_client import NodeSession, RefusedError
from support.thin_peer import ThinLink, ThinPeer

BEAT = 0.7
"""Seconds between signs of life on a link: a node takes two of silence for an end."""
ANSWER = 5.0
SOURCE = "127.0.1.1" if sys.platform == "linux" else None
"""Where they dial from: another /24 than the honest, which other systems' loopback does not have."""
TROUBLE = (HivemintError, RefusedError, TimeoutError, AssertionError)
"""What a node's defence looks like from here; the last one: `NodeSession` was answered something else."""


@dataclass(frozen=True)
class Target:
    """A node, as anybody can know it. `wallets`: those that hold a little at it. `hidden`: width of a row."""

    addresses: tuple[str, ...]
    network: str
    bootstrap: tuple[str, ...]
    domain: Domain
    expiry: int
    model_id: bytes
    blocks: range
    hidden: int
    ask: int
    max_rows: int = 512
    wallets: Sequence[Signer] = ()

    @classmethod
    def of(cls, network: Network, addresses: Sequence[str], now: int, blocks: range, **known: Any) -> "Target":
        """A node of a network file; `now`: the chain's time."""
        model = network.models[0].model_id
        return cls(
            tuple(addresses), network.name, network.bootstrap, network.domain, now + 3600, model, blocks, **known
        )


Told = Counter[str]


@dataclass
class Gang:
    """Peers, links and sessions of one attack."""

    at: Target
    told: Told
    peers: list[ThinPeer] = field(default_factory=list)
    links: set[ThinLink] = field(default_factory=set)

    async def peer(self) -> ThinPeer:
        made = await ThinPeer.connect(self.at.addresses[0], source=SOURCE)
        self.peers.append(made)
        self.told["ids"] += 1
        return made

    async def link(self, peer: ThinPeer | None = None, protocol: str = CONTROL) -> ThinLink:
        made = await (peer or await self.peer()).link(protocol, self.at.network)
        self.links.add(made)
        self.told["links"] += 1
        return made

    async def session(self, client: Signer | None = None, peer: ThinPeer | None = None, **terms: Any) -> NodeSession:
        """Opened as an honest client would. `price` 0 (free) unless said otherwise."""
        link = await self.link(peer)
        try:
            async with asyncio.timeout(ANSWER):
                made = await NodeSession.open(
                    cast(Link, link), self.at.domain, client or wallet(), expiry=self.at.expiry, **terms
                )
        except BaseException:
            link.reset()
            raise
        self.told["sessions"] += 1
        return made

    async def drop(self, peer: ThinPeer) -> None:
        self.peers.remove(peer)
        await peer.close()

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            self.links = {link for link in self.links if not link.closed}
            for link in self.links:
                link.ping()

    def no(self, error: BaseException) -> None:
        """A defence was met."""
        refused = error.refused if isinstance(error, RefusedError) else None
        self.told[f"refused: {refused.code}" if refused else type(error).__name__] += 1
        if refused and "http" in f"{refused.what} {refused.why} {refused.next_step}":
            self.told["secrets"] += 1


@contextlib.asynccontextmanager
async def gang(at: Target, told: Told) -> AsyncIterator[Gang]:
    made = Gang(at, told)
    beating = asyncio.create_task(made.beat())
    try:
        yield made
    finally:
        beating.cancel()
        await asyncio.gather(*(peer.close() for peer in made.peers), return_exceptions=True)


class Pace:
    """At most so many turns a second; what was missed is not made up for."""

    def __init__(self, rate: float) -> None:
        self._gap, self._due = 1 / rate, time.monotonic()

    async def turn(self) -> None:
        now = time.monotonic()
        self._due = max(self._due + self._gap, now - 0.05)
        if self._due - now > 0.005:  # timers are not finer
            await asyncio.sleep(self._due - now)


async def each(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """So many of them beside each other, each for ever."""
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(_for_ever(work, number))


async def _for_ever(work: Callable[[int], Awaitable[None]], number: int) -> None:
    while True:
        await work(number)


def wallet() -> Signer:
    return Signer(secrets.token_bytes(32))


def rows(at: Target, count: int) -> torch.Tensor:
    return torch.zeros(count, at.hidden)
