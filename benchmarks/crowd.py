"""Client processes that all start at the same moment, and the CPU time that the nodes spend on them."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import psutil

from hivemint.protocol.signing import Signer


@dataclass
class Crowd:
    """`len(processes)` client processes with their sessions."""

    processes: "list[subprocess.Popen[str]]"
    sessions: int

    def run(self, prompt: int, new_tokens: int) -> float:
        """All sessions at once; seconds from the first start to the last end."""
        answers = self.ask([{"prompt": prompt, "new_tokens": new_tokens}] * len(self.processes))
        return float(max(answer["ended"] for answer in answers) - min(answer["began"] for answer in answers))

    def ask(self, tasks: Sequence[Any]) -> list[Any]:
        """A task for each process; their answers, when all have them."""
        self.tell(tasks)
        return self.hear()

    def tell(self, tasks: Sequence[Any]) -> None:
        for process, task in zip(self.processes, tasks, strict=True):
            write_line(process, task)

    def hear(self) -> list[Any]:
        return [read_line(process) for process in self.processes]

    def cpu_s(self) -> float:
        return sum(tree_cpu_s(process.pid) for process in self.processes)


@contextmanager
def crowd(
    net: Any, wallets: Sequence[Signer], processes: int, script: Sequence[str] = ("client_process.py",)
) -> Iterator[Crowd]:
    """The wallets shared out over client processes, which are ready when this returns. `script`: and its arguments."""
    started = []
    path = Path(__file__).parent / script[0]
    try:
        for index in range(processes):
            process = subprocess.Popen(
                [sys.executable, str(path), *script[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            keys = [wallet.secret().hex() for wallet in wallets[index::processes]]
            write_line(process, {"network": str(net.network_file), "keys": keys, "seed": 100 * index})
        for process in started:
            read_line(process)
        yield Crowd(started, len(wallets))
    finally:
        for process in started:
            cast(IO[str], process.stdin).close()
        for process in started:
            process.wait(60)


def tree_cpu_s(pid: int) -> float:
    """User and system seconds of a process and its children so far."""
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def nodes_cpu_s(net: Any) -> float:
    return sum(tree_cpu_s(net.child(plan.operator).pid) for plan in net.plans)


def write_line(process: "subprocess.Popen[str]", document: Any) -> None:
    pipe = cast(IO[str], process.stdin)
    pipe.write(json.dumps(document) + "\n")
    pipe.flush()


def read_line(process: "subprocess.Popen[str]") -> Any:
    line = cast(IO[str], process.stdout).readline()
    if not line:
        raise RuntimeError("a client process ended; its error stands above")
    return json.loads(line)
