"""Processes that a local testnet starts and ends: each with a log file, known by pid and start time.

A pid alone can belong to somebody else after a restart, so nothing is ever ended whose start time differs.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from hivemint.protocol.errors import HivemintError

GRACE = 15.0
"""Seconds that a process has to drain before it is killed."""
_launched: list[subprocess.Popen[bytes]] = []
"""Those that still ran when the last one was launched: one that nobody holds any more warns of itself."""


class Child(msgspec.Struct, frozen=True):
    """One process. `started` is the system's own start time of that pid; `ready` is what its ready line said."""

    name: str
    pid: int
    started: float
    log: str
    ready: dict[str, Any] = {}

    @property
    def alive(self) -> bool:
        return self._process() is not None

    def _process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 0.5
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def stop(self, grace: float = GRACE) -> None:
        """SIGTERM, then after `grace` seconds SIGKILL. Does nothing to a process that is not this one any more."""
        process = self._process()
        if process is None:
            return
        below = process.children(recursive=True)
        process.terminate()
        _, left = psutil.wait_procs([process], timeout=grace)
        _, orphans = psutil.wait_procs(below, timeout=1.0)
        for survivor in [*left, *orphans]:
            survivor.kill()

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if process := self._process():
            process.kill()
            psutil.wait_procs([process], timeout=5.0)


def hivemint(*words: str) -> list[str]:
    """The command line of a `hivemint` verb in this very environment."""
    return [sys.executable, "-m", "hivemint.cli.main", *words]


def launch(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Child:
    """Start a process in a session of its own (a Ctrl-C at the terminal does not reach it), output into `log`."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    _launched[:] = [one for one in (*_launched, process) if one.poll() is None]
    return Child(name, process.pid, psutil.Process(process.pid).create_time(), str(log))


def adopt(name: str, pid: int, log: Path) -> Child:
    """A process that something else started."""
    return Child(name, pid, psutil.Process(pid).create_time(), str(log))


def wait_ready(child: Child, within: float) -> Child:
    """Wait for the log's line `{"event": "ready", ...}`. Raises HivemintError with the end of the log otherwise."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        alive = child.alive
        for line in Path(child.log).read_text(errors="replace").splitlines():
            if fields := _ready(line):
                return msgspec.structs.replace(child, ready=fields)
        if not alive:
            raise HivemintError(f"{child.name} ended while it started", why=_tail(child), next_step=f"see {child.log}")
        time.sleep(0.05)
    raise HivemintError(
        f"{child.name} was not ready after {within:.0f} s", why=_tail(child), next_step=f"see {child.log}"
    )


def _ready(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and fields.get("event") == "ready" else None


def _tail(child: Child) -> str:
    lines = [line for line in Path(child.log).read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-600:] or "its log is empty"
