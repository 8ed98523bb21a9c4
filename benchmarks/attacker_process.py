"""The attacker's process of `hostile.py`: one of `tests/support/attackers.py` against one node, or as busy beside it.

Reads one JSON line (network, node, wallet keys), answers `ready`; each further line is a task, answered with what came
of it and the processor time of this process and its children: `{"attack": name, "seconds": s}`, or
`{"busy": cores, "seconds": s}`, which uses that much of the machine and speaks to nobody.
"""

import asyncio
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from load_process import say

from hivemint.cli.console import run_async
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer
from support.attackers import attack
from support.gang import Target

SLICE = 0.005


def cpu_s() -> float:
    """Of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def busy(cores: float, seconds: float) -> None:
    """So much of one processor, in slices of 5 ms."""
    end, share = time.monotonic() + seconds, min(1.0, cores)
    while (began := time.monotonic()) < end:
        while time.monotonic() < began + SLICE * share:
            pass
        time.sleep(SLICE * (1 - share))


async def main() -> None:
    job = json.loads(await asyncio.to_thread(sys.stdin.readline))
    network = Network.load(Path(job["network"]))
    target = Target.of(
        network,
        job["addresses"],
        job["now"],
        range(*job["blocks"]),
        hidden=job["hidden"],
        ask=job["ask"],
        wallets=[Signer(bytes.fromhex(key)) for key in job["keys"]],
    )
    say({"ready": 1})
    while line := await asyncio.to_thread(sys.stdin.readline):
        task, before, began = json.loads(line), cpu_s(), time.monotonic()
        told: dict[str, Any] = {}
        if "attack" in task:
            told = dict(await attack(task["attack"], target, task["seconds"]))
        else:
            await asyncio.to_thread(busy, task["busy"], task["seconds"])
        say({"told": told, "cores": (cpu_s() - before) / (time.monotonic() - began)})


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_async(main())
