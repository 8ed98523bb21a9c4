"""Memory that a node need not hold: other libraries' imports, and what malloc keeps of freed tensors."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt's M_...
_LOADING, _SERVING = 256 << 10, 32 << 20


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


def _absent() -> bool:
    return False


def _libc() -> ctypes.CDLL | None:
    """glibc, elsewhere None."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
