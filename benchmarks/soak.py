"""300 sessions open at once for eight minutes of steps, opens, closes, cancels and killed clients: does anything grow?

    python benchmarks/soak.py [--json FILE] [--seconds 480] [--sessions 300] [--quick 1]

Two nodes of the demo model, three client processes that share the sessions, and a fourth one with a few more that is
killed (SIGKILL) and started anew the whole time. Every two seconds resident memory, open descriptors and threads of
each lasting process: both nodes, the lasting clients, and the libp2p daemons of both. Before the eight minutes lie more
than five of warm-up, the first four of them with three times as many sessions at work: allocators and Go's runtime
reach their level in that time, and the plot shows it. Go keeps every thread that it ever needed at once, parked on a
futex, so its threads are a record of how many were held up in the kernel together: what a calmer time adds to the
record of a crowded one is growth. Then, for the nodes together, the clients together and the daemons together (a daemon
has nine threads: one more would be 11 %), the median of the first fifth is compared with that of the last fifth, of
looks at the same moment of the killed client's life: when all its sessions are open, as each is a descriptor or two of
the nodes:

    memory_growth_max, descriptors_growth_max, threads_growth_max    the worst of the three, as a share (0.02 = 2 %)
    failed         requests that failed in clients that were not killed, after the crowded time; `failed_crowded`: in it
    sessions_open  of the lasting clients, at the end
    left_behind    processes, files and sockets that are still there when the network is down

Files are looked for in a temporary folder that all processes are given; processes by that folder in their environment.
"""

import itertools
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import psutil
from crowd import read_line, write_line
from harness import Bound, finish, options, swarm
from paying import CHEAP, funded_wallets
from rich.console import Console

from hivemint.protocol.signing import Signer

CLIENTS, WALLETS_EACH = 3, 4
VICTIM_SESSIONS, VICTIM_LIVES = 8, (2.0, 14.0)
"""Of the client that is killed: its sessions, and the seconds of work before that."""
VICTIM_WORKS = 15.0
AT_WORK, CROWDED = 4, 12
"""Sessions of a client that are at work at the same time, and in the crowded time."""
ROOM = {"HIVEMINT_MAX_SESSIONS": "512"}
EVERY = 2.0
WARM_UP, WINDOW, CROWDED_SHARE = 0.4, 0.2, 0.3
"""Shares of the time: the warm-up, of what is left each of the two windows that are compared; the crowded time."""
CACHES = ("tsx-", "node-compile-cache", "torchinductor")
MEASURES = ("memory", "descriptors", "threads")
say = Console(stderr=True).print


