"""A client in a process of its own whose talk is kept in a file: tests kill it, start it again, and ask where it was.

Reads one JSON document from its arguments; writes a line for each token, `at rest` where it was told to wait, and
`done` with all ids.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from hivemint.client.generation.bill import Bill
from hivemint.client.generation.causal_lm import SwarmModelForCausalLM
from hivemint.client.generation.ends import Ends
from hivemint.client.generation.loop import LoopThread
from hivemint.client.sessions.nodes import Target
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.swarm_client import SwarmClient
from hivemint.client.sessions.wallet import Identity
from hivemint.client.settings import Bid, ClientSettings
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.model.local_models import LocalModel
from hivemint.protocol.home import Home
from hivemint.swarm.host import Host, HostSettings
from support.promises import DOMAIN, GENESIS
from support.real_nodes import CLIENT, MODEL


def say(what: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"what": what, **more}) + "\n")
    sys.stdout.flush()


class Rests(StoppingCriteria):
    """Waits for ever once the text has so many tokens: no step is under way then."""

    def __init__(self, at: int) -> None:
        self._at = at

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        if input_ids.shape[1] == self._at:
            say("at rest")
            time.sleep(600)
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Tells:
    def put(self, value: torch.Tensor) -> None:
        say("tokens", ids=value.flatten().tolist())

    def end(self) -> None:
        pass


async def client(job: dict[str, Any], model: LocalModel) -> SwarmClient:
    host = await Host.start(HostSettings("test", listen=(), bootstrap=tuple(job["bootstrap"])))
    book = VoucherBook.open(Path(job["home"]) / "vouchers.db", DOMAIN, CLIENT.address, GENESIS)
    payer = Payer(Identity.own(CLIENT), DOMAIN, book)
    target = Target(MODEL, model.anatomy.num_blocks, model.anatomy.hidden_size)
    return SwarmClient(host, target, payer, ClientSettings(bid=Bid.parse(job["bid"]), min_chunk=4, step_timeout=60))


def main() -> None:
    job = json.loads(sys.argv[1])
    home = Path(job["home"])
    local, loop = LocalModel("tiny", Path(job["model"]), Home(home / "home")), LoopThread()
    model: Any = SwarmModelForCausalLM(local, Ends.load(local), loop.run(client, job, local), loop)
    with model, model.conversation(keep=home / "talk") as talk:
        found, bill = talk.ids, Bill()
        say("found", ids=found[0].tolist(), note=talk.note)
        ids = found if found.shape[1] else torch.tensor([job["prompt"]])
        talk.remember({"prompt": len(job["prompt"])})
        left = len(job["prompt"]) + job["tokens"] - ids.shape[1]
        rests = StoppingCriteriaList([Rests(job["rest_at"])])
        how = {"do_sample": False, "max_new_tokens": left, "min_new_tokens": left, "eos_token_id": None}
        out = model.generate(ids, conversation=talk, bill=bill, streamer=Tells(), stopping_criteria=rests, **how)
        say("done", ids=out[0].tolist(), replayed=bill.replayed, spent=bill.spent)


if __name__ == "__main__":
    main()
