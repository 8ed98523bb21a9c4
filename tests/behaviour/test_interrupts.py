"""Ctrl-C and SIGTERM at a node that is only starting: it ends at once, says so by its status, leaves nothing behind."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hivemint.model.local_models import LocalModel
from hivemint.protocol.home import Home
from hivemint.protocol.keystore import Keystores
from hivemint.testnet.processes import hivemint
from support.chain import TestChain

pytest_plugins = ["support.models"]

CHEAP_SCRYPT = 2
PASSWORD = "a password for tests"
WITHIN = 60.0


@pytest.fixture
def starting(smollm2: LocalModel, testchain: TestChain, tmp_path: Path) -> Iterator[psutil.Popen]:
    """`hivemint node start` of half of the real model, just launched, with a folder for temporary files of its own."""
    home, temporary = Home.open(tmp_path / "home"), tmp_path / "tmp"
    temporary.mkdir()
    Keystores(home.keystores).add("dave", testchain.signers[7], PASSWORD, n=CHEAP_SCRYPT)
    environment = {"HIVEMINT_HOME": str(home.root), "HIVEMINT_PASSWORD": PASSWORD, "TMPDIR": str(temporary)}
    words = ["--blocks", "0:15", "--wallet", "dave", "--network", str(testchain.network.path)]
    process = psutil.Popen(
        hivemint("node", "start", str(smollm2.folder), *words),
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    if process.is_running():
        process.kill()
    process.wait()


def listens(process: psutil.Popen) -> bool:
    """Whether the command's own code runs: it catches SIGTERM then, which Python by itself does not."""
    caught = next(
        line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("SigCgt")
    )
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def has_daemon(process: psutil.Popen) -> bool:
    """Whether it has joined the swarm: weights are read from then on, for some seconds."""
    return any("p2pd" in child.name() for child in process.children())


def wait_for(process: psutil.Popen, stage: Callable[[psutil.Popen], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not stage(process):
        assert process.poll() is None, "it ended before it came so far"
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.01)


@pytest.mark.parametrize("stage", [listens, has_daemon])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_is_starting_ends_at_once(
    starting: psutil.Popen, stage: Callable[[psutil.Popen], bool], number: signal.Signals, tmp_path: Path
) -> None:
    wait_for(starting, stage)
    below = starting.children(recursive=True)
    starting.send_signal(number)
    said, complained = starting.communicate(timeout=WITHIN)
    assert starting.returncode == 128 + number
    assert "Traceback" not in said + complained
    _, alive = psutil.wait_procs(below, timeout=WITHIN)
    assert not alive, "its daemon ends with it"
    assert not list((tmp_path / "tmp").iterdir()), "nothing stays in the temporary folder"
