"""Who can reach a node at its addresses, said as far as it is known, and what to do where that is too few."""

from collections.abc import Iterable
from dataclasses import dataclass

from hivemint.swarm.addresses import host_of, is_anywhere, is_name, is_public, is_relayed

_PORT = 4001


@dataclass(frozen=True, slots=True)
class Reach:
    """One address: who can use it (`machine`, `network`, `world`, or `unknown` for a name), in words, with the fix."""

    address: str
    who: str
    text: str
    fix: str = ""


def reach(address: str) -> Reach:
    """By the address alone: nobody dials back."""
    port = port_of(address) or _PORT
    if is_relayed(address):
        return Reach(address, "unknown", "through a relay, as long as that one stays")
    if is_name(address):
        return Reach(address, "unknown", "a name; not checked from outside")
    if is_public(address):
        return Reach(address, "world", "a public address; not checked from outside: open the port in your firewall")
    host = host_of(address)
    if host is None or host.is_loopback:
        fix = f"--listen /ip4/0.0.0.0/tcp/{port}, to be reached by other machines"
        return Reach(address, "machine", "this machine alone", fix)
    if is_anywhere(address):
        return Reach(address, "network", "all interfaces of this machine", _forward(port))
    return Reach(address, "network", "your own network alone", _forward(port))


def reaches(addresses: Iterable[str], outside: str = "") -> list[Reach]:
    """Of all addresses, without the peer id. `outside`: the network that a client came from, which is proof."""
    found = [reach(address.partition("/p2p/")[0]) for address in addresses]
    if outside:
        found = [Reach(one.address, one.who, f"reached from outside ({outside})") for one in found[:1]] + found[1:]
    return found


def best_fix(found: Iterable[Reach]) -> str:
    """What widens the circle, if nobody in the world can reach any of the addresses; "" otherwise."""
    found = list(found)
    if any(one.who in ("world", "unknown") or "from outside (" in one.text for one in found):
        return ""
    widest = next((one for one in found if one.who == "network"), found[0] if found else None)
    return widest.fix if widest else ""


def port_of(address: str) -> int | None:
    parts = address.split("/")
    return int(parts[4]) if len(parts) > 4 and parts[3] in ("tcp", "udp") and parts[4].isdecimal() else None


def _forward(port: int) -> str:
    return (
        f"forward port {port} of your router to this machine, listen at it (--listen /ip4/0.0.0.0/tcp/{port}) "
        f"and say where: --announce /ip4/YOUR-PUBLIC-IP/tcp/{port}"
    )
