"""`$HIVEMINT_HOME`: where a user's keys, nodes, vouchers and models lie.

    keystores/              encrypted wallets, one file each
    nodes/NAME/             peer.key, journal.db
    client/                 vouchers.db
    models/                 converted models

Folders that hold secrets are made for their owner alone (0700), files 0600. Without the variable the place is the
one that platformdirs names for the system (on Linux ~/.local/share/hivemint).
"""

import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from hivemint.protocol.errors import BadInput, ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Home:
    """The home folder and the places inside it. Each property makes its folder (0700) on first use."""

    root: Path

    @classmethod
    def open(cls, root: Path | None = None) -> "Home":
        """`root`, else `$HIVEMINT_HOME`, else the system's data folder. Raises ConfigError if it can't be used."""
        chosen = root or Path(os.environ.get("HIVEMINT_HOME") or platformdirs.user_data_path("hivemint"))
        chosen = chosen.expanduser().absolute()
        try:
            chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(chosen, error) from None
        return cls(chosen)

    @property
    def keystores(self) -> Path:
        return private_folder(self.root / "keystores")

    @property
    def client(self) -> Path:
        return private_folder(self.root / "client")

    @property
    def models(self) -> Path:
        return private_folder(self.root / "models")

    def node(self, name: str) -> Path:
        """The folder of one node. Raises ConfigError for a name that is not a plain file name."""
        return private_folder(private_folder(self.root / "nodes") / check_name(name, "node"))


def check_name(name: str, what: str) -> str:
    """Letters, digits, `.`, `_`, `-`, at most 64, not beginning with a dot or dash: it can't leave its folder."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a {what}",
            why="a name has 1 to 64 letters, digits, dots, dashes or underscores and begins with a letter or digit",
            next_step="choose another name",
        )
    return name


def private_folder(path: Path) -> Path:
    """Make `path` with mode 0700, or take that mode back from others. Raises ConfigError if it belongs to another."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.stat().st_mode & _OTHERS:
            path.chmod(0o700)
    except OSError as error:
        raise _unusable(path, error) from None
    return path


def write_private(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a whole file with mode 0600, or nothing: a crash leaves the old one. Raises FileExistsError."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # unlike a rename, it fails where a file already is
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_small(path: Path, limit: int, what: str) -> bytes:
    """All of a file that somebody else may have written, of `limit` bytes at most. `what`: what it should be.
    Raises BadInput.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise BadInput(f"{path} cannot be read", why=error.strerror or str(error)) from None
    if len(data) > limit:
        raise BadInput(f"{path} is no {what}", why=f"it is larger than {limit} bytes")
    return data


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"The folder {path} cannot be used",
        why=error.strerror or str(error),
        next_step="set HIVEMINT_HOME to a folder of your own",
    )
