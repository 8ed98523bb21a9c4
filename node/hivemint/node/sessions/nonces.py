"""Nonces of links: each names one session once."""

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from hivemint.node.sessions.offer import refusal
from hivemint.protocol.ids import PeerId
from hivemint.swarm.messages import Code, Refused

NONCE_LIFE = 60.0


class Nonces:
    """Nonces that need no memory until they are used: time and a MAC by a secret of this run over peer id and time.

    Good for 60 s, spent once. What is remembered are spent ones, for as long as they could come again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._secret = secrets.token_bytes(32)
        self._clock = clock
        self._last = 0
        self._spent: OrderedDict[bytes, float] = OrderedDict()

    def issue(self, peer: PeerId) -> bytes:
        """32 bytes: nanoseconds (8), MAC (24). No two are equal."""
        self._last = max(self._last + 1, int(self._clock() * 1e9))
        stamp = self._last.to_bytes(8, "big")
        return stamp + self._mac(peer, stamp)

    def check(self, peer: PeerId, nonce: bytes) -> Refused | None:
        stamp, mac = nonce[:8], nonce[8:]
        if not hmac.compare_digest(mac, self._mac(peer, stamp)):
            return refusal(
                Code.NONCE,
                "The session's nonce is not of this node's run",
                "expected the one from Terms, given to this peer",
                "dial again",
            )
        age = self._clock() - int.from_bytes(stamp, "big") / 1e9
        if age > NONCE_LIFE:
            return refusal(Code.NONCE, "The nonce is old", f"it is good for 60 s, got {age:.0f} s", "dial again")
        if nonce in self._spent:
            return refusal(Code.NONCE, "The nonce is spent", "it opens one session", "dial again")
        return None

    def spend(self, nonce: bytes) -> None:
        now = self._clock()
        while self._spent and next(iter(self._spent.values())) < now - NONCE_LIFE:
            self._spent.popitem(last=False)
        self._spent[nonce] = now

    def _mac(self, peer: PeerId, stamp: bytes) -> bytes:
        return hmac.digest(self._secret, peer + stamp, "sha256")[:24]
