"""One node a machine for each identity: an operator key on one chain, a peer key.

Two nodes of one operator would both owe from their own books, and could sign one step twice; two of one peer id would
each get the other's links. The journal's own lock is beside its file, so it sees only nodes that share the file. Here a
lock file for each identity lies where all programs of a user find it, whatever home they were started with. The system
gives a lock back when its process ends, however it ends.
"""

import fcntl
import hashlib
import os
from pathlib import Path

import platformdirs

from hivemint.protocol.errors import ConfigError
from hivemint.protocol.home import private_folder


class IdentityLock:
    """Held from `take` to `release`."""

    def __init__(self, file: int) -> None:
        self._file = file

    @classmethod
    def take(cls, what: str, identity: bytes, home: Path) -> "IdentityLock":
        """`what`: the identity in words. `home`: where locks lie if this user has no folder for all programs' state.

        Raises ConfigError if another process serves with it.
        """
        path = _folder(home) / f"{hashlib.sha256(identity).hexdigest()[:32]}.lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            why = error.strerror or str(error)
            raise ConfigError(f"The lock {path} cannot be taken", why=why, next_step="check its rights") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise ConfigError(
                f"Another node on this machine serves with {what}",
                why="two nodes of one identity would each answer for what the other has signed",
                next_step="stop that node first, or give this one a key of its own",
            ) from None
        return cls(file)

    def release(self) -> None:
        os.close(self._file)


def _folder(home: Path) -> Path:
    try:
        return private_folder(platformdirs.user_state_path("hivemint") / "locks")
    except ConfigError:  # a user of the system's own, without a home
        return private_folder(home / "locks")
