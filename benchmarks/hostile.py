"""An honest paid client beside each of ten attackers, one after the other, on two nodes of the demo model.

    python benchmarks/hostile.py [--json FILE] [--seconds 60] [--quick 1] [--only NAME]

All of it in one run on one machine: chain, nodes, the honest client's process, the attacker's process (all at the same
priority), the attacker against the first node. For each attacker, after a trial of a few seconds that tells how much of
the machine it uses, the honest client is measured beside a process that uses as much and attacks nobody; alone; beside
the attacker, for `--seconds`; then beside the busy process and alone once more: what the machine does otherwise goes up
and down over minutes, so each base is taken on both sides of the attack, and their mean counts. An attacker pays for
its own keys and frames on its own machine; here it takes them from the two cores that nodes and client share. So there
are two slowdowns:

    slowdown_max        tokens/s beside the busy neighbour / tokens/s beside the attacker, the worst of the ten
    slowdown_alone_max  tokens/s alone / tokens/s beside the attacker: the attacker's own use of the machine included
    failed              the honest client's requests that failed, over all of it
    growth_mb_max       resident memory of the attacked node's process, at the end of an attack that still goes on,
                        less that before the trial; the node's libp2p daemon stands beside it (daemon_growth_mb_max)

A request is a session of its own at both nodes, a prompt of 16 tokens and an answer of 32. While the chain is away no
paid session can be opened anywhere: there, sessions that were opened before go on, in all phases.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import psutil
from crowd import Crowd, crowd, read_line, write_line
from harness import Bound, finish, options, swarm
from paying import CHEAP, funded_wallets
from rich.console import Console

from hivemint.contracts.bindings import Bindings
from hivemint.protocol.signing import Signer
from support.attackers import ATTACKS

WALLETS = 8
"""Of the attacker, with a deposit at every node."""
REQUEST = {"prompt": 16, "new_tokens": 32}
MB = 1e6
SETTLE, TRIAL = 3.0, 5.0
"""Seconds after an attack until what it had open is gone, and of the trial of it."""
BUSY_SHARE, ALONE_SHARE = 1 / 4, 1 / 6
"""Of an attack's time: each time beside the busy process, and each time alone."""
say = Console(stderr=True).print


