"""A program at a terminal of its own: what it shows is read, what one would type is sent."""

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

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


class PtySession:
    """Ends its program with itself."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], *, columns: int = 100, rows: int = 50
    ) -> None:
        self.raw = ""
        self._seen = 0
        self._file, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            words,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that a Ctrl-C of this terminal reaches it
        )
        os.close(inner)
        self._news = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "PtySession":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        os.close(self._file)

    @property
    def text(self) -> str:
        """All that was shown, without what moves or colours."""
        return _ESCAPES.sub("", self.raw)

    def expect(self, what: str, within: float = 60.0) -> str:
        """Until `what` has been shown since the last call; what was shown up to there. Raises AssertionError."""
        end = time.monotonic() + within
        while True:
            news = self.text[self._seen :]
            if (at := _flat(news).find(what)) >= 0:
                self._seen += len(news)
                return _flat(news)[: at + len(what)]
            if time.monotonic() > end or not self._reader.is_alive():
                raise AssertionError(f"{what!r} was not shown; it was:\n{self.text[-3000:]}")
            self._news.wait(0.2)
            self._news.clear()

    def send(self, line: str) -> None:
        os.write(self._file, line.encode() + b"\n")

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.write(self._file, b"\x03")

    def ended(self, within: float = 60.0) -> int:
        """Its exit status; all that it showed has been read."""
        status = self.process.wait(within)
        self._reader.join(within)
        return status

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _read(self) -> None:
        """All the time: a program whose terminal takes no more stands still."""
        while True:
            try:
                more = os.read(self._file, 1 << 16)
            except OSError:  # of the kind by which Linux says that nobody holds the other end
                more = b""
            if not more:
                self._news.set()
                return
            self.raw += more.decode(errors="replace")
            self._news.set()


def _flat(text: str) -> str:
    """Without line breaks and frames: a text may be wrapped anywhere."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())
