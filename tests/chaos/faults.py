"""The faults of a run as they are done to its processes and links, each with its mending, counted by what it hit.

`Injector.strike` does one and comes back when it is over: the node is there again, the links carry, the chain answers.
A fault waits a little for somebody to be hurt (`BUSY_WITHIN`): one that nobody was near has shown nothing.
"""

import asyncio
import os
import random
import resource
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from chaos.clients import ClientProcess
from chaos.network import ChaosNet
from chaos.proxy import WELL, Spoilt
from chaos.schedule import Fault, Kind
from hivemint.protocol.errors import HivemintError
from hivemint.swarm.host import CONTROL
from hivemint.testnet.localnet import NodePlan
from support.thin_peer import ThinPeer

BUSY_WITHIN = 6.0
"""Seconds that a fault waits until its target has sessions."""
AFTER = 4.0
"""Seconds after a fault in which its node still counts as in trouble: until clients look into the directory again."""
GLANCE, STOOD_STILL = 0.1, 1.0
"""Seconds from look to look at the own clock, and what counts as having stood still."""
STARTS = 4
"""Times that a node is started, where its start fails for what else happens."""
ENDS_WITHIN = 40.0
_SPOILT = {
    Kind.SLOW: Spoilt("slow", 0.12, 200_000),
    Kind.CUT: Spoilt("cut"),
    Kind.HALF_OPEN: Spoilt("half_open"),
    Kind.GARBAGE: Spoilt("garbage"),
}


@dataclass
class Struck:
    """A fault that was done. `hit`: what was hurt by it, in numbers of `what`; 0 = nobody was near."""

    fault: Fault
    target: str
    hit: int
    what: str
    began: float
    ended: float = 0.0

    def __str__(self) -> str:
        return f"{self.fault.kind} at {self.target}: {self.hit} {self.what}, {self.ended - self.began:.1f} s"


