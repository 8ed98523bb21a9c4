"""`hivemint doctor`: is this machine fit to run a node or a client, and if not, what to do."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

from hivemint.cli.console import JsonFlag, NetworkOption, emit, out, run_async, shown
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.home import Home
from hivemint.protocol.network import Network

if TYPE_CHECKING:
    from hivemint.swarm.dht.clock import SwarmClock

LIBRARIES = ("torch", "transformers", "hivemind", "web3", "eth-account", "coincurve", "sqlalchemy", "msgspec")
NEEDED_DISK, NEEDED_MEMORY = 3 << 30, 2 << 30
GIB = 1 << 30


class Finding(msgspec.Struct, frozen=True):
    """One check: what was looked at, whether it is fine, what was found, and the next step if it is not."""

    check: str
    ok: bool
    found: str
    next_step: str = ""


def doctor(network: NetworkOption = None, as_json: JsonFlag = False) -> None:
    """Check libraries, memory, disk, home folder, the demo model, and with --network chain, clock and swarm."""
    findings = [finding for check in _checks(network) for finding in check()]
    if as_json:
        emit({"ok": all(one.ok for one in findings), "findings": findings})
    else:
        for one in findings:
            mark = "[green]ok[/]   " if one.ok else "[red]wrong[/]"
            out.print(f"{mark}  {one.check:<14} {shown(one.found)}", highlight=False)
            if one.next_step:
                out.print(f"       {'':<14} [dim]next: {shown(one.next_step)}[/]", highlight=False)
    if not all(one.ok for one in findings):
        sys.exit(1)


def _checks(network: Path | None) -> list[Callable[[], Iterator[Finding]]]:
    checks = [_python, _libraries, _machine, _home, _model]
    return checks if network is None else [*checks, lambda: _network(network)]


def _python() -> Iterator[Finding]:
    fine = sys.version_info >= (3, 11)
    yield Finding("python", fine, platform.python_version(), "" if fine else "install Python 3.11 or newer")


def _libraries() -> Iterator[Finding]:
    missing = []
    for name in LIBRARIES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES[:3] if name not in missing)
    found = f"missing: {', '.join(missing)}" if missing else versions
    yield Finding("libraries", not missing, found, "pip install hivemint" if missing else "")


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("processor", True, f"{cores} cores, {platform.machine()}")
    free = psutil.virtual_memory().available
    fine = free >= NEEDED_MEMORY
    step = "" if fine else "close other programs, or serve fewer blocks"
    yield Finding("memory", fine, f"{free / GIB:.1f} GiB free", step)
    yield _accelerator()


def _accelerator() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("accelerator", True, names)
    return Finding("accelerator", True, "none: blocks run on the processor")


def _home() -> Iterator[Finding]:
    home = Home.open()
    mode = home.keystores.stat().st_mode & 0o777
    yield Finding("home", mode == 0o700, f"{home.root} (keystores {mode:o})", "" if mode == 0o700 else "chmod 700")
    free = shutil.disk_usage(home.root).free
    fine = free >= NEEDED_DISK
    yield Finding("disk", fine, f"{free / GIB:.1f} GiB free", "" if fine else "make room, or move HIVEMINT_HOME")


def _model() -> Iterator[Finding]:
    from hivemint.model import local_models

    names = [model.name for model in local_models.installed(Home.open())]
    yield Finding("models", bool(names), ", ".join(names) or "none", "" if names else "hivemint model pull")


def _network(path: Path) -> Iterator[Finding]:
    try:
        network = Network.load(path)
    except HivemintError as error:
        yield Finding("network file", False, f"{error.what}: {error.why}".removesuffix(": "), error.next_step)
        return
    yield Finding("network file", True, f"{network.name}, chain {network.chain_id}")
    yield run_async(_chain(network))
    yield from run_async(_swarm(network))


async def _chain(network: Network) -> Finding:
    from hivemint.contracts.bindings import Bindings

    try:
        async with await Bindings.connect(network) as bindings:
            epoch = await bindings.emission.current_epoch()
            return Finding(
                "chain", True, f"{bindings.chain.shown}, block {await bindings.chain.block_number()}, epoch {epoch}"
            )
    except HivemintError as error:
        return Finding("chain", False, f"{error.what}: {error.why}", error.next_step)


async def _swarm(network: Network) -> list[Finding]:
    """The clock beside the chain's and the peers', and the blocks that are served."""
    from hivemint.cli.swarm import served, visiting

    try:
        async with visiting(network) as host:
            clock = _clock(host.clock)
            report = [await served(host, network, model.name) for model in network.models]
    except HivemintError as error:
        alone = _clock(await _beside_chain(network))
        return [alone, Finding("swarm", False, f"{error.what}: {error.why}", error.next_step)]
    gaps = [f"{one['model']} lacks {', '.join(one['missing'])}" for one in report if one["missing"]]  # type: ignore[arg-type]
    silent = [node["name"] for one in report for node in one["nodes"] if node["answers"] is False]  # type: ignore[attr-defined]
    gone = [f"{', '.join(silent)} listed, but not answering"] if silent else []
    found = "; ".join([*(gaps or [f"{len(report)} model(s), every block is served"]), *gone])
    return [clock, Finding("swarm", not gaps, found, "run a node for the missing blocks" if gaps else "")]


async def _beside_chain(network: Network) -> "SwarmClock":
    """Where no peer tells the time."""
    from hivemint.contracts.bindings import Bindings
    from hivemint.swarm.dht.clock import SwarmClock

    clock = SwarmClock()
    with suppress(HivemintError):
        async with await Bindings.connect(network) as bindings:
            clock.see_block(await bindings.chain.time())
    return clock


def _clock(clock: "SwarmClock") -> Finding:
    if trouble := clock.trouble():
        return Finding("clock", False, trouble, "let the system keep the time: timedatectl set-ntp true")
    compared = f"as that of {clock.votes} network(s) of peers" if clock.votes else "no peer has told its time"
    return Finding("clock", True, "; ".join(filter(None, (compared, clock.chain_note()))))
