"""Peers that were met before: where a node or a client begins when the network's own bootstrap peers are away.

A small file in the user's home. Every serving node is a peer of the directory, so each of them is a way in. Few
addresses a network prefix, so that a stranger with many keys does not become the only way in.
"""

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from hivemint.protocol.errors import ProtocolError
from hivemint.swarm.addresses import prefix_of
from hivemint.swarm.daemon import split_address
from hivemint.swarm.messages import AddressText

MOST, MOST_A_PREFIX = 64, 4
LIFETIME = 14 * 86_400.0
"""Seconds after which a peer that was not met again is forgotten."""
MAX_FILE = 64 * 1024

_Seen = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class KnownPeers:
    """`path` None: remembered for this run only. A file that is damaged counts as empty."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: dict[str, float] = {}
        self._changed = False
        if path is not None:
            self._seen = _trimmed(_read(path))

    def addresses(self) -> list[str]:
        """Full multiaddresses, those met last first."""
        return sorted(self._seen, key=lambda address: self._seen[address], reverse=True)

    def remember(self, addresses: Iterable[str]) -> None:
        """They were published by peers whose keys have signed them, just now."""
        now = time.time()
        for address in addresses:
            with suppress(ProtocolError):
                split_address(address)
                self._seen[address] = now
                self._changed = True
        if len(self._seen) > 2 * MOST:
            self._seen = _trimmed(self._seen)

    def save(self) -> None:
        """Write the file if there is news. A disk that is full costs nothing but the memory."""
        if self._path is None or not self._changed:
            return
        self._seen, self._changed = _trimmed(self._seen), False
        fresh = self._path.with_name(f".{self._path.name}.new")
        with suppress(OSError):
            fresh.write_bytes(msgspec.json.encode(self._seen))
            fresh.replace(self._path)


def _read(path: Path) -> dict[str, float]:
    try:
        with path.open("rb") as stream:
            return msgspec.json.decode(stream.read(MAX_FILE), type=dict[AddressText, _Seen])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _trimmed(seen: dict[str, float]) -> dict[str, float]:
    """The newest, few of them a prefix, none older than two weeks."""
    now, kept = time.time(), dict[str, float]()
    prefixes: Counter[str] = Counter()
    for address, at in sorted(seen.items(), key=lambda item: item[1], reverse=True):
        prefix = prefix_of(address)
        if now - at > LIFETIME or len(kept) >= MOST or (prefix and prefixes[prefix] >= MOST_A_PREFIX):
            continue
        with suppress(ProtocolError):
            split_address(address)
            kept[address] = min(at, now)
            prefixes[prefix or address] += 1
    return kept
