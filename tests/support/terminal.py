"""A program on a terminal of its own, driven by keys, as a person would.

(PYTEST_DONT_REWRITE: tests import from here before pytest does, and nothing is asserted here.)
"""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

_CODES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()][AB0]|\][^\x07]*\x07|[=>78])")
PATIENCE = 120.0


def paste(text: str) -> str:
    """As a terminal sends it that marks what is pasted."""
    return f"\x1b[200~{text}\x1b[201~"


class Terminal:
    """`hivemint` in it; a context manager that ends it. `shown` is what it printed, without codes."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, columns: int = 100, rows: int = 40
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        # Nobody answers here where the cursor is.
        known = {**environment, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=known, start_new_session=True, preexec_fn=_control
        )
        os.close(slave)
        self._raw, self._expected = b"", 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def raw(self) -> str:
        return self._raw.decode(errors="replace")

    @property
    def shown(self) -> str:
        return _CODES.sub("", self.raw).replace("\r", "")

    def press(self, text: str) -> int:
        """Press keys; gives how much had been shown before."""
        seen = len(self.shown)
        os.write(self._master, text.encode())
        return seen

    def wait(self, pattern: str, since: int = 0) -> str:
        """What was shown since, as soon as `pattern` is in it. Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if re.search(pattern, self.shown[since:]):
                return self.shown[since:]
            if self._process.poll() is not None:
                self._reader.join(5)
                if re.search(pattern, self.shown[since:]):
                    return self.shown[since:]
                break
            time.sleep(0.05)
        raise TimeoutError(f"{pattern!r} was not shown:\n{self.shown[since:]}")

    def expect(self, words: str, within: float = PATIENCE) -> str:
        """What was shown since the last call, up to `words`, wrapped and framed as it may be. Raises TimeoutError."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            running, flat, since = self._reader.is_alive(), _flat(self.shown), self._expected
            if (at := flat.find(words, since)) >= 0:
                self._expected = at + len(words)  # not all that came: the next words may be in it already
                return flat[since : self._expected]
            if not running:
                break
            time.sleep(0.05)
        raise TimeoutError(f"{words!r} was not shown:\n{self.shown[-3000:]}")

    def answer(self, text: str, pattern: str) -> str:
        """Type and wait for what comes of it."""
        return self.wait(pattern, self.press(text))

    def kill(self) -> None:
        """kill -9, as the system does it."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def ended(self) -> int:
        """The exit status, as soon as there is one; all that it showed has been read."""
        status = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(5)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            self._raw += data


def _control() -> None:
    """The terminal becomes the process's own, and Ctrl-C a signal to it, also where this run itself ignores that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _flat(text: str) -> str:
    """Without line breaks and frames: a text may be wrapped anywhere."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())
