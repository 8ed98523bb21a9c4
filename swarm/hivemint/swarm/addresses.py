"""Multiaddresses as text: whose network a peer comes from, and which places a stranger may make us dial.

`/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...`: only the first part matters here, as that is what gets connected to.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import PeerId

PREFIX_4, PREFIX_6 = 24, 56
"""Bits of an address that one customer of a provider has, about."""
LOOK_EVERY, LOOK_LIMIT = 1.0, 2.0
"""Seconds between looks at the daemon's connections, where strangers ask whose network is not known; what one takes."""


def host_of(address: str) -> IPv4Address | IPv6Address | None:
    """The IP address that `address` begins with; None for a name, a relay without one, or nonsense."""
    match address.split("/"):
        case ["", "ip4" | "ip6", host, *_]:
            try:
                found = ip_address(host)
            except ValueError:
                return None
            mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
            return mapped or found
    return None


def trouble_of(address: str, *, with_peer: bool = False) -> str:
    """Why `address` can't be listened at, told or dialled, and how it is written; "" if it can, as far as it shows.

    Protocols that are not known here are left to libp2p. `with_peer`: it has to name its peer, too.
    """
    first, *parts = address.split("/")
    kind, host, *rest = [*parts, "", ""]
    if first or not kind:
        return f"{address!r} is no libp2p address: write {_as_multiaddress(address)}"
    if kind in ("ip4", "ip6"):
        try:
            usable = ip_address(host).version == int(kind[-1])
        except ValueError:
            usable = False
        if not usable:
            return f"{address!r}: {host!r} is no address of {kind}: write /{kind}/{_EXAMPLES[kind]}/tcp/4001"
    if kind in ("ip4", "ip6", "dns", "dns4", "dns6"):
        transport, port, *_ = [*rest, "", ""]
        if transport in ("", "tcp", "udp") and not (transport and port.isdecimal() and int(port) < 1 << 16):
            return f"{address!r} names no port from 0 to 65535: write /{kind}/{host}/tcp/4001"
    if with_peer and "/p2p/" not in address:
        return f"{address!r} names no peer: write {address.rstrip('/')}/p2p/12D3Koo..., with the id of that peer"
    return ""


_EXAMPLES = {"ip4": "192.0.2.1", "ip6": "2001:db8::1"}


def _as_multiaddress(text: str) -> str:
    """What was meant by `127.0.0.1:4001`, `[::1]:4001`, `localhost:4001`, `127.0.0.1`, `4001`."""
    host, colon, port = text.strip().removeprefix("tcp://").rpartition(":")
    if not colon:
        host, port = ("127.0.0.1", text.strip()) if text.strip().isdecimal() else (text.strip(), "4001")
    if not port.isdecimal() or int(port) >= 1 << 16 or not host or any(one in host for one in " /"):
        return "one such as /ip4/127.0.0.1/tcp/4001"
    bare = host.strip("[]")
    try:
        kind = f"ip{ip_address(bare).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{bare}/tcp/{port}"


def is_relayed(address: str) -> bool:
    """Through another peer: the IP address is the relay's."""
    return "/p2p-circuit" in address


def is_public(address: str) -> bool:
    """A place in the public internet. Loopback, private, link-local, reserved ranges and names are not."""
    host = host_of(address)
    return host is not None and host.is_global and not host.is_multicast


def is_anywhere(address: str) -> bool:
    """`0.0.0.0` or `::`: all interfaces of this machine."""
    host = host_of(address)
    return host is not None and host.is_unspecified


def is_name(address: str) -> bool:
    return address.startswith(("/dns/", "/dns4/", "/dns6/", "/dnsaddr/"))


def prefix_of(address: str, *, loopback: bool = False) -> str | None:
    """The network that a peer's connection comes from: /24 of IPv4, /56 of IPv6. None: the address says nothing.

    On 127.0.0.1 everybody is the same machine; that counts as one network only where the caller says so. Another
    loopback network was given to somebody on purpose, and counts.
    """
    host = host_of(address)
    if host is None or is_relayed(address):
        return None
    found = str(ip_network((host, PREFIX_4 if host.version == 4 else PREFIX_6), strict=False))
    return None if found in _THIS_MACHINE and not loopback else found


_THIS_MACHINE = ("127.0.0.0/24", "::/56")


def within_reach(addresses: Iterable[str], *, private: bool, names: bool = True) -> list[str]:
    """Those that may be dialled. `private`: loopback and private ranges too; `names`: such as need a look-up."""
    return [
        address
        for address in addresses
        if is_public(address) or (private and host_of(address) is not None) or (names and is_name(address))
    ]


class ConnectedPrefixes:
    """Which network every connected peer comes from. `connections`: the address of each one's connection."""

    def __init__(self, connections: Callable[[], Awaitable[Mapping[PeerId, str]]], *, loopback: bool) -> None:
        self._connections, self._loopback = connections, loopback
        self._prefixes: dict[PeerId, str] = {}
        self._looked_at = float("-inf")

    def of(self, peer: PeerId) -> str | PeerId:
        """The peer itself where no network is known."""
        return self._prefixes.get(peer, peer)

    def seen(self, peer: PeerId, address: str) -> str | None:
        """The prefix of a peer's connection, kept while the peer is connected."""
        prefix = prefix_of(address, loopback=self._loopback)
        if prefix is not None:
            self._prefixes[peer] = prefix
        return prefix

    def worth_a_look(self, peer: PeerId, now: float) -> bool:
        """Whether to look around for a peer's network: it is not known, and the last such look is some time ago."""
        if peer in self._prefixes or now - self._looked_at <= LOOK_EVERY:
            return False
        self._looked_at = now
        return True

    async def look_around(self) -> None:
        """Ask where all connected peers come from; the others are forgotten."""
        with contextlib.suppress(SwarmError, TimeoutError):
            async with asyncio.timeout(LOOK_LIMIT):
                connections = await self._connections()
            self._prefixes.clear()
            for peer, address in connections.items():
                self.seen(peer, address)
