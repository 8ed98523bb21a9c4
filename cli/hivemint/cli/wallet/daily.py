"""What `account fund --auto` has deposited on each day (UTC), in a file that all processes of a wallet share."""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from hivemint.protocol.errors import ConfigError
from hivemint.protocol.home import read_small, write_private

LOCK_TIME, LOOK_AGAIN = 5.0, 0.1
"""Seconds in which another process may end its turn, and between two looks."""
KEPT = 64
"""Days, those nearest to today: a clock that goes forth and back finds again what it had counted."""
_SIZE = 1 << 16

_Day = Annotated[str, msgspec.Meta(pattern=r"\A(0|-?[1-9][0-9]{0,7})\Z")]
_Wei = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,40}\Z")]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """Days since 1970 -> wei, as text: JSON's numbers are too small for some readers."""

    days: dict[_Day, _Wei]


class DailyDeposits:
    """Deposits of one wallet on one network. What is about to be deposited is written first: a crash counts it too."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        self._file, self._clock = file, clock

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """No other process tops up meanwhile: two of them would each see the whole budget. Raises ConfigError if
        another one does, and goes on.
        """
        try:
            lock = self._file.with_suffix(".lock").open("a")
        except OSError as error:
            raise self._unusable(error) from None
        with lock:
            deadline = time.monotonic() + LOCK_TIME
            while not self._taken(lock.fileno()):
                if time.monotonic() > deadline:
                    raise ConfigError(
                        "Another process tops up from this wallet",
                        why=f"it has held {lock.name} for {LOCK_TIME:g} seconds, and both have one budget",
                        next_step="let it end, answer its question or stop it, then try again",
                    )
                await asyncio.sleep(LOOK_AGAIN)
            yield

    @property
    def today(self) -> int:
        """In wei. Raises ConfigError for a damaged file: to begin at nothing would spend a budget twice."""
        return self._days().get(self._day(), 0)

    def take(self, wei: int) -> None:
        """Count a deposit that is about to be made."""
        days, today = self._days(), self._day()
        days[today] = days.get(today, 0) + wei
        kept = sorted(days, key=lambda day: abs(day - today))[:KEPT]
        document = _File({str(day): str(days[day]) for day in sorted(kept)})
        write_private(self._file, msgspec.json.encode(document), replace=True)

    def _days(self) -> dict[int, int]:
        if not os.path.lexists(self._file):
            return {}
        data = read_small(self._file, _SIZE, "file of deposits")
        try:
            found = msgspec.json.decode(data, type=_File)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(
                f"{self._file} is damaged",
                why=str(error),
                next_step="remove it: the budget of this day begins anew with that",
            ) from None
        return {int(day): int(wei) for day, wei in found.days.items()}

    def _taken(self, lock: int) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._unusable(error) from None
        return True

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._file} cannot be used", why=error.strerror or str(error))

    def _day(self) -> int:
        return int(self._clock() // 86_400)
