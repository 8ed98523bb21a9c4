"""A node of a route dies or hangs in mid-answer: how long the text stands still, and what is paid twice.

Three spans, two nodes for each. At token 100 of 200 one node of the answer's route is killed (kill -9), or stopped
(SIGSTOP), or the last of the three is killed; five answers of each kind, every one compared with an undisturbed one.

    kill_stall_s, stop_stall_s, last_hop_stall_s   the longest gap between two tokens less the median one
    paid_extra     positions of the lost span that were paid twice, by what the answers cost beyond an undisturbed one,
                   over those that had been computed there and were computed again
    alone_s        plain transformers computing the same context anew, in this process, one thread
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from harness import Bound, bars, finish, generate, options, plain_model, prompt, swarm
from paying import CHEAP, funded_wallets, open_client
from rich.console import Console

from hivemint.client.generation.bill import Bill
from hivemint.testnet.demo.race import Watch
from hivemint.testnet.localnet import NodePlan

PROMPT, TOKENS, AT, RUNS = 48, 200, 100, 5
SPANS, COPIES = 3, 2
BACK = 90.0
"""Seconds that a node has to be found again after a run."""
BOUNDS = {
    "equal": Bound(least=1),
    "kill_stall_s": Bound(most=1.0),
    "stop_stall_s": Bound(most=4.0),
    "last_hop_stall_s": Bound(most=1.0),
    "paid_extra": Bound(most=1.05),
}
say = Console(stderr=True).print


class Strikes(Watch):
    """Keeps when each token came; at one of them something happens."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        super().__init__()
        self._at, self._act = at, act

    def put(self, value: Any) -> None:
        super().put(value)
        if len(self.times) == self._at:
            self._act()

    @property
    def stall(self) -> float:
        """Seconds."""
        gaps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return max(gaps) - statistics.median(gaps)


@dataclass
class Run:
    """One disturbed answer."""

    stall: float
    equal: bool
    spent: int
    replayed: int
    span: int  # wei a token at the hop that was lost


class Bench:
    """One network and one client of it."""

    def __init__(self, net: Any, model: Any) -> None:
        self.net, self.model, self.ids = net, model, prompt(PROMPT)
        self.struck: NodePlan | None = None
        self.price = 0

    def strike(self, hop: int, act: Callable[[psutil.Process], object]) -> None:
        """On the node that computes this hop of the answer under way."""
        pipeline = next(one for one in self.model.swarm._pipelines if one.open)
        session = pipeline.sessions[hop]
        self.price = session.price
        self.struck = next(
            plan for plan in self.net.plans if self.net.signer(plan.operator).address == session.leg.operator
        )
        act(psutil.Process(self.net.child(self.struck.operator).pid))

    def undisturbed(self) -> tuple[Any, int]:
        """Its ids, and wei."""
        bill = Bill()
        out, _ = generate(self.model, self.ids, TOKENS, bill=bill)
        return out, bill.spent

    def run(self, hop: int, act: Callable[[psutil.Process], object], expected: Any) -> Run:
        bill, clock = Bill(), Strikes(AT, lambda: self.strike(hop, act))
        out = self.model.generate(
            self.ids,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            streamer=clock,
            bill=bill,
        )
        replayed = bill.replayed or PROMPT + AT - 1
        self.mend()
        return Run(clock.stall, torch.equal(out, expected), bill.spent, replayed, self.price)

    def mend(self) -> None:
        """The node is there again, and the client knows it."""
        if self.struck is not None:
            child = self.net.child(self.struck.operator)
            if child.alive:
                psutil.Process(child.pid).resume()
            else:
                asyncio.run(self.net.start_node(self.struck))
        deadline, nodes = time.monotonic() + BACK, self.model.swarm.nodes
        while len(self.model.run(nodes.usable())) < len(self.net.plans):
            if time.monotonic() > deadline:
                raise TimeoutError("a node was not found again")
            time.sleep(0.2)
            nodes.forget()


def alone() -> float:
    """Seconds that plain transformers takes for the context that had been computed; the median of five."""
    plain, ids, taken = plain_model(), prompt(PROMPT + AT - 1), []
    with torch.no_grad():
        for _ in range(6):
            began = time.perf_counter()
            plain(ids)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def main() -> None:
    args = options(__doc__ or "", runs=RUNS)
    kill, stop = (lambda process: process.kill()), (lambda process: process.suspend())
    kinds = {"kill_stall_s": (1, kill), "stop_stall_s": (1, stop), "last_hop_stall_s": (SPANS - 1, kill)}
    figures: dict[str, Any] = {"alone_s": alone()}
    found: dict[str, list[Run]] = {name: [] for name in kinds}
    with swarm(CHEAP, nodes=SPANS, copies=COPIES) as net:
        wallet = funded_wallets(net, 1)[0]
        with open_client(net, wallet, bid="ask", set_aside=5, open_timeout=20) as model:
            bench = Bench(net, model)
            bench.mend()
            expected, plan = bench.undisturbed()
            for number in range(args.runs):
                for name, (hop, act) in kinds.items():
                    found[name].append(one := bench.run(hop, act, expected))
                    say(f"  {name} {number + 1}/{args.runs}: {one.stall:.2f} s, equal {one.equal}, {one.spent} wei")
    runs = [one for each in found.values() for one in each]
    figures |= {name: statistics.median(one.stall for one in each) for name, each in found.items()}
    twice = sum((one.spent - plan) / one.span for one in runs)
    figures |= {
        "equal": all(one.equal for one in runs),
        "paid_extra": twice / sum(one.replayed for one in runs),
        "stalls": {name: [round(one.stall, 3) for one in each] for name, each in found.items()},
    }
    names = [*kinds, "alone_s"]
    chart = bars([name[:-2] for name in names], [figures[name] for name in names], "A node lost at token 100", "s")
    finish("failover", figures, BOUNDS, args.json, chart)


if __name__ == "__main__":
    main()
