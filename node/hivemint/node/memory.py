"""Memory that a node need not hold: other libraries' imports, and what malloc keeps of freed tensors."""

import ctypes
import sys

_ARENA_MAX = -8  # mallopt's M_ARENA_MAX


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