@dataclass
class Trouble:
    """When which node, or the chain, could not be relied on: (from, to) by the monotonic clock."""

    spells: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def spell(self, *names: str) -> Iterator[None]:
        began = time.monotonic()
        for name in names:
            self._note(name, began, float("inf"))
        try:
            yield
        finally:
            for name in names:
                with self._lock:
                    self.spells[name].remove((began, float("inf")))
                self._note(name, began, time.monotonic() + AFTER)

    def _note(self, name: str, began: float, ended: float) -> None:
        with self._lock:
            self.spells.setdefault(name, []).append((began, ended))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Meanwhile it is noted when this very process stood still: then others did too, and nobody is to blame."""
        over = threading.Event()

        def watch() -> None:
            before = time.monotonic()
            while not over.wait(GLANCE):
                now = time.monotonic()
                if now - before > STOOD_STILL:
                    self._note("machine", before - AFTER, now + AFTER)
                before = now

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def at_once(self, names: list[str], began: float, ended: float) -> bool:
        """Whether at some moment between `began` and `ended` all of them were in trouble."""
        spells = {name: [(a, b) for a, b in self.spells.get(name, []) if a < ended and b > began] for name in names}
        edges = [began, *(start for those in spells.values() for start, _ in those if began < start)]
        return any(all(any(a <= moment < b for a, b in those) for those in spells.values()) for moment in edges)


class Injector:
    """Does faults to one network and its clients."""

    def __init__(self, net: ChaosNet, clients: dict[str, ClientProcess], folder: Path) -> None:
        self._net, self._clients, self._folder = net, clients, folder
        self.trouble = Trouble()
        self.done: list[Struck] = []
        self.undone: list[str] = []
        """What could not be mended: the run has failed."""
        self._starting = threading.Lock()

    def strike(self, fault: Fault) -> None:
        """Do it, wait, mend it; appended to `done`."""
        ways: dict[Kind, Callable[[Fault], Struck]] = {
            Kind.BLACKOUT: self._blackout,
            Kind.CHAIN_AWAY: self._chain,
            Kind.CHAIN_SILENT: self._chain,
            Kind.REORGANISED: self._reorganise,
            Kind.LEDGER_AWAY: self._ledger,
            Kind.CLIENT_KILLED: self._kill_client,
            Kind.GARBAGE_FRAMES: self._garbage_frames,
        }
        struck = ways.get(fault.kind, self._node)(fault)
        struck.ended = time.monotonic()
        self.done.append(struck)

    # --- nodes

    def _node(self, fault: Fault) -> Struck:
        plan, sessions = self._busiest(fault)
        ways: dict[Kind, Callable[[NodePlan, Fault], int]] = {
            Kind.KILLED: self._kill,
            Kind.DAEMON_KILLED: self._kill_daemon,
            Kind.STOPPED: self._stop,
            Kind.UNPLUGGED: self._unplug,
            Kind.DISK_FULL: self._fill,
        }
        struck = Struck(fault, plan.operator, sessions, "sessions", time.monotonic())
        with self.trouble.spell(plan.operator):
            if fault.kind in _SPOILT:
                struck.hit, struck.what = self._spoil(plan.operator, fault), "chunks or links"
            else:
                struck.hit = min(sessions, ways[fault.kind](plan, fault))
            self._alive_again(plan)
            self._in_use_again(plan)
        time.sleep(AFTER)
        return struck

    def _in_use_again(self, plan: NodePlan) -> None:
        """Until somebody has come back to it, or a while has passed: not all clients like it as well as its twin."""
        deadline = time.monotonic() + BUSY_WITHIN
        while self._net.open_sessions(plan) <= 0 and time.monotonic() < deadline:
            time.sleep(0.2)

    def _busiest(self, fault: Fault) -> tuple[NodePlan, int]:
        """The node of the fault's span with most sessions, as soon as one has any; ties by the draw."""
        span = int(fault.lane.removeprefix("span"))
        firsts = sorted({plan.first for plan in self._net.plans})
        twins = [plan for plan in self._net.plans if plan.first == firsts[span]]
        random.Random(fault.draw).shuffle(twins)
        deadline = time.monotonic() + BUSY_WITHIN
        while True:
            found = {plan.operator: self._net.open_sessions(plan) for plan in twins}
            chosen = max(twins, key=lambda plan: found[plan.operator])
            if found[chosen.operator] > 0 or time.monotonic() > deadline:
                return chosen, max(0, found[chosen.operator])
            time.sleep(0.1)

    def _kill(self, plan: NodePlan, fault: Fault) -> int:
        self._net.child(plan.operator).kill()
        time.sleep(fault.hold)
        return 1 << 30

    def _kill_daemon(self, plan: NodePlan, fault: Fault) -> int:
        """Without its daemon a node is nobody: it ends, and says why."""
        node = psutil.Process(self._net.child(plan.operator).pid)
        daemons = [one for one in node.children(recursive=True) if "p2pd" in one.name()]
        for daemon in daemons:
            daemon.kill()
        time.sleep(fault.hold)
        deadline = time.monotonic() + ENDS_WITHIN
        while self._net.child(plan.operator).alive and time.monotonic() < deadline:
            time.sleep(0.1)
        if self._net.child(plan.operator).alive:
            self.undone.append(f"{plan.operator} lives on without its daemon")
            self._net.child(plan.operator).kill()
        return len(daemons) * (1 << 30)

    def _stop(self, plan: NodePlan, fault: Fault) -> int:
        process = psutil.Process(self._net.child(plan.operator).pid)
        process.suspend()
        time.sleep(fault.hold)
        process.resume()
        return 1 << 30

    def _unplug(self, plan: NodePlan, fault: Fault) -> int:
        self._net.machines.plug(plan.operator, in_it=False)
        time.sleep(fault.hold)
        self._net.machines.plug(plan.operator, in_it=True)
        return 1 << 30

    def _spoil(self, name: str, fault: Fault) -> int:
        spoilt = _SPOILT[fault.kind]
        before = self._net.proxies.count(name, spoilt.kind)
        self._net.proxies.spoil(name, spoilt)
        time.sleep(fault.hold)
        self._net.proxies.spoil(name, WELL)
        return self._net.proxies.count(name, spoilt.kind) - before

    def _fill(self, plan: NodePlan, fault: Fault) -> int:
        """Every byte of its disk; where it has none of its own, no file of the process can grow."""
        folder = self._net.home.node(plan.operator)
        if plan.operator in self._net.disks:
            with _filled(folder):
                time.sleep(fault.hold)
            return 1 << 30
        process = psutil.Process(self._net.child(plan.operator).pid)
        usual = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (0, usual[1]))
        time.sleep(fault.hold)
        with suppress(psutil.NoSuchProcess):  # it has ended, as it may
            process.rlimit(resource.RLIMIT_FSIZE, usual)
        return 1 << 30

    def _blackout(self, fault: Fault) -> Struck:
        """All nodes of a span are stopped: who needs it may end, and says so."""
        plan, _ = self._busiest(fault)
        twins = [one for one in self._net.plans if one.first == plan.first]
        sessions = sum(max(0, self._net.open_sessions(one)) for one in twins)
        struck = Struck(fault, f"blocks {plan.blocks}", sessions, "sessions", time.monotonic())
        with self.trouble.spell(*(one.operator for one in twins)):
            processes = [psutil.Process(self._net.child(one.operator).pid) for one in twins]
            for process in processes:
                process.suspend()
            time.sleep(fault.hold)
            for process in processes:
                process.resume()
            for one in twins:
                self._alive_again(one)
        time.sleep(AFTER)
        return struck

    def _alive_again(self, plan: NodePlan) -> None:
        """Started if it has ended; then until it answers."""
        for attempt in range(STARTS):
            if not self._net.child(plan.operator).alive:
                self._start(plan, last=attempt == STARTS - 1)
            deadline = time.monotonic() + ENDS_WITHIN
            while self._net.child(plan.operator).alive and time.monotonic() < deadline:
                if self._net.open_sessions(plan) >= 0:
                    return
                time.sleep(0.1)
        self.undone.append(f"{plan.operator} does not come back")

    def _start(self, plan: NodePlan, *, last: bool) -> None:
        log = Path(self._net.child(plan.operator).log)
        kept = self._folder / f"{plan.operator}-{secrets.token_hex(3)}.log"
        with suppress(OSError):
            kept.write_text(log.read_text())
        try:
            with self._starting:  # the list of children is one for all lanes
                asyncio.run(self._net.start_node(plan))
        except HivemintError as error:
            if last:
                self.undone.append(f"{plan.operator} does not start: {error.why}")

    # --- the rest of the world

    def _chain(self, fault: Fault) -> Struck:
        """Its endpoint hangs up, or takes questions and never answers."""
        kind = "cut" if fault.kind is Kind.CHAIN_AWAY else "half_open"
        before = self._net.proxies.count("chain", kind)
        struck = Struck(fault, "chain", 0, "questions", time.monotonic())
        with self.trouble.spell("chain"):
            self._net.proxies.spoil("chain", Spoilt(kind))
            time.sleep(fault.hold)
            self._net.proxies.spoil("chain", WELL)
        struck.hit = self._net.proxies.count("chain", kind) - before
        return struck

    def _reorganise(self, fault: Fault) -> Struck:
        """What is mined meanwhile never was: settlements of nodes, as a rule."""
        chain, struck = self._net.dev, Struck(fault, "chain", 0, "transactions undone", time.monotonic())
        began = int(chain.rpc("eth_blockNumber"), 16)
        before = chain.snapshot()
        deadline = time.monotonic() + fault.hold + 2 * BUSY_WITHIN
        time.sleep(fault.hold)
        while not self._transactions(began) and time.monotonic() < deadline:
            time.sleep(0.3)
        struck.hit = self._transactions(began)
        with self.trouble.spell("chain"):
            chain.revert(before)
            chain.mine(2)
        return struck

    def _transactions(self, since: int) -> int:
        chain = self._net.dev
        newest = int(chain.rpc("eth_blockNumber"), 16)
        blocks = [chain.rpc("eth_getBlockByNumber", hex(number), False) for number in range(since + 1, newest + 1)]
        return sum(len(block["transactions"]) for block in blocks if block)

    def _ledger(self, fault: Fault) -> Struck:
        """Kill -9, and again with the index that it had. Hit: the blocks that it has missed."""
        began = int(self._net.dev.rpc("eth_blockNumber"), 16)
        struck = Struck(fault, "ledger", 0, "blocks missed", time.monotonic())
        self._net.child("ledger").kill()
        time.sleep(fault.hold)
        struck.hit = int(self._net.dev.rpc("eth_blockNumber"), 16) - began
        for attempt in range(STARTS):
            try:
                with self._starting:
                    asyncio.run(self._net.start_ledger())
            except HivemintError as error:
                if attempt == STARTS - 1:
                    self.undone.append(f"the ledger does not start: {error.why}")
            else:
                break
        return struck

    def _kill_client(self, fault: Fault) -> Struck:
        name = random.Random(fault.draw).choice(sorted(self._clients))
        client = self._clients[name]
        lines = client.results()
        under_way = sum("began" in line for line in lines) - sum("ended" in line for line in lines)
        struck = Struck(fault, name, under_way, "texts under way", time.monotonic())
        client.kill()
        time.sleep(fault.hold)
        client.start_again()
        return struck

    def _garbage_frames(self, fault: Fault) -> Struck:
        """A stranger pours noise into control links of a node, which goes on for others."""
        plan = random.Random(fault.draw).choice(self._net.plans)
        struck = Struck(fault, plan.operator, 0, "links", time.monotonic())
        ready = self._net.child(plan.operator).ready
        struck.hit = asyncio.run(_pour(str(ready["addresses"][0]), self._net.network.name, fault.draw))
        return struck


async def _pour(address: str, network: str, seed: int) -> int:
    """Noise instead of frames, and frames with noise in them; how many links took it."""
    dice, taken = random.Random(seed), 0
    for turn in range(8):
        with suppress(HivemintError, OSError, TimeoutError):
            async with asyncio.timeout(10):
                peer = await ThinPeer.connect(address)
                try:
                    link = await peer.link(CONTROL, network)
                    noise = dice.randbytes(200)
                    kind = bytes((dice.randrange(40),))
                    frame = noise if turn % 2 else (len(noise) + 1).to_bytes(4, "big") + kind + noise
                    await link.pour(frame)
                    taken += 1
                    with suppress(HivemintError, TimeoutError):
                        async with asyncio.timeout(1):
                            await link.receive()
                finally:
                    await peer.close()
    return taken


@contextmanager
def _filled(folder: Path) -> Iterator[None]:
    """Not a byte is left on the disk of `folder`."""
    filler = folder / "filler"
    try:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while file.write(os.urandom(size)) == size:
                        pass
        yield
    finally:
        filler.unlink(missing_ok=True)
