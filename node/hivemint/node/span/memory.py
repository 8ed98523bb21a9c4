"""Memory that a node need not hold: other libraries' imports, and what malloc keeps of freed tensors.

And the pages that the rest lies in: large ones, where the system has them.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt's M_...
_LOADING, _SERVING = 256 << 10, 32 << 20

_HUGE_PAGE = 2 << 20
_HINT, _COLLAPSE = 14, 25  # madvise's MADV_HUGEPAGE and, from Linux 6.1 on, MADV_COLLAPSE
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_RESIDENT = 0.95
"""The part of a mapping that must be in use: a huge page fills what was not."""


def spare() -> None:
    """Call before torch and transformers are imported; does nothing where it can't.

    A node has a dozen threads that hardly allocate: two malloc arenas do. transformers imports scipy (36 MB, 0.5 s) for
    the losses of object detection as soon as it is installed, which hivemind sees to.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(_ARENA_MAX, 2)
    import transformers.utils
    from transformers.utils import import_utils

    for module in (import_utils, transformers.utils):
        module.is_scipy_available = _absent  # type: ignore[attr-defined,unused-ignore]


@contextmanager
def exact() -> Iterator[None]:
    """While weights are loaded, converted and packed: what is freed goes back to the system at once.

    Otherwise malloc keeps gaps of up to 32 MB between the tensors that stay (a third of a span of 500 MB). Afterwards
    its limits are those that it would have come to by itself: activations are served from what it keeps.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(_MMAP_THRESHOLD, _LOADING)
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(_MMAP_THRESHOLD, _SERVING)
            libc.mallopt(_TRIM_THRESHOLD, 2 * _SERVING)
            libc.malloc_trim(0)


def trim() -> None:
    """Give freed memory back to the system (milliseconds): activations of long prompts, buffers of loading."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def use_huge_pages() -> None:
    """Move what this process holds in large pieces, its weights above all, to pages of 2 MB.

    A step reads all weights, and in pages of 4 KB the processor looks up 70,000 addresses for the 280 MB of a span. How
    long that takes depends on where the pages happen to lie: two starts of one program differed by 10 % for as long as
    they ran. On Linux alone; takes 0.6 ms a megabyte. Where it can't be done nothing is lost.
    """
    libc = _libc()
    if libc is None or not _SWITCH.exists() or "[never]" in _SWITCH.read_text():
        return
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in _resident():
        first, last = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
        if first < last and libc.madvise(first, last - first, _HINT) == 0:
            libc.madvise(first, last - first, _COLLAPSE)  # older systems come to it by themselves, in the background


def _resident() -> list[tuple[int, int]]:
    """Start and end of each anonymous mapping that is written to and nearly whole in memory."""
    found, start, end, anonymous = [], 0, 0, False
    with suppress(OSError), Path("/proc/self/smaps").open() as lines:
        for line in lines:
            words = line.split()
            if not words[0].endswith(":"):  # address, rights, offset, device, inode, and the name of what has one
                start, end = (int(number, 16) for number in words[0].split("-"))
                anonymous = words[1] == "rw-p" and len(words) == 5
            elif words[0] == "Rss:" and anonymous and int(words[1]) << 10 > _RESIDENT * (end - start):
                found.append((start, end))
    return found


def _absent() -> bool:
    return False


def _libc() -> ctypes.CDLL | None:
    """glibc, elsewhere None."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
