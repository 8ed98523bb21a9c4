"""Seeds one fault at a time into a copy of the sources and runs the tests that must see it: each must be caught.

Usage, in tests/: python -m mutants.run [part of a name or file ...]    (`make mutants` runs all, the contracts' first)

First the tests are run on the sources as they are. Exit 1 if that fails, or if a fault is missed, has lost its place in
the source, or keeps its tests busy for longer than `PATIENCE`. Libraries are imported once, and each run is a fork.
"""

import importlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path

from mutants.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "contracts", "model", "swarm", "ledger", "node", "client", "testnet", "cli", "tests")
PATIENCE = 300.0
"""Seconds for the tests of one fault; for all tests on the sources as they are ten times as long."""
LIBRARIES = ("pytest", "hypothesis", "torch", "transformers", "peft", "hivemind", "web3", "sqlalchemy", "fastapi")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_ALL_PASSED, _SOME_FAILED = 0, 1
Verdict = tuple[str, str]
"""caught, MISSED, BROKEN or SLOW; by which test, or why."""


@dataclass
class Run:
    """Tests over one copy of the sources, in a process of their own."""

    work: Path
    process: ForkProcess
    ends: float

    @classmethod
    def start(cls, folder: Path, fault: Fault | None, tests: Sequence[str], seconds: float) -> "Run":
        """Raises ValueError if the fault has lost its place."""
        work = Path(tempfile.mkdtemp(dir=folder))
        for name in PACKAGES:
            shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns(".hypothesis", "corpus"))
        shutil.copy2(ROOT / "pyproject.toml", work)
        (work / "hardhat").symlink_to(ROOT / "hardhat")
        if fault is not None:
            file = work / fault.file
            file.write_text(fault.seeded(file.read_text(encoding="utf-8")), encoding="utf-8")
        process = multiprocessing.get_context("fork").Process(target=_child, args=(work, tests))
        process.start()
        return cls(work, process, time.monotonic() + seconds)

    @property
    def over(self) -> bool:
        return self.process.exitcode is not None or time.monotonic() > self.ends

    def verdict(self) -> Verdict:
        """Of a run that is over. Nothing of it is left."""
        code = self.process.exitcode
        if code is None:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
            self.process.join()
        output = (self.work / "output").read_text(errors="replace")
        shutil.rmtree(self.work, ignore_errors=True)
        if code is None:
            return "SLOW", "no verdict in time"
        failed = [name.split("::", 1)[-1] for name in _FAILED.findall(output)]
        if code == _SOME_FAILED and failed:
            return "caught", failed[0]
        if code == _ALL_PASSED:
            return "MISSED", ""
        return "BROKEN", next(reversed(output.strip().splitlines()), f"pytest ended with {code}")


def _child(work: Path, tests: Sequence[str]) -> None:
    os.setsid()  # whatever the tests start ends with them
    os.chdir(work)
    with (work / "output").open("w") as sink:
        for stream in (1, 2):
            os.dup2(sink.fileno(), stream)
    paths = [str(work / name) for name in PACKAGES]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    own = [ROOT / name for name in PACKAGES]
    sys.path[:] = paths + [one for one in sys.path if not any(Path(one).is_relative_to(folder) for folder in own)]
    importlib.invalidate_caches()
    import pytest

    words = ["-q", "-x", "--hypothesis-seed=0", "-p", "no:cacheprovider", "--no-header", "--tb=no", "-rfE"]
    words += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins that came with the libraries
    code = pytest.main([*words, *(f"tests/{test}" for test in tests)])
    sys.stdout.flush()
    os._exit(int(code))


def try_all(folder: Path, faults: Sequence[Fault], jobs: int) -> int:
    """So many at once, each told when it has ended; the number of those that were not caught."""
    waiting, running, bad = list(faults), dict[str, tuple[Fault, Run]](), 0
    while waiting or running:
        while waiting and len(running) < jobs:
            fault = waiting.pop(0)
            try:
                running[fault.name] = fault, Run.start(folder, fault, fault.tests, PATIENCE)
            except ValueError as error:
                bad += 1
                _tell(fault, ("BROKEN", str(error)))
        wait([run.process.sentinel for _, run in running.values()], timeout=1.0)
        for fault, run in [one for one in running.values() if one[1].over]:
            del running[fault.name]
            verdict = run.verdict()
            bad += verdict[0] != "caught"
            _tell(fault, verdict)
    return bad


def _tell(fault: Fault, verdict: Verdict) -> None:
    sys.stdout.write(f"{fault.name:<58} {Path(fault.file).stem:<16} {verdict[0]:<8} {verdict[1]}\n")
    sys.stdout.flush()


def main(wanted: Sequence[str]) -> int:
    faults = [one for one in FAULTS if not wanted or any(part in f"{one.name} {one.file}" for part in wanted)]
    if not faults:
        sys.stdout.write(f"no fault has {' or '.join(wanted)} in its name or file\n")
        return 1
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory(prefix="hivemint-") as name:
        folder = Path(name)
        tests = sorted({test for one in faults for test in one.tests})
        first = Run.start(folder, None, tests, 10 * PATIENCE)
        while not first.over:
            wait([first.process.sentinel], timeout=1.0)
        verdict, by = first.verdict()
        if verdict != "MISSED":
            sys.stdout.write(f"The tests fail on the sources as they are ({verdict}): {by}. Mend that first.\n")
            return 1
        sys.stdout.write(f"{'fault':<58} {'file':<16} {'verdict':<8} caught by\n")
        bad = try_all(folder, faults, os.cpu_count() or 1)
    sys.stdout.write(f"{len(faults) - bad} of {len(faults)} faults caught\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
