"""Asking peers of the directory whether they are there, and what time it is."""

import asyncio
import random
from collections.abc import Collection, Sequence
from typing import Any

from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import PeerId
from hivemint.swarm.daemon import Daemon
from hivemint.swarm.dht.clock import SwarmClock
from hivemint.swarm.dht.desk import Desk

PING_LIMIT = 3.0
STRAGGLERS = 1.0
"""Seconds that a measurement waits for further answers after the first."""
MOST_ASKED, MOST_AT_ONCE = 8, 16


class Pings:
    """Of one host. `node` is hivemind's DHT."""

    def __init__(self, daemon: Daemon, node: Any, desk: Desk) -> None:
        self._daemon, self._node, self._desk = daemon, node, desk
        self._at_once = asyncio.Semaphore(MOST_AT_ONCE)

    @property
    def clock(self) -> SwarmClock:
        return self._desk.clock

    async def ask(self, peer: PeerId, addresses: Sequence[str] = (), *, limit: float = PING_LIMIT) -> float | None:
        """By how many seconds the peer's clock is ahead of this machine's; None: no answer within `limit` seconds.

        A process that is stopped does not answer, though its daemon takes connections.
        """
        from google.protobuf.message import DecodeError
        from hivemind.p2p import P2PDaemonError, P2PHandlerError, PeerID
        from hivemind.proto import dht_pb2

        protocol = self._node.protocol
        async with self._at_once:
            try:
                async with asyncio.timeout(limit):
                    if addresses:
                        await self._daemon.connect(peer, addresses)
                    began = self.clock.own()
                    request = dht_pb2.PingRequest(peer=protocol.node_info)
                    answer = await protocol.get_stub(PeerID(bytes(peer))).rpc_ping(request, timeout=limit)
            except (TimeoutError, OSError, EOFError, DecodeError, P2PDaemonError, P2PHandlerError, SwarmError):
                return None
        return float(answer.dht_time - (began + self.clock.own()) / 2)

    async def measure(self, first: Collection[PeerId]) -> None:
        """Ask some peers for their time: `first`, and others by chance."""
        others = [PeerId(peer.to_bytes()) for peer in self._node.protocol.routing_table.peer_id_to_uid]
        asked = list(dict.fromkeys((*first, *random.sample(others, len(others)))))[:MOST_ASKED]
        tasks = {asyncio.create_task(self.ask(peer)): peer for peer in asked}
        votes: list[tuple[Any, float]] = []
        limit, waiting = PING_LIMIT, set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for task in done:
                if (seconds := task.result()) is not None:
                    votes.append((self._desk.prefix_of(tasks[task]), seconds))
            limit = STRAGGLERS if votes else PING_LIMIT
        for task in waiting:
            task.cancel()
        self.clock.hear(votes)
