"""When a node has earned what: the last hour, the last day, since its start. A small file beside its journal.

The sums are the journal's and the chain's; here is only when they grew, minute by minute for a day, and what each
epoch's share of donated work came to, as the journal forgets epochs after a month. A file that is damaged or of other
books counts as none: then the sums begin at what is known.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from hivemint.protocol.home import write_private

MINUTE, HOUR, DAY = 60, 3600, 86_400
MOST_EPOCHS = 100_000
MAX_FILE = 8 << 20


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    books: str
    paid: str = "0"
    """Minted for paid work when it was looked at last; in wei, as text, as JSON's numbers end at 2^53."""
    epochs: dict[str, str] = {}
    grew: dict[str, str] = {}
    """Minute since 1970 -> wei."""


class Earnings:
    """Of one node. `books`: whose they are, e.g. chain, contract and operator."""

    def __init__(self, path: Path | None, books: str, clock: Callable[[], float] = time.time) -> None:
        self._path, self._books, self._clock = path, books, clock
        known = _read(path, books) if path is not None else None
        self._paid = int(known.paid) if known else None
        self._epochs = {int(epoch): int(amount) for epoch, amount in known.epochs.items()} if known else {}
        self._grew = {int(minute): int(amount) for minute, amount in known.grew.items()} if known else {}
        self._since_start = 0
        self._written: bytes = b""

    @property
    def donated(self) -> int:
        """Minted for donated work, all epochs together."""
        return sum(self._epochs.values())

    def note(self, paid: int, epochs: Mapping[int, int], fresh: frozenset[int] = frozenset()) -> None:
        """What was minted so far for paid work, and for each epoch's donated work. `fresh`: epochs that this run has
        minted; the shares of others are older than it.
        """
        more = 0 if self._paid is None else paid - self._paid
        self._paid = paid
        for epoch, amount in epochs.items():
            if epoch in fresh:
                more += amount - self._epochs.get(epoch, 0)
            if epoch in self._epochs or len(self._epochs) < MOST_EPOCHS:
                self._epochs[epoch] = amount
        minute = int(self._clock() // MINUTE)
        if more:  # less than nothing where the chain took a payment back
            self._since_start += more
            self._grew[minute] = self._grew.get(minute, 0) + more
        self._grew = {at: amount for at, amount in self._grew.items() if minute - DAY // MINUTE < at <= minute}

    def last(self, seconds: int) -> int:
        """What came in the last `seconds`, at most a day, by the minute."""
        since = (self._clock() - seconds) / MINUTE
        return max(0, sum(amount for minute, amount in self._grew.items() if minute > since - 1))

    @property
    def since_start(self) -> int:
        return max(0, self._since_start)

    def save(self) -> str:
        """Write the file if there is news. Gives why it can't be written; nothing depends on it."""
        if self._path is None or self._paid is None:
            return ""
        kept = _Kept(
            self._books,
            str(self._paid),
            {str(epoch): str(amount) for epoch, amount in self._epochs.items()},
            {str(minute): str(amount) for minute, amount in self._grew.items()},
        )
        content = msgspec.json.encode(kept)
        if content == self._written:
            return ""
        try:
            write_private(self._path, content, replace=True)
        except OSError as error:
            return f"{self._path.name} cannot be written: {error.strerror or error}"
        self._written = content
        return ""


def _read(path: Path, books: str) -> _Kept | None:
    """None without a file, for one that is damaged, and for one of other books."""
    with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        with path.open("rb") as file:
            kept = msgspec.json.decode(file.read(MAX_FILE), type=_Kept)
        for numbers in (kept.epochs, kept.grew):
            for name, amount in numbers.items():
                int(name), int(amount)
        int(kept.paid)
        if kept.books == books:
            return kept
    return None
