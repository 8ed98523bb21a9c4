"""A client process of `load.py`: requests begin when they are due, however many are still under way.

Reads one JSON line (network, wallet keys), answers `ready`; each further line is a task, answered when all its
requests have ended. Prompts and answers are given token ids: norm, head and sampling are left out, so that the nodes
are what is loaded. First argument: the bid.
"""

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from harness import prompt

from hivemint.cli.console import run_async
from hivemint.client.generation.ends import Ends
from hivemint.client.sessions.swarm_client import SwarmClient, connect
from hivemint.model import local_models
from hivemint.protocol.errors import HivemintError, Refusal
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import CONTROL

SETTINGS: dict[str, Any] = {"patience": 20.0, "open_timeout": 20.0}
LOOK, PROBE = 0.02, 0.5
"""Seconds between looks at the own loop's lag, and between control calls to a node."""


class Caller:
    """Sends requests, each over a session of its own, the clients taking turns."""

    def __init__(self, clients: list[SwarmClient], ends: Ends) -> None:
        self._clients, self._ends = clients, ends
        self._turn = itertools.cycle(clients)
        self._text = prompt(4096)[0]

    async def request(self, due: float, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        """What became of it: seconds from when it was due to each token, and how late it began."""
        told: dict[str, Any] = {"due": due, "late": time.monotonic() - due, "tokens": []}
        pipeline = None
        try:
            pipeline = await next(self._turn).open(prompt_tokens + new_tokens)
            told["opened"] = time.monotonic() - due
            at, following = 0, prompt_tokens
            for _ in range(new_tokens):
                await pipeline.forward(self._ends.embed(self._text[at:following]), rows="last")
                told["tokens"].append(time.monotonic() - due)
                at, following = following, following + 1
        except HivemintError as error:
            told["error"] = error.code if isinstance(error, Refusal) else type(error).__name__
        finally:
            if pipeline is not None:
                with suppress(HivemintError):
                    await pipeline.close()
        return told

    async def scheduled(self, begin: float, arrivals: list[tuple[float, int, int]]) -> list[dict[str, Any]]:
        """Open loop."""

        async def one(at: float, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
            await asyncio.sleep(begin + at - time.monotonic())
            return await self.request(begin + at, prompt_tokens, new_tokens)

        return await asyncio.gather(*(one(*arrival) for arrival in arrivals))

    async def saturated(self, begin: float, seconds: float, sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """Closed loop: a worker for each of `sizes`, one request after the other, the sizes taking turns."""

        async def worker(mine: Iterator[tuple[int, int]]) -> list[dict[str, Any]]:
            await asyncio.sleep(begin - time.monotonic())
            done = []
            while time.monotonic() < begin + seconds:
                done.append(await self.request(time.monotonic(), *next(mine)))
            return done

        dice = random.Random(len(sizes))
        turns = [itertools.cycle(dice.sample(sizes, len(sizes))) for _ in sizes]
        return [one for done in await asyncio.gather(*map(worker, turns)) for one in done]

    async def probe(self, calls: list[float]) -> None:
        """Control calls beside the load: a new link to a node, Hello, its terms. Until cancelled."""
        client = self._clients[0]
        for number in itertools.count():
            await asyncio.sleep(PROBE)
            records = sorted(await client.nodes.usable(), key=lambda one: one.record.first_block)
            node, began = records[number % len(records)], time.monotonic()
            with suppress(HivemintError):
                link = await client.host.dial(node.peer, node.record.addresses, CONTROL)
                await link.receive()
                calls.append(time.monotonic() - began)
                link.abort("that was all")


async def lag(seen: list[float]) -> None:
    """How late this process's own timers are. Until cancelled."""
    while True:
        due = time.monotonic() + LOOK
        await asyncio.sleep(LOOK)
        seen.append(time.monotonic() - due)


async def main(bid: str) -> None:
    job = json.loads(await asyncio.to_thread(sys.stdin.readline))
    local = local_models.pull()
    clients = [
        await connect(
            local, network=Path(job["network"]), wallet=Signer(bytes.fromhex(key)), home=local.home, bid=bid, **SETTINGS
        )
        for key in job["keys"]
    ]
    caller = Caller(clients, Ends.load(local))
    say({"ready": len(clients)})
    while line := await asyncio.to_thread(sys.stdin.readline):
        lags: list[float] = []
        calls: list[float] = []
        beside = [asyncio.create_task(lag(lags)), asyncio.create_task(caller.probe(calls))]
        cpu, task = time.process_time(), json.loads(line)
        ask = caller.saturated if "sizes" in task else caller.scheduled
        requests = await ask(**task)
        for one in beside:
            one.cancel()
        say({"requests": requests, "lag": lags, "control": calls, "cpu_s": time.process_time() - cpu})
    await asyncio.gather(*(client.close() for client in clients))


def say(document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_async(main(sys.argv[1]))
