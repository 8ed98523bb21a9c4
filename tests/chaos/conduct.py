"""One run: the network comes up, clients work, faults strike by the schedule, and in the end everything is checked.

    python -m chaos.conduct --seed N --profile short|long --folder DIR [--tag NAMESPACES]

Prints what was done and what is wrong; exit 1 if anything is. The same seed is the same schedule. With `--tag` it runs
in the hub of namespaces that are there (`machines`).
"""

import argparse
import asyncio
import contextlib
import json
import resource
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from chaos import invariants
from chaos.clients import ClientProcess
from chaos.faults import Injector
from chaos.job import Job
from chaos.machines import Machines
from chaos.network import PLACES, ChaosNet, fund, minted
from chaos.proxy import Proxies
from chaos.schedule import CLIENTS, LONG, SHORT, Kind, Profile, Schedule, draw
from chaos.tiny import write_model
from hivemint.model.local_models import LocalModel
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Credits
from hivemint.protocol.signing import Signer
from hivemint.testnet.localnet import Layout

PROFILES = {"short": SHORT, "long": LONG}
NODES = (("HIVEMINT_ASK", "1 wei"), ("HIVEMINT_SETTLE_EVERY", "2"))
GRANT = Credits(10**9)
SETTINGS = {"set_aside": 2.0, "open_timeout": 8.0, "step_timeout": 20.0, "patience": 60.0, "replay_margin": 20.0}
READY, LAST = 150.0, 200.0
"""Seconds for a client to start, and to end what is under way as the time is over."""


@dataclass
class Report:
    """What a run was and what is wrong. `unhurt`: kinds of faults that never hit anything."""

    seed: int
    profile: str
    apart: bool
    faults: list[str] = field(default_factory=list)
    traffic: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    unhurt: list[str] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.profile}, {'namespaces' if self.apart else 'one machine'}"]
        lines += [f"  {line}" for line in self.faults]
        lines.append(f"  asked for: {json.dumps(self.traffic)}; seconds: {json.dumps(self.times)}")
        lines += [f"  NEVER HIT ANYBODY: {kind}" for kind in self.unhurt]
        lines += [f"  WRONG: {line}" for line in self.wrong]
        if self.wrong:
            lines.append(f"  the same again: make chaos SEED={self.seed}")
        return "\n".join(lines)


class World:
    """A network that is up, and its clients. A context manager: all of it is gone in the end."""

    def __init__(self, folder: Path, tag: str, schedule: Schedule) -> None:
        self.folder, self.schedule = folder, schedule
        self.machines = Machines(tag, PLACES)
        self.wallets = {"payer": Signer(secrets.token_bytes(32))}
        self.clients: dict[str, ClientProcess] = {}
        self._stack = ExitStack()
        self.net: ChaosNet

    def __enter__(self) -> "World":
        with ExitStack() as stack:
            proxies = stack.enter_context(Proxies(self.machines.hub))
            folder = write_model(self.folder / "tiny")
            model = LocalModel("tiny", folder, Home.open(self.folder / "models"))
            self.net = ChaosNet(self.folder / "net", model, self.machines, proxies, stack)
            stack.callback(self._end_clients)
            stack.callback(self.net.down)
            self.net.written = lambda: self._start_clients(folder)
            asyncio.run(self.net.up(Layout(settings=NODES), _say))
            asyncio.run(self._fund())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_clients(self, model: Path) -> None:
        for name in CLIENTS:
            self.clients[name] = ClientProcess(self._job(name, model), self.folder, self.machines)

    def _job(self, name: str, model: Path) -> Job:
        wallet = self.wallets.get(name)
        return Job(
            name,
            str(self.net.network_file),
            str(model),
            str(self.folder / name),
            wallet.secret().hex() if wallet else "",
            {**SETTINGS, "bid": "ask" if wallet else "free"},
            [list(items) for items in self.schedule.traffic[name]],
            str(self.folder / f"{name}.results"),
        )

    async def _fund(self) -> None:
        guest = self.clients["guest"]

        def donate() -> None:
            guest.wait("ready", READY)
            guest.tell("donate")
            guest.wait("donated", READY)

        _say("first credits")
        await minted(self.net, donate)
        await fund(self.net, list(self.wallets.values()), GRANT)
        await asyncio.to_thread(self.clients["payer"].wait, "ready", READY)

    def _end_clients(self) -> None:
        for client in self.clients.values():
            if client.process.poll() is None:
                client.kill()


