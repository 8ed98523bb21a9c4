"""What `account fund --auto` has deposited today (UTC), in a file that all processes of a wallet share."""

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hivemint.protocol.errors import ConfigError
from hivemint.protocol.home import write_private


class DailyDeposits:
    """Deposits of one wallet on one network. What is about to be deposited is written first: a crash counts it too."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        self._file, self._clock = file, clock

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process tops up meanwhile: two of them would each see the whole budget."""
        try:
            lock = self._file.with_suffix(".lock").open("a")
        except OSError as error:
            raise ConfigError(f"{self._file} cannot be used", why=error.strerror or str(error)) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def today(self) -> int:
        """In wei. Raises ConfigError for a damaged file: to begin at nothing would spend a budget twice."""
        try:
            document = json.loads(self._file.read_text())
            day, wei = int(document["day"]), int(document["wei"])
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{self._file} is damaged", why=why, next_step="remove it") from None
        return wei if day == self._day() else 0

    def take(self, wei: int) -> None:
        """Count a deposit that is about to be made."""
        document = {"day": self._day(), "wei": str(self.today + wei)}
        write_private(self._file, json.dumps(document).encode(), replace=True)

    def _day(self) -> int:
        return int(self._clock() // 86_400)
