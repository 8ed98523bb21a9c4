"""A client process of `concurrency.py` and `receipts.py`: several wallets, each with a session of its own.

Reads one JSON line (what to run, the keys too, so that they are in no command line), answers `ready`, and for each
further line (new tokens, prompt length) runs all sessions at once and answers when they began and ended.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness import generate, prompt

from hivemint.client import SwarmModelForCausalLM
from hivemint.model import local_models
from hivemint.protocol.signing import Signer


def say(document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def one(model: Any, ids: Any, new_tokens: int) -> tuple[float, float]:
    began = time.monotonic()
    generate(model, ids, new_tokens)
    return began, time.monotonic()


def main() -> None:
    import torch

    torch.set_num_threads(1)
    job = json.loads(sys.stdin.readline())
    home = local_models.pull().home
    clients = [
        SwarmModelForCausalLM.from_pretrained(
            local_models.DEMO, network=Path(job["network"]), wallet=Signer(bytes.fromhex(key)), home=home, bid="ask"
        )
        for key in job["keys"]
    ]
    say({"ready": len(clients)})
    with ThreadPoolExecutor(len(clients)) as threads:
        for line in sys.stdin:
            task = json.loads(line)
            runs = [
                threads.submit(one, client, prompt(task["prompt"], seed=job["seed"] + index), task["new_tokens"])
                for index, client in enumerate(clients)
            ]
            times = [run.result() for run in runs]
            say({"began": min(began for began, _ in times), "ended": max(ended for _, ended in times)})
    for client in clients:
        client.close()


if __name__ == "__main__":
    main()