class Attacker:
    """The attacker's process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def begin(self, **task: Any) -> None:
        write_line(self._process, task)

    def end(self) -> dict[str, Any]:
        """What came of it, once it is over."""
        answer: dict[str, Any] = read_line(self._process)
        return answer


@contextmanager
def attacker(net: Any, wallets: list[Signer]) -> Iterator[Attacker]:
    plan = net.plans[0]
    job = {
        "network": str(net.network_file),
        "addresses": list(net.child(plan.operator).ready["addresses"]),
        "blocks": [plan.first, plan.end],
        "hidden": net.model.anatomy.hidden_size,
        "ask": 1,
        "now": asyncio.run(_chain_time(net)),
        "keys": [wallet.secret().hex() for wallet in wallets],
    }
    path = Path(__file__).with_name("attacker_process.py")
    process = subprocess.Popen([sys.executable, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        write_line(process, job)
        read_line(process)
        yield Attacker(process)
    finally:
        cast(IO[str], process.stdin).close()
        process.wait(60)


async def _chain_time(net: Any) -> int:
    async with await Bindings.connect(net.network) as bindings:
        return await bindings.chain.time()


class Scene:
    """The network, the honest client and the attacker, through the phases of one attack."""

    def __init__(self, net: Any, honest: Crowd, enemy: Attacker, seconds: float) -> None:
        self._net, self._honest, self._enemy = net, honest, enemy
        self._attacked = seconds
        self._busy, self._quiet = max(3.0, BUSY_SHARE * seconds), max(3.0, ALONE_SHARE * seconds)
        self._node = psutil.Process(net.child(net.plans[0].operator).pid)
        self.failed: list[str] = []

    def against(self, name: str) -> dict[str, Any]:
        """All phases of one attack; its figures."""
        keep = name == "no_chain"
        memory = self._memory()
        cores = self._tried(name)
        beside = [self._measure_beside(cores, keep)]
        alone = [self._measure(self._quiet, keep)]
        with self._chain_away() if keep else nullcontext():
            self._enemy.begin(attack=name, seconds=self._attacked + 1)
            attacked = self._measure(self._attacked, keep)
            grown = [now - then for now, then in zip(self._memory(), memory, strict=True)]
            outcome = self._enemy.end()
        time.sleep(SETTLE)
        kept = [now - then for now, then in zip(self._memory(), memory, strict=True)]
        beside.append(self._measure_beside(outcome["cores"], keep))
        alone.append(self._measure(self._quiet, keep))
        return {
            "tokens_per_s_alone": alone,
            "tokens_per_s_beside_busy": beside,
            "tokens_per_s_attacked": attacked,
            "slowdown": statistics.mean(beside) / attacked if attacked else float("inf"),
            "slowdown_alone": statistics.mean(alone) / attacked if attacked else float("inf"),
            "attacker_cores": outcome["cores"],
            "attacker_cores_tried": cores,
            "growth_mb": grown[0],
            "daemon_growth_mb": grown[1],
            "kept_mb": kept[0],
            "daemon_kept_mb": kept[1],
            "attacker": outcome["told"],
        }

    def _tried(self, name: str) -> float:
        """Cores that an attacker uses, by a short attack that nobody is measured beside."""
        with self._chain_away() if name == "no_chain" else nullcontext():
            self._enemy.begin(attack=name, seconds=TRIAL)
            cores = float(self._enemy.end()["cores"])
        time.sleep(SETTLE)
        return cores

    def _measure_beside(self, cores: float, keep: bool) -> float:
        """Tokens a second beside somebody who is as busy, and with other things."""
        self._enemy.begin(busy=cores, seconds=self._busy + 1)
        measured = self._measure(self._busy, keep)
        self._enemy.end()
        return measured

    def _measure(self, seconds: float, keep: bool) -> float:
        """Tokens a second of the honest client; what failed is noted."""
        (answer,) = self._honest.ask([{"seconds": seconds, "keep": keep, **REQUEST}])
        self.failed += [one["error"] for one in answer["requests"] if "error" in one]
        return float(sum(one["tokens"] for one in answer["requests"]) / answer["seconds"])

    def _memory(self) -> list[float]:
        """Resident MB of the node's process and of its libp2p daemon."""
        below = self._node.children(recursive=True)
        return [self._node.memory_info().rss / MB, sum(one.memory_info().rss for one in below) / MB]

    @contextmanager
    def _chain_away(self) -> Iterator[None]:
        """The chain's process is stopped: it takes connections and says nothing."""
        chain = psutil.Process(self._net.child("chain").pid)
        chain.suspend()
        try:
            yield
        finally:
            chain.resume()


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """For the terminal; a list is of both sides of an attack."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [*map(short, value)]
        return round(value, 2) if isinstance(value, float) else value

    return {key: short(value) for key, value in figures.items()}


def plot(attacks: dict[str, dict[str, Any]]) -> Callable[[Any], None]:
    """Slowdown and growth by attacker."""

    def draw(axes: Any) -> None:
        figure = axes.figure
        axes.remove()
        left, right = figure.subplots(1, 2, sharey=True)
        names, places = list(attacks), range(len(attacks))
        for offset, key, colour, label in (
            (-0.2, "slowdown", "#0f766e", "beside a busy neighbour"),
            (0.2, "slowdown_alone", "#94a3b8", "alone"),
        ):
            left.barh(
                [place + offset for place in places],
                [attacks[name][key] for name in names],
                0.4,
                color=colour,
                label=f"against {label}",
            )
        left.axvline(1.25, color="#b45309", lw=1)
        left.set(yticks=list(places), yticklabels=names, xlabel="honest client: times slower")
        left.legend(fontsize=7)
        left.invert_yaxis()
        right.barh(list(places), [attacks[name]["growth_mb"] for name in names], color="#1d4ed8")
        right.axvline(50, color="#b45309", lw=1)
        right.set(xlabel="node's memory grown by, MB")

    return draw


def main() -> None:
    args = options(__doc__ or "", seconds=60.0, quick=0, only="")
    seconds = 6.0 if args.quick else args.seconds
    names = [args.only] if args.only else list(ATTACKS)
    if unknown := set(names) - ATTACKS.keys():
        sys.exit(f"there is no attack {unknown.pop()!r}: choose one of {', '.join(ATTACKS)}")
    with swarm(CHEAP) as net:
        payer, *others = funded_wallets(net, 1 + WALLETS)
        with crowd(net, [payer], 1, ("honest_process.py",)) as honest, attacker(net, others) as enemy:
            scene = Scene(net, honest, enemy, seconds)
            scene._measure(max(5.0, seconds / 2), False)  # routes known, caches warm
            attacks = {}
            for name in names:
                attacks[name] = one = scene.against(name)
                say(f"  {name}: {json.dumps(rounded(one))}", soft_wrap=True)
                if scene.failed:
                    say(f"  [red]failed: {scene.failed[-3:]}[/]")
    figures = {
        "slowdown_max": max(one["slowdown"] for one in attacks.values()),
        "slowdown_alone_max": max(one["slowdown_alone"] for one in attacks.values()),
        "failed": len(scene.failed),
        "growth_mb_max": max(one["growth_mb"] for one in attacks.values()),
        "daemon_growth_mb_max": max(one["daemon_growth_mb"] for one in attacks.values()),
        "seconds": seconds,
        "attacks": attacks,
        "failures": scene.failed[:50],
    }
    bounds = {"slowdown_max": Bound(most=1.25), "failed": Bound(most=0), "growth_mb_max": Bound(most=50)}
    finish("hostile", figures, bounds, args.json, plot(attacks))


if __name__ == "__main__":
    main()
