"""Multiaddresses as text: whose network a peer comes from, and which places a stranger may make us dial.

`/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...`: only the first part matters here, as that is what gets connected to.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

PREFIX_4, PREFIX_6 = 24, 56
"""Bits of an address that one customer of a provider has, about."""


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

    On loopback everybody is the same machine; that counts as one network only where the caller says so.
    """
    host = host_of(address)
    if host is None or is_relayed(address) or (host.is_loopback and not loopback):
        return None
    return str(ip_network((host, PREFIX_4 if host.version == 4 else PREFIX_6), strict=False))


def within_reach(addresses: Iterable[str], *, private: bool, names: bool = True) -> list[str]:
    """Those that may be dialled. `private`: loopback and private ranges too; `names`: such as need a look-up."""
    return [
        address
        for address in addresses
        if is_public(address) or (private and host_of(address) is not None) or (names and is_name(address))
    ]
