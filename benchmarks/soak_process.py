"""A client process of `soak.py`: many sessions open at once, of which a few do something at any moment.

Reads one JSON line (network, wallet keys, sessions, seed), opens the sessions and answers `ready`; each further line
(`{"seconds": s, "at_once": n}`) is a time of work, answered with what was done. A turn of a session is one of: a few
tokens, an answer begun anew at an earlier position, a new session in its place, a prefill that is cancelled half-way.
"""

import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from harness import prompt
from load_process import SETTINGS, say

from hivemint.cli.console import run_async
from hivemint.client.generation.ends import Ends
from hivemint.client.sessions.swarm_client import SwarmClient, connect
from hivemint.model import local_models
from hivemint.protocol.errors import HivemintError, Refusal
from hivemint.protocol.signing import Signer

ROOM, BEGIN, LONG = 160, 8, 128
"""Tokens: of a session, of its first prompt, of a prefill that is cancelled."""
TURN = 1.0
"""Seconds from one turn to the next, of each session that is at work."""
OPENING = 8


class Soaker:
    """So many sessions of a few wallets."""

    def __init__(self, clients: list[SwarmClient], ends: Ends, seed: int) -> None:
        self._clients, self._dice = itertools.cycle(clients), random.Random(seed)
        self._inputs = ends.embed(prompt(ROOM)[0])
        self._pipelines: list[Any] = []
        self._done: Counter[str] = Counter()

    async def open_all(self, count: int) -> int:
        """How many there are now."""
        gate = asyncio.Semaphore(OPENING)

        async def one() -> None:
            async with gate:
                self._pipelines.append(await self._opened())

        await asyncio.gather(*(one() for _ in range(count)))
        return sum(one is not None for one in self._pipelines)

    async def work(self, seconds: float, at_once: int) -> dict[str, Any]:
        """Turns for so long, of so many sessions at a time; what was done.

        A session in trouble is counted with its reason, and replaced.
        """
        self._done.clear()
        end, resting = time.monotonic() + seconds, list(range(len(self._pipelines)))

        async def worker() -> None:
            while time.monotonic() < end:
                turn = asyncio.create_task(asyncio.sleep(TURN))
                index = resting.pop(self._dice.randrange(len(resting)))
                await self._turn(index)
                resting.append(index)
                await turn

        await asyncio.gather(*(worker() for _ in range(at_once)))
        return dict(self._done) | {"open": sum(one is not None and one.open for one in self._pipelines)}

    async def close(self) -> None:
        for one in self._pipelines:
            await _closed(one)

    # ---- inside

    async def _turn(self, index: int) -> None:
        pipeline, what = self._pipelines[index], self._dice.random()
        try:
            if pipeline is None or what < 0.15:
                await _closed(pipeline)
                self._pipelines[index] = await self._opened()
            elif what < 0.25:
                await self._cancelled(pipeline)
                self._pipelines[index] = await self._opened()
            else:
                if what > 0.8 or pipeline.position > ROOM // 2:
                    pipeline.crop(min(BEGIN, pipeline.position))
                for _ in range(3):
                    await self._forward(pipeline, 1)
        except HivemintError as error:
            self._done[f"failed: {error.code if isinstance(error, Refusal) else error}"[:150]] += 1
            await _closed(pipeline)
            self._pipelines[index] = None

    async def _opened(self) -> Any:
        try:
            pipeline = await next(self._clients).open(ROOM)
            self._done["opened"] += 1
            await self._forward(pipeline, BEGIN)
        except HivemintError as error:
            self._done[f"failed: {error.code if isinstance(error, Refusal) else error}"[:150]] += 1
            return None
        return pipeline

    async def _forward(self, pipeline: Any, count: int) -> None:
        at = pipeline.position
        await pipeline.forward(self._inputs[at : at + count], rows="last")
        self._done["steps"] += 1

    async def _cancelled(self, pipeline: Any) -> None:
        """As Ctrl-C does it, at a moment of chance."""
        pipeline.crop(0)
        task = asyncio.create_task(pipeline.forward(self._inputs[:LONG], rows="last"))
        await asyncio.sleep(0.1 * self._dice.random())
        task.cancel()
        with suppress(asyncio.CancelledError, HivemintError):
            await task
        with suppress(HivemintError):
            await pipeline.cancel()
        await _closed(pipeline)
        self._done["cancelled"] += 1


async def _closed(pipeline: Any) -> None:
    if pipeline is not None:
        with suppress(HivemintError):
            await pipeline.close()


async def main() -> None:
    job = json.loads(await asyncio.to_thread(sys.stdin.readline))
    local = local_models.pull()
    settings = SETTINGS | {"bid": "ask", "margin": 10.0}  # sessions begin anew at position 0 time and again
    wallets = [Signer(bytes.fromhex(key)) for key in job["keys"]]
    clients = [
        await connect(local, network=Path(job["network"]), wallet=wallet, home=local.home, **settings)
        for wallet in wallets
    ]
    soaker = Soaker(clients, Ends.load(local), job["seed"])
    say({"ready": await soaker.open_all(job["sessions"]), "failed": soaker._done})
    while line := await asyncio.to_thread(sys.stdin.readline):
        wanted = json.loads(line)
        say(await soaker.work(wanted["seconds"], wanted["at_once"]))
    await soaker.close()
    await asyncio.gather(*(client.close() for client in clients))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_async(main())
