"""The client processes of a run, as the conductor holds them: words in, lines of JSON out, killed and started anew."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from chaos.job import Job
from chaos.machines import Machines

STARTS_WITHIN = 120.0


class ClientProcess:
    """One client. `lives`: how often it was started; `ended`: what each life that ended well said of its sums."""

    def __init__(self, job: Job, folder: Path, machines: Machines) -> None:
        self.job, self._folder, self._machines = job, folder, machines
        self.lives = 0
        self.ended: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.process: subprocess.Popen[str] = self._launch()

    @property
    def log(self) -> Path:
        return self._folder / f"{self.job.name}.log"

    def start_again(self) -> None:
        """After a kill; with the same books, and what it has not begun yet."""
        self._close_pipes()
        self.process = self._launch()

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def wait(self, event: str, within: float) -> dict[str, Any]:
        """Its next line of this kind. Raises TimeoutError, RuntimeError where the process has ended instead."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                line = self._lines.get(timeout=0.2)
            except queue.Empty:
                if self.process.poll() is not None and self._lines.empty():
                    raise RuntimeError(f"{self.job.name} ended by itself: {self._tail()}") from None
                continue
            if line["event"] == event:
                return line
        raise TimeoutError(f"{self.job.name} said no {event!r} within {within:.0f} s")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, within: float = 60.0) -> None:
        """In good order; what it then says of its sums is kept."""
        self.tell("end")
        self.ended.append(self.wait("ended", within))
        self.process.wait(30)
        self._close_pipes()

    def results(self) -> list[dict[str, Any]]:
        """All lines so far; the last one may be cut off where the process was killed."""
        path = Path(self.job.results)
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def tree(self) -> list[psutil.Process]:
        """The process and those below it, its libp2p daemon that is."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def _launch(self) -> "subprocess.Popen[str]":
        self.lives += 1
        path = self.job.write(self._folder / f"{self.job.name}.json")
        words = [*self._machines.enter(self.job.name), sys.executable, "-m", "chaos.traffic", str(path)]
        with self.log.open("a") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, "HIVEMINT_HOME": self.job.home, "OMP_NUM_THREADS": "1"},
            )
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                self._lines.put(json.loads(line))

    def _tail(self) -> str:
        return self.log.read_text()[-1500:]

    def _close_pipes(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
