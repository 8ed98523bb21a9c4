"""Large pages for what a node holds: nothing changes but the pages, and nothing that was not in use becomes so."""

import mmap
import os
import re
import sys
from pathlib import Path

import pytest

from hivemint.node.span import memory

SIZE = 32 << 20
COLLAPSES = (6, 1)
"""The first Linux that does it when asked; older ones come to it later."""


def counted(mapping: mmap.mmap, at: int) -> dict[str, int]:
    """What the system says of the mapping around the address `at`: name -> kilobytes."""
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(head[1], 16) <= at < int(head[2], 16)
        elif inside and line.endswith(" kB"):
            name, _, number = line.partition(":")
            found[name] = int(number.split()[0])
    assert found, mapping
    return found


@pytest.fixture
def huge_pages() -> None:
    if not sys.platform.startswith("linux") or not memory._SWITCH.exists() or "[never]" in memory._SWITCH.read_text():
        pytest.skip("this system has no huge pages to give")
    if tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) < COLLAPSES:
        pytest.skip("this system does it in its own time")


def address(mapping: mmap.mmap) -> int:
    import torch

    return torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()


@pytest.mark.usefixtures("huge_pages")
def test_what_is_held_moves_to_huge_pages_and_stays_the_same() -> None:
    held, content = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), os.urandom(SIZE)
    held[:] = content
    memory.use_huge_pages()
    assert counted(held, address(held) + SIZE // 2)["AnonHugePages"] << 10 >= SIZE // 2
    assert held[:] == content


@pytest.mark.usefixtures("huge_pages")
def test_room_that_is_only_addressed_takes_no_memory() -> None:
    """Such as that of sessions' keys and values, of which a token of each may be there."""
    room = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    room[:: 1 << 20] = b"x" * (SIZE >> 20)
    assert (address(room), address(room) + SIZE) not in memory._resident()
    before = counted(room, address(room) + SIZE // 2)["AnonHugePages"]
    memory.use_huge_pages()
    assert counted(room, address(room) + SIZE // 2)["AnonHugePages"] == before


def test_a_system_without_them_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SWITCH", tmp_path / "enabled")
    memory.use_huge_pages()
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr(memory, "_resident", lambda: pytest.fail("looked for memory to move"))
    memory.use_huge_pages()
