"""Places that are network namespaces, and disks that are small. Skipped, with the reason, where there can be none."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.machines import Machines, machines, small_disk, why_not

HERE = "import socket; print(socket.create_connection(('{0}', {1}), 2).recv(9).decode())"


@pytest.fixture
def apart() -> Iterator[Machines]:
    if reason := why_not():
        pytest.skip(f"nodes of this suite are on one machine here: {reason}")
    with machines(("one", "other"), apart=True) as made:
        yield made


def ask(made: Machines, place: str, address: tuple[str, int]) -> str:
    """What somebody at `place` is told at this address; "" where nobody answers."""
    words = [*made.enter(place), sys.executable, "-c", HERE.format(*address)]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout.strip()


def test_places_reach_each_other_until_a_cable_is_pulled(apart: Machines) -> None:
    server = apart.within("one", lambda: socket.create_server((apart.address("one"), 0)))
    with server:
        address = server.getsockname()[:2]
        asked = subprocess.Popen(
            [*apart.enter("other"), sys.executable, "-c", HERE.format(*address)], stdout=subprocess.PIPE, text=True
        )
        link, _ = server.accept()
        with link:
            link.sendall(b"hello")
        assert asked.communicate(timeout=30)[0].strip() == "hello"
        subprocess.run([*apart.enter("hub"), "ip", "link", "set", f"{apart.tag}0", "down"], check=True)
        assert ask(apart, "other", address) == ""


def test_nobody_else_is_on_a_places_loopback(apart: Machines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert ask(apart, "one", server.getsockname()[:2]) == ""


def test_places_on_one_machine_enter_nothing() -> None:
    with machines(("one",), apart=False) as made:
        assert not made.apart
        assert made.enter("one") == []
        assert made.within("one", lambda: 5) == 5
        assert made.hub == made.address("one") == "127.0.0.1"


def test_a_small_disk_is_full_when_it_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path, 1 << 20) as mounted:
        if not mounted:
            pytest.skip("this user may not mount a disk: a limit on the size of files stands for a full one")
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "big").write_bytes(bytes(2 << 20))
    assert list(tmp_path.iterdir()) == []
