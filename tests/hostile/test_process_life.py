"""The real command: each thing that can befall a node's process has its own clear end, in words and by exit status."""

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from sqlalchemy import select

from hivemint.ledger.store.database import database_url, open_store, reading
from hivemint.ledger.store.tables import sessions
from hivemint.node.identity import IdentityLock
from hivemint.protocol.errors import HivemintError, of_the_system
from hivemint.protocol.home import Home
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.swarm.host import CONTROL, Host, HostSettings
from hivemint.swarm.identity import PeerKey, parse_peer
from hivemint.testnet.processes import Child, hivemint, launch, wait_ready
from support.chain import TestChain
from support.node_client import NodeSession, RefusedError
from support.promises import signer
from support.tiny import tiny_model

PASSWORD = "a password for tests"
START, END = 240.0, 120.0
pytestmark = pytest.mark.timeout(900)


@dataclass
class Machine:
    """A home with two operators' keys, a tiny model, and the nodes that a test starts."""

    folder: Path
    home: Home
    model: Path
    network: Path
    children: list[Child] = field(default_factory=list)

    def words(self, *more: object, wallet: str = "dave") -> list[str]:
        start = ("node", "start", self.model, "--blocks", "0:1", "--wallet", wallet, "--network", self.network)
        return hivemint(*map(str, (*start, *more)))

    def environment(self, **more: str) -> dict[str, str]:
        base = {name: value for name, value in os.environ.items() if not name.startswith("HIVEMINT_")}
        mine = {"HIVEMINT_HOME": str(self.home.root), "HIVEMINT_PASSWORD": PASSWORD, "HIVEMINT_THREADS": "1"}
        return base | mine | {"XDG_STATE_HOME": str(self.folder / "state"), "HIVEMINT_KV_BYTES": str(1 << 22)} | more

    def start(self, *more: object) -> Child:
        """A node that is ready; its log is stdout and stderr together."""
        log = self.folder / f"node{len(self.children)}.log"
        self.children.append(launch("node", self.words(*more), log, self.environment()))
        self.children[-1] = wait_ready(self.children[-1], START)
        return self.children[-1]

    def refusal(
        self, *more: object, wallet: str = "dave", limits: Callable[[], None] | None = None, code: int = 2
    ) -> str:
        """What a node that can't start tells: the exit status of its kind, one to three lines, no traceback."""
        done = subprocess.run(
            self.words(*more, wallet=wallet),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START,
            check=False,
            preexec_fn=limits,
        )
        told = [line for line in done.stderr.splitlines() if line.startswith(("error ", "  why ", "  next "))]
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr + done.stdout, done
        assert 1 <= len(told) <= 3, done
        assert told[0].startswith("error "), done
        return "\n".join(told)


@pytest.fixture
def machine(testchain: TestChain, tmp_path: Path) -> Iterator[Machine]:
    home = Home.open(tmp_path / "home")
    keystores = Keystores(home.keystores)
    keystores.add("dave", testchain.signers[8], PASSWORD, n=CHEAP_SCRYPT_N)
    keystores.add("erin", testchain.signers[9], PASSWORD, n=CHEAP_SCRYPT_N)
    found = Machine(tmp_path, home, tiny_model(tmp_path / "tiny"), testchain.network.path or tmp_path)
    try:
        yield found
    finally:
        for child in found.children:
            child.stop()


async def ended(child: Child) -> tuple[int, str]:
    """Exit status and log of a node that ends by itself."""
    return await asyncio.to_thread(_ended, child)


def _ended(child: Child) -> tuple[int, str]:
    status = psutil.Process(child.pid).wait(timeout=END)
    return int(status or 0), Path(child.log).read_text()


def error_lines(log: str) -> list[str]:
    lines = log.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("error "))
    assert "Traceback" not in "\n".join(lines[first:]), log
    return lines[first:]


def test_two_nodes_of_one_operator(machine: Machine) -> None:
    """Another folder, another peer key, another home even: the operator's key is the same."""
    machine.start()
    told = machine.refusal("--name", "another")
    assert "operator key 0x" in told
    assert "stop that node first" in told


