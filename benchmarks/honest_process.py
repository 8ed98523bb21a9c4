"""A client process of `hostile.py` and `soak.py`: one wallet that asks for one answer after the other.

Reads one JSON line (network, wallet keys), answers `ready`; each further line is a task: for `seconds`, answers of
`new_tokens` tokens to prompts of `prompt` tokens, each over sessions of its own, or, where `keep` says so, all over
sessions that were opened before the task began. Token ids are given: norm, head and sampling are left out.
"""

import asyncio
import json
import sys
import time
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

TEXT = 2048


class Honest:
    """One client. What fails is told by its code and its text, and the next request goes on as if nothing were."""

    def __init__(self, client: SwarmClient, ends: Ends) -> None:
        self._client, self._ends = client, ends
        self._text = prompt(TEXT)[0]
        self._kept: Any = None

    async def run(self, seconds: float, prompt_tokens: int, new_tokens: int, *, keep: bool) -> dict[str, Any]:
        began, requests = time.monotonic(), []
        if not keep:
            await self.sign_off()
        while time.monotonic() < began + seconds:
            requests.append(await self._request(prompt_tokens, new_tokens, keep))
        return {"seconds": time.monotonic() - began, "requests": requests}

    async def sign_off(self) -> None:
        if self._kept is not None:
            with suppress(HivemintError):
                await self._kept.close()
            self._kept = None

    async def _request(self, prompt_tokens: int, new_tokens: int, keep: bool) -> dict[str, Any]:
        told: dict[str, Any] = {"tokens": 0}
        began, pipeline = time.monotonic(), self._kept if keep else None
        try:
            if pipeline is None:
                pipeline = await self._client.open(TEXT if keep else prompt_tokens + new_tokens)
                self._kept = pipeline if keep else None
            pipeline.crop(0)
            at, following = 0, prompt_tokens
            for _ in range(new_tokens):
                await pipeline.forward(self._ends.embed(self._text[at:following]), rows="last")
                told["tokens"] += 1
                at, following = following, following + 1
        except HivemintError as error:
            told["error"] = f"{error.code if isinstance(error, Refusal) else type(error).__name__}: {error}"[:200]
            self._kept = None
        finally:
            if pipeline is not None and not (keep and "error" not in told):
                with suppress(HivemintError):
                    await pipeline.close()
        return told | {"seconds": time.monotonic() - began}


async def main() -> None:
    job = json.loads(await asyncio.to_thread(sys.stdin.readline))
    local = local_models.pull()
    (key,) = job["keys"]
    wallet = Signer(bytes.fromhex(key))
    settings = SETTINGS | {"margin": 10.0}  # kept sessions begin anew at position 0 time and again
    client = await connect(local, network=Path(job["network"]), wallet=wallet, home=local.home, bid="ask", **settings)
    honest = Honest(client, Ends.load(local))
    say({"ready": 1})
    while line := await asyncio.to_thread(sys.stdin.readline):
        task = json.loads(line)
        say(await honest.run(task["seconds"], task["prompt"], task["new_tokens"], keep=task.get("keep", False)))
    await honest.sign_off()
    await client.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_async(main())
