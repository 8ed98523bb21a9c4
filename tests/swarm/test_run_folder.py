"""Folders of daemons: private, kept while their process lives, removed by the next start when it was killed."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hivemint.swarm import run_folder

MAKE = "from hivemint.swarm import run_folder; print(run_folder.make()[0], flush=True); input()"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(run_folder, "MAX_SOCKET_PATH", 1000)
    return tmp_path


def test_a_killed_process_leaves_nothing_for_longer_than_the_next_start(base: Path) -> None:
    program = MAKE.replace(
        "print", f"import tempfile; tempfile.tempdir = {str(base)!r}; run_folder.MAX_SOCKET_PATH = 1000; print"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        assert theirs.parent == base
        assert stat.S_IMODE(theirs.stat().st_mode) == 0o700
        mine, handle = run_folder.make()
        assert theirs.exists(), "its process lives"
        other.kill()
        other.wait()
    run_folder.sweep(base)
    assert set(base.iterdir()) == {mine}
    os.close(handle)


def test_a_folder_without_a_lock_is_removed_when_it_is_old(base: Path) -> None:
    fresh, old = base / f"{run_folder.UNFINISHED}fresh", base / f"{run_folder.UNFINISHED}old"
    for folder in (fresh, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    run_folder.sweep(base)
    assert fresh.exists()
    assert not old.exists()
