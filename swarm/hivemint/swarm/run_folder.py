"""The folder of one running daemon: its control sockets, in a place that only this user can enter.

A folder's lock is held for as long as its process lives, so those of killed processes are known and removed by whoever
starts next. A folder gets its name only when its lock is held: until then it is nobody's to remove.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX, UNFINISHED = "hivemint-", ".hivemint-new-"
MAX_SOCKET_PATH = 60
"""Characters that a base folder may have: a Unix socket's path ends at 107."""
UNFINISHED_FOR = 60.0
"""Seconds after which a folder without a lock is that of a process that was killed just then."""


def make() -> tuple[Path, int]:
    """A new 0700 folder, and the open file of the lock that this process holds on it."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > MAX_SOCKET_PATH:
        base = Path("/tmp")  # noqa: S108 - mkdtemp's folders are 0700
    sweep(base)
    unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=base))
    handle = os.open(unfinished / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    folder = unfinished.with_name(PREFIX + unfinished.name.removeprefix(UNFINISHED))
    unfinished.rename(folder)
    return folder, handle


def sweep(base: Path) -> None:
    """Remove the folders that killed processes of this user have left."""
    for lock in base.glob(f"{PREFIX}*/lock"):
        with contextlib.suppress(OSError):
            if lock.stat().st_uid == os.getuid():
                _remove_if_dead(lock)
    for folder in base.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid() and time.time() - folder.stat().st_mtime > UNFINISHED_FOR:
                shutil.rmtree(folder)


def _remove_if_dead(lock: Path) -> None:
    """Raises OSError while its process lives."""
    handle = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.parent, ignore_errors=True)
    finally:
        os.close(handle)