def test_two_nodes_of_one_peer_key(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is another process's here, this test's own; it goes with its holder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(machine.folder / "state"))
    key = PeerKey.load(machine.home.node("dave") / "peer.key")
    shutil.copy(machine.home.node("dave") / "peer.key", machine.home.node("erin") / "peer.key")
    lock = IdentityLock.take("the peer key", key.peer_id, machine.home.root)
    for wallet in ("dave", "erin"):
        assert "peer key" in machine.refusal(wallet=wallet)
    lock.release()
    IdentityLock.take("the peer key", key.peer_id, machine.home.root).release()


@pytest.fixture
async def client(machine: Machine) -> AsyncIterator[tuple[Child, Host]]:
    child = await asyncio.to_thread(machine.start)
    host = await Host.start(HostSettings("test", listen=(), bootstrap=tuple(child.ready["addresses"])))
    yield child, host
    await host.close()


async def opened(child: Child, host: Host, testchain: TestChain) -> NodeSession:
    link = await host.dial(parse_peer(child.ready["peer"]), tuple(child.ready["addresses"]), CONTROL)
    expiry = int(testchain.devchain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16) + 3600
    return await NodeSession.open(
        link, testchain.network.domain, signer(70), expiry=max(expiry, int(time.time()) + 3600)
    )


async def test_a_disk_that_fills_under_the_journal(
    machine: Machine, client: tuple[Child, Host], testchain: TestChain
) -> None:
    """Writes fail for real, by a limit on the size of the node's files. What was acknowledged is in the journal."""
    child, host = client
    session = await opened(child, host, testchain)
    await session.step(torch.randn(1, 32), 0)
    folder = machine.home.node("dave")
    used = max(file.stat().st_size for file in folder.iterdir())
    psutil.Process(child.pid).rlimit(resource.RLIMIT_FSIZE, (used + 65_536, used + 65_536))
    acknowledged = 1
    with suppress(HivemintError, AssertionError, RefusedError):
        for number in range(1, 60):
            await session.step(torch.randn(1, 32), number)
            acknowledged += 1
    status, log = await ended(child)
    assert status == 9, log
    told = error_lines(log)
    assert "journal cannot be written" in told[0]
    assert "nothing that was acknowledged is lost" in told[-1]
    engine = open_store(database_url(folder / "journal.db"))
    with reading(engine) as connection:
        bound = connection.scalars(select(sessions.c.step)).one()
    assert bound >= acknowledged - 1 >= 1, "the voucher of each step binds the receipt before it"
    engine.dispose()


async def test_a_killed_daemon_ends_the_node_in_words(client: tuple[Child, Host]) -> None:
    child, _ = client
    daemon = next(below for below in psutil.Process(child.pid).children() if "p2pd" in below.name())
    daemon.send_signal(signal.SIGKILL)
    status, log = await ended(child)
    assert status == 6, log
    told = error_lines(log)
    assert "place in the swarm is lost" in told[0]
    assert "start the node again" in told[-1]


def test_a_chain_that_began_anew_under_old_files(machine: Machine) -> None:
    """The same id and contracts, another first block: told, and begun anew only by the user's word."""
    machine.start().stop()
    engine = open_store(database_url(machine.home.node("dave") / "journal.db"))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE nodes SET genesis = ?", (b"\x01" * 32,))
    engine.dispose()
    told = machine.refusal(code=9)
    assert "another chain" in told
    assert "--new-books" in told
    machine.start("--new-books")


def test_what_the_system_refuses_is_told_in_words(machine: Machine) -> None:
    """A folder where a file should be, a file where a folder should be, too few open files."""
    folder = machine.home.node("dave")
    (folder / "peer.key").mkdir()
    assert "peer key" in machine.refusal()
    (folder / "peer.key").rmdir()
    (folder / "journal.db").mkdir()
    assert "journal.db" in machine.refusal(code=9)
    (folder / "journal.db").rmdir()
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("no folder")
    assert str(folder) in machine.refusal()
    folder.unlink()

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))

    assert "open files" in machine.refusal(limits=few, code=6)


def test_errors_of_the_system_say_what_why_and_the_next_step() -> None:
    for number, cure in ((28, "free space"), (24, "ulimit -n"), (13, "rights"), (98, "another port"), (5, "mend")):
        error = of_the_system(OSError(number, os.strerror(number), "/some/file"))
        assert "/some/file" in error.what
        assert error.why == os.strerror(number)
        assert cure in error.next_step
