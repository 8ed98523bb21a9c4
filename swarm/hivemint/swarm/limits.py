"""What one remote peer may ask of a host before any signature is checked: handshakes, open links, bytes held."""

from dataclasses import dataclass, field

from hivemint.contracts.errors import Refusal
from hivemint.contracts.ids import PeerId
from hivemint.swarm.link import Held
from hivemint.swarm.messages import MIB, Code


@dataclass(frozen=True, slots=True)
class Limits:
    """Per remote peer, but for `total_bytes`, which all peers share."""

    handshakes_per_s: float = 20.0
    handshake_burst: int = 64
    links: int = 256
    bytes: int = 192 * MIB
    total_bytes: int = 1024 * MIB


@dataclass
class _Usage:
    held: Held
    allowance: float
    refilled: float
    links: int = 0


@dataclass
class Gate:
    """Counts per remote peer. `now` is the event loop's clock."""

    limits: Limits
    _peers: dict[PeerId, _Usage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._total = Held(self.limits.total_bytes)

    def enter(self, peer: PeerId, now: float) -> Held:
        """Count one more link, whoever opened it. `leave` takes it back."""
        usage = self._usage(peer, now)
        usage.links += 1
        return usage.held

    def flooded(self, peer: PeerId) -> bool:
        """More streams than even a polite refusal is worth."""
        usage = self._peers.get(peer)
        return usage is not None and usage.links > 2 * self.limits.links

    def check(self, peer: PeerId, now: float) -> None:
        """One handshake of a link that has entered. Raises Refusal(rate)."""
        usage = self._usage(peer, now)
        if usage.links > self.limits.links:
            raise _too_many(f"{self.limits.links} links are open, the limit for one peer", 1.0)
        if usage.allowance < 1:
            wait = (1 - usage.allowance) / self.limits.handshakes_per_s
            raise _too_many(f"more than {self.limits.handshakes_per_s:g} handshakes a second", wait)
        usage.allowance -= 1

    def leave(self, peer: PeerId) -> None:
        usage = self._peers.get(peer)
        if usage is not None:
            usage.links -= 1

    def forget_idle(self, now: float) -> None:
        """Drop peers without links whose allowance is full again."""
        for peer in [peer for peer, usage in self._peers.items() if not usage.links]:
            if self._usage(peer, now).allowance >= self.limits.handshake_burst:
                del self._peers[peer]

    def _usage(self, peer: PeerId, now: float) -> _Usage:
        usage = self._peers.get(peer)
        if usage is None:
            usage = _Usage(Held(self.limits.bytes, parent=self._total), float(self.limits.handshake_burst), now)
            self._peers[peer] = usage
        gained = (now - usage.refilled) * self.limits.handshakes_per_s
        usage.allowance = min(float(self.limits.handshake_burst), usage.allowance + gained)
        usage.refilled = now
        return usage


def _too_many(why: str, wait: float) -> Refusal:
    return Refusal(
        Code.RATE, "Too many requests from this peer", why=why, next_step="wait and try again", retry_after=wait
    )
