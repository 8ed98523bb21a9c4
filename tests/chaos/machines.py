"""Where the processes of a run live: each node in a network namespace of its own, or all of them on loopback.

With namespaces the chain, the ledger, the bootstrap peer and the proxies are on the hub, a namespace too; nodes and
clients reach nothing but it and each other, over one bridge, and a node's cable can be pulled. Making them needs root.
The conductor itself runs in the hub (`ip netns exec`), whose mounts are its own: what it mounts goes with it.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
LOOPBACK = "127.0.0.1"
_NET = "10.79.0"
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Machines:
    """`tag`: what the names of its namespaces begin with; "" = all on loopback. `places`: who has one of its own."""

    tag: str
    places: tuple[str, ...]

    @property
    def apart(self) -> bool:
        """Whether each place is a machine of its own."""
        return bool(self.tag)

    @property
    def hub(self) -> str:
        """The address of chain, ledger, bootstrap peer and proxies."""
        return f"{_NET}.1" if self.apart else LOOPBACK

    def address(self, place: str) -> str:
        return f"{_NET}.{10 + self.places.index(place)}" if self.apart else LOOPBACK

    def enter(self, place: str) -> list[str]:
        """What stands before a command so that it runs there; who has no place is on the hub."""
        if not self.apart:
            return []
        return ["ip", "netns", "exec", self._space(place if place in self.places else "hub")]

    def plug(self, place: str, *, in_it: bool) -> None:
        """Pull a place's cable, or put it back: nothing comes through, and nobody is told."""
        _ip("link", "set", f"{self.tag}{self.places.index(place)}", "up" if in_it else "down")

    def within(self, place: str, work: Callable[[], T]) -> T:
        """Do `work` as if on that machine, e.g. ask what listens on its loopback."""
        if not self.apart or place not in self.places:
            return work()
        with ThreadPoolExecutor(1, initializer=_move, initargs=(f"/run/netns/{self._space(place)}",)) as there:
            return there.submit(work).result()

    def _space(self, place: str) -> str:
        return f"{self.tag}-{place}"


def _move(path: str) -> None:
    """This thread alone changes its network namespace."""
    with Path(path).open() as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def why_not() -> str:
    """Why there can be no namespaces here; "" where there can."""
    if os.geteuid() or not shutil.which("ip"):
        return "network namespaces need root and the program ip"
    tag = f"hm{os.getpid() % 100000}"
    try:
        with _spaces(tag, ("try",)):
            return ""
    except subprocess.CalledProcessError as error:
        return f"this machine makes no network namespaces: {error.stderr.decode().strip()}"


@contextmanager
def machines(places: Sequence[str], *, apart: bool) -> Iterator[Machines]:
    """Make the places; gone in the end. `apart` needs what `why_not` looks for."""
    made = Machines(f"hm{os.getpid() % 100000}" if apart else "", tuple(places))
    with ExitStack() as stack:
        if apart:
            stack.enter_context(_spaces(made.tag, places))
        yield made


@contextmanager
def _spaces(tag: str, places: Sequence[str]) -> Iterator[None]:
    hub = f"{tag}-hub"
    with ExitStack() as stack:
        _ip("netns", "add", hub)
        stack.callback(_gone, hub)
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "addr", "add", f"{_NET}.1/24", "dev", "bridge")
        for link in ("bridge", "lo"):
            _ip("-n", hub, "link", "set", link, "up")
        for number, place in enumerate(places):
            space, cable = f"{tag}-{place}", f"{tag}{number}"
            _ip("netns", "add", space)
            stack.callback(_gone, space)
            _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", cable, "netns", hub)
            _ip("-n", hub, "link", "set", cable, "master", "bridge")
            _ip("-n", hub, "link", "set", cable, "up")
            _ip("-n", space, "addr", "add", f"{_NET}.{10 + number}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                _ip("-n", space, "link", "set", link, "up")
        yield


def _gone(space: str) -> None:
    with suppress(subprocess.CalledProcessError):
        _ip("netns", "del", space)


def _ip(*words: str) -> None:
    subprocess.run([shutil.which("ip") or "ip", *words], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """`folder` on a disk of `size` bytes, where this process may mount one; whether it is."""
    mount = shutil.which("mount")
    done = bool(mount) and not os.geteuid() and _mounted(str(mount), folder, size)
    try:
        yield done
    finally:
        if done:
            subprocess.run(
                [shutil.which("umount") or "umount", "--lazy", str(folder)], check=False, capture_output=True
            )


def _mounted(mount: str, folder: Path, size: int) -> bool:
    words = [mount, "-t", "tmpfs", "-o", f"size={size},mode=0700", "hivemint-chaos", str(folder)]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0
