"""Two clients that ask the same at the same moment, one paid and one donated, while a crowd keeps the nodes busy."""

import asyncio
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

import torch

from hivemint.client.generation.loop import LoopThread
from hivemint.client.sessions.swarm_client import SwarmClient, connect
from hivemint.protocol.errors import HivemintError, Refusal
from hivemint.testnet.demo.story import LaneFigures
from hivemint.testnet.localnet import LocalNet

GUESTS = ("dave", "erin", "frank", "grace")
SESSIONS, LENGTH = 2, 256
"""Of each guest: sessions at once, and the tokens of a prompt."""
VOCABULARY = 40_000


def race(runners: Sequence[tuple[str, Any, int]], ids: Any, rounds: int) -> dict[str, LaneFigures]:
    """`rounds` times `ids` from all at once; the medians of the first token's wait and of tokens a second.

    A runner is a lane's name, a client, and how many tokens it asks for.
    """
    lanes: dict[str, list[tuple[float, float]]] = {lane: [] for lane, _, _ in runners}

    def ask(lane: str, client: Any, tokens: int, gate: threading.Barrier) -> None:
        watch, exactly = Watch(), {"max_new_tokens": tokens, "min_new_tokens": tokens}
        gate.wait()
        began = time.perf_counter()
        client.generate(ids, do_sample=False, streamer=watch, **exactly)
        lanes[lane].append((watch.times[0] - began, watch.tokens_per_s))

    for _ in range(rounds):
        gate = threading.Barrier(len(runners))
        threads = [threading.Thread(target=ask, args=(*runner, gate)) for runner in runners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {lane: _medians(lane, seen, rounds) for lane, seen in lanes.items()}


def _medians(lane: str, seen: list[tuple[float, float]], rounds: int) -> LaneFigures:
    if len(seen) < rounds:
        raise HivemintError(f"Requests of the {lane} lane failed", next_step="look at the lines above")
    waits, speeds = zip(*seen, strict=True)
    return LaneFigures(round(statistics.median(waits) * 1000, 1), round(statistics.median(speeds), 2))


class Watch:
    """A streamer that only keeps when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, _: Any) -> None:
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        pass

    @property
    def tokens_per_s(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


class Crowd:
    """Several people without credits, each with a place of its own in the swarm and several sessions, until left.

    They send one embedded prompt after the other, each in a new session; what comes back is not read.
    """

    def __init__(self, net: LocalNet, reader: Any) -> None:
        self._net, self._reader = net, reader
        self._loop, self._stopped = LoopThread(), False
        self._clients: list[SwarmClient] = []
        self._asking: Any = None

    def __enter__(self) -> Self:
        self._loop.run(self._join)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        try:
            self._loop.run(self._leave)
        finally:
            self._loop.stop()

    async def _join(self) -> None:
        self._clients = [
            await connect(
                self._net.model,
                network=self._net.network_file,
                wallet=self._net.signer(guest),
                home=self._net.home,
                bid="free",
            )
            for guest in GUESTS
        ]
        self._asking = asyncio.gather(*(self._ask(one) for one in self._clients for _ in range(SESSIONS)))

    async def _leave(self) -> None:
        self._asking.cancel()
        with suppress(asyncio.CancelledError):
            await self._asking
        await asyncio.gather(*(client.close() for client in self._clients))

    async def _ask(self, client: SwarmClient) -> None:
        while not self._stopped:
            try:
                pipeline = await client.open(LENGTH)
            except Refusal:
                await asyncio.sleep(0.2)  # the donated lane is full: come again
                continue
            try:
                await pipeline.forward(self._reader.embed(torch.randint(1000, VOCABULARY, (LENGTH,))))
            finally:
                await pipeline.close()
