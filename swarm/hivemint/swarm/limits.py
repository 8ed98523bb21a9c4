"""What remote peers may ask of a host before any signature is checked: handshakes, open links, bytes held.

A peer id costs nothing to make, so what counts is the network prefix that its connection comes from; where libp2p
shows none (a relay, loopback) the peer stands for itself.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

from hivemint.protocol.errors import Refusal
from hivemint.protocol.ids import PeerId
from hivemint.swarm.budget import Budget
from hivemint.swarm.held import Held
from hivemint.swarm.messages import MIB, Code


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Of a remote peer, of all peers of one network prefix, and of all together. A handshake whose link was worth it
    (its handler says so: a session that was charged for) does not count in the end.

    `loopback`: peers of 127.0.0.1 share a prefix like others. Without it each of them stands for itself, as a testnet's
    nodes and clients all live there.
    """

    handshakes_per_s: float = 20.0
    handshake_burst: int = 64
    links: int = 256
    bytes: int = 192 * MIB
    prefix_handshakes_per_s: float = 20.0
    prefix_handshake_burst: int = 256
    prefix_links: int = 1024
    prefix_bytes: int = 384 * MIB
    total_links: int = 4096
    total_bytes: int = 1024 * MIB
    loopback: bool = False


@dataclass
class _Usage:
    held: Held
    handshakes: Budget
    links: int = 0


@dataclass
class Gate:
    """Counts per remote peer and per prefix. `now` is the event loop's clock."""

    limits: PeerLimits
    _peers: dict[PeerId, _Usage] = field(default_factory=dict)
    _prefixes: dict[Hashable, _Usage] = field(default_factory=dict)
    _links: int = 0

    def __post_init__(self) -> None:
        self._total = Held(self.limits.total_bytes)

    def enter(self, peer: PeerId, now: float, prefix: Hashable = None) -> Held:
        """Count one more link, whoever opened it. `leave` takes it back. `prefix` None: that of the peer alone."""
        group = self._group(prefix or peer, now)
        usage = self._peer(peer, group, now)
        self._links += 1
        usage.links += 1
        group.links += 1
        return usage.held

    def flooded(self, peer: PeerId, prefix: Hashable = None) -> bool:
        """More streams than even a polite refusal is worth."""
        usage, group = self._peers.get(peer), self._prefixes.get(prefix or peer)
        return (usage is not None and usage.links > 2 * self.limits.links) or (
            group is not None and group.links > 2 * self.limits.prefix_links
        )

    def check(self, peer: PeerId, now: float, prefix: Hashable = None) -> None:
        """One handshake of a link that has entered. Raises Refusal(rate)."""
        limits, group = self.limits, self._group(prefix or peer, now)
        usage = self._peer(peer, group, now)
        if usage.links > limits.links:
            raise _too_many(f"{limits.links} links are open, the limit for one peer", 1.0)
        if group.links > limits.prefix_links:
            raise _too_many(f"{limits.prefix_links} links are open from this network", 1.0)
        if self._links > limits.total_links and group.links * len(self._prefixes) > self._links:
            raise _too_many(f"{self._links} links are open, and this network has more than its share", 5.0)
        taken: list[Budget] = []
        for budget in (usage.handshakes, group.handshakes):
            if not budget.take(now):
                for other in taken:
                    other.give_back()
                raise _too_many(f"more than {budget.rate:g} handshakes a second", budget.wait())
            taken.append(budget)

    def give_back(self, peer: PeerId, prefix: Hashable = None) -> None:
        """A handshake that led to paid work."""
        for usage in (self._peers.get(peer), self._prefixes.get(prefix or peer)):
            if usage is not None:
                usage.handshakes.give_back()

    def leave(self, peer: PeerId, prefix: Hashable = None) -> None:
        for usage in (self._peers.get(peer), self._prefixes.get(prefix or peer)):
            if usage is not None:
                usage.links -= 1
        self._links -= 1

    def forget_idle(self, now: float) -> None:
        """Drop peers and prefixes without links and bytes whose allowance is full again."""
        for book in (self._peers, self._prefixes):
            for key, usage in list(book.items()):
                if not usage.links and not usage.held.bytes and usage.handshakes.full(now):
                    del book[key]  # type: ignore[arg-type]

    def _group(self, prefix: Hashable, now: float) -> _Usage:
        group, limits = self._prefixes.get(prefix), self.limits
        if group is None:
            handshakes = Budget(limits.prefix_handshakes_per_s, limits.prefix_handshake_burst, now)
            group = self._prefixes[prefix] = _Usage(Held(limits.prefix_bytes, self._total), handshakes)
        return group

    def _peer(self, peer: PeerId, group: _Usage, now: float) -> _Usage:
        """A peer that returns from another network is counted with that one, unless it still has links here."""
        usage, limits = self._peers.get(peer), self.limits
        if usage is None or (usage.held.parent is not group.held and not usage.links and not usage.held.bytes):
            handshakes = usage.handshakes if usage else Budget(limits.handshakes_per_s, limits.handshake_burst, now)
            usage = self._peers[peer] = _Usage(Held(limits.bytes, group.held), handshakes)
        return usage


def _too_many(why: str, wait: float) -> Refusal:
    return Refusal(
        Code.RATE, "Too many requests from this peer", why=why, next_step="wait and try again", retry_after=wait
    )