@dataclass
class Client:
    """A client process."""

    process: "subprocess.Popen[str]"
    open: int = 0

    @classmethod
    def start(cls, net: Any, wallets: list[Signer], sessions: int, seed: int) -> "Client":
        path = Path(__file__).with_name("soak_process.py")
        process = subprocess.Popen(
            [sys.executable, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        keys = [wallet.secret().hex() for wallet in wallets]
        write_line(process, {"network": str(net.network_file), "keys": keys, "sessions": sessions, "seed": seed})
        return cls(process)

    def wait_ready(self) -> None:
        answer = read_line(self.process)
        self.open = answer["ready"]
        if answer["failed"].keys() - {"opened", "steps"}:
            say(f"  [red]while the sessions were opened: {answer['failed']}[/]")

    def work(self, seconds: float, at_once: int = AT_WORK) -> None:
        """Once it has done what it was told before."""
        write_line(self.process, {"seconds": seconds, "at_once": at_once})

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            cast(IO[str], pipe).close()

    def stop(self) -> None:
        cast(IO[str], self.process.stdin).close()
        self.process.wait(120)


class Victim:
    """A client that is killed in the middle of its work and started anew, in a thread, until `stop`.

    `at_work`: all its sessions are open, and it has not been killed yet.
    """

    def __init__(self, net: Any, wallets: list[Signer]) -> None:
        self._net, self._wallets, self._dice, self._over = net, wallets, random.Random(5), threading.Event()
        self.kills, self.at_work = 0, False
        self._thread = ThreadPoolExecutor(1)
        self._life = self._thread.submit(self._live)

    def stop(self) -> None:
        """The last one ends in good order: who starts sweeps away what killed ones have left."""
        self._over.set()
        self._life.result()
        self._thread.shutdown()

    def _live(self) -> None:
        for seed in itertools.count(100):
            client = Client.start(self._net, self._wallets, VICTIM_SESSIONS, seed)
            client.wait_ready()
            client.work(VICTIM_WORKS)
            self.at_work = True
            over = self._over.wait(self._dice.uniform(*VICTIM_LIVES))
            self.at_work = False
            if over:
                client.stop()
                break
            client.kill()
            self.kills += 1


@dataclass
class Watched:
    """A lasting process, and what it used at each look."""

    process: psutil.Process
    samples: dict[str, list[float]] = field(default_factory=lambda: {measure: [] for measure in MEASURES})

    def look(self) -> None:
        with self.process.oneshot():
            self.samples["memory"].append(self.process.memory_info().rss)
            self.samples["descriptors"].append(self.process.num_fds())
            self.samples["threads"].append(self.process.num_threads())


def growth(samples: list[float], alike: list[bool]) -> dict[str, float]:
    """Medians of the first and last windows after the warm-up, and by which share it grew. Of each window those looks
    count that are `alike`; all of them where none is.
    """
    warm = int(len(samples) * WARM_UP)
    looks = list(zip(samples, alike, strict=True))[warm:]
    width = max(1, int(len(looks) * WINDOW))
    first, last = (
        statistics.median([sample for sample, counts in window if counts] or [sample for sample, _ in window])
        for window in (looks[:width], looks[-width:])
    )
    return {"first": first, "last": last, "growth": last / first - 1}


def kind_of(name: str) -> str:
    """Of a process in `watched`."""
    return "daemons" if " daemon" in name else "clients" if name.startswith("client") else "nodes"


def together(processes: dict[str, Watched], kind: str, measure: str) -> list[float]:
    """The sum over all processes of a kind, at each look."""
    series = [one.samples[measure] for name, one in processes.items() if kind_of(name) == kind]
    return [sum(at_once) for at_once in zip(*series, strict=True)]


def watched(net: Any, clients: list[Client]) -> dict[str, Watched]:
    """Nodes and clients, and the daemon below each."""
    roots = {plan.operator: psutil.Process(net.child(plan.operator).pid) for plan in net.plans}
    roots |= {f"client-{number}": psutil.Process(client.process.pid) for number, client in enumerate(clients, 1)}
    found = {}
    for name, root in roots.items():
        found[name] = Watched(root)
        daemons = [one for one in root.children(recursive=True) if "p2pd" in one.name()]
        for number, daemon in enumerate(daemons):
            found[f"{name} daemon{f' {number + 1}' if number else ''}"] = Watched(daemon)
    return found


def soak(net: Any, sessions: int, seconds: float) -> dict[str, Any]:
    wallets = funded_wallets(net, WALLETS_EACH * CLIENTS + 1)
    shares = [sessions // CLIENTS + (number < sessions % CLIENTS) for number in range(CLIENTS)]
    clients = [Client.start(net, wallets[1 + number :: CLIENTS], share, number) for number, share in enumerate(shares)]
    victim = None
    try:
        for client in clients:
            client.wait_ready()
        say(f"  {sum(client.open for client in clients)} sessions are open")
        victim = Victim(net, wallets[:1])
        processes = watched(net, clients)
        crowded = seconds * CROWDED_SHARE
        for client in clients:
            client.work(crowded, CROWDED)
            client.work(seconds - crowded)
        end, alike = time.monotonic() + seconds, []
        while (now := time.monotonic()) < end:
            before, kills = victim.at_work, victim.kills
            for one in processes.values():
                one.look()
            alike.append(before and victim.at_work and victim.kills == kills)
            time.sleep(max(0.0, now + EVERY - time.monotonic()))
        first, done = Counter[str](), Counter[str]()
        for client in clients:
            first.update(read_line(client.process))
            done.update(read_line(client.process))
    finally:
        for client in clients:
            client.stop()
        if victim is not None:
            victim.stop()
    return figures_of(processes, alike, done, victim.kills) | {"failed_crowded": sum(_failed(first).values())}


def figures_of(processes: dict[str, Watched], alike: list[bool], done: Counter[str], kills: int) -> dict[str, Any]:
    kinds = {
        kind: {measure: growth(together(processes, kind, measure), alike) for measure in MEASURES}
        for kind in ("nodes", "clients", "daemons")
    }
    failed = _failed(done)
    return {
        **{f"{measure}_growth_max": max(one[measure]["growth"] for one in kinds.values()) for measure in MEASURES},
        "failed": sum(failed.values()),
        "sessions_open": done["open"],
        "kills": kills,
        "looks": len(alike),
        "looks_alike": sum(alike),
        **{what: done[what] for what in ("steps", "opened", "cancelled")},
        "failures": failed,
        "growth": kinds,
        "growth_each": {
            name: {measure: growth(one.samples[measure], alike) for measure in MEASURES}
            for name, one in processes.items()
        },
        "samples": {name: one.samples for name, one in processes.items()},
    }


def _failed(done: Counter[str]) -> dict[str, int]:
    return {what: count for what, count in done.items() if what.startswith("failed")}


# ---- nothing is left


@contextmanager
def own_temporary_folder() -> Iterator[Path]:
    """All processes from here on keep their temporary files there."""
    before = os.environ.get("TMPDIR")
    folder = Path(tempfile.mkdtemp(prefix="hm-soak-"))
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
    try:
        yield folder
    finally:
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def left_behind(folder: Path, within: float = 20.0) -> list[str]:
    """Processes, files and sockets that have to do with `folder`, once nothing more goes away."""
    deadline = time.monotonic() + within
    while (left := _left(folder)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def _left(folder: Path) -> list[str]:
    """All of it, but for what the development chain's own tools keep for their next run."""
    files = [path.relative_to(folder) for path in folder.rglob("*")]
    left = [f"file {path}" for path in files if not path.parts[0].startswith(CACHES)]
    sockets = Path("/proc/net/unix").read_text().splitlines()
    left += [f"socket {line.split()[-1]}" for line in sockets if str(folder) in line]
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("TMPDIR") == str(folder) and process.pid != os.getpid()
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"process {process.pid} {' '.join(process.cmdline())[:80]}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return left


def plot(samples: dict[str, dict[str, list[float]]]) -> Callable[[Any], None]:
    """Each process' measures over time, as a share of what they were when warm."""

    def draw(axes: Any) -> None:
        figure = axes.figure
        axes.remove()
        for side, measure in zip(figure.subplots(1, 3, sharey=True), MEASURES, strict=True):
            for name, its in samples.items():
                series = its[measure]
                warm = series[int(len(series) * WARM_UP) :]
                base = statistics.median(warm[: max(1, int(len(warm) * WINDOW))])
                side.plot(
                    [EVERY * at / 60 for at in range(len(series))], [value / base for value in series], label=name, lw=1
                )
            side.set(title=measure, xlabel="minutes", ylim=(0.8, 1.2))
            side.axhline(1.02, color="#b45309", lw=0.7)
        figure.axes[0].legend(fontsize=5)

    return draw


def main() -> None:
    args = options(__doc__ or "", seconds=480.0, sessions=300, quick=0)
    seconds, sessions = (24.0, 15) if args.quick else (args.seconds, args.sessions)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with own_temporary_folder() as folder:
        with swarm(CHEAP | ROOM) as net:
            figures = soak(net, sessions, seconds / (1 - WARM_UP))
        left = left_behind(folder)
    for name, measures in figures["growth"].items():
        seen = ", ".join(f"{key} {its['first']:.0f} to {its['last']:.0f}" for key, its in measures.items())
        say(f"  {name}: {seen}", soft_wrap=True)
    say(f"  failures: {figures['failures']}; left behind: {left}")
    figures = {"seconds": seconds, "sessions": sessions, "left_behind": len(left), **figures, "left": left}
    bounds = {f"{measure}_growth_max": Bound(most=0.02) for measure in MEASURES}
    bounds |= {"failed": Bound(most=0), "left_behind": Bound(most=0), "sessions_open": Bound(least=sessions)}
    finish("soak", figures, bounds, args.json, plot(figures["samples"]))


if __name__ == "__main__":
    main()