class Conductor:
    """Lets a schedule happen in a world, and checks."""

    def __init__(self, world: World, report: Report) -> None:
        self.world, self.report = world, report
        self.injector = Injector(world.net, world.clients, world.folder)

    def play(self) -> None:
        """Traffic until all faults are over, and a little of both lanes on what they have left."""
        began = time.monotonic()
        for client in self.world.clients.values():
            client.tell("go")
        with self.injector.trouble.watching():
            lanes = [threading.Thread(target=self._lane, args=(name, began)) for name in self.world.schedule.lanes]
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.join()
            time.sleep(max(0.0, began + self.world.schedule.profile.seconds - time.monotonic()))
            for client in self.world.clients.values():
                client.tell("stop")
            for client in self.world.clients.values():
                self._stopped(client)

    def _lane(self, name: str, began: float) -> None:
        last = began + self.world.schedule.profile.latest
        for fault in self.world.schedule.lane(name):
            time.sleep(max(0.0, began + fault.at - time.monotonic()))
            if time.monotonic() > last:
                return
            self.injector.strike(fault)
            if fault.kind is Kind.CLIENT_KILLED:
                killed = self.world.clients[self.injector.done[-1].target]
                with contextlib.suppress(TimeoutError, RuntimeError):
                    killed.wait("ready", READY)
                    killed.tell("go")

    def _stopped(self, client: ClientProcess) -> None:
        try:
            client.wait("stopped", LAST)
            client.end()
        except (TimeoutError, RuntimeError) as error:
            self.report.wrong.append(str(error))
            if client.process.poll() is None:
                client.kill()

    def check(self) -> None:
        """All that must hold while the network is still up."""
        world, injector, wrong = self.world, self.injector, self.report.wrong
        clients = list(world.clients.values())
        self.report.faults = [str(one) for one in sorted(injector.done, key=lambda one: one.began)]
        self.report.traffic = invariants.count_of(clients)
        self.report.unhurt = invariants.not_hit(world.schedule, injector.done)
        kills = {
            name: sum(one.hit for one in injector.done if one.fault.kind is Kind.CLIENT_KILLED and one.target == name)
            for name in world.clients
        }
        wrong += injector.undone
        wrong += invariants.answers(world.net, clients, injector.trouble, kills)
        wrong += invariants.rooms(world.net)
        wrong += invariants.daemons(world.net)
        self._end_nodes()
        asyncio.run(invariants.settle(world.net))
        homes = {name: (wallet, world.folder / name) for name, wallet in world.wallets.items()}
        broken = sum(one.hit > 0 for one in injector.done)
        found, standings = invariants.money(world.net, homes, broken)
        wrong += [*found, *invariants.bills(clients, standings), *invariants.receipts(world.net)]
        wrong += invariants.index(world.net, world.folder)
        wrong += invariants.logs(world.folder)

    def _end_nodes(self) -> None:
        """In good order. What a reorganisation has undone they would settle again ten minutes later."""
        children = [self.world.net.child(plan.operator) for plan in self.world.net.plans]
        with ThreadPoolExecutor(len(children)) as pool:
            list(pool.map(lambda child: child.stop(40.0), children))


def run(seed: int, name: str, folder: Path, tag: str = "") -> Report:
    """One whole run."""
    profile: Profile = PROFILES[name]
    report = Report(seed, name, bool(tag))
    with _timed(report, "all"), ExitStack() as stack:
        with _timed(report, "up"):
            world = stack.enter_context(World(folder, tag, draw(seed, profile, apart=bool(tag))))
        with stack:
            conductor = Conductor(world, report)
            with _timed(report, "played"):
                conductor.play()
            with _timed(report, "checked"):
                conductor.check()
        report.wrong += invariants.nobody(folder)
    return report


@contextmanager
def _timed(report: Report, what: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        report.times[what] = round(time.monotonic() - began, 1)
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        report.times["cpu"] = round(sum(one.ru_utime + one.ru_stime for one in used), 1)
        _say(f"{what}: {report.times[what]} s")


def _say(what: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    sys.stderr.flush()


def arguments() -> argparse.ArgumentParser:
    """What every run is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tag", default="")
    return parser


def main() -> int:
    parser = arguments()
    parser.add_argument("--profile", choices=sorted(PROFILES), default="short")
    given = parser.parse_args()
    report = run(given.seed, given.profile, given.folder, given.tag)
    sys.stdout.write(f"{report}\n")
    return bool(report.wrong)


if __name__ == "__main__":
    sys.exit(main())
